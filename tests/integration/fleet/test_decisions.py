"""A launch is decided once and carried out once, whoever is killed or replaced in between, and whatever answer is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gevent
import pytest

from nommerd.control import Control
from nommerd.errors import InfrastructureError
from nommerd.fleet.launch import Ledger
from nommerd.fleet.manager import STALE_SECONDS, UNSEEN_SECONDS
from nommerd.fleet.refusals import Ec2Unavailable
from nommerd.job import JobState, utcnow
from nommerd.store.base import JobQuery, StoreUnavailable
from tests.contracts.lossy import Fate, LossyStore
from tests.fleet_bench import Bench, Events, Feeder, told
from tests.rig import wait_until


def test_a_feeder_killed_in_mid_call_and_the_next_one_come_to_the_same_three_nodes(bench: Bench) -> None:
    bench.jobs(12)
    killed = Feeder(bench)
    with bench.proxy.hold("CreateFleet") as hold:
        call = gevent.spawn(killed.cycle)
        wait_until(hold.applied.is_set, 15, "the call is applied")
        call.kill()
        decision = killed.ledger().decision
        assert decision is not None and decision.count == 3
        next_one = Feeder(bench).take_over()
        next_one.cycle()
    assert len(bench.nodes()) == 3
    first, second = bench.asked()
    assert first == second and first["ClientToken"] == decision.token
    next_one.cycle()
    assert (len(bench.asked()), next_one.ledger(), next_one.fleet.nodes) == (2, Ledger(), 3)


def test_a_feeder_killed_between_decision_and_call_leaves_a_decision_that_the_next_one_carries_out(bench: Bench) -> None:
    bench.jobs(12)
    killed = Feeder(bench)
    killed.ec2.launch = _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.cycle()
    decision = killed.ledger().decision
    assert decision is not None and bench.asked() == []
    bench.jobs(20)
    Feeder(bench).take_over().cycle()
    assert [one["ClientToken"] for one in bench.asked()] == [decision.token]
    assert len(bench.nodes()) == 3


def test_a_paused_installation_starts_no_node_also_none_that_was_decided_before(bench: Bench) -> None:
    bench.jobs(12)
    killed, control = Feeder(bench), Control(bench.store)
    killed.ec2.launch = _dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        killed.cycle()
    control.pause("somebody")
    next_one = Feeder(bench).take_over()
    next_one.cycle()
    assert bench.asked() == [] and next_one.ledger() == killed.ledger()
    control.resume("somebody")
    next_one.cycle()
    assert len(bench.nodes()) == 3


def _dies(request: Any) -> Any:
    raise KeyboardInterrupt


def test_a_leader_replaced_between_decision_and_call_starts_nothing_more(bench: Bench, events: Events) -> None:
    """Both by its own check, and, if it sleeps between check and call, by the client token."""
    bench.jobs(12)
    old, new = Feeder(bench), Feeder(bench)
    store_it = old.leadership.set_launch

    def replaced(text: str) -> None:
        store_it(text)
        if not new.leadership.leads:
            new.take_over().cycle()

    old.leadership.set_launch = replaced  # type: ignore[method-assign]
    old.cycle()
    assert told(events, "fleet.not_leading")
    assert (len(bench.asked()), len(bench.nodes())) == (1, 3)
    again = old.ec2.launch(bench.asked()[0])
    assert sorted(again.ids) == bench.ids() and len(again.ids) == 3
    bench.pass_by(new, 120)
    assert len(bench.nodes()) == 3


def test_of_two_feeders_only_the_leader_acts_and_the_other_goes_on_where_it_ended(bench: Bench) -> None:
    bench.jobs(5)
    one, two = Feeder(bench), Feeder(bench)
    assert one.leadership.tick() and not two.leadership.tick()
    for feeder in (two, one, two, one):
        feeder.fleet.tick()
        feeder.fleet.cycle()
    assert (len(bench.asked()), len(bench.nodes())) == (1, 2)
    bench.jobs(20)
    two.take_over()
    for feeder in (one, two, one, two):
        feeder.fleet.cycle()
    assert (len(bench.asked()), len(bench.nodes())) == (2, 3)


def test_an_answer_that_is_lost_on_the_way_costs_no_extra_node(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    with bench.proxy.hold("CreateFleet", lost=True) as hold:
        hold.released.set()
        feeder.cycle()
    assert len(bench.asked()) == 2
    assert (len(bench.nodes()), feeder.ledger().decision) == (3, None)


def test_a_call_whose_outcome_is_unknown_counts_as_nodes_and_is_repeated_with_the_same_token(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench, tries=1)
    bench.proxy.fail["CreateFleet"] += [(503, "RequestLimitExceeded")] * 2
    for _ in range(2):
        with pytest.raises(Ec2Unavailable):
            feeder.cycle()
        assert feeder.ledger().decision is not None
    assert (feeder.fleet.nodes, bench.nodes()) == (3, [])
    feeder.cycle()
    assert len({one["ClientToken"] for one in bench.asked()}) == 1
    assert (len(bench.nodes()), feeder.ledger().decision) == (3, None)


def test_nothing_is_launched_on_a_decision_that_could_not_be_stored(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.leadership.tick()
    feeder.leadership._store = LossyLeader(bench.store, Fate.REFUSED)
    with pytest.raises(StoreUnavailable):
        feeder.fleet.cycle()
    assert (bench.asked(), bench.store.leader().launch) == ([], "")


def test_a_decision_that_was_stored_though_the_answer_was_lost_is_carried_out_by_the_next_cycle(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.leadership.tick()
    feeder.leadership._store = LossyLeader(bench.store, Fate.LOST)
    with pytest.raises(StoreUnavailable):
        feeder.fleet.cycle()
    assert bench.asked() == []
    feeder.cycle()
    assert (len(bench.asked()), len(bench.nodes())) == (1, 3)


def test_an_outcome_that_could_not_be_stored_is_asked_for_again(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.leadership.tick()
    feeder.leadership._store = LossyLeader(bench.store, Fate.WELL, Fate.REFUSED)
    with pytest.raises(StoreUnavailable):
        feeder.fleet.cycle()
    assert feeder.ledger().decision is not None
    feeder.cycle()
    assert (len(bench.asked()), len(bench.nodes()), feeder.ledger().decision) == (2, 3, None)


class LossyLeader(LossyStore):
    """A store that fails writes of the leader's record."""

    def swap_leader(self, *arguments: Any) -> None:
        self._write(self.store.swap_leader, *arguments)


