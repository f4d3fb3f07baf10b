"""Real workers that think they run on EC2: booted from what a real feeder published, told of notices, ending themselves.

Records and queue are one SQLite file here; buckets and instances are the emulator's; the metadata service is our own, and
gives the role's credentials too: nodes get none from their environment.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nommerd.bus import open_bus
from nommerd.fleet.distribution import Pin
from nommerd.fleet.userdata import render
from nommerd.store import open_store
from nommerd.store.base import WorkerRecord
from tests import media
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, emulator
from tests.imds import Imds, Mood
from tests.rig import Daemon, Rig, invariants, wait_until

SLOW = """\
kind: pipeline
name: slow
stages:
  - fetch
  - ffmpeg: {pass: 1, input_options: [[re, null]], options: [[c:v, libx264], [preset, ultrafast], [f, mp4]]}
  - upload
"""
OPERATORS_KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true"}
SECRETS = (ACCESS_KEY, SECRET_KEY)


class Town(Rig):
    """A feeder that publishes, and nodes that boot from that. `imds` is the metadata service of its one instance."""

    def __init__(self, root: Path, imds: Imds) -> None:
        for folder in ("pipelines", "presets"):
            (root / folder).mkdir(parents=True)
        (root / "pipelines" / "slow.yaml").write_text(SLOW)
        self.imds = imds
        self.cluster = f"t{uuid4().hex[:10]}"
        self.bucket = f"{self.cluster}-config"
        database = f"sqlite:///{root}/data/nommerd.db"
        super().__init__(root, env=OPERATORS_KEYS, config=f"""\
