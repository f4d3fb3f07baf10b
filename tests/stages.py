"""What stages are tested with: a context over a real workspace and real binaries, and settings as YAML gives them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nommerd.errors import Problem, Stop
from nommerd.job import JobState, Staged
from nommerd.media.binaries import Binaries, find
from nommerd.pipeline.context import SOURCE, Context, MediaFile, Task
from nommerd.pipeline.stages.ffmpeg import Ffmpeg, FfmpegSettings
from nommerd.storage.base import StorageRegistry
from tests import media


class Listener:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        self.seen.append(progress)

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        self.seen.append(progress)

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        return None

    def confirm(self) -> None:
        return None


@cache
def binaries(name: str = "path") -> Binaries:
    """One of media.BUILDS, asked what it can do."""
    ffmpeg, ffprobe = media.build(name)
    return find(str(ffmpeg), str(ffprobe))


def context(workspace: Path, source: Path | None = None, *, build: str = "path", dest: str = "file:///out.mp4",
            name: str | None = None, **more: Any) -> Context:
    """A context whose source is already fetched. `name` is what the source was called."""
    task = Task(job_id="job", token=1, attempt=1, source="file:///in", dest=dest, on_damage=more.pop("on_damage", None))
    made = Context(task=task, workspace=workspace, binaries=binaries(build), storage=StorageRegistry({}),
                   stop=more.pop("stop", None) or Stop(), recorder=Listener(), **more)
    if source is not None:
        made.files[SOURCE] = MediaFile(path=source, stage_id=SOURCE, leaf=name or source.name)
    return made


def ffmpeg(id: str = "ffmpeg", /, **settings: Any) -> Ffmpeg:
    """The stage with these settings, validated as the loader does."""
    return Ffmpeg(id, parse(**settings))


def parse(**settings: Any) -> FfmpegSettings:
    document = json.dumps({key.rstrip("_"): value for key, value in settings.items()})
    return FfmpegSettings.model_validate_json(document, strict=True)


def codes(made: Context) -> list[str]:
    """The codes of the warnings so far."""
    return [warning.code for warning in made.warnings]
