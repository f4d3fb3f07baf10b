"""The store for accounts that still have SimpleDB: one domain, an item for each job, recipe,
document and worker, and the leader.

A job's item holds the record's JSON in parts, and beside it what is searched for (simpledb_items). A write replaces all of
it in one call, on the condition that `version` is the one that was read; a select finds jobs by ranges of texts that sort
as the contract wants (simpledb_select). Every read is a consistent one, so nothing lags.

A domain takes some tens of writes a second and 10 GB, and a count is made by counting. AWS bills the time its machines take,
about 0.00002 hours for a call; a feeder with nothing to do makes 80 calls a minute, some 70 hours a month. Larger clusters
belong on DynamoDB.
"""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar, TypeVar

from gevent.pool import Pool
from pydantic import ValidationError

from nommerd import logs
from nommerd.errors import InfrastructureError
from nommerd.job import FINAL, Job, JobState, Key, Sweep
from nommerd.store import simpledb_select as searches
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
)
from nommerd.store.cursor import Cursor
from nommerd.store.simpledb_documents import Documents
from nommerd.store.simpledb_domain import PAGE_MAX, Absent, Attributes, Domain, Mismatch, Row
from nommerd.store.simpledb_items import (
    LEADER_ITEM,
    PING_ITEM,
    VERSION,
    Torn,
    document,
    ending,
    item_name,
    job_attributes,
    job_item,
    joined,
    nameable,
)
from nommerd.store.simpledb_recipes import Recipes
from nommerd.store.simpledb_select import CODE, ENDED, PLACE, STATE, STATE_IN, Where
from nommerd.store.simpledb_texts import Texts

T = TypeVar("T")
WORKER = "worker"
DELETES_AT_ONCE = 8
RECORDS_AT_ONCE = 100  # parsing more of an answer at a time would hold up the event loop
CREATE_TRIES = 3  # while others create and delete the same job


