"""`nommerd aws setup` and `teardown`: the plan, carried out one resource after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nommerd.aws.account import Account, Maker, Outcome, Status, outcome
from nommerd.aws.faults import told
from nommerd.aws.make_ec2 import Groups, Templates, end_nodes, nodes_vpc, resolved, running_nodes
from nommerd.aws.make_iam import Policies, Profiles, Roles
from nommerd.aws.make_records import Domains, Tables
from nommerd.aws.make_s3 import BucketPolicies, Buckets, ensure_rule, remove_rule
from nommerd.aws.make_sqs import Queues
from nommerd.aws.plan import Plan, Resource, make_plan
from nommerd.aws.policies import bus_prefix
from nommerd.aws.watch_queues import remove_watches, watch_names

if TYPE_CHECKING:
    from nommerd.config import Settings

MAKERS: Mapping[str, Maker] = {
    "AWS::SQS::Queue": Queues(),
    "AWS::DynamoDB::Table": Tables(),
    "AWS::SDB::Domain": Domains(),
    "AWS::S3::Bucket": Buckets(),
    "AWS::S3::BucketPolicy": BucketPolicies(),
    "AWS::IAM::ManagedPolicy": Policies(),
    "AWS::IAM::Role": Roles(),
    "AWS::IAM::InstanceProfile": Profiles(),
    "AWS::EC2::SecurityGroup": Groups(),
    "AWS::EC2::LaunchTemplate": Templates(),
}


def plan_here(account: Account, settings: Settings) -> Plan:
    """The plan for this account; finds the VPC of fleet.subnets."""
    with told():
        return make_plan(settings, account.place, nodes_vpc(account, settings))


def set_up(account: Account, settings: Settings, *, buckets: bool = False) -> Iterator[Outcome]:
    """Make what is missing, one outcome after another. `buckets`: also add the rule for abandoned parts to the operator's
    buckets. Raises ConfigError or InfrastructureError where it cannot go on; it goes on where it was when called again."""
    plan = plan_here(account, settings)
    attributes: dict[str, Mapping[str, Any]] = {}
    for resource in plan.resources:
        with told():
            done = _ensure(account, resource, attributes)
        attributes[resource.id] = done.attributes
        yield done
    for rule in plan.rules:
        with told():
            yield ensure_rule(account, rule, add=buckets, endpoint_url=settings.storage.s3_endpoint_url)


def tear_down(account: Account, settings: Settings) -> Iterator[Outcome]:
    """Remove what set_up made, in the other order: nodes first, then watches, then everything else. Only what is marked as
    this cluster's; of the operator's buckets only our own rules and notifications. Feeders must have been stopped."""
    plan = plan_here(account, settings)
    with told():
        yield from end_nodes(account, running_nodes(account))
        prefix = bus_prefix(settings)
        if prefix is not None:
            yield from remove_watches(account, prefix, endpoint_url=settings.storage.s3_endpoint_url)
        for rule in plan.rules:
            yield remove_rule(account, rule, endpoint_url=settings.storage.s3_endpoint_url)
    for resource in reversed(plan.resources):
        with told():
            yield MAKERS[resource.type].remove(account, resource)


def standing(account: Account, settings: Settings) -> list[str]:
    """What a teardown would end or delete that cannot be made again: nodes, watches, records, the configuration."""
    plan = plan_here(account, settings)
    with told():
        prefix = bus_prefix(settings)
        watches = watch_names(account.clients("sqs"), prefix) if prefix is not None else []
        nodes = running_nodes(account)
    lines = [f"node {one}" for one in nodes] + [f"watch {name}" for name in watches]
    return lines + [f"{resource.type} {resource.name}" for resource in plan.resources]


def _ensure(account: Account, resource: Resource, attributes: Mapping[str, Mapping[str, Any]]) -> Outcome:
    try:
        properties = resolved(resource.properties, attributes)
    except KeyError as missing:  # what it stands on was not made, and has said why
        return outcome(resource, Status.DIFFERS, f"Not made: it needs {missing.args[0]}, which is not there.")
    return MAKERS[resource.type].ensure(account, replace(resource, properties=properties))


