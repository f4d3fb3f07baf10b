"""Records as items of the DynamoDB table: their keys, and the place each has in the indexes. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zlib import crc32

from nommerd.errors import InputError
from nommerd.job import Job, JobState, Key, Sweep
from nommerd.store.base import Ending
from nommerd.store.cursor import Cursor
from nommerd.store.dynamodb_table import AGE, CREATED, ENDED, INDEXES, STATE, SWEEP, TTL_ATTRIBUTE, WEBHOOK

SHARDS = 4  # partitions of each index; may grow: what is stored stays in those it is in
KEY_BYTES_MAX = 1024  # of a sort key; AWS allows partition keys twice as much
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME_MAX = 10**17 - 1  # microseconds, in 17 digits
Item = dict[str, dict[str, Any]]  # attribute -> {type: value}, as the service has it


class Place(NamedTuple):
    """Where an item stands in an index: the partition, and the text it is sorted by there."""

    partition: str
    at: str


def job_key(key: Key) -> Item | None:
    """The primary key of a job's item; None where no job can have this key, because none so long is taken."""
    pk = f"job#{_plain(key.project)}#{key.id}"
    try:
        return _key(pk, "job") if len(pk.encode()) <= KEY_BYTES_MAX // 2 else None
    except UnicodeEncodeError:  # half of a surrogate pair
        return None


def recipe_key(recipe_hash: str) -> Item:
    """The primary key of a recipe's item."""
    return _key(f"recipe#{recipe_hash}", "recipe")


def worker_key(name: str) -> Item:
    """The primary key of a heartbeat: all are in one partition, so that one query lists them."""
    return _key("workers", name)


def document_key(kind: str, scope: str, name: str) -> Item:
    """The primary key of a document: those of one kind and scope are in one partition."""
    return _key(f"doc#{_plain(kind)}#{_plain(scope)}", name)


LEADER_KEY: Item = {"pk": {"S": "leader"}, "sk": {"S": "leader"}}
PING_KEY: Item = {"pk": {"S": "ping"}, "sk": {"S": "ping"}}


def job_item(job: Job, keep_seconds: float) -> Item:
    """The whole item of a record. `keep_seconds` after it ended, AWS may delete it."""
    key = job_key(job.key)
    if key is None:
        raise ValueError(f"job {job.id[:80]!r}: its id or project is too long")
    item: Item = {**key, "version": {"N": str(job.version)}, "body": {"S": job.encode().decode()}, "recipe": {"S": job.recipe}}
    for index, place in places(job).items():
        partition, at, _ = INDEXES[index]
        item[partition], item[at] = {"S": place.partition}, {"S": place.at}
    if job.preset is not None:
        item["preset"] = {"S": job.preset}
    if job.labels:
        item["labels"] = {"SS": sorted(label(*pair) for pair in job.labels.items())}
    if job.error is not None:
        item["code"] = {"S": job.error.code}
    if job.finished is not None:
        item["state"] = {"S": job.state.value}
        item[TTL_ATTRIBUTE] = {"N": str(int(job.finished.timestamp() + keep_seconds))}
    return item


def places(job: Job) -> dict[str, Place]:
    """Where the record stands in each index that it is in."""
    shard = shard_of(job.key)
    at = made(Cursor.of(job))
    found = {CREATED: Place(f"{_plain(job.project)}#{shard}", at),
             STATE: Place(f"{_plain(job.project)}#{job.state}#{shard}", at)}
    if job.sweep is not None and job.sweep_at is not None:
        found[SWEEP] = Place(f"{job.sweep.name}#{shard}", due(job.sweep_at, job.key))
    if job.webhook_at is not None:
        found[WEBHOOK] = Place(f"{shard}", due(job.webhook_at, job.key))
    if job.finished is not None:
        ended = due(job.finished.timestamp(), job.key)
        found |= {AGE: Place(f"final#{shard}", ended), ENDED: Place(f"{_plain(job.project)}#{shard}", ended)}
    return found


def recipe_place(recipe_hash: str, stored: float) -> Place:
    """Where a recipe stands in the index by age. One partition: it is written at most twice an hour for each recipe."""
    return Place(RECIPE_PARTITION, f"{moment(stored)}#{recipe_hash}")


def document_place(kind: str, scope: str, name: str, expires: float) -> Place:
    """Where a document that expires stands in the index by age. Its key may be longer than there is room: a sum of it spreads
    those of one moment well enough."""
    whole = f"{kind}#{_plain(scope)}#{name}".encode()
    return Place(f"document#{crc32(whole) % SHARDS}", f"{moment(expires)}#{crc32(whole):08x}")


def created_partitions(project: str) -> list[str]:
    """The partitions of the index by creation that hold a project's jobs."""
    return [f"{_plain(project)}#{shard}" for shard in range(SHARDS)]


def state_partitions(project: str, state: str) -> list[str]:
    """The partitions of the index by state that hold a project's jobs in one state."""
    return [f"{_plain(project)}#{state}#{shard}" for shard in range(SHARDS)]


def sweep_partitions(kind: Sweep) -> list[str]:
    """The partitions of the sweeper's index with jobs of one kind."""
    return [f"{kind.name}#{shard}" for shard in range(SHARDS)]


def ended_partitions(project: str) -> list[str]:
    """The partitions of the index by end that hold a project's jobs."""
    return [f"{_plain(project)}#{shard}" for shard in range(SHARDS)]


WEBHOOK_PARTITIONS = [f"{shard}" for shard in range(SHARDS)]
FINAL_PARTITIONS = [f"final#{shard}" for shard in range(SHARDS)]
DOCUMENT_PARTITIONS = [f"document#{shard}" for shard in range(SHARDS)]
RECIPE_PARTITION = "recipe"


def made(cursor: Cursor) -> str:
    """The sort key, in the indexes by creation, of the job that a cursor names. InputError for one that no job can have."""
    if len(cursor.id.encode()) > KEY_BYTES_MAX // 2:
        raise InputError("request.bad_cursor", "This cursor was never given out.",
                         "Use the `next` of the page before, or none.", place="cursor")
    return f"{cursor.created:017d}#{cursor.id}"


def moment(seconds: float, more: int = 0) -> str:
    """Seconds since the epoch, and `more` microseconds, as text that sorts like them: whole microseconds, 17 digits. Sort
    keys go on behind it, so as a bound it lies before every key of its own microsecond."""
    return f"{min(max(round(seconds * 1e6) + more, 0), _TIME_MAX):017d}"


def due(seconds: float, key: Key) -> str:
    """The sort key of what becomes due: by time, then by the job's key."""
    return f"{moment(seconds)}#{_plain(key.project)}#{key.id}"


def ending(entry: Item) -> Ending:
    """How a job ended, of its entry in the index by end."""
    at = _EPOCH + timedelta(microseconds=int(entry["age_at"]["S"].partition("#")[0]))
    return Ending(at, JobState(entry["state"]["S"]), entry["code"]["S"] if "code" in entry else None)


def label(name: str, value: str) -> str:
    """A label as one member of a set, so that a filter can ask for it; names hold no NUL."""
    return f"{name}\0{value}"


def shard_of(key: Key) -> int:
    """Which of an index's partitions a job is in, always the same."""
    return crc32(f"{key.project}/{key.id}".encode("utf-8", "replace")) % SHARDS


def _plain(project: str) -> str:
    """A project's name without the character that separates the parts of a key."""
    return project.replace("%", "%25").replace("#", "%23") if "#" in project or "%" in project else project


def _key(pk: str, sk: str) -> Item:
    return {"pk": {"S": pk}, "sk": {"S": sk}}
