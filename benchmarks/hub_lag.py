"""How late the hub of a worker with 16 running jobs wakes a sleeper, over a control process's lateness in the same run.

The worker is the real one, in this process; a greenlet of ours samples beside it. The control is a process with the
same sampling and no jobs: what the loaded machine alone costs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import quantile, report
from nommerd import runtime

JOBS = 16
INTERVAL = 0.005
PIPELINE = """\
kind: pipeline
name: bench
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, veryfast], [threads, 1], [c:a, aac], [f, mp4]]}
  - upload
"""


def sample(lags: list[float], go_on: object) -> None:
    while go_on():  # type: ignore[operator]
        before = time.perf_counter()
        time.sleep(INTERVAL)
        lags.append(time.perf_counter() - before - INTERVAL)


def control(seconds: float) -> None:
    """Sample beside nothing; a line of JSON with p99 and maximum."""
    lags: list[float] = []
    until = time.perf_counter() + seconds
    sample(lags, lambda: time.perf_counter() < until)
    print(json.dumps([quantile(lags, 0.99), max(lags)]))


def worker(config: str, seconds: float) -> None:
    """The real worker daemon, with our sampler in its hub; it is stopped by its own signal handler."""
    import signal

    import gevent

    from nommerd.config import load
    from nommerd.worker import main as work

    lags: list[float] = []
    until = time.perf_counter() + seconds
    gevent.spawn(sample, lags, lambda: time.perf_counter() < until)
    gevent.spawn_later(seconds + 1, os.kill, os.getpid(), signal.SIGTERM)
    work(load(Path(config), {}), name="bench")
    print(json.dumps([quantile(lags, 0.99), max(lags)]))


def main() -> None:
    from tests.media import clip
    from tests.rig import Rig, wait_until

    seconds = 25.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pipelines").mkdir()
        (root / "presets").mkdir()
        (root / "pipelines" / "bench.yaml").write_text(PIPELINE)
        with Rig(root, config="\n", slots=JOBS) as rig:
            source = rig.media / "in.mp4"
            source.write_bytes(clip(seconds=60, size="640x360").read_bytes())
            rig.start_feeder()
            for number in range(4):  # running before the samples begin, so that import and start-up do not count
                rig.submit(source, rig.media / f"{number}.mp4", pipeline="bench")
            argv = [sys.executable, "-m", "benchmarks.hub_lag"]
            busy = subprocess.Popen([*argv, "worker", str(rig.config), str(seconds)], stdout=subprocess.PIPE, text=True)
            idle = subprocess.Popen([*argv, "control", str(seconds)], stdout=subprocess.PIPE, text=True)
            for number in range(4, JOBS):
                time.sleep(0.3)  # the target is for spaced starts
                rig.submit(source, rig.media / f"{number}.mp4", pipeline="bench")
            wait_until(lambda: len(rig.processes("ffmpeg")) == JOBS, 15, f"{JOBS} encodes")
            ours = json.loads(busy.communicate()[0].splitlines()[-1])
            base = json.loads(idle.communicate()[0].splitlines()[-1])
    p99, worst = (ours[0] - base[0]) * 1000, (ours[1] - base[1]) * 1000
    report("hub lag at 16 jobs over the control's, p99", p99, "ms", at_most=20, baseline=f"control: {base[0] * 1000:.1f} ms")
    report("hub lag at 16 jobs over the control's, max", worst, "ms", at_most=100,
           baseline=f"control: {base[1] * 1000:.1f} ms")


runtime.patch()
if sys.argv[1:2] == ["control"]:
    control(float(sys.argv[2]))
elif sys.argv[1:2] == ["worker"]:
    worker(sys.argv[2], float(sys.argv[3]))
else:
    main()
