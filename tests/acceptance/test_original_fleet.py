"""The original system's fleet, row by row (see test_original.py): a real feeder starts nodes in an emulator of EC2 that holds
EC2's rules; what would run on a node is started here, from the user-data that EC2 was given."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd.fleet.policy import nodes_to_start
from nommerd.store import open_store
from tests.cloud import Cloud
from tests.ec2_proxy import Ec2Proxy
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY
from tests.imds import Imds
from tests.media import clip
from tests.rig import wait_until

IMAGE = "ami-0123456789abcdef0"
OPERATORS_OWN = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"}  # a node has its role
TABLE: dict[tuple[int, int, int, int], dict[str, int]] = {  # (jobs per node, overflow, maximum, nodes) -> jobs -> new nodes
    (2, 2, 3, 0): {"0": 0, "1-3": 1, "4-5": 2, "6-50": 3}, (2, 2, 3, 1): {"0-4": 0, "5-7": 1, "8-50": 2},
    (2, 2, 3, 2): {"0-6": 0, "7-50": 1}, (2, 2, 3, 3): {"0-50": 0}, (2, 2, 3, 4): {"0-50": 0},
    (2, 2, 10, 0): {"1": 1, "19": 9, "20-99": 10}, (2, 2, 10, 1): {"23-99": 9}, (2, 2, 10, 9): {"0-20": 0, "21-99": 1},
    (3, 2, 10, 0): {"1-5": 1, "6-8": 2, "9-11": 3}, (3, 2, 10, 1): {"0-5": 0, "6-10": 1, "11-13": 2},
    (3, 2, 10, 2): {"0-8": 0, "9-13": 1, "14-16": 2},
    (1, 0, 3, 0): {"1": 1, "2": 2, "3": 3}, (1, 0, 3, 1): {"1": 0, "2": 1, "3-9": 2}, (1, 0, 3, 2): {"2": 0, "3-9": 1},
}


@pytest.mark.parametrize("case", TABLE)
def test_rows_82_to_90__how_many_nodes_to_start(case: tuple[int, int, int, int]) -> None:
    per_node, overflow, maximum, nodes = case
    for jobs, new in TABLE[case].items():
        first, _, last = jobs.partition("-")
        for count in range(int(first), int(last or first) + 1):
            assert nodes_to_start(count, nodes, per_node, overflow, maximum) == new, (case, count)


def test_row_91__no_jobs_per_node_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "nommerd.yaml"
    config.write_text("fleet: {jobs_per_node: 0}\n")
    done = subprocess.run([sys.executable, "-m", "nommerd", "config", "check", "-c", str(config)], timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 2
    assert "nommerd.yaml:1" in done.stderr
    assert "fleet.jobs_per_node" in done.stderr


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cloud, Ec2Proxy]]:
    """A feeder that starts nodes, and three jobs that wait; what would run on the nodes is started by the tests."""
    with ExitStack() as stack:
        proxy = stack.enter_context(Ec2Proxy())
        root = tmp_path_factory.mktemp("fleet")
        other = stack.enter_context(Cloud(root, url=proxy.url, env={
            "NOMMERD_FLEET__ENABLED": "true", "NOMMERD_FLEET__IMAGE_ID": IMAGE, "NOMMERD_FLEET__KEY_NAME": "ops",
            "NOMMERD_FLEET__INSTANCE_TYPES": '["c7i.xlarge", "c6i.xlarge"]',
            "NOMMERD_FLEET__ZONES": f'["{REGION}a", "{REGION}b"]',
            "NOMMERD_FLEET__INTERVAL_SECONDS": "2"}))
        other.config.write_text(other.config.read_text().replace("aws: {", f"aws: {{config_bucket: {other.config_bucket}, "))
        other.clients("ec2").create_key_pair(KeyName="ops") if not _has_key(other) else None
        other.set_up()
        source = other.put_source(clip(seconds=2, size="320x180"))
        other.start_feeder()
        for number in range(3):
            other.submit_uris(source, other.dest(f"{number}.mp4"), pipeline="fast")
        wait_until(lambda: proxy.nodes(other.cluster), 30, lambda: other.tail("feeder"))
        yield other, proxy
        if ids := [node["InstanceId"] for node in proxy.nodes(other.cluster)]:
            proxy.ec2.terminate_instances(InstanceIds=ids)


def _has_key(cloud: Cloud) -> bool:
    return any(pair["KeyName"] == "ops" for pair in cloud.clients("ec2").describe_key_pairs()["KeyPairs"])


Fleet = tuple[Cloud, Ec2Proxy]


def test_rows_8_to_11_13_14_17_19_72_93__nodes_are_started_as_configured_when_jobs_wait(fleet: Fleet) -> None:
    cloud, proxy = fleet
    (node,) = proxy.nodes(cloud.cluster)  # three jobs, two at once on a node, two more are not worth another
    assert (node["ImageId"], node["KeyName"], node["InstanceType"]) == (IMAGE, "ops", "c7i.xlarge")
    assert node["Placement"]["AvailabilityZone"] in (f"{REGION}a", f"{REGION}b")
    assert [group["GroupName"] for group in node["SecurityGroups"]] != ["default"]
    (asked,) = proxy.asked("CreateFleet")
    assert asked["Type"] == "instant"
    assert asked["TargetCapacitySpecification"]["TotalTargetCapacity"] == 1


def test_row_94__an_unknown_image_is_an_error_in_the_log_and_nothing_is_started(tmp_path: Path) -> None:
    with Ec2Proxy() as proxy, Cloud(tmp_path, url=proxy.url, env={
            "NOMMERD_FLEET__ENABLED": "true", "NOMMERD_FLEET__IMAGE_ID": "ami-00000000000000000",
            "NOMMERD_FLEET__INSTANCE_TYPES": '["c7i.xlarge"]', "NOMMERD_FLEET__INTERVAL_SECONDS": "1"}) as other:
        proxy.unknown_images.add("ami-00000000000000000")
        other.config.write_text(other.config.read_text().replace("aws: {", f"aws: {{config_bucket: {other.config_bucket}, "))
        other.set_up()
        source = other.put_source(clip(seconds=2, size="320x180"))
        other.start_feeder()
        other.submit_uris(source, other.dest("x.mp4"), pipeline="fast")
        told = wait_until(lambda: other.events("feeder", "fleet.not_launched"), 30, lambda: other.tail("feeder"))
        assert told[0]["setting"] == "fleet.image_id"
        assert proxy.nodes(other.cluster) == []


def test_rows_3_20_21_33_96_to_100_105_to_108__a_node_starts_from_what_it_is_told_works_and_ends_itself_when_idle(
        fleet: Fleet, tmp_path: Path) -> None:
    cloud, proxy = fleet
    node = proxy.nodes(cloud.cluster)[0]["InstanceId"]
    user_data = cloud.user_data(node)
    own = [word for name in ("token", "keys", "webhook-secret") for word in (cloud.data / name).read_text().split()]
    for secret in (ACCESS_KEY, SECRET_KEY, *own):
        assert secret not in user_data
    assert user_data.startswith("#cloud-config\n")
    document = yaml.safe_load(user_data)
    boot = next(file for file in document["write_files"] if "boot" in file["path"])
    pin = yaml.safe_load(boot["content"])
    assert cloud.config_bucket in str(pin)
    assert re.search(r"nommerd\[ffmpeg\]==\d", user_data)
    assert any("\n[program:nommerd-worker]\n" in file["content"] for file in document["write_files"])
    (tmp_path / "boot.yaml").write_text(boot["content"].replace(pin["data"], str(tmp_path / "data")))
    with Imds(instance_id=node) as imds:  # the node's own start, as its user-data has it
        env = {**cloud.env, "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.url, "XDG_DATA_HOME": str(tmp_path),
               "NOMMERD_WORKER__HEALTH_PORT": "null", "NOMMERD_WORKER__IDLE_SECONDS": "3",
               "NOMMERD_WORKER__HEARTBEAT_SECONDS": "1"}
        env = {name: value for name, value in env.items() if name not in OPERATORS_OWN and "FLEET" not in name}
        log = tmp_path / "node.log"
        with log.open("wb") as out:
            process = subprocess.Popen([*cloud.command(), "worker", "--boot", str(tmp_path / "boot.yaml")], env=env,
                                       stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=tmp_path)
        try:
            _a_nodes_life(cloud, proxy, node, process, log)
        finally:
            process.kill()
            process.wait()


def _a_nodes_life(cloud: Cloud, proxy: Ec2Proxy, node: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """It reports, does the jobs that wait, and ends itself when it has been idle."""
    store = open_store(cloud.store, cloud.data, cloud.clients)
    try:
        reports: Callable[[], list[Any]] = lambda: [worker for worker in store.workers() if worker.node == node]  # noqa: E731
        wait_until(reports, 30, lambda: log.read_text()[-3000:])
        for job in cloud.jobs():
            assert {attempt["node"] for attempt in cloud.wait_finished(job["id"], 90)["attempts"]} == {node}
        wait_until(lambda: process.poll() is not None, 60, lambda: log.read_text()[-3000:])
        assert process.returncode == 0, log.read_text()[-3000:]
        assert all(worker.state == "TERMINATED" for worker in reports())
        states = {one["InstanceId"]: one["State"]["Name"] for one in proxy.nodes(cloud.cluster, "shutting-down", "terminated")}
        assert states.get(node) in ("shutting-down", "terminated"), states
        assert proxy.nodes(cloud.cluster) == []  # and no other was started
    finally:
        store.close()
