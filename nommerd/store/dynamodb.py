"""Records in one DynamoDB table, made by `nommerd aws setup` (nommerd.store.dynamodb_table).

Items, by primary key (pk, sk):

| item | pk | sk | holds |
|---|---|---|---|
| job | job#PROJECT#ID | job | `body` (the record as JSON, at most 8 KB), `version`, and what the indexes need |
| recipe | recipe#HASH | recipe | `body`, `stored`; under its hash, so never changed |
| document | doc#KIND#SCOPE | NAME | `body`, `version`; see nommerd.store.dynamodb_documents |
| heartbeat | workers | NAME | `body` |
| leader | leader | leader | `body`, `version` |
| ping | ping | ping | nothing |

Every write of a job, a document or the leader is conditional on `version`; the item that is there comes back with a refusal,
so that our own write whose answer was lost (botocore tries again by itself) is told from somebody else's. Reads of records
and documents are consistent.

Indexes (global, each sparse: an item is in those whose keys it has). A partition of an index takes 1,000 writes a second, so
each key ends in one of SHARDS, and a reader merges them in order:

| index | partition, sort key | is read for |
|---|---|---|
| created | PROJECT#SHARD, made#ID | listing all states; written once for each job |
| state | PROJECT#STATE#SHARD, made#ID | listing some states, counting |
| sweep | KIND#SHARD, when#PROJECT#ID | due_for_sweep, unfinished |
| webhook | SHARD, when#PROJECT#ID | webhooks_due |
| age | final#SHARD, ended#PROJECT#ID; recipe, stored#HASH; document#SHARD, expires#KEY | delete_finals |
| ended | PROJECT#SHARD, ended#PROJECT#ID | endings: of one project, however many jobs the others have |

Beside their keys they hold what never changes while a job runs (preset, labels, recipe hash; the error's code), so a renewal
of a lease writes the item and no index. Indexes lag behind the table by some moments. So they only say which records to
look at: those are read from the table, consistently, and what no longer fits is dropped. A job that was changed this
very moment may be missing from a list by state until its index has caught up, and is found by the next sweep; none is ever
shown in a state that it does not have. `endings` alone reads an index and no record: it is for statistics.

Finals carry `expires` (keep_finished_days after their end; a retry removes it), documents that expire do too, and AWS deletes
them within days after that for nothing. `delete_finals` deletes those that it is faster with, and recipes.

What it costs (on demand, us-east-1 since November 2024: a million write units 0.625 USD, a million read units 0.125 USD; a
write unit is 1 KB of an item, or one entry of an index; a read unit 4 KB consistently or 8 KB of an index; a record is
about 2 KB):

| operation | units |
|---|---|
| create | 2 write + 3 index entries (4 with a notify_url) |
| get | 1 read |
| update | 1 read, 2 write; + 2 index entries when the state changes, + 2 when it is claimed, given back, sent or ended |
| a page of a list | half a read for each partition (SHARDS, of each state asked for) + 1 for each job |
| a filter that few pass | half a read for each 20 or so entries looked through |
| count | half a read for each 25 or so jobs of the project: 0.0003 USD at 100,000 jobs; ask seldom |
| due_for_sweep, webhooks_due | half a read for each of SHARDS, + 1 for each job found |
| oldest_pending | half a read for each of SHARDS + 1 |
| endings | half a read for each of SHARDS, or for each 20 or so that are found |
| heartbeat, ping, leader | 1 write (the leader also 1 read) |
| a document | 1 read for each 4 KB; 1 write for each KB, + 1 index entry where it expires |
| documents of a kind and scope | 1 read for each 4 KB of them all |

A job of five minutes, all told: about 91 write and 45 read units, 0.00006 USD. A feeder with nothing to do sweeps and looks
for webhooks every 5 s (16 queries, 8 read units) and renews its lead every 4 s: 4.8 million read and 0.65 million write
units a month, 1.01 USD. A worker's heartbeat each minute: 0.03 USD a month.
"""

from __future__ import annotations

import builtins
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, ClassVar

