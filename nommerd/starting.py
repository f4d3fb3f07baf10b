"""A daemon that is not ready in time ends: whoever started it sees that, and may try again.

For service managers, which take a process for started once it has lived long enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

from nommerd.errors import InfrastructureError

LOOK_SECONDS = 0.2


class Start:
    """The clock runs from here, on the main greenlet. Without `seconds` it never ends anything."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.failed = False
        self._until = time.monotonic() + (seconds or 0)
        self._timeout = gevent.Timeout(seconds, self._error())
        self._timeout.start()

    def _error(self) -> InfrastructureError:
        return InfrastructureError("node.not_ready", f"It was not ready within {self.seconds:g} seconds."
                                   if self.seconds else "It was not ready.",
                                   "The log tells what it waited for; /readyz tells when that is there.")

    def running(self, ready: Callable[[], bool], stop: Callable[[], None]) -> None:
        """All parts are made: from now on `stop` is called where it is not `ready` in time. See `check`."""
        self._timeout.close()
        if self.seconds is not None:
            gevent.spawn(self._watch, ready, stop)

    def _watch(self, ready: Callable[[], bool], stop: Callable[[], None]) -> None:
        while not ready():
            if time.monotonic() >= self._until:
                self.failed = True
                stop()
                return
            gevent.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """After the daemon has ended. Raises InfrastructureError where it was never ready."""
        if self.failed:
            raise self._error()
