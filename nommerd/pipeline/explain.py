"""What a recipe would do with a source, stage by stage, without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nommerd.errors import Problem, Stop
from nommerd.job import JobState, Staged
from nommerd.journal import shown_argv
from nommerd.media.command import Command
from nommerd.media.probe import Probe
from nommerd.pipeline.context import SOURCE, Context, MediaFile, Task
from nommerd.pipeline.destination import is_folder
from nommerd.pipeline.runner import VERIFY_ID
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.fetch import plain_name, source_path
from nommerd.pipeline.stages.notify import Notify
from nommerd.pipeline.stages.upload import Upload
from nommerd.pipeline.stages.verify import verify_commands
from nommerd.storage.base import StorageRegistry, name_of

if TYPE_CHECKING:
    from nommerd.media.binaries import Binaries

WORKSPACE = Path("/workspace")  # never there; left out of what is shown


class _Nobody:
    """A recorder for what does not happen."""

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        return

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        return

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        return

    def confirm(self) -> None:
        return


@dataclass(frozen=True, slots=True)
class Explained:
    """`commands` by stage, in the order they would run, files of the workspace under their names; `outputs` as they should
    turn out, null for what cannot be known before."""

    commands: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    warnings: list[Problem]


def explain(stages: Sequence[Stage], source: Probe, task: Task, binaries: Binaries, threads: int) -> Explained:
    """Raises what the stages raise for a source that they cannot take: InputError input.*, recipe.*; ConfigError."""
    context = Context(task=task, workspace=WORKSPACE, binaries=binaries, storage=StorageRegistry({}), stop=Stop(),
                      recorder=_Nobody(), threads=threads)
    path = source_path(WORKSPACE, task.source)
    found = replace(source, path=path)
    context.files[SOURCE] = MediaFile(path=path, stage_id=SOURCE, leaf=plain_name(task.source), probe=found,
                                      examined=True)
    commands: list[Command] = []
    outputs: list[dict[str, Any]] = []
    for stage in stages:
        context.stage_id = stage.id
        commands += _before_upload(context, outputs) if isinstance(stage, Upload) else stage.explain(context)
        if type(stage).explain is Stage.explain and not isinstance(stage, Upload | Notify):
            context.warn("explain.unknown_stage", f"What {stage.id} does, and makes, it does not tell before it runs.")
    shown = [{"stage": command.stage, "argv": shown_argv(command.argv, WORKSPACE)} for command in commands]
    return Explained(shown, outputs, context.warnings)


def _before_upload(context: Context, outputs: list[dict[str, Any]]) -> Sequence[Command]:
    """Everything that waits is verified, and then it is published."""
    waiting = context.unpublished
    commands = verify_commands(context, VERIFY_ID)
    for file in waiting:
        file.published = True
        outputs.append(_output(file, context.task.dest))
    return commands


def _output(file: MediaFile, dest: str) -> dict[str, Any]:
    made: dict[str, Any] = file.probe.summary() if file.probe is not None else {}
    name = file.leaf if not dest or is_folder(dest) else name_of(dest)
    return {"stage": file.stage_id, "name": name, "container": made.get("container"),
            "duration_seconds": made.get("duration_seconds"), "streams": made.get("streams")}
