"""An event listener of supervisor that kills a daemon which lives but does not answer; supervisor starts it again.

`python -m nommerd.livecheck PROGRAM`, as root, at TICK_5. Where the daemon listens is asked of the kernel, not of a
configuration: that of a node lies in a bucket, and a port that was changed must not make a healthy daemon die. Any answer
to /healthz is a sign of life. No answer twice in a row is not: one time-out alone may be a machine that stood still itself.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

from nommerd import logs
from nommerd.sockets import Address, listeners

ANSWER_SECONDS = 10.0
MISSES = 2  # in a row, of one process
RUNNING = 20  # a process's state, as supervisor numbers them
# connecting fails on this side: the address says nothing about who listens there
NOT_FROM_HERE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EHOSTUNREACH, errno.EINVAL, errno.ENETUNREACH})


def listening(pid: int) -> list[Address]:
    """The TCP addresses, to connect to from this machine, on which this process listens; none where it is gone. Raises
    PermissionError where nobody may look at it, as in containers without CAP_SYS_PTRACE."""
    try:
        links = set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile: a busy process opens and closes all the time
                links.add(str(link.readlink()))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [address for one in listeners(pid) if f"socket:[{one.inode}]" in links for address in _from_here(one.local)]


def _from_here(address: Address) -> list[Address]:
    """To connect to. All addresses of IPv6 may be those of IPv4 too, and the only ones that a machine has."""
    host, port = address
    return [(one, port) for one in {"0.0.0.0": ["127.0.0.1"], "::": ["::1", "127.0.0.1"]}.get(host, [host])]


def answers(address: Address, seconds: float = ANSWER_SECONDS) -> bool | None:
    """Whether a first byte of an answer comes, of any kind: what follows could be kept waiting for. None where it cannot be
    asked from here."""
    request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nUser-Agent: nommerd-livecheck\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(address, seconds) as connection:
            connection.sendall(request.encode("ascii"))
            return connection.recv(65536) != b""
    except OSError as error:
        return None if error.errno in NOT_FROM_HERE else False


class LiveCheck:
    """`look` once in a while. `supervisor`: its XML-RPC methods."""

    def __init__(self, supervisor: Any, program: str, answers: Callable[[Address], bool | None] = answers) -> None:
        self._supervisor, self._program, self._answers = supervisor, program, answers
        self._pid, self._misses = 0, 0

    def look(self) -> None:
        """Kill the program's process where it is RUNNING, listens, and has not answered for MISSES times."""
        try:
            process = self._supervisor.getProcessInfo(self._program)
        except Fault as fault:  # it is ending, and then tells nobody anything
            logs.get().warning("health.not_told", program=self._program, why=fault.faultString)
            return
        pid = process["pid"]
        addresses = self._listening(pid) if process["state"] == RUNNING else []
        if pid != self._pid or self._alive(addresses):
            self._pid, self._misses = pid, 0
            return
        self._misses += 1
        told = {"program": self._program, "pid": pid, "addresses": [f"{host} port {port}" for host, port in addresses]}
        logs.get().warning("health.no_answer", misses=self._misses, **told)
        if self._misses >= MISSES:
            self._kill(pid, told)

    def _listening(self, pid: int) -> list[Address]:
        try:
            return listening(pid)
        except PermissionError as error:
            if pid != self._pid:
                logs.get().warning("health.not_asked", program=self._program, pid=pid, why=str(error))
            return []

    def _alive(self, addresses: list[Address]) -> bool:
        """Nothing says that it is not."""
        told = set()
        for address in addresses:
            told.add(self._answers(address))
            if True in told:
                return True
        return False not in told

    def _kill(self, pid: int, told: dict[str, Any]) -> None:
        """Not a stop and a start: were an operator to stop it meanwhile, that would start it again."""
        try:
            if self._supervisor.getProcessInfo(self._program)["pid"] == pid:
                self._supervisor.signalProcess(self._program, "KILL")
                logs.get().error("health.killed", **told)
        except Fault as fault:
            logs.get().warning("health.not_killed", why=fault.faultString, **told)
        self._misses = 0


def ticks() -> Iterator[dict[str, str]]:
    """Supervisor's events as they come, each accepted when the next is asked for; until supervisor ends."""
    from supervisor import childutils

    while True:
        try:
            headers, _ = childutils.listener.wait()
        except KeyError:  # how it takes the end of its input
            return
        yield headers
        childutils.listener.ok()


def main(program: str) -> None:
    """Until supervisor ends."""
    from supervisor import childutils

    logs.configure(sys.stderr, json=True, level="info")
    check = LiveCheck(childutils.getRPCInterface(os.environ).supervisor, program)
    for headers in ticks():
        if headers["eventname"].startswith("TICK"):
            check.look()


if __name__ == "__main__":
    main(sys.argv[1])
