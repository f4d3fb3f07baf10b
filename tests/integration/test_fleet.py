"""The fleet against an emulator of EC2, behind a proxy that holds EC2's rules. The feeder's part is played here, on a clock
that moves when told, so that each step can be stopped; test_fleet_feeder.py has the real daemon."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import gevent
import pytest

from nommerd import logs
from nommerd.aws import names
from nommerd.config import Fleet as FleetSettings
from nommerd.config import Settings
from nommerd.errors import InfrastructureError
from nommerd.fleet import watching
from nommerd.fleet.ec2 import Ec2
from nommerd.fleet.launch import Ledger
from nommerd.fleet.manager import HOLD_SECONDS, POOR_SECONDS, STALE_SECONDS, UNSEEN_SECONDS, Fleet
from nommerd.fleet.refusals import Ec2Unavailable
from nommerd.job import Job, JobState, Owner, new_id, utcnow
from nommerd.leadership import Leadership
from nommerd.store.base import JobQuery, Store, StoreUnavailable, WorkerRecord
from nommerd.store.memory import MemoryStore
from nommerd.watch import LeaseWatch
from tests.contracts.lossy import Fate, LossyStore
from tests.ec2_proxy import Ec2Proxy, Rule
from tests.rig import wait_until

IMAGE = "ami-0123456789abcdef0"
TYPES = ("c7i.xlarge", "c6i.xlarge")
ZONES = ("us-east-1a", "us-east-1b")
USER_DATA = "#cloud-config\n{}\n"
Events = list[tuple[str, dict[str, Any]]]


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Feeder:
    """What of a feeder the fleet needs."""

    def __init__(self, bench: Bench, *, store: Store | None = None, tries: int = 3, **fleet: Any) -> None:
        self.bench, self.store = bench, store or bench.store
        me = Owner(worker="feeder", node=new_id())
        self.leadership = Leadership(self.store, me, 15.0, clock=bench.clock, watch=LeaseWatch(bench.clock, me))
        self.user_data = USER_DATA
        self.wall = 1e9
        settings = Settings(cluster=bench.cluster, fleet=FleetSettings(**{
            "enabled": True, "image_id": IMAGE, "instance_types": TYPES, "zones": ZONES, **fleet}))
        self.ec2 = Ec2(bench.proxy.clients("ec2", tries=tries), bench.cluster)
        self.fleet = Fleet(settings, ec2=self.ec2, store=self.store, leadership=self.leadership,
                           user_data=lambda: self.user_data, clock=bench.clock, now=lambda: self.wall)

    def cycle(self) -> None:
        assert self.leadership.tick()
        self.fleet.cycle()

    def take_over(self) -> Feeder:
        """Become the leader after one that was killed."""
        self.leadership.tick()
        self.bench.clock.now += 20
        assert self.leadership.tick()
        return self

    def ledger(self) -> Ledger:
        return Ledger.decode(self.store.leader().launch)


class Bench:
    """A cluster of its own in the emulator, with what `aws setup` makes of it, and a store."""

    def __init__(self, proxy: Ec2Proxy) -> None:
        self.cluster = f"t{uuid4().hex[:10]}"
        self.proxy, self.clock, self.store = proxy, Clock(), MemoryStore()
        self.group = proxy.ec2.create_security_group(GroupName=names.security_group(self.cluster), Description="x")["GroupId"]
        proxy.clients("iam").create_instance_profile(InstanceProfileName=names.node_profile(self.cluster))

    def jobs(self, count: int) -> None:
        for _ in range(count):
            self.store.create(Job(id=new_id(), pipeline="web", recipe="r" * 64, source="file:///in.mov", dest="file:///out.mp4",
                                  created=utcnow(), updated=utcnow(), write_id=new_id()))

    def nodes(self) -> list[dict[str, Any]]:
        return self.proxy.nodes(self.cluster)

    def ids(self) -> list[str]:
        return sorted(one["InstanceId"] for one in self.nodes())

    def pools(self) -> list[tuple[str, str, str]]:
        return sorted((one.get("InstanceLifecycle", "on-demand"), one["InstanceType"], one["Placement"]["AvailabilityZone"])
                      for one in self.nodes())

    def asked(self) -> list[dict[str, Any]]:
        return self.proxy.asked("CreateFleet")

    def beat(self, node: str, state: str = "ACTIVE") -> None:
        self.store.put_worker(WorkerRecord(name=node, node=node, state=state, slots=2, active=(), version="1", encoders=(),
                                           reported=utcnow()))

    def pass_by(self, feeder: Feeder, seconds: float, *beating: str) -> None:
        """A cycle each minute, under a lease that is renewed, while these nodes report."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            minute = min(self.clock.now + 60, until)
            while self.clock.now < minute:
                self.clock.now = min(self.clock.now + 5, minute)
                assert feeder.leadership.tick()
            for node in beating:
                self.beat(node)
            feeder.cycle()

    def close(self) -> None:
        if ids := self.ids():
            self.proxy.ec2.terminate_instances(InstanceIds=ids)


