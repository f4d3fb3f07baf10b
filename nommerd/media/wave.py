"""Whether a WAV file is all there (Microsoft's RIFF, EBU Tech 3306 for RF64): ffprobe goes by what is there."""

from __future__ import annotations

from pathlib import Path

CHUNKS_MAX = 1000
STREAMED_BYTES = 0x7FFF_F000  # from here on a length means that its writer could not know it (a pipe)


def claimed_seconds(path: Path) -> float | None:
    """The length that its header claims, if the file is too short for it; None for a whole one, and where nothing is said."""
    rate, long_bytes = 0, 0
    with path.open("rb") as file:
        if file.read(4) not in (b"RIFF", b"RF64") or file.read(8)[4:] != b"WAVE":
            return None
        for _ in range(CHUNKS_MAX):
            head = file.read(8)
            if len(head) < 8:
                return None
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            if kind == b"data":
                size = long_bytes if size == 0xFFFF_FFFF else 0 if size >= STREAMED_BYTES else size
                cut = file.tell() + size > path.stat().st_size
                return size / rate if cut and rate else None
            body = file.read(size) if kind in (b"fmt ", b"ds64") and size < 1000 else b""
            if kind == b"fmt ":
                rate = int.from_bytes(body[8:12], "little")
            elif kind == b"ds64":
                long_bytes = int.from_bytes(body[8:16], "little")
            file.seek(size - len(body) + size % 2, 1)
    return None
