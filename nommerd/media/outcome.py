"""What ffmpeg's end means: who must act, judged by its exit and by what it said. Its own words reach people only cleaned."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from nommerd.errors import EncoderError, InfrastructureError, InputError, NommerdError
from nommerd.media.probe import AGAIN, clean
from nommerd.media.process import Exit

STDERR_BYTES = 256 * 1024  # damage is counted in this much of it
TOO_MANY_ERRORS = 69  # ffmpeg's exit code when -max_error_rate was exceeded
FREE_BYTES_MIN = 1 << 20  # less than this left on the disk: it was full
WORDS_MAX = 200

_LINE = re.compile(r"^(?P<who>(?:\[[^\]]* @ 0x[0-9a-f]+\] )*)\[(?P<level>warning|error|fatal|panic)\] (?P<text>.*)$")
_NOT_INPUT = re.compile(r"\[(?:out#|vost#|aost#|sost#|enc:|null\b|mp4\b|mov @|ipod|matroska @|webm @|mp3 @|adts|ogg|wav|"
                        r"flac @|libx26|libvpx|libaom|libsvt|libmp3|libopus|prores|swscaler|Parsed_|graph|auto_|AVFilter)")
_HARMLESS = re.compile(r"non.?monoton|Application provided|Could not find tag|deprecated|Estimating duration|"
                       r"Queue input is backward|Timestamps are unset|not enough frames to estimate rate|No audio data|"
                       r"matches no streams|has not been used for any stream|first frame is no keyframe|"
                       r"co located POCs unavailable|near\) NaN|skipped? .*(?:samples|frames)", re.IGNORECASE)
_DAMAGE = re.compile(r"corrupt|continuity check|error while decoding|decoding error|invalid (?:data|NAL|packet)|"
                     r"partial file|ended prematurely|truncat|missing picture|concealing|PES packet size|"
                     r"error submitting|header missing|invalid as first byte|exceeds containing", re.IGNORECASE)
_CUT = re.compile(r"packet corrupt|corrupt input packet", re.IGNORECASE)
_WAVE = re.compile(r"\[(?:in#\d+/)?wav @")
# What ffmpeg says after it has said what is wrong.
_GENERAL = re.compile(r"Conversion failed|Error (?:opening output|initializing|reinitializing|while processing)|"
                      r"Error (?:splitting|parsing|sending|configuring|while opening encoder)|Task finished|"
                      r"Nothing was written|Terminating|Could not open encoder|Failed to (?:inject|configure)")
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of ffmpeg's log: which of its parts said it (`[h264 @ 0x…]`), how loud, and what."""

    who: str
    level: str
    text: str

    @property
    def damage(self) -> bool:
        """Whether it says that the input is damaged: any error of what reads or decodes it, and some warnings."""
        if _HARMLESS.search(self.text) or _NOT_INPUT.search(self.who):
            return False
        return bool(_DAMAGE.search(self.text)) or (self.level == "error" and bool(self.who))


def lines(stderr: str) -> list[Line]:
    """The lines of a log written at `-loglevel level+…`."""
    found = (_LINE.match(line) for line in stderr.splitlines())
    return [Line(match["who"], match["level"], match["text"]) for match in found if match]


def damage_count(stderr: str) -> int:
    """How many lines say that the input is damaged."""
    return sum(line.damage for line in lines(stderr))


def only_cut_wave(stderr: str) -> bool:
    """Whether all it says is that a WAV file ends before the length that it claims: that is none where it came from a pipe,
    and it is checked on its own."""
    said = lines(stderr)
    cut = any(_WAVE.match(line.who) and _CUT.search(line.text) for line in said)
    return cut and all(_CUT.search(line.text) for line in said if line.damage)


def last_words(stderr: str, workspace: Path) -> str:
    """The line that says why ffmpeg gave up, without paths and addresses; empty where it said nothing."""
    said = [line.text for line in lines(stderr) if line.level in ("error", "fatal")]
    said = [text for text in said if not _GENERAL.match(text)] or said
    words = re.sub(r"(?:file:)?" + re.escape(str(workspace)) + r"/?", "", said[-1] if said else "")
    return clean(re.sub(r"\b[a-z][a-z0-9+.-]*://\S+|(?<!\w)/[\w.-]+(?:/[^\s:'\"]*)+", "…", words), WORDS_MAX).rstrip(".")


def stopped_from_outside(ended: Exit, workspace: Path) -> NommerdError | None:
    """The error where neither the input nor the options are to blame: a signal, a standstill, a full disk."""
    if ended.stalled or ended.timed_out:
        return EncoderError("encoder.stalled", f"ffmpeg made no progress and was ended after {ended.seconds:.0f} s.",
                            retryable=True)
    if _DISK_FULL.search(ended.stderr) or (not ended.ok and _disk_is_full(workspace)):
        return InfrastructureError("node.disk_full", "The worker's disk is full.",
                                   "Give it more space, fewer slots, or another worker.workspace.")
    if ended.signal is not None:
        return EncoderError("encoder.killed", f"ffmpeg was ended by {signal_name(ended.signal)}.",
                            "That often means that memory ran out." if ended.signal == Signals.SIGKILL else "", retryable=True)
    return None


def signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _disk_is_full(workspace: Path) -> bool:
    try:
        room = os.statvfs(workspace)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < FREE_BYTES_MIN


def damaged(name: str, count: int, *, end: str = "") -> InputError:
    """The error for a source that is too damaged, or damaged at all under `on_damage: fail`."""
    times = f"{count} fault{'' if count == 1 else 's'}" if count else "too many faults"
    return InputError("input.damaged", f"{name} is damaged: {times} while reading it.{end}", AGAIN)