from nommerd import logs
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.job import Job, JobState, Key, Sweep
from nommerd.store import dynamodb_index as index
from nommerd.store import dynamodb_items as items
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
from nommerd.store.dynamodb_calls import Refused, Table
from nommerd.store.dynamodb_documents import Documents
from nommerd.store.dynamodb_index import Range, Walk
from nommerd.store.dynamodb_items import Item
from nommerd.store.dynamodb_recipes import Recipes
from nommerd.store.dynamodb_table import AGE, CREATED, ENDED, INDEXES, STATE, SWEEP, TTL_ATTRIBUTE, WEBHOOK

KEEP_FINISHED_DAYS = 30.0
DAY_SECONDS = 86400.0
LABELS_FILTERED = 10  # by the service, the others here


class DynamoStore(Store):
    """Jobs in a DynamoDB table. The client is shared, and made elsewhere."""

    keeps_reports: ClassVar[bool] = False
    look_seconds: ClassVar[float] = 5.0

    def __init__(self, client: Any, table: str, recipe_grace_seconds: float = RECIPE_GRACE_SECONDS, *,
                 keep_finished_days: float = KEEP_FINISHED_DAYS) -> None:
        """Raises ConfigError where the table is missing or may not be written; a service out of reach may come back."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{3,255}", table):
            raise ConfigError("config.store", f"{table!r} cannot be the name of a DynamoDB table.",
                              "Use dynamodb://TABLE with 3 to 255 letters, digits, _, - and dots.", place="store")
        self._table = Table(client, table)
        self._recipes = Recipes(self._table, recipe_grace_seconds)
        self._documents = Documents(self._table)
        self._keep_seconds = keep_finished_days * DAY_SECONDS
        with suppress(StoreUnavailable):
            self.ping()

    # --- jobs ----------------------------------------------------------------------------------------------------

    def create(self, job: Job) -> None:
        try:
            self._table.put(items.job_item(job, self._keep_seconds), "attribute_not_exists(pk)")
        except Refused as refused:
            found = self.get(job.key) if refused.item is None else Job.decode(refused.item["body"]["S"])
            if not job.write_id or found.write_id != job.write_id:
                raise JobExists(found) from None

    def get(self, key: Key) -> Job:
        where = items.job_key(key)
        found = None if where is None else self._table.get(where, "body")
        if found is None:
            raise UnknownJob(key.id)
        return Job.decode(found["body"]["S"])

    def swap(self, job: Job, expected_version: int) -> None:
        item = items.job_item(job, self._keep_seconds)
        try:
            self._table.put(item, "version = :expected", {":expected": {"N": str(expected_version)}})
        except Refused as refused:
            if refused.item is None:
                raise UnknownJob(job.id) from None
            if refused.item["body"] != item["body"]:  # else it is what this very call wrote, its answer lost
                raise Conflict(job.id) from None

    # --- many jobs -----------------------------------------------------------------------------------------------

    def list(self, query: JobQuery) -> JobPage:
        part = _listed(query)
        walk = Walk(self._table, part, query.limit + 2)
        jobs: dict[Key, Job] = {}  # one that moves between two states may be met in both
        while len(jobs) <= query.limit and (entries := walk.take(query.limit + 1 - len(jobs))):
            behind = [entry for entry in entries if entry["created_at"]["S"] != part.highest]  # the cursor's own job
            jobs |= {job.key: job for _, job in self._records(behind) if query.matches(job)}
        page = [*jobs.values()][:query.limit]
        return JobPage(page, Cursor.of(page[-1]).encode() if len(jobs) > query.limit else None)

    def count(self, project: str) -> dict[JobState, int]:
        def many(state: JobState) -> int:
            return index.count(self._table, Range(index=STATE, partitions=items.state_partitions(project, state)))

        counted = zip(JobState, self._table.side_by_side(many, JobState), strict=True)
        return {state: count for state, count in counted if count}

    def oldest_pending(self, project: str) -> datetime | None:
        walk = Walk(self._table, Range(index=STATE, partitions=items.state_partitions(project, JobState.PENDING)), 1)
        while entries := walk.take(1):
            for _, job in self._records(entries):
                if job.state is JobState.PENDING:
                    return job.created
        return None

    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        """As the index has it: a job that ended or was retried this very moment may be missing, or be there still."""
        part = Range(index=ENDED, partitions=items.ended_partitions(project), lowest=items.moment(since.timestamp()),
                     newest_first=True)
        return [items.ending(entry) for entry in Walk(self._table, part, limit).take(limit)]

    def unfinished(self, limit: int) -> int:
        partitions = [name for kind in Sweep for name in items.sweep_partitions(kind)]
        unsettled = Range(index=SWEEP, partitions=partitions, condition="attribute_not_exists(age_in)")
        found: set[str] = set()  # one that moves between two partitions meanwhile may be met in both
        walk = Walk(self._table, unsettled, limit)
        while len(found) < limit and (entries := walk.take(limit - len(found))):
            found |= {entry["pk"]["S"] for entry in entries}
        return min(len(found), limit)

    def due_for_sweep(self, kind: Sweep, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        behind = None if after is None else items.due(after.sweep_at or 0.0, after.key)
        return self._due(SWEEP, items.sweep_partitions(kind), lambda job: job.sweep_at, now, limit, behind)

    def webhooks_due(self, now: float, limit: int, after: Job | None = None) -> Sequence[Job]:
        behind = None if after is None else items.due(after.webhook_at or 0.0, after.key)
        return self._due(WEBHOOK, items.WEBHOOK_PARTITIONS, lambda job: job.webhook_at, now, limit, behind)

    def _due(self, name: str, partitions: Sequence[str], at: Callable[[Job], float | None], now: float, limit: int,
             behind: str | None) -> builtins.list[Job]:
        """Records that stand in the index where their entry says: the others have changed, and their new entry comes."""
        sort_key = INDEXES[name][1]
        part = Range(index=name, partitions=partitions, lowest=behind or index.FIRST, highest=items.moment(now, 1))
        walk = Walk(self._table, part, limit + 1)
        jobs: list[Job] = []
        while len(jobs) < limit and (entries := walk.take(limit - len(jobs))):
            for entry, job in self._records([entry for entry in entries if entry[sort_key]["S"] != behind]):
                place, due = items.places(job).get(name), at(job)
                if place is not None and place.at == entry[sort_key]["S"] and due is not None and due <= now:
                    jobs.append(job)
        return jobs

    def _records(self, entries: Sequence[Item]) -> Iterator[tuple[Item, Job]]:
        """The records that index entries name, as they are now. What cannot be read must not hide the others."""
        keys = {(entry["pk"]["S"], entry["sk"]["S"]): entry for entry in entries}
        found = self._table.get_many([{"pk": entry["pk"], "sk": entry["sk"]} for entry in keys.values()], "body")
        for key, entry in keys.items():
            if key not in found:
                continue  # deleted since
            try:
                yield entry, Job.decode(found[key]["body"]["S"])
            except InfrastructureError as error:
                logs.get().error("record.unreadable", why=f"{error.message} It begins with {found[key]['body']['S'][:60]!r}.")

    def report_progress(self, key: Key, token: int, progress: float, stage: str | None, eta_seconds: float | None,
                        speed: float | None = None) -> None:
        """Nothing: each write costs money, and renewals carry the progress."""

    # --- deleting ------------------------------------------------------------------------------------------------

    def delete_finals(self, finished_before: datetime, limit: int) -> int:
        """Each under the condition that it ended when its index entry says: a retry in between saves it."""
        ended = Range(index=AGE, partitions=items.FINAL_PARTITIONS, highest=items.moment(finished_before.timestamp()))
        walk = Walk(self._table, ended, limit)
        deleted = 0
        while deleted < limit and (entries := walk.take(limit - deleted)):
            deleted += sum(self._table.side_by_side(self._table.delete_aged, entries))
        if deleted < limit:
            self._recipes.delete_unnamed()
            self._documents.delete_expired()
        return deleted

    def wipe(self) -> None:
        """Reads the whole table, once."""
        wanted: dict[str, Any] = {
            "ConsistentRead": True, "ProjectionExpression": "pk, sk",
            "FilterExpression": "begins_with(pk, :job) OR begins_with(pk, :recipe) OR "
                                "begins_with(pk, :document) AND attribute_exists(#expires)",
            "ExpressionAttributeNames": {"#expires": TTL_ATTRIBUTE},
            "ExpressionAttributeValues": {":job": {"S": "job#"}, ":recipe": {"S": "recipe#"}, ":document": {"S": "doc#"}}}
        for answer in self._table.pages("scan", **wanted):
            self._table.delete_many(answer["Items"])

    # --- recipes, workers, leader --------------------------------------------------------------------------------

    def put_recipe(self, recipe_hash: str, document: str) -> None:
        self._recipes.put(recipe_hash, document)

    def get_recipe(self, recipe_hash: str) -> str:
        return self._recipes.get(recipe_hash)

    def put_worker(self, worker: WorkerRecord) -> None:
        """One that is silent as long as finals are kept is forgotten: nodes come and go under names of their own."""
        self._table.put({**items.worker_key(worker.name), "body": {"S": worker.encode()},
                        TTL_ATTRIBUTE: {"N": str(int(time.time() + self._keep_seconds))}})

    def workers(self) -> Sequence[WorkerRecord]:
        pages = self._table.pages("query", ConsistentRead=True, KeyConditionExpression="pk = :workers",
                                 ExpressionAttributeValues={":workers": {"S": "workers"}})
        found = [WorkerRecord.decode(item["body"]["S"]) for page in pages for item in page["Items"]]
        return sorted(found, key=lambda worker: worker.name)

    def delete_worker(self, name: str) -> None:
        self._table.call("delete_item", Key=items.worker_key(name))

    def leader(self) -> Leader:
        found = self._table.get(items.LEADER_KEY, "body")
        return Leader() if found is None else Leader.decode(found["body"]["S"])

    def swap_leader(self, leader: Leader, expected_version: int) -> None:
        body = {"S": leader.encode()}
        item = {**items.LEADER_KEY, "version": {"N": str(leader.version)}, "body": body}
        try:
            if expected_version == 0:
                self._table.put(item, "attribute_not_exists(pk)")
            else:
                self._table.put(item, "version = :expected", {":expected": {"N": str(expected_version)}})
        except Refused as refused:
            if refused.item is None or refused.item["body"] != body or not leader.write_id:
                raise Conflict("leader") from None

    # --- documents -----------------------------------------------------------------------------------------------

    def document(self, kind: str, scope: str, name: str) -> Document | None:
        return self._documents.get(kind, scope, name)

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        return self._documents.all(kind, scope)

    def put_document(self, document: Document, expected_version: int | None) -> None:
        self._documents.put(document, expected_version)

    def delete_document(self, kind: str, scope: str, name: str, expected_version: int | None = None) -> bool:
        return self._documents.delete(kind, scope, name, expected_version)

    # --- the service ---------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Writes for real: one unit."""
        self._table.put(items.PING_KEY)

    def close(self) -> None:
        self._table.close()


