"""The measurement behind docs/deploy.md's tables, on a second of source."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import ffmpeg, ffprobe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_sizing_measures_real_jobs_and_prints_their_tables() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.sizing", "--seconds", "1", "--preset", "audio-aac"], cwd=ROOT,
                          capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    speeds = re.search(r"`audio-aac` \| ([\d.]+)× .* (\d+) MB \|", done.stdout)
    assert speeds, done.stdout
    assert float(speeds[1]) > 0
    assert 10 < int(speeds[2]) < 1000
    assert "$" in done.stdout.partition("costs:")[2]


def test_the_source_is_what_a_camera_makes(tmp_path: Path) -> None:
    """Its size, rate and length, a second stream for the sound, and pictures that take a camera's bits."""
    from benchmarks.source import camera_clip

    clip = camera_clip(ffmpeg(), tmp_path / "clip.mp4", 0.5)
    asked = subprocess.run([str(ffprobe()), "-v", "error", "-show_streams", "-of", "json", str(clip)], capture_output=True,
                           check=True)
    video, audio = json.loads(asked.stdout)["streams"]
    assert (video["width"], video["height"], video["avg_frame_rate"], int(video["nb_frames"])) == (1920, 1080, "30/1", 15)
    assert (audio["codec_name"], audio["channels"]) == ("aac", 2)
    assert 10_000_000 < int(video["bit_rate"]) < 60_000_000
