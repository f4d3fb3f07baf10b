"""A receiver is down and the feeder is killed meanwhile: each event arrives in the end, in order, under its one id, signed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.media import clip
from tests.rig import Receiver, Rig, free_port, invariants, wait_until


@dataclass(frozen=True)
class Got:
    """One delivery as it arrived; `answered` 0: the receiver took it, and its answer never came through."""

    id: str
    body: bytes
    headers: dict[str, str]
    answered: int

    @property
    def job(self) -> str:
        return self.id.rpartition(".")[0]

    @property
    def seq(self) -> int:
        return int(self.id.rpartition(".")[2])


class Unreliable:
    """A receiver on one address that `listen`s or does not, and answers as `status` says: a number, or None to take what
    comes and never answer."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.status: int | None = 204
        self.retry_after: str | None = None
        self.got: list[Got] = []
        self._let_go = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    @property
    def accepted(self) -> list[Got]:
        return [one for one in self.got if one.answered in (0, 204)]

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.accepted]

    def listen(self, status: int | None, retry_after: str | None = None) -> None:
        self.status, self.retry_after = status, retry_after
        if self._server is not None:
            return
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.status
                outer.got.append(Got(self.headers["webhook-id"], body, dict(self.headers), status or 0))
                if status is None:
                    outer._let_go.wait(60)
                    return
                self.send_response(status)
                if outer.retry_after:
                    self.send_header("Retry-After", outer.retry_after)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def vanish(self) -> None:
        """Nothing listens there."""
        self._let_go.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._let_go = threading.Event()


def signing_secret(rig: Rig) -> str:
    return (rig.data / "webhook-secret").read_text().strip()


def everything_arrived(receiver: Unreliable, jobs: list[dict[str, Any]]) -> bool:
    ids = {one.id for one in receiver.accepted}
    return all(f"{job['id']}.{seq}" in ids for job in jobs for seq in range(1, job["event_seq"] + 1))


def check(receiver: Unreliable, jobs: list[dict[str, Any]], secret: str) -> None:
    """Each event accepted at least once under its id, none before the one in front of it, all with a signature that holds."""
    orders: dict[str, list[int]] = defaultdict(list)
    for one in receiver.accepted:
        orders[one.job].append(one.seq)
    for job in jobs:
        order = orders[job["id"]]
        assert sorted(set(order)) == list(range(1, job["event_seq"] + 1)), (job["id"], order)
        assert order[0] == 1 and all(later - earlier in (0, 1) for earlier, later in pairwise(order)), order
    for one in receiver.got:
        event = Webhook(secret).verify(one.body, one.headers)
        assert (event["data"]["id"], event["data"]["event_seq"]) == (one.job, one.seq)
        assert event["type"] == f"job.{event['data']['state'].lower()}"


def submitter(rig: Rig) -> Any:
    source = rig.media / "in.mp4"
    source.write_bytes(clip(seconds=1, size="160x120").read_bytes())
    numbers = count()
    return lambda url: rig.submit(source, rig.media / "out" / f"{next(numbers)}.m4a", preset="audio-aac", notify_url=url)


def failed_once(rig: Rig, job_id: str) -> bool:
    return bool(rig.job(job_id)["webhook"]["tries"] >= 1)


def nommerd(rig: Rig, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**rig.env, "NOMMERD_URL": f"http://127.0.0.1:{rig.port}", "NOMMERD_TOKEN": rig.token}
    return subprocess.run([sys.executable, "-m", "nommerd", "webhooks", *argv], env=env, capture_output=True, text=True,
                          timeout=60, check=False, stdin=subprocess.DEVNULL)


def look_around(rig: Rig, stuck: str) -> None:
    """What operators do while a receiver is down: the time is there anyhow, before the next try."""
    found = json.loads(nommerd(rig, "ls", "--json").stdout)
    failing = {one["job"]: one["why"] for one in found["failing"]}
    assert found["due"] >= 1 and failing[stuck].startswith("webhook.unavailable"), found
    refused = nommerd(rig, "test", f"http://127.0.0.1:{free_port()}/")
    assert refused.returncode == 1 and "not accepted: webhook.unavailable" in refused.stderr
    assert nommerd(rig, "replay", "nothing").returncode == 1
    assert nommerd(rig, "secret").stdout == "never replaced\n"


