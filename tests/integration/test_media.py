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
@pytest.mark.parametrize("settings", [WEB, REMUX, {"audio": SOUND}, {"options": [["c:v", "libx264"]]}],
                         ids=["web", "remux", "sound", "raw"])
def test_a_track_that_begins_late_is_no_alarm(tmp_path: Path, build: str, settings: dict[str, Any]) -> None:
    for container in ("mkv", "mp4"):
        (tmp_path / container).mkdir()
        assert encode(tmp_path / container, media.late(container), build, **settings)[0].warnings == []


@BUILDS
def test_sound_that_ends_before_the_picture_where_the_file_only_tells_its_own_length_is_no_alarm(tmp_path: Path,
                                                                                                build: str) -> None:
    source = media.clip(seconds=4, size="160x90", container="flv", video_codec="flv", audio_codec="libmp3lame",
                        sample_rate=44_100, audio_seconds=1.5)
    made, found = encode(tmp_path, source, build, audio=SOUND)
    assert made.warnings == [] and found.duration_seconds == pytest.approx(1.5, abs=0.1)
    cut = media.cut(source, 0.6)
    (tmp_path / "cut").mkdir()
    assert refused(tmp_path / "cut", cut, build, audio=SOUND).code == "input.truncated"


@BUILDS
def test_a_wav_file_from_a_pipe_is_whole_and_half_of_one_with_a_length_is_not(tmp_path: Path, build: str) -> None:
    piped = media.made("piped.wav", 1, lambda path: media.run_ffmpeg(
        "-i", f"file:{media.clip(seconds=2, container='wav')}", "-c", "copy", "-f", "wav", "-seekable", "0", f"file:{path}"))
    assert encode(tmp_path, piped, build, audio=SOUND)[0].warnings == []
    (tmp_path / "strict").mkdir()
    assert encode(tmp_path / "strict", piped, build, on_damage="fail", audio=SOUND)[0].warnings == []
    (tmp_path / "half").mkdir()
    half = media.cut(media.clip(seconds=4, container="wav"))
    assert refused(tmp_path / "half", half, build, audio=SOUND).code == "input.truncated"


@BUILDS
def test_pictures_in_full_range_or_in_red_green_and_blue_become_what_players_take_for_granted(tmp_path: Path,
                                                                                             build: str) -> None:
    full = media.clip(seconds=1, size="160x90", pixel_format="yuvj420p", extra=("-color_range", "pc"))
    _, found = encode(tmp_path, full, build, **WEB)
    assert found.video[0].pixel_format == "yuv420p" and not found.video[0].full_range
    for codec in ("png", "qtrle"):
        (tmp_path / codec).mkdir()
        source = media.clip(seconds=1, size="160x90", container="mov", video_codec=codec, pixel_format="rgb24")
        video = encode(tmp_path / codec, source, build, **WEB)[1].video[0]
        assert (video.color_space, video.color_transfer, video.color_primaries) == ("bt709", "bt709", "bt709")


