"""What people see: tables that fit, progress that does not flood a log, sizes and times in words."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TextIO

import click

PLAIN_INTERVAL_SECONDS = 1.0  # between progress lines where there is no terminal
STATE_STYLES: dict[str, dict[str, Any]] = {"FINISHED": {"fg": "green"}, "ERROR": {"fg": "red"}, "ABANDONED": {"fg": "red"},
                                           "CANCELLED": {"fg": "yellow"}, "PENDING": {"dim": True}}
GAP = "  "  # between a table's columns
COLUMN_MIN = 8  # what is left of a column that had to make room


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], shrink: Sequence[str] = ()) -> None:
    """A table; on a terminal in colour, and no wider than it if cutting the columns of `shrink`, in this order, can do that.
    No other column is ever cut: what is in it may have to be copied."""
    from rich.cells import cell_len, set_cell_size

    lines = [headers, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    live = sys.stdout.isatty()
    if live:
        _shrink(widths, [headers.index(name) for name in shrink], shutil.get_terminal_size().columns)
    for number, row in enumerate(lines):
        cells = [cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
                 for cell, width in zip(row, widths, strict=True)]
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        if live and "NO_COLOR" not in os.environ:
            cells = [_styled(cell, header=number == 0) for cell in cells]
        print(GAP.join(cell + gap for cell, gap in zip(cells, gaps, strict=True)).rstrip())


def _shrink(widths: list[int], columns: Sequence[int], room: int) -> None:
    """Narrow these columns, none below COLUMN_MIN, until a line has room."""
    for column in columns:
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - room
        widths[column] -= max(0, min(excess, widths[column] - COLUMN_MIN))


def _styled(cell: str, *, header: bool) -> str:
    style: dict[str, Any] = {"bold": True} if header else STATE_STYLES.get(cell, {})
    return click.style(cell, **style) if style else cell


def size(count: int | None) -> str:
    """1234567 -> 1.2 MB."""
    if count is None:
        return ""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration(seconds: float | None) -> str:
    """75.2 -> 1:15."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def moment(text: str) -> str:
    """An ISO time without its fraction of a second: 2026-01-31T10:20:30Z."""
    return datetime.fromisoformat(text).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(text: str) -> str:
    """How long ago an ISO time was, in one unit."""
    seconds = time.time() - datetime.fromisoformat(text).timestamp()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit} ago"
    return f"{max(0, seconds):.0f}s ago"


def problem_lines(problem: dict[str, Any]) -> list[str]:
    """An error or a warning of a job."""
    lines = [f"{problem['code']}: {problem['message']}"]
    return lines + ([f"  {problem['hint']}"] if problem.get("hint") else [])


class ProgressLine:
    """How far something is: one line redrawn on a terminal, else plain lines, one a second at most."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._drawn = False
        self._said = 0.0
        self._last = ""

    def show(self, label: str, fraction: float, eta_seconds: float | None = None) -> None:
        """`label` and a fraction from 0 to 1."""
        rest = f"  {duration(eta_seconds)} left" if eta_seconds is not None else ""
        percent = f"{100 * fraction:3.0f} %"
        if self._live:
            width = max(10, min(40, shutil.get_terminal_size().columns - len(label) - len(rest) - 12))
            done = round(width * fraction)
            self._write(f"\r{label:<12} {'━' * done}{'╌' * (width - done)} {percent}{rest}\x1b[K")
            self._drawn = True
            return
        line = f"{label:<12} {percent}{rest}"
        if line != self._last and time.monotonic() - self._said >= PLAIN_INTERVAL_SECONDS:
            self._said, self._last = time.monotonic(), line
            self._write(line + "\n")

    def say(self, text: str) -> None:
        """A line that stays, above the progress."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take the redrawn line away."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