def test_a_receiver_that_is_down_gets_every_event_though_the_feeder_is_killed_meanwhile(tmp_path: Path) -> None:
    receiver, other = Unreliable(), Receiver()
    with Rig(tmp_path) as rig:
        feeder = rig.start_feeder()
        rig.start_worker("w1")
        submit = submitter(rig)
        first = submit(receiver.url)  # nobody listens
        rig.wait_finished(first, 30)
        wait_until(lambda: failed_once(rig, first), 10, "a failed delivery")

        elsewhere, nowhere = submit(other.url), submit(f"http://127.0.0.1:{free_port()}/")
        wait_until(lambda: other.ids(elsewhere, "FINISHED"), 20, "the events for a receiver that is up")
        wait_until(lambda: failed_once(rig, nowhere), 20, "a failed delivery")

        receiver.listen(None)
        second = submit(receiver.url)
        wait_until(lambda: any(one.job == second for one in receiver.got), 20, "a delivery that is never answered")
        feeder.kill()  # the receiver has taken the event, the record does not know
        receiver.vanish()
        receiver.listen(204)
        rig.start_feeder()
        jobs = [rig.wait_finished(job_id, 30) for job_id in (first, second)]
        look_around(rig, nowhere)
        wait_until(lambda: everything_arrived(receiver, jobs), 60, lambda: f"all events: {receiver.ids}")
        check(receiver, jobs, signing_secret(rig))
        assert [one.seq for one in receiver.accepted if one.job == second][:2] == [1, 1], "taken twice under one id"
        wait_until(lambda: all(rig.job(job["id"])["webhook"]["accepted_seq"] == job["event_seq"] for job in jobs), 10,
                   "the records to know")
        log = rig.job(first)["webhook"]["deliveries"]
        assert (log[0]["seq"], log[0]["status"]) == (1, None) and log[0]["why"].startswith("webhook.unavailable")
        assert [(one["seq"], one["status"], one["why"]) for one in log[-4:]] == [(seq, 204, "") for seq in (1, 2, 3, 4)]
        invariants(rig, outputs=[rig.media / "out" / "0.m4a"], secrets=[signing_secret(rig)])
    receiver.vanish()
    other.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minutes_of_every_kind_of_failure_and_three_kills_lose_no_event(tmp_path: Path) -> None:
    """The schedule's own times: 5 s, 30 s, 2 min. The receiver is down for two minutes and comes back."""
    receiver = Unreliable()
    with Rig(tmp_path) as rig:
        rig.start_feeder()
        rig.start_worker("w1")
        submit = submitter(rig)
        begun, ids = time.monotonic(), []
        phases: list[tuple[int | None, str | None]] = [(503, None), (429, "20"), (302, None), (None, None), (500, None)]
        while time.monotonic() - begun < 120:
            status, retry_after = phases[len(ids) % len(phases)]
            receiver.listen(status, retry_after)
            ids.append(submit(receiver.url))
            rig.wait_finished(ids[-1], 60)
            if len(ids) % 3 == 0:
                receiver.vanish()
                assert rig.feeder is not None
                rig.feeder.kill()
                rig.start_feeder()
            with suppress(AssertionError):
                wait_until(lambda: time.monotonic() - begun > 12 * len(ids), 12, "the next job's time")
        assert len([log for log in rig.daemons if log.name == "feeder"]) >= 4
        receiver.listen(204)
        jobs = [rig.job(job_id) for job_id in ids]
        wait_until(lambda: everything_arrived(receiver, jobs), 400, lambda: f"all events: {receiver.ids}")
        check(receiver, jobs, signing_secret(rig))
        assert {one.answered for one in receiver.got} >= {503, 429, 302, 0, 500, 204}
        print(f"{len(jobs)} jobs, {len(receiver.got)} deliveries, {len(receiver.accepted)} accepted, "
              f"{time.monotonic() - begun:.0f} s")
        invariants(rig, outputs=[rig.media / "out" / "0.m4a"])
    receiver.vanish()
