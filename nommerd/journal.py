"""What one attempt at a job did: its stages and the programs they ran. For operators only: programs may quote a file.

An attempt fills it as it goes; `text` is the whole of it as JSON at any moment, never over LOG_BYTES_MAX.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nommerd import logs
from nommerd.job import Output, utcnow
from nommerd.media.info import clean

if TYPE_CHECKING:
    from nommerd.media.process import Exit

LOG_BYTES_MAX = 64 * 1024
STDERR_BYTES_MAX = 8 * 1024  # of one program, its end
STDERR_BYTES_SHORT = 512  # what an old one is shortened to first
LINE_CHARACTERS_MAX = 1000
COMMANDS_MAX = 100  # the newest: an operator's own stage may run thousands


@dataclass(slots=True)
class Ran:
    """A program that was run. `code` is negative for the signal that ended it; both are None while it runs."""

    argv: list[str]
    code: int | None = None
    seconds: float | None = None
    stderr: str = ""


@dataclass(slots=True)
class StageRun:
    """A stage's turn; `seconds` is None while it lasts."""

    stage: str
    seconds: float | None = None
    commands: list[Ran] = field(default_factory=list)


class Journal:
    """The log of one attempt. `number` is the token of its claim."""

    def __init__(self, number: int = 1, worker: str = "", node: str = "") -> None:
        self.workspace: Path | None = None  # its path is left out of what is shown
        self.source: dict[str, Any] | None = None  # summary of the source's probe
        self.on_save: Callable[[], None] = lambda: None
        self._head = {"number": number, "worker": worker, "node": node, "begun": _stamp(utcnow())}
        self._ended: str | None = None
        self._outcome: str | None = None
        self._outputs: list[dict[str, Any]] = []
        self._stages: list[StageRun] = []
        self._begun = 0.0
        self._truncated = False

    def save(self) -> None:
        """What it says now is worth keeping, if the attempt should die."""
        self.on_save()

    def begin(self, stage: str) -> None:
        """A stage begins, and the one before is over."""
        self.end()
        self._begun = time.monotonic()
        self._stages.append(StageRun(stage))

    def end(self) -> None:
        """The stage is over, however it ended."""
        if self._stages and self._stages[-1].seconds is None:
            self._stages[-1].seconds = round(time.monotonic() - self._begun, 3)

    def program(self, argv: Sequence[str]) -> Callable[[Exit | None], None]:
        """A program begins; what is returned is called with its end (None: it could not be started)."""
        if not self._stages:
            self.begin("")
        ran = Ran(shown_argv(argv, self.workspace))
        self._stages[-1].commands.append(ran)
        self._drop_old()
        begun = time.monotonic()

        def ended(exit: Exit | None) -> None:
            ran.seconds = round(time.monotonic() - begun, 3)
            if exit is not None:
                ran.code = exit.code if exit.signal is None else -exit.signal
                ran.stderr = shown_text(exit.stderr, self.workspace)

        return ended

    def close(self, outcome: str, outputs: Sequence[Output]) -> None:
        """The attempt is over."""
        self.end()
        self._ended, self._outcome = _stamp(utcnow()), outcome
        self._outputs = [{"uri": output.uri, "probe": output.probe} for output in outputs]

    def text(self) -> str:
        """All of it as JSON, at most LOG_BYTES_MAX as UTF-8: what is oldest is shortened first."""
        body: dict[str, Any] = {
            **self._head, "ended": self._ended, "outcome": self._outcome, "source": self.source,
            "outputs": list(self._outputs), "stages": [asdict(stage) for stage in self._stages], "truncated": self._truncated}
        excess = _bytes(body) - LOG_BYTES_MAX
        for shorten in (_stderr_to(STDERR_BYTES_SHORT), _stderr_to(0), _without_commands, _without_probes):
            if excess > 0:
                body["truncated"] = True
                for saved in shorten(body):
                    excess -= saved
                    if excess <= 0:
                        break
        return _printable(_json(body))

    def _drop_old(self) -> None:
        count = sum(len(stage.commands) for stage in self._stages)
        for stage in self._stages:
            if count > COMMANDS_MAX and stage.commands:
                del stage.commands[0]
                self._truncated = True
                return


def shown_argv(argv: Sequence[str], workspace: Path | None) -> list[str]:
    """A command as it was run, but that files in the workspace go by their names: from a copy of it, it runs anywhere."""
    return [_printable(_without(part, workspace)) for part in argv]


def shown_text(text: str, workspace: Path | None) -> str:
    """What a program wrote: its end, without paths of the workspace, secrets and control characters."""
    tail = text if len(text) <= 2 * STDERR_BYTES_MAX else text[-2 * STDERR_BYTES_MAX:].partition("\n")[2]  # whole lines
    tail = logs.redact(_without(tail, workspace))
    lines = (clean(line, LINE_CHARACTERS_MAX) for line in tail.replace("\r", "\n").split("\n"))
    return _tail("\n".join(line for line in lines if line), STDERR_BYTES_MAX)


def _without(text: str, workspace: Path | None) -> str:
    return text if workspace is None or workspace == Path() else text.replace(f"{workspace}/", "")


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _stamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _bytes(value: Any) -> int:
    return len(_json(value).encode("utf-8", "replace"))


def _tail(text: str, bytes_max: int) -> str:
    """Its end, in at most so many bytes."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= bytes_max else "…" + encoded[len(encoded) - bytes_max + 3:].decode("utf-8", "ignore")


# --- ways to shorten, each telling how many bytes it saved -------------------------------------------------------


def _stderr_to(bytes_max: int) -> Callable[[dict[str, Any]], Iterator[int]]:
    def shorten(body: dict[str, Any]) -> Iterator[int]:
        for command in (one for stage in body["stages"] for one in stage["commands"]):
            before = _bytes(command["stderr"])
            command["stderr"] = _tail(command["stderr"], bytes_max) if bytes_max else ""
            yield before - _bytes(command["stderr"])

    return shorten


def _without_commands(body: dict[str, Any]) -> Iterator[int]:
    for stage in body["stages"]:
        while stage["commands"]:
            yield _bytes(stage["commands"].pop(0))


def _without_probes(body: dict[str, Any]) -> Iterator[int]:
    for output in body["outputs"]:
        before = _bytes(output)
        output["probe"] = {}
        yield before - _bytes(output)
    while body["outputs"]:
        yield _bytes(body["outputs"].pop())
    while body["stages"]:
        yield _bytes(body["stages"].pop(0))
