"""A job as the outside sees it: in answers and, as of one event, in webhooks."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from nommerd.errors import Problem
from nommerd.job import Attempt, Delivery, Event, Job, JobState, Output, Owner

DETAILS_KEPT = 1000  # characters of an error, for the original system's receivers


def timestamp(at: datetime) -> str:
    """A time in UTC, ISO 8601, ending in Z."""
    return at.isoformat().replace("+00:00", "Z")


def _maybe(at: datetime | None) -> str | None:
    return None if at is None else timestamp(at)


def _owner(owner: Owner) -> dict[str, str]:
    return {"worker": owner.worker, "node": owner.node}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {"worker": attempt.worker, "node": attempt.node, "begun": timestamp(attempt.begun), "ended": _maybe(attempt.ended),
            "why": attempt.why}


def _problem(problem: Problem) -> dict[str, Any]:
    return asdict(problem)


def _output(output: Output) -> dict[str, Any]:
    return {"uri": output.uri, "bytes": output.bytes, "sha256": output.sha256, "probe": output.probe}


def _event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "state": event.state.value, "at": timestamp(event.at), "attempt": event.attempt}


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {"seq": delivery.seq, "at": timestamp(delivery.at), "status": delivery.status, "why": delivery.why}


def _webhook(job: Job) -> dict[str, Any] | None:
    if job.notify_url is None:
        return None
    hook = job.webhook
    return {"accepted_seq": hook.accepted_seq, "tries": hook.tries, "next_at": _maybe(hook.next_at), "disabled": hook.disabled,
            "deliveries": [_delivery(delivery) for delivery in hook.deliveries]}


def job_json(job: Job) -> dict[str, Any]:
    """The job for answers; without credentials, for the record has none."""
    return {**_public(job), "webhook": _webhook(job)}


def _public(job: Job) -> dict[str, Any]:
    """What receivers of webhooks are told, too."""
    return {
        "id": job.id,
        "state": job.state.value,
        "stage": job.stage,
        "progress": round(job.progress, 4),
        "eta_seconds": job.eta_seconds,
        "speed": job.speed,
        "source": job.source,
        "inputs": job.inputs,
        "dest": job.dest,
        "preset": job.preset,
        "pipeline": job.pipeline,
        "recipe": job.recipe,
        "params": job.params,
        "priority": job.priority.value,
        "labels": job.labels,
        "owner": _owner(job.owner) if job.owner else None,
        "attempts": [_attempt(attempt) for attempt in job.attempts],
        "error": _problem(job.error) if job.error else None,
        "warnings": [_problem(warning) for warning in job.warnings],
        "outputs": [_output(output) for output in job.outputs],
        "event_seq": job.event_seq,
        "events": [_event(event) for event in job.events],
        "created": timestamp(job.created),
        "updated": timestamp(job.updated),
        "finished": _maybe(job.finished),
    }


def as_of(job: Job, event: Event) -> Job:
    """The job as far as it is known as of one of its events: what came later is left out."""
    if event.seq == job.event_seq:
        return job
    attempts = tuple(_begun_by(attempt, event.at) for attempt in job.attempts if attempt.begun <= event.at)
    return job.evolve(state=event.state, event_seq=event.seq, events=tuple(e for e in job.events if e.seq <= event.seq),
                      stage=None, progress=0.0, eta_seconds=None, speed=None, owner=None, attempts=attempts, error=None,
                      warnings=(), outputs=(), updated=event.at, finished=event.at if event.state.final else None)


def _begun_by(attempt: Attempt, at: datetime) -> Attempt:
    if attempt.ended is None or attempt.ended <= at:
        return attempt
    return Attempt(number=attempt.number, worker=attempt.worker, node=attempt.node, begun=attempt.begun)


def webhook_json(job: Job, event: Event) -> dict[str, Any]:
    """The payload that tells a receiver of one event; the same at every try of an event that is not the newest."""
    return {"type": f"job.{event.state.value.lower()}", "timestamp": timestamp(event.at), "data": _public(as_of(job, event))}


def webhook_form(job: Job, event: Event) -> bytes:
    """The payload as the original system's receivers know it. They have never seen WAITING: its job is being encoded."""
    state = JobState.ENCODING if event.state is JobState.WAITING else event.state
    error = as_of(job, event).error
    details = f"{error.code}: {error.message} {error.hint}".strip()[-DETAILS_KEPT:] if error else ""
    fields = {"unique_id": job.id, "job_state": state.value, "job_state_details": details}
    return urlencode(fields, errors="replace").encode("ascii")
