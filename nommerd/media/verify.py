"""Whether an output is what it should be, looked at before it is published."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamExpectation:
    """What one stream must be; None where anything will do."""

    kind: str
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    pixel_format: str | None = None
    sample_aspect_ratio: Fraction | None = None
    sample_rate: int | None = None
    channels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What the stage that made a file promises of it.

    `duration_seconds` is that of the longest source track the output was made from, after clipping;
    `duration_certain` is false where the source only estimates it. `source_name` is what messages call the source.
    """

    source_name: str = "the source"
    streams: tuple[StreamExpectation, ...] | None = None  # video and audio, in order; None: whatever is there
    duration_seconds: float | None = None
    duration_certain: bool = True
    frame_seconds: float = 0.0  # of the slowest video, for the tolerance; 0 without
    fast_start: bool = False
    copied: bool = False  # streams were copied: damage in them is the source's