@pytest.fixture(scope="module")
def shared() -> Iterator[Ec2Proxy]:
    with Ec2Proxy() as proxy:
        yield proxy


@pytest.fixture
def bench(shared: Ec2Proxy) -> Iterator[Bench]:
    shared.calls.clear()
    shared.rules.clear()
    shared.unknown_images.clear()
    bench = Bench(shared)
    yield bench
    bench.close()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    """What is logged, as event and fields."""
    found: Events = []

    class Log:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: found.append((event, {"level": level, **fields}))

    monkeypatch.setattr(logs, "get", lambda **fields: Log())
    return found


def told(events: Events, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in events if event == name]


# --- starting --------------------------------------------------------------------------------------------------------


def test_twelve_jobs_and_no_node_start_the_maximum_of_three_once(bench: Bench) -> None:
    bench.jobs(12)
    feeder = Feeder(bench)
    for _ in range(3):
        feeder.cycle()
    assert bench.pools() == [("spot", TYPES[0], ZONES[0])] * 3
    assert len(bench.asked()) == 1
    assert (feeder.ledger(), feeder.fleet.nodes) == (Ledger(), 3)


def test_a_node_is_what_the_template_says(bench: Bench) -> None:
    bench.jobs(1)
    Feeder(bench).cycle()
    node, = bench.nodes()
    asked, = bench.asked()
    assert (node["ImageId"], node["MetadataOptions"]["HttpTokens"], node["MetadataOptions"]["HttpPutResponseHopLimit"]) == (
        IMAGE, "required", 1)
    assert node["IamInstanceProfile"]["Arn"].endswith(f"/{names.node_profile(bench.cluster)}")
    assert [group["GroupId"] for group in node["SecurityGroups"]] == [bench.group]
    tags = {"nommerd:cluster": bench.cluster, "nommerd:launch": asked["ClientToken"], "Name": f"nommerd-{bench.cluster}-node"}
    assert {tag["Key"]: tag["Value"] for tag in node["Tags"]} == tags
    volume = node["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    found = bench.proxy.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in found} == tags

    def attribute(name: str) -> str:
        answer = bench.proxy.ec2.describe_instance_attribute(InstanceId=node["InstanceId"], Attribute=name)
        return str(answer[name[0].upper() + name[1:]]["Value"])

    assert attribute("instanceInitiatedShutdownBehavior") == "terminate"
    assert base64.b64decode(attribute("userData")) == USER_DATA.encode()


def test_a_template_gets_a_new_version_when_its_content_changed_and_only_then(bench: Bench) -> None:
    for number, user_data in enumerate(("one", "one", "two", "one")):
        bench.jobs(1)
        feeder = Feeder(bench, jobs_per_node=1, overflow=0, max_nodes=9)
        feeder.user_data = user_data
        feeder.cycle()
        feeder.leadership.resign()
        assert len(bench.nodes()) == number + 1
    versions = [one["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"]["Version"] for one in bench.asked()]
    assert versions == ["1", "1", "2", "1"]
    made, = bench.proxy.asked("CreateLaunchTemplate")
    assert made["LaunchTemplateName"] == names.launch_template(bench.cluster)
    assert len(bench.proxy.asked("CreateLaunchTemplateVersion")) == 1


def test_a_template_that_somebody_deleted_is_made_again_by_the_next_cycle(bench: Bench) -> None:
    feeder = Feeder(bench, jobs_per_node=1, overflow=0)
    bench.jobs(1)
    feeder.cycle()
    bench.proxy.ec2.delete_launch_template(LaunchTemplateName=names.launch_template(bench.cluster))
    bench.jobs(1)
    feeder.cycle()
    assert (len(bench.nodes()), feeder.ledger()) == (1, Ledger())
    feeder.cycle()
    assert len(bench.nodes()) == 2


def test_with_subnets_nodes_go_there_and_the_group_is_the_one_of_their_vpc(bench: Bench) -> None:
    ec2 = bench.proxy.ec2
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.1.0/24", AvailabilityZone=ZONES[1])["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName=names.security_group(bench.cluster), Description="x", VpcId=vpc)["GroupId"]
    bench.jobs(1)
    Feeder(bench, zones=(), subnets=(subnet,)).cycle()
    node, = bench.nodes()
    assert (node["SubnetId"], [one["GroupId"] for one in node["SecurityGroups"]]) == (subnet, [group])


