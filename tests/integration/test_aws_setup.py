"""`nommerd aws setup` and `teardown` against the emulator: what is made, made right, left alone, and taken down again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nommerd.aws.account import Account, Outcome, identity
from nommerd.aws.apply import plan_here, set_up, tear_down
from nommerd.aws.clients import Clients
from nommerd.aws.cloudformation import template
from nommerd.aws.make_iam import VERSIONS_MAX
from nommerd.aws.make_records import Tables
from nommerd.aws.policies import Place
from nommerd.config import Settings, load
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.fleet.template import LAUNCH_TAG
from nommerd.job import JobState, Key, Sweep, utcnow
from nommerd.lifecycle import cancel
from nommerd.store.base import Document, JobQuery
from nommerd.store.dynamodb import DynamoStore
from tests.aws_proxy import Answer, AwsProxy, Call, Forward, Rule
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, account, emulator

ACCOUNT = "123456789012"
TAG = "nommerd:cluster"
TABLE_1 = Path(__file__).parents[1] / "unit" / "data" / "table-1.json"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class Scene:
    """A cluster of its own in the emulator, and its configuration."""

    root: Path

    def __post_init__(self) -> None:
        self.cluster = f"s{uuid4().hex[:10]}"
        self.config_bucket, self.outbox = f"{self.cluster}-config", f"{self.cluster}-out"
        self.file = self.root / "nommerd.yaml"
        self.file.write_text(f"""\
