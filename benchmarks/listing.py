"""List and show over HTTP with 100,000 jobs stored, against the same calls with 1,000."""

from __future__ import annotations

import http.client
import tempfile
import time
from pathlib import Path

from benchmarks.report import quantile, report
from nommerd import runtime

CALLS = 300


def p99(port: int, token: str, paths: list[str]) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    took = []
    for number in range(CALLS):
        begun = time.perf_counter()
        connection.request("GET", paths[number % len(paths)], headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        answer = response.read()
        took.append(time.perf_counter() - begun)
        assert response.status == 200, answer
    connection.close()
    return quantile(took, 0.99)


def measure(jobs: int) -> tuple[float, float]:
    from benchmarks.filled import fill
    from tests.rig import Rig

    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        ids = fill(rig.data, jobs)
        rig.start_feeder(60)
        filters = ("", "?state=ERROR", "?state=CANCELLED&limit=100", "?label=customer%3D7", "?preset=web-720p")
        lists = [f"/v1/jobs{query}" for query in filters]
        shows = [f"/v1/jobs/{job_id}" for job_id in ids]
        p99(rig.port, rig.token, lists)
        return p99(rig.port, rig.token, lists), p99(rig.port, rig.token, shows)


def main() -> None:
    runtime.patch()
    few_list, few_show = measure(1000)
    many_list, many_show = measure(100_000)
    report("list at 100,000 jobs, p99", many_list * 1000, "ms", at_most=20, baseline=f"at 1,000: {few_list * 1000:.1f} ms")
    report("show at 100,000 jobs, p99", many_show * 1000, "ms", at_most=20, baseline=f"at 1,000: {few_show * 1000:.1f} ms")


main()
