"""Real feeders that start and end nodes: records in DynamoDB, queues in SQS, an emulator of EC2 behind a proxy that holds
EC2's rules. What the nodes' workers do is told by heartbeats that are written here."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd.job import Job, new_id, utcnow
from nommerd.store import open_store
from nommerd.store.base import Store, WorkerRecord
from tests.cloud import SECRETS, Cloud, no_secrets
from tests.ec2_proxy import Ec2Proxy, Rule
from tests.media import clip
from tests.rig import wait_until

TYPES = ("c7i.xlarge", "c6i.xlarge")
ZONES = ("us-east-1a", "us-east-1b")


class Town(Cloud):
    """A cloud with a fleet, set up; its proxy is `proxy`."""

    def __init__(self, root: Path, proxy: Ec2Proxy, **fleet: Any) -> None:
        self.proxy = proxy
        settings = {"enabled": True, "image_id": "ami-0123456789abcdef0", "instance_types": TYPES, "zones": ZONES,
                    "interval_seconds": 0.5, **fleet}
        super().__init__(root, url=proxy.url, config=f"fleet: {json.dumps(settings)}\n",
                         env={"NOMMERD_WORKER__HEARTBEAT_SECONDS": "0.5"})
        self.env["NOMMERD_AWS__CONFIG_BUCKET"] = self.config_bucket
        self.set_up()

    def records(self) -> Store:
        return open_store(self.store, self.data, self.clients)

    def jobs_wait(self, count: int) -> None:
        """Jobs that were there before any feeder."""
        store = self.records()
        for _ in range(count):
            store.create(Job(id=new_id(), pipeline="fast", recipe="r" * 64, source="s3://b/in.mov", dest="s3://b/out.mp4",
                             created=utcnow(), updated=utcnow(), write_id=new_id()))

    def ids(self) -> list[str]:
        return sorted(one["InstanceId"] for one in self.proxy.nodes(self.cluster))

    def cycles(self, count: int = 2) -> None:
        """Until the fleet has looked that often again."""
        before = len(self.proxy.asked("DescribeInstances"))
        wait_until(lambda: len(self.proxy.asked("DescribeInstances")) >= before + count, 30, "further cycles")

    def events(self, event: str, log: str = "feeder") -> list[dict[str, Any]]:
        lines = (self.logs / f"{log}.log").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in found if one["event"] == event]


@pytest.fixture
def proxy() -> Iterator[Ec2Proxy]:
    with Ec2Proxy() as proxy:
        yield proxy


def test_twelve_jobs_start_three_nodes_once_though_the_feeder_is_killed_in_mid_call(tmp_path: Path, proxy: Ec2Proxy) -> None:
    proxy.rules += [Rule(type=TYPES[0]), Rule(type=TYPES[1], zone=ZONES[0], left=1)]
    with Town(tmp_path, proxy) as town:
        town.jobs_wait(12)
        with proxy.hold("CreateFleet") as hold:
            feeder = town.start_feeder()
            wait_until(hold.applied.is_set, 30, lambda: f"a launch: {town.tail('feeder')}")
            feeder.kill()
        assert len(town.ids()) == 3
        town.start_feeder()
        wait_until(lambda: len(proxy.asked("CreateFleet")) == 2, 30, lambda: f"the same launch: {town.tail('feeder')}")
        town.cycles()
        first, second = proxy.asked("CreateFleet")
        assert first == second
        nodes = proxy.nodes(town.cluster)
        assert sorted((one["InstanceType"], one["Placement"]["AvailabilityZone"]) for one in nodes) == [
            (TYPES[1], ZONES[0]), (TYPES[1], ZONES[1]), (TYPES[1], ZONES[1])]
        assert {one["MetadataOptions"]["HttpTokens"] for one in nodes} == {"required"}
        _check_user_data(town, nodes[0]["InstanceId"])
        no_secrets(town)


def _check_user_data(town: Town, node: str) -> None:
    """It says where the configuration is, by version and checksum, and holds no secret."""
    found = town.proxy.ec2.describe_instance_attribute(InstanceId=node, Attribute="userData")["UserData"]["Value"]
    text = base64.b64decode(found).decode()
    assert not any(secret in text for secret in SECRETS)
    files = {one["path"]: one["content"] for one in yaml.safe_load(text)["write_files"]}
    config = json.loads(files["/etc/nommerd/boot.yaml"])["config"]
    assert config["uri"].startswith(f"s3://{town.config_bucket}/") and len(config["sha256"]) == 64


def test_of_two_feeders_the_other_carries_out_what_the_killed_one_had_decided(tmp_path: Path, proxy: Ec2Proxy) -> None:
    with Town(tmp_path, proxy) as town:
        town.jobs_wait(12)
        with proxy.hold("CreateFleet") as hold:
            feeder = town.start_feeder()
            wait_until(hold.applied.is_set, 30, lambda: f"a launch: {town.tail('feeder')}")
            with town.neighbour() as other:
                other.start_feeder()
                assert len(proxy.asked("CreateFleet")) == 1
                feeder.kill()
                wait_until(lambda: len(proxy.asked("CreateFleet")) == 2, 30, lambda: f"a take-over: {other.tail('feeder')}")
                town.cycles()
                assert len({one["ClientToken"] for one in proxy.asked("CreateFleet")}) == 1
                assert len(town.ids()) == 3


def test_a_job_starts_a_node_within_seconds_and_a_node_that_falls_silent_is_ended_and_replaced(tmp_path: Path,
                                                                                               proxy: Ec2Proxy) -> None:
    with Town(tmp_path, proxy, interval_seconds=60, max_nodes=1, silent_seconds=1.5) as town:
        feeder = town.start_feeder()
        wait_until(lambda: proxy.asked("DescribeInstances"), 30, "the first cycle")
        town.submit_uris(town.put_source(clip(seconds=1, size="320x180")), town.dest("a.mp4"), pipeline="fast")
        node, = wait_until(town.ids, 15, lambda: f"a node: {town.tail('feeder')}")
        feeder.stop()
        town.records().put_worker(WorkerRecord(name=node, node=node, state="ACTIVE", slots=2, active=(), version="1",
                                               encoders=(), reported=utcnow()))
        town.env["NOMMERD_FLEET__INTERVAL_SECONDS"] = "0.5"
        town.start_feeder()
        wait_until(lambda: town.ids() not in ([], [node]), 30, lambda: f"another node: {town.tail('feeder')}")
        assert [one["node"] for one in town.events("fleet.terminated")] == [node]
        assert len(town.ids()) == 1 and node not in town.ids()
