"""Where the logs of attempts are kept: a document of the store for each, beside the job, never in its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event

from nommerd import logs
from nommerd.job import Key
from nommerd.store.base import Document, Store

KIND = "log"
WRITE_SECONDS = 5.0  # one write may take so long before it is dropped
FIRST_PAUSE_SECONDS = 2.0  # between writes of one attempt; doubled after each
DAY_SECONDS = 86400.0


def scope_of(key: Key) -> str:
    """Whose document the log is."""
    return f"{key.project}/{key.id}"


def read_logs(store: Store, key: Key) -> Sequence[Document]:
    """The logs of a job's attempts, the first one first."""
    return sorted(store.documents(KIND, scope_of(key)), key=lambda document: document.name)


class LogKeeper:
    """Writes one attempt's log beside its work: `save` and `finish` return at once, and what cannot be written is dropped.

    Writes are in order, the newest text each time, and ever rarer: a dozen in a day.
    """

    def __init__(self, store: Store, key: Key, number: int, text: Callable[[], str], keep_days: float) -> None:
        self._store, self._key, self._number, self._text, self._keep_days = store, key, number, text, keep_days
        self._wanted, self._over = Event(), Event()
        self._started = False
        self._version = 0

    def save(self) -> None:
        """Write it soon."""
        self._wanted.set()
        if not self._started:
            self._started = True
            gevent.spawn(logs.carry(self._run))

    def finish(self) -> None:
        """Write it for the last time, now."""
        self._over.set()
        self.save()

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._wanted.wait()
            self._wanted.clear()
            last = self._over.is_set()
            self._write()
            if last:
                return
            self._over.wait(pause)
            pause *= 2

    def _write(self) -> None:
        self._version += 1
        try:
            with gevent.Timeout(WRITE_SECONDS):
                self._store.put_document(
                    Document(kind=KIND, scope=scope_of(self._key), name=f"{self._number:06}", body=self._text(),
                             version=self._version, expires=time.time() + self._keep_days * DAY_SECONDS), None)
        except gevent.Timeout:  # no Exception: a client's own retries do not take it for one
            logs.get().warning("log.not_kept", why="it took too long")
        except Exception as error:  # nobody waits for a log, and no job fails for one
            logs.get().warning("log.not_kept", why=f"{type(error).__name__}: {error}")
