"""Several requests at once for the parts of one object, tried again and again, within limits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from nommerd import runtime
from nommerd.aws.clients import is_transient
from nommerd.errors import Stop

T = TypeVar("T")
R = TypeVar("R")

WIDTH = 4  # requests at once for one object
TRIES = 6  # of each request: the last one is some 15 s after the first
BACKOFF_SECONDS = 0.5
LOOK_SECONDS = 0.2  # how soon a stop is seen


def side_by_side(work: Callable[[T], None], items: Iterable[T], stop: Stop, width: int = WIDTH) -> None:
    """`work` on each item, `width` at once, begun in their order. The first error ends the others and is raised; so does
    stop's reason, soon after it comes about."""
    stop.check()
    rest = iter(items)
    if not runtime.patched():
        for item in rest:
            work(item)
            stop.check()
        return
    import gevent

    errors: list[Exception] = []

    def run() -> None:
        try:
            for item in rest:
                work(item)
        except Exception as error:
            errors.append(error)

    workers = [gevent.spawn(run) for _ in range(width)]
    try:
        left = workers
        while left and not errors:
            gevent.wait(left, LOOK_SECONDS, 1)
            stop.check()
            left = [worker for worker in left if not worker.ready()]
    finally:
        gevent.killall(workers)
    if errors:
        raise errors[0]


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, with jitter."""
    return BACKOFF_SECONDS * float(2 ** (failures - 1)) * random.uniform(0.5, 1.5)


def persistently(call: Callable[[], R], stop: Stop, transient: Callable[[Exception], bool] = is_transient,
                 tries: int = TRIES) -> R:
    """`call()`, again after errors that are transient, at most `tries` times. Raises the last one, or stop's reason."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            if failures >= tries or not transient(error):
                raise
        stop.wait(backoff_seconds(failures))
        stop.check()
