"""On which file system a path lies, as the kernel tells it, and whether SQLite may live there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nommerd.errors import ConfigError

MOUNTINFO = Path("/proc/self/mountinfo")
# Their locks or their shared memory do not hold between machines, or at all; SQLite's WAL needs both.
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "lustre", "gfs", "gfs2",
                     "ocfs2", "glusterfs", "beegfs", "fhgfs", "gpfs", "orangefs", "pvfs2", "coda", "davfs", "fuse", "panfs",
                     "vboxsf", "vmhgfs", "prl_fs"})
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.unionfs-fuse", "fuse.gocryptfs", "fuse.encfs", "fuse.ntfs-3g",
                        "fuse.exfat", "fuse.bindfs"})  # on the disk of this machine


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system."""

    point: str
    type: str
    source: str

    @property
    def is_network(self) -> bool:
        """Whether it may be on another machine."""
        return self.type in NETWORK or (self.type.startswith("fuse.") and self.type not in LOCAL_FUSE)


def parse(text: str) -> list[Mount]:
    """The mounts of a mountinfo file, in its order: proc_pid_mountinfo(5). Lines of another form are left out."""
    found = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if dash and len(fields) >= 6 and len(rest) >= 2:
            found.append(Mount(_plain(fields[4]), rest[0], _plain(rest[1])))
    return found


def mount_of(path: str, mounts: list[Mount]) -> Mount | None:
    """The mount that an absolute path without links lies on: the deepest, and of several on one point the last."""
    best: Mount | None = None
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def find(path: Path) -> Mount | None:
    """Where a path lies or, if it is not there yet, would lie. None where the kernel does not tell (no Linux)."""
    try:
        text = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return mount_of(os.path.realpath(path), parse(text))


def is_point(path: Path) -> bool:
    """Whether something is mounted on this very path, which may be a file's."""
    mount = find(path)
    return mount is not None and mount.point == os.path.realpath(path)


def refuse_network(path: Path) -> None:
    """ConfigError for a database that would lie on a network file system: SQLite's locks do not hold there, and with them
    goes everything that is promised about jobs."""
    mount = find(path)
    if mount is not None and mount.is_network:
        raise ConfigError("config.network_database", f"{path} lies on {mount.point}, a network file system ({mount.type}), "
                          "where the locks of SQLite do not hold.",
                          "Set paths.data to a directory on a disk of this machine, or use store: dynamodb:// and bus: sqs://.",
                          place="paths.data")


def _plain(text: str) -> str:
    """Without the octal escapes of spaces, tabs, newlines and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
