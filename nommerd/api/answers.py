"""What calls answer, as models: OpenAPI is made of them, and tests hold real answers against them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from nommerd.api.access import Scope
from nommerd.job import JobState, Priority

Fraction = Annotated[float, Field(ge=0, le=1)]
Sequence = Annotated[int, Field(ge=0)]


class Shape(BaseModel):
    """The base of answers: every field is always there, and there are no others."""

    model_config = ConfigDict(extra="forbid")


class FaultAnswer(Shape):
    """One thing wrong with a request."""

    place: Annotated[str | None, Field(description="Where: body.params.width, query.limit, header.Host")]
    code: Annotated[str, Field(description="Stable; docs/errors.md lists them")]
    message: str
    hint: Annotated[str, Field(description="What to do; may be empty")]


class Problem(Shape):
    """What was refused (RFC 9457)."""

    type: Literal["about:blank"]
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    code: Annotated[str, Field(description="The first fault's")]
    detail: str
    errors: Annotated[list[FaultAnswer], Field(min_length=1)]


class JobProblem(Shape):
    """An error or a warning of a job."""

    code: str
    message: str
    hint: str
    stage: str | None
    attempt: int | None
    retryable: bool


class OwnerAnswer(Shape):
    """Who works on a job."""

    worker: str
    node: str


class AttemptAnswer(Shape):
    """One claim of a job by a worker."""

    worker: str
    node: str
    begun: datetime
    ended: datetime | None
    why: str | None


class OutputAnswer(Shape):
    """A published output."""

    uri: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: str
    probe: dict[str, Any]


class EventAnswer(Shape):
    """One change of state."""

    seq: Sequence
    state: JobState
    at: datetime
    attempt: Sequence


class DeliveryAnswer(Shape):
    """One try to tell the receiver of an event."""

    seq: Sequence
    at: datetime
    status: Annotated[int | None, Field(description="What it answered; null: nothing")]
    why: Annotated[str, Field(description="Why it counts as failed; empty where it was accepted")]


class JobWebhook(Shape):
    """How far the receiver of notify_url has come."""

    accepted_seq: Annotated[Sequence, Field(description="Events behind this one are due")]
    tries: Annotated[Sequence, Field(description="Failed ones in a row")]
    next_at: datetime | None
    disabled: Annotated[bool, Field(description="It was given up; replay begins again")]
    deliveries: Annotated[list[DeliveryAnswer], Field(description="The last ones, oldest first")]


class JobAnswer(Shape):
    """A job."""

    id: str
    state: JobState
    stage: str | None
    progress: Annotated[Fraction, Field(description="Over all stages")]
    eta_seconds: float | None
    speed: Annotated[float | None, Field(description="Of the encode that runs: media seconds a second")]
    source: Annotated[str, Field(description="Without credentials and query")]
    inputs: dict[str, list[dict[str, str]]]
    dest: Annotated[str, Field(description="Without credentials and query")]
    preset: str | None
    pipeline: str
    recipe: str
    params: dict[str, Any]
    priority: Priority
    labels: dict[str, str]
    owner: OwnerAnswer | None
    attempts: list[AttemptAnswer]
    error: JobProblem | None
    warnings: list[JobProblem]
    outputs: list[OutputAnswer]
    event_seq: Sequence
    events: Annotated[list[EventAnswer], Field(description="The newest changes of state, oldest first")]
    created: datetime
    updated: datetime
    finished: datetime | None
    webhook: Annotated[JobWebhook | None, Field(description="Null without a notify_url")]


class JobList(Shape):
    """A page of jobs."""

    jobs: list[JobAnswer]
    next: Annotated[str | None, Field(description="The cursor of the page behind; null at the end")]


class TokenAnswer(Shape):
    """A token, without its text."""

    id: str
    name: str
    project: str
    scopes: list[Scope]
    created: datetime
    expires: datetime | None


class TokenMade(TokenAnswer):
    """A token that was just made."""

    token: Annotated[str, Field(description="Its text: told now, and never again")]


class TokenList(Shape):
    """Tokens, by project and age."""

    tokens: list[TokenAnswer]


class Caller(Shape):
    """Whose the token is that asks."""

    name: str
    project: str
    scopes: list[Scope]


class StatusAnswer(Shape):
    """How the process is."""

    status: str
