"""GET /v1/jobs/ID/log: what each attempt at a job did, for operators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from nommerd.api.access import Scope
from nommerd.api.answers import Shape
from nommerd.api.jobs import unknown
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import timestamp
from nommerd.job import Attempt, Job, Key
from nommerd.joblog import read_logs
from nommerd.store.base import Document, Store, UnknownJob

ENDED_BY_RULE = {"finished": "finished", "cancelled": "cancelled", "node.lost": "lost", "node.lease_lost": "fenced"}


class CommandLog(Shape):
    """A program that was run; `code` is negative for a signal, both are null while it runs."""

    argv: list[str]
    code: int | None
    seconds: float | None
    stderr: Annotated[str, Field(description="Its end")]


class StageLog(Shape):
    """A stage, in the order they ran."""

    stage: str
    seconds: float | None
    commands: list[CommandLog]


class OutputLog(Shape):
    """What was published."""

    uri: str
    probe: dict[str, Any]


class AttemptLog(Shape):
    """One claim of the job."""

    number: int
    worker: str
    node: str
    begun: str
    ended: str | None
    outcome: Annotated[str | None, Field(description="finished, failed, given_back, cancelled, fenced or lost; null: at work")]
    source: dict[str, Any] | None
    outputs: list[OutputLog]
    stages: list[StageLog]
    truncated: Annotated[bool, Field(description="Something was left out to keep it small")]


class JobLog(Shape):
    """The attempts at a job, the first one first."""

    job: str
    attempts: list[AttemptLog]


def log_routes(store: Store) -> list[Route]:
    """The log of a job of the caller's project."""

    def show(call: Call) -> Answer:
        key = Key(call.access.project, call.path["id"])
        try:
            job = store.get(key)
        except UnknownJob:
            raise unknown(key.id) from None
        return Answer(value={"job": job.id, "attempts": attempts(job, read_logs(store, key))})

    return [Route(method="GET", path="/v1/jobs/{id}/log", scope=Scope.OPERATE, handle=show, answers={200: JobLog, 404: None},
                  summary="What each attempt at a job ran, and what came of it.")]


def attempts(job: Job, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """What was kept of the attempts, completed by what the record knows: a worker that died wrote no end, and one that could
    not reach the store nothing at all."""
    kept: dict[int, dict[str, Any]] = {int(document.name): json.loads(document.body) for document in documents}
    for attempt in job.attempts:
        entry = kept.setdefault(attempt.number, _bare(attempt))
        if entry["ended"] is None and attempt.ended is not None:
            entry |= {"ended": timestamp(attempt.ended), "outcome": _outcome(attempt.why or "")}
    return [kept[number] for number in sorted(kept)]


def _bare(attempt: Attempt) -> dict[str, Any]:
    return {"number": attempt.number, "worker": attempt.worker, "node": attempt.node, "begun": timestamp(attempt.begun),
            "ended": None, "outcome": None, "source": None, "outputs": [], "stages": [], "truncated": False}


def _outcome(why: str) -> str:
    """Of an attempt by the word of the record: a code where it failed, else a rule or a reason to give it back."""
    return ENDED_BY_RULE.get(why) or ("failed" if "." in why else "given_back")
