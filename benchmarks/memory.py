"""Resident memory of a feeder with 100,000 jobs and of an idle worker, against a Python with gevent and pydantic alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

from benchmarks.report import report
from nommerd import runtime

BARE = """
from gevent import monkey; monkey.patch_all()
import pydantic, bottle; pydantic.BaseModel
print("up", flush=True); input()
"""


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def bare_mb() -> float:
    with subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size = resident_mb(process.pid)
        process.communicate("\n")
    return size


def main() -> None:
    runtime.patch()
    from benchmarks.filled import fill
    from tests.media import clip
    from tests.rig import Rig, free_port

    bare = bare_mb()
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        fill(rig.data, 100_000)
        feeder = rig.start_feeder(60)
        health = free_port()
        rig.env = {**rig.env, "NOMMERD_WORKER__HEALTH_PORT": str(health)}
        worker = rig.start_worker("w1")
        source = rig.media / "in.mp4"
        source.write_bytes(clip(seconds=1, size="160x120").read_bytes())
        for number in range(5):
            rig.wait_finished(rig.submit(source, rig.media / f"{number}.m4a", preset="audio-aac"), 60)
        for _ in range(20):
            rig.call("GET", "/v1/jobs?limit=500")
            assert [rig.call("GET", path)[0] for path in ("/v1/stats", "/metrics")] == [200, 200]
            assert urlopen(f"http://127.0.0.1:{health}/metrics").status == 200
        feeder_mb, worker_mb = resident_mb(feeder.pid), resident_mb(worker.pid)
    alone = f"gevent, bottle and pydantic alone: {bare:.0f} MB"
    report("feeder at 100,000 jobs, resident", feeder_mb, "MB", at_most=90, baseline=alone)
    report("idle worker after 5 jobs, resident", worker_mb, "MB", at_most=60, baseline=alone)


if __name__ == "__main__":
    main()
