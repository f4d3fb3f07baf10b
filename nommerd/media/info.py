"""What a media file holds: its container and streams, as ffprobe's JSON tells them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from nommerd.media import formats

TEXT_MAX = 500  # of a tag's value
ROUNDING_SECONDS = 0.1  # between what a container and its streams say of the same moment

_CONTROL = re.compile(r"[\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")
_TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;.]\d\d")
_HDR_TRANSFERS = frozenset({"smpte2084", "arib-std-b67"})
_UNSAID = frozenset({"unknown", "unspecified", "reserved"})
_RGB_CODECS = frozenset({"png", "apng", "gif", "bmp", "qtrle", "msrle", "8bps", "cscd", "tscc", "zmbv", "flashsv", "flashsv2"})
_RGB = re.compile(r"0?(?:rgb|bgr)|gbr|argb|abgr|x2?(?:rgb|bgr)|pal8")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """One stream. Sizes are as stored: before rotation, and with pixels of `sample_aspect_ratio`. Unknown is None."""

    index: int
    kind: str  # video, audio, subtitle, data, attachment
    codec: str
    codec_tag: str = ""
    profile: str | None = None
    width: int | None = None
    height: int | None = None
    pixel_format: str | None = None
    sample_aspect_ratio: Fraction = Fraction(1)
    rotation: int = 0  # degrees clockwise that a player turns it: 0, 90, 180, 270
    average_frame_rate: Fraction | None = None
    frame_rate: Fraction | None = None  # the lowest rate at which all time stamps fit (ffprobe's r_frame_rate)
    field_order: str | None = None
    duration_seconds: float | None = None  # the stream's own, else its DURATION tag
    start_seconds: float | None = None
    packets: int | None = None  # counted, where that was asked for
    sample_rate: int | None = None
    channels: int | None = None
    channel_layout: str | None = None
    attached_pic: bool = False
    default: bool = False
    language: str | None = None
    title: str | None = None
    timecode: str | None = None
    color_range: str | None = None
    color_space: str | None = None
    color_transfer: str | None = None
    color_primaries: str | None = None
    bit_rate: int | None = None

    @property
    def hdr(self) -> bool:
        """Whether its brightness is coded by PQ or HLG."""
        return self.color_transfer in _HDR_TRANSFERS

    @property
    def rgb(self) -> bool:
        """Whether its pixels are red, green and blue: for YUV there is a choice of matrices. Some ffprobes know no pixels."""
        return self.codec in _RGB_CODECS if self.pixel_format is None else bool(_RGB.match(self.pixel_format))

    @property
    def full_range(self) -> bool:
        """Whether black is 0 and white 255 (phones, webcams, MJPEG), not 16 and 235."""
        return self.color_range == "pc" or (self.pixel_format or "").startswith("yuvj")

    @property
    def usable(self) -> bool:
        """Whether enough is known of it to decode it."""
        if self.kind == "video":
            return bool(self.width and self.height)
        return self.kind != "audio" or bool(self.sample_rate and self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A file's container and streams."""

    path: Path
    container: str  # mp4, mov, matroska, mpegts, wav …
    size: int
    duration_seconds: float | None = None
    start_seconds: float | None = None  # the time stamp of the earliest packet
    duration_estimated: bool = False  # by bit rate or from a clock that wraps: good for a progress bar only
    bit_rate: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # of the container, names in lower case
    streams: tuple[StreamInfo, ...] = ()

    @property
    def video(self) -> tuple[StreamInfo, ...]:
        """Moving pictures: no cover art."""
        return tuple(s for s in self.streams if s.kind == "video" and not s.attached_pic)

    @property
    def usable(self) -> bool:
        """Whether enough is known of all its pictures and sound to decode them."""
        return all(stream.usable for stream in (*self.video, *self.audio))

    @property
    def audio(self) -> tuple[StreamInfo, ...]:
        return tuple(s for s in self.streams if s.kind == "audio")

    @property
    def captions(self) -> tuple[StreamInfo, ...]:
        return tuple(s for s in self.streams if s.kind == "subtitle")

    @property
    def timecode(self) -> str | None:
        """The time code of the first frame, `hh:mm:ss:ff`, where the file carries one."""
        said = (*(stream.timecode for stream in self.streams), self.tags.get("timecode"))
        return next((text for text in said if text and _TIMECODE.fullmatch(text)), None)

    def span_seconds(self, streams: Sequence[StreamInfo]) -> float | None:
        """How long it takes from the first of these tracks' beginning to the last one's end; None where one is not known."""
        spans = [(self._begin(stream), self._end(stream)) for stream in streams]
        ends = [end for _, end in spans if end is not None]
        return max(ends) - min(begin for begin, _ in spans) if spans and len(ends) == len(spans) else None

    def _begin(self, stream: StreamInfo) -> float:
        return (self.start_seconds or 0.0) if stream.start_seconds is None else stream.start_seconds

    def _end(self, stream: StreamInfo) -> float | None:
        begin = self._begin(stream)
        if stream.duration_seconds is not None:
            return begin + stream.duration_seconds
        return None if self.duration_seconds is None else max(begin, (self.start_seconds or 0.0) + self.duration_seconds)

    def summary(self) -> dict[str, Any]:
        """A small JSON object for a job's outputs."""
        return _without_none({
            "container": self.container, "duration_seconds": _rounded(self.duration_seconds), "bit_rate": self.bit_rate,
            "streams": [_stream_summary(s) for s in self.streams if s.kind in ("video", "audio", "subtitle")][:16],
        })


