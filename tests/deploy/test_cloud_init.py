"""User-data, applied by the real cloud-init: a feeder's makes a feeder of the image, and what that feeder tells its nodes
makes a worker of it. AWS is the emulator; a machine's metadata service is where its environment says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd import __version__
from nommerd.feederdata import render_feeder
from nommerd.fleet.distribution import Pin
from nommerd.fleet.userdata import render
from tests.cloud import Cloud
from tests.deploy.conftest import PROVISION
from tests.deploy.machine import Machine
from tests.deploy.root import Root, ports
from tests.ec2_proxy import Ec2Proxy
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY
from tests.imds import Imds
from tests.media import clip
from tests.rig import CANARY, wait_until

IMAGE = "ami-0123456789abcdef0"
IDLE_SECONDS = 20  # more than a daemon takes to count as RUNNING
STAGES = ("init --local", "init", "modules --mode config", "modules --mode final")
# what a cloud's image has and a minimal root lacks: a disk, an SSH server, locales; and the network is not cloud-init's here
OTHERWISE = """\
datasource_list: [NoCloud]
network: {config: disabled}
growpart: {mode: "off"}
resize_rootfs: false
ssh_genkeytypes: [ed25519]
ssh_deletekeys: false
locale: "off"
"""
PIPELINE = """\
kind: pipeline
name: mine
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, ultrafast], [c:a, aac], [f, mp4]]}
  - upload
"""


def nodes_user_data() -> str:
    pin = Pin("s3://example-config/nommerd/east/" + "0" * 64 + ".json", "3sL4kqtJlcpXroDTDmJ", "0" * 64)
    return render(pin, region=REGION, cluster="east", version=__version__, endpoint_url="https://vpce.example")


def write_config(folder: Path, more: str = "") -> Path:
    """A feeder's configuration with a pipeline of its own."""
    (folder / "pipelines").mkdir(parents=True)
    (folder / "pipelines" / "mine.yaml").write_text(PIPELINE)
    config = folder / "nommerd.yaml"
    config.write_text(f"paths: {{pipelines: [pipelines]}}\n{more}")
    return config


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    return {"node": nodes_user_data(), "feeder": render_feeder(write_config(tmp_path / "config"))}