cluster: {self.cluster}
store: dynamodb://{self.cluster}
bus: sqs://{self.cluster}
aws: {{region: {REGION}, config_bucket: {self.config_bucket}}}
storage: {{s3_read: [{self.cluster}-in], s3_write: [{self.outbox}/web]}}
fleet: {{enabled: true, image_id: ami-12345678, instance_types: [c7i.large]}}
""")
        self.client = clients()
        self.client("s3").create_bucket(Bucket=self.outbox)
        self.settings: Settings = load(self.file, {"NOMMERD_AWS__ENDPOINT_URL": emulator().url})

    def with_tls(self) -> None:
        """As in the account: the emulator would refuse objects over plain HTTP, so that such tests have none."""
        self.settings = load(self.file, {})

    def account(self, url: str | None = None) -> Account:
        return Account(Clients(account(url)) if url else clients(), Place("aws", REGION, ACCOUNT), self.cluster,
                       pause=lambda seconds: None)

    def set_up(self, url: str | None = None, **more: Any) -> dict[str, Outcome]:
        return by_name(set_up(self.account(url), self.settings, **more))

    def tear_down(self) -> dict[str, Outcome]:
        return by_name(tear_down(self.account(), self.settings))

    def run(self, *arguments: str, url: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """`nommerd aws …` as a process."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NOMMERD_", "AWS_"))}
        env = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true",
               "NOMMERD_AWS__ENDPOINT_URL": url or emulator().url, **env}
        return subprocess.run([sys.executable, "-m", "nommerd", "aws", *arguments, "-c", str(self.file)], env={**kept, **env},
                              capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)

    # --- what is there ---

    def queue(self, name: str) -> str:
        return str(self.client("sqs").get_queue_url(QueueName=f"{self.cluster}-{name}")["QueueUrl"])

    def attributes(self, name: str) -> dict[str, str]:
        return dict(self.client("sqs").get_queue_attributes(QueueUrl=self.queue(name), AttributeNames=["All"])["Attributes"])

    def table(self) -> dict[str, Any]:
        return dict(self.client("dynamodb").describe_table(TableName=self.cluster)["Table"])

    def policy(self, who: str) -> str:
        return f"arn:aws:iam::{ACCOUNT}:policy/nommerd-{self.cluster}-{who}"

    def document(self, who: str) -> dict[str, Any]:
        iam, arn = self.client("iam"), self.policy(who)
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        return dict(iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"])

    def group(self) -> dict[str, Any]:
        (found,) = self.client("ec2").describe_security_groups(
            Filters=[{"Name": "group-name", "Values": [f"nommerd-{self.cluster}-node"]}])["SecurityGroups"]
        return dict(found)


@cache
def clients() -> Clients:
    """Of the emulator itself; making them takes longer than using them."""
    return emulator().clients()


def by_name(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    """By type and name without the cluster: `SQS::Queue jobs-high`."""
    return {f"{one.type.removeprefix('AWS::')} {one.name}": one for one in outcomes}


def statuses(outcomes: dict[str, Outcome]) -> set[str]:
    return {str(one.status) for one in outcomes.values()}


def tags_of(items: list[dict[str, str]]) -> dict[str, str]:
    return {item["Key"]: item["Value"] for item in items}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def proxy() -> Iterator[AwsProxy]:
    with AwsProxy() as proxy:
        yield proxy


def telling_redrive_allow_policy() -> Rule:
    """SQS tells the attribute; the emulator takes it and forgets it."""
    kept: dict[str, str] = {}

    def rule(call: Call, forward: Forward) -> Answer:
        answer = forward(call)
        given = call.json.get("Attributes", {}) if call.service == "sqs" else {}
        if call.action in ("CreateQueue", "SetQueueAttributes") and "RedriveAllowPolicy" in given:
            kept[call.resource] = given["RedriveAllowPolicy"]
        if call.action == "GetQueueAttributes" and call.resource in kept:
            body = answer.json
            body.setdefault("Attributes", {})["RedriveAllowPolicy"] = kept[call.resource]
            return answer.with_json(body)
        return answer

    return rule


# --- the command itself ----------------------------------------------------------------------------------------------


def test_setup_makes_everything_once_and_a_second_run_changes_nothing(scene: Scene, proxy: AwsProxy) -> None:
    proxy.rules.append(telling_redrive_allow_policy())
    first = scene.run("setup", "--buckets", "--json", url=proxy.url)
    assert first.returncode == 0, first.stderr + first.stdout
    told = json.loads(first.stdout)
    assert (told["cluster"], told["account"], told["region"]) == (scene.cluster, ACCOUNT, REGION)
    assert {one["status"] for one in told["resources"]} == {"made"}
    called = len(proxy.calls)
    second = scene.run("setup", "--buckets", url=proxy.url)
    assert second.returncode == 0, second.stderr
    lines = second.stdout.splitlines()
    assert lines[0].split() == ["STATUS", "TYPE", "NAME", "DETAIL"]
    assert {line.split()[0] for line in lines[1:]} == {"exists"}
    assert len(lines) == len(told["resources"]) + 1
    looked = ("Get", "List", "Describe", "Head", "GET ")
    assert [call.action for call in proxy.calls[called:] if not call.action.startswith(looked)] == []
    assert SECRET_KEY not in first.stdout + first.stderr + second.stdout + second.stderr


def test_dry_run_and_template_need_no_credentials_and_call_nothing(scene: Scene, proxy: AwsProxy) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(scene.root)}
    dry = scene.run("setup", "--dry-run", url=proxy.url, **nobody)
    assert dry.returncode == 0, dry.stderr
    for word in (f"AWS::SQS::Queue {scene.cluster}-jobs-high", "ACCOUNT_ID", f"IAM policy nommerd-{scene.cluster}-node:",
                 '"iam:PassedToService": "ec2.amazonaws.com"', "only with --buckets"):
        assert word in dry.stdout, word
    machine = json.loads(scene.run("setup", "--dry-run", "--json", url=proxy.url, **nobody).stdout)
    assert set(machine["policies"]) == {f"nommerd-{scene.cluster}-{who}" for who in ("feeder", "node")}
    made = scene.run("setup", "--cloudformation", url=proxy.url, **nobody)
    assert {r["Type"] for r in json.loads(made.stdout)["Resources"].values()} == {r["type"] for r in machine["resources"]}
    assert proxy.calls == []


def test_without_credentials_or_region_it_is_told_what_is_missing(scene: Scene) -> None:
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(scene.root)}
    done = scene.run("setup", **nobody)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nommerd: aws: config.aws: No usable AWS credentials")
    scene.file.write_text(scene.file.read_text().replace(f"region: {REGION}, ", ""))
    done = scene.run("setup", "--json", HOME=str(scene.root))
    assert done.returncode == 2
    assert json.loads(done.stdout)["errors"][0]["place"] == "aws.region"


def test_a_missing_permission_is_named_with_what_was_done_before(scene: Scene, proxy: AwsProxy) -> None:
    proxy.fail("CreateTable", status=400, code="AccessDeniedException", message="User: x is not authorized")
    done = scene.run("setup", url=proxy.url)
    assert done.returncode == 2
    assert "config.aws_permission: These credentials may not CreateTable" in done.stderr
    assert done.stdout.count("made") == 6  # the queues
    assert scene.run("setup").returncode == 0  # goes on where it was


