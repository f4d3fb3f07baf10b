"""How many nodes are started, as what, and where there is capacity; what the operator must change is said."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from nommerd.aws import names
from nommerd.fleet.launch import Ledger
from nommerd.fleet.manager import HOLD_SECONDS, POOR_SECONDS
from nommerd.job import JobState, utcnow
from nommerd.store.base import JobQuery
from tests.ec2_proxy import Rule
from tests.fleet_bench import IMAGE, TYPES, USER_DATA, ZONES, Bench, Events, Feeder, told
from tests.rig import wait_until


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
