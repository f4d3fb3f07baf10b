"""A place for pipelines in tests: a real workspace, real files, real ffmpeg, and a recorder that remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nommerd.errors import Problem, Stop
from nommerd.job import JobState, Staged
from nommerd.media import binaries
from nommerd.pipeline.context import SOURCE, Context, MediaFile, Task
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.fetch import Fetch
from nommerd.pipeline.stages.notify import Notify
from nommerd.pipeline.stages.upload import Upload
from nommerd.storage.base import Storage, StorageRegistry
from nommerd.storage.file import FileStorage, uri_of
from tests import media


@dataclass
class Notes:
    """A recorder that remembers. `on_write(name)` may raise, as a lease would."""

    advances: list[tuple[JobState, str, float]] = field(default_factory=list)
    news: list[tuple[float, str, float | None]] = field(default_factory=list)
    staged: list[tuple[Staged, ...]] = field(default_factory=list)
    warnings: tuple[Problem, ...] = ()
    confirms: int = 0
    on_write: Callable[[str], None] = lambda name: None

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        self.on_write("advance")
        self.advances.append((state, stage_id, progress))

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        self.news.append((progress, stage_id, eta_seconds))

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        self.on_write("stage_outputs")
        self.staged.append(tuple(staged))
        self.warnings = tuple(warnings)

    def confirm(self) -> None:
        self.on_write("confirm")
        self.confirms += 1


class Remake(Stage):
    """Copies the source as one output per name in `leaves`; counts how often any of its kind ran."""

    name = "remake"
    runs = 0

    def __init__(self, id: str, leaves: Sequence[str | None] = (None,),
                 act: Callable[[Context], object] = lambda context: None) -> None:
        super().__init__(id, None)
        self.leaves, self.act = leaves, act

    def run(self, context: Context) -> None:
        type(self).runs += 1
        context.progress(0.5)
        self.act(context)
        source = context.take(SOURCE)
        for number, leaf in enumerate(self.leaves):
            path = media.copy(source.path, context.workspace / f"{self.id}-{number}.mp4")
            context.add(MediaFile(path=path, stage_id=self.id if len(self.leaves) == 1 else f"{self.id}-{number}", leaf=leaf))


class Scene:
    """`context()` is one attempt at making `dest` from `source`; the token grows with each."""

    def __init__(self, folder: Path, *, seconds: float = 1.0, dest: str = "out.mp4",
                 backends: Mapping[str, Storage] | None = None) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir()
        self.source = media.copy(media.clip(seconds=seconds, size="160x120"), self.files / "in.mp4")
        self.dest = self.files / dest
        self.dest_uri = uri_of(self.dest) + ("/" if dest.endswith("/") else "")
        self.storage = StorageRegistry({"file": FileStorage([self.files], 10**9), **(backends or {})})
        self.stop = Stop()
        self.token = 0

    def context(self, *, staged: tuple[Staged, ...] = (), **task: Any) -> Context:
        self.token += 1
        workspace = self.folder / f"work-{self.token}"
        workspace.mkdir()
        given = {"source": uri_of(self.source), "dest": self.dest_uri, **task}
        return Context(task=Task(job_id="job", token=self.token, attempt=self.token, staged=staged, **given),
                       workspace=workspace, binaries=binaries.find(None, None), storage=self.storage, stop=self.stop,
                       recorder=Notes())

    @property
    def parts(self) -> list[str]:
        """Half-made outputs that are lying about."""
        return [path.name for path in self.files.rglob("*.part")]


def notes(context: Context) -> Notes:
    assert isinstance(context.recorder, Notes)
    return context.recorder


def stages(*middle: Stage) -> list[Stage]:
    """fetch, these, upload, notify."""
    return [Fetch("fetch", None), *middle, Upload("upload", None), Notify("notify", Notify.Settings())]


def next_attempt(scene: Scene, before: Context, **task: Any) -> Context:
    """The attempt after `before`, with what the record kept of it."""
    kept = notes(before).staged[-1] if notes(before).staged else before.task.staged
    return scene.context(staged=kept, **task)


__all__ = ["Notes", "Remake", "Scene", "next_attempt", "notes", "stages"]
