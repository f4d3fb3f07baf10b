"""What ffmpeg's end means, by its exit and by its words, of 5.1 and newer."""

from __future__ import annotations

from pathlib import Path

import pytest

from nommerd.errors import EncoderError, InfrastructureError
from nommerd.media.outcome import damage_count, damaged, last_words, only_cut_wave, stopped_from_outside
from nommerd.media.process import Exit

W = Path("/scratch/job-1")


@pytest.mark.parametrize("line", [
    "[mpegts @ 0x55] [warning] Packet corrupt (stream = 0, dts = 214490).",
    "[warning] file:l.ts: corrupt input packet in stream 0",
    "[h264 @ 0x55] [error] error while decoding MB 16 9", "[matroska,webm @ 0x55] [error] File ended prematurely",
    "[in#0/matroska,webm @ 0x55] [error] File ended prematurely",
    "[error] Error while decoding stream #0:0: Invalid data found",
    "[vist#0:0/h264 @ 0x5] [dec:h264 @ 0x6] [error] Decoding error: Invalid data found when processing input",
    "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x56] [error] stream 1, offset 0x58ce3: partial file",
    "[mp3float @ 0x5] [error] Header missing",
    "[aac @ 0x5] [error] Input buffer exhausted before END element found",
])
def test_damage_is_recognised(line: str) -> None:
    assert damage_count(line) == 1


@pytest.mark.parametrize("line", [
    "[swscaler @ 0x55] [warning] deprecated pixel format used, make sure you did set range correctly",
    "[mp4 @ 0x55] [warning] Application provided invalid, non monotonically increasing dts to muxer in stream 0",
    "[null @ 0x55] [error] Application provided invalid, non monotonically increasing dts to muxer in stream 0: 3 >= 3",
    "[mp3 @ 0x55] [warning] Estimating duration from bitrate, this may be inaccurate", "[libx264 @ 0x5] [error] bad thing",
    "[aac @ 0x5] [warning] Queue input is backward in time", "[warning] Guessed Channel Layout for Input Stream #0.0 : mono",
    "[out#0/mp4 @ 0x5] [error] Nothing was written", "frame=1", "",
])
def test_what_is_no_damage_is_left_alone(line: str) -> None:
    assert damage_count(line) == 0


def test_a_killed_ffmpeg_is_retried_and_the_reason_names_the_signal() -> None:
    error = stopped_from_outside(Exit(signal=9), W)
    assert isinstance(error, EncoderError) and error.code == "encoder.killed" and error.retryable
    assert "SIGKILL" in error.message and "memory" in error.hint
    crashed = stopped_from_outside(Exit(signal=11), W)
    assert crashed is not None and "SIGSEGV" in crashed.message and "memory" not in crashed.hint


def test_a_standstill_is_retried() -> None:
    error = stopped_from_outside(Exit(signal=15, stalled=True, seconds=120), W)
    assert isinstance(error, EncoderError) and error.code == "encoder.stalled" and error.retryable


@pytest.mark.parametrize("code", [0, 1])
def test_a_full_disk_is_retried_whatever_the_exit_code_says(code: int) -> None:
    error = stopped_from_outside(Exit(code=code, stderr="[error] av_interleaved_write_frame(): No space left on device"), W)
    assert isinstance(error, InfrastructureError) and error.code == "node.disk_full" and error.retryable


def test_an_ordinary_failure_is_none_of_these(tmp_path: Path) -> None:
    assert stopped_from_outside(Exit(code=1, stderr="[error] x"), tmp_path) is None
    assert stopped_from_outside(Exit(code=0), tmp_path) is None


def test_last_words_are_the_specific_ones_without_paths_and_hosts() -> None:
    stderr = ("[h264 @ 0x5] [error] first\n"
              "[error] Unrecognized option 'x' in /scratch/job-1/out.mp4 or /etc/passwd see http://h/x?k=1\n"
              "[fatal] Error splitting the argument list: Option not found\n[error] Conversion failed!")
    assert last_words(stderr, W) == "Unrecognized option 'x' in out.mp4 or … see …"
    assert last_words("", W) == ""
    assert len(last_words("[error] " + "x" * 5000, W)) <= 200


def test_damage_is_counted_in_words() -> None:
    assert "1 fault " in damaged("a.ts", 1).message and "12 faults" in damaged("a.ts", 12).message
    assert not damaged("a.ts", 1).retryable


@pytest.mark.parametrize("end", [
    "[wav @ 0x55] [warning] Packet corrupt (stream = 0, dts = NOPTS).\n[warning] file:p.wav: corrupt input packet in stream 0",
    "[in#0/wav @ 0x5b] [warning] Packet corrupt (stream = 0, dts = NOPTS).\n"
    "[in#0/wav @ 0x5b] [warning] corrupt input packet in stream 0",
])
def test_the_open_end_of_a_wav_file_is_told_from_damage(end: str) -> None:
    assert only_cut_wave(end)
    assert not only_cut_wave(end + "\n[error] Error while decoding stream #0:0: Invalid data found")
    assert not only_cut_wave(end.replace("wav @", "mpegts @")) and not only_cut_wave("")
