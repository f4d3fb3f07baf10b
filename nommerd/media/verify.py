"""Whether an output is what it should be, looked at before it is published.

ffmpeg's exit code proves nothing: half a Matroska file exits 0. So the output is read whole, its key frames are decoded, and
its length is held against what the source declared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from nommerd.errors import EncoderError, InputError, Stop
from nommerd.media import outcome
from nommerd.media.binaries import Binaries
from nommerd.media.formats import INPUT_FORMATS, INPUT_PROTOCOLS
from nommerd.media.mp4 import is_fast_start
from nommerd.media.probe import AGAIN, Probe, StreamInfo, probe, probe_argv, reach
from nommerd.media.process import run
from nommerd.media.progress import ProgressReader

TOLERANCE_SECONDS = 0.5
TOLERANCE_FRAMES = 2
STALL_SECONDS = 120.0
_KEY_FRAMES_FAIL = frozenset({"theora"})  # ffmpeg 5 takes each frame that its decoder skips for an error
Decode = Literal["key_frames", "full"]
Warned = tuple[str, str, str]  # code, message, hint


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamExpectation:
    """What one stream must be; None where anything will do."""

    kind: str
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    pixel_format: str | None = None
    sample_aspect_ratio: Fraction | None = None
    sample_rate: int | None = None
    channels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the stage that made a file promises of it.

    `duration_seconds` is that of the longest source track the output was made from, after clipping; `duration_certain` is
    false where the source only estimates it, or does not know it; None and certain: nothing is promised. `source_name` is
    what messages call the source.
    """

    source_name: str = "the source"
    streams: tuple[StreamExpectation, ...] | None = None  # video and audio, in order; None: whatever is there
    duration_seconds: float | None = None
    duration_certain: bool = True
    frame_seconds: float = 0.0  # of the slowest video, for the tolerance; 0 without
    fast_start: bool = False
    copied: bool = False  # streams were copied: damage in them is the source's
    source: Path | None = None  # what it was made from, whole, and which of its streams: asked again before it is blamed
    tracks: tuple[int, ...] = ()
    source_seconds: float | None = None  # how long the whole of it says it is


def verify_file(binaries: Binaries, path: Path, expectation: Expectation, frames: int | None, stop: Stop, *,
                decode: Decode = "key_frames", stall_seconds: float = STALL_SECONDS) -> tuple[Probe, list[Warned]]:
    """The output's probe and warnings, if it is what it should be.

    `frames` is ffmpeg's last count of video frames. InputError input.truncated where the source ended early; EncoderError
    encoder.wrong_output where the output cannot be read, decoded or differs from what was asked for.
    """
    found = _read(binaries, path, expectation, frames, stop)
    warnings = [*_check_duration(found, expectation, binaries, stop)]
    _check_streams(found, expectation)
    _check_frames(found, frames)
    if expectation.fast_start and is_fast_start(path) is not True:
        raise _wrong("its index does not come first")
    argv = _decoding(binaries, path, found, decode)
    warnings += _check_decodes(argv, path, expectation, stop, stall_seconds)
    return found, warnings


def _decoding(binaries: Binaries, path: Path, found: Probe, decode: Decode) -> tuple[str, ...]:
    whole = any(stream.codec in _KEY_FRAMES_FAIL for stream in found.video)
    return decode_argv(binaries.ffmpeg, path, "full" if whole else decode, video=bool(found.video))


def verify_argvs(binaries: Binaries, path: Path, planned: Probe, decode: Decode = "key_frames") -> tuple[tuple[str, ...], ...]:
    """The commands of `verify_file` for an output that turns out as planned."""
    return tuple(probe_argv(binaries, path, count_packets=True)), _decoding(binaries, path, planned, decode)


def _wrong(what: str) -> EncoderError:
    return EncoderError("encoder.wrong_output", f"The output is not what it should be: {what}.",
                        "It was not published. Please report this with the job's log.")


def _read(binaries: Binaries, path: Path, expectation: Expectation, frames: int | None, stop: Stop) -> Probe:
    """Every packet of it. A file without any is the source's fault, if that promised more."""
    try:
        found = probe(binaries, path, stop=stop, name="the output", count_packets=True)
        empty = not any(stream.packets for stream in (*found.video, *found.audio))
    except InputError as error:
        if frames:
            raise _wrong(error.message.rstrip(".")) from None
        empty = True
    if empty and expectation.duration_seconds is not None:
        raise _truncated(expectation, expectation.duration_seconds, 0.0)
    if empty:
        raise _wrong("it is empty")
    return found


# --- how long -----------------------------------------------------------------------------------------------------


def output_seconds(found: Probe) -> float | None:
    """How long its pictures and sound take."""
    span = found.span_seconds((*found.video, *found.audio))
    return found.duration_seconds if span is None else span


