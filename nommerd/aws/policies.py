"""The IAM policies, least privilege: what the feeder and encoder nodes call, on what is this cluster's, and nothing else.

Pure: documents from settings. Texts may hold `${AWS::Region}` and the like (see nommerd.aws.cloudformation).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nommerd.aws import names
from nommerd.bus.sqs_queues import change_queue, dead_queue, job_queues
from nommerd.errors import ConfigError
from nommerd.store.dynamodb_items import document_key
from nommerd.store.dynamodb_table import CREATED

if TYPE_CHECKING:
    from nommerd.config import Settings

VERSION = "2012-10-17"
MANAGED_POLICY_MAX = 6144  # characters without white space, IAM's limit
UNSCOPED = frozenset({  # actions that AWS knows no resource for: only these stand on "*"
    "ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
    "ec2:DescribeVpcs", "sqs:ListQueues",
})
Document = dict[str, Any]
QUEUE_USE = ("sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
             "sqs:ReceiveMessage", "sqs:SendMessage")
FEEDERS_KINDS = ("token", "webhook-secret", "preset", "pipeline")  # of documents, that workers have nothing to do with
ITEM_USE = ("dynamodb:BatchGetItem", "dynamodb:BatchWriteItem", "dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:PutItem",
            "dynamodb:Query")
DOMAIN_USE = ("sdb:BatchDeleteAttributes", "sdb:DeleteAttributes", "sdb:GetAttributes", "sdb:PutAttributes", "sdb:Select")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in AWS: what ARNs are made of."""

    partition: str
    region: str
    account: str

    def arn(self, service: str, resource: str, *, region: bool = True, account: bool = True) -> str:
        """`arn:aws:sqs:REGION:ACCOUNT:resource`; region or account left empty where the service has none."""
        return f"arn:{self.partition}:{service}:{self.region if region else ''}:{self.account if account else ''}:{resource}"

    @property
    def ec2(self) -> str:
        """EC2 as a principal."""
        suffix = {"aws-cn": "amazonaws.com.cn", "${AWS::Partition}": "${AWS::URLSuffix}"}.get(self.partition, "amazonaws.com")
        return f"ec2.{suffix}"


def statement(sid: str, actions: Iterable[str], resources: Iterable[str], condition: Document | None = None) -> Document:
    """An Allow; sorted, so that equal policies are equal texts."""
    made: Document = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": sorted(set(resources))}
    return made | ({"Condition": condition} if condition else {})


def document(statements: Iterable[Document]) -> Document:
    return {"Version": VERSION, "Statement": list(statements)}


def literal(text: str) -> str:
    """A name as it stands in an ARN pattern: `*`, `?` and `$` mean themselves."""
    return "".join(f"${{{c}}}" if c in "*?$" else c for c in text)


# --- who may be whom -----------------------------------------------------------------------------------------------


def trust(place: Place) -> Document:
    """Who may take the roles: EC2's instances."""
    return document([{"Effect": "Allow", "Principal": {"Service": place.ec2}, "Action": "sts:AssumeRole"}])


def tls_only(bucket: str, place: Place) -> Document:
    """A bucket policy that refuses unencrypted connections."""
    arn = place.arn("s3", bucket, region=False, account=False)
    return document([{"Sid": "EncryptedConnectionsOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
                      "Resource": [arn, f"{arn}/*"], "Condition": {"Bool": {"aws:SecureTransport": "false"}}}])


def bucket_may_send(queue_arn: str, bucket: str, place: Place) -> Document:
    """A queue policy: S3 may send events of this one bucket of this account, nobody else anything."""
    bucket_arn = place.arn("s3", bucket, region=False, account=False)
    return document([{"Sid": "EventsOfOneBucket", "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"},
                      "Action": "sqs:SendMessage", "Resource": queue_arn,
                      "Condition": {"ArnEquals": {"aws:SourceArn": bucket_arn},
                                    "StringEquals": {"aws:SourceAccount": place.account}}}])


# --- what they may do ----------------------------------------------------------------------------------------------


def node_policy(settings: Settings, place: Place) -> Document:
    """Encoder nodes: take and give back jobs, write their records, read sources, write outputs, end themselves."""
    cluster = {"StringEquals": {f"aws:ResourceTag/{names.CLUSTER_TAG}": settings.cluster}}
    return _checked("node", [
        *_shared(settings, place), *_not_theirs(settings, place),
        *_config(settings, place, "ReadConfiguration", ("s3:GetObject", "s3:GetObjectVersion")),
        *_sources(settings, place), *_outputs(settings, place),
        statement("EndNodesOfThisCluster", ["ec2:TerminateInstances"], [place.arn("ec2", "instance/*")], cluster)])


def feeder_policy(settings: Settings, place: Place) -> Document:
    """The feeder: records and queues, see whether a destination is taken, the configuration's bucket, watches, the fleet."""
    return _checked("feeder", [
        *_shared(settings, place), *_sweeping(settings, place), *_watches(settings, place),
        *_config(settings, place, "KeepConfiguration", ("s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"), listing=True),
        *_looking(settings, place), *_fleet(settings, place)])


