"""A job's events as they come, over real sockets."""

from __future__ import annotations

import fcntl
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, NamedTuple

import gevent
import pytest

from nommerd import lifecycle
from nommerd.api import events as module
from nommerd.api.answers import JobAnswer
from nommerd.api.app import create_app
from nommerd.api.auth import Gate, Hosts
from nommerd.api.events import event_routes
from nommerd.api.server import Server
from nommerd.job import Job, JobState, Key, Owner, new_id, utcnow
from nommerd.secrets import Secret
from nommerd.store.base import StoreUnavailable
from nommerd.store.memory import MemoryStore
from tests.rig import wait_until
from tests.unit.api.calls import TOKEN, Api

S = JobState
OWNER = Owner(worker="w", node="n", claim="c")


class Piece(NamedTuple):
    """One event as it was read."""

    id: str
    kind: str
    data: dict[str, Any]


class Stream:
    """A reader of a stream: `head`, then pieces one by one; comments are counted."""

    def __init__(self, port: int, path: str, receive_bytes: int | None = None, **headers: str) -> None:
        self._socket = socket.socket()
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(10)
        self._socket.connect(("127.0.0.1", port))
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n{more}\r\n".encode())
        self._rest = b""
        self.comments = 0
        self.head = self._until(b"\r\n\r\n").decode()
        self.status = int(self.head.split()[1])

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._rest:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._rest += data
        found, _, self._rest = self._rest.partition(mark)
        return found

    def next(self) -> Piece | None:
        """The next event, None at the end of the stream."""
        while True:
            try:
                lines = self._until(b"\n\n").decode().split("\n")
            except EOFError:
                return None
            if lines[0].startswith(("retry:", ":")):
                self.comments += lines[0].startswith(":")
                continue
            fields = dict(line.split(": ", 1) for line in lines)
            assert list(fields) == ["id", "event", "data"], lines
            JobAnswer.model_validate_json(fields["data"])
            return Piece(fields["id"], fields["event"], json.loads(fields["data"]))

    def rest(self) -> list[Piece]:
        pieces = []
        while (piece := self.next()) is not None:
            pieces.append(piece)
        return pieces

    def close(self) -> None:
        self._socket.close()


class Flaky(MemoryStore):
    """Out of reach for as many looks as a test says; counts looks."""

    unreachable = 0
    looks = 0

    def get(self, key: Key) -> Job:
        self.looks += 1
        if self.unreachable > 0:
            self.unreachable -= 1
            raise StoreUnavailable("out of reach")
        return super().get(key)


class Scene:
    """A server with the one call, and a claimed job."""

    def __init__(self, api: Api, store: MemoryStore) -> None:
        self.store = store
        self.waiters = api.waiters
        api.jobs.store = store
        gate = Gate([Secret(TOKEN)], Hosts("127.0.0.1"))
        self.server = Server("127.0.0.1", 0, create_app(event_routes(api.jobs, store, api.waiters), gate))
        self.server.start()
        self.key = self.create()
        self.streams: list[Stream] = []

    def create(self, **more: Any) -> Key:
        now = utcnow()
        job = Job(id=new_id(), pipeline="p", recipe="r", source="file:///s", dest="file:///d", created=now, updated=now,
                  write_id=new_id(), **more)
        self.store.create(job)
        self.store.update(job.key, lifecycle.claim(OWNER, "m", 30.0, now))
        return job.key

    def change(self, change: lifecycle.Change, key: Key | None = None) -> None:
        """Made, and hinted at, as the feeder does."""
        self.store.update(key or self.key, change)
        self.waiters.wake(key or self.key)

    def to(self, *states: JobState, key: Key | None = None) -> None:
        for state in states:
            self.change(lifecycle.finish(OWNER, [], [], utcnow()) if state is S.FINISHED
                        else lifecycle.advance(OWNER, state, "x", 0.5, utcnow()), key)

    def open(self, key: Key | None = None, **headers: Any) -> Stream:
        stream = Stream(self.server.server_port, f"/v1/jobs/{(key or self.key).id}/events", **headers)
        self.streams.append(stream)
        return stream

    def close(self) -> None:
        self.waiters.close()
        self.server.finish(1)

    def nobody_reads(self) -> bool:
        return len(self.server.pool) == 0 and not self.waiters._events


