"""What `nommerd watch` remembers of a folder: one line of JSON for each change, made small at each start.

A line is on the disk before what it says is done, so that a watch that was killed goes on where it was: it sends a
submission again under the same key, and never encodes a file anew because the feeder's record of it is gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from nommerd.errors import ConfigError, InfrastructureError

FORGET_DAYS = 365.0  # what is known of a file that is no longer there
UNSENT, KNOWN = "UNSENT", "KNOWN"  # ends of entries besides a job's: given up before it was sent; the feeder had it already


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One version of one file under one recipe."""

    key: str  # the Idempotency-Key
    path: str  # in the folder
    size: int
    mtime_ns: int
    body: dict[str, Any] = field(default_factory=dict)  # of the submission
    job: str | None = None
    state: str | None = None  # how it ended; None: not yet
    cared_for: bool = False  # what --on-finished says was done
    gone: bool = False  # the file was away since: one that comes by its name is another
    at: float = 0.0  # seconds since the epoch

    @property
    def open(self) -> bool:
        return self.state is None


class State:
    """The memory of one folder, for one process at a time. Use `opened`."""

    def __init__(self, path: Path, entries: dict[str, Entry], descriptor: int) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self.latest: dict[str, Entry] = {}  # by path
        self.dests: dict[str, str] = {}  # destination, in small letters -> the path it was first given to
        self.produced: dict[str, str] = {}  # path -> where an output of it lies that its next version may replace
        self._descriptor = descriptor
        for entry in entries.values():
            self._note(entry)

    def put(self, entry: Entry, sync: bool = True, **changes: Any) -> Entry:
        """Remember the entry, with these changes. With `sync` it is on the disk when this returns. InfrastructureError."""
        entry = replace(entry, at=time.time(), **changes)
        line = json.dumps(asdict(entry)).encode() + b"\n"
        whole = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, whole)  # else the next line would not begin where a line begins
            raise InfrastructureError("node.io_error", f"{self.path} cannot be written: {error.strerror}.",
                                      "It is what the watch remembers: nothing is submitted without it.") from None
        self._note(entry)
        return entry

    def _note(self, entry: Entry) -> None:
        self.entries[entry.key] = self.latest[entry.path] = entry
        dest = entry.body.get("dest")
        if not dest:
            return
        self.dests.setdefault(dest.casefold(), entry.path)
        if entry.gone:
            self.produced.pop(entry.path, None)
        elif entry.state == "FINISHED":
            self.produced[entry.path] = dest


@contextmanager
def opened(home: Path, folder: Path) -> Iterator[State]:
    """The folder's memory under `home`. ConfigError config.in_use where another process has it."""
    path = home / "watch" / f"{sha256(os.fsencode(folder)).hexdigest()[:24]}.jsonl"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        _take(lock, folder)
        try:
            entries = _read(path, folder)
            _write_anew(path, entries)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            yield State(path, entries, descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError("config.in_use", f"Another `nommerd watch` has {folder}.", "One is enough: stop it first.") from None


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError("config.unreadable", f"{path} cannot be used: {error.strerror}.",
                       "Set XDG_STATE_HOME to a directory this user may write.")


def _read(path: Path, folder: Path) -> dict[str, Entry]:
    """The newest line of each key. A line that was not written whole is left out: what it says was not done."""
    entries: dict[str, Entry] = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return entries
    names = {name: None for name in Entry.__slots__}
    for line in lines:
        try:
            fields: Mapping[str, Any] = json.loads(line)
            entry = Entry(**{name: value for name, value in fields.items() if name in names})
        except (ValueError, TypeError, AttributeError):
            continue
        entries.pop(entry.key, None)  # the order is that of the last change
        entries[entry.key] = entry
    oldest = time.time() - FORGET_DAYS * 86400
    return {key: entry for key, entry in entries.items()
            if entry.open or entry.at > oldest or os.path.lexists(folder / entry.path)}


def _write_anew(path: Path, entries: Mapping[str, Entry]) -> None:
    """One line a key, in a new file that takes the old one's place whole."""
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for entry in entries.values():
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
