"""Requests that wait for a job's next change. A hint wakes them; what they then read is the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent.event import Event

from nommerd.job import Job, Key

BACKSTOP_SECONDS = 1.0  # a waiter looks by itself this often: hints may be lost, or go to another feeder
WAITERS_MAX = 512  # more are answered at once: each holds one of the server's CONNECTIONS_MAX
WAITERS_OF_PROJECT_MAX = 256  # so that no project has them all


class Waiters:
    """Who waits for which job. `look_seconds` is how often the store may be asked: a waiter asks no more often unless a hint
    wakes it."""

    def __init__(self, look_seconds: float = BACKSTOP_SECONDS) -> None:
        self._events: dict[Key, set[Event]] = {}
        self._waiting: Counter[str] = Counter()  # by project
        self._backstop_seconds = max(look_seconds, BACKSTOP_SECONDS)
        self.closed = False

    def wake(self, key: Key) -> None:
        """This job changed."""
        for event in self._events.get(key, ()):
            event.set()

    def close(self) -> None:
        """Answer everyone now: this process stops."""
        self.closed = True
        for events in self._events.values():
            for event in events:
                event.set()

    @contextmanager
    def listen(self, key: Key) -> Iterator[Event]:
        """An event that is set by each hint at this job, and at the end of this process, for as long as the block runs."""
        event = Event()
        self._events.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            events = self._events[key]
            events.discard(event)
            if not events:
                del self._events[key]

    def wait(self, read: Callable[[], Job], after: int | None, seconds: float) -> Job:
        """The job once its event_seq is beyond `after` (None: beyond what it is now), or as it is after `seconds`."""
        job = read()
        seen = job.event_seq if after is None else after
        if job.event_seq > seen or seconds <= 0 or self.closed or self._full(job.project):
            return job
        self._waiting[job.project] += 1
        try:
            with self.listen(job.key) as event:
                return self._until(read, seen, time.monotonic() + seconds, event)
        finally:
            self._waiting[job.project] -= 1
            self._waiting += Counter()  # forget projects without any

    def _full(self, project: str) -> bool:
        return self._waiting.total() >= WAITERS_MAX or self._waiting[project] >= WAITERS_OF_PROJECT_MAX

    def _until(self, read: Callable[[], Job], seen: int, deadline: float, event: Event) -> Job:
        while True:
            event.clear()
            job = read()  # also the first time: it may have changed before we were listed
            left = deadline - time.monotonic()
            if job.event_seq > seen or left <= 0 or self.closed:
                return job
            event.wait(min(left, self._backstop_seconds))
