"""Where an MP4 or MOV keeps its index, by the boxes at its top level (ISO/IEC 14496-12, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BOXES_MAX = 100_000  # a fragmented recording has two for each fragment
_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"uuid"})


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
    file.seek(0, 2)
    end, at = file.tell(), 0
    for _ in range(BOXES_MAX):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind, shortest = int.from_bytes(head[:4]), head[4:8], 8
        if size == 1 and len(head) == 16:
            size, shortest = int.from_bytes(head[8:]), 16
        elif size == 0:  # to the end of the file
            size = end - at
        if size < shortest:
            return
        yield kind
        at += size
