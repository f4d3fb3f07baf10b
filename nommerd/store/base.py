"""The contract of a store: records, recipes, workers and the leader, each write a compare-and-swap.

Backends implement the small methods; `update` is the one way to change a job. Every backend passes
tests/contracts/test_store.py unchanged.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, TypeAdapter

from nommerd.errors import InfrastructureError
from nommerd.job import DEFAULT_PROJECT, Job, JobState, Key, Owner, Sweep, new_id, utcnow
from nommerd.lifecycle import Change

RECIPE_GRACE_SECONDS = 3600.0
FAR_FUTURE = 32503680000.0  # the year 3000, in epoch seconds
DOCUMENT_BYTES_MAX = 96 * 1024
DOCUMENT_KEY_BYTES_MAX = 900  # of the kind, the scope and the name, each
PAGE = 100
UPDATE_TRIES = 8  # of one change, over mismatches and unavailable moments together
BACKOFF_SECONDS = 0.05  # doubled at each try, with jitter


class UnknownJob(LookupError):
    """No job has this key."""


class JobExists(Exception):
    """Another record has this key; `job` is that record."""

    def __init__(self, job: Job) -> None:
        super().__init__(f"job {job.id} exists")
        self.job = job


class Conflict(Exception):
    """The record's version is not the expected one."""


