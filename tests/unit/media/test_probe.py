"""What ffprobe says of real files, good and bad."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import pytest

from nommerd.errors import InputError, ShuttingDown, Stop
from nommerd.media.probe import clean, probe
from nommerd.media.wave import claimed_seconds
from tests import media, stages


def code_of(path: Path, build: str = "path", kind: str = "media") -> str:
    with pytest.raises(InputError) as caught:
        probe(stages.binaries(build), path, kind)
    return caught.value.code


def test_a_film_is_described() -> None:
    found = probe(stages.binaries(), media.clip(seconds=2, size="320x180", metadata={"title": "A film"}))
    video, audio = found.streams
    assert (found.container, found.duration_estimated, found.tags["title"]) == ("mp4", False, "A film")
    assert (video.codec, video.width, video.height, video.pixel_format) == ("h264", 320, 180, "yuv420p")
    assert (video.average_frame_rate, video.duration_seconds, video.sample_aspect_ratio) == (Fraction(25), 2.0, 1)
    assert (audio.codec, audio.sample_rate, audio.channels) == ("aac", 48_000, 2)
    assert found.summary()["streams"][0] == {"kind": "video", "codec": "h264", "width": 320, "height": 180, "language": "und",
                                             "pixel_format": "yuv420p", "frame_rate": 25.0, "duration_seconds": 2.0}


def test_matroska_keeps_durations_in_tags() -> None:
    found = probe(stages.binaries(), media.clip(seconds=2, size="320x180", container="mkv"))
    assert found.container == "matroska"
    assert all(stream.duration_seconds == pytest.approx(2, abs=0.1) for stream in found.streams)


def test_the_moment_at_which_a_late_track_of_matroska_ends_is_not_taken_for_its_length() -> None:
    found = probe(stages.binaries(), media.late("mkv"))
    assert found.audio[0].start_seconds == pytest.approx(2, abs=0.1)
    assert found.audio[0].duration_seconds == pytest.approx(3, abs=0.1)
    assert found.span_seconds(found.audio) == pytest.approx(3, abs=0.1)
    assert found.span_seconds(found.streams) == pytest.approx(5, abs=0.1)
    assert found.span_seconds(()) is None


def test_an_encrypted_film_is_named_so(tmp_path: Path) -> None:
    locked = media.clip(seconds=1, size="160x90", extra=("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", "ab" * 16,
                                                         "-encryption_kid", "cd" * 16))
    assert code_of(locked) == "input.encrypted"


def test_a_wav_file_is_as_long_as_it_claims_unless_its_writer_could_not_know(tmp_path: Path) -> None:
    def seconds(body: bytes) -> float | None:
        (tmp_path / "a.wav").write_bytes(body)
        return probe(stages.binaries(), tmp_path / "a.wav").duration_seconds

    whole = media.clip(seconds=2, container="wav").read_bytes()
    size_at = whole.index(b"data") + 4
    assert seconds(whole) == seconds(whole[: len(whole) // 2]) == pytest.approx(2, abs=0.01)
    for unknown in (0xFFFF_FFFF, 0x7FFF_F000, 0):
        piped = whole[:size_at] + unknown.to_bytes(4, "little") + whole[size_at + 4 : len(whole) // 2]
        assert seconds(piped) == pytest.approx(1, abs=0.01)
    (tmp_path / "empty.wav").write_bytes(whole[:20])
    assert claimed_seconds(tmp_path / "empty.wav") is None


@pytest.mark.parametrize(("container", "estimated"), [("mp3", False), ("wav", False), ("aac", True), ("mpg", True)])
def test_a_length_that_is_a_guess_is_known_for_one(container: str, estimated: bool) -> None:
    found = probe(stages.binaries(), media.clip(seconds=2, size="320x180", container=container))
    assert found.duration_estimated is estimated


def test_an_mp3_without_an_index_is_a_guess() -> None:
    plain = media.clip(seconds=2, container="mp3", extra=("-write_xing", "0", "-q:a", "9"))
    assert probe(stages.binaries(), plain).duration_estimated


def test_packets_are_counted_when_asked() -> None:
    found = probe(stages.binaries(), media.clip(seconds=2, size="320x180"), count_packets=True)
    assert found.video[0].packets == 50


@pytest.mark.parametrize("build", media.BUILDS)
@pytest.mark.parametrize(("name", "body"), [
    ("text.mp4", b"This is a text, and no film.\n" * 50), ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
    ("script.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
    ("dash.mp4", b'<?xml version="1.0"?><MPD type="static"></MPD>'),
    ("sdp.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"), ("meta.mp4", b";FFMETADATA1\ntitle=x\n"),
    ("empty.mp4", b""), ("noise.mp4", random.Random(7).randbytes(100_000)), ("zeros.mp4", bytes(10_000)), ("one.mp4", b"\x00"),
    ("captions.mp4", b"1\n00:00:00,000 --> 00:00:01,000\nHello\n\n"), ("page.mp4", b"<html><body>404</body></html>"),
])
def test_what_is_no_media_is_not_media(tmp_path: Path, build: str, name: str, body: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(body)
    assert code_of(path, build) == "input.not_media"


@pytest.mark.parametrize("build", media.BUILDS)
def test_half_a_film_whose_index_is_at_its_end_is_unreadable(build: str) -> None:
    assert code_of(media.cut(media.clip(seconds=2, size="320x180", faststart=False)), build) == "input.unreadable"


def test_a_matroska_header_alone_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"\x1a\x45\xdf\xa3\x01\x00\x00\x00" + bytes(50))
    assert code_of(tmp_path / "a.mkv") == "input.unreadable"


@pytest.mark.parametrize("name", ["-dash.mp4", "a:b.mp4", "per%03d.mp4", "new\nline.mp4", "quote'.mp4", "ünï ☃.mp4",
                                  "http:x.mp4"])
def test_a_name_is_a_name_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = media.copy(media.clip(seconds=2, size="320x180"), tmp_path / name)
    assert probe(stages.binaries(), path).video[0].codec == "h264"


def test_control_characters_never_reach_tags_or_messages(tmp_path: Path) -> None:
    found = probe(stages.binaries(), media.clip(seconds=1, size="64x64", metadata={"title": "a\x1b[31mb\u202ec"}))
    assert found.tags["title"] == "a [31mb c"
    (tmp_path / "x\n\x1b.mp4").write_bytes(b"text")
    with pytest.raises(InputError) as caught:
        probe(stages.binaries(), tmp_path / "x\n\x1b.mp4")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert clean("x" * 2000, 10) == "x" * 10


def test_too_many_streams_are_refused() -> None:
    many = media.made("many.mkv", 120, lambda path: media.run_ffmpeg(
        "-f", "lavfi", "-i", "sine=duration=0.1", *["-map", "0:a"] * 120, "-c:a", "pcm_s16le", f"file:{path}"))
    assert code_of(many) == "input.too_large"


def test_enormous_pictures_are_refused() -> None:
    wide = media.made("wide.mkv", 1, lambda path: media.run_ffmpeg(
        "-f", "lavfi", "-i", "color=size=20000x16:duration=0.1", "-c:v", "ffv1", f"file:{path}"))
    assert code_of(wide) == "input.too_large"


def test_pictures_are_opened_by_their_first_bytes_and_patterns_are_not_expanded(tmp_path: Path) -> None:
    media.run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1", "-update", "1", f"file:{tmp_path}/a.png")
    (tmp_path / "a.png").rename(tmp_path / "frame%d.jpg")
    found = probe(stages.binaries(), tmp_path / "frame%d.jpg", "images")
    assert (found.video[0].codec, found.video[0].width) == ("png", 64)
    assert code_of(media.clip(seconds=2, size="320x180"), kind="images") == "input.not_media"


def test_captions_are_captions_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n\n")
    assert probe(stages.binaries(), tmp_path / "a.srt", "captions").streams[0].codec == "subrip"
    assert code_of(media.clip(seconds=2, size="320x180"), kind="captions") == "input.not_media"


def test_a_stop_ends_the_look() -> None:
    stop = Stop()
    stop.set(ShuttingDown())
    with pytest.raises(ShuttingDown):
        probe(stages.binaries(), media.clip(seconds=2, size="320x180"), stop=stop)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = media.clip(seconds=2, size="320x180")
    probe(stages.binaries(), path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        probe(stages.binaries(), path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
