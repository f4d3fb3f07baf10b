"""The vocabulary everything shares: a job's record, its states, and the one table of moves between them."""

from __future__ import annotations

import json
import secrets as random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from nommerd.errors import InfrastructureError, Problem

SCHEMA_VERSION = 1
RECORD_BYTES_MAX = 8 * 1024
EVENTS_KEPT = 32
ATTEMPTS_KEPT = 10
WARNINGS_KEPT = 8
DELIVERIES_KEPT = 8
DEFAULT_PROJECT = "default"
UNSENT_SECONDS = 5.0  # a record whose message is not known to be sent is looked at after this long
RESEND_SECONDS = 60.0  # one whose message was sent, and that nobody claimed, after this long


class JobState(StrEnum):
    """Where a job is. The values are what the API shows."""

    PENDING = "PENDING"  # accepted, or given back; nobody works on it yet
    DOWNLOADING = "DOWNLOADING"  # its sources are being fetched
    ENCODING = "ENCODING"  # media work
    UPLOADING = "UPLOADING"  # its outputs are being stored
    WAITING = "WAITING"  # its child jobs are at work
    FINISHED = "FINISHED"  # final: outputs verified and published
    ERROR = "ERROR"  # final: `error` says why and who must act
    ABANDONED = "ABANDONED"  # final: once claimed, then unclaimed and silent for too long
    CANCELLED = "CANCELLED"  # final: somebody asked for it

    @property
    def final(self) -> bool:
        return self in FINAL


S = JobState
FINAL = frozenset({S.FINISHED, S.ERROR, S.ABANDONED, S.CANCELLED})
RUNNING = frozenset({S.DOWNLOADING, S.ENCODING, S.UPLOADING})
_FROM_WORK = RUNNING | FINAL | {S.PENDING, S.WAITING}
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    S.PENDING: RUNNING | FINAL,
    S.DOWNLOADING: _FROM_WORK - {S.DOWNLOADING},
    S.ENCODING: _FROM_WORK - {S.ENCODING},
    S.UPLOADING: _FROM_WORK - {S.UPLOADING},
    S.WAITING: frozenset({S.PENDING}) | FINAL,
    S.FINISHED: frozenset(),
    S.ERROR: frozenset({S.PENDING}),
    S.ABANDONED: frozenset({S.PENDING}),
    S.CANCELLED: frozenset({S.PENDING}),
}


