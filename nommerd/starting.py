"""A daemon that cannot work in time ends: whoever started it sees that, and may try again.

For service managers, which take a process for started once it has lived long enough.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import gevent

from nommerd.bus.base import Queue
from nommerd.errors import InfrastructureError, NommerdError
from nommerd.store.base import Store

LOOK_SECONDS = 0.2
END_SECONDS = 2.0  # for an orderly end after that; what could never work has nothing to give back


class Start:
    """A context around the life of a daemon, on the main greenlet: its clock runs from the beginning. Leaving it raises
    InfrastructureError node.not_ready where the daemon was never ready; without `seconds` it never ends anything. `age`: how
    many of the seconds have passed already."""

    def __init__(self, seconds: float | None, age: float = 0.0) -> None:
        self._seconds = seconds
        self._left = max(LOOK_SECONDS, seconds - age) if seconds is not None else None
        self._until = time.monotonic() + (self._left or 0.0)
        self._timeout = gevent.Timeout(self._left)  # no Exception: nobody on the way takes it for an outage of his own
        self._end = gevent.Greenlet()
        self._failed = False

    def __enter__(self) -> Start:
        if self._left is not None:
            self._timeout.start()
            self._end = gevent.spawn_later(self._left + END_SECONDS, self._end_now)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timeout.close()
        self._end.kill(block=False)
        if error is self._timeout or (error is None and self._failed):
            raise self._error() from None

    def running(self, ready: Callable[[], bool], stop: Callable[[], None]) -> None:
        """All parts are made: from now on `stop` is called where it is not `ready` in time."""
        self._timeout.close()
        if self._seconds is not None:
            gevent.spawn(self._watch, ready, stop)

    def _watch(self, ready: Callable[[], bool], stop: Callable[[], None]) -> None:
        with gevent.Timeout(max(LOOK_SECONDS, self._until - time.monotonic()), False):
            while not ready():
                gevent.sleep(LOOK_SECONDS)
            self._end.kill(block=False)
            return
        self._failed = True
        stop()

    def _end_now(self) -> None:
        print(self._error(), file=sys.stderr, flush=True)
        os._exit(1)

    def _error(self) -> InfrastructureError:
        return InfrastructureError("node.not_ready", f"It was not ready within {self._seconds:g} seconds.",
                                   "The lines before this one tell what did not answer.")


def process_age() -> float:
    """Seconds since this process was started, as who started it counts them (proc(5): starttime, in ticks since boot)."""
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def answer(store: Store, queue: Queue) -> bool:
    """Whether both can be asked now."""
    try:
        store.ping()
        queue.depth()
    except NommerdError:
        return False
    return True
