"""A directory for each attempt, removed whatever happens; those of dead processes are found by their free lock."""

from __future__ import annotations

import fcntl
import os
import re
import secrets as random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nommerd import logs
from nommerd.errors import ConfigError
from nommerd.runtime import in_pool

LOCK_NAME = ".lock"
FAILED = "failed-"
TRASH = ".trash-"
OWNER_ONLY = 0o700


class Workspace:
    """One attempt's directory. Its lock is held until `close`, or until this process is gone."""

    def __init__(self, path: Path, lock: int, home: Workspaces) -> None:
        self.path = path
        self._lock: int | None = lock
        self._home = home

    def close(self, *, failed: bool = False) -> None:
        """Remove it, or keep it for the operator where a failed one is to be kept. Never raises; safe to call twice."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            in_pool(self._home.put_away, self.path, failed)
        except OSError as error:
            logs.get().warning("workspace.not_removed", path=str(self.path), why=error.strerror)
        finally:
            os.close(lock)


class Workspaces:
    """The directory that holds them all; several workers of one machine may share it."""

    def __init__(self, root: Path, keep_failed: int = 0) -> None:
        """Makes `root`. ConfigError where it cannot be used: ffmpeg takes a `%` in a path for a pattern."""
        if "%" in str(root):
            raise ConfigError("config.bad_workspace", f"The workspace {root} has a % in its path, which ffmpeg would expand.",
                              "Set worker.workspace to another directory.", place="worker.workspace")
        try:
            root.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
            with (root / LOCK_NAME).open("a"):
                pass
        except OSError as error:
            raise ConfigError("config.bad_workspace", f"The workspace {root} cannot be used: {error.strerror}.",
                              "Set worker.workspace to a directory this user may write.", place="worker.workspace") from None
        self.root = root
        self._keep_failed = keep_failed

    def open(self, job_id: str, token: int) -> Workspace:
        """A new, empty, private directory for this attempt. Raises OSError."""
        return in_pool(self._open, f"{re.sub(r'[^A-Za-z0-9_-]', '_', job_id)[:80]}.{token}")

    def clean(self) -> int:
        """Remove what dead processes left, of any worker that shares the directory. Returns how many."""
        return in_pool(self._clean)

    def disk(self) -> tuple[int, int] | tuple[None, None]:
        """Free and total bytes of the disk they are on, for this user; None where that cannot be told."""
        try:
            usage = in_pool(shutil.disk_usage, self.root)
        except OSError:
            return None, None
        return usage.free, usage.total

    def put_away(self, path: Path, failed: bool) -> None:
        """Remove a workspace, or rename and keep it. Blocking."""
        if failed and self._keep_failed:
            path.rename(self.root / f"{FAILED}{path.name}")
            kept = sorted(self.root.glob(f"{FAILED}*"), key=lambda p: p.stat().st_mtime)
            for old in kept[:-self._keep_failed]:
                shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(path)

    def _open(self, name: str) -> Workspace:
        with self._locked():
            path = self.root / name
            if path.exists():  # of a record that was deleted, or of another database
                path = self.root / f"{name}.{random.token_hex(4)}"
            path.mkdir(mode=OWNER_ONLY)
            try:
                lock = _lock(path, create=True)
            except OSError:
                shutil.rmtree(path, ignore_errors=True)
                raise
            if lock is None:
                raise RuntimeError("somebody locked a workspace that was just made")
        return Workspace(path, lock, self)

    def _clean(self) -> int:
        trash = list(self.root.glob(f"{TRASH}*"))
        with self._locked():  # so that one that is being made is not taken for a stale one
            for path in self.root.iterdir():
                if path.is_dir() and not path.name.startswith((FAILED, TRASH)) and _is_stale(path):
                    trash.append(path.rename(path.with_name(f"{TRASH}{path.name}.{random.token_hex(4)}")))
        for path in trash:
            shutil.rmtree(path, ignore_errors=True)
        return len(trash)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.root / LOCK_NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock(path: Path, *, create: bool) -> int | None:
    """A descriptor that holds the workspace's lock, None while a process has it."""
    descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_stale(path: Path) -> bool:
    try:
        lock = _lock(path, create=False)
    except FileNotFoundError:
        return True  # killed while it was made or removed
    except OSError:
        return False
    if lock is None:
        return False
    os.close(lock)
    return True