class Priority(StrEnum):
    """Which jobs go first; within one priority, the oldest."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Sweep(IntEnum):
    """Why the sweeper must look at a job: each kind has its turn in every sweep, however many jobs the others have."""

    CLAIMED = 0  # its owner may be gone
    UNSENT = 1  # no message is known to be out for it
    SENT = 2  # its message is out, and nobody has dealt with it


class Key(NamedTuple):
    """What identifies a job: ids are unique within a project."""

    project: str
    id: str


class IllegalMove(Exception):
    """The table of TRANSITIONS has no such move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lease. `claim` is unique to one claim; the last four let a neighbour see that the process is gone."""

    worker: str
    node: str
    claim: str = ""
    boot_id: str = ""
    pid_namespace: str = ""
    pid: int = 0
    started: int = 0  # the process's start time, in clock ticks since boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One claim of the job; `number` is the token it was claimed under."""

    number: int
    worker: str
    node: str
    begun: datetime
    ended: datetime | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state. `seq` grows by one for each, over the job's whole life."""

    seq: int
    state: JobState
    at: datetime
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """An output on its way: what a later owner needs to revoke it, or to recognise that it was published.

    Without a handle there is nothing to revoke any longer: it says what an attempt that did not finish has published.
    """

    uri: str
    handle: str
    bytes: int
    sha256: str
    token: int
    probe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A published output. `probe` is a summary (duration_seconds, container, streams)."""

    uri: str
    bytes: int
    sha256: str
    probe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One try to tell the receiver of an event."""

    seq: int
    at: datetime
    status: int | None  # what it answered; None: nothing
    why: str = ""  # why it counts as failed, in at most 80 characters; empty where it was accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """How far the receiver of `notify_url` has come: events after `accepted_seq` are still due."""

    accepted_seq: int = 0
    tries: int = 0
    next_at: datetime | None = None
    disabled: bool = False
    states: tuple[JobState, ...] | None = None  # which states are posted; None: each change
    form: bool = False  # as a form with the original system's three fields
    deliveries: tuple[Delivery, ...] = ()  # the last DELIVERIES_KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The record: the truth about a job. At most RECORD_BYTES_MAX as JSON. Changed only through nommerd.lifecycle."""

    id: str
    project: str = DEFAULT_PROJECT
    schema_version: int = SCHEMA_VERSION
    state: JobState = JobState.PENDING
    preset: str | None = None
    pipeline: str
    recipe: str  # hash of the recipe row
    source: str  # without credentials or query
    inputs: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # name -> [{"uri": …, "language": …}]
    dest: str  # without credentials
    secrets: str | None = None  # encrypted: the full URIs of source, dest, inputs and notify_url that hold any
    params: dict[str, Any] = field(default_factory=dict)
    priority: Priority = Priority.NORMAL
    labels: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False
    on_damage: str | None = None  # "tolerate" or "fail"; None: as the pipeline says
    notify_url: str | None = None  # without credentials or query
    request_hash: str | None = None
    version: int = 1  # raised by one at every write
    write_id: str = ""
    token: int = 0  # the fence: raised at every claim, never lowered
    attempts_charged: int = 0
    owner: Owner | None = None
    lease_version: int = 0  # raised at every claim and renewal; observers watch it on their own clock
    lease_seconds: float = 30.0
    message_id: str | None = None
    sent_at: datetime | None = None
    cancel_requested: bool = False
    progress: float = 0.0  # 0 to 1, over all stages
    stage: str | None = None
    eta_seconds: float | None = None
    speed: float | None = None  # of the encode that runs: media seconds a second
    staged: tuple[Staged, ...] = ()
    outputs: tuple[Output, ...] = ()
    error: Problem | None = None
    warnings: tuple[Problem, ...] = ()  # those without an attempt were given at submit, and stay
    attempts: tuple[Attempt, ...] = ()
    event_seq: int = 0
    events: tuple[Event, ...] = ()  # the last EVENTS_KEPT
    webhook: Webhook = Webhook()
    parent_id: str | None = None
    children_open: int = 0
    created: datetime
    updated: datetime
    finished: datetime | None = None

    @property
    def key(self) -> Key:
        return Key(self.project, self.id)

    @property
    def claimed(self) -> bool:
        return self.owner is not None

    def evolve(self, **changes: Any) -> Job:
        """A copy with these fields changed. States change through `move` alone."""
        return replace(self, **changes)

    def move(self, state: JobState, at: datetime, **changes: Any) -> Job:
        """The job in another state, with its event. Raises IllegalMove where TRANSITIONS has no such move."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalMove(f"{self.state} -> {state}")
        seq = self.event_seq + 1
        event = Event(seq=seq, state=state, at=at, attempt=changes.get("token", self.token))
        return replace(self, state=state, event_seq=seq, events=(*self.events, event)[-EVENTS_KEPT:],
                       finished=at if state.final else None, **changes)

    @property
    def due_events(self) -> tuple[Event, ...]:
        """Events that the receiver wants and has not accepted, oldest first; empty without one, or once it said 410."""
        if self.notify_url is None or self.webhook.disabled:
            return ()
        wanted = self.webhook.states
        return tuple(e for e in self.events if e.seq > self.webhook.accepted_seq and (wanted is None or e.state in wanted))

    @property
    def adopt_only(self) -> bool:
        """Its attempts are used up, but the last one may have published everything before it was lost: a claim may only
        adopt that; where something is missing, the job ends with the error it has."""
        return self.error is not None and not self.state.final

    @property
    def revocable(self) -> tuple[Staged, ...]:
        """What is staged and was not yet revoked."""
        return tuple(entry for entry in self.staged if entry.handle)

    @property
    def sweep(self) -> Sweep | None:
        """Why the sweeper must look at this job, None for never: final ones only while something staged was not revoked."""
        if self.claimed:
            return Sweep.CLAIMED
        if self.state.final and not self.revocable:
            return None
        return Sweep.UNSENT if self.message_id is None else Sweep.SENT

    @property
    def sweep_at(self) -> float | None:
        """From when on the sweeper must look (seconds since the epoch), None for never: at claimed jobs always (0), at
        others once their message is overdue."""
        if self.sweep is None:
            return None
        if self.sweep is Sweep.CLAIMED:
            return 0.0
        patience = UNSENT_SECONDS if self.sweep is Sweep.UNSENT else RESEND_SECONDS
        return (self.sent_at or self.created).timestamp() + patience

    @property
    def webhook_at(self) -> float | None:
        """When the next event is due for its receiver (seconds since the epoch), None for never."""
        if not self.due_events:
            return None
        return self.webhook.next_at.timestamp() if self.webhook.next_at else 0.0

    def fitted(self) -> Job:
        """The record without its least needed details, as many as must go for RECORD_BYTES_MAX: a job must always be able
        to end, however long its history and its errors are."""
        job = self
        for shorten in _SHORTENINGS:
            if len(_ADAPTER.dump_json(job)) <= RECORD_BYTES_MAX:
                break
            job = shorten(job)
        return job

    def encode(self) -> bytes:
        """JSON, at most RECORD_BYTES_MAX."""
        body = _ADAPTER.dump_json(self)
        if len(body) > RECORD_BYTES_MAX:
            raise InfrastructureError("internal.record_too_large",
                                      f"The record of job {self.id} would take {len(body)} of {RECORD_BYTES_MAX} bytes.",
                                      retryable=False)
        return body

    @staticmethod
    def decode(body: bytes | str) -> Job:
        """The record from JSON. Raises InfrastructureError for bytes that no version of ours wrote."""
        try:
            return _ADAPTER.validate_json(body)
        except ValidationError as error:
            raise InfrastructureError("internal.bad_record", f"A stored record cannot be read ({error.error_count()} faults).",
                                      "Was it written by a newer version?") from None


_ADAPTER = TypeAdapter(Job)


def _deliveries_shortened(job: Job) -> Job:
    return replace(job, webhook=replace(job.webhook, deliveries=job.webhook.deliveries[-2:]))


def _deliveries_dropped(job: Job) -> Job:
    return replace(job, webhook=replace(job.webhook, deliveries=()))


def _undue_events_dropped(job: Job) -> Job:
    return replace(job, events=job.due_events or job.events[-1:])


def _attempts_shortened(job: Job) -> Job:
    last = job.attempts[-3:]
    return replace(job, attempts=tuple(replace(a, why=a.why and clipped(a.why, 100)) for a in last))


def _problems_clipped(job: Job) -> Job:
    return replace(job, error=job.error and _clipped(job.error), warnings=tuple(map(_clipped, job.warnings)))


def _warnings_dropped(job: Job) -> Job:
    return replace(job, warnings=job.warnings[:1])


def _probes_dropped(job: Job) -> Job:
    return replace(job, staged=tuple(replace(s, probe={}) for s in job.staged),
                   outputs=tuple(replace(o, probe={}) for o in job.outputs))


def _due_events_coalesced(job: Job) -> Job:
    return replace(job, events=job.events[-4:])


_SHORTENINGS: tuple[Callable[[Job], Job], ...] = (
    _deliveries_shortened, _deliveries_dropped, _undue_events_dropped, _attempts_shortened, _problems_clipped,
    _warnings_dropped, _probes_dropped, _due_events_coalesced)


def _clipped(problem: Problem) -> Problem:
    return replace(problem, code=clipped(problem.code, 60), message=clipped(problem.message, 300),
                   hint=clipped(problem.hint, 150), stage=problem.stage and clipped(problem.stage, 60))


def clipped(text: str, bytes_max: int) -> str:
    """The text, its end replaced by an ellipsis where it takes more bytes than that as JSON."""
    if len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) <= bytes_max:
        return text
    room, kept = bytes_max - 5, 0
    for kept, character in enumerate(text):  # noqa: B007
        room -= len(json.dumps(character, ensure_ascii=False).encode(errors="replace")) - 2
        if room < 0:
            break
    return text[:kept] + "…"


def utcnow() -> datetime:
    """Now, in UTC, timezone-aware."""
    return datetime.now(UTC)


def new_id() -> str:
    """An opaque random id, safe in paths and URLs: 20 lower-case hexadecimal characters."""
    return random.token_hex(10)