def test_teardown_asks_and_removes_nothing_where_nobody_can_be_asked(scene: Scene) -> None:
    scene.set_up()
    done = scene.run("teardown")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert f"AWS::DynamoDB::Table {scene.cluster}" in done.stderr
    assert statuses(scene.set_up()) <= {"exists", "skipped"}


# --- what is made ------------------------------------------------------------------------------------------------------


def test_what_is_made_is_as_it_should_be(scene: Scene) -> None:
    assert identity(scene.account().clients) == scene.account().place
    scene.with_tls()
    scene.set_up()
    jobs = scene.attributes("jobs-high")
    assert json.loads(jobs["RedrivePolicy"])["deadLetterTargetArn"].endswith(f":{scene.cluster}-jobs-dead")
    assert jobs["SqsManagedSseEnabled"] == "true"
    table = scene.table()
    assert table["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    assert table["DeletionProtectionEnabled"] is True
    dynamo, s3, iam, ec2 = (scene.client(name) for name in ("dynamodb", "s3", "iam", "ec2"))
    assert dynamo.describe_time_to_live(TableName=scene.cluster)["TimeToLiveDescription"]["TimeToLiveStatus"] == "ENABLED"
    assert s3.get_bucket_versioning(Bucket=scene.config_bucket)["Status"] == "Enabled"
    assert set(s3.get_public_access_block(Bucket=scene.config_bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    assert '"aws:SecureTransport": "false"' in s3.get_bucket_policy(Bucket=scene.config_bucket)["Policy"]
    (profile,) = iam.get_instance_profile(InstanceProfileName=f"nommerd-{scene.cluster}-node")["InstanceProfile"]["Roles"]
    assert profile["RoleName"] == f"nommerd-{scene.cluster}-node"
    attached = iam.list_attached_role_policies(RoleName=profile["RoleName"])["AttachedPolicies"]
    assert [policy["PolicyArn"] for policy in attached] == [scene.policy("node")]
    assert scene.group()["IpPermissions"] == []
    (version,) = ec2.describe_launch_template_versions(
        LaunchTemplateName=f"nommerd-{scene.cluster}-node")["LaunchTemplateVersions"]
    assert version["LaunchTemplateData"]["SecurityGroupIds"] == [scene.group()["GroupId"]]


def test_everything_carries_the_clusters_tag(scene: Scene) -> None:
    scene.set_up()
    sqs, dynamo, s3, iam, ec2 = (scene.client(name) for name in ("sqs", "dynamodb", "s3", "iam", "ec2"))
    names = f"nommerd-{scene.cluster}-node"
    arn = scene.table()["TableArn"]
    template = ec2.describe_launch_templates(LaunchTemplateNames=[names])["LaunchTemplates"][0]
    found = {
        "queue": sqs.list_queue_tags(QueueUrl=scene.queue("changes"))["Tags"],
        "table": tags_of(dynamo.list_tags_of_resource(ResourceArn=arn)["Tags"]),
        "bucket": tags_of(s3.get_bucket_tagging(Bucket=scene.config_bucket)["TagSet"]),
        "policy": tags_of(iam.list_policy_tags(PolicyArn=scene.policy("node"))["Tags"]),
        "role": tags_of(iam.list_role_tags(RoleName=names)["Tags"]),
        "profile": tags_of(iam.get_instance_profile(InstanceProfileName=names)["InstanceProfile"]["Tags"]),
        "group": tags_of(scene.group()["Tags"]), "template": tags_of(template["Tags"])}
    assert {kind: tags.get(TAG) for kind, tags in found.items()} == dict.fromkeys(found, scene.cluster)


def test_a_stack_of_the_template_is_what_setup_makes(scene: Scene, tmp_path: Path) -> None:
    """In what the emulator's CloudFormation honours; the rest is held by cfn-lint in the unit tests."""
    (tmp_path / "other").mkdir()
    other = Scene(tmp_path / "other")
    other.set_up()
    made, _ = template(scene.settings)
    stacks = scene.client("cloudformation")
    stacks.create_stack(StackName=scene.cluster, TemplateBody=json.dumps(made), Capabilities=["CAPABILITY_NAMED_IAM"])
    assert stacks.describe_stacks(StackName=scene.cluster)["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"

    def alike(value: Any) -> Any:
        return json.loads(json.dumps(value, default=str).replace(other.cluster, scene.cluster))

    for name in ("jobs-high", "jobs-normal", "jobs-low", "changes", "jobs-dead", "changes-dead"):
        ours, theirs = scene.attributes(name), other.attributes(name)
        for key in ("MessageRetentionPeriod", "VisibilityTimeout", "ReceiveMessageWaitTimeSeconds", "RedrivePolicy",
                    "SqsManagedSseEnabled"):
            assert ours.get(key) == alike(theirs.get(key)), (name, key)
    for key in ("KeySchema", "AttributeDefinitions", "BillingModeSummary", "DeletionProtectionEnabled"):
        assert scene.table()[key] == alike(other.table()[key]), key
    indexes = [[(one["IndexName"], one["KeySchema"], one["Projection"]) for one in of.table()["GlobalSecondaryIndexes"]]
               for of in (scene, other)]
    assert indexes[0] == indexes[1]
    for who in ("node", "feeder"):
        assert scene.document(who) == alike(other.document(who))
    after = scene.set_up()
    assert "differs" not in statuses(after), after


# --- what was changed behind our back ----------------------------------------------------------------------------------


def test_what_was_changed_is_put_right_and_named(scene: Scene) -> None:
    scene.with_tls()
    scene.set_up(buckets=True)
    sqs, s3, iam, dynamo = (scene.client(name) for name in ("sqs", "s3", "iam", "dynamodb"))
    sqs.set_queue_attributes(QueueUrl=scene.queue("jobs-low"), Attributes={"VisibilityTimeout": "77"})
    s3.delete_public_access_block(Bucket=scene.config_bucket)
    s3.delete_bucket_policy(Bucket=scene.config_bucket)
    iam.detach_role_policy(RoleName=f"nommerd-{scene.cluster}-node", PolicyArn=scene.policy("node"))
    iam.create_policy_version(PolicyArn=scene.policy("feeder"), SetAsDefault=True, PolicyDocument=json.dumps(
        {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}))
    dynamo.update_table(TableName=scene.cluster, GlobalSecondaryIndexUpdates=[{"Delete": {"IndexName": "webhook"}}])
    dynamo.update_table(TableName=scene.cluster, DeletionProtectionEnabled=False)
    after = {name: one for name, one in scene.set_up(buckets=True).items() if one.status != "exists"}
    assert {name: (str(one.status), one.detail) for name, one in after.items()} == {
        f"SQS::Queue {scene.cluster}-jobs-low": ("changed", "VisibilityTimeout"),
        f"DynamoDB::Table {scene.cluster}": ("changed", "index webhook, deletion protection"),
        f"S3::Bucket {scene.config_bucket}": ("changed", "public access blocked"),
        f"S3::BucketPolicy {scene.config_bucket}": ("made", ""),
        f"IAM::ManagedPolicy nommerd-{scene.cluster}-feeder": ("changed", "the document"),
        f"IAM::Role nommerd-{scene.cluster}-node": ("changed", f"policy nommerd-{scene.cluster}-node")}
    assert scene.document("feeder")["Statement"][0]["Action"] != "*"
    assert statuses(scene.set_up(buckets=True)) == {"exists"}


def test_a_policy_that_changes_often_has_no_more_versions_than_iam_keeps(scene: Scene) -> None:
    iam = scene.client("iam")
    scene.set_up()
    for number in range(VERSIONS_MAX + 2):
        scene.settings = scene.settings.model_copy(update={"storage": scene.settings.storage.model_copy(
            update={"s3_read": (f"{scene.cluster}-{number}",)})})
        assert scene.set_up()[f"IAM::ManagedPolicy nommerd-{scene.cluster}-node"].status == "changed"
        assert len(iam.list_policy_versions(PolicyArn=scene.policy("node"))["Versions"]) <= VERSIONS_MAX
    assert f"arn:aws:s3:::{scene.cluster}-{VERSIONS_MAX + 1}/*" in json.dumps(scene.document("node"))


def test_what_is_not_ours_is_left_as_it_is_and_told(scene: Scene) -> None:
    sqs, s3 = scene.client("sqs"), scene.client("s3")
    queue = sqs.create_queue(QueueName=f"{scene.cluster}-changes", Attributes={"VisibilityTimeout": "77"})["QueueUrl"]
    s3.create_bucket(Bucket=scene.config_bucket)
    s3.put_object(Bucket=scene.config_bucket, Key="theirs", Body=b"x")
    done = scene.run("setup")
    assert done.returncode == 2
    assert f"tag it {TAG}={scene.cluster}" in done.stderr
    assert scene.attributes("changes")["VisibilityTimeout"] == "77"
    assert "Status" not in s3.get_bucket_versioning(Bucket=scene.config_bucket)
    left = scene.tear_down()
    assert left[f"SQS::Queue {scene.cluster}-changes"].status == "left"
    assert left[f"S3::Bucket {scene.config_bucket}"].status == "left"
    assert sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    assert s3.get_object(Bucket=scene.config_bucket, Key="theirs")["Body"].read() == b"x"


def test_the_bucket_that_a_feeder_made_is_taken_over(scene: Scene) -> None:
    s3 = scene.client("s3")
    s3.create_bucket(Bucket=scene.config_bucket)
    s3.put_object(Bucket=scene.config_bucket, Key=f"nommerd/{scene.cluster}/0a.json", Body=b"{}")
    assert scene.set_up()[f"S3::Bucket {scene.config_bucket}"].status == "changed"
    assert tags_of(s3.get_bucket_tagging(Bucket=scene.config_bucket)["TagSet"]) == {TAG: scene.cluster}


def test_another_clusters_table_is_not_touched(scene: Scene) -> None:
    scene.set_up()
    stranger = scene.settings.model_copy(update={"cluster": "stranger"})
    done = by_name(set_up(Account(scene.account().clients, scene.account().place, "stranger"), stranger))
    table = done[f"DynamoDB::Table {scene.cluster}"]
    assert (table.status, f"the cluster {scene.cluster}" in table.detail) == ("differs", True)
    by_name(tear_down(Account(scene.account().clients, scene.account().place, "stranger"), stranger))
    assert scene.table()["TableStatus"] == "ACTIVE"


def test_a_table_of_other_keys_is_told_and_left(scene: Scene) -> None:
    scene.client("dynamodb").create_table(
        TableName=scene.cluster, BillingMode="PAY_PER_REQUEST", KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}], Tags=[{"Key": TAG, "Value": scene.cluster}])
    assert "other keys" in scene.set_up()[f"DynamoDB::Table {scene.cluster}"].detail


def test_a_table_of_the_first_layout_gets_what_it_lacks_and_keeps_its_records(scene: Scene) -> None:
    dynamo = scene.client("dynamodb")
    left = json.loads(TABLE_1.read_text())
    dynamo.create_table(**left["table"] | {"TableName": scene.cluster, "Tags": [{"Key": TAG, "Value": scene.cluster}]})
    for item in left["items"]:
        dynamo.put_item(TableName=scene.cluster, Item=item)
    store = DynamoStore(dynamo, scene.cluster)
    with pytest.raises(ConfigError, match="nommerd aws setup"):
        store.endings("default", LONG_AGO, 10)

    (table,) = (one for one in plan_here(scene.account(), scene.settings).resources if one.type == "AWS::DynamoDB::Table")
    done = Tables().ensure(scene.account(), table)
    assert (done.status, "index ended" in done.detail) == ("changed", True), done
    assert Tables().ensure(scene.account(), table).status == "exists"

    assert {job.id.upper() for job in store.list(JobQuery()).jobs} == {state.value for state in JobState}
    assert all(store.get(Key("default", state.lower())).state is state for state in JobState)
    failed = JobQuery(labels={"show": "one"}, states=frozenset({JobState.ERROR}))
    assert [job.id for job in store.list(failed).jobs] == ["error"]
    assert {job.id for job in store.due_for_sweep(Sweep.CLAIMED, 9e9, 10)} == {"downloading", "encoding", "uploading"}
    assert [job.id for job in store.webhooks_due(9e9, 10)] == ["finished"]
    assert (store.get_recipe("r" * 64), [worker.name for worker in store.workers()], store.leader().token) == ("{}", ["w1"], 1)
    assert store.endings("default", LONG_AGO, 10) == []  # those of before are in no such index
    store.update(Key("default", "pending"), cancel(utcnow()))
    assert [ending.state for ending in store.endings("default", LONG_AGO, 10)] == [JobState.CANCELLED]
    store.put_document(Document(kind="preset", scope="default", name="mine", body="{}"), None)
    assert [document.name for document in store.documents("preset", "default")] == ["mine"]
    assert store.delete_finals(utcnow(), 10) == 5


# --- what takes its time, or fails ---------------------------------------------------------------------------------------


def test_it_waits_for_a_table_and_for_the_name_of_a_deleted_queue(scene: Scene, proxy: AwsProxy) -> None:
    def still_creating(call: Call, answer: Answer) -> Answer:
        body = answer.json
        body["Table"]["TableStatus"] = "CREATING"
        return answer.with_json(body)

    proxy.fail("CreateQueue", times=2, status=400, code="AWS.SimpleQueueService.QueueDeletedRecently")
    proxy.alter("DescribeTable", still_creating, times=3, when=lambda call: proxy.count("CreateTable") == 1)
    said: list[str] = []
    mine = scene.account(proxy.url)
    mine.say = said.append
    done = by_name(set_up(mine, scene.settings))
    assert statuses(done) == {"made", "skipped"}
    assert [line.split(" (")[0] for line in said] == [
        f"waiting: the queue {scene.cluster}-jobs-dead, deleted a moment ago, can be made again",
        f"waiting: the table {scene.cluster} is ready"]
    order = [call.action for call in proxy.calls]
    assert order.index("UpdateTimeToLive") > order.index("CreateTable") + 3


def test_waiting_ends_and_says_to_run_it_again(scene: Scene) -> None:
    clock = iter(range(0, 10_000, 100))
    impatient = scene.account()
    impatient.clock = lambda: float(next(clock))
    with pytest.raises(InfrastructureError, match="Run the command again"):
        impatient.wait("something", lambda: None, 250.0)


@pytest.mark.parametrize(("status", "code", "kind", "ours"), [
    (503, "ServiceUnavailable", InfrastructureError, "node.aws_unavailable"),
    (400, "InvalidClientTokenId", ConfigError, "config.aws"),
    (403, "AccessDenied", ConfigError, "config.aws_permission"),
    (400, "LimitExceeded", ConfigError, "config.aws_refused")])
def test_faults_of_aws_say_who_must_act(scene: Scene, proxy: AwsProxy, status: int, code: str, kind: type[Exception],
                                         ours: str) -> None:
    proxy.fail("CreateRole", times=float("inf"), status=status, code=code, message="Because.")
    with pytest.raises(kind) as raised:
        scene.set_up(proxy.url)
    assert raised.value.code == ours  # type: ignore[attr-defined]
    assert SECRET_KEY not in str(raised.value)


# --- the operator's buckets ----------------------------------------------------------------------------------------------

THEIRS = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 7}}
OLD_FORM = {"ID": "old", "Status": "Enabled", "Prefix": "old/", "Expiration": {"Days": 7}}
DOES_IT = {"ID": "own", "Status": "Enabled", "Filter": {"Prefix": ""},
           "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 9}}


def rules(scene: Scene) -> list[dict[str, Any]]:
    return list(scene.client("s3").get_bucket_lifecycle_configuration(Bucket=scene.outbox)["Rules"])


def put_rules(scene: Scene, *wanted: dict[str, Any]) -> None:
    scene.client("s3").put_bucket_lifecycle_configuration(Bucket=scene.outbox, LifecycleConfiguration={"Rules": list(wanted)})


def the_rule(outcomes: dict[str, Outcome]) -> Outcome:
    return next(one for one in outcomes.values() if one.type == "lifecycle rule")


def test_a_bucket_of_the_operators_gets_a_rule_only_when_asked_and_keeps_its_own(scene: Scene) -> None:
    put_rules(scene, THEIRS)
    told = the_rule(scene.set_up())
    assert (told.status, "--buckets" in told.detail) == ("skipped", True)
    assert [rule["ID"] for rule in rules(scene)] == ["theirs"]
    assert the_rule(scene.set_up(buckets=True)).status == "made"
    assert the_rule(scene.set_up(buckets=True)).status == "exists"
    assert rules(scene)[0] == THEIRS
    assert rules(scene)[1] == {"ID": "nommerd-abandoned-uploads-web", "Status": "Enabled", "Filter": {"Prefix": "web/"},
                               "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    assert the_rule(scene.tear_down()).status == "removed"
    assert rules(scene) == [THEIRS]


def test_the_last_rule_goes_with_ours(scene: Scene) -> None:
    scene.set_up(buckets=True)
    scene.tear_down()
    with pytest.raises(scene.client("s3").exceptions.ClientError, match="NoSuchLifecycleConfiguration"):
        rules(scene)


def test_rules_of_the_older_form_get_one_of_that_form_beside_them(scene: Scene) -> None:
    """S3 refuses a mixture of `Prefix` and `Filter`; the emulator does not."""
    put_rules(scene, OLD_FORM)
    with AwsProxy() as proxy:
        assert the_rule(scene.set_up(proxy.url, buckets=True)).status == "made"
        (put,) = [call for call in proxy.calls if call.method == "PUT" and call.resource == scene.outbox
                  and "lifecycle" in call.path]
    assert b"<Filter>" not in put.body
    assert put.body.count(b"<Prefix>") == 2


def test_a_rule_of_the_operators_that_does_it_is_enough(scene: Scene) -> None:
    put_rules(scene, DOES_IT)
    assert the_rule(scene.set_up(buckets=True)).status == "exists"
    assert rules(scene) == [DOES_IT]


# --- teardown ----------------------------------------------------------------------------------------------------------


def run_instance(scene: Scene, **tags: str) -> str:
    marked = [{"Key": key.replace("__", ":"), "Value": value} for key, value in tags.items()]
    made = scene.client("ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, InstanceType="t3.micro",
                                             TagSpecifications=[{"ResourceType": "instance", "Tags": marked}])
    return str(made["Instances"][0]["InstanceId"])


def state(scene: Scene, instance: str) -> str:
    found = scene.client("ec2").describe_instances(InstanceIds=[instance])
    return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])


