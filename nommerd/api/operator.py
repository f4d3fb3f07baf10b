"""The operator's calls: workers, drain, pause and resume; and the figures, of which everybody sees those of one's project."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from nommerd.api.access import Scope
from nommerd.api.answers import Shape
from nommerd.api.body import shown
from nommerd.api.problems import refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.api.stats import Stats, paused_json, stats_json
from nommerd.api.workers import shown_workers, worker_json
from nommerd.control import Control
from nommerd.job import JobState, utcnow
from nommerd.store.base import Store, WorkerRecord

Count = Annotated[int, Field(ge=0)]


class JobName(Shape):
    """A job, by what identifies it."""

    project: str
    id: str


class DiskAnswer(Shape):
    """The disk that a worker's workspaces are on."""

    free_bytes: Count
    total_bytes: Count


class WorkerAnswer(Shape):
    """A worker, as its last heartbeat says."""

    name: str
    node: str
    state: Annotated[Literal["ACTIVE", "DRAINING", "TERMINATED", "SILENT"],
                     Field(description="SILENT: it has not reported for more than three heartbeats")]
    slots: Count
    busy: Count
    jobs: list[JobName]
    version: str
    encoders: list[str]
    disk: DiskAnswer | None
    started: Annotated[datetime | None, Field(description="Null where its version does not say")]
    reported: datetime


class WorkerList(Shape):
    """The workers, by name; those that ended more than a day ago are left out."""

    workers: list[WorkerAnswer]


class Paused(Shape):
    """Since when no work is begun, and which token said so."""

    since: datetime
    by: str


class PausedAnswer(Shape):
    """Whether the installation is paused."""

    paused: Paused | None


class QueueAnswer(Shape):
    """How many messages wait for a worker, by priority."""

    high: Count
    normal: Count
    low: Count


class WebhooksAnswer(Shape):
    """Jobs with events that their receivers have not accepted; of them, those that were tried in vain."""

    due: Count
    failing: Count


class ErrorCount(Shape):
    """How many jobs ended with this error."""

    code: str
    count: Count


class HourAnswer(Shape):
    """What ended within one hour."""

    hour: Annotated[datetime, Field(description="Its beginning")]
    finished: Count
    failed: Count


class WorkerCounts(Shape):
    """The workers in numbers; slots are those of workers that report."""

    active: Count
    silent: Count
    slots: Count
    busy: Count


class StatsAnswer(Shape):
    """The figures of the token's project; null where they concern the installation and the token does not."""

    at: datetime
    project: str
    paused: Paused | None
    oldest_pending_seconds: Annotated[float | None, Field(ge=0, description="Null where no job is PENDING")]
    states: dict[JobState, Count]
    queue: QueueAnswer | None
    dead_letters: Count | None
    webhooks: WebhooksAnswer
    errors: Annotated[list[ErrorCount], Field(description="In the last 24 hours, the most frequent first")]
    throughput: Annotated[list[HourAnswer], Field(description="24 hours, the oldest first")]
    workers: WorkerCounts | None


def operator_routes(store: Store, control: Control, stats: Stats) -> list[Route]:
    """Workers, drain, pause, resume and stats."""

    def listing(call: Call) -> Answer:
        now = utcnow()
        return Answer(value={"workers": [worker_json(one, now) for one in shown_workers(store, now)]})

    def drain(call: Call) -> Answer:
        worker = _worker(store, call.path["name"])
        control.drain(worker, call.access.name)
        return Answer(value=worker_json(worker, utcnow()), status=202)

    def pause(call: Call) -> Answer:
        switch = control.pause(call.access.name)
        stats.forget()
        return Answer(value={"paused": paused_json(switch)})

    def resume(call: Call) -> Answer:
        control.resume(call.access.name)
        stats.forget()
        return Answer(value={"paused": None})

    def figures(call: Call) -> Answer:
        return Answer(value=stats_json(stats, call.access.project, call.access.installation))

    return [
        Route(method="GET", path="/v1/workers", handle=listing, summary="List the workers.", answers={200: WorkerList},
              scope=Scope.OPERATE, installation=True),
        Route(method="POST", path="/v1/workers/{name}/drain", handle=drain, scope=Scope.OPERATE, installation=True,
              summary="Let a worker finish its jobs, take no more, and end.",
              answers={202: WorkerAnswer, 404: None, 409: None}),
        Route(method="POST", path="/v1/pause", handle=pause, scope=Scope.OPERATE, installation=True,
              summary="Begin no new work; what runs goes on.", answers={200: PausedAnswer}),
        Route(method="POST", path="/v1/resume", handle=resume, scope=Scope.OPERATE, installation=True,
              summary="Begin work again.", answers={200: PausedAnswer}),
        Route(method="GET", path="/v1/stats", handle=figures, scope=Scope.READ, answers={200: StatsAnswer},
              summary="Figures of the project and, for the operator, of the installation."),
    ]


def _worker(store: Store, name: str) -> WorkerRecord:
    """One that can be drained."""
    worker = next((one for one in shown_workers(store, utcnow()) if one.name == name), None)
    if worker is None:
        raise refuse(404, "path.name", "request.unknown_worker", f"There is no worker {shown(name)}.",
                     "`nommerd workers` lists them.")
    if worker.state == "TERMINATED":
        raise refuse(409, "path.name", "request.wrong_state", "This worker has ended.")
    if worker.started is None:
        raise refuse(409, "path.name", "request.wrong_state", "This worker's version cannot be drained.",
                     "Stop it with SIGTERM: its jobs go back and are begun again.")
    return worker
