"""What people see: tables that fit, sizes and times in words. Progress is in `progress`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import click

from nommerd.cli.options import printable
from nommerd.cli.progress import ProgressLine, duration, is_live

__all__ = ["ProgressLine", "age", "drop_output", "duration", "is_live", "moment", "print_each", "print_json",
           "problem_lines", "size", "source_name", "styled", "table"]

STATE_STYLES: dict[str, dict[str, Any]] = {"FINISHED": {"fg": "green"}, "ERROR": {"fg": "red"}, "ABANDONED": {"fg": "red"},
                                           "CANCELLED": {"fg": "yellow"}, "PENDING": {"dim": True}}
GAP = "  "  # between a table's columns
COLUMN_MIN = 8  # what is left of a column that had to make room


def drop_output() -> None:
    """Nobody reads stdout any longer: what is said from now on goes nowhere, else the flush at exit fails again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_each(values: Iterable[Any]) -> None:
    """The values as one JSON list on stdout, each printed as it comes: it may be long."""
    begun = False
    for value in values:
        print("[" if not begun else ",", end="\n")
        print(textwrap.indent(json.dumps(value, indent=2, ensure_ascii=False), "  "), end="")
        begun = True
    print("\n]" if begun else "[]")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], shrink: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
    """A table; on a terminal in colour, and no wider than it if cutting the columns of `shrink`, in this order, can do that,
    or then leaving out those of `drop`. No other column is ever cut: what is in it may have to be copied."""
    from rich.cells import cell_len, set_cell_size

    live = sys.stdout.isatty()
    lines = [list(headers), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    if live:
        room = shutil.get_terminal_size().columns
        gone = _dropped(list(headers), widths, shrink, drop, room)
        lines = [[cell for index, cell in enumerate(line) if index not in gone] for line in lines]
        widths = [width for index, width in enumerate(widths) if index not in gone]
        _shrink(widths, [lines[0].index(name) for name in shrink if name in lines[0]], room)
    for number, row in enumerate(lines):
        cells = [cell if cell_len(cell) <= width else set_cell_size(cell, width - 1) + "…"
                 for cell, width in zip(row, widths, strict=True)]
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        if live and "NO_COLOR" not in os.environ:
            cells = [styled(cell, header=number == 0) for cell in cells]
        print(GAP.join(cell + gap for cell, gap in zip(cells, gaps, strict=True)).rstrip())


def _dropped(headers: list[str], widths: Sequence[int], shrink: Sequence[str], drop: Sequence[str], room: int) -> set[int]:
    """Which columns go: as many of `drop` as it takes, when the others are as narrow as they can be."""
    gone: set[int] = set()
    for name in (*drop, None):
        kept = [min(width, COLUMN_MIN) if headers[index] in shrink else width
                for index, width in enumerate(widths) if index not in gone]
        if name is None or sum(kept) + len(GAP) * (len(kept) - 1) <= room:
            break
        gone.add(headers.index(name))
    return gone


def _shrink(widths: list[int], columns: Sequence[int], room: int) -> None:
    """Narrow these columns, none below COLUMN_MIN, until a line has room."""
    for column in columns:
        excess = sum(widths) + len(GAP) * (len(widths) - 1) - room
        widths[column] -= max(0, min(excess, widths[column] - COLUMN_MIN))


def styled(cell: str, *, header: bool = False) -> str:
    """The cell in the colour of what it says."""
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


def source_name(job: dict[str, Any]) -> str:
    """The name of a job's source, without its folder."""
    return printable(unquote(urlsplit(job["source"]).path.rstrip("/").rpartition("/")[2]))


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
    lines = [printable(f"{problem['code']}: {problem['message']}")]
    return lines + ([f"  {printable(problem['hint'])}"] if problem.get("hint") else [])
