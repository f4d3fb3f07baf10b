"""Picture sizes and frame rates: a source's picture fitted into a box, with square pixels and even sides."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

STANDARD_RATES = tuple(Fraction(n, d) for n, d in (
    (10, 1), (12, 1), (12_500, 1_000), (15_000, 1_001), (15, 1), (20, 1), (24_000, 1_001), (24, 1), (25, 1), (30_000, 1_001),
    (30, 1), (48_000, 1_001), (48, 1), (50, 1), (60_000, 1_001), (60, 1), (90, 1), (100, 1), (120_000, 1_001), (120, 1),
))
SNAP = Fraction(4, 10_000)  # 24 and 23.976 are 10 in 10,000 apart
NOMINAL = Fraction(1, 100)  # an average so near to what its time stamps say is only blurred by a gap or an odd first frame
LOWEST_RATE = Fraction(1)  # a still would have none to speak of, and no place to seek to
FALLBACK_RATE = Fraction(25)


@dataclass(frozen=True, slots=True)
class Fitted:
    """`width` x `height` come out; the picture itself is scaled to `scaled`, then cropped or padded to that."""

    width: int
    height: int
    scaled: tuple[int, int]

    @property
    def cropped(self) -> bool:
        return self.scaled[0] > self.width or self.scaled[1] > self.height

    @property
    def padded(self) -> bool:
        return self.scaled[0] < self.width or self.scaled[1] < self.height


def fit(source: tuple[int, int], sar: Fraction, width: int | None, height: int | None, *, how: str = "inside",
        upscale: bool = False, turn: bool = True) -> Fitted:
    """Fit a picture (its stored size after rotation, its pixels' shape) into the box; without one, keep its size.

    inside: whole picture, nothing else. crop: box filled, edges lost. pad: box filled, black bars. stretch: box filled,
    shape lost. Without `upscale` no side grows beyond the source's; a box that is turned for a portrait source stays one.
    """
    shown = (source[0] * sar, Fraction(source[1]))
    if turn and _portrait(shown) is not None and _portrait(shown) != _box_portrait(width, height):
        width, height = height, width
    if width is None and height is None:
        size = (_floor_even(shown[0]), _floor_even(shown[1]))
        return Fitted(*size, size)
    box = (Fraction(width or 10**9), Fraction(height or 10**9))
    return _FITS[how](shown, box, upscale)


def _portrait(size: tuple[Fraction, Fraction]) -> bool | None:
    return None if size[0] == size[1] else size[1] > size[0]


def _box_portrait(width: int | None, height: int | None) -> bool:
    """A box with one side open, and a square one, count as landscape."""
    return width is not None and height is not None and height > width


def _inside(shown: tuple[Fraction, Fraction], box: tuple[Fraction, Fraction], upscale: bool) -> Fitted:
    factor = min(box[0] / shown[0], box[1] / shown[1])
    limit = box
    if not upscale and factor >= 1:
        factor, limit = Fraction(1), shown
    size = tuple(min(_even(side * factor), _floor_even(most)) for side, most in zip(shown, limit, strict=True))
    return Fitted(size[0], size[1], (size[0], size[1]))


def _crop(shown: tuple[Fraction, Fraction], box: tuple[Fraction, Fraction], upscale: bool) -> Fitted:
    factor = max(box[0] / shown[0], box[1] / shown[1])
    if not upscale and factor > 1:
        box, factor = (box[0] / factor, box[1] / factor), Fraction(1)
    width, height = _floor_even(box[0]), _floor_even(box[1])
    return Fitted(width, height, (max(width, _even(shown[0] * factor)), max(height, _even(shown[1] * factor))))


def _pad(shown: tuple[Fraction, Fraction], box: tuple[Fraction, Fraction], upscale: bool) -> Fitted:
    return Fitted(_floor_even(box[0]), _floor_even(box[1]), _inside(shown, box, upscale).scaled)


def _stretch(shown: tuple[Fraction, Fraction], box: tuple[Fraction, Fraction], upscale: bool) -> Fitted:
    wanted = box if upscale else (min(box[0], shown[0]), min(box[1], shown[1]))
    size = (_floor_even(wanted[0]), _floor_even(wanted[1]))
    return Fitted(*size, size)


_FITS = {"inside": _inside, "crop": _crop, "pad": _pad, "stretch": _stretch}


def _even(side: Fraction) -> int:
    return max(2, round(side / 2) * 2)


def _floor_even(side: Fraction) -> int:
    return max(2, int(side / 2) * 2)


def constant_rate(average: Fraction | None, stamped: Fraction | None, most: Fraction) -> Fraction:
    """The constant frame rate for a source: its average, made a standard one where it is nearly that, or nearly the rate that
    its time stamps are made for; divided by a whole number where it is over `most`; at least one a second."""
    rate = average or stamped or FALLBACK_RATE
    nearest = min(STANDARD_RATES, key=lambda one: abs(one - rate))
    if abs(nearest - rate) <= rate * SNAP:
        rate = nearest
    elif stamped in STANDARD_RATES and abs(stamped - rate) <= stamped * NOMINAL:
        rate = stamped
    if rate > most:
        rate = rate / ceil(rate / most)
    return max(LOWEST_RATE, rate if rate.denominator <= 1_001 else rate.limit_denominator(1_001))