def _stream_summary(stream: StreamInfo) -> dict[str, Any]:
    rate = stream.average_frame_rate
    return _without_none({
        "kind": stream.kind, "codec": stream.codec, "width": stream.width, "height": stream.height,
        "pixel_format": stream.pixel_format, "frame_rate": _rounded(float(rate)) if rate else None,
        "sample_rate": stream.sample_rate, "channels": stream.channels, "language": stream.language,
        "duration_seconds": _rounded(stream.duration_seconds),
    })


def clean(text: str, length: int = TEXT_MAX) -> str:
    """The text without control and direction characters, cut to `length`: safe in a message, a tag or a log."""
    return _CONTROL.sub(" ", text).strip()[:length]


# --- from JSON ----------------------------------------------------------------------------------------------------


def from_json(document: Mapping[str, Any], path: Path, size: int, *, estimated: bool) -> Probe:
    """The probe in ffprobe's `-show_format -show_streams`. `estimated`: it said that it guessed the duration."""
    about = document["format"]
    tags = {clean(name, 64).lower(): clean(value) for name, value in about.get("tags", {}).items()}
    container = formats.container_name(str(about.get("format_name", "")), tags.get("major_brand"))
    seconds = _seconds(about.get("duration"))
    return Probe(path=path, container=container, size=size, duration_seconds=seconds,
                 start_seconds=number(about.get("start_time")),
                 duration_estimated=estimated or container in formats.ESTIMATED_CONTAINERS,
                 bit_rate=_int(about.get("bit_rate")), tags=tags,
                 streams=tuple(_stream(one, seconds) for one in document.get("streams", ())))


def _stream(one: Mapping[str, Any], file_seconds: float | None) -> StreamInfo:
    tags = {name.lower(): clean(value) for name, value in one.get("tags", {}).items()}
    disposition = one.get("disposition", {})
    return StreamInfo(
        index=int(one.get("index", 0)), kind=str(one.get("codec_type", "data")), codec=str(one.get("codec_name", "unknown")),
        codec_tag=str(one.get("codec_tag_string", "")), profile=one.get("profile"), width=_int(one.get("width")),
        height=_int(one.get("height")), pixel_format=_said(one.get("pix_fmt")),
        sample_aspect_ratio=_ratio(one.get("sample_aspect_ratio"), ":") or Fraction(1), rotation=_rotation(one, tags),
        average_frame_rate=_ratio(one.get("avg_frame_rate"), "/"), frame_rate=_ratio(one.get("r_frame_rate"), "/"),
        field_order=one.get("field_order"), duration_seconds=_stream_seconds(one, tags, file_seconds),
        start_seconds=number(one.get("start_time")), packets=_int(one.get("nb_read_packets")),
        sample_rate=_int(one.get("sample_rate")), channels=_int(one.get("channels")), channel_layout=one.get("channel_layout"),
        attached_pic=bool(disposition.get("attached_pic")), default=bool(disposition.get("default")),
        language=tags.get("language"), title=tags.get("title"), timecode=tags.get("timecode"),
        color_range=_said(one.get("color_range")), color_space=_said(one.get("color_space")),
        color_transfer=_said(one.get("color_transfer")), color_primaries=_said(one.get("color_primaries")),
        bit_rate=_int(one.get("bit_rate")))


def _said(value: object) -> str | None:
    return None if value is None or value in _UNSAID else str(value)


def _stream_seconds(one: Mapping[str, Any], tags: Mapping[str, str], file_seconds: float | None) -> float | None:
    """A stream's duration; Matroska keeps it as a tag, DURATION or DURATION-eng, `00:00:10.000000000`. Some write the moment
    of its end there: one that goes beyond the file's end."""
    own = _seconds(one.get("duration"))
    if own is not None:
        return own
    text = next((value for name, value in tags.items() if name.split("-")[0] == "duration"), "")
    match = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,12})?)", text)
    if match is None:
        return None
    seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    start = number(one.get("start_time")) or 0.0
    if file_seconds is not None and start > 0 and start + seconds > file_seconds + ROUNDING_SECONDS:
        seconds -= start
    return seconds if seconds > 0 else None


def _rotation(one: Mapping[str, Any], tags: Mapping[str, str]) -> int:
    """Degrees clockwise, to the nearest quarter turn. ffprobe's side data counts counterclockwise."""
    sides = one.get("side_data_list", ())
    turned = next((number(side["rotation"]) for side in sides if "rotation" in side), None)
    clockwise = number(tags.get("rotate")) if turned is None else -turned
    return round((clockwise or 0.0) / 90) * 90 % 360


def number(value: object) -> float | None:
    """A finite number, however it is written; else None."""
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _seconds(value: object) -> float | None:
    """A duration that says something: 0 and less is unknown."""
    found = number(value)
    return found if found is not None and found > 0 else None


def _int(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _ratio(value: object, separator: str) -> Fraction | None:
    """`25/1` or `16:15`; None for `0/0`, `0:1` and nonsense."""
    above, _, below = str(value).partition(separator)
    if not (above.isdigit() and below.isdigit()) or not (int(above) and int(below)):
        return None
    return Fraction(int(above), int(below))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
