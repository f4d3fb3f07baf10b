"""Measured encodes, kept in measured.json, from which docs/deploy.md's tables are made."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

FILE = Path(__file__).with_name("measured.json")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
MARKED = r"(<!-- {}: .*? -->\n).*?(<!-- end -->)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """`jobs` jobs of one preset at once, each of `media_seconds` of source. `others` is the share of the machine's processors
    that something else used meanwhile."""

    preset: str
    jobs: int
    media_seconds: float
    wall_seconds: float
    cpu_seconds: float
    memory_mb: float
    others: float

    @property
    def speed(self) -> float:
        """Times real time, of all jobs together."""
        return self.jobs * self.media_seconds / self.wall_seconds


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All runs on one machine."""

    date: str
    processor: str
    cores: int
    ffmpeg: str
    runs: tuple[Run, ...]

    @cached_property
    def presets(self) -> list[str]:
        """In the order they were measured in."""
        return list(dict.fromkeys(run.preset for run in self.runs))

    @cached_property
    def job_counts(self) -> list[int]:
        return sorted({run.jobs for run in self.runs})

    def of(self, preset: str) -> list[Run]:
        return [run for run in self.runs if run.preset == preset]

    def speed(self, preset: str, jobs: int) -> float:
        """Times real time, of all jobs together."""
        return next(run.speed for run in self.of(preset) if run.jobs == jobs)

    def speed_per_core(self, preset: str) -> float:
        """Times real time of one core that does nothing else: from processor time, which others' work hardly changes. With as
        many jobs at once as there were cores, so that all share caches and memory as on a busy node."""
        run = next(run for run in self.of(preset) if run.jobs == self.cores)
        return run.jobs * run.media_seconds / run.cpu_seconds

    def memory_mb(self, preset: str) -> float:
        """The most that one job's ffmpeg had resident."""
        return max(run.memory_mb for run in self.of(preset))

    @property
    def where(self) -> str:
        """What was measured on, in a sentence; also that the machine was not idle, where it was not."""
        others = max(run.others for run in self.runs)
        noise = f" Something else used up to {others:.0%} of the machine meanwhile." if others > 0.05 else ""
        return f"{self.date}, {self.processor}, {self.cores} cores, ffmpeg {self.ffmpeg}.{noise}"


def load(file: Path = FILE) -> Measured:
    """What was saved last."""
    fields = json.loads(file.read_text(encoding="utf-8"))
    return Measured(**{**fields, "runs": tuple(Run(**run) for run in fields["runs"])})


def save(measured: Measured, file: Path = FILE) -> None:
    fields = {**asdict(measured), "runs": [{name: round(value, 3) if isinstance(value, float) else value
                                            for name, value in asdict(run).items()} for run in measured.runs]}
    file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def write_tables(tables: dict[str, str], page: Path = PAGE) -> None:
    """Put each table between its markers in the page: `<!-- NAME: … -->` and `<!-- end -->`."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        found = list(re.finditer(MARKED.format(name), text, re.DOTALL))
        if len(found) != 1:
            raise SystemExit(f"{page}: wanted the markers of the table {name!r} once, found them {len(found)} times")
        text = f"{text[:found[0].end(1)]}\n{table}\n\n{text[found[0].start(2):]}"
    page.write_text(text, encoding="utf-8")


def tables_in(page: Path = PAGE) -> dict[str, str]:
    """The tables that the page holds, by name."""
    text = page.read_text(encoding="utf-8")
    return {match[1]: match[2].strip() for match in re.finditer(r"<!-- (\w+): .*? -->\n(.*?)<!-- end -->", text, re.DOTALL)}