@BUILDS
@pytest.mark.parametrize("said", [":colorprim=bt2020:colormatrix=bt2020nc", ""], ids=["said", "unsaid"])
def test_hdr_is_mapped_and_nothing_of_it_is_left_behind(tmp_path: Path, build: str, said: str) -> None:
    source = media.clip(seconds=1, size="160x90", video_codec="libx265", pixel_format="yuv420p10le", extra=(
        "-x265-params", f"log-level=error:transfer=smpte2084{said}:hdr10=1:max-cll=1000,400:"
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"))
    made, found = encode(tmp_path, source, build, **WEB)
    video = found.video[0]
    assert (video.color_space, video.color_transfer, video.color_primaries) == ("bt709", "bt709", "bt709")
    frames = subprocess.run([str(media.ffprobe()), "-v", "error", "-select_streams", "v", "-show_frames", "-show_streams",
                             f"file:{found.path}"], capture_output=True, check=True, timeout=60).stdout
    assert b"Mastering" not in frames and b"Content light" not in frames and made.warnings == []


@BUILDS
def test_half_pictures_are_made_whole(tmp_path: Path, build: str) -> None:
    moving = "geq=lum='if(lt(mod(X-N*8,160),20),235,16)':cb=128:cr=128,interlace=lowpass=0"
    source = media.clip(seconds=1, size="160x120", rate=50, audio=False, extra=(
        "-vf", moving, "-flags", "+ildct+ilme", "-x264opts", "tff=1"))
    _, found = encode(tmp_path, source, build, **WEB)
    assert found.video[0].average_frame_rate == 25
    assert _combs(source) > 3
    assert _combs(found.path) < 1


def _combs(path: Path) -> float:
    """How much a line differs from the next one, in a picture whose shapes are upright."""
    chain = ("split[a][b];[a]crop=iw:ih-2:0:0[a];[b]crop=iw:ih-2:0:1[b];[a][b]blend=all_mode=difference,signalstats,"
             "metadata=print:key=lavfi.signalstats.YAVG:file=-")
    done = subprocess.run([str(media.ffmpeg()), "-v", "error", "-ss", "0.4", "-i", f"file:{path}", "-frames:v", "1",
                           "-vf", f"format=gray,{chain}", "-f", "null", "-"], capture_output=True, check=True, timeout=60)
    return float(done.stdout.rpartition(b"=")[2])


@BUILDS
def test_two_passes_by_flags_find_the_same_frames_in_a_file_that_begins_with_sound(tmp_path: Path, build: str) -> None:
    flags = [["c:v", "libx264"], ["preset", "veryfast"], ["b:v", "300k"]]
    plain = media.clip(seconds=2, size="160x90")
    for number, (container, more) in enumerate((("mkv", []), ("ts", [["r", "25"]]))):
        source = media.made(f"early.{container}", 1, lambda path: media.run_ffmpeg(
            "-i", f"file:{plain}", "-itsoffset", "0.3", "-i", f"file:{plain}", "-map", "1:v", "-map", "0:a", "-c", "copy",
            f"file:{path}"))
        both = merge_passes([stages.ffmpeg("a", pass_=1, options=[*flags, *more]),
                             stages.ffmpeg("b", pass_=2, options=[*flags, *more, ["c:a", "aac"], ["f", "mp4"]])])[0]
        assert isinstance(both, Ffmpeg)
        (tmp_path / str(number)).mkdir()
        made = stages.context(tmp_path / str(number), source, build=build)
        both.run(made)
        verify_outputs(made)
        assert made.warnings == []


@BUILDS
def test_a_still_that_stands_for_an_hour_has_a_frame_rate_and_an_end(tmp_path: Path, build: str) -> None:
    still = media.made("still.mp4", 1, lambda path: media.run_ffmpeg(
        "-i", f"file:{media.clip(seconds=1, rate=1, size='160x90', audio=False, extra=('-bf', '0'))}", "-c", "copy", "-bsf:v",
        "setts=duration=3600/TB", f"file:{path}"))
    made, found = encode(tmp_path, still, build, **WEB)
    assert (found.video[0].average_frame_rate, made.warnings) == (1, [])
    assert found.duration_seconds == pytest.approx(3600, abs=2)


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


def test_a_file_without_picture_is_named_so_where_two_passes_need_one(tmp_path: Path) -> None:
    flags = [["c:v", "libx264"], ["b:v", "300k"]]
    both = merge_passes([stages.ffmpeg("a", pass_=1, options=flags), stages.ffmpeg("b", pass_=2, options=flags)])[0]
    made = stages.context(tmp_path, media.clip(seconds=1, container="mp3"), name="Song.mp3")
    with pytest.raises(InputError) as caught:
        both.run(made)
    assert caught.value.code == "input.no_video" and caught.value.message.startswith("Song.mp3 ")
    assert refused(tmp_path, media.clip(seconds=1, audio=False), "path", options=[["vn", None]]).code == "input.no_audio"


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


def test_the_canaries_would_sing(tmp_path: Path, host: tuple[int, list[str]]) -> None:
    canary = media.copy(media.clip(seconds=1, size="160x90", container="ts"), tmp_path / "canary.ts")
    (tmp_path / "in.mp4").write_text(f"ffconcat version 1.0\nfile {canary}\n")
    with watched(canary) as opened:
        subprocess.run([str(media.ffprobe()), "-v", "quiet", "-f", "concat", "-safe", "0", f"file:{tmp_path}/in.mp4"],
                       check=True, timeout=30)
    assert opened
    (tmp_path / "in.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{host[0]}/x.ts\n"
                                     "#EXT-X-ENDLIST\n")
    subprocess.run([str(media.ffprobe()), "-v", "quiet", "-f", "hls", "-protocol_whitelist", "file,http,tcp",
                    f"file:{tmp_path}/in.mp4"], check=False, timeout=30)
    assert host[1]
