"""How long `nommerd --help` takes, against a bare Python start."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.report import median, report

RUNS = 10


def seconds(argv: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    bare, ours = [], []
    for _ in range(RUNS):
        bare.append(seconds([sys.executable, "-c", "pass"]))
        ours.append(seconds([sys.executable, "-m", "nommerd", "--help"]))
    report("nommerd --help, median", median(ours), "s", at_most=0.2, baseline=f"python -c pass: {median(bare):.3f} s")


main()
