"""A job from answer to FINISHED (fetch, encode, verify, publish) against the same bare ffmpeg command, wall clock."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.report import median, report
from nommerd import runtime

RUNS = 3
OPTIONS = ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-c:a", "aac", "-movflags", "+faststart", "-f", "mp4"]
PIPELINE = """\
kind: pipeline
name: bench
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, medium], [crf, 23], [c:a, aac], [movflags, +faststart], [f, mp4]]}
  - upload
"""


def bare(binary: Path, source: Path, target: Path, threads: int) -> float:
    begun = time.perf_counter()
    subprocess.run([str(binary), "-nostdin", "-loglevel", "error", "-y", "-i", str(source), *OPTIONS, "-threads", str(threads),
                    str(target)], check=True)
    return time.perf_counter() - begun


def main() -> None:
    runtime.patch()
    from nommerd.media.binaries import find
    from tests.media import clip
    from tests.rig import Rig

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pipelines").mkdir()
        (root / "presets").mkdir()
        (root / "pipelines" / "bench.yaml").write_text(PIPELINE)
        with Rig(root, config="\n", slots=1) as rig:
            source = rig.media / "in.mp4"
            source.write_bytes(clip(seconds=60, size="1280x720", rate=30).read_bytes())
            rig.start_feeder()
            rig.start_worker("w1")
            rig.wait_finished(rig.submit(source, rig.media / "warm.mp4", pipeline="bench"), 300)
            threads = os.cpu_count() or 1  # what one slot gives a job
            plain, ours = [], []
            for run in range(RUNS):
                plain.append(bare(find(None, None).ffmpeg, source, root / f"bare{run}.mp4", threads))
                begun = time.perf_counter()
                rig.wait_finished(rig.submit(source, rig.media / f"{run}.mp4", pipeline="bench"), 300)
                ours.append(time.perf_counter() - begun)
    ratio = median(ours) / median(plain)
    report("orchestrated encode / bare ffmpeg", ratio, "x", at_most=1.03,
           baseline=f"bare ffmpeg: {median(plain):.2f} s, job: {median(ours):.2f} s (median of {RUNS})")


main()
