"""Outputs held to what was promised of them, on real files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from nommerd.errors import EncoderError, InputError, NommerdError, ShuttingDown, Stop
from nommerd.media.probe import Probe
from nommerd.media.verify import Expectation, StreamExpectation, Warned, verify_file
from tests import media, stages

PICTURE = StreamExpectation(kind="video", codec="h264", width=320, height=180, pixel_format="yuv420p",
                            sample_aspect_ratio=Fraction(1))
SOUND = StreamExpectation(kind="audio", codec="aac", sample_rate=48_000, channels=2)
GOOD = Expectation(source_name="film.mov", streams=(PICTURE, SOUND), duration_seconds=2.0, frame_seconds=0.04, fast_start=True)


def film(**more: object) -> Path:
    return media.clip(seconds=2, size="320x180", **more)  # type: ignore[arg-type]


def verify(path: Path, expectation: Expectation = GOOD, frames: int | None = 50, build: str = "path",
           decode: str = "key_frames") -> tuple[Probe, list[Warned]]:
    return verify_file(stages.binaries(build), path, expectation, frames, Stop(), decode=decode)  # type: ignore[arg-type]


def refused(call: Callable[[], object]) -> NommerdError:
    with pytest.raises(NommerdError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("decode", ["key_frames", "full"])
@pytest.mark.parametrize("build", media.BUILDS)
def test_what_is_as_promised_passes_without_a_word(build: str, decode: str) -> None:
    found, warnings = verify(film(), build=build, decode=decode)
    assert warnings == [] and found.video[0].packets == 50


@pytest.mark.parametrize("build", media.BUILDS)
def test_sound_alone_passes(build: str) -> None:
    assert verify(media.clip(seconds=2, container="m4a"), replace(GOOD, streams=(SOUND,)), None, build)[1] == []


@pytest.mark.parametrize("build", media.BUILDS)
def test_pictures_whose_decoder_takes_a_skipped_frame_for_an_error_pass(build: str) -> None:
    theora = film(container="mkv", video_codec="libtheora")
    assert verify(theora, replace(GOOD, streams=None, fast_start=False), None, build)[1] == []


@pytest.mark.parametrize("change", [
    {"codec": "hevc"}, {"width": 640}, {"height": 360}, {"pixel_format": "yuv444p"}, {"sample_aspect_ratio": Fraction(4, 3)},
])
def test_a_picture_that_differs_is_refused(change: dict[str, object]) -> None:
    wrong = replace(PICTURE, **change)  # type: ignore[arg-type]
    error = refused(lambda: verify(film(), replace(GOOD, streams=(wrong, SOUND))))
    assert isinstance(error, EncoderError) and error.code == "encoder.wrong_output" and not error.retryable
    assert next(iter(change)).replace("_", " ") in error.message


@pytest.mark.parametrize("change", [{"codec": "mp3"}, {"sample_rate": 44_100}, {"channels": 1}])
def test_sound_that_differs_is_refused(change: dict[str, object]) -> None:
    wrong = replace(SOUND, **change)  # type: ignore[arg-type]
    assert refused(lambda: verify(film(), replace(GOOD, streams=(PICTURE, wrong)))).code == "encoder.wrong_output"


def test_a_missing_track_is_refused() -> None:
    assert refused(lambda: verify(film(audio=False))).code == "encoder.wrong_output"


def test_a_frame_too_few_is_refused() -> None:
    error = refused(lambda: verify(film(), frames=51))
    assert error.code == "encoder.wrong_output" and "51" in error.message and "50" in error.message


def test_an_index_at_the_end_is_refused_where_fast_start_was_promised() -> None:
    assert refused(lambda: verify(film(faststart=False))).code == "encoder.wrong_output"


def test_shorter_than_the_source_declares_is_the_sources_fault() -> None:
    error = refused(lambda: verify(film(), replace(GOOD, duration_seconds=10.0)))
    assert isinstance(error, InputError) and error.code == "input.truncated"
    assert str(error).startswith("input.truncated: film.mov declares 10.00 s, 2.0")
    assert not error.retryable


@pytest.mark.parametrize(("declared", "frame_seconds", "truncated"), [
    (2.45, 0.04, False), (2.6, 0.04, True), (3.9, 1.0, False), (4.3, 1.0, True),
])
def test_half_a_second_or_two_frames_may_be_missing(declared: float, frame_seconds: float, truncated: bool) -> None:
    promised = replace(GOOD, duration_seconds=declared, frame_seconds=frame_seconds)
    if truncated:
        assert refused(lambda: verify(film(), promised)).code == "input.truncated"
    else:
        assert verify(film(), promised)[1] == []


def test_an_estimated_length_only_warns() -> None:
    _, warnings = verify(film(), replace(GOOD, duration_seconds=10.0, duration_certain=False))
    assert [code for code, _, _ in warnings] == ["input.shorter"]


def test_an_unknown_length_only_warns_and_no_promise_says_nothing() -> None:
    _, warnings = verify(film(), replace(GOOD, duration_seconds=None, duration_certain=False))
    assert [code for code, _, _ in warnings] == ["input.duration_unknown"]
    assert verify(film(), replace(GOOD, duration_seconds=None))[1] == []


def test_longer_than_declared_only_warns() -> None:
    _, warnings = verify(film(), replace(GOOD, duration_seconds=1.0))
    assert [code for code, _, _ in warnings] == ["input.longer"]


def test_a_source_that_can_be_read_to_its_end_is_not_called_truncated() -> None:
    whole = media.clip(seconds=4, size="320x180")
    promised = replace(GOOD, duration_seconds=4.0, source=whole, tracks=(0, 1))
    assert [code for code, _, _ in verify(film(), promised)[1]] == ["input.shorter"]


@pytest.mark.parametrize("build", media.BUILDS)
def test_an_output_with_broken_pictures_is_refused(tmp_path: Path, build: str) -> None:
    path = media.copy(film(gop=10), tmp_path / "a.mp4")
    body = bytearray(path.read_bytes())
    start = body.index(b"mdat") + 700
    body[start : start + 2000] = bytes(2000)
    path.write_bytes(body)
    assert refused(lambda: verify(path, build=build)).code == "encoder.wrong_output"
    _, warnings = verify(path, replace(GOOD, copied=True), build=build)
    assert [code for code, _, _ in warnings] == ["input.damaged"]


def test_an_output_cut_short_behind_our_back_is_refused(tmp_path: Path) -> None:
    path = media.copy(media.cut(film(), 0.7), tmp_path / "a.mp4")
    assert refused(lambda: verify(path)).code in ("encoder.wrong_output", "input.truncated")


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    assert refused(lambda: verify(tmp_path / "a.mp4", frames=0)).code == "input.truncated"
    assert refused(lambda: verify(tmp_path / "a.mp4", frames=50)).code == "encoder.wrong_output"
    assert refused(lambda: verify(tmp_path / "a.mp4", Expectation(), 0)).code == "encoder.wrong_output"


def test_a_stop_ends_the_verification() -> None:
    stop = Stop()
    stop.set(ShuttingDown())
    with pytest.raises(ShuttingDown):
        verify_file(stages.binaries(), film(), GOOD, 50, stop)
