"""A real feeder in a process of its own, over HTTP. A worker's part is played on the same database file."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import pytest
from standardwebhooks import Webhook

from nommerd import lifecycle
from nommerd.bus import open_bus
from nommerd.job import Job, JobState, Key, Owner, new_id, utcnow
from nommerd.messages import ChangeMessage
from nommerd.store import open_store
from nommerd.watch import this_process
from tests.rig import CANARY, Receiver, Rig, wait_until

STATES = (JobState.DOWNLOADING, JobState.ENCODING, JobState.UPLOADING)


class Hand:
    """Does what a worker would, step by step."""

    def __init__(self, data: Path) -> None:
        url = f"sqlite:///{data / 'nommerd.db'}"
        self.store, self.bus = open_store(url, data), open_bus(url, data)

    def claim(self, job_id: str, owner: Owner | None = None) -> Owner:
        mine = replace(owner or this_process("hand"), claim=new_id())
        self.store.update(Key("default", job_id), lifecycle.claim(mine, "m", 30.0, utcnow()))
        return mine

    def change(self, job_id: str, change: lifecycle.Change) -> Job:
        job = self.store.update(Key("default", job_id), change)
        self.bus.changes.send(ChangeMessage(id=job.id, event_seq=job.event_seq))
        return job

    def advance(self, job_id: str, owner: Owner, state: JobState) -> Job:
        return self.change(job_id, lifecycle.advance(owner, state, state.value.lower(), 0.5, utcnow()))

    def finish(self, job_id: str, owner: Owner) -> Job:
        return self.change(job_id, lifecycle.finish(owner, [], [], utcnow()))

    def close(self) -> None:
        self.bus.close()
        self.store.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One feeder for the tests that leave it as it was."""
    with Rig(tmp_path_factory.mktemp("feeder")) as rig:
        rig.start_feeder()
        yield rig


@pytest.fixture
def hand(shared: Rig) -> Iterator[Hand]:
    with closing(Hand(shared.data)) as hand:
        yield hand


def submit(rig: Rig, **more: Any) -> str:
    return rig.submit(rig.media / "in.mov", rig.media / f"{new_id()}.mp4", preset="web-480p", **more)


