"""Files on local disk: copying off the hub, errors that say who must act, names that appear whole."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nommerd import runtime
from nommerd.errors import InfrastructureError, InputError, NommerdError, Stop
from nommerd.scratch import sync_folder
from nommerd.storage.base import OnBytes

CHUNK_BYTES = 8 * 2**20  # copied per visit to the thread pool: some 20 ms, so that a stop is seen soon
READ_BYTES = 2**20

FICLONE = 0x40049409  # linux/fs.h: share the other file's blocks
RENAME_NOREPLACE = 1  # linux/fs.h
AT_FDCWD = -100

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EIO)
_NO_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_NO_RENAME2 = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def errors(family: str, place: str) -> Iterator[None]:
    """Turns OSErrors inside into ours. `family` says whose they are: source (also for what is copied from there to this
    node), dest, or node; `place` names the file."""
    try:
        yield
    except OSError as error:
        raise explain(error, family, place) from None


def explain(error: OSError, family: str, place: str) -> NommerdError:
    """The error that says who must act on this one."""
    why = os.strerror(error.errno) if error.errno else "I/O error"
    if error.errno in _FULL:
        if family == "dest":
            return InfrastructureError("dest.disk_full", f"No space is left for {place}.", "Free some, or raise the quota.")
        return InfrastructureError("node.disk_full", "The workspace has no space left.", "Free some, or give it more.")
    if family == "node":
        return InfrastructureError("node.io_error", f"{place}: {why}.")
    if error.errno in _FORBIDDEN:
        return InputError(f"{family}.forbidden", f"{place}: {why}.", "The user that runs nommerd needs access to it.")
    if error.errno in _ABSENT:
        code = "source.not_found" if family == "source" else "dest.bad_uri"
        return InputError(code, f"{place}: {why}.")
    return InfrastructureError(f"{family}.io_error", f"{place}: {why}.")


@contextmanager
def fresh(path: Path) -> Iterator[int]:
    """A descriptor to write a file of the workspace by, which replaces one that is there, and is removed when the block
    fails."""
    with errors("node", "The workspace"):
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = runtime.in_pool(os.open, path, flags, 0o600)
    with _kept_if_done(path, descriptor):
        yield descriptor


@contextmanager
def staged(path: Path) -> Iterator[int]:
    """A descriptor to write a file that is not there yet by, which is removed when the block fails."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    with _kept_if_done(path, descriptor):
        yield descriptor


@contextmanager
def _kept_if_done(path: Path, descriptor: int) -> Iterator[None]:
    """Closes it, and removes it if the block failed: in the pool, since freeing a large file takes a while."""
    try:
        yield
    except BaseException:
        runtime.in_pool(path.unlink, True)
        raise
    finally:
        runtime.in_pool(os.close, descriptor)


def copy(source: int, target: int, size: int, on_bytes: OnBytes, stop: Stop) -> int:
    """Copy up to `size` bytes between descriptors, off the hub, and say how many there were. Raises stop's reason."""
    stop.check()
    if size and runtime.in_pool(_clone, source, target):
        on_bytes(size, size)
        return size
    done = 0
    while done < size:
        copied = runtime.in_pool(_copy_some, source, target, min(CHUNK_BYTES, size - done))
        if not copied:
            break
        done += copied
        on_bytes(done, size)
        stop.check()
    return done


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """The data at this place of the file. Call it in the pool."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]


def make_folders(folder: Path) -> None:
    """The folder with its parents, durably. Call it in the pool."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
    for made in missing:
        sync_folder(made.parent)


def link_new(part: Path, dest: Path) -> None:
    """Give the file this name, if it is free. FileExistsError, FileNotFoundError. The old name may stay.

    Filesystems without hard links get a rename that never replaces, and those without that too a reservation: there an
    empty file shows for a moment.
    """
    try:
        os.link(part, dest, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        try:
            _rename_new(part, dest)
        except OSError as unable:
            if unable.errno not in _NO_RENAME2:
                raise
            _reserve_and_rename(part, dest)


def _rename_new(part: Path, dest: Path) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(AT_FDCWD, os.fsencode(part), AT_FDCWD, os.fsencode(dest), ctypes.c_uint(RENAME_NOREPLACE)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _reserve_and_rename(part: Path, dest: Path) -> None:
    os.close(os.open(dest, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        part.rename(dest)
    except BaseException:
        dest.unlink(missing_ok=True)
        raise


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    return True


def _copy_some(source: int, target: int, count: int) -> int:
    """Some bytes, within the kernel where it can; 0 at the end. Some filesystems answer 0 to copy_file_range without being at
    the end, so reading has the last word."""
    try:
        copied = os.copy_file_range(source, target, count)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
        copied = 0
    if copied:
        return copied
    data = os.read(source, min(count, READ_BYTES))
    view = memoryview(data)
    while view:
        view = view[os.write(target, view):]
    return len(data)
