"""What a stage works with: the task, a workspace, the files so far, and ways to report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nommerd.errors import Problem, Stop
from nommerd.job import JobState, Output, Staged
from nommerd.journal import Journal

if TYPE_CHECKING:
    from nommerd.media.binaries import Binaries
    from nommerd.media.probe import Probe
    from nommerd.media.verify import Expectation
    from nommerd.storage.base import StorageRegistry

SOURCE = "source"  # the id of what fetch brought


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one attempt has to do. URIs are complete, with credentials: they go to storage backends and nowhere else."""

    job_id: str
    token: int
    attempt: int
    source: str
    dest: str
    inputs: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    overwrite: bool = False
    on_damage: str | None = None
    staged: tuple[Staged, ...] = ()  # what earlier attempts left
    warnings: tuple[Problem, ...] = ()  # what they warned of


@dataclass(slots=True, kw_only=True)
class MediaFile:
    """A file in the workspace. `expect` is what verify holds it to; `frames` ffmpeg's last frame count."""

    path: Path
    stage_id: str
    probe: Probe | None = None
    expect: Expectation | None = None
    frames: int | None = None
    consumed: bool = False  # a later media stage took it as input: it is not published
    verified: bool = False
    published: bool = False
    examined: bool = False  # of a planned file: whether ffprobe will have looked at it by then
    fast_start: bool | None = None  # of a planned file: whether its index will come first, where that is known
    leaf: str | None = None  # its name under a destination that ends in "/"; of the source: the name it had


class Recorder(Protocol):
    """Where an attempt's news goes: the store through the lease, or a terminal."""

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        """A stage begins. Raises Fenced."""

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        """How far the job is, 0 to 1 over all stages, and an encode's speed in media seconds a second. Cheap; may be dropped.
        Comes from any thread."""

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        """Durably note what is about to be uploaded (the whole list), and the warnings so far. Raises Fenced."""

    def confirm(self) -> None:
        """Return if the job is still ours by a fresh write; else raise Fenced."""


@dataclass(kw_only=True)
class Context:
    """Made by the runner for one attempt and handed to each stage in turn."""

    task: Task
    workspace: Path
    binaries: Binaries
    storage: StorageRegistry
    stop: Stop
    recorder: Recorder
    threads: int = 0  # for ffmpeg; 0: as many as it likes
    stall_seconds: float = 120.0  # no progress for so long: killed
    files: dict[str, MediaFile] = field(default_factory=dict)
    inputs: dict[str, list[MediaFile]] = field(default_factory=dict)  # what fetch brought besides the source, by name
    published: list[Staged] = field(default_factory=list)  # visible, of this job, now and by earlier attempts: ours to replace
    warnings: list[Problem] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    stage_id: str = ""  # the stage that runs
    journal: Journal = field(default_factory=Journal)  # what operators see of the attempt
    last_media: str = SOURCE  # id of the newest media stage's file
    on_progress: Callable[[float, float | None, float | None], None] = lambda fraction, eta_seconds, speed: None

    def progress(self, fraction: float, eta_seconds: float | None = None, speed: float | None = None) -> None:
        """How far this stage is, 0 to 1, how long it will still take and how fast it is, where that is known."""
        self.on_progress(min(max(fraction, 0.0), 1.0), eta_seconds, speed)

    def warn(self, code: str, message: str, hint: str = "") -> None:
        """Add a warning to the job; the same code and message once."""
        problem = Problem(code=code, message=message, hint=hint, stage=self.stage_id, attempt=self.task.attempt)
        if problem not in self.warnings:
            self.warnings.append(problem)

    def add(self, file: MediaFile) -> None:
        """A media stage's result, under the stage's id."""
        self.files[file.stage_id] = file
        self.last_media = file.stage_id

    def take(self, stage_id: str) -> MediaFile:
        """The file of an earlier stage, as this stage's input: it will not be published on its own."""
        file = self.files[stage_id]
        file.consumed = True
        return file

    def planned(self, stage_id: str, *, decoded: bool = True) -> MediaFile | None:
        """The file of an earlier stage, taken as input, if enough is known of it to plan with (`decoded`: to decode it); else
        None, with a warning that says so."""
        file = self.files.get(stage_id)
        known = file is not None and (file.path.exists() or (file.probe is not None and (
            not decoded or stage_id == SOURCE or file.probe.usable)))
        if file is not None:
            file.consumed = True
        if known:
            return file
        self.unknown(stage_id)
        return None

    def unknown(self, stage_id: str) -> None:
        """Say of a planned stage that it cannot tell what it will do with the file of that one."""
        self.warn("explain.unknown_input", f"What {stage_id} makes is not known before it has run, so these commands are not "
                  "either.", "The log of a job that has run tells them.")

    @property
    def unpublished(self) -> list[MediaFile]:
        """What `upload` publishes: outputs of media stages that no later stage consumed, in their order."""
        return [f for f in self.files.values() if f.stage_id != SOURCE and not f.consumed and not f.published]
