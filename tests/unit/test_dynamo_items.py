"""Records as items: what each change writes, and the order that index keys give."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nommerd import lifecycle
from nommerd.errors import InputError
from nommerd.job import Job, JobState, Key, Owner, Staged
from nommerd.store import dynamodb_items as items
from nommerd.store.cursor import Cursor
from nommerd.store.dynamodb_table import INDEXES

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
DAY = 86400.0
ME = Owner(worker="w", node="n", claim="c")


def job(**fields: Any) -> Job:
    return Job(**{"id": "j1", "pipeline": "web", "recipe": "r" * 64, "source": "file:///i", "dest": "file:///o",
                  "created": NOON, "updated": NOON, "write_id": "w1", "labels": {"team": "news"}, "preset": "hd"} | fields)


def claimed(**fields: Any) -> Job:
    return lifecycle.claim(ME, "m1", 30, NOON)(job(**fields))


def item(one: Job) -> items.Item:
    return items.job_item(one, 30 * DAY)


def indexed(one: Job) -> dict[str, Any]:
    """All of the item that is in any index."""
    held = {"pk", "sk", *(name for keys in INDEXES.values() for name in (*keys[:2], *keys[2]))}
    return {name: value for name, value in item(one).items() if name in held}


@pytest.mark.parametrize("change", [
    lifecycle.renew(ME, 0.5, "encode", 9.0), lifecycle.cancel(NOON), lifecycle.replace_message(ME, "m2"),
    lifecycle.stage(ME, [Staged(uri="s3://b/o", handle="h", bytes=1, sha256="s", token=1)])])
def test_a_renewal_or_a_note_of_the_owner_changes_nothing_that_an_index_holds(change: lifecycle.Change) -> None:
    before = claimed()
    after = change(before).evolve(version=before.version + 1, write_id="w2")
    assert after != before
    assert indexed(after) == indexed(before)


def test_a_claim_moves_the_job_in_the_sweepers_index_alone() -> None:
    before, after = indexed(job()), indexed(claimed())
    assert {name for name in before if before[name] != after.get(name)} == {"sweep_in", "sweep_at"}


def test_only_finals_expire_so_many_seconds_after_they_ended_and_a_retry_keeps_them() -> None:
    ended = lifecycle.cancel(NOON)(job())
    assert item(ended)["expires"] == {"N": str(int(NOON.timestamp() + 30 * DAY))}
    assert "expires" not in item(job()) | item(claimed()) | item(lifecycle.retry(NOON)(ended))
    assert not {"age_in", "age_at"} & item(lifecycle.retry(NOON)(ended)).keys()


def test_a_settled_job_without_anything_to_tell_is_in_no_index_of_things_due() -> None:
    assert set(items.places(lifecycle.cancel(NOON)(job()))) == {"created", "state", "age", "ended"}
    told = lifecycle.cancel(NOON)(job(notify_url="https://h/x"))
    assert set(items.places(told)) == {"created", "state", "age", "ended", "webhook"}


def test_keys_sort_as_times_do_to_the_microsecond_and_then_by_the_jobs_key() -> None:
    step = timedelta(microseconds=1)
    keys = [items.due((NOON + step * n).timestamp(), Key(project, id))
            for n in range(3) for project in ("a", "b") for id in ("1", "12", "2")]
    assert keys == sorted(keys)
    at = NOON.timestamp()
    assert items.moment(at) < items.due(at, Key("a", "1")) < items.moment(at, 1)
    assert items.made(Cursor.of(job())) < items.made(Cursor.of(job(created=NOON + step)))


def test_jobs_spread_over_all_partitions_and_each_stays_in_its_own() -> None:
    many = [job(id=f"job-{number}") for number in range(200)]
    assert {items.places(one)["created"].partition for one in many} == set(items.created_partitions("default"))
    for one in many:
        moved = items.places(replace(one, state=JobState.ENCODING))["state"].partition
        assert moved in items.state_partitions("default", "ENCODING")
        assert moved[-1] == items.places(one)["state"].partition[-1]


def test_a_project_whose_name_holds_the_separator_is_no_other() -> None:
    assert items.job_key(Key("a#b", "c")) != items.job_key(Key("a", "b#c"))
    assert items.job_key(Key("a%23b", "c")) != items.job_key(Key("a#b", "c"))
    assert not {*items.created_partitions("a")} & {*items.created_partitions("a#0")}


@pytest.mark.parametrize("id", ["x" * 2000, "é" * 300, "\ud800"])
def test_an_id_that_no_key_can_hold_is_no_jobs(id: str) -> None:
    assert items.job_key(Key("default", id)) is None


def test_a_cursor_with_an_id_that_no_key_can_hold_was_never_given_out() -> None:
    with pytest.raises(InputError) as caught:
        items.made(Cursor(1, "x" * 2000))
    assert caught.value.code == "request.bad_cursor"


def test_a_label_is_found_by_name_and_value_together() -> None:
    assert item(job(labels={"a": "b\0c", "d": "e"}))["labels"]["SS"] == ["a\0b\0c", "d\0e"]
    assert "labels" not in item(job(labels={}))
