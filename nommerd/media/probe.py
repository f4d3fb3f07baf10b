"""What a media file holds, by ffprobe: opened under a protocol and a format whitelist, so that nothing else is opened."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from nommerd.errors import EncoderError, InfrastructureError, InputError, Stop
from nommerd.media import formats
from nommerd.media.binaries import Binaries
from nommerd.media.process import Exit, output

TIMEOUT_SECONDS = 60.0
READ_BYTES_PER_SECOND = 5e6  # the slowest disk whose files are read whole
JSON_BYTES_MAX = 4 << 20
PACKET_LIST_BYTES_MAX = 64 << 20
STREAMS_MAX = 100
SIDE_PIXELS_MAX = 16_384
AREA_PIXELS_MAX = 16_384 * 8_704
CHANNELS_MAX = 64
AGAIN = "Not retried: send the file again."
SCORE_MIN = 5  # below it ffprobe only guessed: a single frame header of MP3 or AAC among noise
TEXT_MAX = 500  # of a tag's value

_ESTIMATED = re.compile(r"Estimating duration from bitrate")
_REFUSED = re.compile(r"not on whitelist", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")
_TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;.]\d\d")
_HDR_TRANSFERS = frozenset({"smpte2084", "arib-std-b67"})


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
    duration_estimated: bool = False  # by bit rate or from a clock that wraps: good for a progress bar only
    bit_rate: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # of the container, names in lower case
    streams: tuple[StreamInfo, ...] = ()

    @property
    def video(self) -> tuple[StreamInfo, ...]:
        """Moving pictures: no cover art."""
        return tuple(s for s in self.streams if s.kind == "video" and not s.attached_pic)

    @property
    def audio(self) -> tuple[StreamInfo, ...]:
        return tuple(s for s in self.streams if s.kind == "audio")

    @property
    def timecode(self) -> str | None:
        """The time code of the first frame, `hh:mm:ss:ff`, where the file carries one."""
        said = (*(stream.timecode for stream in self.streams), self.tags.get("timecode"))
        return next((text for text in said if text and _TIMECODE.fullmatch(text)), None)

    def track_seconds(self, stream: StreamInfo) -> float | None:
        """How long a track is: its own duration, else the container's."""
        return self.duration_seconds if stream.duration_seconds is None else stream.duration_seconds

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


def probe(binaries: Binaries, path: Path, kind: str = "media", stop: Stop | None = None, *, name: str | None = None,
          count_packets: bool = False) -> Probe:
    """What the file at `path` holds. `kind`: media, images or captions; `name` is what messages call the file.

    InputError input.not_media (nothing we know, or a script that names other files), input.unreadable (a container we
    know, but broken), input.encrypted, input.too_large; `count_packets` reads the whole file and fills `packets`.
    """
    label = name or clean(path.name)
    size = _size(path, label)
    stop = stop or Stop()
    timeout_seconds = TIMEOUT_SECONDS + (size / READ_BYTES_PER_SECOND if count_packets else 0.0)
    ended, text = output(_argv(binaries, path, kind, label, count_packets), cwd=path.parent, stop=stop,
                         timeout_seconds=timeout_seconds, max_bytes=JSON_BYTES_MAX)
    stop.check()
    document = _document(text) if ended.ok else None
    if document is None or "format" not in document:
        raise _failure(ended, path, kind, label)
    found = _probe(document, path, size, estimated=bool(_ESTIMATED.search(ended.stderr)))
    _check(found, int(document["format"].get("probe_score", 100)), kind, label)
    return found