class StoreUnavailable(InfrastructureError):
    """Busy, throttled, full or out of reach: try again later. Whether the write was applied is not known."""

    def __init__(self, message: str) -> None:
        super().__init__("node.store_unavailable", message.removesuffix(".") + ".",
                         "It is tried again; see the store's own log if it lasts.")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list: newest first, `limit` at a time, `cursor` from the page before."""

    project: str = "default"
    states: frozenset[JobState] = frozenset()  # empty: all
    labels: dict[str, str] = field(default_factory=dict)
    preset: str | None = None
    error_code: str | None = None
    since: datetime | None = None  # created at or after
    cursor: str | None = None
    limit: int = 50

    def matches(self, job: Job) -> bool:
        """Whether the job is one of those, wherever its page is."""
        return (job.project == self.project
                and (not self.states or job.state in self.states)
                and self.labels.items() <= job.labels.items()
                and self.preset in (None, job.preset)
                and (self.error_code is None or (job.error is not None and job.error.code == self.error_code))
                and (self.since is None or job.created >= self.since))


@dataclass(frozen=True, slots=True)
class JobPage:
    """`next` continues the listing, None at its end."""

    jobs: list[Job]
    next: str | None


def _held(value: object) -> object:
    """A held job as earlier versions wrote it, by its id alone: there was one project."""
    return (DEFAULT_PROJECT, value) if isinstance(value, str) else value


_Held = Annotated[Key, BeforeValidator(_held)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker's heartbeat. What has a default was not in the records of earlier versions."""

    name: str
    node: str
    state: str  # ACTIVE, DRAINING or TERMINATED
    slots: int
    active: tuple[_Held, ...]  # the jobs in its slots
    version: str
    encoders: tuple[str, ...]
    reported: datetime
    started: datetime | None = None
    heartbeat_seconds: float = 60.0  # between its reports
    disk_free_bytes: int | None = None  # where its workspaces are
    disk_total_bytes: int | None = None

    def encode(self) -> str:
        return _WORKER.dump_json(self).decode()

    @staticmethod
    def decode(text: str) -> WorkerRecord:
        return _WORKER.validate_json(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who sweeps, delivers webhooks and runs the fleet, under the lease rule of jobs. `token` grows at each take-over."""

    owner: Owner | None = None
    token: int = 0
    lease_version: int = 0
    lease_seconds: float = 30.0
    launch: str = ""  # the decision to start nodes that is being carried out (see nommerd.fleet), at most 16 KB
    version: int = 0  # 0: no row yet
    write_id: str = ""

    def encode(self) -> str:
        return _LEADER.dump_json(self).decode()

    @staticmethod
    def decode(text: str) -> Leader:
        return _LEADER.validate_json(text)


_WORKER, _LEADER = TypeAdapter(WorkerRecord), TypeAdapter(Leader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A small text that is no job: a preset, a token, the log of an attempt. `kind`, `scope` and `name` are its key; the
    scope is whose it is: a project, PROJECT/JOB for what belongs to a job, or empty for the installation's own."""

    kind: str
    scope: str
    name: str
    body: str  # at most DOCUMENT_BYTES_MAX as UTF-8
    version: int = 1
    expires: float | None = None  # epoch seconds: from then on it may be deleted; None: never


def keyable(*parts: str) -> bool:
    """Whether a document can have such a kind, scope and name: nobody need look for another."""
    sizes = [_size(part) for part in parts]
    return all(size <= DOCUMENT_KEY_BYTES_MAX for size in sizes) and parts[2:] != ("",)


def storable(document: Document) -> Document:
    """The document. Raises InfrastructureError internal.document_too_large for one that no backend need take."""
    if not keyable(document.kind, document.scope, document.name) or _size(document.body) > DOCUMENT_BYTES_MAX:
        what = f"A {document.kind} takes more than {DOCUMENT_BYTES_MAX // 1024} KB, or has a name that is empty or too long."
        raise InfrastructureError("internal.document_too_large", what, retryable=False)
    return document


def _size(text: str) -> float:
    """Its bytes as UTF-8; infinite where half of a surrogate pair makes it none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return float("inf")


@dataclass(frozen=True, slots=True)
class Ending:
    """How and when a job ended."""

    at: datetime
    state: JobState
    code: str | None  # of its error


class Store(ABC):
    """All methods may raise StoreUnavailable. None blocks the hub."""

    keeps_reports: ClassVar[bool] = True  # whether report_progress does anything; else renewals alone carry the progress
    look_seconds: ClassVar[float] = 1.0  # how often a feeder may ask what is due: longer where each look costs money

    @abstractmethod
    def create(self, job: Job) -> None:
        """Store a new record, durably. Raises JobExists when the key is taken by a record with another write_id
        (an empty one is nobody's)."""

    @abstractmethod
    def get(self, key: Key) -> Job:
        """The record, with its newest reported progress. Raises UnknownJob."""

    @abstractmethod
    def swap(self, job: Job, expected_version: int) -> None:
        """Replace the record, durably, if its version is `expected_version`; else Conflict, or UnknownJob."""

    @abstractmethod
    def list(self, query: JobQuery) -> JobPage:
        """Jobs of a project, newest first. Raises InputError("request.bad_cursor") for a cursor it never gave out."""

    @abstractmethod
    def count(self, project: str) -> dict[JobState, int]:
        """How many jobs are in each state; states without any are left out."""

    @abstractmethod
    def due_for_sweep(self, kind: Sweep, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        """Jobs with this `sweep` whose `sweep_at` is at or before `now` (epoch seconds), of all projects, by `sweep_at` and
        key; `after` continues behind a job as it was returned. Records that cannot be read are left out, and logged."""

    @abstractmethod
    def webhooks_due(self, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        """Jobs whose `webhook_at` is at or before `now` (epoch seconds), of all projects, longest overdue first, else by key;
        `after` continues behind a job as it was returned. Records that cannot be read are left out, and logged."""

    @abstractmethod
    def delete_finals(self, finished_before: datetime, limit: int) -> int:
        """Delete final jobs that ended before then, recipes no job names any longer, and expired documents; returns how many
        jobs. Recipes stored in the last RECIPE_GRACE_SECONDS stay: they are written before their jobs."""

    @abstractmethod
    def report_progress(self, key: Key, token: int, progress: float, stage: str | None, eta_seconds: float | None,
                        speed: float | None = None) -> None:
        """Note how far the owner of `token` is, cheaply and without a new version; may be lost. No error when the token
        has moved on. A backend whose writes cost money does nothing: renewals carry the progress too."""

    @abstractmethod
    def put_recipe(self, recipe_hash: str, document: str) -> None:
        """Store a recipe under its hash, durably; nothing happens where it is stored already."""

    @abstractmethod
    def get_recipe(self, recipe_hash: str) -> str:
        """The recipe's document. Raises LookupError."""

    @abstractmethod
    def put_worker(self, worker: WorkerRecord) -> None:
        """Replace this worker's heartbeat."""

    @abstractmethod
    def workers(self) -> Sequence[WorkerRecord]:
        """All heartbeats, by name."""

    @abstractmethod
    def delete_worker(self, name: str) -> None:
        """Forget this worker's heartbeat; nothing happens where there is none. A worker that lives still writes the next."""

    @abstractmethod
    def leader(self) -> Leader:
        """The leader row, or an empty Leader."""

    @abstractmethod
    def swap_leader(self, leader: Leader, expected_version: int) -> None:
        """Replace the leader row if its version is `expected_version` (0: there is none); else Conflict."""

    @abstractmethod
    def document(self, kind: str, scope: str, name: str) -> Document | None:
        """The document, as last written, or None; also once it has expired, until it is deleted."""

    @abstractmethod
    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        """All of a kind and scope, by name."""

    @abstractmethod
    def put_document(self, document: Document, expected_version: int | None) -> None:
        """Store it, durably, if the one that is there has `expected_version` (0: none is there; None: whatever is there);
        else Conflict. Success where the very same document is there already: the answer of our own write was lost.
        Raises InfrastructureError internal.document_too_large."""

    @abstractmethod
    def delete_document(self, kind: str, scope: str, name: str, expected_version: int | None = None) -> bool:
        """Delete it; False where there is none (or the answer of our own deletion was lost). Conflict where it has another
        version than an `expected_version`."""

    @abstractmethod
    def oldest_pending(self, project: str) -> datetime | None:
        """When the longest waiting PENDING job was created, None without any."""

    @abstractmethod
    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        """How jobs ended at or after `since`, the newest first, at most `limit`."""

    @abstractmethod
    def wipe(self) -> None:
        """Delete every job, recipe and document that expires, of all projects; other documents, workers and the leader stay.
        Not atomic: for when nobody works."""

    @abstractmethod
    def ping(self) -> None:
        """Return if the store can be written now; for readiness."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Safe to call twice."""

    def unfinished(self, limit: int) -> int:
        """How many jobs, of all projects, are not final; counts no further than `limit`. One that changes its kind of sweep
        meanwhile is counted once."""
        found: set[Key] = set()
        for kind in Sweep:
            after: Job | None = None
            while len(found) < limit:
                page = self.due_for_sweep(kind, FAR_FUTURE, PAGE, after)
                found |= {job.key for job in page if not job.state.final}
                if len(page) < PAGE:
                    break
                after = page[-1]
        return min(len(found), limit)

    def update(self, key: Key, change: Change, *, tries: int = UPDATE_TRIES) -> Job:
        """Apply a change to the newest record and store it; returns the record as stored.

        On a mismatch it re-reads and tries again; a mismatch that shows our own write_id means that our write was
        applied and its answer lost. What `change` raises passes through.
        """
        write_id = new_id()
        for attempt in range(tries):
            try:
                job = self.get(key)
                if job.write_id == write_id:
                    return job
                changed = change(job)
                if changed is job:
                    return job
                changed = replace(changed, version=job.version + 1, write_id=write_id, updated=utcnow()).fitted()
                self.swap(changed, job.version)
                return changed
            except (Conflict, StoreUnavailable) as error:
                if attempt == tries - 1:
                    if isinstance(error, StoreUnavailable):
                        raise
                    raise StoreUnavailable(f"The record of job {key.id} kept changing under {tries} tries.") from None
                if attempt or isinstance(error, StoreUnavailable):
                    time.sleep(BACKOFF_SECONDS * 2 ** min(attempt, 6) * (0.5 + random.random() / 2))
        raise AssertionError("tries must be at least 1")