class SimpleStore(Store):
    """Jobs in one SimpleDB domain. `client` is boto3's `sdb`."""

    keeps_reports: ClassVar[bool] = False
    look_seconds: ClassVar[float] = 5.0

    def __init__(self, client: Any, domain: str, recipe_grace_seconds: float = RECIPE_GRACE_SECONDS) -> None:
        """Raises ConfigError where the domain is missing or may not be written; a service out of reach may come back."""
        self._domain = Domain(client, domain)
        self._texts = Texts(self._domain, recipe_grace_seconds)
        self._recipes = Recipes(self._domain, self._texts, recipe_grace_seconds)
        self._documents = Documents(self._domain, self._texts)
        with suppress(StoreUnavailable):
            self.ping()

    def create(self, job: Job) -> None:
        item, attributes = _item(job), job_attributes(job)
        for _ in range(CREATE_TRIES):
            try:
                return self._domain.put(item, attributes, expected=(VERSION, None))
            except Mismatch:
                found = self._find(job.key)
            if found is not None:
                if job.write_id and found.write_id == job.write_id:
                    return None
                raise JobExists(found)
        raise StoreUnavailable(f"Job {job.id} kept being made and deleted.")

    def get(self, key: Key) -> Job:
        found = self._find(key)
        if found is None:
            raise UnknownJob(key.id)
        return found

    def swap(self, job: Job, expected_version: int) -> None:
        try:
            self._domain.put(_item(job), job_attributes(job), expected=(VERSION, str(expected_version)))
        except Absent:
            raise UnknownJob(job.id) from None
        except Mismatch:
            raise Conflict(job.id) from None

    def list(self, query: JobQuery) -> JobPage:
        where = searches.listed(query)
        if searches.unsearchable(query):
            return JobPage([], None)
        page = builtins.list(islice(filter(query.matches, self._jobs(where, query.limit + 1)), query.limit + 1))
        if len(page) <= query.limit:
            return JobPage(page, None)
        return JobPage(page[:-1], Cursor.of(page[-2]).encode())

    def count(self, project: str) -> dict[JobState, int]:
        def counted(state: JobState) -> int:
            return self._domain.count(searches.compared(STATE_IN, "=", searches.state_in(project, state)))

        counts = zip(JobState, Pool(len(JobState)).map(counted, JobState), strict=True)
        return {state: count for state, count in counts if count}

    def oldest_pending(self, project: str) -> datetime | None:
        return next((job.created for job in self._jobs(searches.oldest(project, JobState.PENDING), 1)), None)

    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        columns = ", ".join(map(searches.quoted_name, (ENDED, STATE, CODE)))
        rows = self._domain.select(columns, searches.ended(project, since), limit)
        return [ending(row.attributes) for row in islice(rows, limit)]

    def unfinished(self, limit: int) -> int:
        return self._domain.count(searches.one_of(STATE, sorted(set(JobState) - FINAL)), at_most=limit)

    def due_for_sweep(self, kind: Sweep, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        return builtins.list(islice(self._jobs(searches.due_for_sweep(kind, now, after), limit), limit))

    def webhooks_due(self, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        return builtins.list(islice(self._jobs(searches.webhooks_due(now, after), limit), limit))

    def delete_finals(self, finished_before: datetime, limit: int) -> int:
        rows = self._domain.select(searches.quoted_name(VERSION), searches.finals(finished_before), limit)
        found = builtins.list(islice(rows, limit))
        deleted = Pool(DELETES_AT_ONCE).map(lambda row: self._delete_unchanged(row.name, row.attributes[VERSION]), found)
        self._recipes.delete_unnamed()
        self._documents.delete_expired()
        self._texts.delete_unread()
        return sum(deleted)

    def _delete_unchanged(self, item: str, version: str) -> bool:
        """Whether the item is gone: one that was retried meanwhile stays."""
        try:
            self._domain.delete(item, expected=(VERSION, version))
        except Absent:  # somebody's deletion, or our own whose answer was lost
            return True
        except Mismatch:
            return False
        return True

    def report_progress(self, key: Key, token: int, progress: float, stage: str | None, eta_seconds: float | None,
                        speed: float | None = None) -> None:
        """Each write costs money: renewals carry the progress."""

    def put_recipe(self, recipe_hash: str, document: str) -> None:
        self._recipes.put(recipe_hash, document)

    def get_recipe(self, recipe_hash: str) -> str:
        return self._recipes.get(recipe_hash)

    def put_worker(self, worker: WorkerRecord) -> None:
        body = worker.encode()
        self._domain.put(item_name("worker", worker.name), {WORKER: searches.named(worker.name), **document(body)})

    def workers(self) -> Sequence[WorkerRecord]:
        rows = self._domain.select("*", f"{searches.quoted_name(WORKER)} is not null", PAGE_MAX)
        return sorted(_readable(rows, _worker), key=lambda worker: worker.name)

    def delete_worker(self, name: str) -> None:
        self._domain.delete(item_name("worker", name))

    def leader(self) -> Leader:
        attributes = self._domain.get(LEADER_ITEM)
        return Leader.decode(_body(attributes)) if attributes else Leader()

    def swap_leader(self, leader: Leader, expected_version: int) -> None:
        attributes = {VERSION: str(leader.version), **document(leader.encode())}
        try:
            self._domain.put(LEADER_ITEM, attributes, expected=(VERSION, str(expected_version) if expected_version else None))
        except Mismatch:
            if not leader.write_id or self.leader().write_id != leader.write_id:  # else our own write, its answer lost
                raise Conflict("leader") from None

    def document(self, kind: str, scope: str, name: str) -> Document | None:
        return self._documents.get(kind, scope, name)

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        return self._documents.all(kind, scope)

    def put_document(self, document: Document, expected_version: int | None) -> None:
        self._documents.put(document, expected_version)

    def delete_document(self, kind: str, scope: str, name: str, expected_version: int | None = None) -> bool:
        return self._documents.delete(kind, scope, name, expected_version)

    def wipe(self) -> None:
        self._domain.delete_all(PLACE)
        self._recipes.wipe()
        self._documents.wipe_expiring()
        self._texts.wipe_unread()

    def ping(self) -> None:
        """Writes for real: SimpleDB may refuse writes alone, and so may a policy."""
        self._domain.put(PING_ITEM, {"at": str(time.time())})

    def close(self) -> None:
        self._domain.close()

    def _find(self, key: Key) -> Job | None:
        item = job_item(key)
        attributes = self._domain.get(item) if nameable(item) else {}
        return _job(attributes) if attributes else None

    def _jobs(self, where: Where, page: int) -> Iterator[Job]:
        """The jobs of a search, in its order; about `page` of them are wanted."""
        return _readable(self._domain.select("*", where, min(page, RECORDS_AT_ONCE)), _job)


def _item(job: Job) -> str:
    item = job_item(job.key)
    if not nameable(item):
        raise InfrastructureError("internal.record_too_large", "The job's id is longer than SimpleDB takes.", retryable=False)
    return item


def _readable(rows: Iterable[Row], decode: Callable[[Attributes], T]) -> Iterator[T]:
    """What can be read. One that cannot must not hide the others: it is left out, and logged."""
    for row in rows:
        try:
            yield decode(row.attributes)
        except InfrastructureError as error:
            logs.get().error("record.unreadable", why=f"{row.name}: {error.message}")


def _job(attributes: Attributes) -> Job:
    return Job.decode(_body(attributes))


def _worker(attributes: Attributes) -> WorkerRecord:
    try:
        return WorkerRecord.decode(_body(attributes))
    except ValidationError as error:
        raise InfrastructureError("internal.bad_record", f"It cannot be read ({error.error_count()} faults).") from None


def _body(attributes: Attributes) -> str:
    try:
        return joined(attributes)
    except Torn:
        raise InfrastructureError("internal.bad_record", "A stored record is not whole.") from None
