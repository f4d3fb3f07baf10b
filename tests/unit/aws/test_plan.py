"""The plan, and the same as one CloudFormation template."""

from __future__ import annotations

import json
from typing import Any

from cfnlint.api import lint  # type: ignore[import-untyped]

from nommerd.aws import cloudformation
from nommerd.aws.make_ec2 import resolved
from nommerd.aws.make_records import create_arguments
from nommerd.aws.make_sqs import attributes
from nommerd.aws.plan import UNKNOWN, Plan, make_plan, queue_property
from nommerd.aws.policies import Place
from nommerd.bus.sqs_queues import queues
from nommerd.config import Aws, Fleet, Settings, StorageSettings
from nommerd.store import dynamodb_table

PLACE = Place("aws", "eu-central-1", "123456789012")
TAGS = [{"Key": "nommerd:cluster", "Value": "demo"}]


def settings(**more: Any) -> Settings:
    return Settings(**{"cluster": "demo", "store": "dynamodb://demo-jobs", "bus": "sqs://demo",
                       "storage": StorageSettings(s3_read=("inbox",), s3_write=("outbox", "outbox/web", "shared/web")),
                       "aws": Aws(region="eu-central-1", config_bucket="demo-config"),
                       "fleet": Fleet(enabled=True, image_id="ami-12345678"), **more})


def types(plan: Plan) -> list[str]:
    return sorted(resource.type.removeprefix("AWS::") for resource in plan.resources)


def only(plan: Plan, kind: str) -> dict[str, Any]:
    (found,) = [resource for resource in plan.resources if resource.type == kind]
    return dict(found.properties)


def test_everything_is_there_once() -> None:
    assert types(make_plan(settings(), PLACE)) == sorted([
        *["SQS::Queue"] * 6, "DynamoDB::Table", "S3::Bucket", "S3::BucketPolicy", *["IAM::ManagedPolicy", "IAM::Role",
        "IAM::InstanceProfile"] * 2, "EC2::SecurityGroup", "EC2::LaunchTemplate"])


def test_what_is_the_operators_is_not_made() -> None:
    own = Fleet(enabled=True, image_id="ami-1", security_groups=("sg-1",), instance_profile="mine")
    found = types(make_plan(settings(fleet=own), PLACE))
    assert "EC2::SecurityGroup" not in found
    assert found.count("IAM::InstanceProfile") == found.count("IAM::Role") == 1
    assert found.count("IAM::ManagedPolicy") == 2  # the operator attaches the nodes' to the role behind `mine`


def test_without_an_image_there_is_no_template_and_without_aws_next_to_nothing() -> None:
    assert "EC2::LaunchTemplate" not in types(make_plan(settings(fleet=Fleet()), PLACE))
    embedded = settings(store="sqlite:///nommerd.db", bus="sqlite:///nommerd.db", aws=Aws(), storage=StorageSettings())
    assert not {"SQS::Queue", "DynamoDB::Table", "S3::Bucket"} & set(types(make_plan(embedded, PLACE)))


def test_each_comes_after_what_it_needs() -> None:
    seen: set[str] = set()
    for resource in make_plan(settings(), PLACE).resources:
        assert set(resource.after) <= seen, resource.id
        needed = json.dumps(resource.properties, default=str)
        assert all(f'"Fn::GetAtt": ["{other}"' not in needed or other in seen for other in ("NodeSecurityGroup",))
        seen.add(resource.id)
    assert len(seen) == len(make_plan(settings(), PLACE).resources)


def test_queues_are_those_of_the_bus_back_and_forth() -> None:
    made = {r.name: r.properties for r in make_plan(settings(), PLACE).resources if r.type == "AWS::SQS::Queue"}
    for spec in queues("demo", PLACE.region, PLACE.account):
        texts = attributes({key: value for key, value in made[spec.name].items() if key not in ("QueueName", "Tags")})
        assert texts.keys() == spec.attributes.keys()
        assert all(queue_property(key, text) == queue_property(key, spec.attributes[key]) for key, text in texts.items())
        assert made[spec.name]["Tags"] == TAGS


def test_the_table_is_that_of_the_store_back_and_forth() -> None:
    properties = only(make_plan(settings(), PLACE), "AWS::DynamoDB::Table")
    wanted = {**dynamodb_table.table("demo-jobs"), "DeletionProtectionEnabled": True, "Tags": TAGS}
    assert create_arguments(properties) == wanted
    assert properties["TimeToLiveSpecification"] == dynamodb_table.ttl("demo-jobs")["TimeToLiveSpecification"]


