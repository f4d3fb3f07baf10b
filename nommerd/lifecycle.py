"""Every change a job can undergo, each a pure function of the record. `Store.update` writes them.

A function here returns a `Change`: record in, record out. The change returns the very same record where there is
nothing to do (also when our own earlier write, whose answer was lost, already did it) and raises where it is not
allowed. What an owner does is checked against its claim: `Fenced` once the token has moved on or the job is final.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from nommerd.errors import Fenced, Problem
from nommerd.job import (
    ATTEMPTS_KEPT,
    DELIVERIES_KEPT,
    WARNINGS_KEPT,
    Attempt,
    Delivery,
    Job,
    JobState,
    Output,
    Owner,
    Staged,
    Webhook,
)

Change = Callable[[Job], Job]
RETRYABLE_STATES = frozenset({JobState.ERROR, JobState.ABANDONED, JobState.CANCELLED})


class Refused(Exception):
    """The record does not allow this change now; `job` is the record as it was seen."""

    def __init__(self, job: Job, why: str) -> None:
        super().__init__(f"job {job.id} is {job.state}: {why}")
        self.job = job


class NotClaimable(Refused):
    """Final, someone else's, or not waiting for a worker."""


# --- before and after the work -----------------------------------------------------------------------------------


def sent(message_id: str, at: datetime) -> Change:
    """Its message is on the bus. Leaves claimed and settled jobs alone."""

    def change(job: Job) -> Job:
        if job.claimed or job.sweep_at is None:
            return job
        return replace(job, message_id=message_id, sent_at=at)

    return change


def dead_lettered(message_id: str, at: datetime) -> Change:
    """The bus gave up on this message: if the job still waits for it, the sweeper must send another."""

    def change(job: Job) -> Job:
        if job.claimed or job.state.final or job.message_id not in (None, message_id):
            return job
        return replace(job, message_id=None, sent_at=at)

    return change


def cancel(at: datetime) -> Change:
    """CANCELLED at once when nobody works on it, else a flag its owner acts on. Refused on another final state."""

    def change(job: Job) -> Job:
        if job.state is JobState.CANCELLED or (job.cancel_requested and job.claimed):
            return job
        if job.state.final:
            raise Refused(job, "only a job that is not final can be cancelled")
        if job.claimed:
            return replace(job, cancel_requested=True)
        return job.move(JobState.CANCELLED, at, cancel_requested=True, eta_seconds=None, speed=None, error=None)

    return change


def retry(at: datetime) -> Change:
    """From the beginning, same id and recipe, no attempt charged. Refused unless ERROR, ABANDONED or CANCELLED."""

    def change(job: Job) -> Job:
        if job.state not in RETRYABLE_STATES:
            raise Refused(job, "only an ERROR, ABANDONED or CANCELLED job can be retried")
        return job.move(JobState.PENDING, at, attempts_charged=0, cancel_requested=False, error=None,
                        warnings=_warned(job, ()), progress=0.0, stage=None, message_id=None, sent_at=at)

    return change


def abandon(at: datetime) -> Change:
    """ABANDONED, if it was claimed at least once and nobody works on it now."""

    def change(job: Job) -> Job:
        if job.claimed or job.state.final or job.token == 0:
            return job
        return job.move(JobState.ABANDONED, at, eta_seconds=None, speed=None)

    return change


def unstaged(handles: Sequence[str], published: bool = False) -> Change:
    """These staging handles of a settled job were revoked. Where some of its outputs are `published` all the same, the list
    stays without its handles: a retry must know that they are the job's own, and that others are missing."""

    def change(job: Job) -> Job:
        if not job.state.final:
            return job
        revoked = (replace(s, handle="") if s.handle in handles else s for s in job.staged)
        left = tuple(s for s in revoked if s.handle or published)
        return job if left == job.staged else replace(job, staged=left)

    return change


# --- by its owner ------------------------------------------------------------------------------------------------


