"""Where log lines go out: whoever writes here never waits and never fails, whatever became of the other end.

A pipe that nobody reads would block the process at the next line, a closed one would raise from within whatever was to be
told. So lines are written only as far as the other end takes them at once. The rest waits, to a bound, for a thread that
exists only as long; what goes beyond the bound is counted instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from typing import TextIO

from nommerd.runtime import native

WAITING_BYTES_MAX = 2**20
PIECE_BYTES = 4096  # PIPE_BUF: what a pipe that is ready takes without blocking (pipe(7))
CLOSE_SECONDS = 1.0  # for what still waits when the process ends


class Outlet:
    """A text stream with `write` and `flush`, in front of another. Safe between threads and greenlets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._lock = native("_thread", "RLock")()  # gevent's might switch to another greenlet
        self._poll, self._start = native("select", "poll"), native("_thread", "start_new_thread")
        self._waiting = bytearray()
        self._lost = 0
        self._helping = False

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Take whole lines."""
        if self._descriptor is None:
            with contextlib.suppress(Exception):
                self._stream.write(text)
                self._stream.flush()
            return len(text)
        with self._lock:
            if len(self._waiting) > WAITING_BYTES_MAX:
                self._lost += 1
            else:
                self._waiting += text.encode("utf-8", "backslashreplace")
            self._push()
            if self._waiting and not self._helping:
                self._helping = True
                self._start(self._help, ())
        return len(text)

    def flush(self) -> None:
        """Nothing is held back that could go."""

    def close(self) -> None:
        """Give what waits a last moment. Blocks the event loop: call it when that has ended."""
        until = time.monotonic() + CLOSE_SECONDS
        while self._waiting and time.monotonic() < until:
            self._ready(0.05)
            with self._lock:
                self._push()

    def _push(self) -> None:
        """Write as much as is taken at once."""
        while self._waiting and self._ready(0):
            try:
                count = os.write(self._descriptor or 0, self._waiting[:PIECE_BYTES])
            except BlockingIOError:
                return
            except OSError:  # closed, or its disk is full: these lines are gone, later ones may not be
                self._waiting.clear()
                return
            del self._waiting[:count]
            if not self._waiting and self._lost:
                self._waiting += b'{"level": "warning", "event": "log.lines_lost", "lines": %d}\n' % self._lost
                self._lost = 0

    def _ready(self, seconds: float) -> bool:
        poll = self._poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _help(self) -> None:
        """On a thread: write what waits, as the other end takes it."""
        while True:
            self._ready(1.0)
            with self._lock:
                self._push()
                if not self._waiting:
                    self._helping = False
                    return


def _descriptor(stream: TextIO) -> int | None:
    """What to write to; None for a stream in memory. For a pipe one of our own, which does not block even where others
    write to it as well."""
    try:
        stream.flush()
        descriptor = stream.fileno()
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return descriptor
    except (OSError, ValueError, AttributeError):
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return descriptor