def _shared(settings: Settings, place: Place) -> list[Document]:
    """What the store and the bus need, on both sides."""
    found = []
    prefix = bus_prefix(settings)
    if prefix is not None:
        queues = [*job_queues(prefix), change_queue(prefix), *(dead_queue(prefix, kind) for kind in ("jobs", "changes"))]
        found.append(statement("UseQueues", QUEUE_USE, (place.arn("sqs", name) for name in queues)))
    store = urlsplit(settings.store)
    if store.scheme == "dynamodb":
        table = place.arn("dynamodb", f"table/{store.netloc}")
        found.append(statement("UseItems", ITEM_USE, [table, f"{table}/index/*"]))
    if store.scheme == "simpledb":
        found.append(statement("UseItems", DOMAIN_USE, [place.arn("sdb", f"domain/{store.netloc}")]))
    return found


def _not_theirs(settings: Settings, place: Place) -> list[Document]:
    """What nodes need not see in the table, and could give themselves rights with."""
    store = urlsplit(settings.store)
    if store.scheme != "dynamodb":
        return []
    keys = [f"{document_key(kind, '', '')['pk']['S']}*" for kind in FEEDERS_KINDS]
    return [{**statement("NoTokensNorSecrets", ITEM_USE, [place.arn("dynamodb", f"table/{store.netloc}")]), "Effect": "Deny",
             "Condition": {"ForAnyValue:StringLike": {"dynamodb:LeadingKeys": keys}}}]


def _sweeping(settings: Settings, place: Place) -> list[Document]:
    """Which recipes no job names any more is told by a scan of the index of all jobs."""
    store = urlsplit(settings.store)
    if store.scheme != "dynamodb":
        return []
    index = place.arn("dynamodb", f"table/{store.netloc}/index/{CREATED}")
    return [statement("FindUnusedRecipes", ["dynamodb:Scan"], [index])]


def _watches(settings: Settings, place: Place) -> list[Document]:
    prefix = bus_prefix(settings)
    if prefix is None:
        return []
    queues = [place.arn("sqs", names.watch_prefix(prefix) + "*")]
    use = ("sqs:DeleteMessage", "sqs:ListQueueTags", "sqs:ReceiveMessage")
    return [statement("ReadWatches", use, queues), statement("FindWatches", ["sqs:ListQueues"], ["*"])]


def _config(settings: Settings, place: Place, sid: str, actions: Sequence[str], *, listing: bool = False) -> list[Document]:
    bucket = settings.aws.config_bucket
    if bucket is None:
        return []
    arn = place.arn("s3", bucket, region=False, account=False)
    found = [statement(sid, actions, [f"{arn}/*"])]
    return [*found, statement("FindConfiguration", ["s3:ListBucket"], [arn])] if listing else found


def _sources(settings: Settings, place: Place) -> list[Document]:
    objects = [arn for entry in settings.storage.s3_read for arn in _objects(entry, place)]
    if not objects:
        return []
    return [statement("ReadSources", ["s3:GetObject"], objects),
            *_listing("FindSources", settings.storage.s3_read, place)]


def _outputs(settings: Settings, place: Place) -> list[Document]:
    """Outputs come by multipart upload; PutObjectAcl and PutObjectTagging are for upload stages that set these."""
    objects = [arn for entry in settings.storage.s3_write for arn in _objects(entry, place)]
    if not objects:
        return []
    actions = ("s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject", "s3:PutObjectAcl",
               "s3:PutObjectTagging")
    return [statement("WriteOutputs", actions, objects), *_listing("FindOutputs", settings.storage.s3_write, place)]


def _looking(settings: Settings, place: Place) -> list[Document]:
    """The feeder asks whether sources and destinations are there (HeadObject)."""
    entries = [*settings.storage.s3_read, *settings.storage.s3_write]
    objects = [arn for entry in entries for arn in _objects(entry, place)]
    if not objects:
        return []
    return [statement("LookAtMedia", ["s3:GetObject"], objects), *_listing("FindMedia", entries, place)]


def _listing(sid: str, entries: Iterable[str], place: Place) -> list[Document]:
    """Without ListBucket S3 tells a missing object as forbidden. `IfExists`: a HeadObject has no prefix."""
    found = []
    scopes: dict[str, list[str]] = {}
    for bucket, prefix in sorted({split_scope(entry) for entry in entries}):
        scopes.setdefault(bucket, []).append(prefix)
    whole = sorted(bucket for bucket, prefixes in scopes.items() if "" in prefixes)
    if whole:
        found.append(statement(sid, ["s3:ListBucket"], (_bucket(name, place) for name in whole)))
    for number, (bucket, prefixes) in enumerate(sorted((b, p) for b, p in scopes.items() if b not in whole)):
        condition = {"StringLikeIfExists": {"s3:prefix": sorted(key for prefix in prefixes for key in _keys(prefix))}}
        found.append(statement(f"{sid}{number + 1}", ["s3:ListBucket"], [_bucket(bucket, place)], condition))
    return found


