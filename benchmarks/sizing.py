"""What each shipped preset takes on this machine: speed against real time with several jobs at once, processor time, memory.

The baseline is real time. Jobs run through a real feeder and worker, on a source as a camera makes it. Prints the tables of
docs/deploy.md; with --write they go there, and the figures into measured.json. --seconds 5 is a short trial.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import costs
from benchmarks.measured import Measured, Run, save, write_tables
from benchmarks.source import camera_clip
from nommerd import runtime

if TYPE_CHECKING:
    from tests.rig import Daemon, Rig

SOURCE_SECONDS = 20.0
REPEATS = {"audio-aac": 8, "remux-mp4": 8}  # so quick that a longer source is needed to see more than a job's overhead
PRESETS = ("web-1080p", "web-720p", "web-480p", "audio-aac", "remux-mp4")
LOOK_SECONDS = 0.1
JOB_SECONDS = 3600.0
TICKS = os.sysconf("SC_CLK_TCK")


class Peaks:
    """The most memory that each ffmpeg of a rig has had resident, looked at again and again meanwhile."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._stop = rig, threading.Event()
        self.megabytes: dict[int, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for pid in self._rig.processes("ffmpeg"):
                with suppress(OSError, StopIteration):
                    self.megabytes[pid] = high_water_mb(pid)


def high_water_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def cpu_seconds(pid: int) -> float:
    """Of the process and of all its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS  # utime, stime, cutime, cstime


def machine_seconds() -> float:
    """Processor seconds that this machine has worked since it started, stolen ones included."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def run(rig: Rig, worker: Daemon, source: Path, preset: str, jobs: int, media_seconds: float) -> Run:
    """`jobs` jobs at once, from their submission to the end of the last."""
    peaks = Peaks(rig)
    cpu, machine, begun = cpu_seconds(worker.pid), machine_seconds(), time.perf_counter()
    with peaks.watching():
        made = [rig.submit(source, rig.media / f"{preset}-{jobs}-{number}.mp4", preset=preset, overwrite=True)
                for number in range(jobs)]
        for job in made:
            rig.wait_finished(job, JOB_SECONDS)
    wall, cpu, machine = time.perf_counter() - begun, cpu_seconds(worker.pid) - cpu, machine_seconds() - machine
    return Run(preset=preset, jobs=jobs, media_seconds=media_seconds, wall_seconds=wall, cpu_seconds=cpu,
               memory_mb=max(peaks.megabytes.values(), default=0.0),
               others=max(0.0, (machine - cpu) / (wall * cores())))


def measure(rig: Rig, ffmpeg: Path, presets: tuple[str, ...], seconds: float) -> list[Run]:
    """All of it: one job alone, one a core, two a core; each after a short one that loads what has to be loaded."""
    print(f"making {seconds:g} s of source", file=sys.stderr)
    short = camera_clip(ffmpeg, rig.media / "source.mp4", seconds)
    repeats = {number: repeat(ffmpeg, short, number) for number in {REPEATS.get(preset, 1) for preset in presets}}
    warm = camera_clip(ffmpeg, rig.media / "warm.mp4", 1)
    rig.start_feeder(60)
    runs = []
    for jobs in sorted({1, cores(), 2 * cores()}):
        rig.env = {**rig.env, "NOMMERD_WORKER__SLOTS": str(jobs)}
        worker = rig.start_worker(f"w{jobs}")
        rig.wait_finished(rig.submit(warm, rig.media / "warm.m4a", preset="audio-aac", overwrite=True), 120)
        for preset in presets:
            number = REPEATS.get(preset, 1)
            runs.append(run(rig, worker, repeats[number], preset, jobs, number * seconds))
            shown = runs[-1]
            print(f"{preset:<10} {jobs:>3} at once {shown.speed:8.2f}x real time, {shown.cpu_seconds:7.1f} s of processors in "
                  f"{shown.wall_seconds:6.1f} s, {shown.memory_mb:5.0f} MB, others {shown.others:.0%}", file=sys.stderr)
        worker.stop(30)
    return sorted(runs, key=lambda one: (presets.index(one.preset), one.jobs))


def repeat(ffmpeg: Path, source: Path, times: int) -> Path:
    """The same, so many times in a row, not encoded again."""
    if times == 1:
        return source
    target = source.with_name(f"source-{times}.mp4")
    subprocess.run([str(ffmpeg), "-nostdin", "-loglevel", "error", "-y", "-stream_loop", str(times - 1), "-i", str(source),
                    "-c", "copy", str(target)], check=True)
    return target


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return os.uname().machine


def main() -> None:
    runtime.patch()
    from nommerd.media.binaries import find
    from tests.rig import Rig

    options = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    options.add_argument("--seconds", type=float, default=SOURCE_SECONDS, help="length of the source (%(default)g)")
    options.add_argument("--preset", action="append", choices=PRESETS, help="this one only; may be repeated")
    options.add_argument("--write", action="store_true", help="into measured.json and docs/deploy.md")
    given = options.parse_args()
    if given.write and given.preset:
        options.error("--write needs all presets")
    found = find(None, None)
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        runs = measure(rig, found.ffmpeg, tuple(given.preset or PRESETS), given.seconds)
    measured = Measured(date=f"{datetime.now(UTC):%Y-%m-%d}", processor=processor(), cores=cores(), ffmpeg=found.version,
                        runs=tuple(replace(one, others=round(one.others, 3)) for one in runs))
    for name, text in costs.tables(measured).items():
        print(f"{name}:\n\n{text}\n")
    if given.write:
        save(measured)
        write_tables(costs.tables(measured))


if __name__ == "__main__":
    main()