def test_the_configurations_bucket_is_closed_versioned_encrypted_and_kept_small() -> None:
    bucket = only(make_plan(settings(), PLACE), "AWS::S3::Bucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    kinds = {key for rule in bucket["LifecycleConfiguration"]["Rules"] for key in rule}
    assert {"NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload"} <= kinds


def test_a_bucket_behind_an_emulator_without_tls_has_no_policy_that_demands_it() -> None:
    plain = Aws(region="eu-central-1", config_bucket="demo-config", endpoint_url="http://127.0.0.1:1")
    assert "S3::BucketPolicy" not in types(make_plan(settings(aws=plain), PLACE))


def test_the_group_lets_nothing_in_and_is_in_the_nodes_vpc() -> None:
    group = only(make_plan(settings(), PLACE, "vpc-1"), "AWS::EC2::SecurityGroup")
    assert group["VpcId"] == "vpc-1"
    assert not [key for key in group if "Ingress" in key]


def test_the_template_names_the_group_once_it_is_there() -> None:
    template = only(make_plan(settings(), PLACE), "AWS::EC2::LaunchTemplate")
    data = resolved(template, {"NodeSecurityGroup": {"GroupId": "sg-77"}})["LaunchTemplateData"]
    assert data["SecurityGroupIds"] == ["sg-77"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert "UserData" not in data


def test_rules_of_the_operators_buckets_one_for_each_place_that_no_other_covers() -> None:
    plan = make_plan(settings(), PLACE)
    assert [(rule.bucket, rule.prefix) for rule in plan.rules] == [("outbox", ""), ("shared", "web/")]
    assert plan.rules[0].rule == {"ID": "nommerd-abandoned-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
                                  "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    assert len({rule.id for rule in plan.rules}) == 2


# --- CloudFormation --------------------------------------------------------------------------------------------------


def test_aws_own_schema_of_resources_takes_the_template() -> None:
    """cfn-lint knows the schema of every resource, and the rules of IAM's documents."""
    for number, found in enumerate((settings(), settings(fleet=Fleet(enabled=True, image_id="ami-12345678",
                                                                     subnets=("subnet-12345678",), key_name="ops")))):
        made, _ = cloudformation.template(found)
        faults = lint(json.dumps(made, indent=1), regions=["eu-central-1"])
        assert [str(fault) for fault in faults] == [], number


def test_the_template_is_the_plan_for_wherever_it_is_used() -> None:
    """With what CloudFormation puts in put in, it is what setup makes."""
    made, notes = cloudformation.template(settings())
    values = {"${AWS::Partition}": "aws", "${AWS::Region}": PLACE.region, "${AWS::AccountId}": PLACE.account,
              "${AWS::URLSuffix}": "amazonaws.com"}

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {"Fn::Sub"}:
                text = value["Fn::Sub"]
                for name, put in values.items():
                    text = text.replace(name, put)
                return text.replace("${!", "${")
            return {key: put_in(item) for key, item in value.items()}
        return [put_in(item) for item in value] if isinstance(value, list) else value

    wanted = {r.id: (r.type, json.loads(json.dumps(r.properties))) for r in make_plan(settings(), PLACE).resources}
    assert {id: (r["Type"], put_in(r["Properties"])) for id, r in made["Resources"].items()} == wanted
    assert any("outbox" in note for note in notes)




def test_variables_of_iam_stay_what_they_are() -> None:
    assert cloudformation.substituted("a${*}b${AWS::Region}") == {"Fn::Sub": "a${!*}b${AWS::Region}"}
    assert cloudformation.substituted("plain") == "plain"


def test_the_template_fits_into_one_call_and_keeps_the_data_when_the_stack_goes() -> None:
    made, _ = cloudformation.template(settings())
    assert len(json.dumps(made)) < 51_200
    kept = {r["Type"] for r in made["Resources"].values() if r.get("DeletionPolicy") == "Retain"}
    assert kept == {"AWS::DynamoDB::Table", "AWS::S3::Bucket"}


def test_a_domain_cannot_be_in_a_template_and_that_is_said() -> None:
    made, notes = cloudformation.template(settings(store="simpledb://demo-jobs"))
    assert not [r for r in made["Resources"].values() if r["Type"] == "AWS::SDB::Domain"]
    assert any("demo-jobs" in note and "aws setup" in note for note in notes)


def test_subnets_of_a_vpc_of_ones_own_make_a_parameter() -> None:
    made, _ = cloudformation.template(settings(fleet=Fleet(image_id="ami-12345678", subnets=("subnet-1",))))
    assert made["Resources"]["NodeSecurityGroup"]["Properties"]["VpcId"] == {"Ref": "Vpc"}
    assert set(made["Parameters"]) == {"Vpc"}


def test_a_plan_without_an_account_says_so_in_its_arns() -> None:
    text = json.dumps([r.properties for r in make_plan(settings(), UNKNOWN).resources])
    assert "arn:aws:sqs:REGION:ACCOUNT_ID:demo-jobs-dead" in text
