"""Who listens where on this machine, as the kernel tells (proc(5): net/tcp). Light: the client commands import it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"  # a socket's state


class Listener(NamedTuple):
    """A TCP socket that takes connections."""

    address: str  # as the kernel writes it: 32-bit words in this machine's byte order, a colon, the port, all in hexadecimal
    uid: int
    inode: str


def listeners(pid: int | str = "self") -> list[Listener]:
    """Those in this process's network; none where it is gone. A kernel may be without IPv6."""
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError, ProcessLookupError):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]]
            found += [Listener(row[1], int(row[7]), row[9]) for row in rows if row[3] == LISTEN]
    return found
