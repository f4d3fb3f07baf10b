"""What nommerd.store.base promises, on every backend."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import gevent
import pytest

from nommerd import lifecycle
from nommerd.errors import Fenced, InfrastructureError, InputError, Problem
from nommerd.job import RECORD_BYTES_MAX, Job, JobState, Key, Output, Owner, Priority, Staged, Sweep, new_id, utcnow
from nommerd.lifecycle import NotClaimable
from nommerd.store import base
from nommerd.store.base import (
    Conflict,
    JobExists,
    JobQuery,
    Leader,
    Store,
    StoreUnavailable,
    UnknownJob,
    WorkerRecord,
)
from tests.contracts.conftest import OpenStore
from tests.contracts.lagging import soon
from tests.contracts.lossy import Fate, LossyStore

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
S = JobState


def job(**fields: Any) -> Job:
    at = fields.setdefault("created", NOON)
    return Job(**{"id": new_id(), "pipeline": "web", "recipe": "r" * 64, "source": "file:///in.mov", "dest": "file:///out.mp4",
                  "updated": at, "write_id": new_id()} | fields)


def put(store: Store, **fields: Any) -> Job:
    made = job(**fields)
    store.create(made)
    return made


def owner(claim: str = "claim-1") -> Owner:
    return Owner(worker="w1", node="n1", claim=claim)


def claimed(store: Store, claim: str = "claim-1", **fields: Any) -> Job:
    return store.update(put(store, **fields).key, lifecycle.claim(owner(claim), "m1", 30, NOON))


def ids(jobs: Any) -> list[str]:
    return [one.id for one in jobs]


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BACKOFF_SECONDS", 0.0005)


class TestCreateAndGet:
    def test_what_was_created_comes_back_equal_in_every_field(self, store: Store) -> None:
        made = put(store, preset="web-720p", params={"width": 1280}, labels={"team": "news"}, inputs={"c": [{"uri": "file:///c"}]},
                   notify_url="https://h/x", request_hash="abc", secrets="gAAA", priority=Priority.HIGH,
                   created=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), overwrite=True)
        assert store.get(made.key) == made

    def test_an_unknown_key_raises_unknown_job(self, store: Store) -> None:
        with pytest.raises(UnknownJob):
            store.get(Key("default", "nothing"))

    def test_a_taken_key_raises_job_exists_with_the_record_and_leaves_it_alone(self, store: Store) -> None:
        first = put(store)
        with pytest.raises(JobExists) as caught:
            store.create(job(id=first.id, dest="file:///other.mp4"))
        assert caught.value.job == first
        assert store.get(first.key) == first

    def test_creating_again_under_the_same_write_id_succeeds_and_changes_nothing(self, store: Store) -> None:
        made = put(store)
        store.create(made)
        assert store.get(made.key) == made

    def test_two_records_that_never_got_a_write_id_are_not_taken_for_one(self, store: Store) -> None:
        made = put(store, write_id="")
        with pytest.raises(JobExists):
            store.create(made)

    def test_ids_are_unique_within_a_project_only(self, store: Store) -> None:
        one, other = put(store, id="same", project="a"), put(store, id="same", project="b", dest="file:///b")
        assert (store.get(one.key).dest, store.get(other.key).dest) == (one.dest, "file:///b")

    def test_a_record_that_is_too_large_is_refused_and_not_stored(self, store: Store) -> None:
        large = job(params={"x": "y" * RECORD_BYTES_MAX})
        with pytest.raises(InfrastructureError) as caught:
            store.create(large)
        assert caught.value.code == "internal.record_too_large"
        with pytest.raises(UnknownJob):
            store.get(large.key)

    def test_nobody_shares_a_mutable_record_with_the_store(self, store: Store) -> None:
        made = put(store, params={"width": 1})
        made.params["width"] = 2
        store.get(made.key).params["width"] = 3
        assert store.get(made.key).params == {"width": 1}


class TestSwap:
    def test_it_replaces_the_record_of_the_expected_version(self, store: Store) -> None:
        made = put(store)
        changed = made.evolve(version=2, write_id="w2", warnings=(Problem(code="a.b", message="c"),))
        store.swap(changed, 1)
        assert store.get(made.key) == changed

    @pytest.mark.parametrize("expected", [0, 2, 99])
    def test_another_version_is_a_conflict_and_changes_nothing(self, store: Store, expected: int) -> None:
        made = put(store)
        with pytest.raises(Conflict):
            store.swap(made.evolve(version=expected + 1, dest="file:///other"), expected)
        assert store.get(made.key) == made

    def test_a_record_that_is_not_there_is_an_unknown_job(self, store: Store) -> None:
        with pytest.raises(UnknownJob):
            store.swap(job(), 1)

    def test_of_many_swaps_of_one_version_exactly_one_succeeds(self, store: Store) -> None:
        made = put(store)

        def swap(number: int) -> bool:
            try:
                store.swap(made.evolve(version=2, write_id=str(number)), 1)
            except Conflict:
                return False
            return True

        won = [number for number, one in enumerate([gevent.spawn(swap, n) for n in range(20)]) if one.get(timeout=20)]
        assert len(won) == 1
        assert store.get(made.key).write_id == str(won[0])


class TestUpdate:
    def test_it_raises_the_version_by_one_and_leaves_a_fresh_write_id(self, store: Store) -> None:
        made = put(store)
        changed = store.update(made.key, lifecycle.sent("m1", NOON))
        assert (changed.version, changed.message_id) == (2, "m1")
        assert changed.write_id not in ("", made.write_id)
        assert store.get(made.key) == changed

    def test_nothing_is_written_where_there_is_nothing_to_do(self, store: Store) -> None:
        made = put(store)
        lossy = LossyStore(store)
        assert lossy.update(made.key, lambda found: found) == made
        assert lossy.writes == 0

    def test_what_the_change_raises_passes_through_and_nothing_is_written(self, store: Store) -> None:
        made = claimed(store)
        with pytest.raises(Fenced):
            store.update(made.key, lifecycle.renew(owner("another"), 0.5, None, None))
        assert store.get(made.key) == made

    def test_an_unknown_job_raises_unknown_job(self, store: Store) -> None:
        with pytest.raises(UnknownJob):
            store.update(Key("default", "nothing"), lifecycle.cancel(NOON))

    def test_an_unavailable_moment_is_tried_again(self, store: Store) -> None:
        lossy = LossyStore(store, Fate.REFUSED, Fate.REFUSED)
        assert lossy.update(put(store).key, lifecycle.cancel(NOON)).state is S.CANCELLED

    def test_its_own_write_is_recognised_when_the_answer_was_lost(self, store: Store) -> None:
        made = put(store)
        lossy = LossyStore(store, Fate.LOST)
        seen = lossy.update(made.key, lifecycle.claim(owner(), "m1", 30, NOON))
        assert (seen.token, seen.version, lossy.writes) == (1, 2, 1)
        assert store.get(made.key) == seen

    def test_a_state_changes_once_however_often_answers_are_lost(self, store: Store) -> None:
        made = claimed(store)
        lossy = LossyStore(store, Fate.REFUSED, Fate.LOST, Fate.LOST)
        lossy.update(made.key, lifecycle.finish(owner(), [Output(uri="file:///o", bytes=1, sha256="s")], [], NOON))
        assert [event.seq for event in store.get(made.key).events] == [1]

    def test_it_gives_up_after_its_tries_with_the_stores_own_error(self, store: Store) -> None:
        lossy = LossyStore(store, *[Fate.REFUSED] * 3)
        with pytest.raises(StoreUnavailable, match="not applied"):
            lossy.update(put(store).key, lifecycle.cancel(NOON), tries=3)
        assert lossy.writes == 3

    def test_a_change_made_on_a_stale_record_is_made_again_on_the_newest(self, store: Store) -> None:
        made = put(store)
        meddled = []

        def change(found: Job) -> Job:
            if not meddled:
                meddled.append(store.update(made.key, lifecycle.sent("m9", NOON)))
            return found.evolve(overwrite=True)

        changed = store.update(made.key, change)
        assert (changed.overwrite, changed.message_id, changed.version) == (True, "m9", 3)

    def test_many_greenlets_updating_one_record_lose_nothing(self, store: Store) -> None:
        made = put(store)

        def add(number: int) -> None:
            store.update(made.key, lambda found: found.evolve(params=found.params | {str(number): number}), tries=50)

        gevent.joinall([gevent.spawn(add, number) for number in range(12)], timeout=30, raise_error=True)
        seen = store.get(made.key)
        assert seen.params == {str(number): number for number in range(12)}
        assert seen.version == 13

    def test_a_record_that_outgrows_its_bound_loses_details_not_its_end(self, store: Store) -> None:
        made = claimed(store, notify_url="https://h/x", dest="file:///" + "d" * 3500)
        long = Problem(code="encoder.failed", message="é" * 4000, hint="h" * 4000)
        ended = store.update(made.key, lifecycle.fail(owner(), long, [long] * 8, 3, NOON))
        assert ended.state is S.ERROR
        assert ended.error is not None
        assert (ended.error.code, ended.error.message[:50]) == ("encoder.failed", "é" * 50)
        assert store.get(made.key) == ended

    def test_of_many_claimants_exactly_one_wins_and_the_token_rises_once(self, store: Store) -> None:
        made = put(store)

        def claim(number: int) -> bool:
            try:
                store.update(made.key, lifecycle.claim(owner(f"claim-{number}"), "m1", 30, NOON))
            except NotClaimable:
                return False
            return True

        won = [number for number, one in enumerate([gevent.spawn(claim, n) for n in range(20)]) if one.get(timeout=20)]
        seen = store.get(made.key)
        assert (won, seen.token) == ([int(seen.owner.claim[6:])] if seen.owner else [], 1)


class TestList:
    def walk(self, store: Store, query: JobQuery) -> list[str]:
        """All pages, one after the other."""
        found: list[str] = []
        while True:
            page = store.list(query)
            assert len(page.jobs) <= query.limit
            found += ids(page.jobs)
            if page.next is None:
                return found
            assert page.jobs
            query = replace(query, cursor=page.next)

    def test_newest_come_first_and_pages_follow_one_another_without_gap_or_repeat(self, store: Store) -> None:
        made = [put(store, created=NOON + timedelta(seconds=n // 3)) for n in range(23)]  # three share each second
        expected = ids(sorted(made, key=lambda one: (one.created, one.id), reverse=True))
        for limit in (1, 4, 23, 100):
            soon(store, lambda limit=limit: self.walk(store, JobQuery(limit=limit)), expected)  # type: ignore[misc]

    def test_a_full_last_page_has_no_next(self, store: Store) -> None:
        made = [put(store) for _ in range(4)]
        soon(store, lambda: len(store.list(JobQuery()).jobs), len(made))
        page = store.list(JobQuery(limit=2))
        assert page.next is not None
        assert store.list(JobQuery(limit=2, cursor=page.next)).next is None

    def test_jobs_made_while_paging_do_not_disturb_the_pages(self, store: Store) -> None:
        old = [put(store, created=NOON + timedelta(seconds=n)) for n in range(6)]
        soon(store, lambda: len(store.list(JobQuery()).jobs), len(old))
        first = store.list(JobQuery(limit=3))
        put(store, created=NOON + timedelta(hours=1))
        second = store.list(JobQuery(limit=3, cursor=first.next))
        assert ids(first.jobs + second.jobs) == ids(reversed(old))

    def test_every_mix_of_filters_gives_exactly_what_matches(self, store: Store) -> None:
        marks = ({}, {"team": "news"}, {"team": "news", "kind": "clip"}, {"team": "sport"})
        made = [put(store, created=NOON + timedelta(seconds=n), preset=("web", "hd", None)[n % 3], labels=marks[n % 4])
                for n in range(48)]
        for number, one in enumerate(made):
            if number % 5 == 1:
                store.update(one.key, lifecycle.cancel(NOON))
            if number % 5 == 2:
                bad = Problem(code=("input.truncated", "encoder.failed")[number % 2], message="x")
                store.update(one.key, lifecycle.claim(owner(), "m", 30, NOON))
                store.update(one.key, lifecycle.fail(owner(), bad, [], 3, NOON))
        newest = sorted((store.get(one.key) for one in made), key=lambda one: one.created, reverse=True)
        for states in ((), (S.ERROR,), (S.ERROR, S.CANCELLED), (S.FINISHED,)):
            for labels in ({}, {"team": "news"}, {"team": "news", "kind": "clip"}, {"team": "nobody"}):
                for preset in (None, "web"):
                    for code in (None, "input.truncated"):
                        for since in (None, NOON + timedelta(seconds=20)):
                            query = JobQuery(states=frozenset(states), labels=labels, preset=preset, error_code=code,
                                             since=since, limit=5)
                            expected = [one.id for one in newest if (not states or one.state in states)
                                        and labels.items() <= one.labels.items() and preset in (None, one.preset)
                                        and (code is None or (one.error and one.error.code == code))
                                        and (since is None or one.created >= since)]
                            soon(store, lambda query=query: self.walk(store, query), expected)  # type: ignore[misc]

    def test_projects_do_not_see_one_another(self, store: Store) -> None:
        put(store, project="a")
        other = put(store, project="b", labels={"x": "y"})
        soon(store, lambda: ids(store.list(JobQuery(project="b")).jobs), [other.id])
        assert ids(store.list(JobQuery(project="a", labels={"x": "y"})).jobs) == []

    @pytest.mark.parametrize("cursor", ["", "x", "!!!", "é", "bm9wZQ", "WzEsMl0", "WzEsMiwzXQ", "W10", "bnVsbA",
                                        "WzEsdHJ1ZSwiYSJd", "WzEsLTUsImEiXQ",
                                        "WzEsOTk5OTk5OTk5OTk5OTk5OTk5OTk5LCJhIl0", "A" * 100_000])
    def test_a_cursor_it_never_gave_out_is_an_input_error(self, store: Store, cursor: str) -> None:
        put(store)
        with pytest.raises(InputError) as caught:
            store.list(JobQuery(cursor=cursor))
        assert caught.value.code == "request.bad_cursor"

    def test_counts_are_by_state_and_leave_out_states_without_jobs(self, store: Store) -> None:
        assert store.count("default") == {}
        for _ in range(3):
            put(store)
        store.update(put(store).key, lifecycle.cancel(NOON))
        put(store, project="other")
        soon(store, lambda: store.count("default"), {S.PENDING: 3, S.CANCELLED: 1})

    def test_a_filter_follows_the_job_through_its_states(self, store: Store) -> None:
        made = claimed(store, labels={"team": "news"})
        store.update(made.key, lifecycle.advance(owner(), S.ENCODING, "encode", 0.1, NOON))
        def listed(*states: JobState, **labels: str) -> list[str]:
            return ids(store.list(JobQuery(states=frozenset(states), labels=labels)).jobs)

        for labels in ({}, {"team": "news"}):
            soon(store, lambda labels=labels: listed(S.ENCODING, **labels), [made.id])  # type: ignore[misc]
            assert listed(S.PENDING, **labels) == []  # also where an index says so still: the record does not
        store.update(made.key, lifecycle.finish(owner(), [], [], NOON))
        assert listed(S.ENCODING) == []
        soon(store, lambda: listed(S.FINISHED, team="news"), [made.id])


class TestDue:
    def test_the_sweeper_sees_each_kind_by_itself_the_longest_overdue_of_all_projects_first(self, store: Store) -> None:
        late = put(store, created=NOON - timedelta(hours=1), project="b")
        later = put(store, created=NOON - timedelta(hours=2))
        held = claimed(store, created=NOON - timedelta(seconds=1))
        put(store, created=NOON)
        store.update(put(store, created=NOON - timedelta(hours=3)).key, lifecycle.cancel(NOON))
        out = store.update(put(store).key, lifecycle.sent("m", NOON - timedelta(minutes=2)))
        store.update(put(store).key, lifecycle.sent("m", NOON))
        def due(kind: Sweep, limit: int = 10) -> list[str]:
            return ids(store.due_for_sweep(kind, NOON.timestamp(), limit))

        soon(store, lambda: due(Sweep.CLAIMED), [held.id])
        soon(store, lambda: due(Sweep.UNSENT), ids([later, late]))
        soon(store, lambda: due(Sweep.SENT), [out.id])
        assert due(Sweep.UNSENT, 1) == [later.id]

    def test_the_sweeper_can_go_on_behind_a_job_it_has_seen(self, store: Store) -> None:
        waiting = [put(store, created=NOON - timedelta(hours=hours), project=project)
                   for hours in (3, 2, 2, 1) for project in ("a", "b")]
        held = [claimed(store, project=project) for project in ("a", "b", "b")]
        for kind, jobs in ((Sweep.UNSENT, waiting), (Sweep.CLAIMED, held)):
            soon(store, lambda kind=kind: len(store.due_for_sweep(kind, NOON.timestamp(), 99)), len(jobs))  # type: ignore[misc]
            seen: list[Job] = []
            while page := store.due_for_sweep(kind, NOON.timestamp(), 2, seen[-1] if seen else None):
                assert len(page) <= 2
                seen += page
            wanted = sorted((store.get(job.key).sweep_at, job.key) for job in jobs)
            assert [(job.sweep_at, job.key) for job in seen] == wanted

    def test_a_job_is_due_exactly_at_its_time(self, store: Store) -> None:
        made = put(store)
        at = made.sweep_at
        assert at is not None
        soon(store, lambda: ids(store.due_for_sweep(Sweep.UNSENT, at, 10)), [made.id])
        assert store.due_for_sweep(Sweep.UNSENT, at - 0.001, 10) == []

    def test_a_settled_job_is_swept_until_what_it_staged_is_revoked(self, store: Store) -> None:
        made = claimed(store)
        staged = Staged(uri="file:///o", handle="h1", bytes=1, sha256="s", token=1)
        store.update(made.key, lifecycle.stage(owner(), [staged]))
        store.update(made.key, lifecycle.fail(owner(), Problem(code="a.b", message="c"), [], 3, NOON))
        after = (NOON + timedelta(days=1)).timestamp()
        soon(store, lambda: ids(store.due_for_sweep(Sweep.UNSENT, after, 10)), [made.id])
        store.update(made.key, lifecycle.unstaged(["h1"]))
        assert store.due_for_sweep(Sweep.UNSENT, after, 10) == []

    def test_webhooks_come_longest_overdue_first_and_only_while_events_are_unaccepted(self, store: Store) -> None:
        def ended(**fields: Any) -> Job:
            return store.update(put(store, notify_url="https://h/x", **fields).key, lifecycle.cancel(NOON))

        new, old, older, future, gone = ended(), ended(project="b"), ended(), ended(), ended()
        store.update(put(store).key, lifecycle.cancel(NOON))  # nobody to tell
        store.update(old.key, lifecycle.event_postponed(1, NOON - timedelta(minutes=1)))
        store.update(older.key, lifecycle.event_postponed(1, NOON - timedelta(minutes=2)))
        store.update(future.key, lifecycle.event_postponed(1, NOON + timedelta(minutes=1)))
        store.update(gone.key, lifecycle.event_postponed(1, None))
        soon(store, lambda: ids(store.webhooks_due(NOON.timestamp(), 10)), ids([new, older, old]))
        assert ids(store.webhooks_due(NOON.timestamp(), 2)) == ids([new, older])
        assert ids(store.webhooks_due(NOON.timestamp(), 2, store.get(older.key))) == [old.id]
        assert store.webhooks_due(NOON.timestamp(), 2, store.get(old.key)) == []
        store.update(new.key, lifecycle.events_accepted(1))
        assert ids(store.webhooks_due(NOON.timestamp(), 10)) == ids([older, old])


    def test_unfinished_jobs_of_all_projects_are_counted_up_to_a_limit(self, store: Store) -> None:
        for project in ("default", "other"):
            put(store, project=project)
            put(store, project=project, message_id="m", sent_at=NOON)
            claimed(store, project=project)
            put(store, project=project, state=S.FINISHED, finished=NOON)
        staged = Staged(uri="file:///out.mp4", handle="h", bytes=1, sha256="s", token=1)
        put(store, state=S.ERROR, finished=NOON, staged=(staged,))
        soon(store, lambda: [store.unfinished(limit) for limit in (100, 6, 4)], [6, 6, 4])


class TestDeleting:
    def test_only_jobs_that_ended_before_then_go_with_everything_that_names_them(self, store: Store) -> None:
        old = store.update(put(store, labels={"a": "b"}).key, lifecycle.cancel(NOON - timedelta(days=2)))
        new = store.update(put(store, labels={"a": "b"}).key, lifecycle.cancel(NOON))
        waiting = put(store, created=NOON - timedelta(days=9), labels={"a": "b"})
        soon(store, lambda: store.count("default"), {S.PENDING: 1, S.CANCELLED: 2})
        assert store.delete_finals(NOON - timedelta(days=1), 10) == 1
        with pytest.raises(UnknownJob):
            store.get(old.key)
        assert ids(store.list(JobQuery(labels={"a": "b"})).jobs) == ids([new, waiting])
        soon(store, lambda: store.count("default"), {S.PENDING: 1, S.CANCELLED: 1})

    def test_a_limit_bounds_one_call(self, store: Store) -> None:
        for _ in range(5):
            store.update(put(store).key, lifecycle.cancel(NOON))
        soon(store, lambda: store.count("default"), {S.CANCELLED: 5})
        after = NOON + timedelta(seconds=1)
        assert [store.delete_finals(after, 2) for _ in range(4)] == [2, 2, 1, 0]

    def test_a_job_that_was_retried_is_not_deleted(self, store: Store) -> None:
        made = put(store)
        store.update(made.key, lifecycle.cancel(NOON))
        store.update(made.key, lifecycle.retry(NOON))
        assert store.delete_finals(NOON + timedelta(days=1), 10) == 0

    def test_recipes_go_with_their_last_job(self, open_store: OpenStore) -> None:
        store = open_store(grace=0.0)
        for name in ("shared", "alone"):
            store.put_recipe(name, f"{{{name}}}")
        for recipe in ("shared", "alone"):
            store.update(put(store, recipe=recipe).key, lifecycle.cancel(NOON))
        put(store, recipe="shared")
        soon(store, lambda: store.count("default"), {S.CANCELLED: 2, S.PENDING: 1})
        assert store.delete_finals(NOON + timedelta(days=1), 10) == 2

        def there() -> bool:
            try:
                store.get_recipe("alone")
            except LookupError:
                return False
            store.delete_finals(NOON + timedelta(days=1), 10)  # where the first call could not know yet
            return True

        soon(store, there, False)
        assert store.get_recipe("shared") == "{shared}"

    def test_a_recipe_that_waits_for_its_job_stays(self, store: Store) -> None:
        store.put_recipe("fresh", "{}")
        store.delete_finals(NOON, 10)
        assert store.get_recipe("fresh") == "{}"


    def test_wiping_deletes_every_job_and_recipe_but_neither_workers_nor_the_leader(self, store: Store) -> None:
        made = [put(store, project=project, labels={"team": "news"}) for project in ("default", "other") for _ in range(30)]
        store.put_recipe("r" * 64, "{}")
        store.put_worker(WorkerRecord(name="w", node="n", state="ACTIVE", slots=1, active=(), version="1", encoders=(),
                                      reported=NOON))
        store.swap_leader(Leader(owner=owner(), version=1), 0)
        store.wipe()
        for one in (made[0], made[-1]):
            with pytest.raises(UnknownJob):
                store.get(one.key)
        assert store.list(JobQuery(labels={"team": "news"})).jobs == []
        soon(store, lambda: store.count("other"), {})
        with pytest.raises(LookupError):
            store.get_recipe("r" * 64)
        assert (len(store.workers()), store.leader().version) == (1, 1)


class TestProgress:
    def test_what_the_owner_reports_shows_in_get_and_list_without_a_new_version(self, store: Store) -> None:
        made = claimed(store)
        store.report_progress(made.key, 1, 0.25, "encode", 12.5, 1.75)
        seen = store.get(made.key)
        reported = (0.25, "encode", 12.5, 1.75) if store.keeps_reports else (0.0, None, None, None)
        assert (seen.progress, seen.stage, seen.eta_seconds, seen.speed, seen.version) == (*reported, made.version)
        soon(store, lambda: store.list(JobQuery()).jobs, [seen])

    def test_a_renewal_carries_the_progress_on_every_backend(self, store: Store) -> None:
        made = claimed(store)
        store.update(made.key, lifecycle.renew(owner(), 0.25, "encode", 12.5, 1.75))
        seen = store.get(made.key)
        assert (seen.progress, seen.stage, seen.eta_seconds, seen.speed) == (0.25, "encode", 12.5, 1.75)

    def test_a_report_under_another_token_is_ignored_without_error(self, store: Store) -> None:
        made = claimed(store)
        for token in (0, 2):
            store.report_progress(made.key, token, 0.9, "encode", 1.0)
        store.report_progress(Key("default", "nothing"), 1, 0.9, "encode", 1.0)
        assert store.get(made.key) == made

    def test_a_report_never_outlives_its_claim(self, store: Store) -> None:
        made = claimed(store)
        store.report_progress(made.key, 1, 0.9, "encode", 1.0)
        store.update(made.key, lifecycle.give_back(owner(), "stopped", NOON))
        store.report_progress(made.key, 1, 0.95, "encode", 1.0)
        assert store.get(made.key).eta_seconds is None
        again = store.update(made.key, lifecycle.claim(owner("claim-2"), "m2", 30, NOON))
        store.report_progress(made.key, 1, 0.95, "encode", 1.0)
        assert (store.get(made.key).progress, store.get(made.key)) == (0.0, again)

    def test_a_newer_record_is_not_shown_with_an_older_report(self, store: Store) -> None:
        made = claimed(store)
        store.report_progress(made.key, 1, 0.4, "encode", 9.0)
        store.update(made.key, lifecycle.advance(owner(), S.UPLOADING, "upload", 0.9, NOON))
        seen = store.get(made.key)
        assert (seen.progress, seen.stage) == (0.9, "upload")

    def test_somebody_elses_write_keeps_the_progress(self, store: Store) -> None:
        made = claimed(store)
        store.report_progress(made.key, 1, 0.4, "encode", 9.0)
        store.update(made.key, lifecycle.cancel(NOON))
        seen = store.get(made.key)
        assert (seen.progress, seen.cancel_requested) == (0.4 if store.keeps_reports else 0.0, True)


class TestRecipesWorkersLeader:
    def test_a_recipe_comes_back_and_storing_it_again_changes_nothing(self, store: Store) -> None:
        store.put_recipe("h1", '{"stages": ["é"]}')
        store.put_recipe("h1", '{"stages": ["é"]}')
        assert store.get_recipe("h1") == '{"stages": ["é"]}'
        with pytest.raises(LookupError):
            store.get_recipe("h2")

    def test_a_heartbeat_replaces_the_one_before_and_workers_come_by_name(self, store: Store) -> None:
        def beat(name: str, state: str) -> WorkerRecord:
            return WorkerRecord(name=name, node="n", state=state, slots=2, active=(Key("default", "a"), Key("p", "b")),
                                version="1", encoders=("libx264",), reported=NOON)

        for name, state in (("w2", "ACTIVE"), ("w1", "ACTIVE"), ("w2", "DRAINING")):
            store.put_worker(beat(name, state))
        assert list(store.workers()) == [beat("w1", "ACTIVE"), beat("w2", "DRAINING")]

    def test_all_that_a_heartbeat_says_comes_back(self, store: Store) -> None:
        record = WorkerRecord(name="w", node="n", state="ACTIVE", slots=2, active=(Key("p", "a"),), version="1",
                              encoders=("libx264",), reported=NOON, started=NOON, heartbeat_seconds=0.5,
                              disk_free_bytes=2**41, disk_total_bytes=2**42)
        store.put_worker(record)
        assert list(store.workers()) == [record]

    def test_a_deleted_heartbeat_is_gone_and_the_next_one_is_there_again(self, store: Store) -> None:
        def beat(name: str) -> WorkerRecord:
            return WorkerRecord(name=name, node="n", state="TERMINATED", slots=2, active=(), version="1", encoders=(),
                                reported=NOON)

        for name in ("w1", "w2"):
            store.put_worker(beat(name))
        for name in ("w1", "w1", "nobody"):
            store.delete_worker(name)
        assert list(store.workers()) == [beat("w2")]
        store.put_worker(beat("w1"))
        assert list(store.workers()) == [beat("w1"), beat("w2")]

    def test_there_is_an_empty_leader_at_first(self, store: Store) -> None:
        assert store.leader() == Leader()

    def test_one_of_two_candidates_becomes_leader(self, store: Store) -> None:
        first = Leader(owner=owner("a"), token=1, lease_version=1, version=1, write_id="a")
        store.swap_leader(first, 0)
        with pytest.raises(Conflict):
            store.swap_leader(Leader(owner=owner("b"), token=1, version=1, write_id="b"), 0)
        assert store.leader() == first

    def test_a_leader_row_changes_only_from_the_version_that_was_seen(self, store: Store) -> None:
        store.swap_leader(Leader(owner=owner("a"), token=1, version=1), 0)
        with pytest.raises(Conflict):
            store.swap_leader(Leader(version=3), 2)
        renewed = Leader(owner=owner("a"), token=1, lease_version=2, version=2)
        store.swap_leader(renewed, 1)
        assert store.leader() == renewed

    def test_the_leader_row_keeps_a_launch_that_is_being_carried_out(self, store: Store) -> None:
        decided = Leader(owner=owner("a"), token=1, version=1, launch='{"client_token": "t"}' + " " * 9000)
        store.swap_leader(decided, 0)
        assert store.leader() == decided

    def test_ping_returns_while_the_store_can_be_written_and_close_is_safe_twice(self, store: Store) -> None:
        store.ping()
        store.close()
        store.close()


def test_times_keep_their_microseconds_and_their_zone(store: Store) -> None:
    made = put(store, created=utcnow())
    assert store.get(made.key).created == made.created
    assert all(newer.created >= older.created for newer, older in pairwise(store.list(JobQuery()).jobs))
