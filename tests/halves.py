"""`python -m tests.halves [PYTEST OPTIONS]`: the suite as two pytest processes side by side, on two processors.

Whole jobs and real daemons mostly wait; parts mostly compute. (pytest-xdist does not get on with gevent's patching.) Lines
come as they are written, marked with their half; the exit code is the worse of the two.
"""

from __future__ import annotations

import subprocess
import sys
from threading import Thread
from typing import IO

HALVES = {"whole": ["tests/acceptance", "tests/contracts", "tests/faults"], "parts": ["tests/integration", "tests/unit"]}


def main(options: list[str]) -> int:
    running = {}
    for name, folders in HALVES.items():
        command = [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{name}", *options, *folders]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        assert process.stdout is not None
        running[name] = process, Thread(target=relay, args=(name, process.stdout))
        running[name][1].start()
    try:
        codes = [process.wait() for process, _ in running.values()]
        for _, thread in running.values():
            thread.join()
    except KeyboardInterrupt:  # both have it too, and end by it
        codes = [process.wait() for process, _ in running.values()]
    return max(abs(code) for code in codes)


def relay(name: str, lines: IO[str]) -> None:
    """Each line with its half, at once."""
    for line in lines:
        print(f"{name}: {line}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