@pytest.mark.parametrize("role", ["node", "feeder"])
def test_cloud_init_finds_nothing_wrong_with_user_data(role: str, texts: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no cloud-init")
    file = tmp_path / "user-data"
    file.write_text(texts[role])
    told = subprocess.run(["cloud-init", "schema", "--config-file", str(file)], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout.startswith("Valid cloud-config")) == (0, True), told.stdout + told.stderr
    assert "deprecat" not in told.stdout
    unknown = set(yaml.safe_load(texts[role])) - known_keys()
    assert not unknown, "the schema lets unknown keys pass, and cloud-init ignores them"


@pytest.mark.parametrize("role", ["node", "feeder"])
def test_shellcheck_finds_nothing_in_the_script_of_user_data(role: str, texts: dict[str, str], tmp_path: Path) -> None:
    assert shutil.which("shellcheck"), "install shellcheck"
    files = {file["path"]: file["content"] for file in yaml.safe_load(texts[role])["write_files"]}
    (tmp_path / "start").write_text(files["/etc/nommerd/start"])
    done = subprocess.run(["shellcheck", str(tmp_path / "start")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def known_keys() -> set[str]:
    """The keys that may stand at the top of a cloud-config, by the installed cloud-init's own schema."""
    (path,) = Path("/usr/lib/python3/dist-packages/cloudinit/config/schemas").glob("schema-cloud-config-v1.json")
    parts = json.loads(path.read_text())["$defs"]
    modules = [part for name, part in parts.items() if name.startswith(("cc_", "base_config"))]
    found = {key for part in modules for key in part.get("properties", {})}
    assert {"users", "bootcmd", "packages"} <= found
    return found


class Instance(Machine):
    """One whose supervisor is not the test's to start."""

    def __init__(self, root: Root) -> None:
        self.root = root


def start(root: Root, instance: str, user_data: str, imds: Imds) -> Machine:
    """Switch on a machine that is an instance with this user-data: cloud-init as its units run it, stage by stage."""
    seed = root.path / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True, exist_ok=True)
    (seed / "meta-data").write_text(f"instance-id: {instance}\nlocal-hostname: {instance}\n")
    (seed / "user-data").write_text(user_data)
    (root.path / "etc/cloud/cloud.cfg.d/99-test.cfg").write_text(OTHERWISE)
    (root.path / "etc/ssh").mkdir(exist_ok=True)
    (root.path / "etc/ssh/ssh_host_ed25519_key").touch()
    (root.path / "etc/default/supervisor").write_text("".join(f"export {name}={value}\n" for name, value in imds.env.items()))
    if (root.path / "etc/init.d/supervisor").exists():  # it boots by itself, and earlier than the last stage
        root.run("service", "supervisor", "start")
    for stage in STAGES:
        # its own host name, too: cloud-init sets it
        done = root.run("unshare", "--uts", "cloud-init", *stage.split(), check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    log = (root.path / "var/log/cloud-init.log").read_text()
    assert [line for line in log.splitlines() if "[WARNING]" in line or "[ERROR]" in line] == []
    assert json.loads((root.path / "run/cloud-init/result.json").read_text())["v1"]["errors"] == []
    return Instance(root)


@pytest.fixture(scope="module")
def image(provisioned: Root, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The image as a build leaves it, switched off. The packages of the machine below it are what it would get anyway."""
    with ports(), closing(Root.over(provisioned, tmp_path_factory.mktemp("image"))) as root:
        root.shell("rm -rf /etc/nommerd /etc/supervisor/conf.d/nommerd-* /var/lib/nommerd /var/log/nommerd /srv/media")
        root.run(*PROVISION, "--image")
        install_cloud_init(root)
        root.run("bash", "/root/nommerd/deploy/ami/seal.sh", "/root/nommerd")
    return root


def install_cloud_init(root: Root) -> None:
    root.shell("apt-get -qq update; apt-get -qq install -y --no-install-recommends cloud-init",
               env={"DEBIAN_FRONTEND": "noninteractive"})


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[tuple[Cloud, Ec2Proxy]]:
    """An account that `nommerd aws setup` has been through; the feeder's file is its config.yaml."""
    with Ec2Proxy() as proxy, Cloud(tmp_path / "cloud", url=proxy.url) as cloud:
        fleet = {"enabled": True, "image_id": IMAGE, "instance_types": ["c7i.xlarge"], "zones": [f"{REGION}a"], "max_nodes": 1,
                 "interval_seconds": 2}
        cloud.config = write_config(tmp_path / "operator", f"""\
cluster: {cloud.cluster}
store: {cloud.store}
bus: {cloud.bus}
aws: {{region: {REGION}, endpoint_url: "{cloud.url}", config_bucket: {cloud.config_bucket}}}
storage: {{s3_read: [{cloud.inbox}], s3_write: [{cloud.outbox}]}}
net: {{allow_networks: [127.0.0.1/32]}}
worker: {{idle_seconds: {IDLE_SECONDS}, heartbeat_seconds: 1}}
fleet: {json.dumps(fleet)}
""")
        cloud.set_up()
        yield cloud, proxy


def submit(feeder: Machine, cloud: Cloud, source: str, name: str) -> str:
    return str(feeder.call("POST", "/v1/jobs", {"source": source, "dest": cloud.dest(name), "pipeline": "mine"})["id"])


def instance_states(cloud: Cloud, proxy: Ec2Proxy) -> dict[str, str]:
    nodes = proxy.nodes(cloud.cluster, "pending", "running", "shutting-down", "terminated")
    return {one["InstanceId"]: one["State"]["Name"] for one in nodes}


@pytest.mark.timeout(400)
def test_from_an_empty_account_to_an_encoded_file_by_user_data_alone(image: Root, cloud: tuple[Cloud, Ec2Proxy],
                                                                     tmp_path: Path) -> None:
    town, proxy = cloud
    told = town.nommerd("ami", "user-data")
    assert told.returncode == 0, told.stderr
    with ports(), ExitStack() as stack:
        feeder_imds = stack.enter_context(Imds())
        feeder_root = stack.enter_context(closing(Root.over(image, tmp_path / "feeder")))
        feeder = start(feeder_root, feeder_imds.instance_id, told.stdout, feeder_imds)
        feeder.wait_running("nommerd-feeder")
        assert feeder.call("GET", "/v1/pipelines/mine")["name"] == "mine"

        source = town.put_source(clip(seconds=2, size="320x180"))
        first = submit(feeder, town, source, "first.mp4")
        node = wait_until(lambda: proxy.nodes(town.cluster), 30, lambda: feeder.log("feeder"))[0]["InstanceId"]
        imds = stack.enter_context(Imds(instance_id=node))
        node_home = tmp_path / "node"
        with closing(Root.over(image, node_home)) as root:
            worker = start(root, node, town.user_data(node), imds)
            done = wait_job(feeder, first, worker)
            assert {(one["worker"], one["node"]) for one in done["attempts"]} == {(node, node)}
            assert town.body(town.dest("first.mp4"))[4:8] == b"ftyp"
            assert root.run("stat", "-c", "%U %a", "/etc/nommerd/boot.yaml").stdout.split() == ["nommerd", "600"]
            assert root.shell("ps -eo user=,args= | grep '[n]ommerd worker --boot'").stdout.split()[0] == "nommerd"
            assert "NOPASSWD: /usr/sbin/shutdown -h now" in root.run("sudo", "-l", "-U", "nommerd").stdout
            no_secrets(town, feeder_root, root, told.stdout, town.user_data(node))
        # the power fails; after the boot it works again, though cloud-init has nothing left to do
        with closing(Root([node_home / "top", *image.layers], tmp_path / "again")) as root:
            worker = start(root, node, town.user_data(node), imds)
            wait_job(feeder, submit(feeder, town, source, "second.mp4"), worker)
            worker.wait_running("nommerd-worker")
            with urllib.request.urlopen("http://127.0.0.1:8002/readyz", timeout=10) as answer:
                assert answer.status == 200
            # and when it has been idle it ends the machine, once
            wait_until(lambda: instance_states(town, proxy).get(node) in ("shutting-down", "terminated"), IDLE_SECONDS + 30,
                       lambda: worker.log("worker"))
            wait_until(lambda: worker.states()["nommerd-worker"] == "EXITED", 20, lambda: str(worker.states()))
            assert set(instance_states(town, proxy)) == {node}, "no other was started"
            no_secrets(town, feeder_root, root)


def wait_job(feeder: Machine, id: str, worker: Machine) -> dict[str, Any]:
    """The finished job."""
    def finished() -> dict[str, Any] | None:
        job = feeder.job(id)
        assert job["state"] not in {"ERROR", "ABANDONED", "CANCELLED"}, job
        return job if job["state"] == "FINISHED" else None
    return wait_until(finished, 90, lambda: f"{feeder.job(id)}\n{worker.states()}\n{worker.log('worker')}")


def no_secrets(town: Cloud, feeder: Root, node: Root, *user_data: str) -> None:
    """None in user-data, in a log, in what cloud-init keeps, or in the arguments of a process."""
    own = [(feeder.path / f"var/lib/nommerd/{name}").read_text().strip() for name in ("token", "keys", "webhook-secret")]
    secrets = [ACCESS_KEY, SECRET_KEY, CANARY, *(word for text in own for word in text.split() if len(word) > 12)]
    assert len(secrets) >= 6
    for root in (feeder, node):
        kept = [path.read_text(errors="replace") for folder in ("var/log", "var/lib/cloud")
                for path in (root.path / folder).rglob("*") if path.is_file() and not path.is_symlink()]
        arguments = root.run("ps", "-eo", "args=").stdout
        for secret in secrets:
            assert not any(secret in text for text in (*user_data, *kept, arguments)), f"{secret[:4]}…"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plain_debian_that_knows_nothing_of_nommerd_becomes_a_feeder_too(base: Path, tmp_path: Path) -> None:
    with ports(), Imds() as imds, closing(Root([base], tmp_path / "plain")) as root:
        install_cloud_init(root)
        root.shell("apt-get -qq install -y --no-install-recommends sudo", env={"DEBIAN_FRONTEND": "noninteractive"})
        # in place of the package index, which has no version that is not published yet
        root.checkout()
        shutil.copytree(root.path / "root/nommerd", tmp_path / "tree")
        argv = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path / "wheels"), str(tmp_path / "tree")]
        subprocess.run(argv, check=True, timeout=120, stdin=subprocess.DEVNULL, capture_output=True)
        shutil.copytree(tmp_path / "wheels", root.path / "srv/wheels")
        (root.path / "etc/pip.conf").write_text("[global]\nfind-links = /srv/wheels\n")
        feeder = start(root, imds.instance_id, render_feeder(write_config(tmp_path / "config")), imds)
        feeder.wait_running("nommerd-feeder", "nommerd-feeder-health")
        assert feeder.call("GET", "/v1/pipelines/mine")["name"] == "mine"
        assert root.run("stat", "-c", "%U:%G %a", "/etc/nommerd/nommerd.yaml").stdout.strip() == "root:nommerd 640"
        assert root.run("stat", "-c", "%U:%G %a", "/var/lib/nommerd").stdout.strip() == "nommerd:nommerd 700"