def test_without_zones_ec2_chooses_one(bench: Bench) -> None:
    bench.proxy.rules.append(Rule(zone=ZONES[0]))
    bench.jobs(1)
    Feeder(bench, zones=()).cycle()
    assert bench.pools() == [("spot", TYPES[0], ZONES[1])]


def test_nodes_of_other_clusters_neither_count_nor_are_ended(bench: Bench) -> None:
    other = Bench(bench.proxy)
    other.jobs(12)
    Feeder(other).cycle()
    bench.jobs(12)
    feeder = Feeder(bench, register_seconds=0.001)
    feeder.cycle()
    assert len(bench.nodes()) == 3
    wait_until(lambda: (bench.pass_by(feeder, 1), bench.proxy.asked("TerminateInstances"))[1], 5, "its own nodes are ended")
    assert len(other.nodes()) == 3
    other.close()


def test_final_jobs_are_no_reason_for_a_node(bench: Bench) -> None:
    bench.jobs(3)
    for job in bench.store.list(JobQuery()).jobs:
        bench.store.swap(replace(job, state=JobState.FINISHED, finished=utcnow(), version=job.version + 1), job.version)
    Feeder(bench).cycle()
    assert bench.nodes() == []


def test_dry_run_says_what_it_would_do_and_changes_nothing(bench: Bench, events: Events) -> None:
    bench.jobs(12)
    dry = Feeder(bench, dry_run=True, register_seconds=0.001)
    dry.cycle()
    assert [one["nodes"] for one in told(events, "fleet.would_launch")] == [3]
    dry.leadership.resign()
    wet = Feeder(bench)
    wet.cycle()
    wet.leadership.resign()
    before = len(bench.proxy.calls)
    wait_until(lambda: (bench.pass_by(dry, 1), told(events, "fleet.would_terminate"))[1], 5, "nodes it would end")
    assert {call.action for call in bench.proxy.calls[before:]} == {"DescribeInstances"}
    assert (len(bench.nodes()), len(bench.asked())) == (3, 1)


def test_a_job_sent_while_there_is_neither_node_nor_job_is_looked_at_at_once_and_others_at_the_next_interval(
        bench: Bench) -> None:
    feeder = Feeder(bench, jobs_per_node=1, overflow=0)
    standby = Feeder(bench)
    assert feeder.leadership.tick() and not standby.leadership.tick()
    feeder.fleet.tick(sent=5)
    bench.jobs(1)
    standby.fleet.tick(sent=6)
    feeder.fleet.tick(sent=5)
    assert bench.nodes() == []
    feeder.fleet.tick(sent=6)
    assert len(bench.nodes()) == 1
    bench.jobs(1)
    feeder.fleet.tick(sent=7)
    assert len(bench.nodes()) == 1
    for _ in range(12):
        bench.clock.now += 5
        feeder.leadership.tick()
        feeder.fleet.tick(sent=7)
    assert len(bench.nodes()) == 2


# --- the decision and its call ---------------------------------------------------------------------------------------


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


# --- capacity --------------------------------------------------------------------------------------------------------


def order(request: dict[str, Any]) -> list[tuple[str, str]]:
    found = sorted(request["LaunchTemplateConfigs"][0]["Overrides"], key=lambda one: float(one["Priority"]))
    return [(one["InstanceType"], one["AvailabilityZone"]) for one in found]


def test_without_capacity_in_a_zone_and_then_for_a_type_the_next_one_is_taken(bench: Bench) -> None:
    bench.proxy.rules += [Rule(type=TYPES[0], zone=ZONES[0], left=1), Rule(type=TYPES[0], zone=ZONES[1], left=1)]
    bench.jobs(12)
    Feeder(bench).cycle()
    assert bench.pools() == [("spot", TYPES[1], ZONES[0]), ("spot", TYPES[0], ZONES[0]), ("spot", TYPES[0], ZONES[1])]
    assert len(bench.asked()) == 1


def test_pools_that_had_none_come_last_for_some_minutes(bench: Bench) -> None:
    bench.proxy.rules.append(Rule(type=TYPES[0], zone=ZONES[0]))
    feeder = Feeder(bench, jobs_per_node=1, overflow=0)
    preferred = [(TYPES[0], ZONES[0]), (TYPES[0], ZONES[1]), (TYPES[1], ZONES[0]), (TYPES[1], ZONES[1])]
    for _ in range(2):
        bench.jobs(1)
        feeder.cycle()
    bench.proxy.rules.clear()
    bench.pass_by(feeder, POOR_SECONDS + 60, *bench.ids())
    bench.jobs(1)
    feeder.cycle()
    assert [order(one) for one in bench.asked()] == [preferred, [*preferred[1:], preferred[0]], preferred]
    assert bench.pools() == [("spot", TYPES[0], ZONES[0])] + [("spot", TYPES[0], ZONES[1])] * 2


