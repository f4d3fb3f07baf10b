"""What can go wrong, sorted by who must act; that alone decides what is retried.

Every error carries a stable code (`family.name`, see docs/errors.md), one sentence for people and a hint that says
what to do. `Fenced`, `CancelRequested` and `ShuttingDown` are no errors: they stop work that is no longer wanted here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error or a warning, as the record, the API, webhooks and the command line show it."""

    code: str
    message: str
    hint: str = ""
    stage: str | None = None
    attempt: int | None = None
    retryable: bool = False


class NommerdError(Exception):
    """An error that names who must act. `place` says where in the input it stands (a field, or file:line:column)."""

    retryable = False

    def __init__(self, code: str, message: str, hint: str = "", *, place: str | None = None,
                 retryable: bool | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.place = place
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.code}: {self.message}" + (f" {self.hint}" if self.hint else "")

    def problem(self, *, stage: str | None = None, attempt: int | None = None) -> Problem:
        """This error as the record keeps it."""
        return Problem(code=self.code, message=self.message, hint=self.hint, stage=stage, attempt=attempt,
                       retryable=self.retryable)


class InputError(NommerdError):
    """The caller must change what was sent: the source, the request, the recipe. Never retried."""


class ConfigError(NommerdError):
    """The operator must change the configuration, a pipeline or a preset. Never retried."""


class InfrastructureError(NommerdError):
    """Disk, network, database, a lost node: retried while attempts last."""

    retryable = True


class EncoderError(NommerdError):
    """ffmpeg failed. A killed or hanging one is retried (`retryable=True`), one that refused its input is not."""


class ManyErrors(NommerdError):
    """Several faults found in one go, each with its place; the first one gives the code."""

    def __init__(self, errors: list[NommerdError]) -> None:
        first = errors[0]
        super().__init__(first.code, first.message, first.hint, place=first.place)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class WorkStopped(Exception):
    """The work must end here without a verdict on the job."""


class Fenced(WorkStopped):
    """The job is no longer ours: its token was raised, its lease was broken, or it is final."""


class CancelRequested(WorkStopped):
    """Someone cancelled the job."""


class ShuttingDown(WorkStopped):
    """This worker is stopping: the work goes back to the queue, not charged."""


class Stop:
    """Tells work, cooperatively, that it must end and why. The first reason stays. Safe between threads."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason: WorkStopped | None = None

    def set(self, reason: WorkStopped) -> None:
        if self.reason is None:
            self.reason = reason
            self._event.set()

    def is_set(self) -> bool:
        return self.reason is not None

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason

    def wait(self, timeout_seconds: float) -> bool:
        """True as soon as the work must stop, False after `timeout_seconds`."""
        return self._event.wait(timeout_seconds)


def at_stage(problem: Problem, stage: str | None, attempt: int | None) -> Problem:
    """The problem with its stage and attempt filled in where it names none."""
    return replace(problem, stage=problem.stage or stage, attempt=problem.attempt or attempt)
