"""Which token a client command sends, and whom it is sent to. Light, as all that client commands import."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nommerd.errors import ConfigError
from nommerd.owners import changeable
from nommerd.places import DEFAULT_URL, SYSTEM_DATA, TOKEN_NAME, default_data_dir
from nommerd.secrets import Secret
from nommerd.sockets import Address, Socket, end_of, listeners, plain

TOKEN_BYTES_MAX = 4096
READS = 3  # of the kernel's table, before what is not in it is believed not to be there
TAKEN_SECONDS = 10.0  # within which who listens takes a connection
LOOK_SECONDS = 0.002
LOOPBACK = ("127.0.0.1", "::1")
NAMES = {"localhost": LOOPBACK, "127.0.0.1": LOOPBACK[:1], "::1": LOOPBACK[1:]}  # of this machine, in URLs


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and whose feeder it is for: `users` are user ids of this machine, None is whoever is asked."""

    secret: Secret
    file: Path | None = None
    users: frozenset[int] | None = None

    def confirm(self, connection: socket.socket) -> None:
        """Raises ConfigError where the other end of a connection may not be sent it, and TimeoutError where nobody takes the
        connection. Any user can listen at the port of a feeder that is away."""
        if self.users is None:
            return
        there, here = plain(connection.getpeername()), plain(connection.getsockname())
        late = time.monotonic() + TAKEN_SECONDS
        while (end := _end_of(there, here)) is not None and not end.inode:
            if time.monotonic() > late:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            time.sleep(LOOK_SECONDS)
        if end is None or end.uid not in self.users:
            whose = "not a process of this machine" if end is None else f"a process of the user id {end.uid}"
            raise ConfigError("config.no_token", f"The token in {self.file} was not sent: what answers at {there[0]} port "
                              f"{there[1]} is {whose}.",
                              "If that is the feeder all the same, set NOMMERD_TOKEN to what is in that file.")


def _end_of(there: Address, here: Address) -> Socket | None:
    """The other end of a connection, where the kernel shows it: its table may change while it is read."""
    with suppress(OSError):
        return next((end for _ in range(READS) if (end := end_of((there, here))) is not None), None)
    return None


def find_token(explicit: str | None, env: Mapping[str, str], url: str = DEFAULT_URL) -> Token:
    """--token, else NOMMERD_TOKEN, else the token file that `nommerd up` makes; before that the machine's own for those who
    may read it, where it is the machine's feeder that listens there. ConfigError without any."""
    if explicit is not None and not explicit.strip():  # a variable that is not set must not become the operator's token
        raise ConfigError("config.no_token", "--token is empty.", "Leave it out to use NOMMERD_TOKEN or the token file.")
    text = explicit or env.get("NOMMERD_TOKEN")
    if text:
        return Token(Secret(text.strip()))
    usual, machines, there = default_data_dir(env) / TOKEN_NAME, None, users_listening(url)
    if there is not None:
        with suppress(OSError, UnicodeDecodeError):
            machines = token_of_feeder(SYSTEM_DATA / TOKEN_NAME)
            if there == {(SYSTEM_DATA / TOKEN_NAME).stat().st_uid}:
                return machines
    with suppress(OSError, UnicodeDecodeError):
        if not _by_anothers_link(usual):
            return token_of_feeder(usual) if there is not None else Token(token_in(usual))
    if machines is not None:
        return machines
    raise ConfigError("config.no_token", f"There is no API token: {usual} cannot be read.",
                      "Start `nommerd up`, which makes it, or set NOMMERD_TOKEN to what is in the feeder's token file: "
                      "`token` in its data directory.")


def token_of_feeder(file: Path, data: Path | None = None) -> Token:
    """What is in the file, for the feeder of its owner (or of that of a data directory) alone; root and oneself could read it
    anyway. Raises OSError or UnicodeDecodeError."""
    secret, users = token_in(file), {0, os.geteuid()}
    for path in (file, data or file):
        with suppress(OSError):
            users.add(path.stat().st_uid)
    return Token(secret, file, frozenset(users))


def token_in(file: Path) -> Secret:
    """Raises OSError or UnicodeDecodeError, also where it is empty. Where the folder it lies in is somebody else's to change,
    root follows no link there and takes no other's file; and nobody is kept waiting by a pipe."""
    careful = os.geteuid() == 0 and changeable(Path(os.path.realpath(file.parent))) is not None
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if careful else 0))
    try:
        found = os.fstat(descriptor)
        text = os.read(descriptor, TOKEN_BYTES_MAX).decode("ascii").strip() if stat.S_ISREG(found.st_mode) else ""
    finally:
        os.close(descriptor)
    if not text or (careful and found.st_uid != file.parent.stat().st_uid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(file))
    return Secret(text)


def users_listening(url: str) -> set[int] | None:
    """The user ids of those who listen where this URL leads on this machine; None where it leads elsewhere."""
    try:
        parts = urlsplit(url)
        hosts = NAMES[parts.hostname or ""]
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except (KeyError, ValueError):  # what is no URL is told where it is used
        return None
    with suppress(OSError):
        found = listeners()
        return {one.uid for host in hosts for one in _taking(found, host, port)}
    return set()


def _taking(found: Sequence[Socket], host: str, port: int) -> list[Socket]:
    """Who gets what comes to this address, as the kernel decides: who named it goes before who took all."""
    for wide in (host, "0.0.0.0", "::") if "." in host else (host, "::"):
        if taking := [one for one in found if one.local == (wide, port)]:
            return taking
    return []


def _by_anothers_link(file: Path) -> bool:
    """Whether root would be led there by a link of another user, as in that one's HOME."""
    return os.geteuid() == 0 and any(step.is_symlink() and step.lstat().st_uid != 0
                                     for step in (file, *file.absolute().parents))