def test_a_decision_that_ec2_knows_in_other_words_is_settled_by_its_tag(bench: Bench, events: Events) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.cycle()
    request = bench.asked()[0]
    changed = {**request, "TargetCapacitySpecification": {**request["TargetCapacitySpecification"], "TotalTargetCapacity": 2}}
    _decide(feeder, changed)
    feeder.cycle()
    assert [sorted(one["nodes"]) for one in told(events, "fleet.mismatch")] == [bench.ids()]
    assert (len(bench.nodes()), feeder.ledger().decision) == (3, None)


def test_a_decision_older_than_ec2s_memory_is_looked_for_and_not_repeated(bench: Bench) -> None:
    feeder = Feeder(bench)
    bench.jobs(1)
    feeder.cycle()
    bench.close()
    _decide(feeder, bench.asked()[0])
    feeder.wall += STALE_SECONDS + 1
    for job in bench.store.list(JobQuery()).jobs:
        bench.store.swap(replace(job, state=JobState.CANCELLED, finished=utcnow(), version=job.version + 1), job.version)
    feeder.cycle()
    assert (len(bench.asked()), feeder.ledger()) == (1, Ledger())


def _decide(feeder: Feeder, request: dict[str, Any]) -> None:
    """Store a decision with this request, as of now."""
    from nommerd.fleet.launch import Decision

    decision = Decision(token=request["ClientToken"], count=3, market="spot", decided=feeder.wall, request=request)
    assert feeder.leadership.tick()
    feeder.leadership.set_launch(Ledger(decision=decision).encode())


def test_a_decision_of_a_newer_version_stops_launches(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.leadership.tick()
    feeder.leadership.set_launch('{"v": 2}')
    with pytest.raises(InfrastructureError, match="cannot be read"):
        feeder.cycle()
    assert (bench.asked(), bench.store.leader().launch) == ([], '{"v": 2}')


def test_nodes_that_ec2_does_not_list_yet_are_not_started_again_by_this_feeder_or_the_next(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    with bench.proxy.hide_new():
        bench.pass_by(feeder, 120)
        assert (feeder.fleet.nodes, len(feeder.ledger().unseen)) == (3, 3)
        next_one = Feeder(bench).take_over()
        next_one.cycle()
        assert (len(bench.asked()), len(bench.nodes())) == (1, 3)
    next_one.cycle()
    assert (next_one.ledger(), next_one.fleet.nodes) == (Ledger(), 3)


def test_nodes_that_ec2_never_lists_are_given_up_after_a_while(bench: Bench, events: Events) -> None:
    bench.jobs(2)
    feeder = Feeder(bench)
    with bench.proxy.hide_new():
        feeder.cycle()
        bench.pass_by(feeder, UNSEEN_SECONDS)
        assert len(bench.asked()) == 1
        bench.pass_by(feeder, 60)
    assert len(told(events, "fleet.never_listed")) == 1
    assert len(bench.asked()) == 2
