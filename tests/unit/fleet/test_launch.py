"""Launch decisions as values: what is asked for, what is stored, what EC2's codes mean."""

from __future__ import annotations

import base64
import json

import pytest

from nommerd.config import Fleet, Settings
from nommerd.errors import InfrastructureError
from nommerd.fleet.launch import ON_DEMAND, POOLS_MAX, SPOT, Ledger, Pool, Template, decide, pools
from nommerd.fleet.refusals import setting
from nommerd.fleet.template import fingerprint, launch_template_data, node_tags

TYPES = ("c7i.2xlarge", "c6i.2xlarge")
ZONES = ("eu-central-1a", "eu-central-1b")
TEMPLATE = Template("lt-0123456789abcdef0", 7)


def settings(**fleet: object) -> Settings:
    return Settings(cluster="blue", fleet=Fleet(**{"image_id": "ami-1", "instance_types": TYPES, **fleet}))  # type: ignore[arg-type]


def request(market: str = SPOT, poor: tuple[Pool, ...] = (), **fleet: object) -> dict:  # type: ignore[type-arg]
    return decide(3, market, TEMPLATE, settings(**fleet).fleet, "blue", poor, 1e9).request


def overrides(**more: object) -> list[tuple[str, str, int]]:
    found = request(**more)["LaunchTemplateConfigs"][0]["Overrides"]  # type: ignore[arg-type]
    return [(one["InstanceType"], one.get("SubnetId") or one.get("AvailabilityZone", ""), one["Priority"]) for one in found]


def test_a_launch_names_a_version_by_number_the_count_and_tags_under_its_own_token() -> None:
    asked = request()
    assert asked["Type"] == "instant"
    assert asked["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"] == {
        "LaunchTemplateId": TEMPLATE.id, "Version": "7"}
    assert asked["TargetCapacitySpecification"] == {"TotalTargetCapacity": 3, "DefaultTargetCapacityType": "spot"}
    for kind, one in zip(("fleet", "instance", "volume"), asked["TagSpecifications"], strict=True):
        assert one == {"ResourceType": kind, "Tags": [
            {"Key": "nommerd:cluster", "Value": "blue"}, {"Key": "Name", "Value": "nommerd-blue-node"},
            {"Key": "nommerd:launch", "Value": asked["ClientToken"]}]}
    assert request()["ClientToken"] != asked["ClientToken"]


def test_spot_minds_the_order_and_the_risk_of_interruption_and_on_demand_the_order() -> None:
    assert request(SPOT)["SpotOptions"] == {
        "AllocationStrategy": "capacity-optimized-prioritized", "InstanceInterruptionBehavior": "terminate"}
    assert request(ON_DEMAND)["OnDemandOptions"] == {"AllocationStrategy": "prioritized"}
    assert request(ON_DEMAND)["TargetCapacitySpecification"]["DefaultTargetCapacityType"] == "on-demand"


def test_types_go_in_order_of_preference_and_zones_of_one_type_are_equal() -> None:
    assert overrides(zones=ZONES) == [(TYPES[0], ZONES[0], 0), (TYPES[0], ZONES[1], 0), (TYPES[1], ZONES[0], 1),
                                      (TYPES[1], ZONES[1], 1)]
    assert overrides(subnets=("subnet-1",)) == [(TYPES[0], "subnet-1", 0), (TYPES[1], "subnet-1", 1)]
    assert overrides() == [(TYPES[0], "", 0), (TYPES[1], "", 1)]


def test_pools_without_capacity_come_behind_all_others_and_stay_allowed() -> None:
    poor = (Pool(TYPES[0], ZONES[0]), Pool(TYPES[0], ZONES[1]))
    assert overrides(zones=ZONES, poor=poor) == [(TYPES[1], ZONES[0], 1), (TYPES[1], ZONES[1], 1), (TYPES[0], ZONES[0], 2),
                                                 (TYPES[0], ZONES[1], 2)]


def test_each_pool_is_named_once_and_no_more_than_the_record_holds() -> None:
    assert overrides(instance_types=(*TYPES, TYPES[0])) == [(TYPES[0], "", 0), (TYPES[1], "", 1)]
    many = settings(instance_types=tuple(f"c{n}.24xlarge" for n in range(40)),
                    subnets=tuple(f"subnet-{n:017x}" for n in range(6))).fleet
    assert len(pools(many)) == 240
    decision = decide(50, SPOT, TEMPLATE, many, "c" * 63, (), 1e9)
    assert len(decision.request["LaunchTemplateConfigs"][0]["Overrides"]) == POOLS_MAX
    ledger = Ledger(decision=decision, unseen=tuple(f"i-{n:017x}" for n in range(50)))
    assert len(ledger.encode()) < 16 * 1024


