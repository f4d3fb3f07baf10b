"""What a recipe would do, told without running anything."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nommerd.api.explain import assumed_binaries
from nommerd.errors import InputError
from nommerd.media.info import Probe, StreamInfo
from nommerd.pipeline.context import Task
from nommerd.pipeline.explain import Explained, explain
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.faststart import Faststart, FaststartSettings
from nommerd.pipeline.stages.fetch import Fetch
from nommerd.pipeline.stages.ffmpeg import merge_passes
from nommerd.pipeline.stages.upload import Upload
from nommerd.pipeline.stages.verify import Verify, VerifySettings
from tests.stages import ffmpeg

PICTURE = StreamInfo(index=0, kind="video", codec="h264", width=1920, height=1080, pixel_format="yuv420p",
                     average_frame_rate=Fraction(25), frame_rate=Fraction(25), duration_seconds=60.0)
SOUND = StreamInfo(index=1, kind="audio", codec="aac", channels=2, sample_rate=48_000, duration_seconds=60.0, default=True)
FILM = Probe(path=Path("x"), container="mp4", size=0, duration_seconds=60.0, streams=(PICTURE, SOUND))
WEB = {"video": {"codec": "h264", "width": 1280, "height": 720}, "audio": {"codec": "aac"}}


def told(*stages: Stage, source: Probe = FILM, dest: str = "file:///out/", **task: Any) -> Explained:
    whole = [Fetch("fetch", None), *stages, Upload("upload", Upload.Settings())]
    given = Task(job_id="", token=1, attempt=1, source="file:///in/Film.mov", dest=dest, **task)
    return explain(merge_passes(whole), source, given, assumed_binaries(None), 3)


def picture(**changes: Any) -> Probe:
    return replace(FILM, streams=(replace(PICTURE, **changes), SOUND))


def codes(explained: Explained) -> list[str]:
    return [warning.code for warning in explained.warnings]


def stages_of(explained: Explained) -> list[str]:
    return [command["stage"] for command in explained.commands]


@pytest.mark.parametrize(("source", "code"), [
    (FILM, None),
    (picture(width=640, height=360), "explain.not_enlarged"),
    (picture(color_transfer="smpte2084", pixel_format="yuv420p10le"), "explain.tone_mapped"),
    (picture(field_order="tt"), "explain.deinterlaced"),
    (picture(average_frame_rate=Fraction(120), frame_rate=Fraction(120)), "explain.frame_rate"),
    (replace(FILM, streams=(PICTURE,)), "explain.no_sound"),
])
def test_what_is_worth_knowing_of_a_source_is_told(source: Probe, code: str | None) -> None:
    assert codes(told(ffmpeg(**WEB), source=source)) == ([code] if code else [])


def test_a_warning_that_the_job_would_have_is_there_too() -> None:
    sound = replace(SOUND, channels=16)
    assert codes(told(ffmpeg(**WEB), source=replace(FILM, streams=(PICTURE, sound)))) == ["input.channels_dropped"]


def test_an_output_is_called_by_its_destination_or_within_it() -> None:
    def name(dest: str) -> object:
        return told(ffmpeg(**WEB), dest=dest).outputs[0]["name"]

    assert (name("s3://bucket/a/b.mp4"), name("file:///out/"), name("")) == ("b.mp4", "Film.mp4", "Film.mp4")


def test_a_stage_that_takes_what_flags_have_made_is_left_open_and_marked() -> None:
    explained = told(ffmpeg("raw", options=[["c:v", "libx264"], ["vf", "scale=-2:90"], ["f", "mp4"]]),
                     ffmpeg("small", input="raw", **WEB))
    assert stages_of(explained) == ["fetch", "raw"]
    assert explained.outputs == [{"stage": "small", "name": "Film-small.mp4", "container": None, "duration_seconds": None,
                                  "streams": None}]
    assert {(warning.code, warning.stage) for warning in explained.warnings} == {
        ("explain.unknown_input", "small"), ("explain.unknown_input", "upload")}


@pytest.mark.parametrize(("options", "copies"), [
    ([["c", "copy"], ["f", "mp4"]], True), ([["c", "copy"], ["f", "mp4"], ["movflags", "+faststart"]], False)])
def test_the_copy_for_a_fast_start_is_told_only_where_it_is_made(options: list[list[str]], copies: bool) -> None:
    explained = told(ffmpeg("raw", options=options), Faststart("front", FaststartSettings()))
    assert ("front" in stages_of(explained)) is copies and codes(explained) == []
    assert len(explained.outputs) == 1 and explained.outputs[0]["stage"] == "front"


def test_a_fast_start_of_the_source_may_not_be_needed() -> None:
    assert codes(told(Faststart("front", FaststartSettings(input="source")))) == ["explain.perhaps"]


def test_a_fast_start_of_what_has_none_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        told(ffmpeg("raw", options=[["c", "copy"], ["f", "matroska"]]), Faststart("front", FaststartSettings()))
    assert caught.value.code == "recipe.not_mp4"


def test_a_verify_stage_takes_the_work_of_the_one_before_the_upload() -> None:
    explained = told(ffmpeg(**WEB), Verify("check", VerifySettings(decode="full")))
    assert stages_of(explained) == ["fetch", "ffmpeg", "check", "check"]
    assert "-skip_frame:v" not in explained.commands[-1]["argv"]


@pytest.mark.parametrize(("options", "streams"), [
    ([["c:v", "libx265"], ["c:a", "libopus"], ["s", "640x360"], ["r", "30"], ["ac", "1"], ["ar", "24000"], ["f", "matroska"]],
     [("hevc", 640, 360, 30.0, None, None), ("opus", None, None, None, 24000, 1)]),
    ([["vn", None], ["f", "mp3"]], [("mp3", None, None, None, 48000, 2)]),
    ([["c", "copy"], ["an", None], ["f", "mov"]], [("h264", 1920, 1080, 25.0, None, None)]),
    ([["vf", "fps=5"], ["an", None], ["f", "mp4"]], [("h264", None, None, None, None, None)]),
    ([["f", "avi"]], [("unknown", 1920, 1080, 25.0, None, None), ("unknown", None, None, None, 48000, 2)]),
    ([["map", "0"], ["c", "copy"], ["f", "mp4"]], None),
])
def test_flags_say_what_they_say_and_the_rest_is_open(options: list[list[str | None]], streams: list[Any] | None) -> None:
    output, = told(ffmpeg("raw", options=options)).outputs
    names = ("codec", "width", "height", "frame_rate", "sample_rate", "channels")
    found = output["streams"] and [tuple(stream.get(name) for name in names) for stream in output["streams"]]
    assert found == streams


def test_an_operators_own_stage_is_marked() -> None:
    class Own(Stage):
        name = "own"

        def run(self, context: object) -> None:
            raise NotImplementedError

    assert [(w.code, w.stage) for w in told(ffmpeg(**WEB), Own("mine", None)).warnings] == [("explain.unknown_stage", "mine")]


def test_on_damage_is_in_the_command() -> None:
    def strict(explained: Explained) -> bool:
        return "-xerror" in explained.commands[1]["argv"]

    assert strict(told(ffmpeg(on_damage="fail", **WEB))) and strict(told(ffmpeg(**WEB), on_damage="fail"))
    assert not strict(told(ffmpeg(**WEB)))
