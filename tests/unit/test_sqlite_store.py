"""What only the embedded store can meet: a record in its file that nobody can read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from nommerd.errors import InfrastructureError
from nommerd.job import Job, Sweep, new_id
from nommerd.lifecycle import cancel
from nommerd.sqlite import Database
from nommerd.store.base import Document, JobQuery, StoreUnavailable
from nommerd.store.sqlite import DELETED_AT_ONCE, SqliteStore

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(Database.open(tmp_path / "nommerd.db"))
    yield store
    store.close()
    structlog.reset_defaults()


def put(store: SqliteStore, number: int) -> Job:
    job = Job(id=f"job-{number}", pipeline="p", recipe="r", source="file:///s", dest="file:///d", write_id=new_id(),
              notify_url="https://h/x", created=NOON.replace(minute=number), updated=NOON)
    store.create(job)
    return job


def spoil(folder: Path, job: Job) -> None:
    """As a newer version might have written it."""
    with sqlite3.connect(folder / "nommerd.db") as db:
        body = db.execute("SELECT body FROM jobs WHERE id = ?", (job.id,)).fetchone()[0]
        assert '"project":"default"' in body
        db.execute("UPDATE jobs SET body = ? WHERE id = ?", (body.replace('"project":"default"', '"project":{}'), job.id))
    db.close()


def test_a_record_that_cannot_be_read_hides_no_other_from_the_sweeper(store: SqliteStore, tmp_path: Path) -> None:
    jobs = [put(store, number) for number in range(3)]
    spoil(tmp_path, jobs[0])
    with capture_logs() as lines:
        assert [job.id for job in store.due_for_sweep(Sweep.UNSENT, NOON.timestamp() + 3600, 10)] == ["job-1", "job-2"]
    assert "job-0" in next(line["why"] for line in lines if line["event"] == "record.unreadable")


def test_a_record_that_cannot_be_read_hides_no_others_webhooks(store: SqliteStore, tmp_path: Path) -> None:
    jobs = [put(store, number) for number in range(2)]
    for job in jobs:
        store.update(job.key, cancel(NOON))
    spoil(tmp_path, jobs[0])
    assert [job.id for job in store.webhooks_due(NOON.timestamp() + 3600, 10)] == ["job-1"]


def test_a_listing_leaves_out_what_cannot_be_read_and_goes_on(store: SqliteStore, tmp_path: Path) -> None:
    jobs = [put(store, number) for number in range(6)]
    spoil(tmp_path, jobs[4])
    first = store.list(JobQuery(limit=2))
    assert [job.id for job in first.jobs] == ["job-5"]
    second = store.list(JobQuery(limit=9, cursor=first.next))
    assert ([job.id for job in second.jobs], second.next) == (["job-3", "job-2", "job-1", "job-0"], None)
    with pytest.raises(InfrastructureError):
        store.get(jobs[4].key)


def test_expired_documents_go_in_small_transactions(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(DELETED_AT_ONCE + 50):
        store.put_document(Document(kind="log", scope="p", name=f"{number:06}", body="x", expires=1.0), None)
    write, changed = store._database.write, []

    def counted(run: Callable[[sqlite3.Connection], Any]) -> Any:
        def count(db: sqlite3.Connection) -> Any:
            before = db.total_changes
            done = run(db)
            changed.append(db.total_changes - before)
            return done

        return write(count)

    monkeypatch.setattr(store._database, "write", counted)
    store.delete_finals(NOON, 10)
    assert (max(changed), sum(changed)) == (DELETED_AT_ONCE, DELETED_AT_ONCE + 50)
    assert store.documents("log", "p") == []


def test_what_sqlite_says_is_a_sentence_of_its_own() -> None:
    for said in ("database or disk is full", "The store is closed."):
        assert f"{said.rstrip('.')}. It is tried again" in str(StoreUnavailable(said))