@pytest.fixture
def scene(api: Api) -> Iterator[Scene]:
    made = Scene(api, Flaky())
    yield made
    for stream in made.streams:
        stream.close()
    made.close()


def kinds(pieces: list[Piece]) -> list[tuple[str, str, str]]:
    return [(piece.kind, piece.id, piece.data["state"]) for piece in pieces if piece.kind != "progress"]


def test_every_change_of_state_comes_in_order_then_the_end(scene: Scene) -> None:
    scene.to(S.DOWNLOADING)
    stream = scene.open()
    assert stream.status == 200 and "Content-Type: text/event-stream" in stream.head
    assert "Content-Length" not in stream.head and "Cache-Control: no-store" in stream.head
    first = stream.next()
    assert first is not None and (first.kind, first.id) == ("state", "1")
    scene.to(S.ENCODING, S.UPLOADING, S.FINISHED)
    pieces = [first, *stream.rest()]
    assert kinds(pieces) == [("state", "1", "DOWNLOADING"), ("state", "2", "ENCODING"), ("state", "3", "UPLOADING"),
                             ("state", "4", "FINISHED"), ("end", "4", "FINISHED")]
    assert [piece.data["event_seq"] for piece in pieces if piece.kind == "state"] == [1, 2, 3, 4]
    wait_until(scene.nobody_reads, 5, "its greenlet to end")


def test_a_change_is_told_at_once(scene: Scene) -> None:
    stream = scene.open()
    assert stream.next() is not None  # how far it is
    begun = time.monotonic()
    scene.to(S.DOWNLOADING)
    piece = stream.next()
    assert piece is not None and piece.kind == "state"
    assert time.monotonic() - begun < module.PROGRESS_SECONDS / 2


def test_a_reader_that_comes_back_misses_nothing_and_hears_nothing_twice(scene: Scene) -> None:
    scene.to(S.DOWNLOADING, S.ENCODING, S.UPLOADING, S.FINISHED)
    assert [piece.id for piece in scene.open(Last_Event_ID="2").rest()] == ["3", "4", "4"]
    assert kinds(scene.open(Last_Event_ID="4").rest()) == [("end", "4", "FINISHED")]
    assert kinds(scene.open(Last_Event_ID="99").rest()) == [("end", "4", "FINISHED")]


@pytest.mark.parametrize("wrong", ["x", "-1", "1.5", "9" * 400])
def test_an_id_that_was_never_sent_is_refused(scene: Scene, wrong: str) -> None:
    assert scene.open(Last_Event_ID=wrong).status == 422


def test_progress_comes_between_and_not_too_often(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.15)
    scene = Scene(api, MemoryStore())
    scene.to(S.ENCODING)
    stream = scene.open()
    assert stream.next() is not None
    begun = time.monotonic()
    told: list[float] = []
    job = scene.store.get(scene.key)

    def report() -> None:
        for number in range(1, 1000):
            scene.store.report_progress(scene.key, job.token, number / 1000, "encode", 9.0)
            scene.waiters.wake(scene.key)
            gevent.sleep(0.01)

    reporting = gevent.spawn(report)
    while len(told) < 2:
        piece = stream.next()
        assert piece is not None and (piece.kind, piece.id) == ("progress", "1")
        told.append(piece.data["progress"])
    reporting.kill()
    assert 0 < told[0] < told[1]
    assert time.monotonic() - begun >= 1.7 * module.PROGRESS_SECONDS
    stream.close()
    scene.close()


def test_a_quiet_stream_shows_that_it_lives(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.1)
    scene.to(S.ENCODING)
    stream = scene.open()
    assert stream.next() is not None
    reading = gevent.spawn(stream.next)
    wait_until(lambda: stream.comments, 5, "a comment")
    reading.kill()


def test_a_reader_that_goes_away_frees_its_place_soon(scene: Scene) -> None:
    stream = scene.open()
    stream.next()
    begun = time.monotonic()
    stream.close()
    wait_until(scene.nobody_reads, 5, "its greenlet to end")
    assert time.monotonic() - begun < 3, "long before the next thing there is to say"


