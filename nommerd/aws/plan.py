"""What `nommerd aws setup` makes, as CloudFormation describes it: the one source of setup, --dry-run and --cloudformation.

Pure: settings in, resources out, in an order in which each comes after what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nommerd.aws import names, policies
from nommerd.aws.policies import Place, bus_prefix, split_scope
from nommerd.bus.sqs_queues import queues
from nommerd.store import dynamodb_table as dynamo

if TYPE_CHECKING:
    from nommerd.config import Settings

OLD_VERSIONS_DAYS = 90  # of the configuration: longer than any node lives that was started with one
ABANDONED_DAYS = 2  # then the parts of an upload that nobody completed are deleted; no job takes so long to upload
NUMBERS = frozenset({"DelaySeconds", "MaximumMessageSize", "MessageRetentionPeriod", "ReceiveMessageWaitTimeSeconds",
                     "VisibilityTimeout"})
GROUP = "NodeSecurityGroup"
UNKNOWN = Place("aws", "REGION", "ACCOUNT_ID")  # where nobody asked AWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One thing to make. `id` is its name within the plan, `name` the one in the account, `properties` are
    CloudFormation's; a value `{"Fn::GetAtt": [id, attribute]}` is known once that resource is there."""

    id: str
    type: str
    name: str
    properties: Mapping[str, Any]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BucketRule:
    """The lifecycle rule that deletes abandoned parts in a bucket that jobs write to. The bucket is the operator's."""

    bucket: str
    prefix: str

    @property
    def id(self) -> str:
        """The rule's ID in the bucket."""
        return "nommerd-abandoned-uploads" + (f"-{self.prefix.strip('/')}"[:200] if self.prefix else "")

    @property
    def rule(self) -> dict[str, Any]:
        """As put_bucket_lifecycle_configuration takes it."""
        return {"ID": self.id, "Status": "Enabled", "Filter": {"Prefix": self.prefix},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABANDONED_DAYS}}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything, in the order of making."""

    cluster: str
    place: Place
    resources: tuple[Resource, ...]
    rules: tuple[BucketRule, ...] = field(default=())

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        """The IAM policies' documents, by name."""
        return {r.name: r.properties["PolicyDocument"] for r in self.resources if r.type == "AWS::IAM::ManagedPolicy"}


def make_plan(settings: Settings, place: Place, vpc: Any = None) -> Plan:
    """What these settings need at this place. `vpc` is the VPC of the nodes; None: the account's default one.

    Raises ConfigError for names that AWS would refuse.
    """
    tags = tag_list(settings.cluster)
    resources = (*_queues(settings, place, tags), *_records(settings, tags), *_config_bucket(settings, place, tags),
                 *_feeder(settings, place, tags), *_nodes(settings, place, vpc, tags))
    scopes = sorted({split_scope(entry) for entry in settings.storage.s3_write})
    whole = {bucket for bucket, prefix in scopes if not prefix}
    rules = tuple(BucketRule(bucket, f"{prefix.rstrip('/')}/" if prefix else "") for bucket, prefix in scopes
                  if not prefix or bucket not in whole)
    return Plan(settings.cluster, place, tuple(resources), rules)


def tag_list(cluster: str) -> list[dict[str, str]]:
    """What marks a thing as this cluster's."""
    return [{"Key": names.CLUSTER_TAG, "Value": cluster}]


# --- queues and records -----------------------------------------------------------------------------------------------


def _queues(settings: Settings, place: Place, tags: list[dict[str, str]]) -> Iterable[Resource]:
    prefix = bus_prefix(settings)
    if prefix is None:
        return
    known: dict[str, str] = {}
    for spec in queues(prefix, place.region, place.account, place.partition):
        known[place.arn("sqs", spec.name)] = resource_id = "Queue" + _camel(spec.name.removeprefix(prefix))
        properties = {"QueueName": spec.name, **{key: queue_property(key, text) for key, text in spec.attributes.items()},
                      "Tags": tags}
        target = properties.get("RedrivePolicy", {}).get("deadLetterTargetArn")
        yield Resource(id=resource_id, type="AWS::SQS::Queue", name=spec.name, properties=properties,
                       after=(known[target],) if target else ())


def queue_property(name: str, text: str) -> Any:
    """An attribute of CreateQueue, all texts, as CloudFormation has it."""
    if name in NUMBERS:
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    return json.loads(text) if text.startswith("{") else text


def _records(settings: Settings, tags: list[dict[str, str]]) -> Iterable[Resource]:
    store = urlsplit(settings.store)
    if store.scheme == "dynamodb":
        yield Resource(id="JobsTable", type="AWS::DynamoDB::Table", name=store.netloc, properties=_table(store.netloc, tags))
    if store.scheme == "simpledb":
        yield Resource(id="JobsDomain", type="AWS::SDB::Domain", name=store.netloc, properties={"DomainName": store.netloc})


