"""What an output will be, said before it is made: its probe as it should turn out, and what is worth knowing of the way there.

Pure; nothing is run. What cannot be known is left open: a raw form's filters may do anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from nommerd.media.binaries import ENCODERS
from nommerd.media.command import RawPass
from nommerd.media.info import Probe, StreamInfo
from nommerd.media.picture import VideoPlan, Warned, fitted_size
from nommerd.media.plan import AudioPlan, Plan, Wanted

_UNKNOWN = "unknown"
# as ffprobe calls what a container or muxer of this name writes, where that is another
_CONTAINERS = {"m4a": "mp4", "mkv": "matroska", "webm": "matroska", "ipod": "mp4", "adts": "aac"}
_CODEC_OF = {encoder: codec for codec, encoders in ENCODERS.items() for encoder in encoders}
_DEFAULTS = {  # muxer -> the codecs that ffmpeg chooses by itself; only those that all builds agree on
    "mp4": ("h264", "aac"), "mov": ("h264", "aac"), "ipod": ("h264", "aac"), "webm": ("vp9", "opus"), "mp3": (None, "mp3"),
    "adts": (None, "aac"), "flac": (None, "flac"), "wav": (None, "pcm_s16le"),
}
_FRONT = re.compile(r"faststart|frag|empty_moov|cmaf|dash")
_RATE_TOLERANCE = Fraction(1, 1000)


def typed(plan: Plan, source: Probe, path: Path) -> Probe:
    """What the typed form will make."""
    streams = [*_pictures(plan, source), *(_sound(track, source, plan) for track in plan.audio),
               *(source.captions[number] for number in plan.captions)]
    return _probe(plan.container, path, streams, plan.total_seconds)


def raw(last: RawPass, muxer: str, source: Probe, path: Path, seconds: float | None) -> Probe | None:
    """What a raw form will make, as far as its flags say; None where they choose the tracks themselves."""
    if last.says("map", "filter_complex", "lavfi"):
        return None
    video, audio = _DEFAULTS.get(muxer, (_UNKNOWN, _UNKNOWN))
    streams = [] if last.says("vn") or video is None else [_raw_picture(last, one, video) for one in source.video[:1]]
    streams += [] if last.says("an") else [_raw_sound(last, one, audio) for one in source.audio[:1]]
    return _probe(muxer, path, [replace(stream, duration_seconds=seconds) for stream in streams], seconds)


def says_fast_start(last: RawPass) -> bool:
    """Whether flags put the index of an MP4 first."""
    return any(name == "movflags" and _FRONT.search(value or "") for name, value in last.options)


def _probe(container: str, path: Path, streams: list[StreamInfo], seconds: float | None) -> Probe:
    # "und" is how some containers say that they know no language.
    placed = tuple(replace(stream, index=index, start_seconds=0.0,
                           language=None if stream.language == "und" else stream.language)
                   for index, stream in enumerate(streams))
    return Probe(path=path, container=_CONTAINERS.get(container, container), size=0, duration_seconds=seconds,
                 start_seconds=0.0, streams=placed)


# --- the typed form -----------------------------------------------------------------------------------------------


def _pictures(plan: Plan, source: Probe) -> list[StreamInfo]:
    video = plan.video
    if video is None:
        return []
    if video.encoder == "copy":
        return list(source.video)
    expect, before = video.expect[0], source.video[0]
    made = replace(before, codec=expect.codec or _UNKNOWN, codec_tag="", profile=None, width=expect.width,
                   height=expect.height, pixel_format=expect.pixel_format, rotation=0,
                   sample_aspect_ratio=expect.sample_aspect_ratio or Fraction(1),
                   average_frame_rate=video.frame_rate, frame_rate=video.frame_rate, packets=None, bit_rate=None,
                   duration_seconds=plan.total_seconds, language=video.language if plan.keep_language else None)
    made = replace(made, field_order=None) if _deinterlaces(video) else made
    if any(name == "color_trc" for name, _ in video.options):
        made = replace(made, color_range="tv", color_space="bt709", color_transfer="bt709", color_primaries="bt709")
    return [made]


def _sound(track: AudioPlan, source: Probe, plan: Plan) -> StreamInfo:
    before = source.audio[track.track]
    if track.encoder == "copy":
        return before
    return replace(before, codec=track.expect.codec or _UNKNOWN, codec_tag="", profile=None, channels=track.channels,
                   channel_layout=None, sample_rate=track.sample_rate, packets=None, bit_rate=track.bitrate, pixel_format=None,
                   duration_seconds=plan.total_seconds, language=track.language if plan.keep_language else None)


# --- the raw form -------------------------------------------------------------------------------------------------


def _said(last: RawPass, *names: str) -> str | None:
    """The last value of these options, of which one may hold for all streams."""
    return next((value for name, value in reversed(last.options) if name in names), None)


def _codec(said: str | None, default: str) -> str:
    return default if said is None else _CODEC_OF.get(said, said)


def _raw_picture(last: RawPass, before: StreamInfo, default: str) -> StreamInfo:
    codec = _said(last, "c:v", "codec:v", "vcodec", "c", "codec")
    if codec == "copy":
        return before
    filtered = last.says("vf", "filter")
    rate = _ratio(_said(last, "r", "r:v"))
    rate = rate if rate or filtered else before.average_frame_rate
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", _said(last, "s", "s:v") or "")
    width, height = (int(size[1]), int(size[2])) if size else (None, None) if filtered else _turned(before)
    return replace(before, codec=_codec(codec, default), codec_tag="", profile=None, width=width, height=height,
                   pixel_format=_said(last, "pix_fmt", "pix_fmt:v"), average_frame_rate=rate, frame_rate=rate, rotation=0,
                   packets=None, bit_rate=None)


def _turned(before: StreamInfo) -> tuple[int | None, int | None]:
    return (before.height, before.width) if before.rotation % 180 else (before.width, before.height)


def _raw_sound(last: RawPass, before: StreamInfo, default: str) -> StreamInfo:
    codec = _said(last, "c:a", "codec:a", "acodec", "c", "codec")
    if codec == "copy":
        return before
    filtered = last.says("af") or any(name.startswith("filter:a") for name, _ in last.options)
    channels, rate = _ratio(_said(last, "ac", "ac:a")), _ratio(_said(last, "ar", "ar:a"))
    return replace(before, codec=_codec(codec, default), codec_tag="", profile=None, channel_layout=None, packets=None,
                   bit_rate=None, channels=int(channels) if channels else None if filtered else before.channels,
                   sample_rate=int(rate) if rate else None if filtered else before.sample_rate)


def _ratio(text: str | None) -> Fraction | None:
    try:
        return Fraction(text) if text and len(text) < 20 else None
    except (ValueError, ZeroDivisionError):
        return None


# --- worth knowing ------------------------------------------------------------------------------------------------


def notes(wanted: Wanted, plan: Plan, source: Probe) -> Iterator[Warned]:
    """What the plan does with this source that its settings alone do not say."""
    video, settings = plan.video, wanted.video
    if video is not None and settings is not None and video.encoder != "copy":
        before = source.video[0]
        if (settings.width or settings.height) and not settings.upscale:
            larger = fitted_size(settings.model_copy(update={"upscale": True}), before)
            here = (video.expect[0].width or 0, video.expect[0].height or 0)
            if larger > here:
                yield ("explain.not_enlarged", f"The source is smaller than the box: {here[0]}x{here[1]} is made, not "
                       f"{larger[0]}x{larger[1]}.", "`upscale: true` enlarges.")
        if any("tonemap=" in name for name in video.filters):
            yield ("explain.tone_mapped", "The source is HDR: its brightness is mapped for 8-bit screens.", "")
        if _deinterlaces(video):
            yield ("explain.deinterlaced", "The source is interlaced: whole pictures are made.", "")
        rate = before.average_frame_rate
        if rate and video.frame_rate and abs(rate - video.frame_rate) > rate * _RATE_TOLERANCE:
            yield ("explain.frame_rate", f"{float(rate):.3g} pictures a second become {float(video.frame_rate):.3g}.", "")
    if wanted.audio is not None and not plan.audio:
        yield ("explain.no_sound", "The source has no sound, so the output has none.", "")


def _deinterlaces(video: VideoPlan) -> bool:
    return any(name.startswith(("bwdif=", "yadif=")) for name in video.filters)