def read_seconds(binaries: Binaries, path: Path, tracks: Collection[int], stop: Stop) -> float | None:
    """How far the packets of these streams reach, from the first of each; None where that cannot be read. Reads it all."""
    argv = [*_opening(binaries, "media"), "-show_entries", "packet=stream_index,pts_time,duration_time", "-of", "csv=p=0",
            "-i", f"file:{path}"]
    ended, text = output(argv, cwd=path.parent, stop=stop, max_bytes=PACKET_LIST_BYTES_MAX,
                         timeout_seconds=TIMEOUT_SECONDS + path.stat().st_size / READ_BYTES_PER_SECOND)
    stop.check()
    if not ended.ok:
        return None
    first: dict[str, float] = {}
    reached = 0.0
    for line in text.decode(errors="replace").splitlines():
        index, begin, length, *_ = (*line.split(","), "", "")
        at = _number(begin)
        if at is not None and index in map(str, tracks):
            reached = max(reached, at + (_number(length) or 0.0) - first.setdefault(index, at))
    return reached


def clean(text: str, length: int = TEXT_MAX) -> str:
    """The text without control and direction characters, cut to `length`: safe in a message, a tag or a log."""
    return _CONTROL.sub(" ", text).strip()[:length]


def _argv(binaries: Binaries, path: Path, kind: str, label: str, count_packets: bool) -> list[str]:
    argv = _opening(binaries, kind)
    if kind == "images":
        demuxer = formats.image_demuxer(path)
        if demuxer is None:
            raise _not_media(label)
        argv += ["-f", demuxer]
    if count_packets:
        argv.append("-count_packets")
    return [*argv, "-show_format", "-show_streams", "-of", "json=compact=1", "-i", f"file:{path}"]


def _opening(binaries: Binaries, kind: str) -> list[str]:
    return [str(binaries.ffprobe), "-hide_banner", "-loglevel", "warning", "-protocol_whitelist", formats.INPUT_PROTOCOLS,
            "-format_whitelist", formats.INPUT_FORMATS[kind]]


def _size(path: Path, label: str) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InfrastructureError("node.disk", f"The file {label} cannot be read: {error.strerror}.") from None
    if size == 0:
        raise InputError("input.not_media", f"{label} is empty.", AGAIN)
    return size


def _document(text: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(text.decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _not_media(label: str) -> InputError:
    return InputError("input.not_media", f"{label} is not a media file: no container we read was recognised in it.",
                      "Playlists and scripts that name other files are not accepted; send the media file itself.")


def _failure(ended: Exit, path: Path, kind: str, label: str) -> Exception:
    """Why ffprobe said nothing."""
    if ended.timed_out:
        return InputError("input.unreadable", f"{label} could not be examined within {ended.seconds:.0f} s.")
    if ended.flooded:
        return InputError("input.too_large", f"{label} has more streams and tags than are accepted.")
    if ended.signal is not None:
        return EncoderError("encoder.killed", f"ffprobe was ended by signal {ended.signal}.", retryable=True)
    if _REFUSED.search(ended.stderr) or (kind == "media" and not formats.looks_like_media(path)):
        return _not_media(label)
    return InputError("input.unreadable", f"{label} is broken: {_reason(ended.stderr)}.",
                      AGAIN)


def _reason(stderr: str) -> str:
    if "moov atom not found" in stderr:
        return "its index (moov) is missing, as in a file that was cut off"
    return "its headers cannot be read"


# --- from JSON ----------------------------------------------------------------------------------------------------


def _probe(document: dict[str, Any], path: Path, size: int, *, estimated: bool) -> Probe:
    about = document["format"]
    tags = {clean(name, 64).lower(): clean(value) for name, value in about.get("tags", {}).items()}
    container = formats.container_name(str(about.get("format_name", "")), tags.get("major_brand"))
    return Probe(path=path, container=container, size=size, duration_seconds=_seconds(about.get("duration")),
                 duration_estimated=estimated or container in formats.ESTIMATED_CONTAINERS,
                 bit_rate=_int(about.get("bit_rate")), tags=tags,
                 streams=tuple(_stream(one) for one in document.get("streams", ())))


def _stream(one: dict[str, Any]) -> StreamInfo:
    tags = {name.lower(): clean(value) for name, value in one.get("tags", {}).items()}
    disposition = one.get("disposition", {})
    return StreamInfo(
        index=int(one.get("index", 0)), kind=str(one.get("codec_type", "data")), codec=str(one.get("codec_name", "unknown")),
        codec_tag=str(one.get("codec_tag_string", "")), profile=one.get("profile"), width=_int(one.get("width")),
        height=_int(one.get("height")), pixel_format=one.get("pix_fmt"),
        sample_aspect_ratio=_ratio(one.get("sample_aspect_ratio"), ":") or Fraction(1), rotation=_rotation(one, tags),
        average_frame_rate=_ratio(one.get("avg_frame_rate"), "/"), frame_rate=_ratio(one.get("r_frame_rate"), "/"),
        field_order=one.get("field_order"), duration_seconds=_stream_seconds(one, tags),
        start_seconds=_number(one.get("start_time")), packets=_int(one.get("nb_read_packets")),
        sample_rate=_int(one.get("sample_rate")), channels=_int(one.get("channels")), channel_layout=one.get("channel_layout"),
        attached_pic=bool(disposition.get("attached_pic")), default=bool(disposition.get("default")),
        language=tags.get("language"), title=tags.get("title"), timecode=tags.get("timecode"),
        color_range=one.get("color_range"), color_space=one.get("color_space"), color_transfer=one.get("color_transfer"),
        color_primaries=one.get("color_primaries"), bit_rate=_int(one.get("bit_rate")))


def _stream_seconds(one: dict[str, Any], tags: dict[str, str]) -> float | None:
    """A stream's duration; Matroska keeps it as a tag, DURATION or DURATION-eng, `00:00:10.000000000`."""
    own = _seconds(one.get("duration"))
    if own is not None:
        return own
    text = next((value for name, value in tags.items() if name.split("-")[0] == "duration"), "")
    match = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,12})?)", text)
    if match is None:
        return None
    seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return seconds if seconds > 0 else None