def test_what_is_stored_gives_the_very_same_request_again() -> None:
    decision = decide(3, SPOT, TEMPLATE, settings(zones=ZONES).fleet, "blue", (), 1e9)
    ledger = Ledger(decision=decision, unseen=("i-1",))
    assert Ledger.decode(ledger.encode()) == ledger
    assert Ledger.decode(Ledger(unseen=("i-1",)).encode()) == Ledger(unseen=("i-1",))
    assert Ledger.decode("") == Ledger() and Ledger().encode() == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"v": 2}', '{"v": 1, "decision": {"token": "t"}, "unseen": []}'])
def test_a_decision_that_cannot_be_read_lets_nothing_be_launched(text: str) -> None:
    with pytest.raises(InfrastructureError, match="cannot be read"):
        Ledger.decode(text)


def test_an_answer_turns_a_decision_into_nodes_and_listed_nodes_are_forgotten() -> None:
    decision = decide(3, SPOT, TEMPLATE, settings().fleet, "blue", (), 1e9)
    ledger = Ledger(decision=decision, unseen=("i-1",)).answered(["i-2", "i-1"])
    assert ledger == Ledger(unseen=("i-1", "i-2"))
    assert ledger.without({"i-1", "i-9"}) == Ledger(unseen=("i-2",))


@pytest.mark.parametrize(("code", "message", "name"), [
    ("InvalidAMIID.NotFound", "", "fleet.image_id"),
    ("InvalidAMIID.Malformed", "", "fleet.image_id"),
    ("InvalidKeyPair.NotFound", "", "fleet.key_name"),
    ("InvalidGroup.NotFound", "", "fleet.security_groups"),
    ("InvalidSubnetID.NotFound", "", "fleet.subnets"),
    ("InvalidParameterValue", "Value (x) for parameter iamInstanceProfile.name is invalid.", "fleet.instance_profile"),
    ("InvalidParameterValue", "Invalid IAM Instance Profile name", "fleet.instance_profile"),
    ("InvalidParameterValue", "Invalid availability zone: [eu-x]", "fleet.zones"),
    ("InvalidParameterValue", "Invalid value for instance type", "fleet.instance_types"),
    ("UnauthorizedOperation", "You are not authorized to perform this operation.", "aws"),
    ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", "", "aws"),
    ("Whatever", "", "fleet"),
])
def test_a_refusal_names_the_setting_that_it_speaks_of(code: str, message: str, name: str) -> None:
    assert setting(code, message) == name


# --- the launch template ---------------------------------------------------------------------------------------------


def template(user_data: str = "#cloud-config\n", **fleet: object) -> dict:  # type: ignore[type-arg]
    return launch_template_data(settings(**fleet), user_data, node_tags("blue"))


def test_a_template_ends_nodes_that_shut_down_and_gives_no_metadata_to_version_one_or_over_a_router() -> None:
    data = template()
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions"] == {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert base64.b64decode(data["UserData"]) == b"#cloud-config\n"
    assert [one["ResourceType"] for one in data["TagSpecifications"]] == ["instance", "volume"]
    assert "InstanceType" not in data and "KeyName" not in data


def test_a_template_names_what_the_settings_name_and_else_what_setup_makes() -> None:
    data = template()
    assert (data["SecurityGroups"], data["IamInstanceProfile"]) == (["nommerd-blue-node"], {"Name": "nommerd-blue-node"})
    data = template(security_groups=("sg-1", "sg-2"), instance_profile="arn:aws:iam::1:instance-profile/p", key_name="k")
    assert (data["SecurityGroupIds"], data["IamInstanceProfile"], data["KeyName"]) == (
        ["sg-1", "sg-2"], {"Arn": "arn:aws:iam::1:instance-profile/p"}, "k")
    given = launch_template_data(settings(), "", {}, security_group_ids=[{"Ref": "Group"}])
    assert given["SecurityGroupIds"] == [{"Ref": "Group"}] and "SecurityGroups" not in given


def test_another_content_has_another_mark_and_the_same_content_the_same() -> None:
    assert fingerprint(template()) == fingerprint(json.loads(json.dumps(template())))
    assert len({fingerprint(template()), fingerprint(template("other")), fingerprint(template(key_name="k")),
                fingerprint(template(image_id="ami-2"))}) == 4
    assert len(fingerprint(template())) <= 255


def test_more_user_data_than_ec2_takes_is_refused_here() -> None:
    with pytest.raises(ValueError, match="16384"):
        template("x" * 16385)
