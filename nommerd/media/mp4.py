"""Where an MP4 or MOV keeps its index, by the boxes at its top level (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BOXES_MAX = 100_000  # a fragmented recording has two for each fragment
_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"uuid"})
_TO_SAMPLE_FORMATS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
_HEADS = {b"stsd": 8}  # bytes before the boxes inside


def is_fast_start(path: Path) -> bool | None:
    """Whether the index (moov) comes before the media (mdat): players can begin while the rest is still on its way.

    None where this is no MP4 or MOV, or one without an index.
    """
    seen_media = False
    with path.open("rb") as file:
        for number, kind in enumerate(top_boxes(file)):
            if number == 0 and kind not in _FIRST:
                return None
            if kind == b"moov":
                return not seen_media
            seen_media = seen_media or kind == b"mdat"
    return None


def top_boxes(file: BinaryIO) -> Iterator[bytes]:
    """The types of the boxes at the top level, in order; ends at the first that is broken."""
    return (kind for kind, _, _ in _boxes(file, 0, file.seek(0, 2)))


def sample_formats(path: Path) -> frozenset[bytes]:
    """The formats of the tracks' samples as the index names them (`avc1`, `mp4a`; `encv`, `enca` where they are encrypted:
    ISO/IEC 14496-12, section 8.12). ffprobe tells what is below the encryption."""
    with path.open("rb") as file:
        return frozenset(_sample_formats(file, 0, file.seek(0, 2), _TO_SAMPLE_FORMATS))


def _sample_formats(file: BinaryIO, begin: int, end: int, way: tuple[bytes, ...]) -> Iterator[bytes]:
    for kind, inside, after in _boxes(file, begin, end):
        if not way:
            yield kind
        elif kind == way[0]:
            yield from _sample_formats(file, inside + _HEADS.get(kind, 0), after, way[1:])


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of what is inside, for each box from `begin` on."""
    at = begin
    for _ in range(BOXES_MAX):
        file.seek(at)
        head = file.read(min(16, max(0, end - at)))
        if len(head) < 8:
            return
        size, kind, shortest = int.from_bytes(head[:4]), head[4:8], 8
        if size == 1 and len(head) == 16:
            size, shortest = int.from_bytes(head[8:]), 16
        elif size == 0:  # to the end of the file
            size = end - at
        if size < shortest:
            return
        yield kind, at + shortest, min(at + size, end)
        at += size
