"""The nodes' security group and launch template; ending the nodes themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nommerd.aws import names
from nommerd.aws.account import Account, Outcome, Status, found, outcome, tag_map
from nommerd.aws.clients import error_code
from nommerd.aws.plan import Resource

if TYPE_CHECKING:
    from nommerd.config import Settings

GONE_SECONDS = 300.0  # for instances to be terminated, and for a group that they had to be free
RUNNING = ("pending", "running", "stopping", "stopped", "shutting-down")
IN_USE = frozenset({"DependencyViolation", "InvalidGroup.InUse"})


class Groups:
    """AWS::EC2::SecurityGroup: no inbound rules; outbound as AWS makes it, everything."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        ec2, wanted = account.clients("ec2"), resource.properties
        vpc = wanted.get("VpcId") or default_vpc(ec2)
        if vpc is None:
            return outcome(resource, Status.SKIPPED, "There is no default VPC: set fleet.subnets before you use the fleet.")
        there = _group(ec2, resource.name, vpc)
        if there is None:
            made = ec2.create_security_group(
                GroupName=resource.name, Description=wanted["GroupDescription"], VpcId=vpc,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": wanted["Tags"]}])
            return outcome(resource, Status.MADE, GroupId=made["GroupId"])
        why = account.not_ours(tag_map(there.get("Tags")))
        if why:
            return outcome(resource, Status.DIFFERS, why, GroupId=there["GroupId"])
        note = "It has inbound rules, which nommerd does not need." if there.get("IpPermissions") else ""
        return outcome(resource, Status.EXISTS, note, GroupId=there["GroupId"])

    def remove(self, account: Account, resource: Resource) -> Outcome:
        ec2 = account.clients("ec2")
        vpc = resource.properties.get("VpcId") or default_vpc(ec2)
        there = _group(ec2, resource.name, vpc) if vpc else None
        if there is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(tag_map(there.get("Tags")))
        if why:
            return outcome(resource, Status.LEFT, why)

        def attempt() -> bool | None:
            try:
                found(lambda: ec2.delete_security_group(GroupId=there["GroupId"]))
            except Exception as error:
                if error_code(error) in IN_USE:
                    return None
                raise
            return True

        account.wait(f"nothing uses the security group {resource.name} any more", attempt, GONE_SECONDS)
        return outcome(resource, Status.REMOVED)


class Templates:
    """AWS::EC2::LaunchTemplate. The feeder adds versions of its own; setup sees to it that there is one."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        ec2, name = account.clients("ec2"), resource.name
        there = _template(ec2, name)
        if there is None:
            ec2.create_launch_template(
                LaunchTemplateName=name, LaunchTemplateData=resource.properties["LaunchTemplateData"],
                TagSpecifications=resource.properties["TagSpecifications"])
            return outcome(resource, Status.MADE)
        why = account.not_ours(tag_map(there.get("Tags")))
        if why:
            return outcome(resource, Status.DIFFERS, why)
        return outcome(resource, Status.EXISTS, "Its versions are the feeder's.")

    def remove(self, account: Account, resource: Resource) -> Outcome:
        ec2, name = account.clients("ec2"), resource.name
        there = _template(ec2, name)
        if there is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(tag_map(there.get("Tags")))
        if why:
            return outcome(resource, Status.LEFT, why)
        ec2.delete_launch_template(LaunchTemplateId=there["LaunchTemplateId"])
        return outcome(resource, Status.REMOVED)


def nodes_vpc(account: Account, settings: Settings) -> str | None:
    """The VPC of fleet.subnets, None for the default one."""
    subnets = list(settings.fleet.subnets)
    if not subnets:
        return None
    answer = account.clients("ec2").describe_subnets(SubnetIds=subnets[:1])
    return str(answer["Subnets"][0]["VpcId"])


def default_vpc(ec2: Any) -> str | None:
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    return str(vpcs[0]["VpcId"]) if vpcs else None


def running_nodes(account: Account) -> list[str]:
    """Ids of the cluster's nodes that are not terminated. A node is what the fleet launched: a feeder on EC2 may carry the
    cluster's tag as well."""
    from nommerd.fleet.template import LAUNCH_TAG

    pages = account.clients("ec2").get_paginator("describe_instances").paginate(Filters=[
        {"Name": f"tag:{names.CLUSTER_TAG}", "Values": [account.cluster]}, {"Name": "tag-key", "Values": [LAUNCH_TAG]},
        {"Name": "instance-state-name", "Values": list(RUNNING)}])
    return sorted(instance["InstanceId"] for page in pages for reservation in page["Reservations"]
                  for instance in reservation["Instances"])


def end_nodes(account: Account, ids: Iterable[str]) -> list[Outcome]:
    """Terminate these nodes, and wait until they are."""
    ending = list(ids)
    if not ending:
        return []
    account.clients("ec2").terminate_instances(InstanceIds=ending)
    account.wait(f"{len(ending)} nodes end", lambda: None if set(ending) & set(running_nodes(account)) else True, GONE_SECONDS)
    return [Outcome("node", one, Status.REMOVED) for one in ending]


def resolved(value: Any, attributes: Mapping[str, Mapping[str, Any]]) -> Any:
    """Properties with what `Fn::GetAtt` stands for, from what was made before."""
    if isinstance(value, Mapping):
        if set(value) == {"Fn::GetAtt"}:
            resource, attribute = value["Fn::GetAtt"]
            return attributes[resource][attribute]
        return {key: resolved(item, attributes) for key, item in value.items()}
    return [resolved(item, attributes) for item in value] if isinstance(value, (list, tuple)) else value


def _group(ec2: Any, name: str, vpc: str) -> dict[str, Any] | None:
    groups = ec2.describe_security_groups(Filters=[
        {"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}])["SecurityGroups"]
    return dict(groups[0]) if groups else None


def _template(ec2: Any, name: str) -> dict[str, Any] | None:
    answer = found(lambda: ec2.describe_launch_templates(LaunchTemplateNames=[name]))
    templates = (answer or {}).get("LaunchTemplates")
    return dict(templates[0]) if templates else None