def _table(name: str, tags: list[dict[str, str]]) -> dict[str, Any]:
    made = dynamo.table(name)
    encryption = made.pop("SSESpecification", None)
    if encryption:
        made["SSESpecification"] = {"SSEEnabled": encryption["Enabled"],
                                    **{key: value for key, value in encryption.items() if key != "Enabled"}}
    return {**made, "TimeToLiveSpecification": dynamo.ttl(name)["TimeToLiveSpecification"],
            "PointInTimeRecoverySpecification": dynamo.backups(name)["PointInTimeRecoverySpecification"],
            "DeletionProtectionEnabled": dynamo.protection(name)["DeletionProtectionEnabled"], "Tags": tags}


def _config_bucket(settings: Settings, place: Place, tags: list[dict[str, str]]) -> Iterable[Resource]:
    bucket = settings.aws.config_bucket
    if bucket is None:
        return
    yield Resource(id="ConfigBucket", type="AWS::S3::Bucket", name=bucket, properties={
        "BucketName": bucket,
        "BucketEncryption": {"ServerSideEncryptionConfiguration": [
            {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]},
        "LifecycleConfiguration": {"Rules": [
            {"Id": "old-versions", "Status": "Enabled", "Prefix": "",
             "NoncurrentVersionExpiration": {"NoncurrentDays": OLD_VERSIONS_DAYS}},
            {"Id": "abandoned-uploads", "Status": "Enabled", "Prefix": "",
             "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABANDONED_DAYS}}]},
        "OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]},
        "PublicAccessBlockConfiguration": {"BlockPublicAcls": True, "BlockPublicPolicy": True, "IgnorePublicAcls": True,
                                           "RestrictPublicBuckets": True},
        "VersioningConfiguration": {"Status": "Enabled"},
        "Tags": tags})
    if (settings.aws.endpoint_url or "").startswith("http:"):
        return  # an emulator without TLS: it would refuse us as well
    yield Resource(id="ConfigBucketPolicy", type="AWS::S3::BucketPolicy", name=bucket, after=("ConfigBucket",), properties={
        "Bucket": bucket, "PolicyDocument": policies.tls_only(bucket, place)})


# --- roles, group, template ---------------------------------------------------------------------------------------------


def _feeder(settings: Settings, place: Place, tags: list[dict[str, str]]) -> Iterable[Resource]:
    name = names.feeder_profile(settings.cluster)
    return _role("Feeder", name, "the nommerd feeder", policies.feeder_policy(settings, place), place, tags)


def _nodes(settings: Settings, place: Place, vpc: Any, tags: list[dict[str, str]]) -> Iterable[Resource]:
    fleet, name = settings.fleet, names.node_profile(settings.cluster)
    role = list(_role("Node", name, "nommerd encoder nodes", policies.node_policy(settings, place), place, tags))
    yield from role if fleet.instance_profile is None else role[:1]
    if not fleet.security_groups:
        group = names.security_group(settings.cluster)
        yield Resource(id=GROUP, type="AWS::EC2::SecurityGroup", name=group, properties={
            "GroupName": group, "GroupDescription": "nommerd encoder nodes: nothing comes in", "Tags": tags,
            **({"VpcId": vpc} if vpc is not None else {})})
    if fleet.image_id is not None:
        yield _template(settings, tags)


def _template(settings: Settings, tags: list[dict[str, str]]) -> Resource:
    """Without user-data: the feeder adds versions of its own, with where the configuration is."""
    from nommerd.fleet.template import launch_template_data, node_tags

    own_group, own_profile = not settings.fleet.security_groups, settings.fleet.instance_profile is None
    data = launch_template_data(settings, "", node_tags(settings.cluster),
                                security_group_ids=[{"Fn::GetAtt": [GROUP, "GroupId"]}] if own_group else [])
    data = {key: value for key, value in data.items() if key != "UserData"}
    name = names.launch_template(settings.cluster)
    return Resource(id="NodeTemplate", type="AWS::EC2::LaunchTemplate", name=name, properties={
        "LaunchTemplateName": name, "LaunchTemplateData": data,
        "TagSpecifications": [{"ResourceType": "launch-template", "Tags": tags}]},
        after=("NodeProfile",) if own_profile else ())


def _role(who: str, name: str, words: str, document: Mapping[str, Any], place: Place,
          tags: list[dict[str, str]]) -> Iterable[Resource]:
    """The policy, the role of EC2 instances that has it, the profile that brings the role to them; in this order."""
    yield Resource(id=f"{who}Policy", type="AWS::IAM::ManagedPolicy", name=name, properties={
        "ManagedPolicyName": name, "Description": f"What {words} may do.", "PolicyDocument": document})
    yield Resource(id=f"{who}Role", type="AWS::IAM::Role", name=name, after=(f"{who}Policy",), properties={
        "RoleName": name, "Description": f"The role of {words}.", "AssumeRolePolicyDocument": policies.trust(place),
        "ManagedPolicyArns": [place.arn("iam", f"policy/{name}", region=False)], "Tags": tags})
    yield Resource(id=f"{who}Profile", type="AWS::IAM::InstanceProfile", name=name, after=(f"{who}Role",), properties={
        "InstanceProfileName": name, "Roles": [name]})


def _camel(text: str) -> str:
    return "".join(part.capitalize() for part in text.replace("_", "-").split("-"))