cluster: {self.cluster}
store: "{database}"
bus: "{database}"
aws: {{region: {REGION}, endpoint_url: "{emulator().url}", config_bucket: {self.bucket}}}
""")
        self.source = media.copy(media.clip(seconds=6, size="160x120"), self.media / "in.mp4")
        self.nodes = 0

    @property
    def node_id(self) -> str:
        return self.imds.instance_id

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        lines = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return [found for line in lines if line.startswith("{") and (found := json.loads(line))["event"] == event]

    def pin(self) -> Pin:
        """What the feeder published, by its log."""
        said = self.events("feeder", "config.published")[-1]
        digest = said["key"].rpartition("/")[2].removesuffix(".json")
        return Pin(f"s3://{said['bucket']}/{said['key']}", said["version"], digest)

    def boot_file(self, **changes: Any) -> Path:
        """As the node's user-data has it, but for the data directory."""
        text = render(self.pin(), region=REGION, cluster=self.cluster, version="0", endpoint_url=emulator().url)
        assert not any(secret in text for secret in (*SECRETS, (self.data / "keys").read_text().strip(), self.token))
        told: dict[str, Any] = {"cluster": self.cluster, "region": REGION, "endpoint_url": emulator().url,
                                "config": {"uri": self.pin().uri, "version": self.pin().version, "sha256": self.pin().sha256}}
        path = self.root / "boot.yaml"
        path.write_text(json.dumps(told | {"data": str(self.root / "node-data")} | changes))
        return path

    def start_node(self, *, idle_seconds: float = 600, boot: Path | None = None, **env: str) -> Daemon:
        """`nommerd worker --boot`, as a process whose only credentials are its role's."""
        self.nodes += 1
        own = {name: value for name, value in self.env.items() if name not in OPERATORS_KEYS}
        own |= {**self.imds.env, "NOMMERD_WORKER__IDLE_SECONDS": str(idle_seconds), "NOMMERD_WORKER__HEALTH_PORT": "null",
                "NOMMERD_WORKER__HEARTBEAT_SECONDS": "1", "AWS_CONFIG_FILE": "/dev/null",
                "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", **env}
        argv = [sys.executable, "-m", "nommerd", "worker", "--boot", str(boot or self.boot_file())]
        daemon = Daemon(f"node-{self.nodes}", argv, own, self.logs / f"node-{self.nodes}.log")
        self.daemons.append(daemon)
        return daemon

    def workers(self) -> dict[str, WorkerRecord]:
        store = open_store(f"sqlite:///{self.data}/nommerd.db", self.data)
        try:
            return {record.name: record for record in store.workers()}
        finally:
            store.close()

    def visible(self) -> int:
        bus = open_bus(f"sqlite:///{self.data}/nommerd.db", self.data)
        try:
            return bus.jobs.depth().visible
        finally:
            bus.close()

    def up(self, name: str) -> WorkerRecord:
        return wait_until(lambda: self.workers().get(name), 40, lambda: self.tail(f"node-{self.nodes}"))

    def instance_state(self) -> str:
        found = emulator().client("ec2").describe_instances(InstanceIds=[self.node_id])
        return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])

    def encoding(self) -> str:
        """A job that ffmpeg works on."""
        job = self.submit(self.source, self.media / f"{uuid4().hex}.mp4", pipeline="slow")
        self.wait_state(job, {"ENCODING"}, 40)
        wait_until(self.processes_anywhere, 20, "an ffmpeg at work")
        return job

    def processes_anywhere(self) -> list[int]:
        """Pids of the ffmpegs in a node's workspaces."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                argv = entry.read_bytes()
            except OSError:
                continue
            if b"ffmpeg" in argv.split(b"\0")[0] and str(self.root / "node-data").encode() in argv:
                found.append(int(entry.parent.name))
        return found

    def gone(self, node: Daemon, seconds: float = 20) -> None:
        wait_until(lambda: not node.alive, seconds, lambda: f"the worker's end: {self.tail(node.name)}")
        assert node.process.returncode == 0, self.tail(node.name)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    ec2 = emulator().client("ec2")
    instance = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    with Imds(instance) as imds, Town(tmp_path, imds) as town:
        town.start_feeder()
        yield town
        no_secrets(town)


def no_secrets(town: Town) -> None:
    key = (town.data / "keys").read_text().strip()
    for log in town.logs.iterdir():
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in (*SECRETS, key, "canary-7f3a91")), log


@pytest.mark.parametrize("notice", ["spot", "rebalance"])
def test_at_a_notice_a_node_gives_its_work_back_within_ten_seconds_uncharged(notice: str, town: Town) -> None:
    node = town.start_node()
    record = town.up(town.node_id)
    assert (record.node, record.state, record.slots) == (town.node_id, "ACTIVE", 2)
    job = town.encoding()
    begun = time.monotonic()
    town.imds.interrupt() if notice == "spot" else town.imds.recommend()
    wait_until(lambda: town.job(job)["state"] == "PENDING", 15, lambda: town.tail(node.name))
    assert time.monotonic() - begun < 10
    town.gone(node)
    wait_until(lambda: not town.processes_anywhere(), 5, "ffmpeg gone")
    assert town.visible() == 1, "its message is back at once"
    assert town.workers()[town.node_id].state == "TERMINATED"
    assert town.instance_state() == ("running" if notice == "spot" else "terminated"), "AWS ends an interrupted one itself"

    if notice == "rebalance":
        again = town.start_node()  # whoever starts it anew: it begins nothing
        town.gone(again)
        assert town.visible() == 1
        return
    town.start_worker("w2")
    done = town.wait_finished(job, 60)
    assert [(one["worker"], one["node"], one["why"]) for one in done["attempts"]] == [
        (town.node_id, town.node_id, "shutting down"), ("w2", "local-dev", "finished")]
    invariants(town, outputs=[], secrets=SECRETS)


def test_an_idle_node_reports_its_end_and_terminates_its_own_instance_and_no_other(town: Town) -> None:
    ec2 = emulator().client("ec2")
    other = ec2.run_instances(ImageId="ami-12c6146b", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    job = town.submit(town.source, town.media / "a.m4a", preset="audio-aac")
    node = town.start_node(idle_seconds=2, NOMMERD_WORKER__SLOTS="1")
    done = town.wait_finished(job, 60)
    assert {one["worker"] for one in done["attempts"]} == {town.node_id}
    town.gone(node)
    assert town.workers()[town.node_id].state == "TERMINATED"
    assert town.instance_state() == "terminated"
    found = ec2.describe_instances(InstanceIds=[other])["Reservations"][0]["Instances"][0]["State"]["Name"]
    assert found == "running"
    assert [event["why"] for event in town.events(node.name, "worker.leaving")] == ["idle"]


@pytest.mark.slow
def test_jobs_that_come_as_a_node_ends_are_done_by_it_or_wait_in_the_queue(town: Town) -> None:
    node = town.start_node(idle_seconds=1, NOMMERD_WORKER__SLOTS="1")
    town.up(town.node_id)
    jobs: list[str] = []
    while node.alive and len(jobs) < 15:  # each comes a little later after the work before it: one of them meets the end
        until = time.monotonic() + 1.6 + 0.1 * len(jobs)
        wait_until(lambda until=until: time.monotonic() > until or town.events(node.name, "worker.leaving"), 10, "a pause")
        jobs.append(town.submit(town.source, town.media / f"{len(jobs)}.m4a", preset="audio-aac"))
        wait_until(lambda job=jobs[-1]: not node.alive or town.job(job)["state"] == "FINISHED", 30,
                   lambda: town.tail(node.name))
    town.gone(node)
    assert town.instance_state() == "terminated"
    left = [job for job in map(town.job, jobs) if job["state"] != "FINISHED"]
    assert len(left) <= 1, "only the last one can have come too late"
    assert all(job["state"] == "PENDING" and job["owner"] is None and not job["attempts"] for job in left)
    assert town.visible() == len(left), "in nobody's hand"
    town.start_worker("w2")
    for job in jobs:
        assert len(town.wait_finished(job, 60)["attempts"]) == 1


def test_a_node_whose_end_ec2_refuses_works_on(town: Town) -> None:
    town.imds.items["instance-id"] = "i-0123456789abcdef0"  # which the emulator does not know
    node = town.start_node(idle_seconds=1)
    town.up("i-0123456789abcdef0")
    wait_until(lambda: town.events(node.name, "worker.resumed"), 30, lambda: town.tail(node.name))
    (refusal,) = town.events(node.name, "node.not_ended")
    assert (refusal["level"], refusal["again_seconds"]) == ("error", 30.0)
    assert "InvalidInstanceID.NotFound" in refusal["why"]
    town.wait_finished(town.submit(town.source, town.media / "a.m4a", preset="audio-aac"), 60)
    assert town.events(node.name, "node.shut_down") == [], "this machine is not Amazon's"
    assert node.stop() == 0


@pytest.mark.parametrize("mood", [Mood.VERSION_1_ONLY, Mood.SLOW], ids=lambda mood: mood.value)
def test_a_metadata_service_that_is_none_changes_nothing(mood: Mood, town: Town) -> None:
    town.imds.interrupt()  # version 1 would tell it
    town.imds.mood = mood
    town.env |= town.imds.env
    worker = town.start("worker", "--name", "w1", name="w1")
    town.wait_finished(town.submit(town.source, town.media / "a.m4a", preset="audio-aac"), 60)
    assert town.workers()["w1"].node not in (town.node_id, "local-dev")
    assert len(town.events("w1", "node.none")) == 1
    assert {method for method, _ in town.imds.requests} == {"PUT"}
    assert worker.alive and worker.stop() == 0
    assert town.instance_state() == "running"


def test_a_local_worker_asks_nobody(town: Town) -> None:
    town.env |= town.imds.env
    worker = town.start("worker", "--local", name="w1")
    (record,) = wait_until(lambda: list(town.workers().values()), 30, lambda: town.tail("w1"))
    assert record.node == "local-dev"
    assert town.imds.requests == []
    assert worker.stop() == 0


def test_a_worker_whose_records_are_on_the_instance_itself_never_ends_it(town: Town) -> None:
    town.env |= town.imds.env | {"NOMMERD_WORKER__IDLE_SECONDS": "0.1"}
    worker = town.start("worker", name="w1")
    town.up(town.node_id)
    (found,) = town.events("w1", "node.found")
    assert found["ends_itself"] is False
    town.wait_finished(town.submit(town.source, town.media / "a.m4a", preset="audio-aac"), 60)
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0
    assert town.instance_state() == "running"


def _tampered(town: Town) -> Path:
    pin = town.pin()
    key = pin.uri.partition(f"{town.bucket}/")[2]
    emulator().client("s3").put_object(Bucket=town.bucket, Key=key, Body=b'{"schema": 1, "files": {"nommerd.yaml": "{}"}}')
    newest = emulator().client("s3").head_object(Bucket=town.bucket, Key=key)["VersionId"]
    return town.boot_file(config={"uri": pin.uri, "version": newest, "sha256": pin.sha256})


def _unknown_key(town: Town) -> Path:
    return town.boot_file(colour="red")


def _missing(town: Town) -> Path:
    return town.root / "none.yaml"


def _gone(town: Town) -> Path:
    return town.boot_file(config={"uri": f"s3://{town.bucket}/none", "version": "null", "sha256": "0" * 64})


def _other_cluster(town: Town) -> Path:
    return town.boot_file(cluster="elsewhere")


REFUSED: list[tuple[Callable[[Town], Path], list[str]]] = [
    (_tampered, ["config.bad_bundle", "SHA-256"]), (_unknown_key, ["config.unknown_key", "boot.yaml:1:", "colour"]),
    (_missing, ["config.missing_file", "none.yaml", "--boot"]), (_gone, ["config.bucket", "NoSuchKey"]),
    (_other_cluster, ["config.bad_bundle", "elsewhere"])]


def test_a_node_refuses_what_it_was_not_told_to_run_with_exit_code_2(town: Town) -> None:
    for boot, words in REFUSED:
        node = town.start_node(boot=boot(town))
        wait_until(lambda node=node: not node.alive, 30, lambda: town.tail(f"node-{town.nodes}"))
        assert node.process.returncode == 2, town.tail(node.name)
        assert [word for word in words if word not in town.tail(node.name)] == [], town.tail(node.name)
    assert town.workers() == {}


def test_a_feeder_that_starts_again_publishes_nothing_twice_and_a_change_once(town: Town) -> None:
    first = town.pin()
    assert town.feeder is not None
    town.feeder.stop()
    town.start_feeder()
    assert len(town.events("feeder", "config.published")) == 1
    town.feeder.stop()
    town.env["NOMMERD_WORKER__MAX_ATTEMPTS"] = "2"
    town.start_feeder()
    assert len(town.events("feeder", "config.published")) == 2
    assert town.pin().sha256 != first.sha256
