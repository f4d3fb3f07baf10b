"""Where an MP4 keeps its index."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from nommerd.media.mp4 import is_fast_start, sample_formats, top_boxes
from tests import media


def box(kind: bytes, body: bytes = b"", *, wide: bool = False, size: int | None = None) -> bytes:
    if wide:
        return (1).to_bytes(4) + kind + (16 + len(body)).to_bytes(8) + body
    return (8 + len(body) if size is None else size).to_bytes(4) + kind + body


FTYP, MOOV, MDAT = box(b"ftyp", b"isom"), box(b"moov", b"m" * 9), box(b"mdat", b"d" * 99)


@pytest.mark.parametrize(("body", "expected"), [
    (FTYP + MOOV + MDAT, True), (FTYP + MDAT + MOOV, False), (FTYP + box(b"free") + MOOV + MDAT, True),
    (FTYP + box(b"mdat", b"d" * 50, wide=True) + MOOV, False), (FTYP + MOOV + box(b"mdat", b"d", size=0), True),
    (FTYP + box(b"mdat", b"d", size=0), None), (FTYP + MDAT, None), (b"", None), (b"text, no film", None),
    (b"\x1a\x45\xdf\xa3" * 9, None),
    (FTYP + box(b"free", size=3) + MOOV, None), (FTYP + MOOV[:10], True),
])
def test_the_index_comes_first_or_not(tmp_path: Path, body: bytes, expected: bool | None) -> None:
    (tmp_path / "a.mp4").write_bytes(body)
    assert is_fast_start(tmp_path / "a.mp4") is expected


def test_boxes_are_listed_in_order() -> None:
    assert list(top_boxes(io.BytesIO(FTYP + box(b"mdat", b"x", wide=True) + MOOV))) == [b"ftyp", b"mdat", b"moov"]


def test_ffmpegs_own_files_are_told_apart() -> None:
    assert is_fast_start(media.clip(seconds=2, size="320x180")) is True
    assert is_fast_start(media.clip(seconds=2, size="320x180", faststart=False)) is False
    assert is_fast_start(media.clip(seconds=2, size="320x180", container="mkv")) is None


def test_the_samples_formats_are_read_from_the_index_wherever_it_is(tmp_path: Path) -> None:
    def track(kind: bytes) -> bytes:
        inside = box(b"stsd", bytes(8) + box(kind, b"x" * 40))
        for parent in (b"stbl", b"minf", b"mdia", b"trak"):
            inside = box(parent, inside)
        return inside

    path = tmp_path / "a.mp4"
    path.write_bytes(FTYP + MDAT + box(b"moov", box(b"mvhd", b"m" * 9) + track(b"encv") + track(b"mp4a")))
    assert sample_formats(path) == {b"encv", b"mp4a"}
    path.write_bytes(path.read_bytes()[:-60])
    assert b"encv" in sample_formats(path)
    path.write_bytes(FTYP + MDAT)
    assert sample_formats(path) == frozenset()
