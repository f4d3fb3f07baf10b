"""The calls of EC2 that the fleet makes: nodes by tag, versions of the launch template, a launch, an end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from nommerd.aws import names
from nommerd.aws.clients import error_code, explain, is_transient
from nommerd.fleet.launch import Pool, Template
from nommerd.fleet.refusals import NO_TEMPLATE, Ec2Refused, Ec2Unavailable
from nommerd.fleet.template import LAUNCH_TAG, fingerprint, tag_list
from nommerd.job import utcnow

ALIVE = frozenset({"pending", "running"})  # what counts as a node, as in the original
PAGE = 200
GONE = "InvalidInstanceID.NotFound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """An instance of this cluster, in whatever state."""

    id: str
    state: str
    launched: datetime  # by EC2's clock
    token: str  # the client token of its launch

    @property
    def alive(self) -> bool:
        return self.state in ALIVE


@dataclass(frozen=True, slots=True)
class Look:
    """All instances of the cluster that EC2 lists, ended ones too for about an hour; `now` is EC2's clock."""

    nodes: tuple[Node, ...]
    now: datetime


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a launch gave fewer nodes than asked for: EC2's code and words, and which pool it speaks of, if of one."""

    code: str
    message: str
    pool: Pool | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a launch."""

    ids: tuple[str, ...]
    shortages: tuple[Shortage, ...]


class Ec2:
    """One cluster's view of EC2. All methods raise Ec2Unavailable (unknown whether it was applied) and Ec2Refused."""

    def __init__(self, client: Any, cluster: str) -> None:
        self._client = client
        self._cluster = cluster

    def look(self) -> Look:
        """All of the cluster's nodes. What was launched seconds ago may be missing, as EC2 documents."""
        nodes: list[Node] = []
        now = utcnow()
        wanted = [{"Name": f"tag:{names.CLUSTER_TAG}", "Values": [self._cluster]}]
        for page in self._pages("describe_instances", Filters=wanted, MaxResults=PAGE):
            now = _date(page) or now
            nodes += [_node(found) for reservation in page["Reservations"] for found in reservation["Instances"]]
        return Look(tuple(nodes), now)

    def launch(self, request: Mapping[str, Any]) -> Answer:
        """CreateFleet. The same request again gives the same nodes: EC2 knows its client token."""
        answer = self._call("create_fleet", **request)
        ids = [one for group in answer.get("Instances", []) for one in group.get("InstanceIds", [])]
        return Answer(tuple(ids), tuple(_shortage(error) for error in answer.get("Errors", [])))

    def terminate(self, node_id: str) -> None:
        """End a node. One that EC2 no longer knows has ended."""
        try:
            self._call("terminate_instances", InstanceIds=[node_id])
        except Ec2Refused as error:
            if error.aws_code != GONE:
                raise

    def template(self, data: Mapping[str, Any], tags: Mapping[str, str]) -> Template:
        """The version of the cluster's launch template with this content, made where there is none."""
        name, mark = names.launch_template(self._cluster), fingerprint(data)
        try:
            found = self._version(name, mark)
            if found is None:
                made = self._call("create_launch_template_version", LaunchTemplateName=name, VersionDescription=mark,
                                  LaunchTemplateData=dict(data))["LaunchTemplateVersion"]
                found = Template(made["LaunchTemplateId"], made["VersionNumber"])
            return found
        except Ec2Refused as error:
            if not error.aws_code.startswith(NO_TEMPLATE):
                raise
        try:
            made = self._call("create_launch_template", LaunchTemplateName=name, VersionDescription=mark,
                              LaunchTemplateData=dict(data), TagSpecifications=[
                                  {"ResourceType": "launch-template", "Tags": tag_list(tags)}])["LaunchTemplate"]
        except Ec2Refused as error:
            if "AlreadyExists" in error.aws_code:  # somebody was first
                raise Ec2Unavailable(f"The launch template {name} is just being made by somebody else.") from None
            raise
        return Template(made["LaunchTemplateId"], made["LatestVersionNumber"])

    def group_ids(self, groups: Sequence[str], subnet: str | None) -> list[str]:
        """The ids of security groups given by id or name, in the VPC of this subnet, else in the default one."""
        wanted = [group for group in groups if not group.startswith("sg-")]
        if not wanted:
            return list(groups)
        vpc = self._vpc(subnet)
        found: dict[str, str] = {}
        for page in self._pages("describe_security_groups", Filters=[{"Name": "vpc-id", "Values": [vpc]},
                                                                     {"Name": "group-name", "Values": wanted}]):
            found |= {group["GroupName"]: group["GroupId"] for group in page["SecurityGroups"]}
        missing = [name for name in wanted if name not in found]
        if missing:
            raise Ec2Refused("InvalidGroup.NotFound", f"There is no security group {missing[0]} in {vpc}; "
                             "`nommerd aws setup` makes the one that is used where fleet.security_groups is empty.")
        return [found.get(group, group) for group in groups]

    def _vpc(self, subnet: str | None) -> str:
        if subnet is not None:
            return str(self._call("describe_subnets", SubnetIds=[subnet])["Subnets"][0]["VpcId"])
        vpcs = self._call("describe_vpcs", Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        if not vpcs:
            raise Ec2Refused("InvalidSubnet", "The region has no default VPC.", "subnet")
        return str(vpcs[0]["VpcId"])

    def _version(self, name: str, mark: str) -> Template | None:
        """A version with this mark. Another feeder's settings may have made newer ones with others."""
        for page in self._pages("describe_launch_template_versions", LaunchTemplateName=name, MaxResults=PAGE):
            for found in page["LaunchTemplateVersions"]:
                if found.get("VersionDescription") == mark:
                    return Template(found["LaunchTemplateId"], found["VersionNumber"])
        return None

    def _pages(self, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            page = self._call(operation, **arguments, **({"NextToken": token} if token else {}))
            yield page
            token = page.get("NextToken")
            if not token:
                return

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            return dict(getattr(self._client, operation)(**arguments))
        except ResponseParserError as error:  # half an answer
            raise Ec2Unavailable(f"{operation}: {error}") from None
        except (BotoCoreError, ClientError) as error:
            if is_transient(error):
                raise Ec2Unavailable(explain(error)) from None
            raise Ec2Refused(error_code(error), explain(error)) from None


def _date(answer: Mapping[str, Any]) -> datetime | None:
    """When EC2 answered, by its own clock."""
    text = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if text is None else parsedate_to_datetime(text).astimezone(UTC)
    except ValueError:
        return None


def _node(found: Mapping[str, Any]) -> Node:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    return Node(id=found["InstanceId"], state=found["State"]["Name"], launched=found["LaunchTime"],
                token=tags.get(LAUNCH_TAG, ""))


def _shortage(error: Mapping[str, Any]) -> Shortage:
    overrides = error.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
    kind = overrides.get("InstanceType")
    pool = None if kind is None else Pool(kind, overrides.get("SubnetId") or overrides.get("AvailabilityZone") or "")
    return Shortage(error.get("ErrorCode", ""), error.get("ErrorMessage", "")[:300], pool)
