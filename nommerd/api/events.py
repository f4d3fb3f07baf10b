"""A job's events as they come: server-sent events, as the HTML standard has them.

Each change of state in its order, what is new of the progress between, a comment when there is nothing to say, and `end`
behind the final state. A reader that comes back names the last id it saw, and misses nothing.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gevent.event import Event as Hint

from nommerd import logs
from nommerd.api.access import Scope
from nommerd.api.jobs import Jobs
from nommerd.api.models import EVENT_SEQ_MAX
from nommerd.api.problems import refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import as_of, job_json
from nommerd.api.waiters import Waiters
from nommerd.errors import InfrastructureError
from nommerd.job import Job, Key
from nommerd.runtime import native
from nommerd.store.base import Store, UnknownJob

EVENT_STREAM = "text/event-stream"
PROGRESS_SECONDS = 0.5  # between looks at the progress, and at most so often it is told
LOOK_SECONDS_MIN = 1.0  # between reads of a store whose reads cost money, hints or not
HEARTBEAT_SECONDS = 15.0
GONE_SECONDS = 1.0  # how soon a reader that went away is noticed
SEND_SECONDS = 10.0  # a reader that takes nothing for so long is left
SEND_BUFFER_BYTES = 64 * 1024  # what the kernel holds for one that does not read
UNHEARD_MILLISECONDS = 30_000  # a peer that acknowledges nothing for so long is gone
STREAM_SECONDS = 3600.0  # then it ends without an `end`, and who comes back shows a token that is right by then
STREAMS_MAX = 128
STREAMS_OF_PROJECT_MAX = 64
RETRY_SECONDS = 5
HEADERS = {"X-Accel-Buffering": "no", "Connection": "close"}  # nginx must not wait for more; the socket is not fit for others


def event_routes(jobs: Jobs, store: Store, waiters: Waiters) -> list[Route]:
    """GET /v1/jobs/ID/events."""
    streams = Streams(store, waiters)

    def events(call: Call) -> Answer:
        job = jobs.of(call.access.project).show(call.path["id"])
        after = min(_last_event_id(call.header("Last-Event-ID")), job.event_seq)
        streams.admit(job.project)
        reader = Reader(getattr(call.environ.get("wsgi.input"), "handler", None))
        return Answer(body=streams.stream(job, after, reader), content_type=EVENT_STREAM, headers=HEADERS)

    return [Route(method="GET", path="/v1/jobs/{id}/events", scope=Scope.READ, handle=events,
                  summary="Follow a job as server-sent events.", answers={200: None},
                  produces=(EVENT_STREAM,),
                  headers={"Last-Event-ID": "The id of the last event seen: those behind it follow."})]


def _last_event_id(text: str | None) -> int:
    """The number in a Last-Event-ID; 0 without one."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text[:17]) > EVENT_SEQ_MAX:
        raise refuse(422, "header.Last-Event-ID", "request.invalid", "Last-Event-ID must be an id that was sent.",
                     "Leave it out to have all events.")
    return int(text)


class Reader:
    """Who reads a stream, as far as the socket tells. Without a connection of ours (in tests) it never goes away."""

    def __init__(self, handler: Any) -> None:
        self._socket: socket.socket | None = getattr(handler, "socket", None)
        if self._socket is not None:
            with suppress(OSError):
                self._socket.settimeout(SEND_SECONDS)
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MILLISECONDS)

    @property
    def gone(self) -> bool:
        """Whether it closed its side, or the connection broke."""
        if self._socket is None:
            return False
        try:
            poll = native("select", "poll")()  # `select` knows no descriptor over 1023
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0)) and not self._socket.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True