def claim(owner: Owner, message_id: str, lease_seconds: float, at: datetime) -> Change:
    """Ours, under a token one higher, and charged unless it may only adopt. Raises NotClaimable where it is final or
    someone's."""

    def change(job: Job) -> Job:
        if job.owner is not None and job.owner.claim == owner.claim:
            return job
        if job.state is not JobState.PENDING or job.claimed:
            raise NotClaimable(job, "not waiting for a worker")
        token = job.token + 1
        attempt = Attempt(number=token, worker=owner.worker, node=owner.node, begun=at)
        return replace(job, owner=owner, token=token, attempts_charged=job.attempts_charged + (not job.adopt_only),
                       message_id=message_id, lease_version=job.lease_version + 1, lease_seconds=lease_seconds, progress=0.0,
                       stage=None, eta_seconds=None, speed=None,
                       attempts=(*job.attempts, attempt)[-ATTEMPTS_KEPT:])

    return change


def renew(owner: Owner, progress: float, stage: str | None, eta_seconds: float | None,
          speed: float | None = None) -> Change:
    """Ours for another lease."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        return replace(job, lease_version=job.lease_version + 1, progress=progress, stage=stage, eta_seconds=eta_seconds,
                       speed=speed)

    return change


def advance(owner: Owner, state: JobState, stage: str, progress: float, at: datetime) -> Change:
    """A stage begins; its state is an event unless the job is in it already."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        news: dict[str, Any] = {"stage": stage, "progress": progress, "speed": None, "lease_version": job.lease_version + 1}
        return replace(job, **news) if job.state is state else job.move(state, at, **news)

    return change


