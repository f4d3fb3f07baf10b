"""Decides that a running program must be killed, and takes its output meanwhile. Starts nothing, asks for no time."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

MOVED_BYTES = 4 * 1024 * 1024  # a silent program that read or wrote this much is at work (a file rewritten for fast start)
TICK_COUNTED_SECONDS = 1.0

OnLine = Callable[[str], bool | None]


class Why(Enum):
    """Why we kill a program that would have gone on. The value is the field of Exit that says so."""

    STOPPED = "stopped"
    STALLED = "stalled"
    TIMED_OUT = "timed_out"
    FLOODED = "flooded"
    FAILED = ""  # our own code raised


GENTLE = frozenset({Why.STALLED, Why.TIMED_OUT})  # SIGTERM first: what it still says on stderr helps


class Sink(Protocol):
    """Takes a program's output. `write` must never raise: sh would then wait for ever."""

    alive: bool  # set by each sign of life
    error: BaseException | None
    flooded: bool

    def write(self, chunk: bytes) -> None: ...


class Lines:
    """Hands lines to a callback, until that raises."""

    flooded = False

    def __init__(self, on_line: OnLine | None) -> None:
        self.on_line = on_line
        self.alive = False
        self.error: BaseException | None = None

    def write(self, chunk: bytes) -> None:
        if self.error is not None:
            return
        try:
            if self.on_line is None or self.on_line(chunk.decode(errors="replace").rstrip("\r\n")) is not False:
                self.alive = True
        except BaseException as error:
            self.error = error


class Body:
    """Keeps the first `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept = bytearray()
        self.alive = False
        self.error: BaseException | None = None
        self.flooded = False

    def write(self, chunk: bytes) -> None:
        room = self.max_bytes - len(self.kept)
        self.kept += chunk[:room]
        self.flooded = self.flooded or len(chunk) > room


class Tail:
    """Keeps the last `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.kept = bytearray()

    def write(self, chunk: bytes) -> None:
        self.kept += chunk
        del self.kept[: max(0, len(self.kept) - self.max_bytes)]

    @property
    def text(self) -> str:
        return self.kept.decode(errors="replace")


class Watch:
    """Decides when a program has stalled or taken too long. Told the time, never asks for it."""

    def __init__(self, stall_seconds: float | None, timeout_seconds: float | None) -> None:
        self.stall_seconds = stall_seconds
        self.timeout_seconds = timeout_seconds
        self.silent_seconds = 0.0
        self.moved_before: int | None = None

    def look(self, elapsed_seconds: float, tick_seconds: float, alive: bool, moved: Callable[[], int]) -> Why | None:
        """The verdict, if there is one. `moved` is how many bytes the program has read and written so far.

        Silence is the sum of our own ticks, each counted as a second at most: while this process was stopped or starved
        nobody listened, and that is not the program's fault.
        """
        if self.timeout_seconds is not None and elapsed_seconds > self.timeout_seconds:
            return Why.TIMED_OUT
        if self.stall_seconds is None:
            return None
        if alive:
            self._restart()
            return None
        self.silent_seconds += min(tick_seconds, TICK_COUNTED_SECONDS)
        if self.moved_before is None and self.silent_seconds > self.stall_seconds / 2:
            self.moved_before = moved()
        if self.silent_seconds <= self.stall_seconds:
            return None
        if moved() - (self.moved_before or 0) < MOVED_BYTES:
            return Why.STALLED
        self._restart()
        return None

    def _restart(self) -> None:
        self.silent_seconds = 0.0
        self.moved_before = None
