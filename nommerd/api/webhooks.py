"""What operators do about webhooks: see what is stuck, try a receiver, send events again, replace the secret."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from nommerd import lifecycle, logs
from nommerd.api.access import Scope
from nommerd.api.answers import JobAnswer, Shape
from nommerd.api.body import parse_object
from nommerd.api.jobs import unknown
from nommerd.api.models import EVENT_SEQ_MAX, Strict, Uri, validated
from nommerd.api.problems import from_error, refuse
from nommerd.api.route import Answer, Call, Route
from nommerd.api.view import job_json, timestamp
from nommerd.deliveries import Deliver
from nommerd.errors import NommerdError
from nommerd.job import Job, Key, new_id, utcnow
from nommerd.store.base import FAR_FUTURE, JobQuery, Store, UnknownJob
from nommerd.webhook import JSON
from nommerd.webhook_secrets import WebhookSecrets

TESTS_MAX = 10  # of one project within TESTS_SECONDS: each makes the feeder send a request to somebody
TESTS_SECONDS = 60.0
PROJECTS_KEPT = 1000
LISTED_MAX = 100  # failing or disabled receivers told by name
PAGE = 200
LOOKED_MAX = 5000  # due jobs, of all projects, looked through for one answer
NEWEST = 100  # jobs looked through for receivers that were given up


class WebhookTest(Strict):
    """The body of POST /v1/webhooks/test."""

    url: Uri


class WebhookReplay(Strict):
    """The body of POST /v1/jobs/ID/webhooks/replay."""

    after: Annotated[int, Field(ge=0, le=EVENT_SEQ_MAX)] = 0


class ReceiverAnswer(Shape):
    """A job whose receiver did not accept the last delivery, and why."""

    job: str
    host: str
    tries: int
    next_at: datetime | None
    status: int | None
    why: str


class SecretState(Shape):
    """What is known of the secret without showing it."""

    made: Annotated[datetime | None, Field(description="Null: by the operator, or before it was first replaced")]
    previous_until: Annotated[datetime | None, Field(description="Until when an earlier one signs as well")]
    configured: Annotated[bool, Field(description="It stands in the configuration, and cannot be replaced here")]


class WebhooksAnswer(Shape):
    """Whose receivers are behind."""

    due: Annotated[int, Field(description="Jobs with events that no receiver has accepted yet")]
    failing: Annotated[list[ReceiverAnswer], Field(description="Those of them whose last delivery failed")]
    disabled: Annotated[list[ReceiverAnswer], Field(description="Those that were given up, among the newest jobs")]
    secret: SecretState


class WebhookTested(Shape):
    """What a receiver did with a test event."""

    accepted: bool
    status: int | None
    seconds: float
    why: str


class WebhookSecretMade(Shape):
    """The new secret."""

    secret: Annotated[str, Field(description="Shown this once")]
    previous_until: Annotated[datetime | None, Field(description="Until when the one before signs as well")]


@dataclass(slots=True)
class Budget:
    """How often each project may do something within a time."""

    most: int
    seconds: float
    clock: Callable[[], float] = time.monotonic
    _times: dict[str, deque[float]] = field(default_factory=dict)

    def spend(self, project: str) -> float:
        """0 where it may, and then it counts; else the seconds until it may again."""
        now = self.clock()
        if len(self._times) > PROJECTS_KEPT:
            self._times = {name: times for name, times in self._times.items() if times[-1] > now - self.seconds}
        times = self._times.setdefault(project, deque(maxlen=self.most))
        if len(times) == self.most and times[0] > now - self.seconds:
            return times[0] + self.seconds - now
        times.append(now)
        return 0.0


@dataclass(slots=True, kw_only=True)
class Webhooks:
    """The calls on webhooks. They raise Refusal, and StoreUnavailable."""

    store: Store
    secrets: WebhookSecrets
    check: Callable[[str], None]  # raises NommerdError for a receiver that is not allowed
    send: Deliver
    kick: Callable[[Key], None]  # this job has events to deliver
    budget: Budget = field(default_factory=lambda: Budget(TESTS_MAX, TESTS_SECONDS))

    def overview(self, project: str) -> dict[str, Any]:
        """Who is behind, of this project's jobs."""
        due = due_webhooks(self.store, project)
        failing = [job for job in due if job.webhook.tries]
        newest = self.store.list(JobQuery(project=project, limit=NEWEST)).jobs
        given_up = [job for job in newest if job.webhook.disabled]
        secrets, now = self.secrets.of(project), utcnow()
        until = secrets.until(now)
        return {"due": len(due), "failing": [_receiver(job) for job in failing[:LISTED_MAX]],
                "disabled": [_receiver(job) for job in given_up],
                "secret": {"made": timestamp(secrets.made) if secrets.made else None,
                           "previous_until": timestamp(until) if until else None, "configured": secrets.configured}}

    def test(self, project: str, fields: dict[str, Any]) -> dict[str, Any]:
        """What the receiver makes of one signed event, within a delivery's time."""
        url = validated(WebhookTest, fields).url
        try:
            self.check(url)
        except NommerdError as error:
            raise from_error(error, "body.url") from None
        wait = self.budget.spend(project)
        if wait:
            raise refuse(429, "request", "request.too_many_webhook_tests",
                         f"{TESTS_MAX} webhooks were tested within {TESTS_SECONDS:.0f} s.", Retry_After=f"{wait + 1:.0f}")
        data = {"message": "If you read this, webhooks arrive. They are signed as job events are.", "project": project}
        body = json.dumps({"type": "webhook.test", "timestamp": timestamp(utcnow()), "data": data}).encode()
        began = time.monotonic()
        reply = self.send(project, url, f"test.{new_id()}", body, JSON)
        seconds = round(time.monotonic() - began, 3)
        logs.get().info("webhook.tested", host=urlsplit(url).hostname, status=reply.status, why=reply.why, seconds=seconds)
        return {"accepted": reply.accepted, "status": reply.status, "seconds": seconds, "why": reply.why}

    def rotate(self, project: str) -> dict[str, Any]:
        """The project's new secret."""
        now = utcnow()
        try:
            made = self.secrets.rotate(project, now)
        except NommerdError as error:
            if error.retryable:
                raise
            raise from_error(error, "request") from None
        until = made.until(now)
        logs.get().info("webhook.secret_replaced", project=project)
        return {"secret": made.current.reveal(), "previous_until": timestamp(until) if until else None}

    def replay(self, project: str, job_id: str, fields: dict[str, Any]) -> Job:
        """The job, its events behind `after` due again."""
        after = validated(WebhookReplay, fields).after
        try:
            job = self.store.update(Key(project, job_id), lifecycle.replay_events(after))
        except UnknownJob:
            raise unknown(job_id) from None
        except lifecycle.Refused:
            raise refuse(409, "path.id", "request.wrong_state", "This job has no notify_url: nobody is told of its events.",
                         "Give one when you submit a job.") from None
        self.kick(job.key)
        return job


