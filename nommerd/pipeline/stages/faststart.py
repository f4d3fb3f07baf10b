"""`faststart`: brings the index of an MP4 or MOV to its front, so that players begin before they have all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from nommerd.errors import InputError
from nommerd.media.command import Command, Job, fast_start
from nommerd.media.mp4 import is_fast_start
from nommerd.media.plan import output_path
from nommerd.media.probe import probe
from nommerd.media.verify import Expectation, output_seconds
from nommerd.pipeline.context import Context, MediaFile
from nommerd.pipeline.encode import run_command, source_name
from nommerd.pipeline.stage import Stage, StageSettings


class FaststartSettings(StageSettings):
    """`input`: an earlier stage's id; default: the media stage before."""

    input: str | None = Field(None, description="An earlier stage's id; the media stage before, unless set.")


class Faststart(Stage):
    """Copies, does not encode. A file whose index already comes first stays as it is."""

    name = "faststart"
    Settings: ClassVar[type[StageSettings]] = FaststartSettings
    weight = 0.05
    settings: FaststartSettings

    def explain(self, context: Context) -> Sequence[Command]:
        """The copy, or nothing where the index comes first already. InputError recipe.not_mp4 for other containers."""
        id = self.settings.input or context.last_media
        file = context.planned(id, decoded=False)
        if file is None:
            context.add(MediaFile(path=output_path(context.workspace, self.id, "unknown"), stage_id=self.id))
            return ()
        first = is_fast_start(file.path) if file.path.exists() else file.fast_start
        if not file.path.exists() and file.probe is not None and file.probe.container not in ("mp4", "mov"):
            raise _not_mp4(id)
        made = self._command(context, file.path, None)
        path = file.path if first else made.output or file.path
        context.add(MediaFile(path=path, stage_id=self.id, probe=file.probe and replace(file.probe, path=path), leaf=file.leaf,
                              expect=file.expect, fast_start=True))
        if first is None:
            context.warn("explain.perhaps", "The copy is only made if the index does not come first already.")
        return () if first else (made,)

    def run(self, context: Context) -> None:
        """InputError recipe.not_mp4 for other containers."""
        id = self.settings.input or context.last_media
        file = context.take(id)
        first = is_fast_start(file.path)
        if first is None:
            raise _not_mp4(id)
        expect = replace(file.expect or self._expect(context, file), fast_start=True)
        path, frames = file.path, file.frames
        if not first:
            command = self._command(context, file.path, expect.duration_seconds)
            last = run_command(context, command, file.path)
            path, frames = command.output or path, last.frame if frames is None else frames
        context.add(MediaFile(path=path, stage_id=self.id, expect=expect, frames=frames, leaf=file.leaf))

    def _command(self, context: Context, path: Path, total_seconds: float | None) -> Command:
        output = output_path(context.workspace, self.id, path.suffix.lstrip(".") or "mp4")
        job = Job(ffmpeg=context.binaries.ffmpeg, stage=self.id, source=path, output=output,
                  pass_log=output.with_suffix(".pass"))
        return fast_start(job, total_seconds)

    def _expect(self, context: Context, file: MediaFile) -> Expectation:
        """Of a file that no stage of ours made: as long as it says it is."""
        found = file.probe or probe(context.binaries, file.path, stop=context.stop, name=source_name(context))
        seconds = output_seconds(found)
        return Expectation(source_name=source_name(context), duration_seconds=seconds, copied=True,
                           duration_certain=seconds is not None and not found.duration_estimated)


def _not_mp4(id: str) -> InputError:
    return InputError("recipe.not_mp4", f"What {id} made is no MP4 or MOV: only these have a fast start.",
                      "Remove the faststart stage, or write an MP4.")