@pytest.fixture
def many_files() -> Iterator[None]:
    """More descriptors than `select` knows, where the machine allows them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2048:
        pytest.skip("this machine allows no more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_reader_is_seen_whatever_number_its_socket_has() -> None:
    ours, theirs = socket.socketpair()
    with closing(theirs), closing(socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD, 1024))) as high:
        ours.close()
        reader = module.Reader(SimpleNamespace(socket=high))
        assert not reader.gone
        theirs.shutdown(socket.SHUT_WR)
        assert reader.gone


def test_a_reader_that_takes_nothing_frees_its_place(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    monkeypatch.setattr(module, "SEND_BUFFER_BYTES", 4096)
    key = scene.create(params={"text": "x" * 4000})
    scene.to(*[S.DOWNLOADING, S.ENCODING] * 12, key=key)
    scene.open(key, receive_bytes=4096)
    flips = iter([S.DOWNLOADING, S.ENCODING] * 500)

    def freed() -> bool:
        if not scene.nobody_reads():
            scene.to(next(flips), key=key)
        return scene.nobody_reads()

    wait_until(freed, 10, "its greenlet to end")


def test_the_end_of_the_feeder_ends_streams_at_once_and_not_for_good(scene: Scene) -> None:
    stream = scene.open()
    stream.next()
    begun = time.monotonic()
    scene.waiters.close()
    assert stream.rest() == [], "no end: the reader comes back"
    assert time.monotonic() - begun < module.PROGRESS_SECONDS / 2


def test_a_stream_ends_after_an_hour_so_that_its_token_is_judged_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_SECONDS", 0.0)
    stream = scene.open()
    assert stream.rest() == []
    monkeypatch.undo()
    assert scene.open().next() is not None


def test_streams_are_few_for_one_project_and_for_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS_OF_PROJECT_MAX", 1)
    one = scene.open()
    one.next()
    refused = scene.open()
    assert refused.status == 429 and "Retry-After: 5" in refused.head
    monkeypatch.setattr(module, "STREAMS_MAX", 1)
    monkeypatch.setattr(module, "STREAMS_OF_PROJECT_MAX", 9)
    assert scene.open().status == 503
    one.close()
    again: Callable[[], bool] = lambda: scene.open().status == 200  # noqa: E731
    wait_until(again, 5, "its place to be free")


def test_only_jobs_of_the_own_project_can_be_followed(scene: Scene) -> None:
    assert scene.open(scene.create(project="other")).status == 404
    assert scene.open(Key("default", "nothing")).status == 404


def test_a_store_out_of_reach_for_a_moment_ends_no_stream(scene: Scene) -> None:
    stream = scene.open()
    stream.next()
    scene.to(S.DOWNLOADING)
    assert stream.next() is not None
    assert isinstance(scene.store, Flaky)
    scene.store.unreachable = 1
    scene.waiters.wake(scene.key)
    wait_until(lambda: scene.store.unreachable == 0, 5, "a look")  # type: ignore[attr-defined]
    scene.to(S.ENCODING, S.FINISHED)
    assert kinds(stream.rest())[-1] == ("end", "3", "FINISHED")


def test_the_stream_of_a_job_that_is_deleted_ends(scene: Scene) -> None:
    stream = scene.open()
    stream.next()
    scene.store.wipe()
    scene.waiters.wake(scene.key)
    assert stream.rest() == []


def test_a_store_whose_reads_cost_money_is_asked_rarely_whatever_is_hinted(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    class Paid(Flaky):
        look_seconds = 5.0

    monkeypatch.setattr(module, "LOOK_SECONDS_MIN", 0.15)
    scene = Scene(api, Paid())
    stream = scene.open()
    stream.next()
    assert isinstance(scene.store, Paid)
    begun, before = time.monotonic(), scene.store.looks
    while time.monotonic() - begun < 0.35:
        scene.waiters.wake(scene.key)
        gevent.sleep(0.01)
    assert 1 <= scene.store.looks - before <= 3
    stream.close()
    scene.close()
