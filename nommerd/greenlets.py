"""A set of greenlets that are waited for at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from nommerd import logs


class Greenlets:
    """`spawn` starts one; what one raises is logged and ends only that one. Its length is how many are at work."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """`on_end` is called after each has ended."""
        self._on_end = on_end
        self._running: set[gevent.Greenlet] = set()

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` in a greenlet of its own, under the log fields bound here."""
        greenlet = gevent.Greenlet(logs.carry(_guarded), function, *args)
        self._running.add(greenlet)
        greenlet.link(self._ended)
        greenlet.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for those that run now. True when none runs any longer."""
        gevent.joinall(list(self._running), timeout=timeout_seconds)
        return not self._running

    def kill(self, timeout_seconds: float) -> None:
        """End those that run, waiting for their `finally` blocks."""
        gevent.killall(list(self._running), timeout=timeout_seconds)

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        self._running.discard(greenlet)
        self._on_end()


def _guarded(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except Exception:
        logs.get().error("greenlet.failed", what=getattr(function, "__qualname__", "?"), exc_info=True)
