"""The embedded file: one writer, readers of their own, and a way to hear what other processes wrote.

All writes of a process go through one queue to one native thread. It takes a lock file, runs everything that waits as one
transaction with a savepoint for each operation, commits durably, and tells the waiting greenlets. So a hundred greenlets
share one sync to disk, the hub never waits for another process's lock, and a busy feeder cannot starve a worker: the lock
file is queued for, SQLite's own lock is polled.

A `Database` belongs to the thread (and gevent hub) that opened it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import gevent
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from nommerd.errors import ConfigError, NommerdError
from nommerd.mounts import refuse_network
from nommerd.news import News, NewsDesk
from nommerd.sqlite_schema import connect, migrate

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

BATCH_MAX = 200  # operations in one transaction: the others' turn comes after it
READERS = 2  # connections, each with a thread while it reads
WRITE_SECONDS = 20.0  # then a caller stops waiting: the lock file's holder is stopped or the disk hangs
_ITS_OWN_FAULT = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)


class DatabaseUnavailable(Exception):
    """Locked, full, unreadable, or too slow: the operation may or may not have been applied."""


@dataclass(eq=False, slots=True)
class _Entry:
    run: Operation[Any]
    wake: str | None
    result: AsyncResult = field(default_factory=AsyncResult)
    abandoned: bool = False  # its caller has gone: do not start it


class Database:
    """One SQLite file, shared by everything in this process that opens the same path. See `open`."""

    _opened: ClassVar[dict[Path, Database]] = {}
    _opening: ClassVar[BoundedSemaphore] = BoundedSemaphore(1)

    def __init__(self, path: Path) -> None:
        self.path = path
        self._references = 0
        self._closed = False
        self._queue: deque[_Entry] = deque()
        self._flusher: gevent.Greenlet | None = None
        self._writer = ThreadPool(1)
        self._readers = ThreadPool(READERS)
        self._reading = BoundedSemaphore(READERS)
        self._free: list[sqlite3.Connection] = []
        self._connection: sqlite3.Connection | None = None
        self._lock = -1
        try:
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            _value(self._writer.apply(_outcome, (self._prepare,)))
        except OSError as error:
            self._release()
            raise ConfigError("config.database", f"Cannot open {path}: {error.strerror}.") from None
        except NommerdError:
            self._release()
            raise
        self._desk = NewsDesk(path)

    @classmethod
    def open(cls, path: Path) -> Database:
        """The process's one Database for this file, made where it is missing; each `open` needs its `close`.

        Raises ConfigError for a folder that is missing or not writable, a file that is not ours, one that a newer version
        wrote, and one on a network file system.
        """
        path = path.absolute().resolve()
        if path not in cls._opened:
            refuse_network(path)
        with cls._opening:
            database = cls._opened.get(path)
            if database is None:
                database = cls._opened[path] = cls(path)
            database._references += 1
        return database

    def close(self) -> None:
        """Let go of it; the last one finishes what is queued and closes the file. Later calls raise."""
        self._references -= 1
        if self._references > 0 or self._closed:
            return
        self._closed = True
        self._opened.pop(self.path, None)
        if self._flusher is not None:
            self._flusher.join()
        self._desk.close()
        self._release()

    def _release(self) -> None:
        self._writer.kill()
        self._readers.kill()
        for connection in (self._connection, *self._free):
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
        self._connection = None
        self._free.clear()
        if self._lock >= 0:
            os.close(self._lock)

    # --- writing -------------------------------------------------------------------------------------------------

    def write(self, run: Operation[T], wake: str | None = None) -> T:
        """Run one operation in the next transaction and return its value once that is on disk.

        What it raises undoes it alone and passes through. `wake` names a topic whose waiters are told, in every process.
        Raises DatabaseUnavailable. The operation runs in a native thread: it must touch nothing of gevent's.
        """
        self._check()
        entry = _Entry(run, wake)
        self._queue.append(entry)
        if self._flusher is None:
            self._flusher = gevent.spawn(self._flush)
        try:
            outcome = entry.result.get(timeout=WRITE_SECONDS)
        except gevent.Timeout:
            raise DatabaseUnavailable(f"{self.path.name} could not be written for {WRITE_SECONDS:g} s") from None
        finally:
            entry.abandoned = True
        return _value(outcome)  # type: ignore[no-any-return]

    def _flush(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
                outcomes = self._writer.apply(self._commit, (batch,))
                for entry, outcome in zip(batch, outcomes, strict=True):
                    entry.result.set(outcome)
                self._desk.tell(_topics(batch, outcomes))
        finally:
            self._flusher = None

    def _commit(self, batch: list[_Entry]) -> list[tuple[bool, Any]]:
        """In the writer's thread: one transaction under the lock file, then the other processes are told."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                outcomes = self._transaction(batch)
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
        except (sqlite3.Error, OSError) as error:
            return [(False, DatabaseUnavailable(f"{self.path.name}: {error}")) for _ in batch]
        for topic in _topics(batch, outcomes):
            self._desk.wakeup.send(topic.encode())
        return outcomes

    def _transaction(self, batch: list[_Entry]) -> list[tuple[bool, Any]]:
        if self._connection is None:
            self._connection = connect(self.path)
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [_savepoint(connection, entry) for entry in batch]
            connection.execute("COMMIT")
            return outcomes
        except BaseException:
            self._recover(connection)
            raise

    def _recover(self, connection: sqlite3.Connection) -> None:
        """After a failed transaction: roll back, or begin anew with another connection where even that fails."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection = None
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, run: Operation[T]) -> T:
        """Run a query on a reader's connection, in a native thread: it sees everything committed before the call.

        Raises DatabaseUnavailable.
        """
        self._check()
        with self._reading:
            connection = self._free.pop() if self._free else None
            ok, value, connection = self._readers.apply(self._read, (run, connection))
            if connection is not None and self._closed:
                connection.close()
            elif connection is not None:
                self._free.append(connection)
        return _value((ok, value))  # type: ignore[no-any-return]

    def _read(self, run: Operation[T], connection: sqlite3.Connection | None) -> tuple[bool, Any, sqlite3.Connection | None]:
        try:
            connection = connection or connect(self.path)
            return True, run(connection), connection
        except sqlite3.Error as error:
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            return False, DatabaseUnavailable(f"{self.path.name}: {error}"), None
        except BaseException as error:
            return False, error, connection

    def _check(self) -> None:
        if self._closed:
            raise DatabaseUnavailable(f"{self.path.name} is closed")

    # --- waiting -------------------------------------------------------------------------------------------------

    def listen(self, topic: str) -> AbstractContextManager[News]:
        """News of a topic, for as long as the block runs."""
        return self._desk.listen(topic)

    def poke(self, topic: str) -> None:
        """End the waits of this process's listeners to a topic."""
        self._desk.tell([topic])

    # --- opening -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """In the writer's thread, under the lock file: make the file, or bring its schema up to date."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._connection = connect(self.path)
            migrate(self._connection, self.path)
        except sqlite3.Error as error:
            raise ConfigError("config.database", f"Cannot use {self.path} as a database: {error}.",
                              "It must be a file of nommerd's own, in a folder that can be written.") from None
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)


