"""Bit rates and durations as recipes write them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

_BITRATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kKM]?)(?:bit/s)?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)?")
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:\.\d{1,9})?)")
_FACTORS = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}
_SECONDS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BITRATE_MIN, BITRATE_MAX = 1_000, 2_000_000_000
DURATION_MAX = 7 * 24 * 3600.0


def parse_bitrate(value: Any) -> int:
    """Bits per second from `2500k`, `5M` or a number of bits. ValueError with what would be right."""
    bits: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        bits = value
    elif isinstance(value, str) and (match := _BITRATE.fullmatch(value.strip())):
        bits = float(match[1]) * _FACTORS[match[2]]
    if bits is None or not math.isfinite(bits):
        raise ValueError("expected a bit rate, such as 2500k, 5M or 2500000")
    if not BITRATE_MIN <= bits <= BITRATE_MAX:
        raise ValueError(f"a bit rate is between 1k and 2000M bit/s, not {value}")
    return round(bits)


def parse_duration(value: Any) -> float:
    """Seconds from `10s`, `1:30`, `250ms` or a number of seconds. ValueError with what would be right."""
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        if match := _DURATION.fullmatch(text):
            seconds = float(match[1]) * _SECONDS[match[2]]
        elif match := _CLOCK.fullmatch(text):
            seconds = int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])
    if seconds is None or not math.isfinite(seconds):
        raise ValueError("expected a duration, such as 10s, 250ms, 1:30 or a number of seconds")
    if not 0 <= seconds <= DURATION_MAX:
        raise ValueError("a duration is between 0 and 7 days")
    return seconds


def _bitrate(value: Any) -> int:
    try:
        return parse_bitrate(value)
    except ValueError as error:
        raise PydanticCustomError("bitrate", "{why}", {"why": str(error)}) from None


def _duration(value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise PydanticCustomError("duration", "{why}", {"why": str(error)}) from None


Bitrate = Annotated[int, BeforeValidator(_bitrate), WithJsonSchema({  # bits per second
    "x-type": "bit rate", "anyOf": [{"type": "number", "minimum": BITRATE_MIN, "maximum": BITRATE_MAX},
                                    {"type": "string", "pattern": f"^({_BITRATE.pattern})$"}]})]
Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema({  # seconds
    "x-type": "duration", "anyOf": [{"type": "number", "minimum": 0, "maximum": DURATION_MAX},
                                    {"type": "string", "pattern": f"^({_DURATION.pattern}|{_CLOCK.pattern})$"}]})]