def _rotation(one: dict[str, Any], tags: dict[str, str]) -> int:
    """Degrees clockwise, to the nearest quarter turn. ffprobe's side data counts counterclockwise."""
    sides = one.get("side_data_list", ())
    turned = next((_number(side["rotation"]) for side in sides if "rotation" in side), None)
    clockwise = _number(tags.get("rotate")) if turned is None else -turned
    return round((clockwise or 0.0) / 90) * 90 % 360


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds(value: object) -> float | None:
    """A duration that says something: 0 and less is unknown."""
    number = _number(value)
    return number if number is not None and number > 0 else None


def _int(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


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


# --- limits -------------------------------------------------------------------------------------------------------


def _check(found: Probe, score: int, kind: str, label: str) -> None:
    if len(found.streams) > STREAMS_MAX:
        raise InputError("input.too_large", f"{label} has {len(found.streams)} streams; at most {STREAMS_MAX} are accepted.")
    for stream in found.streams:
        _check_stream(stream, label)
    if kind != "media":
        return
    if score < SCORE_MIN or not any(s.kind in ("video", "audio") for s in found.streams):
        raise _not_media(label)
    if not any(s.usable for s in (*found.video, *found.audio)):
        if not formats.looks_like_media(found.path):
            raise _not_media(label)
        raise InputError("input.unreadable", f"{label} is broken: nothing of its streams can be decoded.", AGAIN)


def _check_stream(stream: StreamInfo, label: str) -> None:
    width, height = stream.width or 0, stream.height or 0
    if max(width, height) > SIDE_PIXELS_MAX or width * height > AREA_PIXELS_MAX or (stream.channels or 0) > CHANNELS_MAX:
        raise InputError("input.too_large", f"Stream {stream.index} of {label} is too large: {width} x {height} pixels, "
                         f"{stream.channels or 0} channels.",
                         f"At most {SIDE_PIXELS_MAX} pixels a side and {CHANNELS_MAX} channels are accepted.")
    if stream.codec_tag in ("encv", "enca", "drmi", "drms"):
        raise InputError("input.encrypted", f"Stream {stream.index} of {label} is encrypted.", "Send the file without DRM.")
