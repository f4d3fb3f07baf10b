"""Waiting on the network that ends when the work must stop, or when its time is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from nommerd import runtime
from nommerd.errors import Stop

T = TypeVar("T")
LOOK_SECONDS = 0.2  # how soon a stop is seen


def watched(fn: Callable[[], T], stop: Stop | None = None, seconds: float | None = None) -> T:
    """`fn()`, or its exception. Raises stop's reason, or TimeoutError after `seconds`, soon after either comes about.

    `fn` runs in a greenlet of its own, which is killed then. Unpatched it runs in place: both are seen once it returns,
    and only the socket's own time-outs bound it.
    """
    if stop is not None:
        stop.check()
    if not runtime.patched():
        result = fn()
        if stop is not None:
            stop.check()
        return result
    import gevent

    def outcome() -> tuple[T | None, Exception | None]:
        try:
            return fn(), None
        except Exception as error:
            return None, error

    deadline = None if seconds is None else time.monotonic() + seconds
    worker = gevent.spawn(outcome)
    try:
        while not worker.ready():
            left = LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            worker.join(min(left, LOOK_SECONDS))
            if stop is not None:
                stop.check()
    finally:
        worker.kill()  # does nothing to one that is ready
    value, error = worker.value
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]
