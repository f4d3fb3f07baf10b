"""Runs one ffmpeg command of a stage: progress out, watchdog on, and its end judged."""

from __future__ import annotations

import time
from pathlib import Path

from nommerd import metrics
from nommerd.errors import EncoderError, InputError, NommerdError
from nommerd.media import outcome
from nommerd.media.command import Command
from nommerd.media.probe import clean
from nommerd.media.process import Exit, run
from nommerd.media.progress import Progress, ProgressReader, eta_seconds, fraction
from nommerd.media.verify import decode_argv
from nommerd.pipeline.context import SOURCE, Context

MEASURE_WEIGHT, WRITE_WEIGHT = 2, 3  # how long a pass that only measures takes, against the one that writes
LOOK_SECONDS = 60.0  # for finding out whether a failed encode was its input's fault


def run_command(context: Context, command: Command, input_path: Path, *, part: tuple[int, int] = (0, 1),
                fails_on_damage: bool = False) -> Progress:
    """Run it to its end and return its last progress. `part` is its number among the stage's commands, from 0, and how many.

    Raises stop's reason; InputError input.damaged, input.unreadable; EncoderError encoder.killed, encoder.stalled (both
    retryable), encoder.failed; InfrastructureError node.disk_full. Damage that ffmpeg got over is a warning.
    """
    watch = _Watch(context, command, *part)
    context.journal.save()
    ended = run(command.argv, cwd=context.workspace, stop=context.stop, on_line=watch.line,
                stall_seconds=context.stall_seconds, stderr_bytes=outcome.STDERR_BYTES)
    context.stop.check()
    _judge(context, ended, input_path, fails_on_damage)
    watch.note_speed()
    return watch.reader.last


def source_name(context: Context) -> str:
    """What messages call the source: the name it had, without its path."""
    source = context.files.get(SOURCE)
    return clean(source.leaf or source.path.name) if source is not None else "the source"


def _judge(context: Context, ended: Exit, input_path: Path, fails_on_damage: bool) -> None:
    outside = outcome.stopped_from_outside(ended, context.workspace)
    if outside is not None:
        raise outside
    faults, name = outcome.damage_count(ended.stderr), source_name(context)
    if ended.ok and outcome.only_cut_wave(ended.stderr):
        faults = 0
    if ended.code == outcome.TOO_MANY_ERRORS or (faults and fails_on_damage):
        raise outcome.damaged(name, faults)
    if not ended.ok:
        raise _failure(context, ended, input_path)
    if faults:
        context.warn("input.damaged", f"{name} is damaged; what could be decoded was used.",
                     "Compare the output with the source; `on_damage: fail` makes this an error.")


def _failure(context: Context, ended: Exit, input_path: Path) -> NommerdError:
    """Whose fault it was: the input's if that cannot be decoded to nowhere either."""
    words = outcome.last_words(ended.stderr, context.workspace)
    said = f": {words}" if words else ""
    look = run(decode_argv(context.binaries.ffmpeg, input_path, "full", video=True), cwd=context.workspace, stop=context.stop,
               stall_seconds=None, timeout_seconds=LOOK_SECONDS)
    context.stop.check()
    if look.code not in (0, None):
        return InputError("input.unreadable", f"{source_name(context)} cannot be decoded{said}.", "Send the file again.")
    return EncoderError("encoder.failed", f"ffmpeg ended with code {ended.code}{said}.",
                        "Its options may not fit this source.")


class _Watch:
    """Turns ffmpeg's progress lines into the stage's progress, and tells the watchdog whether anything moves."""

    def __init__(self, context: Context, command: Command, number: int, count: int) -> None:
        self.reader = ProgressReader()
        self._context, self._command = context, command
        weights = [*[MEASURE_WEIGHT] * (count - 1), WRITE_WEIGHT]
        self._before, self._here, self._after = sum(weights[:number]), weights[number], sum(weights[number + 1 :])
        self._begun = time.monotonic()

    def line(self, line: str) -> bool:
        block = self.reader.feed(line)
        if block is not None:
            self._report(block)
        return self.reader.advanced

    def note_speed(self) -> None:
        """Of a command that is done."""
        elapsed, media_seconds = time.monotonic() - self._begun, self.reader.last.out_seconds
        if media_seconds and elapsed > 0:
            metrics.ENCODE_SPEED.observe(media_seconds / elapsed)

    def _report(self, block: Progress) -> None:
        done = fraction(block, self._command.total_frames, self._command.total_seconds)
        if done is None:
            return
        elapsed = time.monotonic() - self._begun
        left = eta_seconds(block, done, elapsed, self._command.total_seconds)
        if left is not None:
            left += self._after / self._here * (elapsed + left)
        whole = self._before + self._here + self._after
        self._context.progress((self._before + done * self._here) / whole, left, block.speed)
