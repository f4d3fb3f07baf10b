"""`python -m tests.side_by_side [PYTEST OPTIONS]`: the suite as three pytest processes at once, enough for two processors.

Whole jobs and real daemons mostly wait. (pytest-xdist does not get on with gevent's patching.) Lines come as they are
written, marked with their part; the exit code is the worst of the three.
"""

from __future__ import annotations

import subprocess
import sys
from threading import Thread
from typing import IO

PARTS = {"acceptance": ["tests/acceptance", "tests/faults"], "integration": ["tests/integration"],
         "unit": ["tests/contracts", "tests/unit"]}


def main(options: list[str]) -> int:
    running = {}
    for name, folders in PARTS.items():
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{name}", *options, *folders]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert process.stdout is not None
        running[name] = process, Thread(target=relay, args=(name, process.stdout))
        running[name][1].start()
    try:
        codes = [process.wait() for process, _ in running.values()]
        for _, thread in running.values():
            thread.join()
    except KeyboardInterrupt:  # they have it too, and end by it
        codes = [process.wait() for process, _ in running.values()]
    return max(abs(code) for code in codes)


def relay(name: str, lines: IO[str]) -> None:
    """Each line with its part, at once."""
    for line in lines:
        print(f"{name}: {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
