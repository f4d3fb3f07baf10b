"""What the leader decides is stored under its token, and by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nommerd.errors import Fenced
from nommerd.job import Owner
from nommerd.leadership import Leadership
from nommerd.store.base import Leader, Store, StoreUnavailable
from nommerd.store.memory import MemoryStore
from nommerd.watch import LeaseWatch
from tests.contracts.lossy import Fate, LossyStore


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class LossyLeader(LossyStore):
    """A store whose writes of the leader's record fail as planned; `before` runs ahead of each."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def swap_leader(self, *arguments: Any) -> None:
        self.before()
        self._write(self.store.swap_leader, *arguments)


def feeder(store: Store, clock: Clock, name: str) -> Leadership:
    me = Owner(worker="feeder", node=name)
    return Leadership(store, me, 15.0, clock=clock, watch=LeaseWatch(clock, me))


def test_a_decision_is_stored_and_read_by_the_leader_and_by_the_next_one() -> None:
    store, clock = MemoryStore(), Clock()
    one, two = feeder(store, clock, "a"), feeder(store, clock, "b")
    assert one.tick()
    one.set_launch("three nodes")
    assert (one.launch(), store.leader().launch) == ("three nodes", "three nodes")
    one.resign()
    assert two.tick()
    assert two.launch() == "three nodes"
    two.set_launch("")
    assert store.leader().launch == ""


def test_nobody_but_the_leader_stores_or_reads_a_decision() -> None:
    store, clock = MemoryStore(), Clock()
    one, two = feeder(store, clock, "a"), feeder(store, clock, "b")
    for early in (lambda: one.set_launch("x"), one.launch):
        with pytest.raises(Fenced):
            early()
    assert one.tick()
    assert not two.tick()
    with pytest.raises(Fenced):
        two.set_launch("x")
    clock.now += 17
    assert two.tick()
    with pytest.raises(Fenced):
        one.set_launch("x")
    assert (one.leads, two.leads, store.leader().launch) == (False, True, "")


def test_a_decision_renews_the_lease_and_renewals_keep_the_decision() -> None:
    store, clock = MemoryStore(), Clock()
    one = feeder(store, clock, "a")
    assert one.tick()
    clock.now += 10
    one.set_launch("x")
    clock.now += 10
    assert one.leads
    assert one.tick()
    assert store.leader().launch == "x"


def test_a_renewal_of_our_own_in_between_does_not_lose_the_decision() -> None:
    store, clock = MemoryStore(), Clock()
    lossy = LossyLeader(store)
    one = feeder(lossy, clock, "a")
    assert one.tick()

    def renewed() -> None:
        lossy.before = lambda: None  # type: ignore[method-assign]
        assert one.tick()

    lossy.before = renewed  # type: ignore[method-assign]
    one.set_launch("x")
    assert store.leader().launch == "x"


def test_a_take_over_in_between_fences_the_decision() -> None:
    store, clock = MemoryStore(), Clock()
    lossy = LossyLeader(store)
    one, two = feeder(lossy, clock, "a"), feeder(store, clock, "b")
    assert one.tick()
    two.tick()

    def replaced() -> None:
        clock.now += 20
        assert two.tick()

    lossy.before = replaced  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        one.set_launch("x")
    assert store.leader().launch == ""


def test_who_does_not_know_yet_that_it_took_over_decides_nothing() -> None:
    store, clock = MemoryStore(), Clock()
    one = feeder(LossyLeader(store, Fate.LOST), clock, "a")
    assert not one.tick()
    assert store.leader().token == 1
    with pytest.raises(Fenced):
        one.set_launch("x")
    assert one.tick()
    one.set_launch("x")
    assert store.leader().launch == "x"


def test_a_record_that_never_keeps_still_is_told() -> None:
    store, clock = MemoryStore(), Clock()
    lossy = LossyLeader(store)
    one = feeder(lossy, clock, "a")
    assert one.tick()

    def changed() -> None:
        leader: Leader = store.leader()
        store.swap_leader(replace(leader, version=leader.version + 1), leader.version)

    lossy.before = changed  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        one.set_launch("x")