def test_what_spot_does_not_give_comes_on_demand_by_a_decision_of_its_own(bench: Bench) -> None:
    bench.proxy.rules.append(Rule(market="spot", left=1, code="UnfulfillableCapacity"))
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.cycle()
    assert [market for market, _, _ in bench.pools()] == ["on-demand", "on-demand", "spot"]
    counts = [one["TargetCapacitySpecification"]["TotalTargetCapacity"] for one in bench.asked()]
    assert (counts, ["OnDemandOptions" in one for one in bench.asked()]) == ([3, 2], [False, True])
    assert len({one["ClientToken"] for one in bench.asked()}) == 2
    feeder.cycle()
    assert len(bench.nodes()) == 3


@pytest.mark.parametrize("code", ["SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InternalError"])
def test_without_fallback_a_shortage_is_logged_and_asked_about_once_in_each_cycle(bench: Bench, events: Events,
                                                                                  code: str) -> None:
    bench.proxy.rules.append(Rule(code=code))
    bench.jobs(12)
    feeder = Feeder(bench, on_demand_fallback=False)
    feeder.leadership.tick()
    for sent in range(4):
        feeder.fleet.tick(sent)
    assert (len(bench.asked()), bench.nodes(), feeder.ledger()) == (1, [], Ledger())
    assert {one["code"] for one in told(events, "fleet.no_capacity")} == {code}
    bench.proxy.rules.clear()
    bench.pass_by(feeder, 60)
    assert len(bench.nodes()) == 3


def test_without_spot_nodes_are_on_demand_from_the_first(bench: Bench) -> None:
    bench.jobs(2)
    Feeder(bench, spot=False).cycle()
    assert bench.pools() == [("on-demand", TYPES[0], ZONES[0])]


# --- what the operator must change -----------------------------------------------------------------------------------


def test_an_unknown_image_is_an_error_in_the_log_that_names_the_setting_and_nothing_is_launched(bench: Bench,
                                                                                                events: Events) -> None:
    bench.proxy.unknown_images.add(IMAGE)
    bench.jobs(12)
    feeder = Feeder(bench)
    bench.pass_by(feeder, HOLD_SECONDS)
    error, = told(events, "fleet.not_launched")
    assert (error["level"], error["setting"], error["code"]) == ("error", "fleet.image_id", "InvalidAMIID.NotFound")
    assert (len(bench.asked()), bench.nodes(), feeder.ledger()) == (1, [], Ledger())
    bench.proxy.unknown_images.clear()
    bench.pass_by(feeder, 60)
    assert len(bench.nodes()) == 3


@pytest.mark.parametrize(("wrong", "setting"), [
    ({"instance_profile": "nobodys"}, "fleet.instance_profile"),
    ({"security_groups": ("nobodys",)}, "fleet.security_groups"),
    ({"security_groups": ("sg-0123456789abcdef0",)}, "fleet.security_groups"),
    ({"zones": (), "subnets": ("subnet-0123456789abcdef0",)}, "fleet.subnets"),
    ({"instance_types": ("c99.mega",)}, "fleet.instance_types"),
])
def test_what_is_not_there_is_named_by_its_setting(bench: Bench, events: Events, wrong: dict[str, Any], setting: str) -> None:
    bench.jobs(12)
    feeder = Feeder(bench, **wrong)
    bench.pass_by(feeder, 120)
    error, = told(events, "fleet.not_launched")
    assert (error["level"], error["setting"]) == ("error", setting)
    assert (bench.nodes(), feeder.ledger()) == ([], Ledger())


def test_missing_permissions_are_told_with_what_to_do(bench: Bench, events: Events) -> None:
    bench.proxy.fail["CreateFleet"].append((403, "UnauthorizedOperation"))
    bench.jobs(12)
    feeder = Feeder(bench)
    feeder.cycle()
    error, = told(events, "fleet.not_launched")
    assert (error["setting"], error["code"]) == ("aws", "UnauthorizedOperation")
    assert "nommerd aws setup --dry-run" in error["hint"]
    assert feeder.ledger() == Ledger()


# --- nodes that are lost ---------------------------------------------------------------------------------------------


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
