"""Watches: the command, the queue and the bucket's notification in the emulator, and what the feeder makes of events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nommerd.api.jobs import Jobs
from nommerd.api.recipes import Recipes
from nommerd.aws.clients import Clients
from nommerd.aws.policies import Place, feeder_policy, node_policy
from nommerd.bus.memory import MemoryBus
from nommerd.catalog import Catalog
from nommerd.cli.app import run
from nommerd.config import Settings, load
from nommerd.job import Job
from nommerd.net.egress import Egress
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.sending import Sending
from nommerd.storage import open_registry
from nommerd.store.base import JobQuery, StoreUnavailable
from nommerd.store.memory import MemoryStore
from nommerd.watching import POLL_SECONDS, Watching
from tests.aws_proxy import AwsProxy, Call
from tests.cloud import Cloud
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, account, emulator
from tests.logged import captured
from tests.media import clip
from tests.rig import wait_until
from tests.unit.aws.test_watch import event, message

ACCOUNT = "123456789012"
NOTIFICATION = "PUT ?notification"
PRESETS = {"small": "params: {width: 320, height: 180}", "broken": "params: {no_such_param: 1}"}


@dataclass
class Scene:
    """Buckets and a configuration of their own; what a feeder would read watches with."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    clock: float = 0.0
    leads: bool = True
    fails: Exception | None = None
    opened: list[Watching] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cluster = f"w{uuid4().hex[:10]}"
        self.inbox, self.outbox, self.own = (f"{self.cluster}-{end}" for end in ("in", "out", "config"))
        self.file = self.root / "nommerd.yaml"
        (self.root / "presets").mkdir()
        self.preset("small")
        self.file.write_text(f"""\
cluster: {self.cluster}
store: memory://
bus: sqs://{self.cluster}
paths: {{presets: [presets], data: data}}
aws: {{region: {REGION}, config_bucket: {self.own}}}
storage: {{s3_read: [{self.inbox}/up, {self.cluster}-gone, {self.outbox}, {self.own}],
           s3_write: ["{self.outbox}", "{self.inbox}", "{self.own}"]}}
""")
        self.monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        self.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        self.reach(emulator().url)
        self.clients = emulator().clients()
        self.sqs, self.s3 = self.clients("sqs"), self.clients("s3")
        for bucket in (self.inbox, self.outbox):
            self.s3.create_bucket(Bucket=bucket)
        self.store = MemoryStore()

    def reach(self, url: str) -> None:
        self.monkeypatch.setenv("NOMMERD_AWS__ENDPOINT_URL", url)

    def preset(self, name: str) -> None:
        text = f"kind: preset\nname: {name}\npipeline: web-mp4\n{PRESETS[name]}\n"
        (self.root / "presets" / f"{name}.yaml").write_text(text)

    # --- the command ---

    def aws(self, *arguments: str) -> tuple[int, str, str]:
        """`nommerd aws watch …`: exit code, stdout, stderr."""
        code = run(["aws", "watch", *arguments, "-c", str(self.file)])
        said = self.capsys.readouterr()
        assert SECRET_KEY not in said.out + said.err
        return code, said.out, said.err

    def watch(self, *more: str, name: str = "films", prefix: str = "up/") -> list[dict[str, str]]:
        """A watch of the inbox; what was done."""
        code, out, err = self.aws(f"s3://{self.inbox}/{prefix}", "-p", "small", "--dest", f"s3://{self.outbox}/web/",
                                  "--name", name, "--json", *more)
        assert code == 0, out + err
        return list(json.loads(out)["resources"])

    def refused(self, *arguments: str) -> str:
        """The code of the refusal."""
        code, out, _ = self.aws(*arguments, "--json")
        assert code != 0
        return str(json.loads(out)["errors"][0]["code"])

    # --- what is there ---

    def queue(self, name: str = "films") -> str:
        return str(self.sqs.get_queue_url(QueueName=f"{self.cluster}-watch-{name}")["QueueUrl"])

    def notifications(self) -> dict[str, Any]:
        found = self.s3.get_bucket_notification_configuration(Bucket=self.inbox)
        return {key: value for key, value in found.items() if key != "ResponseMetadata"}

    def waiting(self, name: str = "films") -> int:
        """Messages on the queue, hidden ones too."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue(name), AttributeNames=names)["Attributes"]
        return sum(int(found[key]) for key in names)

    def send(self, body: str, name: str = "films") -> None:
        self.sqs.send_message(QueueUrl=self.queue(name), MessageBody=body)

    def put(self, key: str, body: bytes = b"media") -> None:
        self.s3.put_object(Bucket=self.inbox, Key=key, Body=body)

    # --- the feeder's part ---

    def watching(self, url: str | None = None) -> Watching:
        settings: Settings = load(self.file, {"NOMMERD_AWS__ENDPOINT_URL": emulator().url})
        settings = settings.model_copy(update={"aws": account(emulator().url)})
        catalog, store = Catalog(settings.paths.pipelines, settings.paths.presets), self.store
        egress = Egress(())
        jobs = Jobs(store=store, sending=Sending(store, MemoryBus()), storage=open_registry(settings, egress, self.clients),
                    recipes=Recipes(store, lambda project: catalog), keyring=Keyring([Secret(new_key())]),
                    check_notify=lambda url: egress.check(url, "webhook"), on_change=lambda job: None)

        def submit(raw: bytes, key: str | None) -> tuple[Job, bool]:
            if self.fails is not None:
                raise self.fails
            return jobs.submit(raw, key)

        made = Watching(Clients(account(url or emulator().url))("sqs"), self.cluster, self.cluster, lambda: catalog, submit,
                        lambda: self.leads, clock=lambda: self.clock)
        self.opened.append(made)
        return made

    def jobs(self) -> list[Job]:
        return list(self.store.list(JobQuery(limit=100)).jobs)

    def wait_settled(self) -> None:
        wait_until(lambda: self.waiting() == 0, 20, lambda: f"{self.waiting()} messages")


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Scene]:
    scene = Scene(tmp_path, monkeypatch, capsys)
    yield scene
    for one in scene.opened:
        one.stop()


@pytest.fixture
def proxy() -> Iterator[AwsProxy]:
    with AwsProxy() as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """What is logged, as a daemon would log it."""
    with captured() as stream:
        yield stream


def logged(log: StringIO, name: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == name]


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_watch_is_a_queue_that_one_bucket_may_send_to_and_a_notification_beside_the_others(scene: Scene) -> None:
    theirs = scene.sqs.create_queue(QueueName=f"{scene.cluster}-theirs")["QueueUrl"]
    arn = scene.sqs.get_queue_attributes(QueueUrl=theirs, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    other = {"Id": "theirs", "QueueArn": arn, "Events": ["s3:ObjectRemoved:*"]}
    scene.s3.put_bucket_notification_configuration(
        Bucket=scene.inbox, NotificationConfiguration={"QueueConfigurations": [other]})
    assert {one["status"] for one in scene.watch("--suffix", ".mov", "--set", "width=640")} == {"made"}
    first, ours = scene.notifications()["QueueConfigurations"]
    assert first["Id"] == "theirs"
    rules = {rule["Name"].lower(): rule["Value"] for rule in ours["Filter"]["Key"]["FilterRules"]}
    assert (rules, ours["Events"]) == ({"prefix": "up/", "suffix": ".mov"}, ["s3:ObjectCreated:*"])
    attributes = scene.sqs.get_queue_attributes(QueueUrl=scene.queue(), AttributeNames=["All"])["Attributes"]
    (statement,) = json.loads(attributes["Policy"])["Statement"]
    assert statement["Condition"]["ArnEquals"] == {"aws:SourceArn": f"arn:aws:s3:::{scene.inbox}"}
    assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": ACCOUNT}
    assert json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"].endswith(f":{scene.cluster}-watches-dead")
    assert {one["status"] for one in scene.watch("--suffix", ".mov", "--set", "width=640")} == {"exists"}
    code, out, _ = scene.aws("--list", "--json")
    assert (code, json.loads(out)) == (0, [{
        "name": "films", "source": f"s3://{scene.inbox}/up/", "suffix": ".mov", "dest": f"s3://{scene.outbox}/web/",
        "preset": "small", "params": {"width": "640"}, "priority": "normal", "overwrite": False}])
    code, out, _ = scene.aws("--remove", "films", "--json")
    assert (code, {one["status"] for one in json.loads(out)["resources"]}) == (0, {"removed"})
    assert [one["Id"] for one in scene.notifications()["QueueConfigurations"]] == ["theirs"]
    assert scene.refused("--remove", "films") == "request.unknown_watch"


def test_the_same_source_again_changes_the_watch(scene: Scene) -> None:
    name = f"s3://{scene.inbox}/up/"
    assert scene.aws(name, "-p", "small", "--dest", f"s3://{scene.outbox}/", "--set", "width=640")[0] == 0
    code, out, _ = scene.aws(name, "-p", "small", "--dest", f"s3://{scene.outbox}/b/", "--priority", "high", "--json")
    assert code == 0
    changed = {one["detail"] for one in json.loads(out)["resources"] if one["status"] == "changed"}
    assert any("the definition" in detail and "params" in detail for detail in changed)
    (one,) = json.loads(scene.aws("--list", "--json")[1])
    assert (one["dest"], one["params"], one["priority"]) == (f"s3://{scene.outbox}/b/", {}, "high")


def test_what_cannot_work_is_refused_before_anything_is_made(scene: Scene, proxy: AwsProxy) -> None:
    scene.reach(proxy.url)
    into = ("-p", "small", "--dest", f"s3://{scene.outbox}/web/")
    up = f"s3://{scene.inbox}/up/"
    refusals = {
        "outside s3_read": (scene.refused(f"s3://{scene.inbox}/", *into), "source.outside_buckets"),
        "half a part of s3_read": (scene.refused(f"s3://{scene.inbox}/up", *into), "source.outside_buckets"),
        "outside s3_write": (scene.refused(up, "-p", "small", "--dest", "s3://elsewhere/"), "dest.outside_buckets"),
        "the configuration's bucket": (scene.refused(f"s3://{scene.own}/", *into), "source.outside_buckets"),
        "outputs there": (scene.refused(up, "-p", "small", "--dest", f"s3://{scene.own}/x/"), "dest.outside_buckets"),
        "a dest that is no folder": (scene.refused(up, *into[:3], f"s3://{scene.outbox}/x"), "dest.not_a_folder"),
        "a loop": (scene.refused(up, "-p", "small", "--dest", f"{up}out/"), "dest.watched"),
        "an unknown preset": (scene.refused(up, "-p", "nope", *into[2:]), "recipe.unknown_preset"),
        "an unknown param": (scene.refused(up, *into, "--set", "nope=1"), "recipe.unknown_param"),
        "a param that is none": (scene.refused(up, *into, "--set", "width=wide"), "recipe.bad_param"),
        "what tags cannot hold": (scene.refused(f"{up}a&b/", *into), "request.does_not_fit"),
        "credentials": (scene.refused(f"s3://KEY:{SECRET_KEY}@{scene.inbox}/up/", *into), "source.bad_uri"),
    }
    assert {what: code for what, (code, _) in refusals.items()} == {what: wanted for what, (_, wanted) in refusals.items()}
    assert scene.aws(up)[0] == scene.aws(up, "-p", "small")[0] == scene.aws()[0] == 2  # no preset; several places; nothing
    assert proxy.calls == []
    assert scene.refused(f"s3://{scene.cluster}-gone/x/", *into) == "source.not_found"
    assert not [call.action for call in proxy.calls if call.action in ("CreateQueue", NOTIFICATION)]


def test_two_receivers_of_the_same_events_are_refused_as_s3_would(scene: Scene) -> None:
    """The emulator takes both."""
    scene.watch()
    assert scene.refused(f"s3://{scene.inbox}/up/2026/", "-p", "small", "--dest", f"s3://{scene.outbox}/") == "source.watched"


def test_watches_that_would_feed_one_another_are_refused(scene: Scene) -> None:
    scene.watch()
    into = ("-p", "small", "--dest", f"s3://{scene.inbox}/up/")
    assert scene.refused(f"s3://{scene.outbox}/web/", *into) == "dest.watched"


def test_a_bucket_of_another_region_is_refused(scene: Scene) -> None:
    bucket = f"{scene.cluster}-gone"
    scene.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    into = ("-p", "small", "--dest", f"s3://{scene.outbox}/")
    assert scene.refused(f"s3://{bucket}/", *into) == "source.refused"


def test_a_bus_that_is_not_sqs_has_no_watches(scene: Scene) -> None:
    scene.monkeypatch.setenv("NOMMERD_BUS", "memory://")
    assert scene.refused("--list") == "config.bus"


def test_it_waits_until_s3_may_send_to_the_queue(scene: Scene, proxy: AwsProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.aws.account.PAUSE_SECONDS", 0.01)
    scene.reach(proxy.url)
    proxy.fail(NOTIFICATION, times=2, status=400, code="InvalidArgument",
               message="Unable to validate the following destination configurations")
    assert {one["status"] for one in scene.watch()} == {"made"}
    puts = [call for call in proxy.calls if call.action == NOTIFICATION]
    assert len(puts) == 3
    assert all(call.headers.get("x-amz-expected-bucket-owner") == ACCOUNT for call in puts)


# --- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "dest"), [
    ("up/film.mov", "web/film.mp4"), ("up/2026/My Film.mov", "web/2026/My Film.mp4"), ("up/ü+1 & 2%.mov", "web/ü+1 & 2%.mp4")])
def test_an_object_that_appears_becomes_a_job(scene: Scene, key: str, dest: str) -> None:
    scene.watch("--set", "width=640", "--priority", "high")
    scene.watching().look()
    scene.put(key)
    (job,) = wait_until(scene.jobs, 20, "a job")
    assert job.source == f"s3://{scene.inbox}/{key}"
    assert job.dest == f"s3://{scene.outbox}/{dest}"
    assert (job.preset, job.params, str(job.priority), job.labels) == ("small", {"width": 640}, "high", {"watch": "films"})
    scene.wait_settled()


def test_an_event_that_comes_twice_makes_one_job_and_another_writing_another(scene: Scene) -> None:
    scene.watch()
    one = message(event("up/film.mov", bucket=scene.inbox, sequencer="0055"))
    for body in (one, one, message(event("up/film.mov", bucket=scene.inbox, sequencer="0056"))):
        scene.send(body)
    watching = scene.watching()
    watching.look()
    scene.wait_settled()
    assert len(scene.jobs()) == 2
    counts = watching.counts["films"]
    assert (counts.jobs, counts.repeated) == (2, 1)


def test_an_event_that_comes_again_after_the_watch_was_changed_makes_no_second_job(scene: Scene) -> None:
    scene.watch()
    one = message(event("up/film.mov", bucket=scene.inbox))
    scene.send(one)
    watching = scene.watching()
    watching.look()
    scene.wait_settled()
    scene.watch("--priority", "low")
    scene.clock += 61
    watching.look()
    scene.send(one)
    scene.wait_settled()
    assert [str(job.priority) for job in scene.jobs()] == ["normal"]


def test_what_is_no_object_to_encode_is_deleted_and_counted(scene: Scene, log: StringIO) -> None:
    scene.watch("--suffix", ".mov")
    test = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": scene.inbox})
    others = [(scene.inbox, "up/"), ("elsewhere", "up/a.mov"), (scene.inbox, "up/a.jpg"), (scene.inbox, "other/a.mov")]
    for body in (test, "junk", "[" * 5000, *(message(event(key, bucket=bucket)) for bucket, key in others)):
        scene.send(body)
    watching = scene.watching()
    watching.look()
    scene.wait_settled()
    assert scene.jobs() == []
    wait_until(lambda: watching.counts["films"].ignored == 8, 5, lambda: str(watching.counts))  # and the emulator's test event
    assert len(logged(log, "watch.unreadable")) == 2


def test_an_event_whose_job_cannot_be_made_is_deleted_logged_and_counted(scene: Scene, log: StringIO) -> None:
    scene.watch()
    scene.s3.put_object(Bucket=scene.outbox, Key="web/film.mp4", Body=b"there already")
    scene.put("up/film.mov")
    watching = scene.watching()
    watching.look()
    scene.wait_settled()
    (line,) = logged(log, "watch.refused")
    assert (line["code"], line["watch"]) == ("dest.exists", "films")
    assert watching.counts["films"].refused == 1
    assert scene.jobs() == []


def test_a_source_that_is_written_again_replaces_its_output_under_overwrite(scene: Scene) -> None:
    scene.watch("--overwrite")
    scene.s3.put_object(Bucket=scene.outbox, Key="web/film.mp4", Body=b"there already")
    scene.watching().look()
    scene.put("up/film.mov")
    (job,) = wait_until(scene.jobs, 20, "a job")
    assert job.overwrite


def test_a_fault_that_may_pass_leaves_the_event_on_the_queue(scene: Scene, log: StringIO) -> None:
    scene.watch()
    scene.fails = StoreUnavailable("Away.")
    scene.put("up/film.mov")
    watching = scene.watching()
    watching.look()
    wait_until(lambda: logged(log, "watch.later"), 20, "a fault told")
    wait_until(lambda: scene.waiting() == 1, 20, "the emulator's test event gone, the film's not")
    assert scene.jobs() == []
    scene.fails = None
    watching.stop()
    receipts = scene.sqs.receive_message(QueueUrl=scene.queue(), VisibilityTimeout=0, WaitTimeSeconds=0)
    assert "Messages" not in receipts  # hidden for the minute that a batch may take; then it comes again
    scene.send(message(event("up/film.mov", bucket=scene.inbox)))  # here at once
    scene.watching().look()
    wait_until(scene.jobs, 20, "a job")


@pytest.mark.parametrize(("code", "kept"), [
    ("dest.forbidden", True), ("source.outside_buckets", True), ("config.bad_value", True), ("node.store_unavailable", True),
    ("dest.exists", False), ("dest.is_source", False), ("request.control_characters", False), ("source.bad_uri", False)])
def test_what_the_operator_can_mend_is_kept_and_what_the_object_cannot_be_is_not(code: str, kept: bool) -> None:
    from nommerd.api.problems import refuse
    from nommerd.watching import _may_pass

    assert _may_pass(refuse(422, "body", code, "x")) is kept
    assert _may_pass(refuse(503, "body", code, "x"))


def test_a_watch_whose_preset_is_missing_here_is_not_read_until_it_is_there(scene: Scene, log: StringIO) -> None:
    scene.watch()
    (scene.root / "presets" / "small.yaml").unlink()
    scene.put("up/film.mov")
    watching = scene.watching()
    for _ in range(3):
        watching.look()
        scene.clock += 61
    assert watching.counts == {}
    (line,) = logged(log, "watch.not_read")  # told once
    assert "recipe.unknown_preset" in line["why"]
    assert scene.waiting() == 2  # S3's test event and the film's: nothing was taken
    scene.preset("small")
    scene.watching().look()
    wait_until(scene.jobs, 20, "a job")


def test_only_the_leader_reads_and_another_goes_on(scene: Scene, proxy: AwsProxy) -> None:
    scene.watch()
    scene.put("up/film.mov")
    scene.leads = False
    watching = scene.watching(proxy.url)
    watching.look()
    assert proxy.calls == []
    scene.leads = True
    watching.look()
    wait_until(scene.jobs, 20, "a job")


def test_new_changed_and_removed_watches_are_found_without_a_restart(scene: Scene) -> None:
    watching = scene.watching()
    watching.look()
    assert watching.counts == {}
    scene.watch()
    watching.look()
    assert watching.counts == {}  # looks once a minute
    scene.clock += 61
    watching.look()
    assert set(watching.counts) == {"films"}
    assert scene.aws("--remove", "films")[0] == 0
    scene.clock += 61
    watching.look()
    assert watching.counts == {}


def test_an_idle_watch_costs_four_requests_a_minute(scene: Scene, proxy: AwsProxy) -> None:
    scene.watch()
    scene.sqs.purge_queue(QueueUrl=scene.queue())
    watching = scene.watching(proxy.url)
    watching.look()
    (poll,) = wait_until(lambda: proxy.asked("ReceiveMessage"), 20, "a poll")
    assert poll.json["WaitTimeSeconds"] == POLL_SECONDS == 20
    assert poll.json["MaxNumberOfMessages"] == 10
    watching.look()
    of_the_queue = [call.action for call in proxy.calls if call.resource.endswith("-watch-films")]
    assert of_the_queue == ["ListQueueTags", "ReceiveMessage"]
    assert proxy.count("ListQueues") == 1


def test_an_outage_of_sqs_is_told_once_and_gone_with_it(scene: Scene, proxy: AwsProxy, log: StringIO) -> None:
    scene.watch()
    proxy.fail("ListQueues", times=float("inf"), status=403, code="AccessDenied", message="no")
    watching = scene.watching(proxy.url)
    for _ in range(3):
        watching.look()
        scene.clock += 61
    assert len(logged(log, "watch.not_read")) == 1
    proxy.clear()
    watching.look()
    assert set(watching.counts) == {"films"}


def test_messages_that_could_not_be_deleted_come_again_and_make_nothing(scene: Scene, proxy: AwsProxy, log: StringIO) -> None:
    scene.watch()
    scene.put("up/film.mov")
    proxy.reset("DeleteMessageBatch", times=4)
    watching = scene.watching(proxy.url)
    watching.look()
    wait_until(scene.jobs, 20, "a job")
    wait_until(lambda: logged(log, "watch.unavailable"), 20, "a fault told")
    assert len(scene.jobs()) == 1


# --- the whole system ----------------------------------------------------------------------------------------------------


def test_uploads_become_outputs_and_every_call_is_one_that_the_policies_allow(tmp_path: Path) -> None:
    """Feeder and worker behind a proxy each: what they call is held against the policies that setup makes."""
    with ExitStack() as stack:
        feeders, workers = stack.enter_context(AwsProxy()), stack.enter_context(AwsProxy())
        cloud = Cloud(tmp_path, url=feeders.url)
        stack.enter_context(cloud)
        cloud.env["NOMMERD_AWS__CONFIG_BUCKET"] = cloud.config_bucket
        cloud.set_up()
        (cloud.root / "presets" / "quick.yaml").write_text("kind: preset\nname: quick\npipeline: fast\n")
        done = cloud.nommerd("aws", "watch", f"s3://{cloud.inbox}/up/", "-p", "quick", "--dest", f"s3://{cloud.outbox}/web/")
        assert done.returncode == 0, done.stderr
        started = len(feeders.calls)
        cloud.start_feeder()
        cloud.env = {**cloud.env, "NOMMERD_AWS__ENDPOINT_URL": workers.url}
        cloud.start_worker("w1")
        for key in ("up/one.mp4", "up/two words.mp4"):
            cloud.put_source(clip(seconds=1, size="320x180"), key)
        jobs = wait_until(lambda: [job for job in cloud.jobs() if job["state"] == "FINISHED"][1:] and cloud.jobs(), 60,
                          lambda: str(cloud.jobs()))
        assert {job["dest"] for job in jobs} == {f"s3://{cloud.outbox}/web/{name}.mp4" for name in ("one", "two words")}
        assert cloud.keys(cloud.outbox) == ["web/one.mp4", "web/two words.mp4"]
        settings = load(cloud.config, {name: text for name, text in cloud.env.items() if name.startswith("NOMMERD_")})
        place = Place("aws", REGION, ACCOUNT)
        assert denied(feeder_policy(settings, place), feeders.calls[started:]) == set()
        assert denied(node_policy(settings, place), workers.calls) == set()
        actions = {call.action for call in workers.calls}
        assert {"ReceiveMessage", "PutItem", "GetObject", "CompleteMultipartUpload"} <= actions
        assert ("s3", f"{cloud.config_bucket}/nommerd/") in {(call.service, call.resource[:len(cloud.config_bucket) + 9])
                                                             for call in feeders.calls if call.action == "PutObject"}


PERMISSIONS = {  # AWS's names of permissions where they are not those of the calls
    "HeadObject": "GetObject", "UploadPart": "PutObject", "CreateMultipartUpload": "PutObject",
    "CompleteMultipartUpload": "PutObject", "ListParts": "ListMultipartUploadParts", "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage", "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    "ListObjectsV2": "ListBucket", "HeadBucket": "ListBucket"}
FREE = frozenset({"GetCallerIdentity"})  # needs no permission


def denied(policy: dict[str, Any], calls: list[Call]) -> set[tuple[str, str]]:
    """The calls that no statement allows, by action and resource. Conditions are not judged."""
    found = set()
    for call in calls:
        action = f"{call.service}:{PERMISSIONS.get(call.action, call.action)}"
        for resource in resources(call):
            if call.action not in FREE and not any(
                    action in one["Action"] and any(fnmatchcase(resource, pattern) for pattern in one["Resource"])
                    for one in policy["Statement"] if one["Effect"] == "Allow"):
                found.add((action, resource))
    return found


def resources(call: Call) -> list[str]:
    if call.service == "s3":
        return [f"arn:aws:s3:::{call.resource}"]
    if call.service == "sqs":
        return [f"arn:aws:sqs:{REGION}:{ACCOUNT}:{call.resource}" if call.resource else "*"]
    if call.service == "dynamodb":
        tables = call.json.get("RequestItems", {}) or [call.resource]
        index = f"/index/{call.json['IndexName']}" if call.json.get("IndexName") else ""
        return [f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}{index}" for table in tables]
    return [call.resource or "*"]
