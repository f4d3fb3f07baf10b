"""How a process hears that an embedded file was written to: at once by datagram, else by looking at the file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from nommerd.sqlite_schema import connect
from nommerd.wakeup import Wakeup

POLL_SECONDS = 0.025  # how often a waiting process looks whether the file changed


class News:
    """What a waiting reader listens to: set when its topic was written to, here or elsewhere, or somebody pokes it."""

    def __init__(self, desk: NewsDesk) -> None:
        self._desk = desk
        self._event = Event()

    def clear(self) -> None:
        """Before looking at the file: whatever is written from now on ends the next wait."""
        self._event.clear()

    def poke(self) -> None:
        self._event.set()

    def wait(self, timeout_seconds: float) -> None:
        self._desk.wait(self._event, timeout_seconds)


class NewsDesk:
    """All of one process's listeners to one file, its socket, and the poll behind it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._news: dict[str, set[News]] = {}
        self._waiting = 0
        self._closed = False
        self._poller: gevent.Greenlet | None = None
        self._pool = ThreadPool(1)
        self._connection: sqlite3.Connection | None = None
        self._seen: int | None = None
        self.wakeup = Wakeup(path)
        self._watcher: Any = None
        descriptor = self.wakeup.fileno()
        if descriptor is not None:
            self._watcher = gevent.get_hub().loop.io(descriptor, 1)
            self._watcher.start(self._heard)

    def close(self) -> None:
        """End every wait and let go of socket and connection."""
        self._closed = True
        self.tell(list(self._news))
        if self._poller is not None:
            self._poller.join()
        self._pool.kill()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        self.wakeup.close()
        if self._connection is not None:
            self._connection.close()

    @contextlib.contextmanager
    def listen(self, topic: str) -> Iterator[News]:
        """News of a topic, for as long as the block runs."""
        news = News(self)
        self._news.setdefault(topic, set()).add(news)
        try:
            yield news
        finally:
            self._news[topic].discard(news)

    def tell(self, topics: Iterable[str]) -> None:
        """End the waits of this process's listeners to these topics."""
        for topic in topics:
            for news in self._news.get(topic, ()):
                news.poke()

    def wait(self, event: Event, timeout_seconds: float) -> None:
        """Until the event is set or the time is over, polling the file meanwhile."""
        if self._closed or event.is_set():
            return
        self._waiting += 1
        if self._poller is None:
            self._poller = gevent.spawn(self._poll)
        try:
            event.wait(timeout_seconds)
        finally:
            self._waiting -= 1

    def _heard(self) -> None:
        self.tell(topic.decode(errors="replace") for topic in self.wakeup.receive())

    def _poll(self) -> None:
        """While someone waits, see whether anybody committed since we last looked (perhaps long ago)."""
        try:
            while self._waiting and not self._closed:
                version = self._pool.apply(self._data_version)
                if version is None or version != self._seen:
                    self._seen = version
                    self.tell(list(self._news))
                gevent.sleep(POLL_SECONDS)
        finally:
            self._poller = None

    def _data_version(self) -> int | None:
        try:
            if self._connection is None:
                self._connection = connect(self._path)
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None
