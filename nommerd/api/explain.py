"""POST /v1/explain: what a job would run and make, without running, storing or promising anything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from gevent.lock import BoundedSemaphore
from pydantic import Field, RootModel

from nommerd.api import body as bodies
from nommerd.api.access import Scope
from nommerd.api.answers import Shape
from nommerd.api.jobs import Jobs
from nommerd.api.models import Name, Strict, Submission, Uri, validated
from nommerd.api.probe_body import ProbeBody
from nommerd.api.problems import busy, from_error, refuse
from nommerd.api.recipes import public_inputs
from nommerd.api.route import Answer, Call, Route
from nommerd.api.workers import state_of
from nommerd.errors import ConfigError, InfrastructureError, InputError, NommerdError, Problem
from nommerd.job import Key, utcnow
from nommerd.pipeline.context import Task
from nommerd.pipeline.explain import Explained, explain
from nommerd.pipeline.recipe import Recipe, build_stages
from nommerd.runtime import in_pool
from nommerd.store.base import Store, UnknownJob

if TYPE_CHECKING:
    from nommerd.media.binaries import Binaries
    from nommerd.media.probe import Probe
    from nommerd.pipeline.spec import Registry
    from nommerd.pipeline.stage import Stage

T = TypeVar("T")
PROBE_SECONDS = 10.0
PROBES_MAX = 2  # at a time
PLANS_MAX = 2
QUEUE_SECONDS = 10.0  # for a turn
ASSUMED_SECONDS = 60.0
HERE = Path("source")  # stands for a file that is not here


def _without_default(schema: dict[str, Any]) -> None:
    """The default is none that could be sent."""
    schema.pop("default", None)


class NewJob(Submission):
    """As for POST /v1/jobs, but that `dest` may be left out; `probe` says what the source is."""

    dest: Annotated[Uri, Field(json_schema_extra=_without_default)] = ""
    probe: ProbeBody | None = None


class OldJob(Strict):
    """A job that is there."""

    job: Name


class Explanation(RootModel[NewJob | OldJob]):
    """What is to be explained: a job as it would be submitted, or one that was."""


class CommandAnswer(Shape):
    """One program, as it would be run in a folder that holds the source and becomes full of the rest."""

    stage: str
    argv: list[str]


class PlannedOutput(Shape):
    """What would be made; null is what cannot be known before."""

    stage: str
    name: str | None
    container: str | None
    duration_seconds: float | None
    streams: list[dict[str, Any]] | None


class Remark(Shape):
    """A warning that the job would have, or what is worth knowing."""

    code: str
    message: str
    hint: str
    stage: str | None


class ExplainAnswer(Shape):
    """What would be done."""

    recipe: Annotated[dict[str, Any], Field(description="The recipe, with its `hash`")]
    commands: list[CommandAnswer]
    outputs: list[PlannedOutput]
    warnings: list[Remark]


def explain_routes(jobs: Jobs, registry: Registry, find: Callable[[], Binaries], threads: int) -> list[Route]:
    """`find` brings this machine's ffmpeg and what it can do, or raises ConfigError; `threads` are those of one job."""
    explaining = Explaining(jobs=jobs, registry=registry, find=find, threads=threads)

    def show(call: Call) -> Answer:
        mine = replace(explaining, jobs=jobs.of(call.access.project))
        return Answer(value=mine.answer(bodies.parse_object(call.body())))

    return [Route(method="POST", path="/v1/explain", scope=Scope.SUBMIT, handle=show, request=Explanation,
                  summary="Say what a job would run and make, without running it.",
                  answers={200: ExplainAnswer, 404: None, 409: None, 422: None})]


