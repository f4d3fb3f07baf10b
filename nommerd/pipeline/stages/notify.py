"""`notify`: declares that the job's changes are posted to its notify_url. The feeder posts them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nommerd.job import JobState
from nommerd.pipeline.context import Context
from nommerd.pipeline.stage import Stage, StageSettings

StateName = Literal["PENDING", "DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED", "ERROR", "ABANDONED", "CANCELLED"]


class NotifySettings(StageSettings):
    """`states`: which changes are posted; left out, each one."""

    states: tuple[StateName, ...] | None = Field(None, description="The states that are posted; each change unless set.")


class Notify(Stage):
    """Does nothing on a worker: a webhook is due once the state is recorded, also when an earlier stage failed."""

    name = "notify"
    Settings = NotifySettings
    state = None
    weight = 0.0

    @property
    def states(self) -> tuple[JobState, ...] | None:
        """The states to post, None for all."""
        chosen = self.settings.states
        return None if chosen is None else tuple(JobState(name) for name in chosen)

    def run(self, context: Context) -> None:
        return
