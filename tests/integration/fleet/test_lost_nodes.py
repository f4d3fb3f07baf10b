"""Nodes that fell silent, never reported or have ended; and what the proxy itself refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nommerd.fleet import watching
from nommerd.job import JobState, new_id, utcnow
from nommerd.store.base import JobQuery
from tests.fleet_bench import Bench, Events, Feeder, told
from tests.rig import wait_until


def test_a_silent_node_is_ended_and_replaced_and_those_that_report_stay(bench: Bench, events: Events) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.cycle()
    silent, *others = bench.ids()
    bench.pass_by(feeder, 60, silent, *others)
    bench.pass_by(feeder, 300, *others)
    assert bench.ids() == sorted([silent, *others])
    bench.pass_by(feeder, 60, *others)
    assert [(one["node"], one["why"]) for one in told(events, "fleet.terminated")] == [(silent, "silent for 360 s")]
    assert set(others) < set(bench.ids()) and silent not in bench.ids()
    assert (len(bench.nodes()), len(bench.asked())) == (3, 2)


def test_a_node_that_never_reports_is_ended(bench: Bench, events: Events) -> None:
    bench.jobs(1)
    Feeder(bench).cycle()
    node, = bench.ids()
    feeder = Feeder(bench, register_seconds=0.5).take_over()
    wait_until(lambda: (bench.pass_by(feeder, 1), told(events, "fleet.terminated"))[1], 10, "the node is ended")
    assert told(events, "fleet.terminated")[0]["node"] == node
    assert node not in bench.ids()


def test_a_node_whose_worker_has_ended_gets_some_grace_and_its_record_is_forgotten_later(
        bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FORGET_SECONDS", 600.0)
    bench.jobs(1)
    feeder = Feeder(bench)
    feeder.cycle()
    node, = bench.ids()
    for job in bench.store.list(JobQuery()).jobs:
        bench.store.swap(replace(job, state=JobState.FINISHED, finished=utcnow(), version=job.version + 1), job.version)
    bench.beat(node, "TERMINATED")
    bench.pass_by(feeder, 120)
    assert bench.ids() == [node]
    bench.pass_by(feeder, 120)
    assert bench.ids() == []
    bench.pass_by(feeder, 240)
    assert len(bench.store.workers()) == 1
    bench.pass_by(feeder, 240)
    assert bench.store.workers() == []


def test_a_store_out_of_reach_for_an_hour_ends_no_node(bench: Bench, events: Events) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.cycle()
    bench.pass_by(feeder, 60, *bench.ids())
    bench.clock.now += 3600
    feeder.take_over()
    feeder.cycle()
    bench.pass_by(feeder, 240)
    assert told(events, "fleet.terminated") == []




# --- the proxy holds what EC2 documents ------------------------------------------------------------------------------


def test_the_proxy_refuses_what_ec2s_model_does_not_have(bench: Bench) -> None:
    bench.jobs(1)
    feeder = Feeder(bench)
    feeder.cycle()
    good = bench.asked()[0]

    def refused(**changes: Any) -> str:
        raw = bench.proxy.clients("ec2", parameter_validation=False)
        with pytest.raises(Exception) as caught:
            raw.create_fleet(**{**good, "ClientToken": new_id(), **changes})
        return str(caught.value.response["Error"]["Code"])  # type: ignore[attr-defined]

    assert refused(Type="sometimes") == "InvalidParameterValue"
    assert refused(TargetCapacitySpecification={"DefaultTargetCapacityType": "spot"}) == "MissingParameter"
    assert refused(SpotOptions={"AllocationStrategy": "best"}) == "InvalidParameterValue"
    tags = [{"Key": "a", "Value": "b"}]
    assert refused(TagSpecifications=[{"ResourceType": "vpc", "Tags": tags}]) == "InvalidParameterValue"
    assert refused(ExcessCapacityTerminationPolicy="termination") == "InvalidParameterCombination"
    assert refused(ClientToken=good["ClientToken"], Type="maintain") == "IdempotentParameterMismatch"
    assert len(bench.nodes()) == 1
