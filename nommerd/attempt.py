"""One attempt at a claimed job: from its recipe to a verdict. Nothing here writes the record but through the recorder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path

from nommerd import lifecycle, logs
from nommerd.errors import CancelRequested, Fenced, InfrastructureError, NommerdError, Problem, ShuttingDown, Stop, WorkStopped
from nommerd.job import Job, Output, Owner
from nommerd.joblog import LogKeeper
from nommerd.journal import Journal
from nommerd.lifecycle import Change
from nommerd.media.binaries import Binaries
from nommerd.pipeline.context import Context, Recorder, Task
from nommerd.pipeline.recipe import Recipe, UnknownSchema, build_stages
from nommerd.pipeline.runner import adopt_outputs, problem_of, run_pipeline
from nommerd.pipeline.stage import Stage
from nommerd.rules import RELEASE_SECONDS
from nommerd.secrets import Keyring
from nommerd.storage.base import StorageRegistry
from nommerd.store.base import Store
from nommerd.workspace import Workspaces


class Outcome(Enum):
    """How an attempt ended."""

    FINISHED = "finished"
    FAILED = "failed"
    GIVEN_BACK = "given back"  # not the job's fault: the attempt is not charged
    CANCELLED = "cancelled"
    FENCED = "fenced"  # no longer ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the record must say now."""

    outcome: Outcome
    outputs: Sequence[Output] = ()
    warnings: Sequence[Problem] = ()
    problem: Problem | None = None
    why: str = ""
    delay_seconds: float = 0.0  # before a job that was given back is tried again

    def change(self, owner: Owner, max_attempts: int, at: datetime) -> Change:
        """The change that settles the job."""
        if self.outcome is Outcome.FINISHED:
            return lifecycle.finish(owner, self.outputs, self.warnings, at)
        if self.outcome is Outcome.CANCELLED:
            return lifecycle.stop_cancelled(owner, at)
        if self.outcome is Outcome.GIVEN_BACK:
            return lifecycle.give_back(owner, self.why, at)
        problem = self.problem or Problem(code="node.lease_lost", message="Its worker could not renew the lease in time.",
                                          hint="The store was out of reach, or the worker stood still.", retryable=True)
        return lifecycle.fail(owner, problem, self.warnings, max_attempts, at)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every attempt of a worker works with."""

    store: Store
    storage: StorageRegistry
    stages: Mapping[str, type[Stage]]
    binaries: Binaries
    keyring: Keyring
    workspaces: Workspaces
    threads: int = 0
    stall_seconds: float = field(default=120.0)
    keep_days: float = 30.0  # for the logs of attempts


def attempt(job: Job, tools: Tools, stop: Stop, recorder: Recorder) -> Verdict:
    """Run a claimed job's pipeline, unless it may only adopt, and keep a log of it. Never raises an Exception; the workspace
    is gone when it returns."""
    journal = Journal(job.token, job.owner.worker if job.owner else "", job.owner.node if job.owner else "")
    keeper = LogKeeper(tools.store, job.key, job.token, journal.text, tools.keep_days)
    journal.on_save = keeper.save
    context = Context(task=Task(job_id=job.id, token=job.token, attempt=job.attempts_charged, source="", dest=""),
                      workspace=Path(), binaries=tools.binaries, storage=tools.storage, stop=stop, recorder=recorder,
                      threads=tools.threads, stall_seconds=tools.stall_seconds, journal=journal)
    try:
        verdict = _attempt(job, tools, context)
        journal.close(verdict.outcome.name.lower(), context.outputs)
        return verdict
    finally:
        keeper.finish()


def _attempt(job: Job, tools: Tools, context: Context) -> Verdict:
    try:
        stages = build_stages(_recipe(job, tools.store), tools.stages)
        context.task = make_task(job, tools.keyring)
        if job.adopt_only:
            return _adopted_or_not(job, stages, context)
        workspace = tools.workspaces.open(job.id, job.token)
        failed = True
        try:
            context.workspace = workspace.path
            run_pipeline(stages, context)
            failed = False
        except WorkStopped:
            failed = False
            raise
        finally:
            workspace.close(failed=failed)
        return Verdict(outcome=Outcome.FINISHED, outputs=context.outputs, warnings=context.warnings)
    except WorkStopped as reason:
        return _stopped(reason, context)
    except Exception as error:
        return _failed(error, context)


def _adopted_or_not(job: Job, stages: Sequence[Stage], context: Context) -> Verdict:
    """FINISHED if an earlier attempt published everything, else what that attempt failed of."""
    if adopt_outputs(stages, context):
        return Verdict(outcome=Outcome.FINISHED, outputs=context.outputs, warnings=context.warnings)
    return Verdict(outcome=Outcome.FAILED, problem=job.error, warnings=job.warnings)


def make_task(job: Job, keyring: Keyring) -> Task:
    """What the attempt has to do, its URIs complete. Raises ConfigError where no key fits."""
    full = keyring.decrypt(job.secrets) if job.secrets else {}
    hidden = full.get("inputs", {})
    inputs = {name: [{**item, "uri": uri} for item, uri in zip(items, hidden[name], strict=True)] if name in hidden else items
              for name, items in job.inputs.items()}
    return Task(job_id=job.id, token=job.token, attempt=job.attempts_charged, source=full.get("source", job.source),
                dest=full.get("dest", job.dest), inputs=inputs, overwrite=job.overwrite, on_damage=job.on_damage,
                staged=job.staged, warnings=job.warnings)


def full_dest(job: Job, keyring: Keyring) -> str:
    """The destination with its credentials. Raises ConfigError where no key fits."""
    full: dict[str, str] = keyring.decrypt(job.secrets) if job.secrets else {}
    return full.get("dest", job.dest)


def threads_per_job(configured: int | str, slots: int) -> int:
    """ffmpeg's threads: as configured, else this process's processors shared among its slots."""
    if not isinstance(configured, str):
        return configured
    affinity = getattr(os, "sched_getaffinity", None)
    processors = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, processors // slots)


def _recipe(job: Job, store: Store) -> Recipe:
    try:
        return Recipe.decode(store.get_recipe(job.recipe))
    except LookupError:
        raise InfrastructureError("internal.no_recipe", "The job's recipe is not in the store.") from None


def _stopped(reason: WorkStopped, context: Context) -> Verdict:
    if isinstance(reason, CancelRequested):
        return Verdict(outcome=Outcome.CANCELLED)
    if isinstance(reason, ShuttingDown):
        return Verdict(outcome=Outcome.GIVEN_BACK, why="shutting down")
    why = str(reason) if isinstance(reason, Fenced) else type(reason).__name__
    return Verdict(outcome=Outcome.FENCED, warnings=context.warnings, why=why)


def _failed(error: Exception, context: Context) -> Verdict:
    """What stopped the work explains what failed after it: a stop wins over errors it caused."""
    if context.stop.reason is not None:
        return _stopped(context.stop.reason, context)
    if isinstance(error, UnknownSchema):
        return Verdict(outcome=Outcome.GIVEN_BACK, why=error.code, delay_seconds=RELEASE_SECONDS)
    problem = problem_of(error, context)
    if not isinstance(error, NommerdError):
        logs.get().error("attempt.failed", code=problem.code, stage=problem.stage, exc_info=True)
    return Verdict(outcome=Outcome.FAILED, problem=problem, warnings=context.warnings)