class Streams:
    """The streams under way: a bounded number, each with a bounded number of reads."""

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._open: Counter[str] = Counter()  # by project
        paid = store.look_seconds > LOOK_SECONDS_MIN
        self._look_seconds = store.look_seconds if paid else PROGRESS_SECONDS
        self._least_seconds = LOOK_SECONDS_MIN if paid else 0.0

    def admit(self, project: str) -> None:
        """429 where the project has as many streams as it may, 503 where all have."""
        if self._open[project] >= STREAMS_OF_PROJECT_MAX:
            raise refuse(429, "request", "request.too_many_streams",
                         f"{STREAMS_OF_PROJECT_MAX} streams of this project are open.",
                         "Close some, or ask with ?wait= instead.", Retry_After=str(RETRY_SECONDS))
        if self._open.total() >= STREAMS_MAX:
            raise refuse(503, "request", "request.too_many_streams", f"{STREAMS_MAX} streams are open.",
                         "Ask with ?wait= instead.", Retry_After=str(RETRY_SECONDS))

    def stream(self, job: Job, after: int, reader: Reader) -> Iterator[bytes]:
        """What goes to the reader, piece by piece, until the job is final, this process stops, the reader is gone or
        STREAM_SECONDS are over."""
        with self._counted(job.project), self._waiters.listen(job.key) as hint:
            yield f"retry: {1000 * RETRY_SECONDS}\n\n".encode()
            try:
                yield from self._pieces(job.key, Told(after), hint, reader)
            except UnknownJob:  # deleted meanwhile: whoever asks again is told so
                return

    def _pieces(self, key: Key, told: Told, hint: Hint, reader: Reader) -> Iterator[bytes]:
        spoken = begun = time.monotonic()
        while not self._waiters.closed and time.monotonic() - begun < STREAM_SECONDS:
            hint.clear()
            looked = time.monotonic()
            job = self._read(key)
            pieces = b"" if job is None else told.news(job)
            if not pieces and looked - spoken >= HEARTBEAT_SECONDS:
                pieces = b": still here\n\n"
            if pieces:
                spoken = looked
                yield pieces
            if told.ended or self._pause(looked, hint, reader):
                return

    def _read(self, key: Key) -> Job | None:
        """The job, None where the store is out of reach: it is asked again later."""
        try:
            return self._store.get(key)
        except InfrastructureError as error:
            logs.get().warning("events.unavailable", job=key.id, why=str(error))
            return None

    def _pause(self, looked: float, hint: Hint, reader: Reader) -> bool:
        """Until it is time to look again. True where the reader is gone."""
        while not self._waiters.closed:
            if reader.gone:
                return True
            since = time.monotonic() - looked
            if since >= self._look_seconds or (hint.is_set() and since >= self._least_seconds):
                return False
            if hint.is_set():
                time.sleep(self._least_seconds - since)
            else:
                hint.wait(min(GONE_SECONDS, self._look_seconds - since))
        return False

    @contextmanager
    def _counted(self, project: str) -> Iterator[None]:
        self._open[project] += 1
        try:
            yield
        finally:
            self._open[project] -= 1
            self._open += Counter()  # forget projects without any


class Told:
    """What one reader knows of a job. `ended`: the final state, and that it was the last."""

    def __init__(self, after: int) -> None:
        self._seq = after
        self._progress: object = None
        self._at = 0.0
        self.ended = False

    def news(self, job: Job) -> bytes:
        """Each event it has not seen, then what is new of the progress, then the end; empty where there is nothing."""
        pieces = [self._state(job, event) for event in job.events if event.seq > self._seq]
        progress = (job.progress, job.stage, job.eta_seconds, job.speed, job.owner, job.cancel_requested)
        if job.state.final and job.event_seq <= self._seq:
            self.ended = True
            pieces.append(_piece("end", job.event_seq, job))
        elif pieces:
            self._told(progress)
        elif progress != self._progress and time.monotonic() - self._at >= 0.9 * PROGRESS_SECONDS:
            pieces.append(_piece("progress", job.event_seq, job))
            self._told(progress)
        return b"".join(pieces)

    def _state(self, job: Job, event: Any) -> bytes:
        self._seq = event.seq
        return _piece("state", event.seq, as_of(job, event))

    def _told(self, progress: object) -> None:
        self._progress, self._at = progress, time.monotonic()


def _piece(kind: str, seq: int, job: Job) -> bytes:
    """One event. JSON has no line ends of its own, so the data is one line."""
    data = json.dumps(job_json(job), ensure_ascii=False, separators=(",", ":"))
    return f"id: {seq}\nevent: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
