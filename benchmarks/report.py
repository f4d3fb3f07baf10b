"""One line a figure: what, the figure, its baseline in this run, the target, and whether it is met."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path


def report(what: str, figure: float, unit: str, *, baseline: str, at_most: float | None = None, at_least: float = 0.0) -> None:
    """Print a figure beside its target. With NOMMERD_BENCH_JSON=FILE it is appended there as a line of JSON too."""
    met = figure >= at_least and (at_most is None or figure <= at_most)
    target = f">= {at_least:g}" if at_most is None else f"<= {at_most:g}"
    print(f"{what:<46} {figure:>9.3f} {unit:<4} target {target:<8} {'met' if met else 'MISSED':<7} {baseline}", flush=True)
    if path := os.environ.get("NOMMERD_BENCH_JSON"):
        line = {"what": what, "figure": figure, "unit": unit, "baseline": baseline, "target": target, "met": met}
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0 to 1) of the values, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