def begin_wait(rig: Rig, job_id: str, after: int) -> http.client.HTTPConnection:
    """A connection on which the feeder waits for the job's next event: it has answered a later request already."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=30)
    connection.request("GET", f"/v1/jobs/{job_id}?wait=20&after={after}", headers={"Authorization": f"Bearer {rig.token}"})
    rig.job(job_id)
    return connection


def test_requests_of_a_kept_alive_connection_do_not_wait_for_delayed_acknowledgements(shared: Rig) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        connection.request("GET", "/v1/jobs?limit=1", headers={"Authorization": f"Bearer {shared.token}"})
        assert connection.getresponse().read().startswith(b'{"jobs"')
        times.append(time.perf_counter() - begun)
    connection.close()
    assert min(times) < 0.030  # 44 ms each without TCP_NODELAY


def test_only_names_of_ours_and_pages_of_ours_are_served(shared: Rig) -> None:
    assert shared.call("GET", "/", headers={"Host": "evil.example"})[0] == 403
    assert shared.call("GET", "/v1/jobs", headers={"Origin": "https://evil.example"})[0] == 403
    assert shared.call("GET", "/v1/jobs", token=False)[0] == 401
    status, page = shared.call("GET", "/", token=False)
    assert status == 200 and '<script src="/static/' in page


def test_a_body_over_the_limit_is_refused_while_it_is_still_sent(shared: Rig) -> None:
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {shared.token}\r\n".encode()
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as declared:
        declared.sendall(head + b"Content-Length: 2000000\r\n\r\n" + b" " * 2_000_000)
        assert declared.recv(4096).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as chunked:
        chunked.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 40)
        assert chunked.recv(4096).startswith(b"HTTP/1.1 413 ")
    assert shared.call("GET", "/healthz", token=False)[0] == 200


def test_a_body_in_chunks_under_any_content_type_is_read(shared: Rig) -> None:
    body = json.dumps({"source": (shared.media / "in.mov").as_uri(), "dest": (shared.media / "chunked.mp4").as_uri(),
                       "preset": "web-480p"}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    connection.request("POST", "/v1/jobs", iter([body[:20], body[20:]]), encode_chunked=True, headers={
        "Transfer-Encoding": "chunked", "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": f"Bearer {shared.token}"})
    assert connection.getresponse().status == 201
    connection.close()


def test_a_wait_is_answered_by_the_workers_hint_and_not_by_the_next_look(shared: Rig, hand: Hand) -> None:
    job_id = submit(shared)
    owner = hand.claim(job_id)
    times = []
    for seq, state in enumerate((*STATES, *STATES[1:])):
        waiting = begin_wait(shared, job_id, seq)
        begun = time.monotonic()
        hand.advance(job_id, owner, state)
        job = json.loads(waiting.getresponse().read())
        times.append(time.monotonic() - begun)
        waiting.close()
        assert (job["event_seq"], job["state"]) == (seq + 1, state)
    hand.finish(job_id, owner)
    assert median(times) < 0.5  # the backstop alone takes about 0.9 s


def test_a_second_feeder_on_the_same_file_refuses_to_start(shared: Rig) -> None:
    second = shared.start("feeder", name="second")
    assert second.process.wait(20) == 2
    assert "config.feeder_running" in shared.tail("second")
    assert shared.call("GET", "/readyz", token=False)[0] == 200


def test_secrets_stay_out_of_answers_records_and_logs(shared: Rig) -> None:
    status, job = shared.call("POST", "/v1/jobs", {
        "source": f"https://user:{CANARY}@cdn.example/a.mov?sig={CANARY}", "dest": (shared.media / "secret.mp4").as_uri(),
        "preset": "web-480p", "notify_url": f"http://127.0.0.1:1/hook?token={CANARY}"})
    assert status == 201 and CANARY not in json.dumps(job)
    assert CANARY not in json.dumps(shared.job(job["id"]))
    assert shared.call("POST", f"/v1/jobs/{job['id']}/cancel")[0] == 202
    wait_until(lambda: "webhook.refused" in shared.tail("feeder"), 20, "the webhook to be refused")
    assert CANARY not in shared.tail("feeder") and shared.token not in shared.tail("feeder")
    for file in shared.data.glob("nommerd.db*"):
        assert CANARY.encode() not in file.read_bytes()
    assert (shared.data / "token").stat().st_mode & 0o777 == 0o600


def test_no_job_reads_or_replaces_the_data_directory_though_it_lies_below_a_root(tmp_path: Path) -> None:
    with Rig(tmp_path, env={"NOMMERD_STORAGE__FILE_ROOTS": json.dumps([str(tmp_path)])}) as rig:
        rig.start_feeder()
        source = (rig.media / "in.mp4").as_uri()
        for name in ("keys", "token", "nommerd.db", "work/x/out.mp4", "new.mp4"):
            own = (rig.data / name).as_uri()
            for more in ({"source": source, "dest": own, "overwrite": True}, {"source": own, "dest": f"{source}.new.mp4"}):
                status, answer = rig.call("POST", "/v1/jobs", {"preset": "web-480p", **more})
                assert (status, answer["code"].partition(".")[2]) == (422, "outside_roots"), (more, answer)
        assert rig.call("POST", "/v1/jobs", {"preset": "web-480p", "source": source, "dest": f"{source}.new.mp4"})[0] == 201


def test_a_vanished_workers_job_is_free_again_within_seconds(shared: Rig, hand: Hand) -> None:
    job_id = submit(shared)
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    owner = hand.claim(job_id, replace(this_process("gone"), pid=gone.pid))
    hand.advance(job_id, owner, JobState.ENCODING)
    begun = time.monotonic()
    job = wait_until(lambda: (j := shared.job(job_id))["state"] == "PENDING" and j, 10, "the lease to be broken")
    assert time.monotonic() - begun < 8
    assert job["attempts"][0]["why"] == "node.lost"
    wait_until(lambda: hand.store.get(Key("default", job_id)).message_id, 10, "the job to be sent again")


def test_webhooks_that_were_due_are_delivered_in_order_after_a_crash(rig: Rig) -> None:
    receiver = Receiver(refuse=1)
    rig.start_feeder()
    with closing(receiver), closing(Hand(rig.data)) as hand:
        job_id = submit(rig, notify_url=receiver.url)
        owner = hand.claim(job_id)
        hand.advance(job_id, owner, STATES[0])
        wait_until(lambda: receiver.refused, 20, "the first delivery")
        assert rig.feeder is not None
        rig.feeder.kill()
        for state in STATES[1:]:
            hand.advance(job_id, owner, state)
        hand.finish(job_id, owner)
        rig.start_feeder()
        wait_until(lambda: receiver.ids(job_id, "FINISHED"), 30, lambda: f"FINISHED delivered: {rig.tail('feeder')}")
        ids = list(dict.fromkeys(i for i, *_ in receiver.accepted))
        assert ids == [f"{job_id}.{seq}" for seq in range(1, 5)]
        verifier = Webhook((rig.data / "webhook-secret").read_text().strip())
        for webhook_id, body, headers, raw in receiver.accepted:
            verifier.verify(raw, {name.lower(): value for name, value in headers.items()})
            seq = int(webhook_id.rpartition(".")[2])
            assert body["data"]["event_seq"] == seq
            assert body["type"] == f"job.{body['data']['state'].lower()}"
            assert body["data"]["events"][-1]["seq"] == seq
        states = {body["data"]["event_seq"]: body["data"]["state"] for _, body, *_ in receiver.accepted}
        assert [states[seq] for seq in sorted(states)] == [*STATES, "FINISHED"]
        wait_until(lambda: not hand.store.get(Key("default", job_id)).due_events, 10, "acceptance to be recorded")


def test_a_receiver_that_says_410_gets_no_more(rig: Rig) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked: list[str] = []

    class Gone(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            asked.append(self.headers["webhook-id"])
            self.send_response(410)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Quiet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gone)
    Thread(target=server.serve_forever, daemon=True).start()
    rig.start_feeder()
    with closing(Hand(rig.data)) as hand:
        job_id = submit(rig, notify_url=f"http://127.0.0.1:{server.server_port}/")
        owner = hand.claim(job_id)
        hand.advance(job_id, owner, STATES[0])
        wait_until(lambda: hand.store.get(Key("default", job_id)).webhook.disabled, 20, "the receiver to be given up")
        hand.finish(job_id, owner)
        assert rig.call("GET", f"/v1/jobs/{job_id}?wait=2&after=1")[1]["state"] == "FINISHED"
        assert hand.store.get(Key("default", job_id)).due_events == ()
    server.shutdown()
    server.server_close()
    assert asked == [f"{job_id}.1"]


def test_a_job_that_a_crash_left_unsent_is_sent_at_the_next_start(rig: Rig) -> None:
    rig.start_feeder().kill()
    with closing(Hand(rig.data)) as hand:
        job = Job(id=new_id(), pipeline="web-mp4", recipe="0" * 64, source="file:///s", dest="file:///d", created=utcnow(),
                  updated=utcnow(), write_id=new_id())
        hand.store.create(job)
        rig.start_feeder()
        [delivery] = wait_until(lambda: hand.bus.jobs.receive(1, 1), 10, "the message")
        assert delivery.message.key == job.key  # type: ignore[union-attr]
        delivery.ack()


def test_asked_to_stop_it_answers_who_waits_and_exits_0(rig: Rig) -> None:
    feeder = rig.start_feeder()
    job_id = submit(rig)
    idle = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    waiting = begin_wait(rig, job_id, 0)
    begun = time.monotonic()
    feeder.signal(signal.SIGTERM)
    assert feeder.process.wait(15) == 0
    assert time.monotonic() - begun < 8
    assert waiting.getresponse().status == 200
    for connection in (idle, waiting):
        connection.close()


def test_a_fault_in_the_operators_pipelines_is_told_with_its_place_and_exits_2(tmp_path: Path) -> None:
    with Rig(tmp_path, config="# own pipelines\n") as rig:
        for folder in ("pipelines", "presets"):
            (rig.root / folder).mkdir()
        (rig.root / "pipelines" / "mine.yaml").write_text("kind: pipeline\nname: mine\nstages:\n  - fetsh\n")
        feeder = rig.start("feeder")
        assert feeder.process.wait(20) == 2
        assert "mine.yaml:4:" in rig.tail("feeder")
        assert "Traceback" not in rig.tail("feeder")


@pytest.mark.parametrize("command", [("feeder",), ("up",)])
def test_a_data_directory_that_cannot_be_made_is_a_fault_of_the_configuration(tmp_path: Path, command: tuple[str]) -> None:
    with Rig(tmp_path) as rig:
        (tmp_path / "file").write_text("no directory")
        rig.config.write_text(rig.config.read_text().replace(str(rig.data), str(tmp_path / "file" / "data")))
        assert rig.start(*command).process.wait(30) == 2
        assert "paths.data: config.unreadable" in rig.tail(command[0])
        assert "Traceback" not in rig.tail(command[0])
