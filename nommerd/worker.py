"""The worker: receives messages as far as it has free slots, keeps its heartbeat, and gives its work back when it stops.

Each message is handled in a greenlet of its own (see nommerd.handling); one that claims holds a slot until its job is
settled, one whose job somebody else holds gives its slot back and watches that lease.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from nommerd import __version__, logs
from nommerd.attempt import Tools, threads_per_job
from nommerd.aws.clients import Clients
from nommerd.bus import open_bus
from nommerd.bus.base import Bus
from nommerd.catalog import load_stages
from nommerd.config import Settings
from nommerd.errors import ConfigError, InfrastructureError, ManyErrors, NommerdError, ShuttingDown
from nommerd.greenlets import Greenlets
from nommerd.handling import Handling
from nommerd.health import serve
from nommerd.job import utcnow
from nommerd.lease import this_process
from nommerd.media import binaries
from nommerd.net.egress import Egress
from nommerd.runtime import self_test
from nommerd.secrets import Keyring
from nommerd.storage import build_registry
from nommerd.store import open_store
from nommerd.store.base import Store, WorkerRecord
from nommerd.workspace import Workspaces

RECEIVE_SECONDS = 20.0  # one receive waits at most this long
BACKOFF_FIRST_SECONDS = 0.5
BACKOFF_MAX_SECONDS = 15.0  # so that work resumes well within half a minute after the bus does
CLEAN_SECONDS = 10.0  # how often workspaces of dead processes are looked for
STOP_SECONDS = 4.0  # what running work gets to end and be given back: the process is gone within five
KILL_SECONDS = 0.15
BEAT_SECONDS = 0.5  # what the last heartbeat may take
EXIT_FAILED, EXIT_CONFIG = 1, 2
EMBEDDED = frozenset({"sqlite", "memory"})  # stores that cost nothing to look at


class Worker:
    """`run` works until `stop`. `embedded`: the store is on this machine and cheap to read."""

    def __init__(self, *, tools: Tools, bus: Bus, name: str, node: str | None = None, slots: int = 2,
                 lease_seconds: float = 30.0, max_attempts: int = 3, heartbeat_seconds: float = 60.0,
                 embedded: bool = True) -> None:
        self._tools, self._store, self._bus = tools, tools.store, bus
        self._me = this_process(name, node)
        self._slots, self._heartbeat_seconds = slots, heartbeat_seconds
        self._stopping, self._slot_free = Event(), Event()
        self._handling = Handling(tools, bus, self._me, self._stopping, lease_seconds=lease_seconds,
                                  max_attempts=max_attempts, embedded=embedded)
        self._busy = Greenlets(on_end=self._slot_free.set)  # one per message that holds a slot
        self._log = logs.get(worker=name)

    @property
    def active(self) -> tuple[str, ...]:
        """Ids of the jobs in its slots."""
        return tuple(sorted({key.id for key, _ in self._handling.active}))

    def ready(self) -> bool:
        """Whether it takes work: it is not stopping, and the store can be written."""
        if self._stopping.is_set():
            return False
        try:
            self._store.ping()
        except InfrastructureError:
            return False
        return True

    def stop(self) -> None:
        """Ask `run` to end; running work is given back. Only sets a flag."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`; returns within STOP_SECONDS and a little."""
        self._beat("ACTIVE")
        self._log.info("worker.started", node=self._me.node, slots=self._slots, version=__version__)
        loops = [gevent.spawn(self._receive_loop), gevent.spawn(self._heartbeat_loop), gevent.spawn(self._clean_loop)]
        self._stopping.wait()
        self._shut_down(loops)
        with gevent.Timeout(BEAT_SECONDS, False):
            self._beat("TERMINATED")
        self._log.info("worker.stopped")

    def _receive_loop(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            free = self._slots - len(self._busy)
            if free <= 0:
                self._slot_free.clear()
                self._slot_free.wait()
                continue
            try:
                deliveries = self._bus.jobs.receive(free, RECEIVE_SECONDS)
                failures = 0
            except Exception as error:
                failures += 1
                self._log.warning("receive.failed", why=str(error), exc_info=not isinstance(error, InfrastructureError))
                self._stopping.wait(backoff_seconds(failures))
                continue
            for delivery in deliveries:
                self._busy.spawn(self._handling.handle, delivery)

    def _heartbeat_loop(self) -> None:
        while not self._stopping.wait(self._heartbeat_seconds):
            self._beat("ACTIVE")

    def _clean_loop(self) -> None:
        """Remove the workspaces that dead neighbours left, and those of this worker's earlier life."""
        while True:
            self._clean()
            if self._stopping.wait(min(CLEAN_SECONDS, self._heartbeat_seconds)):
                return

    def _beat(self, state: str) -> None:
        record = WorkerRecord(name=self._me.worker, node=self._me.node, state=state, slots=self._slots, active=self.active,
                              version=__version__, encoders=tuple(sorted(self._tools.binaries.encoders)), reported=utcnow())
        try:
            self._store.put_worker(record)
        except Exception as error:
            self._log.warning("heartbeat.failed", why=str(error), exc_info=not isinstance(error, InfrastructureError))

    def _clean(self) -> None:
        try:
            removed = self._tools.workspaces.clean()
        except Exception as error:
            self._log.warning("workspaces.not_cleaned", why=str(error), exc_info=not isinstance(error, OSError))
            return
        if removed:
            self._log.info("workspaces.cleaned", removed=removed)

    def _shut_down(self, loops: list[gevent.Greenlet]) -> None:
        """First no more messages, then the work, then what was sent aside for it."""
        until = time.monotonic() + STOP_SECONDS
        for stop in list(self._handling.active.values()):
            stop.set(ShuttingDown("the worker is stopping"))
        self._slot_free.set()
        while not loops[0].ready() and time.monotonic() < until:
            self._bus.jobs.interrupt()  # again and again: one may come just before the wait it should end
            gevent.joinall(loops, timeout=0.05)
        groups = (self._busy, self._handling.watching, self._handling.aside)
        for group in groups:
            while not group.join(max(0.0, min(0.5, until - time.monotonic()))) and time.monotonic() < until:
                pass
        if any(len(group) for group in groups):
            self._log.warning("worker.cut_short", jobs=self.active)
        gevent.killall(loops, timeout=KILL_SECONDS)
        for group in groups:
            group.kill(KILL_SECONDS)


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, with jitter."""
    most: float = min(BACKOFF_FIRST_SECONDS * 2 ** min(failures - 1, 10), BACKOFF_MAX_SECONDS)
    return most * (0.5 + random.random() / 2)


def main(settings: Settings, *, name: str | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT. 0 when it stopped, 2 for a configuration that must be changed, 1 otherwise.

    It makes nothing but its workspaces: data directory and keys are the feeder's to make. The process is patched already.
    """
    try:
        return _run(settings, name)
    except (ConfigError, ManyErrors) as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except NommerdError as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_FAILED


def make_tools(settings: Settings, store: Store) -> Tools:
    """What the settings give each attempt to work with. Raises ConfigError."""
    media, wanted = settings.media, settings.storage
    keyring = Keyring.load_or_make(settings.data_dir, settings.secrets.keys, make=False)
    logs.register(*keyring.keys)
    storage = build_registry(wanted.file_roots, Egress(settings.net.allow_networks), wanted.max_source_bytes, wanted.backends,
                             closed=settings.own_files)
    return Tools(store=store, storage=storage, stages=load_stages(settings.stages), keyring=keyring,
                 binaries=binaries.find(media.ffmpeg, media.ffprobe),
                 workspaces=Workspaces(settings.work_dir, settings.worker.keep_failed_workspaces),
                 threads=threads_per_job(settings.worker.threads_per_job, settings.worker.slots))


def _run(settings: Settings, name: str | None) -> int:
    if not settings.data_dir.is_dir():
        raise ConfigError("config.no_data", f"The data directory {settings.data_dir} is missing.",
                          "`nommerd up` and `nommerd feeder` make it; start one first, or set paths.data.", place="paths.data")
    self_test()
    wanted = settings.worker
    with ExitStack() as parts:
        clients = Clients(settings.aws)
        store = open_store(settings.store, settings.data_dir, clients)
        parts.callback(store.close)
        bus = open_bus(settings.bus, settings.data_dir, clients)
        parts.callback(bus.close)
        worker = Worker(tools=make_tools(settings, store), bus=bus, name=name or f"{socket.gethostname()}-{os.getpid()}",
                        slots=wanted.slots, lease_seconds=wanted.lease_seconds, max_attempts=wanted.max_attempts,
                        heartbeat_seconds=wanted.heartbeat_seconds, embedded=urlsplit(settings.store).scheme in EMBEDDED)
        if wanted.health_port is not None:
            parts.callback(serve(wanted.health_port, worker.ready).stop, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, worker.stop)
        worker.run()
    return 0
