"""The embedded store: records as JSON beside the columns that are searched, every search along an index."""

from __future__ import annotations

import builtins
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from nommerd import logs
from nommerd.errors import InfrastructureError
from nommerd.job import Job, JobState, Key, Sweep
from nommerd.sqlite import Database, DatabaseUnavailable
from nommerd.store import listing
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
    StoreUnavailable,
    UnknownJob,
    WorkerRecord,
    keyable,
    storable,
)
from nommerd.store.cursor import Cursor, microseconds

T = TypeVar("T")
DELETED_AT_ONCE = 200  # expired documents
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PUT_DOCUMENT = "INSERT OR REPLACE INTO documents (kind, scope, name, version, expires, body) VALUES (?, ?, ?, ?, ?, ?)"
_DELETE_EXPIRED = "DELETE FROM documents WHERE rowid IN (SELECT rowid FROM documents WHERE expires <= ? LIMIT ?)"
_DOCUMENT = "SELECT name, version, expires, body FROM documents WHERE kind = ? AND scope = ?"
_GET = f"SELECT {listing.COLUMNS} FROM jobs j {listing.WITH_PROGRESS} WHERE j.project = ? AND j.id = ?"
_SWEEP = f"""
    SELECT {listing.COLUMNS} FROM jobs j {listing.WITH_PROGRESS} WHERE j.sweep = ? AND j.sweep_at <= ?
    AND (j.sweep_at, j.project, j.id) > (?, ?, ?) ORDER BY j.sweep_at, j.project, j.id LIMIT ?"""
_WEBHOOKS = f"""
    SELECT {listing.COLUMNS} FROM jobs j {listing.WITH_PROGRESS} WHERE j.webhook_at <= ?
    AND (j.webhook_at, j.project, j.id) > (?, ?, ?) ORDER BY j.webhook_at, j.project, j.id LIMIT ?"""