@dataclass(kw_only=True)
class Explaining:
    """Explains for one project."""

    jobs: Jobs
    registry: Registry
    find: Callable[[], Binaries]
    threads: int
    turns: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(PROBES_MAX))
    planning: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(PLANS_MAX))
    finding: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(1))  # the first time ffmpeg is asked a lot

    def answer(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a body. Raises Refusal."""
        recipe, task, probe = self._old(validated(OldJob, fields)) if "job" in fields else self._new(validated(NewJob, fields))
        try:
            stages = self._aside(build_stages, recipe, self.registry)
        except NommerdError as error:
            raise from_error(error) from None
        remarks: list[Problem] = []
        binaries = self._binaries(remarks)
        try:
            source = probe or self._source(task.source, stages, remarks)
            made = self._aside(explain, stages, source, task, binaries, self.threads)
        except (InputError, ConfigError) as error:
            raise from_error(error, "body.source") from None
        return _answer(recipe, made, remarks)

    def _aside(self, function: Callable[..., T], *args: Any) -> T:
        """Off the hub: what a long pipeline makes of many streams takes a while."""
        if not self.planning.acquire(timeout=QUEUE_SECONDS):
            raise busy("Too many jobs are being explained.")
        try:
            return in_pool(function, *args)
        finally:
            self.planning.release()

    def _new(self, wanted: NewJob) -> tuple[Recipe, Task, Probe | None]:
        recipe = self.jobs.checked(wanted)
        task = Task(job_id="", token=1, attempt=1, source=wanted.source, dest=wanted.dest, on_damage=wanted.on_damage,
                    inputs=recipe.complete_inputs(public_inputs(wanted)))
        return recipe, task, _claimed(wanted.probe) if wanted.probe is not None else None

    def _old(self, wanted: OldJob) -> tuple[Recipe, Task, None]:
        """Without what is secret in its URIs: no command holds any."""
        try:
            job = self.jobs.store.get(Key(self.jobs.project, wanted.job))
        except UnknownJob:
            raise refuse(404, "body.job", "request.unknown_job", f"There is no job {bodies.shown(wanted.job)}.",
                         "Finished jobs are deleted after jobs.keep_finished_days.") from None
        try:
            recipe = Recipe.decode(self.jobs.store.get_recipe(job.recipe))
        except LookupError:
            raise InfrastructureError("internal.no_recipe", "The job's recipe is not in the store.") from None
        return recipe, Task(job_id=job.id, token=1, attempt=1, source=job.source, dest=job.dest, inputs=job.inputs,
                            on_damage=job.on_damage), None

    # --- the source ----------------------------------------------------------------------------------------------

    def _source(self, uri: str, stages: list[Stage], remarks: list[Problem]) -> Probe:
        """What the source is: looked at where it is a file that is here, else a usual one. InputError input.*"""
        path = self._file(uri)
        binaries = self._own() if path is not None else None
        if path is not None and binaries is not None:
            return self._look(path, uri, binaries)
        why = "is not here" if path is None else "cannot be examined here, for there is no ffprobe"
        message = f"The source {why}: H.264 of 1920x1080 at 25 pictures a second with stereo AAC is assumed."
        remarks.append(Problem(code="explain.assumed_source", message=message, hint="Send ffprobe's JSON of it as `probe`."))
        return _claimed(ProbeBody.model_validate(_assumed(stages)))

    def _file(self, uri: str) -> Path | None:
        """The path of a source that is a file on this machine, within the roots."""
        from nommerd.storage.file import path_of

        if uri[:5].lower() != "file:":
            return None
        with suppress(NommerdError, OSError):
            self.jobs.storage.for_uri(uri).check_source(uri)
            path = Path(os.path.realpath(path_of(uri)))
            if path.is_file() and os.access(path, os.R_OK):
                return path
        return None

    def _look(self, path: Path, uri: str, binaries: Binaries) -> Probe:
        from nommerd.media.probe import probe
        from nommerd.pipeline.stages.fetch import plain_name

        if not self.turns.acquire(timeout=QUEUE_SECONDS):
            raise busy("Too many sources are being examined.")
        try:
            return probe(binaries, path, name=plain_name(uri), within_seconds=PROBE_SECONDS)
        finally:
            self.turns.release()

    # --- the programs --------------------------------------------------------------------------------------------

    def _own(self) -> Binaries | None:
        try:
            with self.finding:
                return self.find()
        except ConfigError:
            return None

    def _binaries(self, remarks: list[Problem]) -> Binaries:
        """This machine's ffmpeg; without one, what all live workers have; without any, all that nommerd knows."""
        own = self._own()
        if own is not None:
            return own
        encoders = worker_encoders(self.jobs.store)
        if encoders is None:
            message = "There is no ffmpeg here, and no worker is at work: an ffmpeg with every encoder is assumed."
            remarks.append(Problem(code="explain.assumed_encoders", message=message))
        return assumed_binaries(encoders)


def worker_encoders(store: Store) -> frozenset[str] | None:
    """The encoders that every live worker has; None without a worker."""
    now = utcnow()
    live = [frozenset(worker.encoders) for worker in store.workers() if state_of(worker, now) == "ACTIVE"]
    return frozenset.intersection(*live) if live else None


def assumed_binaries(encoders: frozenset[str] | None) -> Binaries:
    """An ffmpeg with these encoders (None: all) and every filter that is used here."""
    from nommerd.media.binaries import ENCODERS, Binaries

    known = {name for names in ENCODERS.values() for name in names} | {"flac", "pcm_s16le", "pcm_s24le", "pcm_s32le"}
    return Binaries(ffmpeg=Path("ffmpeg"), ffprobe=Path("ffprobe"), version="", encoders=encoders or frozenset(known),
                    filters=frozenset({"zscale", "tonemap", "bwdif", "yadif"}))


def _claimed(body: ProbeBody) -> Probe:
    from nommerd.media.probe import claimed

    try:
        return claimed(body.document(), HERE, "the source")
    except InputError as error:
        raise from_error(error, "body.probe") from None


def _assumed(stages: list[Stage]) -> dict[str, Any]:
    """A usual source, as ffprobe would tell of it: long enough for every clip."""
    clips = [clip for stage in stages if (clip := getattr(stage.settings, "clip", None)) is not None]
    seconds = max(ASSUMED_SECONDS, *(clip.end or clip.start + ASSUMED_SECONDS for clip in clips)) if clips else ASSUMED_SECONDS
    rate = "25/1"
    return {"format": {"format_name": "mov,mp4,m4a,3gp,3g2,mj2", "duration": seconds, "start_time": 0, "tags":
                       {"major_brand": "isom"}},
            "streams": [
                {"index": 0, "codec_type": "video", "codec_name": "h264", "width": 1920, "height": 1080, "pix_fmt": "yuv420p",
                 "avg_frame_rate": rate, "r_frame_rate": rate, "sample_aspect_ratio": "1:1", "duration": seconds,
                 "color_range": "tv", "color_space": "bt709", "color_transfer": "bt709", "color_primaries": "bt709",
                 "disposition": {"default": 1}},
                {"index": 1, "codec_type": "audio", "codec_name": "aac", "sample_rate": "48000", "channels": 2,
                 "channel_layout": "stereo", "duration": seconds, "disposition": {"default": 1}}]}


def _answer(recipe: Recipe, made: Explained, remarks: list[Problem]) -> dict[str, Any]:
    return {"recipe": {"hash": recipe.hash, **json.loads(recipe.document)}, "commands": made.commands, "outputs": made.outputs,
            "warnings": [{"code": one.code, "message": one.message, "hint": one.hint, "stage": one.stage}
                         for one in (*remarks, *made.warnings)]}
