"""The launch template of the fleet's nodes: what it holds. Pure: used by the fleet, by `nommerd aws setup` and
by its CloudFormation template, so that all three say the same."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from nommerd.aws import names
from nommerd.config import Settings

LAUNCH_TAG = "nommerd:launch"  # the client token of the launch that made it
USER_DATA_BYTES_MAX = 16 * 1024  # before base64: EC2's limit
# One hop: answers of the metadata service, and with them the node's credentials, do not pass a router. The worker runs on the
# node itself; two hops would let containers and network namespaces on it have them as well.
METADATA_HOPS = 1


def node_tags(cluster: str) -> dict[str, str]:
    """What every node and its volumes carry: the first tells whose they are, the second is for people."""
    return {names.CLUSTER_TAG: cluster, "Name": f"nommerd-{cluster}-node"}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def launch_template_data(settings: Settings, user_data: str, tags: Mapping[str, str], *,
                         security_group_ids: Sequence[Any] = ()) -> dict[str, Any]:
    """LaunchTemplateData of CreateLaunchTemplate. Types and places are not in it: each launch names them.

    `security_group_ids` stands for fleet.security_groups where their ids are known already. Left empty, what is configured is
    used as it is, else the group of `nommerd aws setup` by its name (names work in the default VPC alone). Raises ValueError
    where there is more user-data than EC2 takes.
    """
    if len(user_data.encode()) > USER_DATA_BYTES_MAX:
        raise ValueError(f"user-data holds more than {USER_DATA_BYTES_MAX} bytes")
    fleet = settings.fleet
    data: dict[str, Any] = {
        "ImageId": fleet.image_id,
        "InstanceInitiatedShutdownBehavior": "terminate",  # a node that shuts down is done, and must not be paid for
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": METADATA_HOPS},
        "IamInstanceProfile": _profile(fleet.instance_profile or names.node_profile(settings.cluster)),
        "UserData": b64encode(user_data.encode()).decode(),
        "TagSpecifications": [{"ResourceType": kind, "Tags": tag_list(tags)} for kind in ("instance", "volume")],
    }
    if fleet.key_name:
        data["KeyName"] = fleet.key_name
    groups = security_group_ids or fleet.security_groups or (names.security_group(settings.cluster),)
    by_id = [group for group in groups if security_group_ids or group.startswith("sg-")]
    by_name = [group for group in groups if group not in by_id]
    if by_id:
        data["SecurityGroupIds"] = by_id
    if by_name:
        data["SecurityGroups"] = by_name
    return data


def fingerprint(data: Mapping[str, Any]) -> str:
    """What tells one content from another: a version of the template carries it as its description. EC2 does not give the
    content back as it was sent, so contents are not compared themselves."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return f"nommerd {hashlib.sha256(text.encode()).hexdigest()}"


def _profile(name: str) -> dict[str, str]:
    return {"Arn": name} if name.startswith("arn:") else {"Name": name}