def due_webhooks(store: Store, project: str | None) -> list[Job]:
    """Jobs (of a project, or all) with events that no receiver has accepted yet, those that wait for their next try included.
    Looks at no more than LOOKED_MAX."""
    found: list[Job] = []
    after: Job | None = None
    for _ in range(LOOKED_MAX // PAGE):
        page = store.webhooks_due(FAR_FUTURE, PAGE, after)
        found += [job for job in page if project in (None, job.project)]
        if len(page) < PAGE:
            break
        after = page[-1]
    return found


def _receiver(job: Job) -> dict[str, Any]:
    hook = job.webhook
    last = hook.deliveries[-1] if hook.deliveries else None
    return {"job": job.id, "host": urlsplit(job.notify_url or "").netloc, "tries": hook.tries,
            "next_at": timestamp(hook.next_at) if hook.next_at else None, "status": last.status if last else None,
            "why": last.why if last else ""}


def webhook_routes(webhooks: Webhooks) -> list[Route]:
    """Overview, test, secret and replay, each for the caller's project."""

    def overview(call: Call) -> Answer:
        return Answer(value=webhooks.overview(call.access.project))

    def test(call: Call) -> Answer:
        return Answer(value=webhooks.test(call.access.project, parse_object(call.body())))

    def rotate(call: Call) -> Answer:
        return Answer(value=webhooks.rotate(call.access.project))

    def replay(call: Call) -> Answer:
        raw = call.body()
        job = webhooks.replay(call.access.project, call.path["id"], parse_object(raw) if raw else {})
        return Answer(value=job_json(job), status=202)

    return [
        Route(method="GET", path="/v1/webhooks", scope=Scope.OPERATE, handle=overview,
              summary="Show which receivers fail or were given up.", answers={200: WebhooksAnswer}),
        Route(method="POST", path="/v1/webhooks/test", scope=Scope.OPERATE, handle=test, request=WebhookTest,
              summary="Send a signed test event to a receiver.", answers={200: WebhookTested}),
        Route(method="POST", path="/v1/webhooks/secret", scope=Scope.ADMIN, handle=rotate,
              summary="Replace the signing secret; the one before signs for a day more.",
              answers={200: WebhookSecretMade, 409: None}),
        Route(method="POST", path="/v1/jobs/{id}/webhooks/replay", scope=Scope.OPERATE, handle=replay, request=WebhookReplay,
              summary="Send the events of a job again.", answers={202: JobAnswer, 409: None}),
    ]
