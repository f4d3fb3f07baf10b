"""Whether the owner of a lease is still there, judged without comparing two machines' clocks.

An observer measures on its own clock how long it has seen the same lease_version; see nommerd.lease for why that is safe.
An owner that was a process of this very machine is seen to be gone at once.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nommerd.errors import Problem
from nommerd.job import Job, Key, Owner

MARGIN = 1 / 6  # of a lease: an owner stops its work this much before the end
SLACK = 1 / 10  # of a lease: an observer waits this much beyond it
FORGET_SECONDS = 600.0  # an observer forgets leases nobody asked about for so long

Clock = Callable[[], float]


def boot_clock() -> float:
    """Seconds on a clock that never jumps and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def this_process(worker: str, node: str | None = None) -> Owner:
    """This process as an owner; `claim` stays empty until something is claimed.

    Where /proc does not speak about this very process (another system, a foreign /proc), nothing that identifies it is
    told, and observers go by the lease alone.
    """
    node = node or socket.gethostname()
    pid = os.getpid()
    try:
        started = _start_ticks(pid)
        if started is None or os.readlink("/proc/self") != str(pid):  # noqa: PTH115 (a text, not a path)
            return Owner(worker=worker, node=node)
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return Owner(worker=worker, node=node, boot_id=boot_id, pid=pid, started=started,
                     pid_namespace=os.readlink("/proc/self/ns/pid"))  # noqa: PTH115
    except OSError:
        return Owner(worker=worker, node=node)


def vanished(owner: Owner, me: Owner) -> bool:
    """Whether the owner was a process of this machine and is gone: no such pid, a zombie, or a younger process."""
    if not me.boot_id or (owner.boot_id, owner.pid_namespace) != (me.boot_id, me.pid_namespace) or owner.pid <= 0:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and another user's
    try:
        return _start_ticks(owner.pid) != owner.started
    except PermissionError:
        return False
    except OSError:
        return not _there(owner.pid)  # hidden from us (hidepid), or gone since


def _there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), None for a zombie. The name in field 2 may hold anything: cut behind it."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@dataclass(slots=True)
class _Sight:
    lease_version: int
    first_seen: float
    asked: float


class LeaseWatch:
    """Tells dead leases from live ones, on this process's own clock alone. Ask again and again: it remembers."""

    def __init__(self, clock: Clock = time.monotonic, me: Owner | None = None) -> None:
        self._clock = clock
        self._me = me or this_process("")
        self._sights: dict[Key, _Sight] = {}
        self._tidied = clock()

    def expired(self, job: Job) -> Problem | None:
        """Why this claimed job's owner counts as lost, None while it may be at work. Break it with `job.lease_version`."""
        if job.owner is None:
            self._sights.pop(job.key, None)
            return None
        return self.silent(job.key, job.owner, job.lease_version, job.lease_seconds)

    def silent(self, key: Key, owner: Owner, lease_version: int, lease_seconds: float) -> Problem | None:
        """The same for any lease."""
        now = self._clock()
        self._tidy(now)
        sight = self._sights.get(key)
        if sight is None or sight.lease_version != lease_version:
            sight = self._sights[key] = _Sight(lease_version, now, now)
        sight.asked = now
        if vanished(owner, self._me):
            return _lost(f"The process of worker {owner.worker} on {owner.node} has ended.")
        if now < sight.first_seen + lease_seconds * (1 + SLACK):
            return None
        return _lost(f"Worker {owner.worker} on {owner.node} has been silent for more than {lease_seconds:g} s.")

    def _tidy(self, now: float) -> None:
        if now < self._tidied + FORGET_SECONDS:
            return
        self._tidied = now
        self._sights = {key: sight for key, sight in self._sights.items() if now < sight.asked + FORGET_SECONDS}


def _lost(message: str) -> Problem:
    return Problem(code="node.lost", message=message, hint="Another worker takes the job while attempts are left.",
                   retryable=True)
