"""A store that lives and dies with its process: for tests, and for one job here and now."""

from __future__ import annotations

import builtins
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from nommerd.job import Job, JobState, Key, Sweep
from nommerd.store.base import (
    RECIPE_GRACE_SECONDS,
    Conflict,
    Document,
    Ending,
    JobExists,
    JobPage,
    JobQuery,
    Leader,
    Store,
    UnknownJob,
    WorkerRecord,
    storable,
)
from nommerd.store.cursor import Cursor


class MemoryStore(Store):
    """Plain dictionaries. Records are kept encoded, so that nobody shares a mutable one with the store."""

    def __init__(self, recipe_grace_seconds: float = RECIPE_GRACE_SECONDS) -> None:
        self._jobs: dict[Key, bytes] = {}
        self._progress: dict[Key, tuple[int, float, str | None, float | None, float | None]] = {}
        self._recipes: dict[str, tuple[str, float]] = {}
        self._workers: dict[str, WorkerRecord] = {}
        self._leader = Leader()
        self._documents: dict[tuple[str, str, str], Document] = {}
        self._grace = recipe_grace_seconds

    def create(self, job: Job) -> None:
        body = job.encode()
        if job.key in self._jobs:
            found = self.get(job.key)
            if not job.write_id or found.write_id != job.write_id:
                raise JobExists(found)
            return
        self._jobs[job.key] = body

    def get(self, key: Key) -> Job:
        try:
            job = Job.decode(self._jobs[key])
        except KeyError:
            raise UnknownJob(key.id) from None
        token, progress, stage, eta_seconds, speed = self._progress.get(key, (0, 0.0, None, None, None))
        if not job.claimed or token != job.token:
            return job
        return replace(job, progress=progress, stage=stage, eta_seconds=eta_seconds, speed=speed)

    def swap(self, job: Job, expected_version: int) -> None:
        body = job.encode()
        if self.get(job.key).version != expected_version:
            raise Conflict(job.id)
        self._jobs[job.key] = body
        self._progress.pop(job.key, None)

    def list(self, query: JobQuery) -> JobPage:
        after = Cursor.decode(query.cursor) if query.cursor is not None else None
        found = sorted((job for job in self._all() if query.matches(job)), key=Cursor.of, reverse=True)
        page = [job for job in found if after is None or Cursor.of(job) < after][:query.limit + 1]
        if len(page) <= query.limit:
            return JobPage(page, None)
        return JobPage(page[:-1], Cursor.of(page[-2]).encode())

    def count(self, project: str) -> dict[JobState, int]:
        return dict(Counter(job.state for job in self._all() if job.project == project))

    def due_for_sweep(self, kind: Sweep, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        found = [(job.sweep_at, job) for job in self._all() if job.sweep is kind]
        return _page(found, now, limit, None if after is None else (after.sweep_at, after))

    def webhooks_due(self, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        found = [(job.webhook_at, job) for job in self._all()]
        return _page(found, now, limit, None if after is None else (after.webhook_at, after))

    def delete_finals(self, finished_before: datetime, limit: int) -> int:
        old = [job.key for job in self._all() if job.finished is not None and job.finished < finished_before][:limit]
        for key in old:
            del self._jobs[key]
            self._progress.pop(key, None)
        named = {job.recipe for job in self._all()}
        stale = time.time() - self._grace
        self._recipes = {hash: recipe for hash, recipe in self._recipes.items() if hash in named or recipe[1] > stale}
        now = time.time()
        self._documents = {key: one for key, one in self._documents.items() if one.expires is None or one.expires > now}
        return len(old)

    def report_progress(self, key: Key, token: int, progress: float, stage: str | None, eta_seconds: float | None,
                        speed: float | None = None) -> None:
        body = self._jobs.get(key)
        if body is not None and (job := Job.decode(body)).claimed and job.token == token:
            self._progress[key] = (token, progress, stage, eta_seconds, speed)

    def put_recipe(self, recipe_hash: str, document: str) -> None:
        self._recipes[recipe_hash] = (document, time.time())

    def get_recipe(self, recipe_hash: str) -> str:
        return self._recipes[recipe_hash][0]

    def put_worker(self, worker: WorkerRecord) -> None:
        self._workers[worker.name] = worker

    def workers(self) -> Sequence[WorkerRecord]:
        return [self._workers[name] for name in sorted(self._workers)]

    def delete_worker(self, name: str) -> None:
        self._workers.pop(name, None)

    def leader(self) -> Leader:
        return self._leader

    def swap_leader(self, leader: Leader, expected_version: int) -> None:
        if self._leader.version != expected_version:
            raise Conflict("leader")
        self._leader = leader

    def document(self, kind: str, scope: str, name: str) -> Document | None:
        return self._documents.get((kind, scope, name))

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        return [one for key, one in sorted(self._documents.items()) if key[:2] == (kind, scope)]

    def put_document(self, document: Document, expected_version: int | None) -> None:
        key = (document.kind, document.scope, document.name)
        storable(document)
        found = self._documents.get(key)
        if found != document and expected_version not in (None, found.version if found else 0):
            raise Conflict(document.name)
        self._documents[key] = document

    def delete_document(self, kind: str, scope: str, name: str, expected_version: int | None = None) -> bool:
        found = self._documents.get((kind, scope, name))
        if found is not None and expected_version not in (None, found.version):
            raise Conflict(name)
        return self._documents.pop((kind, scope, name), None) is not None

    def oldest_pending(self, project: str) -> datetime | None:
        return min((job.created for job in self._all() if job.project == project and job.state is JobState.PENDING),
                   default=None)

    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        ended = [Ending(job.finished, job.state, job.error.code if job.error else None) for job in self._all()
                 if job.project == project and job.finished is not None and job.finished >= since]
        return sorted(ended, key=lambda ending: ending.at, reverse=True)[:limit]

    def wipe(self) -> None:
        self._documents = {key: one for key, one in self._documents.items() if one.expires is None}
        self._jobs.clear()
        self._progress.clear()
        self._recipes.clear()

    def ping(self) -> None:
        """Always ready."""

    def close(self) -> None:
        """Nothing to let go of: what is stored stays until the process ends."""

    def _all(self) -> builtins.list[Job]:
        return [self.get(key) for key in self._jobs]


def _page(found: list[tuple[float | None, Job]], now: float, limit: int, after: tuple[float | None, Job] | None) -> list[Job]:
    """Those whose time has come, by it and by key, behind `after`."""
    due = sorted((at, job.key) for at, job in found if at is not None and at <= now)
    behind = None if after is None else (after[0] or 0.0, after[1].key)
    jobs = {job.key: job for _, job in found}
    return [jobs[key] for at, key in due if behind is None or (at, key) > behind][:limit]