def _fleet(settings: Settings, place: Place) -> list[Document]:
    """Start and end nodes. Only with the cluster's tag on what is started, from the cluster's own launch template."""
    if not settings.fleet.enabled and settings.fleet.image_id is None:
        return []
    fleet, tag = settings.fleet, names.CLUSTER_TAG
    mine = {"StringEquals": {f"aws:ResourceTag/{tag}": settings.cluster}}
    asked = {"StringEquals": {f"aws:RequestTag/{tag}": settings.cluster}}

    def ec2(*resources: str) -> list[str]:
        return [place.arn("ec2", resource) for resource in resources]

    image = fleet.image_id or "*"
    given = [*ec2(*(f"subnet/{subnet}" for subnet in fleet.subnets or ("*",))),
             *ec2(*(f"security-group/{group}" for group in _group_ids(fleet.security_groups))),
             *ec2("network-interface/*", "volume/*", "spot-instances-request/*"),
             place.arn("ec2", f"image/{image}", account=False), place.arn("ec2", "snapshot/*", account=False),
             *(ec2(f"key-pair/{fleet.key_name}") if fleet.key_name else [])]
    start = ("ec2:CreateFleet", "ec2:RunInstances")
    return [
        statement("LookAtFleet", sorted(action for action in UNSCOPED if action.startswith("ec2:")), ["*"]),
        statement("StartNodesOfThisCluster", start, ec2("fleet/*", "instance/*"), asked),
        statement("StartFromOwnTemplate", start, ec2("launch-template/*"), mine),
        statement("StartWith", start, given),
        statement("TagWhatIsStarted", ["ec2:CreateTags"],
                  ec2("fleet/*", "instance/*", "launch-template/*", "network-interface/*", "spot-instances-request/*",
                      "volume/*"),
                  {"StringEquals": {**asked["StringEquals"],
                                    "ec2:CreateAction": ["CreateFleet", "CreateLaunchTemplate", "RunInstances"]}}),
        statement("MakeTemplate", ["ec2:CreateLaunchTemplate"], ec2("launch-template/*"), asked),
        statement("ChangeOwnTemplate", ["ec2:CreateLaunchTemplateVersion"], ec2("launch-template/*"), mine),
        statement("EndNodesOfThisCluster", ["ec2:TerminateInstances"], ec2("instance/*"), mine),
        statement("GiveNodesTheirRole", ["iam:PassRole"], [_node_role(settings, place)],
                  {"StringEquals": {"iam:PassedToService": place.ec2}}),
        statement("FirstSpotRequestOfAnAccount", ["iam:CreateServiceLinkedRole"],
                  [place.arn("iam", f"role/aws-service-role/{service}/*", region=False) for service in SPOT_SERVICES],
                  {"StringEquals": {"iam:AWSServiceName": list(SPOT_SERVICES)}}),
    ]


SPOT_SERVICES = ("ec2fleet.amazonaws.com", "spot.amazonaws.com")


def _group_ids(groups: Sequence[str]) -> list[str]:
    """By id where all are ids; names, and the one that setup makes, are not known as such here."""
    return list(groups) if groups and all(group.startswith("sg-") for group in groups) else ["*"]


def _node_role(settings: Settings, place: Place) -> str:
    """The role behind fleet.instance_profile. A profile of the operator's own is taken to be called as its role is."""
    profile = settings.fleet.instance_profile or names.node_profile(settings.cluster)
    return place.arn("iam", f"role/{profile.rpartition('/')[2]}", region=False)


# --- parts -----------------------------------------------------------------------------------------------------------


def bus_prefix(settings: Settings) -> str | None:
    """PREFIX of `bus: sqs://PREFIX`, None for another bus."""
    bus = urlsplit(settings.bus)
    return bus.netloc if bus.scheme == "sqs" else None


def split_scope(entry: str) -> tuple[str, str]:
    """An entry of storage.s3_read or s3_write as bucket and prefix (empty: the whole bucket)."""
    bucket, _, prefix = entry.partition("/")
    return bucket, prefix


def _bucket(name: str, place: Place) -> str:
    return place.arn("s3", literal(name), region=False, account=False)


def _objects(entry: str, place: Place) -> list[str]:
    bucket, prefix = split_scope(entry)
    return [f"{_bucket(bucket, place)}/{keys}" for keys in _keys(prefix)]


def _keys(prefix: str) -> list[str]:
    """Patterns of the keys that a prefix opens, as nommerd.storage.s3_uri does: `media/in` not `media/inbox`."""
    if not prefix or prefix.endswith("/"):
        return [literal(prefix) + "*"]
    return [literal(prefix), literal(prefix) + "/*"]


def _checked(who: str, statements: Iterable[Document]) -> Document:
    made = document(statements)
    size = len("".join(json.dumps(made, separators=(",", ":")).split()))
    if size > MANAGED_POLICY_MAX:
        raise ConfigError("config.bad_value", f"The {who}'s policy would have {size} characters, and IAM takes "
                          f"{MANAGED_POLICY_MAX}.", "List fewer buckets and prefixes in storage.s3_read and s3_write, or "
                          "whole buckets.", place="storage")
    return made