def stage(owner: Owner, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> Change:
    """These outputs are about to be uploaded. `staged` is the whole list: what it leaves out was revoked. `warnings` are for
    whoever may have to adopt them."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        return replace(job, staged=tuple(staged), warnings=_warned(job, warnings),
                       lease_version=job.lease_version + 1)

    return change


def replace_message(owner: Owner, message_id: str) -> Change:
    """The message that stands for this claim is another one now (before the bus's cap on visibility)."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        return replace(job, message_id=message_id)

    return change


def finish(owner: Owner, outputs: Sequence[Output], warnings: Sequence[Problem], at: datetime) -> Change:
    """FINISHED: its outputs are verified and published."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        done = _released(job, at, "finished")
        return done.move(JobState.FINISHED, at, outputs=tuple(outputs), warnings=_warned(job, warnings), staged=(),
                         error=None, progress=1.0, stage=None)

    return change


def fail(owner: Owner, problem: Problem, warnings: Sequence[Problem], max_attempts: int, at: datetime) -> Change:
    """Back to PENDING where a retry can help and attempts are left, or something may have been published; else ERROR."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        ended = replace(_released(job, at, problem.code), warnings=_warned(job, warnings))
        return _again_or_error(ended, problem, max_attempts, at)

    return change


def give_back(owner: Owner, why: str, at: datetime) -> Change:
    """Back to PENDING, the attempt not charged: shutting down is not failing."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        charged = job.attempts_charged if job.adopt_only else max(0, job.attempts_charged - 1)
        free = replace(_released(job, at, why), attempts_charged=charged)
        return _pending_or_cancelled(free, at)

    return change


def stop_cancelled(owner: Owner, at: datetime) -> Change:
    """CANCELLED: its owner has stopped the work."""

    def change(job: Job) -> Job:
        _owned(job, owner)
        return _released(job, at, "cancelled").move(JobState.CANCELLED, at, cancel_requested=True, error=None)

    return change


# --- by those who watch ------------------------------------------------------------------------------------------


def break_lease(lease_version: int, problem: Problem, max_attempts: int, at: datetime) -> Change:
    """The owner was lost: as after a failure. Nothing if the lease moved meanwhile."""

    def change(job: Job) -> Job:
        if not job.claimed or job.lease_version != lease_version:
            return job
        return _again_or_error(_released(job, at, problem.code), problem, max_attempts, at)

    return change


def events_accepted(seq: int, delivery: Delivery | None = None) -> Change:
    """The receiver accepted every event up to this one, by this delivery. Nothing where an earlier one is due (again)."""

    def change(job: Job) -> Job:
        if job.webhook.accepted_seq >= seq or _earlier_due(job, seq):
            return job
        return replace(job, webhook=replace(_delivered(job.webhook, delivery), accepted_seq=seq, tries=0, next_at=None))

    return change


def event_postponed(seq: int, next_at: datetime | None, delivery: Delivery | None = None) -> Change:
    """This delivery failed: try again at `next_at`; None gives the receiver up. Nothing where an earlier event is due
    (again)."""

    def change(job: Job) -> Job:
        if job.webhook.accepted_seq >= seq or _earlier_due(job, seq):
            return job
        hook = _delivered(job.webhook, delivery)
        return replace(job, webhook=replace(hook, tries=hook.tries + 1, next_at=next_at, disabled=next_at is None))

    return change


def replay_events(after: int) -> Change:
    """The events that the record still holds behind event `after` are due again, at once, also for a receiver that was given
    up. What is due already stays due. Refused without a receiver."""

    def change(job: Job) -> Job:
        if job.notify_url is None:
            raise Refused(job, "it has no notify_url")
        hook = job.webhook
        return replace(job, webhook=replace(hook, accepted_seq=min(hook.accepted_seq, after), tries=0, next_at=None,
                                            disabled=False))

    return change


def _earlier_due(job: Job, seq: int) -> bool:
    """Whether an event before this one is due: they were asked for again while this one was under way, and order counts."""
    return any(event.seq < seq for event in job.due_events)


def _delivered(hook: Webhook, delivery: Delivery | None) -> Webhook:
    return hook if delivery is None else replace(hook, deliveries=(*hook.deliveries, delivery)[-DELIVERIES_KEPT:])


def _owned(job: Job, owner: Owner) -> None:
    if job.owner is None or job.owner.claim != owner.claim or job.state.final:
        raise Fenced(f"job {job.id} is {job.state} under token {job.token}: no longer ours")


def _warned(job: Job, warnings: Sequence[Problem]) -> tuple[Problem, ...]:
    """The warnings given at submit, then these of an attempt."""
    given = tuple(warning for warning in job.warnings if warning.attempt is None)
    return (*given, *(warning for warning in warnings if warning not in given))[:WARNINGS_KEPT]


def _released(job: Job, at: datetime, why: str) -> Job:
    """Without an owner. Its message counts as not sent: whoever releases it sends another, or the sweeper does."""
    attempts = job.attempts
    if attempts and attempts[-1].ended is None:
        attempts = (*attempts[:-1], replace(attempts[-1], ended=at, why=why))
    return replace(job, owner=None, attempts=attempts, message_id=None, sent_at=at, eta_seconds=None,
                   speed=None)


def _pending_or_cancelled(job: Job, at: datetime) -> Job:
    if job.cancel_requested:
        return job.move(JobState.CANCELLED, at, error=None)
    return job if job.state is JobState.PENDING else job.move(JobState.PENDING, at, progress=0.0, stage=None)


def _again_or_error(job: Job, problem: Problem, max_attempts: int, at: datetime) -> Job:
    """What a failed attempt means. One that was to be cancelled is, wherever it would have been tried again.

    Between publishing and saying so a worker may be lost. So a job whose attempts are used up gets one more claim if it
    left something staged, which only looks whether everything is there; its error waits in the record.
    """
    if problem.retryable and job.cancel_requested:
        return _pending_or_cancelled(job, at)
    if job.adopt_only:
        return job.move(JobState.ERROR, at)
    if problem.retryable and job.attempts_charged < max_attempts:
        return _pending_or_cancelled(job, at)
    ended = replace(job, error=replace(problem, attempt=problem.attempt or job.attempts_charged))
    if problem.retryable and job.revocable:
        return _pending_or_cancelled(ended, at)
    return ended.move(JobState.ERROR, at)