def _check_duration(found: Probe, expectation: Expectation, binaries: Binaries, stop: Stop) -> Iterator[Warned]:
    declared, made = expectation.duration_seconds, output_seconds(found)
    if declared is None and expectation.duration_certain:
        return
    if declared is None or made is None:
        yield ("input.duration_unknown", f"How long {expectation.source_name} is cannot be known, so nobody can tell whether "
               "it was complete.", "")
        return
    tolerance = max(TOLERANCE_SECONDS, TOLERANCE_FRAMES * expectation.frame_seconds)
    certain = expectation.duration_certain and not found.duration_estimated
    if made > declared + tolerance and certain:
        yield ("input.longer", f"{expectation.source_name} declares {declared:.2f} s, but {made:.2f} s were decoded.", "")
    if made >= declared - tolerance:
        return
    if certain:
        reached = _reached(expectation, declared, tolerance, binaries, stop)
        if reached is None:
            raise _truncated(expectation, declared, made)
        if made >= reached - tolerance:
            return  # the tracks in use end before others do, and nobody said when
    says = "declares" if certain else "was estimated at"
    yield ("input.shorter", f"{expectation.source_name} {says} {declared:.2f} s, {made:.2f} s could be decoded.",
           "It can be read to its end." if certain else "Its real length cannot be known.")


def _reached(expectation: Expectation, declared: float, tolerance: float, binaries: Binaries, stop: Stop) -> float | None:
    """How far the packets of the tracks in use go, if the source can be read to its end: it is complete then, and only its
    last picture stands still for long, or others of its tracks go on. None where it ends early."""
    if expectation.source is None:
        return None
    found = reach(binaries, expectation.source, expectation.tracks, stop)
    if found is None:
        return None
    whole = expectation.source_seconds is not None and found.file >= expectation.source_seconds - tolerance
    return found.tracks if whole or found.tracks >= declared - tolerance else None


def _truncated(expectation: Expectation, declared: float, made: float) -> InputError:
    return InputError("input.truncated", f"{expectation.source_name} declares {declared:.2f} s, "
                      f"{made:.2f} s could be decoded.", AGAIN)


# --- what it is ---------------------------------------------------------------------------------------------------


def _check_streams(found: Probe, expectation: Expectation) -> None:
    if expectation.streams is None:
        return
    for kind, streams in (("video", found.video), ("audio", found.audio)):
        wanted = [one for one in expectation.streams if one.kind == kind]
        if len(streams) != len(wanted):
            raise _wrong(f"it has {len(streams)} {kind} tracks instead of {len(wanted)}")
        for one, stream in zip(wanted, streams, strict=True):
            for what, is_, should in _differences(one, stream):
                raise _wrong(f"{what} is {is_} instead of {should}")


def _differences(wanted: StreamExpectation, stream: StreamInfo) -> Iterator[tuple[str, object, object]]:
    for name in ("codec", "width", "height", "pixel_format", "sample_aspect_ratio", "sample_rate", "channels"):
        should, is_ = getattr(wanted, name), getattr(stream, name)
        if should is not None and is_ != should:
            yield f"{wanted.kind} {name.replace('_', ' ')}", is_, should


def _check_frames(found: Probe, frames: int | None) -> None:
    if frames is None or len(found.video) != 1:
        return
    packets = found.video[0].packets
    if packets != frames:
        raise _wrong(f"ffmpeg wrote {frames} frames, {packets} are in it")


# --- whether it decodes -------------------------------------------------------------------------------------------


def _check_decodes(argv: tuple[str, ...], path: Path, expectation: Expectation, stop: Stop,
                   stall_seconds: float) -> Iterator[Warned]:
    reader = ProgressReader()

    def on_line(line: str) -> bool:
        reader.feed(line)
        return reader.advanced

    ended = run(argv, cwd=path.parent, stop=stop, on_line=on_line,
                stall_seconds=stall_seconds, stderr_bytes=outcome.STDERR_BYTES)
    stop.check()
    outside = outcome.stopped_from_outside(ended, path.parent)
    if outside is not None:
        raise outside
    faults = outcome.damage_count(ended.stderr)
    if ended.ok and not faults:
        return
    if not expectation.copied:
        raise _wrong("it cannot be decoded without errors")
    if not ended.ok and not reader.last.frame and not reader.last.out_seconds:
        raise outcome.damaged(expectation.source_name, faults, end=" Nothing of it can be decoded.")
    yield ("input.damaged", f"{expectation.source_name} is damaged, and so is its copy: {faults} faults while decoding.", "")


def decode_argv(ffmpeg: Path, path: Path, decode: Decode, *, video: bool) -> tuple[str, ...]:
    """Decode to nowhere: the key frames and all sound, or everything. `video`: there are moving pictures."""
    skip = ("-skip_frame:v", "nokey") if decode == "key_frames" and video else ()  # newer ffmpegs refuse what fits no track
    return (str(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "level+error", "-nostats", "-progress", "pipe:1",
            "-protocol_whitelist", INPUT_PROTOCOLS, "-format_whitelist", INPUT_FORMATS["media"], *skip, "-i", f"file:{path}",
            "-map", "0:V?", "-map", "0:a?", "-fps_mode", "passthrough", "-f", "null", "file:/dev/null")
