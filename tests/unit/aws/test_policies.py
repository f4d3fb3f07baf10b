"""The IAM policies: nothing on everything, and everything that the code calls."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

import nommerd
from nommerd.aws import policies
from nommerd.aws.policies import Place
from nommerd.config import Aws, Fleet, Settings, StorageSettings
from nommerd.errors import ConfigError
from nommerd.store.dynamodb_items import document_key

HOUSE = Path(nommerd.__file__).parent
PLACE = Place("aws", "eu-central-1", "123456789012")


def settings(**more: Any) -> Settings:
    return Settings(**{"cluster": "demo", "store": "dynamodb://demo-jobs", "bus": "sqs://demo",
                       "storage": StorageSettings(s3_read=("inbox", "shared/media"), s3_write=("outbox/web/",)),
                       "aws": Aws(region="eu-central-1", config_bucket="demo-config"),
                       "fleet": Fleet(enabled=True, image_id="ami-1234", subnets=("subnet-1",), key_name="ops"), **more})


def both(**more: Any) -> dict[str, list[dict[str, Any]]]:
    found = settings(**more)
    return {who: make(found, PLACE)["Statement"]
            for who, make in (("node", policies.node_policy), ("feeder", policies.feeder_policy))}


def actions(statements: list[dict[str, Any]]) -> set[str]:
    return {action for one in statements for action in one["Action"]}


def named(statements: list[dict[str, Any]], sid: str) -> dict[str, Any]:
    return next(one for one in statements if one["Sid"] == sid)


@pytest.mark.parametrize("who", ["node", "feeder"])
def test_only_actions_that_aws_knows_no_resource_for_stand_on_everything(who: str) -> None:
    for one in both()[who]:
        assert one["Effect"] == "Allow" or one["Sid"] == "NoTokensNorSecrets"
        assert not any("*" in action for action in one["Action"]), one
        if "*" in one["Resource"]:
            assert set(one["Action"]) <= policies.UNSCOPED, one
        for resource in one["Resource"]:
            assert resource == "*" or re.fullmatch(r"arn:aws:(sqs|dynamodb|s3|ec2|iam):[^*]*:[^*]*:.+", resource), resource


@pytest.mark.parametrize("who", ["node", "feeder"])
def test_sids_are_unique_and_of_letters_and_digits(who: str) -> None:
    sids = [one["Sid"] for one in both()[who]]
    assert len(set(sids)) == len(sids)
    assert all(re.fullmatch(r"[A-Za-z0-9]+", sid) for sid in sids)


def test_a_node_reads_the_configuration_and_cannot_write_it() -> None:
    on_config = [one for one in both()["node"] if any("demo-config" in arn for arn in one["Resource"])]
    assert actions(on_config) == {"s3:GetObject", "s3:GetObjectVersion"}


def test_a_node_can_give_itself_no_token_and_read_no_webhook_secret() -> None:
    denied = named(both()["node"], "NoTokensNorSecrets")
    assert denied["Effect"] == "Deny"
    assert set(denied["Action"]) == set(policies.ITEM_USE)
    patterns = denied["Condition"]["ForAnyValue:StringLike"]["dynamodb:LeadingKeys"]

    def refused(kind: str, scope: str) -> bool:
        key = document_key(kind, scope, "any")["pk"]["S"]
        return any(fnmatchcase(key, pattern) for pattern in patterns)

    assert refused("token", "") and refused("webhook-secret", "default") and refused("preset", "films")
    assert not refused("log", "films/1234") and not refused("control", "")


def test_nobody_may_make_or_delete_what_setup_makes() -> None:
    for statements in both().values():
        assert not [action for action in actions(statements) if re.search(
            r":(Delete|Create)(Table|Queue|Bucket|Role|Policy|SecurityGroup)|RolePolicy|PurgeQueue", action)]


def test_queues_are_named_one_by_one() -> None:
    assert named(both()["node"], "UseQueues")["Resource"] == [
        f"arn:aws:sqs:eu-central-1:123456789012:demo-{name}"
        for name in ("changes", "changes-dead", "jobs-dead", "jobs-high", "jobs-low", "jobs-normal")]


def test_a_node_writes_outputs_and_only_reads_sources() -> None:
    node = both()["node"]
    assert named(node, "ReadSources")["Action"] == ["s3:GetObject"]
    assert named(node, "ReadSources")["Resource"] == ["arn:aws:s3:::inbox/*", "arn:aws:s3:::shared/media",
                                                      "arn:aws:s3:::shared/media/*"]
    assert named(node, "WriteOutputs")["Resource"] == ["arn:aws:s3:::outbox/web/*"]
    assert {"s3:AbortMultipartUpload", "s3:ListMultipartUploadParts", "s3:PutObject"} <= set(
        named(node, "WriteOutputs")["Action"])


def test_a_prefix_opens_whole_parts_of_a_path_as_the_storage_does() -> None:
    """`shared/media` must not open `shared/mediabox`: the same rule as nommerd.storage.s3_uri."""
    from nommerd.errors import InputError
    from nommerd.storage.s3_uri import Allowed
    from nommerd.storage.s3_uri import Place as Thing

    patterns = named(both()["node"], "ReadSources")["Resource"]
    allowed = Allowed(settings().storage.s3_read, "storage.s3_read")
    for bucket, key in (("inbox", "a"), ("shared", "media"), ("shared", "media/a"), ("shared", "mediabox"), ("shared", "x"),
                        ("outbox", "a")):
        by_policy = any(fnmatchcase(f"arn:aws:s3:::{bucket}/{key}", pattern) for pattern in patterns)
        try:
            allowed.check(Thing(bucket, key), "source")
            by_storage = True
        except InputError:
            by_storage = False
        assert by_policy is by_storage, (bucket, key)


def test_wildcards_in_a_prefix_mean_themselves() -> None:
    found = policies.literal("a*b?c$d")
    assert found == "a${*}b${?}c${$}d"


def test_nodes_are_ended_and_started_with_the_clusters_tag_only() -> None:
    tag = {"aws:ResourceTag/nommerd:cluster": "demo"}
    for statements in both().values():
        ending = [one for one in statements if "ec2:TerminateInstances" in one["Action"]]
        assert [one["Condition"]["StringEquals"] for one in ending] == [tag]
        assert all(one["Resource"] == ["arn:aws:ec2:eu-central-1:123456789012:instance/*"] for one in ending)
    feeder = both()["feeder"]
    started = named(feeder, "StartNodesOfThisCluster")
    assert started["Condition"]["StringEquals"] == {"aws:RequestTag/nommerd:cluster": "demo"}
    assert not any("instance/*" in arn or "fleet/*" in arn for one in feeder if one["Sid"] == "StartWith"
                   for arn in one["Resource"])
    assert "arn:aws:ec2:eu-central-1::image/ami-1234" in named(feeder, "StartWith")["Resource"]
    assert "arn:aws:ec2:eu-central-1:123456789012:subnet/subnet-1" in named(feeder, "StartWith")["Resource"]


def test_the_feeder_passes_the_nodes_role_to_ec2_and_no_other_role_to_anyone() -> None:
    feeder = both()["feeder"]
    passing = [one for one in feeder if "iam:PassRole" in one["Action"]]
    assert [one["Resource"] for one in passing] == [["arn:aws:iam::123456789012:role/nommerd-demo-node"]]
    assert passing[0]["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    assert "iam:PassRole" not in actions(both()["node"])


def test_in_china_ec2_has_another_name() -> None:
    assert Place("aws-cn", "cn-north-1", "1").ec2 == "ec2.amazonaws.com.cn"
    assert policies.trust(PLACE)["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}


def test_every_statement_and_every_resource_is_on_its_page() -> None:
    """docs/aws-resources.md: a row for each statement, and none for what there is not."""
    page = (HOUSE.parent / "docs" / "aws-resources.md").read_text(encoding="utf-8")
    told = {who: set(re.findall(r"^\| `([A-Z][A-Za-z]+)` \|", part, re.MULTILINE)) for who, part in (
        ("node", page.split("### Nodes")[1].split("### The feeder")[0]), ("feeder", page.split("### The feeder")[1]))}
    for who, statements in both().items():
        assert {re.sub(r"\d+$", "", one["Sid"]) for one in statements} == told[who]
    assert all(action in page for statements in both().values() for action in actions(statements))


def test_without_a_fleet_the_feeder_has_nothing_of_ec2_and_iam() -> None:
    found = both(fleet=Fleet())["feeder"]
    assert not [action for action in actions(found) if action.startswith(("ec2:", "iam:"))]


def test_the_embedded_store_and_bus_need_nothing() -> None:
    found = both(store="sqlite:///nommerd.db", bus="sqlite:///nommerd.db", storage=StorageSettings(), aws=Aws(), fleet=Fleet())
    assert found["feeder"] == []
    assert actions(found["node"]) == {"ec2:TerminateInstances"}


def test_simpledb_has_its_own_statement() -> None:
    one = named(both(store="simpledb://demo-jobs")["node"], "UseItems")
    assert one["Resource"] == ["arn:aws:sdb:eu-central-1:123456789012:domain/demo-jobs"]


def test_a_queue_takes_events_of_one_bucket_of_one_account_from_s3() -> None:
    (one,) = policies.bucket_may_send("arn:aws:sqs:eu-central-1:123456789012:q", "in", PLACE)["Statement"]
    assert (one["Principal"], one["Action"]) == ({"Service": "s3.amazonaws.com"}, "sqs:SendMessage")
    assert one["Condition"] == {"ArnEquals": {"aws:SourceArn": "arn:aws:s3:::in"},
                                "StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_the_configurations_bucket_refuses_plain_http_for_everybody() -> None:
    (one,) = policies.tls_only("demo-config", PLACE)["Statement"]
    assert (one["Effect"], one["Principal"], one["Action"]) == ("Deny", "*", "s3:*")
    assert one["Resource"] == ["arn:aws:s3:::demo-config", "arn:aws:s3:::demo-config/*"]


def test_a_policy_that_iam_would_refuse_for_its_size_is_refused_before() -> None:
    many = StorageSettings(s3_read=tuple(f"bucket-{number}/{'p' * 60}" for number in range(60)))
    with pytest.raises(ConfigError, match="fewer buckets"):
        policies.node_policy(settings(storage=many), PLACE)


def test_policies_of_a_large_installation_fit() -> None:
    for who in (policies.node_policy, policies.feeder_policy):
        assert len(json.dumps(who(settings(), PLACE), separators=(",", ":"))) < policies.MANAGED_POLICY_MAX


OPERATIONS = re.compile(r"(?:call|pages|ask|batch|_send)\(\s*\"([a-z_]+)\"|(?:client|_client|ec2|_ec2|sqs|_sqs)\.([a-z_]+)\(")


def called(*patterns: str) -> set[str]:
    """Operations of boto3 that these modules call, as CamelCase."""
    found = set()
    for pattern in patterns:
        for path in HOUSE.glob(pattern):
            for groups in OPERATIONS.findall(path.read_text(encoding="utf-8")):
                found.add("".join(part.capitalize() for part in "".join(groups).split("_")))
    return found - {"Close", "GetPaginator"}


def test_the_store_may_do_what_its_code_calls_and_nothing_else() -> None:
    """Scan is the feeder's, for recipes, and the operator's, for `nommerd wipe`."""
    assert {f"dynamodb:{name}" for name in called("store/dynamodb*.py")} - {"dynamodb:Scan"} == set(policies.ITEM_USE)
    assert "dynamodb:Scan" in actions(both()["feeder"])
    assert "dynamodb:Scan" not in actions(both()["node"])


def test_the_bus_may_do_what_its_code_calls_and_nothing_else() -> None:
    """Batches need the permission of the single call. PurgeQueue is the operator's, for `nommerd wipe`."""
    names = {name.removesuffix("Batch") for name in called("bus/sqs*.py")} - {"PurgeQueue"}
    assert {f"sqs:{name}" for name in names} == set(policies.QUEUE_USE)


def test_the_fleet_may_do_what_its_code_calls() -> None:
    names = called("fleet/ec2.py", "fleet/node.py")
    assert {"CreateFleet", "TerminateInstances", "DescribeInstances"} <= names
    assert {f"ec2:{name}" for name in names} <= actions(both()["feeder"])
