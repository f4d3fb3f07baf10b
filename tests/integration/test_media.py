"""Whole encodes on real files, by the ffmpeg in PATH and the wheels' alike: what comes out, and how bad sources are named."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent import socket as gsocket
from gevent.server import StreamServer

from nommerd.errors import InputError
from nommerd.media.mp4 import is_fast_start
from nommerd.media.probe import Probe
from nommerd.pipeline.context import Context
from nommerd.pipeline.stages.ffmpeg import Ffmpeg, merge_passes
from nommerd.pipeline.stages.verify import verify_outputs
from tests import media, stages

BUILDS = pytest.mark.parametrize("build", media.BUILDS)
SOUND = {"codec": "aac", "bitrate": "128k", "channels": 2, "sample_rate": 48_000}
PICTURE = {"codec": "h264", "encoder_preset": "ultrafast", "crf": 30, "width": 1280, "height": 720, "gop_seconds": 2}
WEB = {"video": PICTURE, "audio": SOUND, "output": {"container": "mp4"}}
REMUX = {"video": {"codec": "copy"}, "audio": {"codec": "copy", "tracks": "all"}, "output": {"container": "mp4"}}
SMALL = {"seconds": 4, "size": "320x180"}


def encode(workspace: Path, source: Path, build: str, stage: Ffmpeg | None = None, *, name: str | None = None,
           on_damage: str | None = None, **settings: Any) -> tuple[Context, Probe]:
    """Run the stage over the source and verify what came out."""
    made = stages.context(workspace, source, build=build, name=name, on_damage=on_damage)
    (stage or stages.ffmpeg(**settings)).run(made)
    verify_outputs(made, "full")
    found = made.files["ffmpeg"].probe
    assert found is not None
    return made, found


def refused(workspace: Path, source: Path, build: str, **settings: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        encode(workspace, source, build, **(settings or WEB))
    return caught.value


# --- what comes out -----------------------------------------------------------------------------------------------


@BUILDS
def test_two_passes_give_the_size_rate_and_sound_that_were_asked_for(tmp_path: Path, build: str) -> None:
    picture = {**PICTURE, "bitrate": "600k", "width": 640, "height": 480}
    del picture["crf"]
    source = media.clip(seconds=4, size="1280x720", rate=50, metadata={"title": "A film", "comment": "private"})
    made, found = encode(tmp_path, source, build, passes=2, video=picture, audio=SOUND)
    video, audio = found.streams
    assert (video.codec, video.width, video.height, video.pixel_format) == ("h264", 640, 360, "yuv420p")
    assert (video.average_frame_rate, video.sample_aspect_ratio, made.files["ffmpeg"].frames) == (50, 1, 200)
    assert (audio.codec, audio.sample_rate, audio.channels) == ("aac", 48_000, 2)
    assert is_fast_start(found.path) and made.warnings == []
    assert 420_000 < (video.bit_rate or 0) < 780_000
    assert found.tags["title"] == "A film" and "comment" not in found.tags
    assert found.duration_seconds == pytest.approx(4, abs=0.1)


@BUILDS
def test_raw_passes_as_two_stages_give_one_output(tmp_path: Path, build: str) -> None:
    flags = [["c:v", "libx264"], ["preset", "ultrafast"], ["b:v", "300k"], ["vf", "scale=-2:90"]]
    both = merge_passes([stages.ffmpeg("ffmpeg", pass_=1, options=flags),
                         stages.ffmpeg("ffmpeg-2", pass_=2, options=[*flags, ["c:a", "aac"], ["f", "mp4"]])])
    assert len(both) == 1 and isinstance(both[0], Ffmpeg)
    made, found = encode(tmp_path, media.clip(**SMALL), build, both[0])
    assert [(s.codec, s.height) for s in found.streams] == [("h264", 90), ("aac", None)]
    assert [file.stage_id for file in made.unpublished] == ["ffmpeg"] and made.files["ffmpeg"].frames == 100
    assert any(path.suffix == ".log" and path.stat().st_size for path in tmp_path.iterdir())


@BUILDS
def test_a_remux_copies_every_track_as_it_is(tmp_path: Path, build: str) -> None:
    source = media.clip(**SMALL, container="mkv", audio_tracks=2)
    _, found = encode(tmp_path, source, build, **REMUX)
    assert [stream.codec for stream in found.streams] == ["h264", "aac", "aac"] and is_fast_start(found.path)
    assert _pictures(source) == _pictures(found.path)


def _pictures(path: Path) -> str:
    """A checksum of the decoded pictures: their packets are framed in another way in another container."""
    done = subprocess.run([str(media.ffmpeg()), "-v", "error", "-i", f"file:{path}", "-map", "0:v", "-f", "md5", "-"],
                          capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


@BUILDS
@pytest.mark.parametrize("codec", ["flac", "libopus", "ac3", "libmp3lame", "alac"])
def test_a_codec_that_mp4_does_hold_is_copied(tmp_path: Path, build: str, codec: str) -> None:
    source = media.clip(seconds=1, size="160x90", container="mov" if codec == "alac" else "mkv", audio_codec=codec)
    made, found = encode(tmp_path, source, build, **REMUX)
    assert made.warnings == [] and found.audio[0].codec == codec.removeprefix("lib").replace("mp3lame", "mp3")


@BUILDS
def test_a_codec_that_mp4_does_not_hold_is_refused_with_the_reason(tmp_path: Path, build: str) -> None:
    error = refused(tmp_path, media.clip(**SMALL, container="mpg"), build, **REMUX)
    assert error.code == "input.cannot_remux" and "mp2 (sound)" in error.message


@BUILDS
def test_less_sound_than_picture_is_no_alarm(tmp_path: Path, build: str) -> None:
    source = media.clip(**SMALL, audio_seconds=1.5)
    made, found = encode(tmp_path, source, build, audio={"codec": "aac", "required": True}, output={"container": "m4a"})
    assert [stream.kind for stream in found.streams] == ["audio"] and made.warnings == []
    assert found.duration_seconds == pytest.approx(1.5, abs=0.1)
    (tmp_path / "whole").mkdir()
    assert encode(tmp_path / "whole", source, build, **WEB)[0].warnings == []


@BUILDS
def test_a_portrait_film_stays_one_also_when_it_is_only_marked_so(tmp_path: Path, build: str) -> None:
    upright = media.made("turned.mp4", 90, lambda path: media.run_ffmpeg(
        "-i", f"file:{media.clip(**SMALL, audio=False)}", "-c", "copy", "-metadata:s:v", "rotate=90", f"file:{path}"))
    made = stages.context(tmp_path, upright, build=build)
    source = stages.ffmpeg(**WEB)._probe(made)
    if source.video[0].rotation == 0:  # newer ffmpegs write the mark from another option
        upright = media.made("turned.mp4", 91, lambda path: media.run_ffmpeg(
            "-display_rotation", "90", "-i", f"file:{media.clip(**SMALL, audio=False)}", "-c", "copy", f"file:{path}"))
    _, found = encode(tmp_path, upright, build, **WEB)
    assert (found.video[0].width, found.video[0].height, found.video[0].rotation) == (180, 320, 0)


@BUILDS
def test_pixels_become_square_and_sides_even(tmp_path: Path, build: str) -> None:
    _, found = encode(tmp_path, media.clip(**SMALL, extra=("-vf", "setsar=4/3")), build, **WEB)
    assert (found.video[0].width, found.video[0].height, found.video[0].sample_aspect_ratio) == (426, 180, 1)
    (tmp_path / "odd").mkdir()
    odd = media.clip(seconds=2, size="321x181", container="mkv", video_codec="ffv1", pixel_format="yuv444p")
    _, found = encode(tmp_path / "odd", odd, build, **WEB)
    assert (found.video[0].width, found.video[0].height, found.video[0].pixel_format) == (320, 180, "yuv420p")


@BUILDS
def test_the_middle_is_kept_for_phones(tmp_path: Path, build: str) -> None:
    tall = {**PICTURE, "width": 180, "height": 320, "fit": "crop", "turn_with_source": False, "upscale": True,
            "max_frame_rate": 30}
    _, found = encode(tmp_path, media.clip(seconds=2, size="320x180", rate=60), build, video=tall, audio=SOUND)
    video = found.video[0]
    assert (video.width, video.height, video.average_frame_rate) == (180, 320, 30)


@BUILDS
def test_a_picture_that_stands_still_at_the_end_is_no_truncated_source(tmp_path: Path, build: str) -> None:
    held = media.made("held.mp4", 1, lambda path: media.run_ffmpeg(
        "-i", f"file:{media.clip(seconds=4, size='320x180', audio=False, extra=('-bf', '0'))}", "-c", "copy", "-bsf:v",
        "setts=duration='if(eq(N,99),6/TB,DURATION)'", f"file:{path}"))
    for number, settings in enumerate((WEB, {"options": [["c:v", "libx264"]]}, REMUX)):
        (tmp_path / str(number)).mkdir()
        encode(tmp_path / str(number), held, build, **settings)


@BUILDS
def test_a_clip_has_the_length_of_a_clip(tmp_path: Path, build: str) -> None:
    made, found = encode(tmp_path, media.clip(**SMALL), build, clip={"start": "1s", "end": 3.5}, **WEB)
    assert found.duration_seconds == pytest.approx(2.5, abs=0.1) and made.warnings == []


@BUILDS
@pytest.mark.parametrize("name", ["-dash.mp4", "a:b.mp4", "per%03d.mp4", "new\nline.mp4", "quote'[x].mp4"])
def test_a_name_is_a_name_and_nothing_else(tmp_path: Path, build: str, name: str) -> None:
    source = media.copy(media.clip(seconds=1, size="160x90"), tmp_path / name)
    assert encode(tmp_path, source, build, **WEB)[1].video[0].codec == "h264"


# --- bad sources --------------------------------------------------------------------------------------------------


@BUILDS
def test_half_a_film_whose_index_is_at_its_end_is_unreadable(tmp_path: Path, build: str) -> None:
    error = refused(tmp_path, media.cut(media.clip(**SMALL, faststart=False)), build)
    assert error.code == "input.unreadable" and not error.retryable


@BUILDS
@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("settings", [WEB, REMUX, {"audio": SOUND}, {"options": [["c:v", "libx264"]]}],
                         ids=["web", "remux", "sound", "raw"])
def test_half_a_film_that_can_be_opened_is_truncated(tmp_path: Path, build: str, container: str,
                                                     settings: dict[str, Any]) -> None:
    source = media.cut(media.clip(seconds=8, size="320x180", container=container))
    made = stages.context(tmp_path, source, build=build, name="a.mov")
    with pytest.raises(InputError) as caught:
        stages.ffmpeg(**settings).run(made)
        verify_outputs(made)
    assert caught.value.code == "input.truncated"
    assert caught.value.message.startswith("a.mov declares 8.")


@BUILDS
def test_a_stream_with_packets_lost_is_done_with_a_warning_or_fails_where_that_was_asked(tmp_path: Path, build: str) -> None:
    source = media.lossy(media.clip(seconds=8, container="ts"))
    made, found = encode(tmp_path, source, build, **WEB)
    assert "input.damaged" in stages.codes(made) and len(found.streams) == 2
    (tmp_path / "strict").mkdir()
    with pytest.raises(InputError) as caught:
        encode(tmp_path / "strict", source, build, on_damage="fail", **WEB)
    assert caught.value.code == "input.damaged"


IN_OPEN = 0x20


@contextmanager
def watched(path: Path) -> Iterator[list[int]]:
    """Collects every opening of a file, by anybody, while the block runs (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(path), IN_OPEN) >= 0
    opened: list[int] = []
    try:
        yield opened
        try:
            events = os.read(descriptor, 4096)
            opened += [struct.unpack_from("iIII", events, at)[1] for at in range(0, len(events), 16)]
        except BlockingIOError:
            pass
    finally:
        os.close(descriptor)


