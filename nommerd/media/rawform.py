"""The raw form held against a source: what can be promised of an output whose flags somebody else wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from nommerd.errors import InputError
from nommerd.media.command import RawPass
from nommerd.media.formats import OUTPUTS
from nommerd.media.probe import Probe, StreamInfo
from nommerd.media.verify import Expectation

DEFAULT_MUXER = "mp4"
FOR_SOUND = "Use a pipeline for sound, such as audio-aac."
_MUXER_OF = {extension: muxer for muxer, extension in OUTPUTS.values()}
_EXTENSION_OF = {muxer: extension for muxer, extension in OUTPUTS.values()}
# Options that make an output longer or shorter than its source, or of tracks we do not know.
_RESHAPING = frozenset({"ss", "sseof", "t", "to", "frames", "vframes", "aframes", "fs", "shortest", "itsscale", "itsoffset",
                        "stream_loop", "map", "filter_complex", "lavfi", "copyts"})
_RESHAPING_FILTERS = re.compile(r"(?<![a-z])(?:a?setpts|atempo|rubberband|a?trim|a?select|a?loop|concat|asetrate|[at]pad|"
                                r"framestep|a?segment)(?:@\w+)?(?:=|,|;|$)")


def muxer_for(last: RawPass, dest: str) -> tuple[str, str]:
    """Muxer and extension of the last pass: what it says by `f`, else what the destination's name says, else MP4."""
    if last.muxer is not None:
        plain = re.sub(r"[^a-z0-9]", "", last.muxer.lower()) or "out"
        return last.muxer, _EXTENSION_OF.get(last.muxer, plain)
    extension = PurePosixPath(urlsplit(dest).path).suffix.lstrip(".").lower()
    muxer = _MUXER_OF.get(extension, DEFAULT_MUXER)
    return muxer, _EXTENSION_OF[muxer]


def expectation(passes: Sequence[RawPass], source: Probe, source_name: str) -> Expectation:
    """What the output must be at least: complete, as far as its flags do not say otherwise."""
    last = passes[-1]
    tracks = _tracks(last, source)
    seconds = source.span_seconds(tracks)
    copied = any(value == "copy" for _, value in last.options)
    frame_seconds = max((float(1 / t.average_frame_rate) for t in tracks if t.average_frame_rate), default=0.0)
    if reshapes(last) or seconds is None:
        return Expectation(source_name=source_name, copied=copied)
    return Expectation(source_name=source_name, copied=copied, duration_seconds=seconds, source=source.path,
                       source_seconds=source.duration_seconds,
                       tracks=tuple(track.index for track in tracks),
                       duration_certain=not source.duration_estimated, frame_seconds=frame_seconds)


def check_tracks(passes: Sequence[RawPass], source: Probe, source_name: str) -> None:
    """InputError input.no_video or input.no_audio for a source without the tracks that the flags take by default."""
    for number, one in enumerate(passes, start=1):
        if one.says("map", "filter_complex", "lavfi"):
            continue
        measures = number < len(passes) and one.muxer is None
        if measures and not one.says("vn") and not source.video:
            raise InputError("input.no_video", f"{source_name} has no picture track, and two passes need one.", FOR_SOUND)
        if not _tracks(one, source):
            raise InputError("input.no_audio" if one.says("vn") else "input.no_video",
                             f"{source_name} has no track that this pipeline uses.")


def reshapes(one: RawPass) -> bool:
    """Whether the length of its output is not that of its source."""
    if any(name.split(":")[0] in _RESHAPING for name, _ in one.options) or one.input_options:
        return True
    filters = (value for name, value in one.options if name.split(":")[0] in ("vf", "af", "filter") and value)
    return any(_RESHAPING_FILTERS.search(text) for text in filters)


def _tracks(one: RawPass, source: Probe) -> tuple[StreamInfo, ...]:
    """The tracks of the default maps that the flags do not switch off."""
    return (*(() if one.says("vn") else source.video[:1]), *(() if one.says("an") else source.audio[:1]))
