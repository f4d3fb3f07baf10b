"""Runs a pipeline's stages in order and tells the recorder where the job is, for workers and for `nommerd encode`."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nommerd import metrics
from nommerd.errors import InfrastructureError, NommerdError, Problem, at_stage
from nommerd.job import JobState
from nommerd.media.process import observed
from nommerd.pipeline.adoption import adopt
from nommerd.pipeline.context import SOURCE, Context
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages.notify import Notify
from nommerd.pipeline.stages.upload import Upload
from nommerd.pipeline.stages.verify import verify_outputs

VERIFY_ID = "verify"  # of the verification that precedes each upload
VERIFY_WEIGHT = 0.05  # about what reading and decoding key frames costs beside an encode
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def run_pipeline(stages: Sequence[Stage], context: Context) -> None:
    """Run the stages; `context.outputs` and `context.warnings` are the result.

    Nothing runs where an earlier attempt already published every output: they are adopted. Raises what a stage raises;
    `context.stage_id` then is that stage, see `problem_of`.
    """
    if adopt_outputs(stages, context):
        return
    steps = plan(stages)
    bar = _Bar(context, steps)
    context.journal.workspace = context.workspace
    with observed(context.journal.program):
        for step in steps:
            context.stop.check()
            bar.begin(step)
            _run_noted(step, context)
    context.stop.check()


def _run_noted(step: Step, context: Context) -> None:
    """Run the step, and let the journal know what it was and what the source turned out to be."""
    context.journal.begin(step.id)
    begun = time.monotonic()
    try:
        step.run(context)
    finally:
        metrics.STAGE_SECONDS.observe(time.monotonic() - begun, step.kind)
        context.journal.end()
        source = context.files.get(SOURCE)
        if context.journal.source is None and source is not None and source.probe is not None:
            context.journal.source = source.probe.summary()


def adopt_outputs(stages: Sequence[Stage], context: Context) -> bool:
    """Whether an earlier attempt already published all that the pipeline makes; `context.outputs` is the result then."""
    return adopt(context, whole=_publishes_once(stages))


def problem_of(error: Exception, context: Context) -> Problem:
    """What the record says about an error that a pipeline raised: its stage and attempt filled in."""
    if isinstance(error, NommerdError):
        known: NommerdError = error
    elif isinstance(error, OSError) and error.errno in DISK_FULL:
        known = InfrastructureError("node.disk_full", "The worker's disk is full.",
                                    "Give it more space, fewer slots, or another worker.workspace.")
    else:
        known = InfrastructureError("internal.error", f"An unexpected {type(error).__name__} stopped the job.",
                                    "The worker's log has the traceback.")
    return at_stage(known.problem(), context.stage_id or None, context.task.attempt)


def _publishes_once(stages: Sequence[Stage]) -> bool:
    """Whether everything is published by one upload, with nothing to do after it."""
    uploads = [index for index, stage in enumerate(stages) if isinstance(stage, Upload)]
    return len(uploads) == 1 and all(isinstance(stage, Notify) for stage in stages[uploads[0] + 1:])


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: a stage, or the verification before an upload."""

    id: str
    state: JobState | None
    weight: float
    run: Callable[[Context], None]
    kind: str  # the stage's name in YAML, whatever its id


def plan(stages: Sequence[Stage]) -> list[Step]:
    """What is run, in order: every upload is preceded by a verification."""
    steps: list[Step] = []
    for stage in stages:
        if isinstance(stage, Upload):
            steps.append(Step(VERIFY_ID, None, VERIFY_WEIGHT, _verify, VERIFY_ID))
        steps.append(Step(stage.id, stage.state, stage.weight, stage.run, stage.name))
    return steps


def _verify(context: Context) -> None:
    if any(not file.verified for file in context.unpublished):
        verify_outputs(context)


class _Bar:
    """One progress bar over all steps: each its share by weight, never going back."""

    def __init__(self, context: Context, steps: Sequence[Step]) -> None:
        self._context = context
        self._total = sum(step.weight for step in steps) or 1.0
        self._done = 0.0  # weight of finished steps
        self._step: Step | None = None
        self._state: JobState | None = None
        self._begun = 0.0
        self._overall = 0.0
        context.on_progress = self.progress

    def begin(self, step: Step) -> None:
        """The step before is over. Steps without a state keep the last one, and are told with the next news."""
        if self._step is not None:
            self._done += self._step.weight
        self._step, self._begun = step, time.monotonic()
        self._overall = max(self._overall, min(1.0, self._done / self._total))
        self._context.stage_id = step.id
        if step.state is None or step.weight == 0:
            self._context.recorder.progress(self._overall, step.id, None)
            return
        self._context.recorder.advance(step.state, step.id, self._overall)

    def progress(self, fraction: float, eta_seconds: float | None, speed: float | None) -> None:
        """The step's own news becomes the job's."""
        if self._step is None:
            return
        overall = (self._done + self._step.weight * fraction) / self._total
        self._overall = max(self._overall, min(1.0, overall))
        self._context.recorder.progress(self._overall, self._step.id, self._eta(fraction, eta_seconds), speed)

    def _eta(self, fraction: float, eta_seconds: float | None) -> float | None:
        """Seconds until all is done: the rest of this step, and later ones at the same speed per weight. Downloading says
        nothing about how fast the encoding will be."""
        step = self._step
        if step is None or step.weight == 0 or step.state is JobState.DOWNLOADING or fraction <= 0:
            return None
        elapsed = time.monotonic() - self._begun
        left = elapsed * (1 - fraction) / fraction if eta_seconds is None else eta_seconds
        later = max(0.0, self._total - self._done - step.weight)
        return round(left + (elapsed + left) / step.weight * later, 1)