def _listed(query: JobQuery) -> Range:
    """The part of an index that a listing looks through. Its filter drops most of what does not match before it is read."""
    partitions = [name for state in sorted(query.states) for name in items.state_partitions(query.project, state)]
    return Range(index=STATE if partitions else CREATED, partitions=partitions or items.created_partitions(query.project),
                 lowest=index.FIRST if query.since is None else items.moment(query.since.timestamp()),
                 highest=index.LAST if query.cursor is None else items.made(Cursor.decode(query.cursor)),
                 newest_first=True, **_filter(query))


def _filter(query: JobQuery) -> dict[str, Any]:
    """Range's condition on entries, its names and values."""
    tests: list[str] = []
    names: dict[str, str] = {}
    values: Item = {}
    for attribute, value in (("preset", query.preset), ("code", query.error_code)):
        if value is not None:
            tests.append(f"#{attribute} = :{attribute}")
            names[f"#{attribute}"], values[f":{attribute}"] = attribute, {"S": value}
    for number, pair in enumerate(sorted(query.labels.items())[:LABELS_FILTERED]):
        tests.append(f"contains(#labels, :label{number})")
        names["#labels"], values[f":label{number}"] = "labels", {"S": items.label(*pair)}
    return {"condition": " AND ".join(tests) or None, "names": names, "values": values}
