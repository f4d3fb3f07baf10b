"""Root among folders that are other users': whose rights it works with there, and where it writes nothing at all. Those users
may have been taken over by a medium they decoded."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nommerd.places import SYSTEM_DATA

SYSTEM_USER = "nommerd"  # whom the services of a system run as
_NEW_DISK = {"lost+found"}  # what an empty one holds


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Root works in this folder with its owner's rights: that one may have put links there which lead anywhere. For a process
    of one thread that does nothing else meanwhile."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def changeable(folder: Path) -> Path | None:
    """The first folder, from an absolute one without links upwards, where somebody else than root may put another thing in the
    place of root's. Access lists count: they show in the group's bits. Raises OSError."""
    for step in (folder, *folder.parents):
        status = step.lstat()
        if status.st_uid != 0 or (status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX):
            return step
    return None


def hand_over(data: Path) -> None:
    """Root's data directory of a system that was just made, or is an empty disk's, becomes the services' user's, who must be
    able to open what is put there. Any other stays whose it is."""
    if data != SYSTEM_DATA or not is_roots(data) or {path.name for path in data.iterdir()} - _NEW_DISK:
        return
    real = Path(os.path.realpath(data))
    with suppress(KeyError):  # no such user
        user = pwd.getpwnam(SYSTEM_USER)
        if changeable(real) is None:
            real.chmod(0o700)
            os.chown(real, user.pw_uid, user.pw_gid)


def is_roots(data: Path) -> bool:
    """Whether what root puts there is root's."""
    return os.geteuid() == 0 and data.stat().st_uid == 0
