"""`python -m benchmarks [NAME…]`: each benchmark in a process of its own, so that none disturbs another's memory or hub."""

from __future__ import annotations

import subprocess
import sys

ALL = ("help", "latency", "latency_sqs", "submissions", "listing", "hub_lag", "memory", "memory_aws", "overhead",
       "abuse")
ON_REQUEST = ("sizing",)  # minutes long, and about the machine rather than about us


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in ALL + ON_REQUEST]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are {', '.join(ALL + ON_REQUEST)}", file=sys.stderr)
        return 2
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode for name in names or ALL]
    return max(codes)


sys.exit(main(sys.argv[1:]))
