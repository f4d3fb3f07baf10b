"""Waking other processes that wait on the same embedded file: one UNIX datagram socket for each process.

A datagram carries a topic. It is only a hint that saves time: whoever waits also looks at the file itself, so that a lost
datagram, another user's processes or an unusable /tmp cost milliseconds, never a message.
"""

from __future__ import annotations

import _socket  # the plain socket: it is used from native threads, where a patched one would start a hub
import contextlib
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path

ROOT = Path("/tmp")  # fixed and short: a socket's path is limited to 108 bytes, and TMPDIR may differ between processes
TOPIC_BYTES_MAX = 64


class Wakeup:
    """This process's socket for one file, and the way to its neighbours'. `fileno()` is None where there is no socket."""

    def __init__(self, file: Path) -> None:
        name = hashlib.sha256(os.fsencode(file)).hexdigest()[:16]
        self._folder = ROOT / f"nommerd-{os.getuid()}" / name
        self._path = self._folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._socket: _socket.socket | None = None
        with contextlib.suppress(OSError):
            self._socket = self._bind()
        if self._socket is not None:
            self.send(b"")  # finds and removes the sockets of processes that were killed

    def _bind(self) -> _socket.socket | None:
        if not _own_folder(self._folder.parent):
            return None
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        try:
            for last in (False, True):
                self._folder.mkdir(mode=0o700, exist_ok=True)
                try:
                    sock.bind(str(self._path))
                    return sock
                except FileNotFoundError:  # a neighbour that closed has just removed the folder
                    if last:
                        raise
        except OSError:
            sock.close()
            raise
        return None

    def fileno(self) -> int | None:
        return self._socket.fileno() if self._socket is not None else None

    def send(self, topic: bytes) -> None:
        """Tell every other process. Never blocks, never raises; removes sockets that nobody holds any longer."""
        sock = self._socket
        if sock is None:
            return
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path != self._path:
                    self._send_to(sock, path, topic)

    @staticmethod
    def _send_to(sock: _socket.socket, path: Path, topic: bytes) -> None:
        try:
            sock.sendto(topic, str(path))
        except OSError as error:  # a full buffer means that it has enough reasons to wake up already
            if error.errno == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)

    def receive(self) -> set[bytes]:
        """The topics that came since the last call."""
        topics: set[bytes] = set()
        sock = self._socket
        with contextlib.suppress(BlockingIOError):
            while sock is not None:
                topics.add(sock.recv(TOPIC_BYTES_MAX))
        return topics - {b""}

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._folder.rmdir()


def _own_folder(folder: Path) -> bool:
    """Whether this is a folder that nobody but us can write to: /tmp is everybody's."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
