"""Progress that tells the truth: bars redrawn on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from nommerd.cli.options import printable

PLAIN_INTERVAL_SECONDS = 1.0  # between progress lines where there is no terminal
LABEL_WIDTH = 12
BAR_MIN, BAR_MAX = 8, 40  # cells; below that there is no bar
CLEAR = "\x1b[K"  # to the end of the line
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Bar:
    """How far something is. `fraction` is 0 to 1 over all stages; `done` says that it is over, well or not."""

    label: str
    fraction: float
    eta_seconds: float | None = None
    note: str = ""  # what else there is to say: how many files, which attempt
    done: bool = False


def percent(bar: Bar) -> str:
    """Rounded down, and never 100 % before it is done."""
    whole = int(100 * min(1.0, max(0.0, bar.fraction)) + 1e-9)
    return f"{whole if bar.done else min(whole, 99):3d} %"


def duration(seconds: float | None) -> str:
    """75.2 -> 1:15."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def times(speed: float | None) -> str:
    """An encode's speed: 2.34 -> 2.3x, as ffmpeg has it."""
    return "" if speed is None else f"{speed:.2g}x" if speed < 10 else f"{speed:.0f}x"


def plain(bar: Bar) -> str:
    """The bar as a line of a log."""
    return "  ".join([f"{printable(bar.label):<{LABEL_WIDTH}} {percent(bar)}", *_rest(bar)])


def draw(bar: Bar, room: int, colour: bool = False) -> str:
    """The bar as a line of at most `room` cells. Where there is little room the bar goes first, then what is known beside the
    percentage, and then the label is cut."""
    from rich.cells import cell_len, set_cell_size

    label, rest = printable(bar.label), _rest(bar)
    label += " " * (LABEL_WIDTH - cell_len(label))
    while True:
        tail = "  ".join([percent(bar), *rest])
        width = room - cell_len(label) - cell_len(tail) - 2
        if width >= 0 or not rest:
            break
        rest = rest[:-1]
    if width < 0:
        label = set_cell_size(label.rstrip(), max(1, room - cell_len(tail) - 1))
    if width < BAR_MIN:
        line = f"{label} {tail}"
        return line if cell_len(line) <= room else set_cell_size(tail, room)
    cells = min(BAR_MAX, width)
    done = int(cells * min(1.0, max(0.0, bar.fraction)))
    full = "━" * done
    return f"{label} {GREEN + full + PLAIN if colour and full else full}{'╌' * (cells - done)} {tail}"


def _rest(bar: Bar) -> list[str]:
    left = [f"{duration(bar.eta_seconds)} left"] if bar.eta_seconds is not None and not bar.done else []
    return left + ([printable(bar.note)] if bar.note else [])


def is_live(stream: TextIO) -> bool:
    """Whether lines can be redrawn there."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Board:
    """Some lines redrawn in place on a terminal; elsewhere nothing is drawn, and `say` alone speaks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = is_live(self.stream)
        self.colour = self.live and "NO_COLOR" not in os.environ
        self._drawn = 0

    @property
    def room(self) -> int:
        """Cells of a line; one fewer than there are, for the last one wraps on some terminals."""
        return shutil.get_terminal_size().columns - 1

    def draw(self, lines: Sequence[str]) -> None:
        """Draw these lines instead of the last ones; as many as the terminal is high."""
        if not self.live:
            return
        lines = lines[:max(1, shutil.get_terminal_size().lines - 1)]
        # Over the old lines, not after clearing them: nothing flickers.
        self._write(self._top() + "\n".join(line + CLEAR for line in lines) + "\x1b[J")
        self._drawn = len(lines)

    def say(self, text: str) -> None:
        """Text that stays, above what is drawn."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take away what is drawn."""
        if self._drawn:
            self._write(self._top() + "\x1b[J")
            self._drawn = 0

    def _top(self) -> str:
        return "\r" + (f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else "")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


class ProgressLine(Board):
    """How far one thing is: a bar on a terminal, else plain lines, one a second at most."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._said = float("-inf")
        self._last = ""

    def show(self, label: str, fraction: float, eta_seconds: float | None = None, *, note: str = "",
             done: bool = False) -> None:
        """`label` and a fraction from 0 to 1."""
        bar = Bar(label, fraction, eta_seconds, note, done)
        if self.live:
            self.draw([draw(bar, self.room, self.colour)])
            return
        line = plain(bar)
        if line != self._last and time.monotonic() - self._said >= PLAIN_INTERVAL_SECONDS:
            self._said, self._last = time.monotonic(), line
            self._write(line + "\n")
