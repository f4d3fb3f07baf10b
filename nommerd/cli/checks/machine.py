"""Checks of this machine: its disk, its limits, its clock, and what is left in the workspace."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nommerd.cli.checks.finding import FAULT, OK, WARNING, Finding, Patient
from nommerd.cli.output import size

FREE_LOW, FREE_LEAST = 2 * 10**9, 200 * 10**6  # bytes: a warning below the first, a fault below the second
SYNC_SLOW_SECONDS = 0.05  # submissions wait for it
SYNC_TRIES = 3
FILES_LOW, FILES_LEAST = 1024, 256
PROCESSES_LOW = 256
BUILT = 1767225600  # 2026-01-01: a clock before that was never set


def disk(patient: Patient) -> Iterator[Finding]:
    """Whether the data directory and the workspace can be written, have room, and how long a sync takes."""
    settings = patient.known
    places = {"data directory": settings.data_dir, "workspace": settings.work_dir}
    for name, path in places.items():
        there = _existing(path)
        where = f"{name} {path}" + ("" if there == path else f" (made when needed, below {there})")
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            yield Finding("disk", FAULT, f"The {where} is on a read-only file system.",
                          "Mount it for writing (dmesg: did the kernel change it?), or set paths.data and worker.workspace.")
            continue
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding("disk", FAULT, f"The {where} cannot be written by this user.",
                          "Run as the user of the service, or set paths.data and worker.workspace.")
            continue
        if "%" in str(path) and name == "workspace":
            yield Finding("disk", FAULT, f"The {where} has a % in its path, which ffmpeg would expand.",
                          "Set worker.workspace to another directory.")
        yield _room(where, there)
    yield from _sync(_existing(settings.data_dir))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _room(where: str, path: Path) -> Finding:
    about = os.statvfs(path)
    free, inodes = about.f_bavail * about.f_frsize, about.f_favail
    status = FAULT if free < FREE_LEAST else WARNING if free < FREE_LOW else OK
    if about.f_files and inodes < 1000:
        return Finding("disk", FAULT, f"The {where} has room for only {inodes} more files.",
                       "Delete some, or use another disk.")
    hint = "" if status == OK else "A job needs room for its source and its outputs. Free some, or use another disk."
    return Finding("disk", status, f"The {where} has {size(free)} free.", hint)


def _sync(path: Path) -> Iterator[Finding]:
    """On a file without a name, which leaves nothing."""
    try:
        descriptor = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return  # not every file system has them
    try:
        times = []
        for _ in range(SYNC_TRIES):
            os.write(descriptor, b"\0" * 4096)
            begun = time.perf_counter()
            os.fsync(descriptor)
            times.append(time.perf_counter() - begun)
    except OSError as error:
        yield Finding("disk", FAULT, f"{path} cannot be written: {error.strerror}.", "See the kernel's log (dmesg).")
        return
    finally:
        os.close(descriptor)
    took = sorted(times)[SYNC_TRIES // 2]
    slow = took > SYNC_SLOW_SECONDS
    yield Finding("disk", WARNING if slow else OK, f"A write to {path} is on the disk after {1000 * took:.1f} ms.",
                  "Each batch of submissions waits for that: put paths.data on a faster disk." if slow else "")


def limits(patient: Patient) -> Iterator[Finding]:
    """Open files and processes."""
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_LOW:
        yield Finding("limits", FAULT if files < FILES_LEAST else WARNING, f"At most {files} open files (hard limit {hard}).",
                      "Raise it: LimitNOFILE=65536 for a systemd service, ulimit -n in a shell.")
    else:
        yield Finding("limits", OK, f"{'Any number of' if files == resource.RLIM_INFINITY else files} open files.")
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < PROCESSES_LOW:
        yield Finding("limits", WARNING, f"At most {processes} processes and threads of this user.",
                      "ffmpeg starts threads: raise it (LimitNPROC, ulimit -u).")
    else:
        many = "Any number of" if processes == resource.RLIM_INFINITY else str(processes)
        yield Finding("limits", OK, f"{many} processes.")


def sandbox(patient: Patient) -> Iterator[Finding]:
    """What confines ffmpeg. The data directory is the daemons', whoever asks."""
    owner = os.geteuid()
    if patient.settings is not None:
        with suppress(OSError):  # not there yet, or not for this user to look at
            owner = patient.settings.data_dir.stat().st_uid
    uid = " It runs as root here." if owner == 0 else ""
    yield Finding("sandbox", WARNING if uid else OK,
                  f"ffmpeg is confined by this user's rights alone: this version has no sandbox.{uid}",
                  "Run workers as a user of their own that owns nothing else." if uid else "")


def clock(patient: Patient) -> Iterator[Finding]:
    """Whether it was ever set; `feeder` and `aws` compare it with others'."""
    now = time.time()
    if now < BUILT:
        yield Finding("clock", FAULT, f"The clock says {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC.",
                      "Set it (timedatectl, chrony): signatures and certificates depend on it.")
    else:
        yield Finding("clock", OK, f"It is {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))} UTC.")


def workspaces(patient: Patient) -> Iterator[Finding]:
    """What dead workers left: a running worker removes it at its start."""
    root = patient.known.work_dir
    try:
        folders = [path for path in root.iterdir() if path.is_dir()]
    except FileNotFoundError:
        yield Finding("workspaces", OK, f"{root} is not there yet.")
        return
    except OSError as error:
        yield Finding("workspaces", WARNING, f"{root} cannot be read: {error.strerror}.", "Run as the user of the service.")
        return
    kept = [path for path in folders if path.name.startswith("failed-")]
    left = _left(root, [path for path in folders if path not in kept])
    if left:
        yield Finding("workspaces", WARNING, f"{len(left)} of dead workers in {root}, {size(sum(map(_bytes, left)))}.",
                      "A worker removes them when it starts.")
    if kept:
        yield Finding("workspaces", OK, f"{len(kept)} of failed attempts are kept in {root}, {size(sum(map(_bytes, kept)))}.",
                      "worker.keep_failed_workspaces says how many.")
    if not left and not kept:
        yield Finding("workspaces", OK, f"Nothing is left over in {root}.")


def _left(root: Path, folders: list[Path]) -> list[Path]:
    """Those whose lock nobody has. Under the lock of them all, so that one that is just made is not taken for one of them."""
    from nommerd.workspace import LOCK_NAME

    try:
        home = os.open(root / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        fcntl.flock(home, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return [path for path in folders if path.name.startswith(".trash-") or _is_free(path / LOCK_NAME)]
    except OSError:
        return []  # a worker is at it
    finally:
        os.close(home)


def _is_free(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return lock.parent.is_dir()  # killed while it was made
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(parent, name).lstat().st_blocks * 512
    return total