def test_teardown_removes_what_was_made_and_nothing_else_and_may_run_again(scene: Scene) -> None:
    scene.set_up(buckets=True)
    s3 = scene.client("s3")
    for body in (b"1", b"2", b"3"):
        s3.put_object(Bucket=scene.config_bucket, Key="nommerd/x.json", Body=body)
    s3.delete_object(Bucket=scene.config_bucket, Key="nommerd/x.json")
    s3.create_multipart_upload(Bucket=scene.config_bucket, Key="nommerd/y.json")
    s3.put_object(Bucket=scene.outbox, Key="web/film.mp4", Body=b"media")
    node = run_instance(scene, **{TAG: scene.cluster, LAUNCH_TAG: "token"})
    feeder = run_instance(scene, **{TAG: scene.cluster})
    stranger = run_instance(scene, **{TAG: "other", LAUNCH_TAG: "token"})
    done = scene.run("teardown", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["resources"]
    assert {one["status"] for one in told} == {"removed"}
    assert told[0] == {"type": "node", "name": node, "status": "removed", "detail": ""}
    assert [state(scene, one) for one in (node, feeder, stranger)] == ["terminated", "running", "running"]
    assert s3.get_object(Bucket=scene.outbox, Key="web/film.mp4")["Body"].read() == b"media"
    assert statuses(scene.tear_down()) == {"absent"}
    assert statuses(scene.set_up(buckets=True)) == {"made"}


def test_what_somebody_else_hung_on_ours_is_left_and_told(scene: Scene) -> None:
    scene.set_up()
    iam = scene.client("iam")
    iam.create_user(UserName=scene.cluster)
    iam.attach_user_policy(UserName=scene.cluster, PolicyArn=scene.policy("feeder"))
    left = scene.tear_down()[f"IAM::ManagedPolicy nommerd-{scene.cluster}-feeder"]
    assert (left.status, f"user {scene.cluster}" in left.detail) == ("left", True)
    iam.detach_user_policy(UserName=scene.cluster, PolicyArn=scene.policy("feeder"))
    assert scene.tear_down()[left.type.removeprefix("AWS::") + " " + left.name].status == "removed"


def test_what_a_stack_made_is_left_to_the_stack(scene: Scene) -> None:
    scene.set_up()
    sqs = scene.client("sqs")
    sqs.tag_queue(QueueUrl=scene.queue("changes"), Tags={"aws:cloudformation:stack-name": "media"})
    left = scene.tear_down()[f"SQS::Queue {scene.cluster}-changes"]
    assert (left.status, left.detail) == ("left", "CloudFormation made it: delete the stack media.")


def test_a_group_that_nodes_still_hold_is_waited_for(scene: Scene, proxy: AwsProxy) -> None:
    scene.set_up()
    proxy.fail("DeleteSecurityGroup", times=3, status=400, code="DependencyViolation")
    done = by_name(tear_down(scene.account(proxy.url), scene.settings))
    assert done[f"EC2::SecurityGroup nommerd-{scene.cluster}-node"].status == "removed"
    assert proxy.count("DeleteSecurityGroup") == 4


