"""What a stage is. Operators derive their own from `Stage` and register it by dotted path (`stages:` in nommerd.yaml)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from nommerd.job import JobState

if TYPE_CHECKING:
    from nommerd.media.command import Command
    from nommerd.pipeline.context import Context


class StageSettings(BaseModel):
    """Base of every stage's settings: unknown keys are errors, values are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: str | None = Field(None, description="What later stages call it by; the stage's name unless set.")


class Stage(ABC):
    """One step of a pipeline.

    `name` is what the YAML says, `Settings` what may stand under it, `state` what the job shows meanwhile (None: as it
    was), `weight` its share of the job's progress bar in relation to the others. `from_api` says whether pipelines that
    came through the API may use it, with any settings that it takes. A stage is made anew for every attempt.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[StageSettings]] = StageSettings
    state: ClassVar[JobState | None] = JobState.ENCODING
    weight: ClassVar[float] = 1.0
    from_api: ClassVar[bool] = False

    def __init__(self, id: str, settings: Any) -> None:
        self.id = id
        self.settings = settings

    def explain(self, context: Context) -> Sequence[Command]:
        """The commands that `run` would start for these files, without starting any. What they would make is added to the
        context, planned, for the stages that come after; `context.warn` tells what cannot be known before."""
        return ()

    @abstractmethod
    def run(self, context: Context) -> None:
        """Do it. Raises NommerdError; lets WorkStopped pass. Long work reports `context.progress(fraction)` and calls
        `context.stop.check()` at least once a second."""
