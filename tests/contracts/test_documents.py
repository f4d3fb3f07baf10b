"""What nommerd.store.base promises about documents and about how jobs end, on every backend."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import pytest

from nommerd import lifecycle
from nommerd.errors import InfrastructureError, Problem
from nommerd.job import Job, JobState, Owner, new_id
from nommerd.store.base import DOCUMENT_BYTES_MAX, Conflict, Document, Ending, Store
from tests.contracts.lagging import soon

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
WEEK = 7 * 86400.0
ME = Owner(worker="w1", node="n1", claim="c")
S = JobState
HOSTILE = ["a/b", "../a", "a#b", "a%23b", "100%", "%2F", "new\nline", "it's", 'say "so"', "a`b", "é\u2028", "日本\U0001f3ac",
           " ", "~", "=", "\x00\x7f\uffff", "x' or name > '", "n" * 200, "\U0001f3ac" * 200, "document:sha256"]


def document(**fields: Any) -> Document:
    return Document(**{"kind": "preset", "scope": "default", "name": "web", "body": "{}"} | fields)


def stored(store: Store, **fields: Any) -> Document:
    made = document(**fields)
    store.put_document(made, 0)
    return made


def found(store: Store, like: Document) -> Document | None:
    return store.document(like.kind, like.scope, like.name)


def put(store: Store, **fields: Any) -> Job:
    at = fields.setdefault("created", NOON)
    made = Job(**{"id": new_id(), "pipeline": "web", "recipe": "r" * 64, "source": "file:///i", "dest": "file:///o",
                  "updated": at, "write_id": new_id()} | fields)
    store.create(made)
    return made


class TestDocuments:
    def test_what_was_stored_comes_back_equal_in_every_field(self, store: Store) -> None:
        bodies = ["", "{}", "日本 é \U0001f3ac\r\n\t\x00\x1f\x7f\x85\u2028\ufffe\uffff", "x" * DOCUMENT_BYTES_MAX,
                  "é\n" * (DOCUMENT_BYTES_MAX // 3), "\x00" * DOCUMENT_BYTES_MAX]
        made = [stored(store, name=f"{number}", body=body, version=number + 1) for number, body in enumerate(bodies)]
        made.append(stored(store, name="9", body=bodies[2], expires=4102444800.123456))
        assert [found(store, one) for one in made] == made
        assert list(store.documents("preset", "default")) == made

    def test_one_that_was_never_stored_is_none(self, store: Store) -> None:
        assert store.document("preset", "default", "web") is None
        assert list(store.documents("preset", "default")) == []

    def test_any_name_and_scope_is_its_own_and_a_list_is_by_name(self, store: Store) -> None:
        made = [stored(store, name=name, body=f"{number}") for number, name in enumerate(HOSTILE)]
        assert [found(store, one) for one in made] == made
        assert list(store.documents("preset", "default")) == sorted(made, key=lambda one: one.name)
        scoped = [stored(store, scope=scope, body=scope) for scope in ("", *HOSTILE)]
        assert [[*store.documents("preset", one.scope)] for one in scoped] == [[one] for one in scoped]
        assert [store.delete_document(one.kind, one.scope, one.name) for one in made] == [True] * len(made)
        assert list(store.documents("preset", "default")) == []

    def test_kinds_and_scopes_do_not_see_one_another_however_their_names_run_together(self, store: Store) -> None:
        keys = [("a", "", "b"), ("a", "b", "c"), ("a", "b/c", "c"), ("a/b", "c", "c"), ("a#b", "c", "c"), ("a", "b#c", "c"),
                ("a", "b", "c/c"), ("log", "p/1", "000001"), ("log", "p/10", "000001"), ("log", "p", "1/000001")]
        made = [stored(store, kind=kind, scope=scope, name=name, body=f"{kind} {scope} {name}") for kind, scope, name in keys]
        assert [found(store, one) for one in made] == made
        assert list(store.documents("a", "b")) == [made[1], made[6]]
        assert list(store.documents("log", "p/1")) == [made[7]]
        assert list(store.documents("a", "")) == [made[0]]

    def test_it_changes_only_from_the_expected_version(self, store: Store) -> None:
        first = stored(store, body="1")
        with pytest.raises(Conflict):
            stored(store, body="another")
        second = document(body="2", version=2)
        store.put_document(second, 1)
        for expected in (0, 1, 3):
            with pytest.raises(Conflict):
                store.put_document(document(body="3", version=3), expected)
        assert found(store, first) == second
        with pytest.raises(Conflict):
            store.put_document(document(name="missing"), 1)
        assert store.document("preset", "default", "missing") is None

    def test_without_an_expected_version_whatever_is_there_is_replaced(self, store: Store) -> None:
        store.put_document(document(body="1" * 90_000, expires=4e9), None)
        short = document(body="2")
        store.put_document(short, None)
        assert found(store, short) == short
        assert list(store.documents("preset", "default")) == [short]

    def test_the_very_same_write_again_is_no_conflict(self, store: Store) -> None:
        """A client that repeats a call whose answer was lost."""
        for version, document_ in enumerate((document(), document(body="2", version=2, expires=4e9)), 0):
            for _ in range(2):
                store.put_document(document_, version)
            assert found(store, document_) == document_

    def test_of_many_writers_of_one_version_exactly_one_succeeds(self, store: Store) -> None:
        stored(store)

        def write(number: int) -> bool:
            try:
                store.put_document(document(version=2, body=f"{number}" + "x" * 50_000), 1)
            except Conflict:
                return False
            return True

        won = [number for number, one in enumerate([gevent.spawn(write, n) for n in range(8)]) if one.get(timeout=20)]
        assert len(won) == 1
        seen = store.document("preset", "default", "web")
        assert seen is not None
        assert seen.body.rstrip("x") == str(won[0])

    def test_deleting_says_whether_one_was_there_and_minds_the_version(self, store: Store) -> None:
        made = stored(store, version=3)
        with pytest.raises(Conflict):
            store.delete_document("preset", "default", "web", 2)
        assert found(store, made) == made
        assert [store.delete_document("preset", "default", "web", 3) for _ in range(2)] == [True, False]
        assert store.delete_document("preset", "default", "web") is False
        assert found(store, made) is None
        stored(store)  # and the name is free again
        assert store.delete_document("preset", "default", "web") is True

    def test_a_key_that_no_document_can_have_finds_nothing_and_cannot_be_stored(self, store: Store) -> None:
        for scope, name in (("s", "\ud800"), ("\ud800", "a"), ("s", ""), ("s" * 3000, "a"), ("s", "é" * 3000)):
            assert store.document("preset", scope, name) is None
            assert list(store.documents("preset", scope)) == []
            assert store.delete_document("preset", scope, name) is False
            with pytest.raises(InfrastructureError) as caught:
                stored(store, scope=scope, name=name)
            assert (caught.value.code, caught.value.retryable) == ("internal.document_too_large", False)

    def test_one_too_large_is_refused_and_leaves_what_is_there(self, store: Store) -> None:
        made = stored(store)
        for body in ("x" * (DOCUMENT_BYTES_MAX + 1), "é" * (DOCUMENT_BYTES_MAX // 2 + 1), "\ud800"):
            with pytest.raises(InfrastructureError) as caught:
                store.put_document(document(body=body, version=2), 1)
            assert caught.value.code == "internal.document_too_large"
        assert found(store, made) == made

    def test_expired_ones_go_with_old_finals_and_the_others_stay(self, store: Store) -> None:
        now = time.time()
        lasting = stored(store)
        old = [stored(store, kind="log", scope=f"p/{number}", expires=now - WEEK, body="x" * 60_000) for number in range(3)]
        renewed, new = stored(store, name="renewed", expires=now - WEEK), stored(store, name="new", expires=now + WEEK)
        assert found(store, old[0]) == old[0]  # until it is deleted
        renewed = document(name="renewed", version=2, expires=now + WEEK)
        store.put_document(renewed, 1)

        def left() -> list[Document | None]:
            store.delete_finals(NOON, 10)
            return [found(store, one) for one in (*old, lasting, new, renewed)]

        soon(store, left, [None, None, None, lasting, new, renewed])

    def test_wiping_takes_those_that_expire_and_leaves_the_others_whole(self, store: Store) -> None:
        lasting = [stored(store, body="\x00" * 40_000), stored(store, kind="token", scope="")]
        expiring = [stored(store, kind="log", scope="default/1", name=f"{number:06d}", expires=time.time() + WEEK,
                           body="\x00" * 20_000) for number in range(3)]
        store.wipe()
        assert [found(store, one) for one in lasting] == lasting
        assert [found(store, one) for one in expiring] == [None] * 3


class TestEndings:
    def ended(self, store: Store, minutes: float, code: str | None = None, **fields: Any) -> Job:
        at = NOON + timedelta(minutes=minutes)
        made = put(store, **fields)
        if code is None:
            return store.update(made.key, lifecycle.cancel(at))
        store.update(made.key, lifecycle.claim(ME, "m1", 30, NOON))
        return store.update(made.key, lifecycle.fail(ME, Problem(code=code, message="x", retryable=False), [], 3, at))

    def test_the_newest_endings_of_a_project_come_first_since_then_and_up_to_a_limit(self, store: Store) -> None:
        put(store)
        finished = put(store, created=NOON - timedelta(days=90))
        for number, minutes in enumerate((3, 1, 2.000001)):
            self.ended(store, minutes, "input.truncated" if number == 2 else None)
        self.ended(store, 9, project="other")
        store.update(finished.key, lifecycle.claim(ME, "m1", 30, NOON))
        store.update(finished.key, lifecycle.finish(ME, [], [], NOON + timedelta(minutes=4)))
        expected = [Ending(NOON + timedelta(minutes=4), S.FINISHED, None),
                    Ending(NOON + timedelta(minutes=3), S.CANCELLED, None),
                    Ending(NOON + timedelta(minutes=2.000001), S.ERROR, "input.truncated"),
                    Ending(NOON + timedelta(minutes=1), S.CANCELLED, None)]
        soon(store, lambda: [*store.endings("default", NOON, 10)], expected)
        assert [*store.endings("default", NOON, 2)] == expected[:2]
        assert [*store.endings("default", NOON + timedelta(minutes=2.000001), 10)] == expected[:3]
        assert [*store.endings("default", NOON + timedelta(minutes=2.000002), 10)] == expected[:2]
        assert [*store.endings("nobody", NOON, 10)] == []
        soon(store, lambda: [one.at for one in store.endings("other", NOON, 10)], [NOON + timedelta(minutes=9)])

    def test_a_job_that_is_retried_has_not_ended_and_one_that_ends_again_ended_then(self, store: Store) -> None:
        made = self.ended(store, 1, "encoder.failed")
        store.update(made.key, lifecycle.retry(NOON + timedelta(minutes=2)))
        soon(store, lambda: [*store.endings("default", NOON, 10)], [])
        store.update(made.key, lifecycle.cancel(NOON + timedelta(minutes=3)))
        soon(store, lambda: [*store.endings("default", NOON, 10)], [Ending(NOON + timedelta(minutes=3), S.CANCELLED, None)])

    def test_a_deleted_job_leaves_no_ending(self, store: Store) -> None:
        self.ended(store, 1)
        soon(store, lambda: len(store.endings("default", NOON, 10)), 1)
        assert store.delete_finals(NOON + timedelta(days=1), 10) == 1
        soon(store, lambda: [*store.endings("default", NOON, 10)], [])


def test_the_oldest_pending_job_of_a_project_is_the_one_made_first(store: Store) -> None:
    assert store.oldest_pending("default") is None
    put(store, project="other", created=NOON - timedelta(days=3))
    first, second, _ = (put(store, created=NOON - timedelta(seconds=seconds, microseconds=7)) for seconds in (20, 10, 0))
    soon(store, lambda: store.oldest_pending("default"), first.created)
    store.update(first.key, lifecycle.claim(ME, "m1", 30, NOON))
    soon(store, lambda: store.oldest_pending("default"), first.created)  # claimed, its state is still PENDING
    store.update(first.key, lifecycle.advance(ME, S.DOWNLOADING, "fetch", 0.0, NOON))
    soon(store, lambda: store.oldest_pending("default"), second.created)
    assert store.oldest_pending("nobody") is None
