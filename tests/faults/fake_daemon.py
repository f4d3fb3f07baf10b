"""A worker, a sweeper or a writer on one embedded file, without media; COMMAND and then ROLE FOLDER SEED runs one.

Whatever the store has acknowledged is then written to a journal (one write, so that kill -9 tears no line).
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from pathlib import Path

import gevent

from nommerd import lifecycle
from nommerd.bus import open_bus
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.errors import Fenced, Problem
from nommerd.job import Job, JobState, Key, Output, Owner, Sweep, new_id, utcnow
from nommerd.lifecycle import NotClaimable
from nommerd.messages import JobMessage
from nommerd.store import open_store
from nommerd.store.base import StoreUnavailable

COMMAND = [sys.executable, "-c", "from nommerd import runtime; runtime.patch(); "
           "from tests.faults import fake_daemon; fake_daemon.main()"]
URL = "sqlite:///nommerd.db"
LEASE_SECONDS = 0.8
LOST = Problem(code="node.lost", message="its worker was lost", retryable=True)
ATTEMPTS_MAX = 1000


class Daemon:
    def __init__(self, folder: Path, seed: str) -> None:
        self.store, self.bus = open_store(URL, folder), open_bus(URL, folder)
        self.random = random.Random(seed)
        self.stop = folder / "stop"
        self.journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, *words: object) -> None:
        os.write(self.journal, (" ".join(map(str, words)) + "\n").encode())

    def work(self) -> None:
        while not self.stop.exists():
            for delivery in self.bus.jobs.receive(1, 0.5):
                with contextlib.suppress(Fenced):
                    self.encode(delivery)

    def encode(self, delivery: Delivery) -> None:
        key, owner = delivery.message.key, Owner(worker=str(os.getpid()), node="n", claim=new_id())
        try:
            job = self.store.update(key, lifecycle.claim(owner, delivery.message_id, LEASE_SECONDS, utcnow()))
        except NotClaimable as refused:
            if refused.job.state.final or refused.job.message_id != delivery.message_id:
                delivery.ack()
            return
        self.note("claim", key.id, job.version, owner.claim)
        for state in (JobState.DOWNLOADING, JobState.ENCODING, JobState.UPLOADING):
            gevent.sleep(self.random.uniform(0, 0.2))
            job = self.store.update(key, lifecycle.advance(owner, state, "s", 0.5, utcnow()))
            self.note("own", key.id, job.version, owner.claim)
            self.store.report_progress(key, job.token, self.random.random(), "s", None)
        output = Output(uri=owner.claim, bytes=1, sha256="")
        job = self.store.update(key, lifecycle.finish(owner, [output], [], utcnow()))
        self.note("own", key.id, job.version, owner.claim)
        delivery.ack()

    def sweep(self) -> None:
        seen: dict[Key, tuple[int, float]] = {}
        while not self.stop.exists():
            for job in [job for kind in Sweep for job in self.store.due_for_sweep(kind, time.time() + 3600, 1000)]:
                version, since = seen.get(job.key, (0, 0.0))
                if version != job.version:
                    seen[job.key] = job.version, time.monotonic()
                elif time.monotonic() - since > LEASE_SECONDS:
                    self.settle(job)
            gevent.sleep(0.1)

    def settle(self, job: Job) -> None:
        if job.claimed:
            job = self.store.update(job.key, lifecycle.break_lease(job.lease_version, LOST, ATTEMPTS_MAX, utcnow()))
        if not job.claimed and not job.state.final:
            message_id = self.bus.jobs.send(JobMessage(id=job.id))
            self.store.update(job.key, lifecycle.sent(message_id, utcnow()))

    def write(self) -> None:
        gevent.joinall([gevent.spawn(self._write) for _ in range(20)])

    def _write(self) -> None:
        for _ in range(50):
            job = Job(id=new_id(), pipeline="p", recipe="r", source="s", dest="d", created=utcnow(), updated=utcnow(),
                      write_id=new_id(), labels={"a": "b"})
            self.store.create(job)
            self.bus.jobs.send(JobMessage(id=job.id))
            self.note("stored", job.id)


def main() -> None:
    role, folder, seed = sys.argv[1:]
    daemon = Daemon(Path(folder), seed)
    run = {"work": daemon.work, "sweep": daemon.sweep, "write": daemon.write}[role]
    while True:
        try:
            return run()
        except (StoreUnavailable, BusUnavailable) as error:
            print(error, file=sys.stderr)