_INSERT = """
    INSERT INTO jobs (project, id, created, recipe, preset,
                      version, token, state, finished, error_code, sweep, sweep_at, webhook_at, body)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_UPDATE = """
    UPDATE jobs
    SET version = ?, token = ?, state = ?, finished = ?, error_code = ?, sweep = ?, sweep_at = ?, webhook_at = ?, body = ?
    WHERE project = ? AND id = ?"""
_INSERT_LABEL = ("INSERT INTO labels (project, name, value, state, created, id, preset, error_code) "
                 "VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
_LABEL = "project = ? AND name = ? AND value = ? AND state = ? AND created = ? AND id = ?"
_REPORT = """
    INSERT OR REPLACE INTO progress (project, id, token, progress, stage, eta_seconds, speed)
    SELECT project, id, token, ?, ?, ?, ? FROM jobs
    WHERE project = ? AND id = ? AND token = ? AND sweep = 0"""  # Sweep.CLAIMED
_PUT_RECIPE = ("INSERT INTO recipes (hash, document, stored) VALUES (?, ?, ?) "
               "ON CONFLICT DO UPDATE SET stored = excluded.stored")


class SqliteStore(Store):
    """Jobs in one SQLite file. What shares the file's `Database` shares its transactions."""

    def __init__(self, database: Database, recipe_grace_seconds: float = RECIPE_GRACE_SECONDS) -> None:
        self._database = database
        self._grace = recipe_grace_seconds
        self._closed = False

    def create(self, job: Job) -> None:
        row = (job.project, job.id, microseconds(job.created), job.recipe, job.preset, *_columns(job))

        def run(db: sqlite3.Connection) -> Job | None:
            if db.execute(_INSERT, row).rowcount:
                db.executemany(_INSERT_LABEL, [(*label, job.preset, _code(job)) for label in _labels(job, job.state)])
                return None
            return _job(db.execute(_GET, job.key).fetchone())

        found = self._write(run)
        if found is not None and (not job.write_id or found.write_id != job.write_id):
            raise JobExists(found)

    def get(self, key: Key) -> Job:
        job = self._read(lambda db: _optional(db.execute(_GET, key).fetchone()))
        if job is None:
            raise UnknownJob(key.id)
        return job

    def swap(self, job: Job, expected_version: int) -> None:
        row = (*_columns(job), *job.key)

        def run(db: sqlite3.Connection) -> None:
            found = db.execute("SELECT version, state, error_code FROM jobs WHERE project = ? AND id = ?", job.key).fetchone()
            if found is None:
                raise UnknownJob(job.id)
            version, *searched = found
            if version != expected_version:
                raise Conflict(job.id)
            db.execute(_UPDATE, row)
            db.execute("DELETE FROM progress WHERE project = ? AND id = ?", job.key)
            if job.labels and searched != [job.state, _code(job)]:
                db.executemany(f"UPDATE labels SET state = ?, error_code = ? WHERE {_LABEL}",
                               [(job.state, _code(job), *label) for label in _labels(job, searched[0])])

        self._write(run)

    def list(self, query: JobQuery) -> JobPage:
        found = self._jobs(*listing.select(query))
        jobs = [job for job in found[:query.limit] if job is not None]
        return JobPage(jobs, Cursor.of(jobs[-1]).encode() if jobs and len(found) > query.limit else None)

    def count(self, project: str) -> dict[JobState, int]:
        rows = self._read(lambda db: db.execute("SELECT state, count(*) FROM jobs WHERE project = ? GROUP BY state",
                                                (project,)).fetchall())
        return {JobState(state): count for state, count in rows}

    def due_for_sweep(self, kind: Sweep, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        behind = (-1.0, "", "") if after is None else (after.sweep_at, *after.key)
        return [job for job in self._jobs(_SWEEP, (kind, now, *behind, limit)) if job is not None]

    def webhooks_due(self, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        behind = (-1.0, "", "") if after is None else (after.webhook_at, *after.key)
        return [job for job in self._jobs(_WEBHOOKS, (now, *behind, limit)) if job is not None]

    def delete_finals(self, finished_before: datetime, limit: int) -> int:
        before = microseconds(finished_before)

        def delete_jobs(db: sqlite3.Connection) -> int:
            rows = db.execute(f"SELECT {listing.COLUMNS} FROM jobs j {listing.WITH_PROGRESS} WHERE j.finished < ? "
                              "ORDER BY j.finished LIMIT ?", (before, limit)).fetchall()
            for job in map(_job, rows):
                db.execute("DELETE FROM jobs WHERE project = ? AND id = ?", job.key)
                db.execute("DELETE FROM progress WHERE project = ? AND id = ?", job.key)
                db.executemany(f"DELETE FROM labels WHERE {_LABEL}", _labels(job, job.state))
            return len(rows)

        deleted = self._write(delete_jobs)
        self._delete_expired()
        self._delete_recipes()
        return deleted

    def _delete_expired(self) -> None:
        """A few at a time: logs are long, and writers must not wait for all of a day's."""
        while self._write(lambda db: db.execute(_DELETE_EXPIRED, (time.time(), DELETED_AT_ONCE)).rowcount) >= DELETED_AT_ONCE:
            pass

    def _delete_recipes(self) -> None:
        """The search is a reader's, so that writers do not wait for it; the deletion looks again."""
        unnamed = "stored <= ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE recipe = hash)"
        stale = time.time() - self._grace
        found = self._read(lambda db: db.execute(f"SELECT hash, ? FROM recipes WHERE {unnamed}", (stale, stale)).fetchall())
        if found:
            self._write(lambda db: db.executemany(f"DELETE FROM recipes WHERE hash = ? AND {unnamed}", found).rowcount)

    def report_progress(self, key: Key, token: int, progress: float, stage: str | None, eta_seconds: float | None,
                        speed: float | None = None) -> None:
        self._execute(_REPORT, (progress, stage, eta_seconds, speed, *key, token))

    def put_recipe(self, recipe_hash: str, document: str) -> None:
        now = time.time()
        stored = self._read(lambda db: db.execute("SELECT stored FROM recipes WHERE hash = ?", (recipe_hash,)).fetchone())
        if stored is None or stored[0] < now - self._grace / 2:  # a fresh time keeps it through the grace that its job needs
            self._execute(_PUT_RECIPE, (recipe_hash, document, now))

    def get_recipe(self, recipe_hash: str) -> str:
        row = self._read(lambda db: db.execute("SELECT document FROM recipes WHERE hash = ?", (recipe_hash,)).fetchone())
        if row is None:
            raise LookupError(recipe_hash)
        return str(row[0])

    def put_worker(self, worker: WorkerRecord) -> None:
        self._execute("INSERT OR REPLACE INTO workers (name, body) VALUES (?, ?)", (worker.name, worker.encode()))

    def workers(self) -> Sequence[WorkerRecord]:
        rows = self._read(lambda db: db.execute("SELECT body FROM workers ORDER BY name").fetchall())
        return [WorkerRecord.decode(body) for body, in rows]

    def delete_worker(self, name: str) -> None:
        self._execute("DELETE FROM workers WHERE name = ?", (name,))

    def leader(self) -> Leader:
        row = self._read(lambda db: db.execute("SELECT body FROM leader").fetchone())
        return Leader() if row is None else Leader.decode(row[0])

    def swap_leader(self, leader: Leader, expected_version: int) -> None:
        body = leader.encode()

        def run(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT version FROM leader").fetchone()
            if expected_version != (row[0] if row else 0):
                raise Conflict("leader")
            db.execute("INSERT OR REPLACE INTO leader (one, version, body) VALUES (1, ?, ?)", (leader.version, body))

        self._write(run)

    def document(self, kind: str, scope: str, name: str) -> Document | None:
        if not keyable(kind, scope, name):
            return None
        row = self._read(lambda db: db.execute(f"{_DOCUMENT} AND name = ?", (kind, scope, name)).fetchone())
        return None if row is None else _document(kind, scope, row)

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        if not keyable(kind, scope):
            return []
        rows = self._read(lambda db: db.execute(f"{_DOCUMENT} ORDER BY name", (kind, scope)).fetchall())
        return [_document(kind, scope, row) for row in rows]

    def put_document(self, document: Document, expected_version: int | None) -> None:
        key = (document.kind, document.scope, document.name)
        storable(document)

        def run(db: sqlite3.Connection) -> None:
            row = db.execute(f"{_DOCUMENT} AND name = ?", key).fetchone()
            found = None if row is None else _document(document.kind, document.scope, row)
            if found != document and expected_version not in (None, found.version if found else 0):
                raise Conflict(document.name)
            db.execute(_PUT_DOCUMENT, (*key, document.version, document.expires, document.body))

        self._write(run)

    def delete_document(self, kind: str, scope: str, name: str, expected_version: int | None = None) -> bool:
        if not keyable(kind, scope, name):
            return False

        def run(db: sqlite3.Connection) -> bool:
            row = db.execute(f"{_DOCUMENT} AND name = ?", (kind, scope, name)).fetchone()
            if row is not None and expected_version not in (None, row[1]):
                raise Conflict(name)
            db.execute("DELETE FROM documents WHERE kind = ? AND scope = ? AND name = ?", (kind, scope, name))
            return row is not None

        return self._write(run)

    def oldest_pending(self, project: str) -> datetime | None:
        row = self._read(lambda db: db.execute("SELECT min(created) FROM jobs WHERE project = ? AND state = 'PENDING'",
                                               (project,)).fetchone())
        return None if row[0] is None else _moment(row[0])

    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        rows = self._read(lambda db: db.execute(
            "SELECT finished, state, error_code FROM jobs INDEXED BY jobs_by_ending "
            "WHERE project = ? AND finished >= ? ORDER BY finished DESC LIMIT ?",
            (project, microseconds(since), limit)).fetchall())
        return [Ending(_moment(finished), JobState(state), code) for finished, state, code in rows]

    def wipe(self) -> None:
        def run(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM documents WHERE expires IS NOT NULL")
            for table in ("labels", "progress", "jobs", "recipes"):
                db.execute(f"DELETE FROM {table}")

        self._write(run)

    def ping(self) -> None:
        """Writes for real: a full disk lets transactions begin."""
        self._execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('pinged', ?)", (time.time(),))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._database.close()

    def _jobs(self, sql: str, arguments: Sequence[Any]) -> builtins.list[Job | None]:
        """The jobs of a query. One that cannot be read must not hide the others: it is None, and logged."""
        found = self._read(lambda db: [_job_or_why(row) for row in db.execute(sql, arguments)])
        for bad in found:
            if isinstance(bad, str):
                logs.get().error("record.unreadable", why=bad)
        return [None if isinstance(one, str) else one for one in found]

    def _execute(self, sql: str, arguments: tuple[Any, ...]) -> None:
        self._write(lambda db: db.execute(sql, arguments).rowcount)

    def _write(self, run: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        try:
            return self._database.write(run)
        except DatabaseUnavailable as error:
            raise StoreUnavailable(str(error)) from None

    def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        self._check()
        try:
            return self._database.read(run)
        except DatabaseUnavailable as error:
            raise StoreUnavailable(str(error)) from None

    def _check(self) -> None:
        if self._closed:
            raise StoreUnavailable("The store is closed.")


def _columns(job: Job) -> tuple[Any, ...]:
    """What may change of a record, in the order of _INSERT and _UPDATE."""
    return (job.version, job.token, job.state, None if job.finished is None else microseconds(job.finished),
            _code(job), job.sweep, job.sweep_at, job.webhook_at, job.encode().decode())


def _document(kind: str, scope: str, row: tuple[Any, ...]) -> Document:
    name, version, expires, body = row
    return Document(kind=kind, scope=scope, name=name, body=body, version=version, expires=expires)


def _moment(whole_microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=whole_microseconds)


def _code(job: Job) -> str | None:
    return None if job.error is None else job.error.code


def _labels(job: Job, state: str) -> list[tuple[Any, ...]]:
    """The keys of its label rows while it is in this state, in the order of _LABEL."""
    return [(job.project, name, value, state, microseconds(job.created), job.id) for name, value in job.labels.items()]


def _job(row: tuple[Any, ...]) -> Job:
    """The record, with the progress its owner reported since it was written."""
    body, token, progress, stage, eta_seconds, speed = row
    job = Job.decode(body)
    if not job.claimed or token != job.token:
        return job
    return replace(job, progress=progress, stage=stage, eta_seconds=eta_seconds, speed=speed)


def _job_or_why(row: tuple[Any, ...]) -> Job | str:
    try:
        return _job(row)
    except InfrastructureError as error:
        return f"{error.message} It begins with {row[0][:60]!r}."


def _optional(row: tuple[Any, ...] | None) -> Job | None:
    return None if row is None else _job(row)