@pytest.fixture
def host() -> Iterator[tuple[int, list[str]]]:
    """A host that notes who calls."""
    calls: list[str] = []

    def answer(connection: gsocket.socket, _: Any) -> None:
        calls.append("called")
        connection.close()

    server = StreamServer(("127.0.0.1", 0), answer)
    server.start()
    yield server.server_port, calls
    server.stop()


@BUILDS
@pytest.mark.parametrize("kind", ["m3u8", "ffconcat", "concat", "sdp", "dash", "text"])
def test_a_script_that_poses_as_a_film_opens_nothing(tmp_path: Path, build: str, kind: str,
                                                     host: tuple[int, list[str]]) -> None:
    canary = media.copy(media.clip(seconds=1, size="160x90", container="ts"), tmp_path / "canary.ts")
    url = f"http://127.0.0.1:{host[0]}/x.ts"
    bodies = {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{canary}\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile {canary}\nfile {url}\n", "concat": f"file '{canary}'\n",
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {host[0]} RTP/AVP 96\n",
        "dash": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><BaseURL>{canary}'
                '</BaseURL></Period></MPD>', "text": f"{canary}\n{url}\n",
    }
    (tmp_path / "in.mp4").write_text(bodies[kind])
    with watched(canary) as opened:
        assert refused(tmp_path, tmp_path / "in.mp4", build).code == "input.not_media"
    assert opened == [] and host[1] == []


def test_the_canaries_would_sing(tmp_path: Path) -> None:
    canary = media.copy(media.clip(seconds=1, size="160x90", container="ts"), tmp_path / "canary.ts")
    (tmp_path / "in.mp4").write_text(f"ffconcat version 1.0\nfile {canary}\n")
    with watched(canary) as opened:
        subprocess.run([str(media.ffprobe()), "-v", "quiet", "-f", "concat", "-safe", "0", f"file:{tmp_path}/in.mp4"],
                       check=True, timeout=30)
    assert opened
