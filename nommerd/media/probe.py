"""What a media file holds, by ffprobe: opened under a protocol and a format whitelist, so that nothing else is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nommerd.errors import EncoderError, InfrastructureError, InputError, Stop
from nommerd.media import formats
from nommerd.media.binaries import Binaries
from nommerd.media.info import Probe, StreamInfo, clean, from_json, number
from nommerd.media.mp4 import sample_formats
from nommerd.media.process import Exit, output
from nommerd.media.wave import claimed_seconds

__all__ = ["AGAIN", "Probe", "Reach", "StreamInfo", "clean", "probe", "reach"]

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

_ESTIMATED = re.compile(r"Estimating duration from bitrate")
_REFUSED = re.compile(r"not on whitelist", re.IGNORECASE)
_ENCRYPTED = frozenset({b"encv", b"enca", b"encs", b"enct", b"drmi", b"drms"})


def probe(binaries: Binaries, path: Path, kind: str = "media", stop: Stop | None = None, *, name: str | None = None,
          count_packets: bool = False, within_seconds: float = TIMEOUT_SECONDS) -> Probe:
    """What the file at `path` holds. `kind`: media, images or captions; `name` is what messages call the file.

    InputError input.not_media (nothing we know, or a script that names other files), input.unreadable (a container we
    know, but broken, or one that takes longer than `within_seconds`), input.encrypted, input.too_large; `count_packets` reads
    the whole file, takes longer and fills `packets`.
    """
    label = name or clean(path.name)
    size = _size(path, label)
    stop = stop or Stop()
    timeout_seconds = within_seconds + (size / READ_BYTES_PER_SECOND if count_packets else 0.0)
    ended, text = output(_argv(binaries, path, kind, label, count_packets), cwd=path.parent, stop=stop,
                         timeout_seconds=timeout_seconds, max_bytes=JSON_BYTES_MAX)
    stop.check()
    document = _document(text) if ended.ok else None
    if document is None or "format" not in document:
        raise _failure(ended, path, kind, label)
    found = _complete(from_json(document, path, size, estimated=bool(_ESTIMATED.search(ended.stderr))))
    _check(found, int(document["format"].get("probe_score", 100)), kind, label)
    return found


def probe_argv(binaries: Binaries, path: Path, *, count_packets: bool = False) -> list[str]:
    """The command of `probe` for a media file."""
    return _argv(binaries, path, "media", path.name, count_packets)


def claimed(document: dict[str, Any], path: Path, label: str) -> Probe:
    """The probe in ffprobe's JSON that somebody else made, of a file that is not here; its values are known to be of the right
    types. InputError input.too_large, input.not_media."""
    found = from_json(document, path, 0, estimated=False)
    _check_size(found, label)
    if not any(stream.usable for stream in (*found.video, *found.audio)):
        raise _not_media(label)
    return found


@dataclass(frozen=True, slots=True)
class Reach:
    """How far packets go, in seconds from the first: those of some tracks, and those of the whole file."""

    tracks: float
    file: float


def reach(binaries: Binaries, path: Path, tracks: Collection[int], stop: Stop) -> Reach | None:
    """How far the packets of these streams reach; None where that cannot be read. Reads the whole file."""
    argv = [*_opening(binaries, "media"), "-show_entries", "packet=stream_index,pts_time,duration_time", "-of", "csv=p=0",
            "-i", f"file:{path}"]
    ended, text = output(argv, cwd=path.parent, stop=stop, max_bytes=PACKET_LIST_BYTES_MAX,
                         timeout_seconds=TIMEOUT_SECONDS + path.stat().st_size / READ_BYTES_PER_SECOND)
    stop.check()
    if not ended.ok:
        return None
    packets = []
    for line in text.decode(errors="replace").splitlines():
        index, begin, length, *_ = (*line.split(","), "", "")
        at = number(begin)
        if at is not None:
            packets.append((index, at, at + (number(length) or 0.0)))
    wanted = set(map(str, tracks))
    return Reach(_span(packet for packet in packets if packet[0] in wanted), _span(packets))


def _span(packets: Iterable[tuple[str, float, float]]) -> float:
    times = [(begin, end) for _, begin, end in packets]
    return max(end for _, end in times) - min(begin for begin, _ in times) if times else 0.0


def _complete(found: Probe) -> Probe:
    """With the length that a WAV file claims where it was cut: ffprobe tells that of what is there."""
    claimed = claimed_seconds(found.path) if found.container == "wav" else None
    if claimed is None:
        return found
    streams = tuple(replace(stream, duration_seconds=claimed) for stream in found.streams)
    return replace(found, duration_seconds=claimed, duration_estimated=False, streams=streams)


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


# --- limits -------------------------------------------------------------------------------------------------------


def _check_size(found: Probe, label: str) -> None:
    if len(found.streams) > STREAMS_MAX:
        raise InputError("input.too_large", f"{label} has {len(found.streams)} streams; at most {STREAMS_MAX} are accepted.")
    for stream in found.streams:
        _check_stream(stream, label)


def _check(found: Probe, score: int, kind: str, label: str) -> None:
    _check_size(found, label)
    if found.container in ("mp4", "mov") and _ENCRYPTED & sample_formats(found.path):
        raise InputError("input.encrypted", f"{label} is encrypted.", "Send the file without DRM.")
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
