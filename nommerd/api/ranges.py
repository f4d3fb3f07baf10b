"""Range requests (RFC 9110, 14): one range of bytes; everything where more are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ONE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)


class Unsatisfiable(ValueError):
    """No byte of the file is in that range: 416."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` bytes from `start`."""

    start: int
    count: int


def wanted(header: str | None, if_range: str | None, etag: str, size: int) -> Span | None:
    """The one range that is asked for, None for the whole. What is no range of bytes is ignored, as the standard wants it, and
    so is one for another version (`if_range`). Raises Unsatisfiable."""
    match = _ONE.fullmatch(header) if header is not None else None
    if match is None or (if_range is not None and if_range.strip() != etag) or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        if not count:
            raise Unsatisfiable
        return Span(size - count, count)
    first, last = int(match[1]), min(int(match[2]) if match[2] else size - 1, size - 1)
    if match[2] and int(match[2]) < first:
        return None
    if first >= size:
        raise Unsatisfiable
    return Span(first, last - first + 1)
