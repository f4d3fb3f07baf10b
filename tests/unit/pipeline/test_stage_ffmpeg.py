"""The ffmpeg stage: what its settings accept, what it says about the rest, and how it runs, fails and stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from pydantic import ValidationError

from nommerd.errors import CancelRequested, EncoderError, InfrastructureError, InputError, NommerdError, Stop
from nommerd.pipeline.context import SOURCE
from nommerd.pipeline.stages.ffmpeg import Ffmpeg, merge_passes
from nommerd.pipeline.stages.verify import Verify, VerifySettings, verify_outputs
from tests import media, stages

X264 = [["c:v", "libx264"], ["preset", "ultrafast"], ["b:v", "300k"]]
QUICK = {"codec": "h264", "encoder_preset": "ultrafast"}
SOUND = {"codec": "aac", "bitrate": "64k"}


def faults(**settings: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        stages.parse(**settings)
    return [(error["type"], error["msg"]) for error in caught.value.errors()]


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"options": X264}, {"pass_": 1, "options": X264, "input_options": [["ss", "5"]]}, {"options": [["crf", 0], ["an", None]]},
    {"video": {}}, {"audio": {}}, {"audio": [{"name": "stereo"}]},
    {"video": QUICK, "audio": SOUND, "output": {"container": "mkv"}},
    {"passes": 2, "video": {"bitrate": "2500k", "encoder": ["libx264"]}},
    {"video": {"codec": "copy"}, "audio": {"codec": "copy"}},
    {"video": {"encoder_preset": 8, "codec": "av1"}}, {"clip": {"start": "10s", "end": "1:30"}, "video": {"crf": 21.5}},
    {"audio": {"codec": "pcm_s24le", "tracks": "all"},
     "video": {"codec": "prores", "profile": "hq", "pixel_format": "yuv422p10le"},
     "metadata": {"keep": "all", "timecode": True, "chapters": True}, "output": {"container": "mov"}},
])
def test_these_settings_are_right(settings: dict[str, Any]) -> None:
    stages.parse(**settings)


@pytest.mark.parametrize(("settings", "words"), [
    ({}, "nothing to make"),
    ({"options": X264, "video": QUICK}, "`options` belongs to the raw form and `video` to the typed one"),
    ({"pass_": 1}, "the raw form needs `options`"),
    ({"options": [["vf", "scale=1280", 720]]}, "expected [name, value], got 3 items: quote a value that holds a comma"),
    ({"options": [["an"]]}, "got 1 item: write [name, null] for a bare flag"),
    ({"options": ["an"]}, "expected [name, value]"),
    ({"options": [["an", False]]}, "`an` cannot be false: write null for a bare flag, or 0"),
    ({"options": [["-an", None]]}, "no dash in front"),
    ({"options": [["vf", ["a"]]]}, "one plain value"),
    ({"video": {"crf": 20, "bitrate": "1M"}}, "`bitrate` and `crf` exclude each other"),
    ({"video": {"fit": "crop", "width": 100}}, "needs both `width` and `height`"),
    ({"video": {"bitrate": "fast"}}, "expected a bit rate"),
    ({"video": {"codec": "copy", "width": 100}}, "goes with no `width`"),
    ({"video": {"encoder": ["mpeg4"]}}, "`mpeg4` is no encoder for h264"),
    ({"video": {"codec": "prores", "bitrate": "1M"}}, "`profile` decides"),
    ({"video": QUICK, "clip": {"start": 5, "end": 5}}, "`end` must come after `start`"),
    ({"video": {"codec": "copy"}, "clip": {"end": 5}}, "a clip cannot be copied"),
    ({"video": QUICK, "output": {"container": "webm"}}, "h264 cannot live in webm"),
    ({"video": QUICK, "audio": {"codec": "mp3"}, "output": {"container": "mp3"}}, "mp3 holds no pictures"),
    ({"audio": {"codec": "aac", "sample_rate": 47000}}, "takes no sample rate of 47000"),
    ({"audio": {"codec": "mp3", "channels": 6}}, "at most 2 channels"),
    ({"audio": {"codec": "flac", "bitrate": "1M"}}, "no bit rate to set"),
    ({"video": QUICK, "output": {"file": "../x.mp4"}}, "plain name"),
])
def test_what_is_wrong_is_said(settings: dict[str, Any], words: str) -> None:
    assert any(words in message for _, message in faults(**settings)), faults(**settings)


@pytest.mark.parametrize("settings", [
    {"passes": 2, "video": {"crf": 21}}, {"passes": 2, "video": {"codec": "hevc", "bitrate": "1M"}},
    {"passes": 2, "video": QUICK},
    {"passes": 2, "audio": SOUND}, {"passes": 2, "video": {"codec": "h264", "encoder": ["libopenh264"], "bitrate": "1M"}},
])
def test_two_passes_that_would_measure_nothing_are_refused(settings: dict[str, Any]) -> None:
    assert [kind for kind, _ in faults(**settings)] == ["two_pass"]


@pytest.mark.parametrize("settings", [
    {"video": QUICK, "renditions": []}, {"video": {**QUICK, "overlays": []}}, {"video": {**QUICK, "copy_when": {}}},
    {"audio": {**SOUND, "loudness": {"lufs": -16}}}, {"audio": {**SOUND, "copy_when": {}}}, {"audio": [SOUND, SOUND]},
    {"video": QUICK, "output": {"separate": True}}, {"audio": SOUND, "metadata": {"cover": True}},
])
def test_what_comes_later_is_refused_as_not_yet_supported(settings: dict[str, Any]) -> None:
    assert "not_yet_supported" in [kind for kind, _ in faults(**settings)]


# --- passes -------------------------------------------------------------------------------------------------------


def test_a_run_of_passes_is_one_stage_under_the_first_id() -> None:
    first, second, other = (stages.ffmpeg(id, pass_=number, options=X264) for id, number in (("a", 1), ("b", 2), ("c", 1)))
    check = Verify("verify", VerifySettings())
    merged = merge_passes([first, second, check, other])
    assert [stage.id for stage in merged] == ["a", "verify", "c"]
    assert isinstance(merged[0], Ffmpeg) and len(merged[0].passes) == 2


def test_passes_that_do_not_follow_each_other_stay_apart() -> None:
    listed = [stages.ffmpeg("a", pass_=1, options=X264), stages.ffmpeg("b", pass_=1, options=X264),
              stages.ffmpeg("c", options=X264)]
    assert merge_passes(listed) == listed


def test_explain_runs_nothing(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    commands = stages.ffmpeg(passes=2, video={**QUICK, "bitrate": "300k"}, audio=SOUND).explain(made)
    assert [command.label for command in commands] == ["pass 1", "pass 2"]
    assert list(tmp_path.iterdir()) == []
    assert stages.ffmpeg(input="later", video=QUICK).explain(made) == ()


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("id", "settings", "leaf"), [
    ("ffmpeg", {"audio": SOUND}, "My film.m4a"), ("small", {"audio": SOUND}, "My film-small.m4a"),
    ("ffmpeg", {"audio": SOUND, "output": {"file": "${source.stem}-x.m4a"}}, "My film-x.m4a"),
])
def test_an_output_has_a_name_for_a_folder(tmp_path: Path, id: str, settings: dict[str, Any], leaf: str) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, container="wav"), name="My film.mov")
    stages.ffmpeg(id, **settings).run(made)
    assert made.files[id].leaf == leaf and made.files[id].path.parent == tmp_path
    assert made.files[SOURCE].consumed and made.last_media == id


def test_a_name_that_cannot_be_made_is_the_recipes_fault(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, container="wav"))
    with pytest.raises(InputError) as caught:
        stages.ffmpeg(audio=SOUND, output={"file": "${rendition.name}.m4a"}).run(made)
    assert caught.value.code == "recipe.bad_setting"


# --- how it ends --------------------------------------------------------------------------------------------------


def failure(call: Callable[[], object]) -> NommerdError:
    with pytest.raises(NommerdError) as caught:
        call()
    return caught.value


def slow() -> Ffmpeg:
    """A stage that works for longer than any test waits: two seconds of film take forty."""
    return stages.ffmpeg(options=[["c:v", "libx264"], ["preset", "ultrafast"], ["vf", "realtime=speed=0.05"]])


def until_running(workspace: Path) -> int:
    """The process id of the ffmpeg that works in `workspace`."""
    with gevent.Timeout(20, AssertionError("no ffmpeg was started")):
        while True:
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"file:{workspace}/out-".encode() in words and words.startswith(bytes(stages.binaries().ffmpeg)):
                    return int(entry.name)
            gevent.sleep(0.02)


def test_a_killed_ffmpeg_is_an_error_that_is_retried(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    work = gevent.spawn(lambda: failure(lambda: slow().run(made)))
    os.kill(until_running(tmp_path), signal.SIGKILL)
    error = work.get(timeout=20)
    assert isinstance(error, EncoderError) and error.code == "encoder.killed" and error.retryable
    assert "SIGKILL" in error.message


def test_a_cancelled_job_stops_its_ffmpeg(tmp_path: Path) -> None:
    stop = Stop()
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"), stop=stop)
    work = gevent.spawn(lambda: slow().run(made))
    pid = until_running(tmp_path)
    stop.set(CancelRequested())
    with pytest.raises(CancelRequested):
        work.get(timeout=5)
    assert not Path(f"/proc/{pid}").exists()


def test_a_standstill_is_ended_and_retried(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"), stall_seconds=1.5)
    work = gevent.spawn(lambda: failure(lambda: slow().run(made)))
    os.kill(until_running(tmp_path), signal.SIGSTOP)
    error = work.get(timeout=30)
    assert error.code == "encoder.stalled" and error.retryable


def test_options_that_ffmpeg_refuses_are_not_retried_and_not_the_inputs_fault(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    error = failure(lambda: stages.ffmpeg(options=[["c:v", "libx264"], ["nonsense", "3"]]).run(made))
    assert isinstance(error, EncoderError) and error.code == "encoder.failed" and not error.retryable
    assert "nonsense" in error.message and str(tmp_path) not in str(error)


def test_an_input_that_cannot_be_decoded_is_the_inputs_fault(tmp_path: Path) -> None:
    path = media.copy(media.clip(seconds=2, size="320x180", audio=False), tmp_path / "in.mp4")
    body = bytearray(path.read_bytes())
    start = body.index(b"mdat") + 4
    body[start:] = bytes(len(body) - start)
    path.write_bytes(body)
    made = stages.context(tmp_path, path)
    assert failure(lambda: stages.ffmpeg(video=QUICK).run(made)).code in ("input.unreadable", "input.damaged")


def test_a_full_disk_is_retried(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    (tmp_path / "out-ffmpeg.mp4").symlink_to("/dev/full")
    error = failure(lambda: stages.ffmpeg(options=[["c:v", "libx264"], ["f", "mp4"]]).run(made))
    assert isinstance(error, InfrastructureError) and error.code == "node.disk_full" and error.retryable


def test_a_first_pass_that_measures_nothing_is_an_error(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=1, size="160x90"))
    flags = [["c:v", "prores_ks"]]  # knows no passes: it writes an empty log, and exits 0
    two = merge_passes([stages.ffmpeg("a", pass_=1, options=flags), stages.ffmpeg("b", pass_=2, options=flags)])[0]
    assert failure(lambda: two.run(made)).code == "encoder.empty_pass_log"
    assert [path.stat().st_size for path in tmp_path.glob("*.log")] == [0]


def test_progress_goes_up_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[float, float | None]] = []
    made = stages.context(tmp_path, media.clip(seconds=10))
    made.on_progress = lambda fraction, eta, speed: seen.append((fraction, speed))
    stages.ffmpeg(passes=2, video={"codec": "h264", "encoder_preset": "veryfast", "bitrate": "1M"}).run(made)
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert 0.4 in fractions  # the first pass, which is the quicker one
    assert (seen[-1][1] or 0.0) > 0.1  # media seconds a second


def test_a_later_stage_takes_an_earlier_ones_file(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    stages.ffmpeg("a", video=QUICK).run(made)
    stages.ffmpeg("b", input="a", video={**QUICK, "width": 160, "height": 90}).run(made)
    assert [file.stage_id for file in made.unpublished] == ["b"]
    verify_outputs(made)
    found = made.files["b"].probe
    assert found is not None and found.video[0].width == 160 and made.files["b"].verified
