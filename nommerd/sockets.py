"""The TCP sockets of this machine, as the kernel tells (proc(5): net/tcp). Light: the client commands import it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"  # a socket's state

Address = tuple[str, int]


class Socket(NamedTuple):
    """One end of a connection, or what takes connections."""

    local: Address
    uid: int
    inode: int  # 0 where no process has taken the connection yet


def listeners(pid: int | str = "self") -> list[Socket]:
    """Those that take connections, in the network of a process; none where it is gone. Raises OSError."""
    return [Socket(_address(row[1]), int(row[7]), int(row[9])) for row in _rows(pid) if row[3] == LISTEN]


def end_of(connection: tuple[Address, Address]) -> Socket | None:
    """The end of a connection that has these addresses, its own first; None where this network has none. Raises OSError."""
    ports = [f":{port:04X}" for _, port in connection]
    for row in _rows("self"):
        if [row[1][-5:], row[2][-5:]] == ports and (_address(row[1]), _address(row[2])) == connection:
            return Socket(connection[0], int(row[7]), int(row[9]))
    return None


def _rows(pid: int | str) -> Iterator[list[str]]:
    """A kernel may be without IPv6."""
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError, ProcessLookupError):
            text = Path(f"/proc/{pid}/net/{table}").read_text(encoding="ascii")
            yield from (line.split() for line in text.splitlines()[1:])


def plain(address: tuple[str | int, ...]) -> Address:
    """An address as Python's sockets have it, without a scope; one of IPv4 is the same however it is reached."""
    host = str(address[0]).partition("%")[0]
    return host.removeprefix("::ffff:") if "." in host else host, int(address[1])


def _address(text: str) -> Address:
    """As the kernel writes it: 32-bit words in this machine's byte order, a colon, the port, all in hexadecimal."""
    words, port = text.split(":")
    packed = struct.pack(f"={len(words) // 8}I", *(int(words[at:at + 8], 16) for at in range(0, len(words), 8)))
    return plain((socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)))