class FileLock:
    """A lock that the kernel frees when its process ends, however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Free it. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def exclusive(path: Path) -> FileLock:
    """The feeder's own lock on this database file. Raises ConfigError("config.feeder_running") while another holds it, and
    where locks cannot be relied on."""
    refuse_network(path)
    lock = Path(f"{path.absolute().resolve()}.feeder.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError("config.database", f"Cannot open {lock}: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise ConfigError("config.feeder_running", f"Another feeder (process {holder or 'unknown'}) runs on {path}.",
                          "One database file serves one feeder: stop that one first.") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return FileLock(lock, descriptor)


def database_path(url: str, data_dir: Path) -> Path:
    """The file a `sqlite:///` URL names, relative ones in the data directory. Raises ValueError for any other URL."""
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or len(parts.path) < 2 or parts.query or parts.fragment:
        raise ValueError(f"{url} is not sqlite:///FILE (in the data directory) or sqlite:////PATH/FILE")
    return data_dir / parts.path[1:]


def _savepoint(connection: sqlite3.Connection, entry: _Entry) -> tuple[bool, Any]:
    """One operation of a batch. Errors of the file itself (locked, full, damaged) end the whole batch instead."""
    if entry.abandoned:
        return False, DatabaseUnavailable("nobody waits for it any longer")
    connection.execute("SAVEPOINT one")
    try:
        outcome: tuple[bool, Any] = True, entry.run(connection)
    except Exception as error:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, _ITS_OWN_FAULT):
            raise
        connection.execute("ROLLBACK TO one")
        outcome = False, error
    connection.execute("RELEASE one")
    return outcome


def _topics(batch: list[_Entry], outcomes: list[tuple[bool, Any]]) -> set[str]:
    return {entry.wake for entry, (ok, _) in zip(batch, outcomes, strict=True) if ok and entry.wake is not None}


def _outcome(run: Callable[[], T]) -> tuple[bool, Any]:
    """The value or the error: gevent prints the traceback of whatever leaves a pooled function."""
    try:
        return True, run()
    except BaseException as error:
        return False, error


def _value(outcome: tuple[bool, Any]) -> Any:
    ok, value = outcome
    if not ok:
        raise value
    return value
