"""What is made beside its final name, to appear there whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nommerd.errors import ConfigError

OWNER_ONLY = 0o600
LEFT_SECONDS = 60.0  # how old what is left must be: a file is made before it is held


@contextmanager
def beside(file: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new empty file in the same folder, for its owner alone; gone afterwards, unless it was moved. What processes that were
    killed left there of this name goes first: it may be large, and secret. A `folder` is for a file that is opened
    together with others of like names, which anybody could put there. Raises ConfigError."""
    begin = f".{file.name[:100]}."
    path = file.with_name(f"{begin}{secrets.token_hex(6)}")
    try:
        _remove_left(file.parent, begin)
        held = _made_folder(path) if folder else os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        with suppress(OSError):  # not every file system has such locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield path
    finally:
        _remove(path)
        os.close(held)


def _made_folder(path: Path) -> int:
    path.mkdir(mode=0o700)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove_left(folder: Path, begin: str) -> None:
    """Remove such files of ours that no process holds. A new one may be about to be held."""
    for path in folder.glob(f"{glob.escape(begin)}*"):
        if not re.fullmatch("[0-9a-f]{12}", path.name.removeprefix(begin)):
            continue
        with suppress(OSError), _ours(path) as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(left).st_mtime > LEFT_SECONDS:
                Path(f"{path}-journal").unlink(missing_ok=True)  # versions before made no folder for it
                _remove(path)


@contextmanager
def _ours(path: Path) -> Iterator[int]:
    """A descriptor of our own file or folder. Anybody may have given a pipe or a link such a name: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        yield descriptor
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unwritable(file: Path, error: OSError) -> Exception:
    """What to raise for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return ConfigError("config.backup_file", f"{file} cannot be written: {error.strerror}.",
                       "Name a file in a folder that is there and can be written.")


def sync_folder(folder: Path) -> None:
    """Make names in it durable. File systems that cannot, and folders that may not be listed, are left to themselves. It may
    block."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
