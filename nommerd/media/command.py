"""ffmpeg command lines, as pure values: nothing here runs anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a stage. `output` is the file it writes; the totals are what progress is measured against."""

    stage: str
    label: str
    argv: tuple[str, ...]
    output: Path | None = None
    total_frames: int | None = None
    total_seconds: float | None = None
