"""`python -m benchmarks [NAME…]`: each benchmark in a process of its own, so that none disturbs another's memory or hub."""

from __future__ import annotations

import subprocess
import sys

ALL = ("help", "latency", "latency_sqs", "submissions", "listing", "hub_lag", "memory", "memory_aws", "overhead",
       "abuse")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ALL]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in names or ALL]
    return max(codes)


sys.exit(main(sys.argv[1:]))
