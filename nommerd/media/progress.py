"""What ffmpeg says of its progress (`-progress pipe:1`): blocks of key=value lines, each ended by a line `progress=…`.

Versions differ in which keys a block has, and any value can be N/A. `out_time_ms` is microseconds, always was; it is left
alone for `out_time_us`. Times before the first packet are large negative numbers in some versions: not known.
"""

from __future__ import annotations

from dataclasses import dataclass

MICRO = 1_000_000
ETA_FRACTION = 0.01  # below this, what has passed says little about what is to come
ETA_ELAPSED_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One block. None is what ffmpeg does not know (no `frame` without video, no `bytes` of a null output)."""

    frame: int | None = None  # video frames written so far
    out_seconds: float | None = None  # media time written so far
    speed: float | None = None  # media seconds per second
    bytes: int | None = None  # of the first output
    dup: int | None = None
    drop: int | None = None
    done: bool = False  # ffmpeg's last block; says nothing about success


class ProgressReader:
    """Takes ffmpeg's lines one by one.

    `last` is the newest whole block; `advanced` says whether the line fed last completed a block that shows more than every
    block before it: what a watchdog wants to know (ffmpeg prints blocks even when it is stuck).
    """

    def __init__(self) -> None:
        self.last = Progress()
        self.advanced = False
        self._furthest: tuple[float, ...] = (0, 0.0, 0)  # frames, seconds, bytes
        self._values: dict[str, str] = {}

    def feed(self, line: str) -> Progress | None:
        """The block that this line completes, None until then. Lines that are no key=value are ignored."""
        self.advanced = False
        key, equals, value = line.strip().partition("=")
        if not equals:
            return None
        self._values[key] = value.strip()
        if key != "progress":
            return None
        block = _block(self._values)
        self._values = {}
        self.last = block
        furthest = (block.frame or 0, block.out_seconds or 0.0, block.bytes or 0)
        self.advanced = block.done or any(now > before for now, before in zip(furthest, self._furthest, strict=True))
        self._furthest = tuple(map(max, furthest, self._furthest))
        return block


def _block(values: dict[str, str]) -> Progress:
    microseconds = _whole(values.get("out_time_us"))
    return Progress(frame=_whole(values.get("frame")), out_seconds=None if microseconds is None else microseconds / MICRO,
                    speed=_real((values.get("speed") or "").removesuffix("x")), bytes=_whole(values.get("total_size")),
                    dup=_whole(values.get("dup_frames")), drop=_whole(values.get("drop_frames")),
                    done=values["progress"] == "end")


def _whole(text: str | None) -> int | None:
    number = _real(text)
    return None if number is None else int(number)


def _real(text: str | None) -> float | None:
    """A number that is not negative and not endless, else None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def fraction(progress: Progress, total_frames: int | None, total_seconds: float | None) -> float | None:
    """How much is done, 0 to 1: by frames where there is video, else by time; None where neither total is known.

    Frames come first because out_time follows the slowest stream, and with sparse ones it stands still.
    """
    if progress.done:
        return 1.0
    if total_frames and progress.frame is not None:
        return min(progress.frame / total_frames, 1.0)
    if total_seconds and progress.out_seconds is not None:
        return min(progress.out_seconds / total_seconds, 1.0)
    return None


def eta_seconds(progress: Progress, done: float | None, elapsed_seconds: float,
                total_seconds: float | None = None) -> float | None:
    """How long it will still take, None where that is not known yet.

    From the fraction `done` and the time it took; early on from ffmpeg's speed, over `total_seconds` of media.
    """
    if progress.done:
        return 0.0
    if done is not None and done >= ETA_FRACTION and elapsed_seconds >= ETA_ELAPSED_SECONDS:
        return elapsed_seconds * (1.0 - done) / done
    if total_seconds and progress.speed:
        return max(total_seconds - (progress.out_seconds or 0.0), 0.0) / progress.speed
    return None
