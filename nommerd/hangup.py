"""SIGHUP has two senders: an operator who wants files read again, and a terminal that is gone.

From its first moment on a daemon holds SIGHUP back, until it can heed it: one that comes early neither ends it nor is lost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HANGUP = frozenset({signal.SIGHUP})


def hold() -> None:
    """Keep SIGHUP waiting, in this thread and in processes that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANGUP)


@contextmanager
def held() -> Iterator[None]:
    """As `hold`, for a while."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANGUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed(reload: Callable[[], None], stop: Callable[[], None]) -> None:
    """From now on SIGHUP, also one that was held back, calls `reload`, or `stop` where the terminal is gone. For processes
    with gevent, on the main thread."""
    import gevent  # the command line, which starts daemons, does without

    terminal = Terminal()
    gevent.signal_handler(signal.SIGHUP, lambda: stop() if terminal.gone else reload())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANGUP)


class Terminal:
    """The one this process was started on, where there was one. Make it before SIGHUP gets a handler: who ignores it
    (`nohup`) is not to end with the terminal."""

    def __init__(self) -> None:
        self._had = _controlling() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN

    @property
    def gone(self) -> bool:
        """It has hung up."""
        return self._had and not _controlling()


def _controlling() -> bool:
    """Whether this process has a controlling terminal: opening /dev/tty is how to know (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
