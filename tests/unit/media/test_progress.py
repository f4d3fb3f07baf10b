"""ffmpeg's progress blocks, from the words of two versions and from the real programs."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nommerd.media.progress import Progress, ProgressReader, eta_seconds, fraction
from tests import media

FROM_5_1 = """frame=51
fps=25.10
stream_0_0_q=29.0
bitrate=1013.4kbits/s
total_size=262192
out_time_us=2040000
out_time_ms=2040000
out_time=00:00:02.040000
dup_frames=3
drop_frames=1
speed=3.64x
progress=continue
"""
FROM_9_BEFORE_THE_FIRST_FRAME = """frame=0
fps=0.00
stream_0_0_q=0.0
bitrate=N/A
total_size=0
out_time_us=N/A
out_time_ms=N/A
out_time=N/A
dup_frames=0
drop_frames=0
speed=N/A
progress=continue
"""
SOUND_ONLY = """bitrate= 732.5kbits/s
total_size=2126
out_time_us=23220
out_time_ms=23220
out_time=00:00:00.023220
dup_frames=0
drop_frames=0
speed=1.36e+03x
progress=end
"""
BEFORE_ZERO = """frame=1
total_size=N/A
out_time_us=-9223372036854775807
out_time_ms=-9223372036854775807
out_time=-2562047788:00:54.775807
speed=   0x
progress=continue
"""


def read(text: str, reader: ProgressReader | None = None) -> list[Progress]:
    reader = reader or ProgressReader()
    return [block for block in map(reader.feed, text.splitlines()) if block is not None]


def test_a_block_is_parsed_whole_at_its_last_line() -> None:
    reader = ProgressReader()
    lines = FROM_5_1.splitlines()
    assert [reader.feed(line) for line in lines[:-1]] == [None] * (len(lines) - 1)
    assert reader.feed(lines[-1]) == Progress(frame=51, out_seconds=2.04, speed=3.64, bytes=262192, dup=3, drop=1, done=False)


def test_what_ffmpeg_does_not_know_is_none() -> None:
    assert read(FROM_9_BEFORE_THE_FIRST_FRAME) == [Progress(frame=0, bytes=0, dup=0, drop=0)]


def test_sound_without_picture_has_no_frames_and_speed_may_have_an_exponent() -> None:
    assert read(SOUND_ONLY) == [Progress(out_seconds=0.02322, speed=1360.0, bytes=2126, dup=0, drop=0, done=True)]


def test_a_time_before_zero_is_not_known() -> None:
    assert read(BEFORE_ZERO) == [Progress(frame=1, speed=0.0)]


def test_values_of_one_block_do_not_leak_into_the_next() -> None:
    assert read("frame=10\nprogress=continue\nprogress=continue\n")[1] == Progress()


def test_a_block_like_the_one_before_is_no_advance() -> None:
    reader = ProgressReader()
    for line in FROM_5_1.splitlines():
        reader.feed(line)
    assert reader.advanced
    for line in FROM_5_1.splitlines():
        reader.feed(line)
        assert not reader.advanced


@pytest.mark.parametrize("line", ["frame=52", "out_time_us=2040001", "total_size=262193"])
def test_more_frames_time_or_bytes_each_are_an_advance(line: str) -> None:
    reader = ProgressReader()
    for before in FROM_5_1.splitlines():
        reader.feed(before)
    key = line.partition("=")[0]
    for after in FROM_5_1.splitlines():
        reader.feed(line if after.startswith(f"{key}=") else after)
    assert reader.advanced


def test_a_step_back_and_forth_again_is_no_advance_beyond_the_furthest() -> None:
    reader = ProgressReader()
    advances = []
    for frame in (10, 5, 10, 11):
        reader.feed(f"frame={frame}")
        reader.feed("progress=continue")
        advances.append(reader.advanced)
    assert advances == [True, False, False, True]


def test_no_first_frame_is_no_advance_yet() -> None:
    reader = ProgressReader()
    read(FROM_9_BEFORE_THE_FIRST_FRAME, reader)
    assert not reader.advanced


@given(st.lists(st.text() | st.sampled_from(["progress=end", "frame=nan", "out_time_us=1e999", "speed=x", "total_size=--1"])))
def test_no_text_whatsoever_breaks_the_reader(lines: list[str]) -> None:
    reader = ProgressReader()
    for line in lines:
        reader.feed(line)


def test_the_fraction_comes_from_frames_where_there_is_video_else_from_time() -> None:
    progress = Progress(frame=50, out_seconds=9.0)
    assert fraction(progress, 100, 10.0) == 0.5
    assert fraction(progress, None, 10.0) == 0.9
    assert fraction(Progress(out_seconds=2.5), 100, 10.0) == 0.25
    assert fraction(progress, 40, None) == 1.0
    assert fraction(progress, None, None) is None
    assert fraction(Progress(done=True), None, None) == 1.0


def test_the_eta_comes_from_what_passed_and_early_on_from_the_speed() -> None:
    assert eta_seconds(Progress(frame=25), 0.25, 30.0) == 90.0
    assert eta_seconds(Progress(out_seconds=10.0, speed=2.0), 0.001, 5.0, 110.0) == 50.0
    assert eta_seconds(Progress(speed=2.0), None, 0.1) is None
    assert eta_seconds(Progress(), 0.0, 5.0, 100.0) is None
    assert eta_seconds(Progress(done=True), 1.0, 5.0) == 0.0


@pytest.mark.parametrize("build", media.BUILDS)
def test_a_real_ffmpeg_ends_at_its_last_frame(build: str) -> None:
    ffmpeg, _ = media.build(build)
    said = subprocess.run([ffmpeg, "-nostdin", "-v", "error", "-nostats", "-progress", "pipe:1", "-f", "lavfi", "-i",
                           "testsrc2=size=64x64:rate=25:duration=3", "-f", "null", "-"],
                          capture_output=True, text=True, check=True, timeout=60).stdout
    last = read(said)[-1]
    assert (last.frame, last.out_seconds, last.done) == (75, 3.0, True)
    assert last.speed


@pytest.mark.parametrize("build", media.BUILDS)
def test_a_real_ffmpeg_reports_sound_by_time_and_bytes(build: str) -> None:
    ffmpeg, _ = media.build(build)
    said = subprocess.run([ffmpeg, "-nostdin", "-v", "error", "-nostats", "-progress", "pipe:1", "-f", "lavfi", "-i",
                           "sine=duration=3", "-f", "wav", "-y", "/dev/null"],
                          capture_output=True, text=True, check=True, timeout=60).stdout
    last = read(said)[-1]
    assert last.frame is None
    assert last.out_seconds == pytest.approx(3.0, abs=0.01)
    assert last.bytes is not None and last.bytes > 3 * 44100 * 2
