"""The plan as one CloudFormation template, JSON as the AWS command line takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nommerd.aws import names
from nommerd.aws.plan import Plan, Resource, make_plan
from nommerd.aws.policies import Place

if TYPE_CHECKING:
    from nommerd.config import Settings

WHERE = Place("${AWS::Partition}", "${AWS::Region}", "${AWS::AccountId}")  # substituted where the stack is made
KEPT = frozenset({"AWS::DynamoDB::Table", "AWS::S3::Bucket"})  # the data stays when the stack goes
NAMELESS = frozenset({"AWS::SDB::Domain"})  # CloudFormation gives these names of its own: setup must make them
VPC = "Vpc"  # the parameter, where the nodes are in a VPC of the operator's
VPC_PARAMETER = {"Type": "AWS::EC2::VPC::Id", "Description": "The VPC of fleet.subnets."}
_VARIABLE = re.compile(r"\$\{(?!AWS::)")


def template(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """The template, and what cannot be in it, as sentences. Raises ConfigError as make_plan."""
    own_vpc = bool(settings.fleet.subnets) and not settings.fleet.security_groups
    plan = make_plan(settings, WHERE, {"Ref": VPC} if own_vpc else None)
    made: dict[str, Any] = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"nommerd {settings.cluster}: queues, records, roles and what encoder nodes need.",
        **({"Parameters": {VPC: VPC_PARAMETER}} if own_vpc else {}),
        "Resources": {r.id: _resource(r) for r in plan.resources if r.type not in NAMELESS},
        "Outputs": {"Cluster": {"Value": plan.cluster, "Description": f"The value of the tag {names.CLUSTER_TAG}."}},
    }
    return made, _left_out(plan)


def _left_out(plan: Plan) -> list[str]:
    notes = [f"{r.type} {r.name}: CloudFormation cannot name it; make it with `nommerd aws setup`."
             for r in plan.resources if r.type in NAMELESS]
    return notes + [f"Bucket {rule.bucket}: it is yours; `nommerd aws setup --buckets` adds the rule for abandoned uploads."
                    for rule in plan.rules]


def _resource(resource: Resource) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": resource.type, "Properties": substituted(resource.properties)}
    if resource.after:
        made["DependsOn"] = list(resource.after)
    if resource.type in KEPT:
        made |= {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    return made


def substituted(value: Any) -> Any:
    """Texts with `${…}` as Fn::Sub, in which the variables of IAM stay what they are."""
    if isinstance(value, str):
        return {"Fn::Sub": _VARIABLE.sub("${!", value)} if "${" in value else value
    if isinstance(value, Mapping):
        return {key: substituted(item) for key, item in value.items()}
    return [substituted(item) for item in value] if isinstance(value, (list, tuple)) else value
