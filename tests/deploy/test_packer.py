"""The image's template by the real Packer: as it is written, and a whole build.

The build's EC2 is the emulator; the machine that it starts is a root with an SSH server, reached through the template's
variables for tunnels. What cloud-init does on such a machine, taking the key from its user-data, the test does.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml

from nommerd import __version__
from nommerd.imaging import TEMPLATE, recipe, variable_sets
from tests.aws_proxy import AwsProxy
from tests.deploy.root import CHECKOUT, Root
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, Emulator
from tests.rig import free_port

BASES, ARCHES = ("debian-12", "debian-13", "ubuntu-24.04"), ("arm64", "x86_64")
DEBIAN, NEWEST = "136693071363", "debian-12-amd64-20260102-1"
SEALED = ("/tmp/nommerd-image", "/home/admin/.ssh/authorized_keys", "/home/admin/.bash_history",
          "/etc/ssh/ssh_host_ed25519_key")


@pytest.fixture(scope="module", autouse=True)
def packer() -> None:
    if shutil.which("packer") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no packer")


def nommerd(*arguments: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(CHECKOUT), **env}
    return subprocess.run([sys.executable, "-P", "-m", "nommerd", *arguments], env=given, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=timeout)


def test_packer_takes_the_template_with_every_set_of_variables_and_as_it_is_written() -> None:
    ended = nommerd("ami", "check", "--json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    what = [one["what"] for one in json.loads(ended.stdout)["checked"]]
    assert {f"{base} on {arch}" for base in BASES for arch in ARCHES} == {one for one in what if " on " in one}
    assert "format of ami/" in what


def test_a_fault_that_only_packer_knows_of_is_told(tmp_path: Path) -> None:
    ended = nommerd("ami", "check", "--base", "debian-12", "--var", "volume_gib=much")
    assert ended.returncode == 1
    assert "volume_gib" in ended.stderr
    copy = tmp_path / "nommerd"
    shutil.copytree(CHECKOUT / "nommerd", copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "deploy", copy / "deploy")
    template = copy / "deploy" / "ami" / TEMPLATE
    template.write_text(template.read_text().replace("ami_regions ", "ami_regoins "))
    ended = nommerd("ami", "check", "--base", "debian-12", "--arch", "arm64", "--json", PYTHONPATH=str(tmp_path))
    assert ended.returncode == 1, ended.stderr
    found = {one["what"]: one for one in json.loads(ended.stdout)["checked"]}
    assert "ami_regoins" in found["debian-12 on arm64"]["fault"]
    assert "format of ami/" in found


def test_what_only_a_new_packer_knows_stands_in_a_folder_beside_the_template() -> None:
    assert "required_plugins" not in (recipe() / TEMPLATE).read_text()
    beside = (recipe() / "plugins" / "plugins.pkr.hcl").read_text()
    assert "required_plugins" in beside
    assert 'source  = "github.com/hashicorp/amazon"' in beside


def test_each_set_names_its_own_base_and_architecture() -> None:
    for (base, arch), path in variable_sets().items():
        said = dict(line.replace('"', "").split(" = ", 1) for line in path.read_text().splitlines())
        said = {name.strip(): value for name, value in said.items()}
        number = base.rpartition("-")[2]
        assert (said["base"], said["architecture"]) == (base, arch)
        assert f"-{number}-{'amd64' if arch == 'x86_64' else 'arm64'}-" in said["source_image"]
        assert said["instance_type"].startswith("t4g." if arch == "arm64" else "t3.")
        assert said["source_owner"] == {"debian": "136693071363", "ubuntu": "099720109477"}[base.partition("-")[0]]


# --- a build -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(base: Path, tmp_path: Path) -> Iterator[Root]:
    """A minimal Debian, without anything of ours; nothing in it will listen at a port of the shipped configuration."""
    with closing(Root([base], tmp_path / "machine")) as root:
        yield root


class FirstBoot:
    """Takes the key from the user-data of machines that start, as cloud-init does on them, until it is stopped."""

    def __init__(self, ec2: Any, root: Root) -> None:
        self.told: dict[str, str] = {}  # instance -> user-data
        self._ec2, self._root, self._over = ec2, root, Event()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(20)

    def _serve(self) -> None:
        while not self._over.wait(0.2):
            for reservation in self._ec2.describe_instances()["Reservations"]:
                for instance in reservation["Instances"]:
                    if instance["InstanceId"] not in self.told:
                        self._boot(instance["InstanceId"])

    def _boot(self, instance: str) -> None:
        given = self._ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")["UserData"]["Value"]
        self.told[instance] = base64.b64decode(given).decode()
        keys = "\n".join(yaml.safe_load(self.told[instance])["ssh_authorized_keys"]) + "\n"
        self._root.run("install", "-o", "admin", "-m", "600", "/dev/stdin", "/home/admin/.ssh/authorized_keys", input=keys)


def with_ssh(root: Root) -> int:
    """Make a machine of it as a distribution's image on EC2 is: a user with a key and sudo. The port of its SSH server."""
    # its own copy of the downloaded packages: sealing empties the folder, and other roots use it
    root.shell("mkdir /root/debs; cp /var/cache/apt/archives/*.deb /root/debs/ || :; umount /var/cache/apt/archives; "
               "mkdir -p /var/cache/apt/archives/partial; mv /root/debs/* /var/cache/apt/archives/ || :")
    root.shell("export DEBIAN_FRONTEND=noninteractive; apt-get update -qq; "
               "apt-get install -y -qq --no-install-recommends openssh-server sudo; useradd -m -s /bin/bash admin; "
               "install -d -o admin -m 700 /home/admin/.ssh; mkdir -p /run/sshd; "
               "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; echo secret > /home/admin/.bash_history")
    root.run("install", "-m", "440", "/dev/stdin", "/etc/sudoers.d/admin",
             input="admin ALL=(ALL) NOPASSWD: ALL\nDefaults:admin !env_reset\n")
    port = free_port()
    passed = " ".join(f"{name}={value}" for name, value in root.env().items() if name not in ("HOME", "PATH"))
    root.start("/usr/sbin/sshd", "-D", "-e", "-p", str(port), "-o", "ListenAddress=127.0.0.1", "-o", f"SetEnv={passed}",
               log=Path(root.layers[0]).parent / "sshd.log")
    return port


def published(folder: Path) -> Path:
    """Images as their publishers have them, as the emulator reads them: an older and the newest of Debian's, one of another
    architecture, and one with the right name by somebody else."""
    def image(number: int, name: str, architecture: str, owner: str, day: int) -> dict[str, Any]:
        return {"ami_id": f"ami-{number:017x}", "name": name, "architecture": architecture, "owner_id": owner, "public": True,
                "creation_date": f"2026-01-{day:02}T00:00:00.000Z", "root_device_type": "ebs", "root_device_name": "/dev/xvda",
                "virtualization_type": "hvm", "description": name}

    images = [image(1, "debian-12-amd64-20260101-1", "x86_64", DEBIAN, 1), image(2, NEWEST, "x86_64", DEBIAN, 2),
              image(3, "debian-12-arm64-20260103-1", "arm64", DEBIAN, 3),
              image(4, "debian-12-amd64-20260104-1", "x86_64", "666666666666", 4)]
    file = folder / "images.json"
    file.write_text(json.dumps(images))
    return file


def left_over(ec2: Any) -> dict[str, int]:
    """What a build may leave behind that costs or lets somebody in."""
    every = [one for reservation in ec2.describe_instances()["Reservations"] for one in reservation["Instances"]]
    running = [one for one in every if one["State"]["Name"] != "terminated"]
    groups = [g for g in ec2.describe_security_groups()["SecurityGroups"] if g["GroupName"] != "default"]
    return {"instances": len(running), "keys": len(ec2.describe_key_pairs()["KeyPairs"]), "groups": len(groups),
            "images": len(ec2.describe_images(Owners=["self"])["Images"])}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_build_makes_an_image_that_works_and_leaves_nothing_else(
        machine: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_AMIS_PATH", str(published(tmp_path)))
    emulator = Emulator()
    ec2 = emulator.client("ec2")
    first = FirstBoot(ec2, machine)
    try:
        with AwsProxy(emulator.url) as aws:
            _builds(machine, tmp_path, ec2, aws, first)
    finally:
        first.stop()
        emulator.stop()
    holds_as_an_image(machine)


def _builds(root: Root, folder: Path, ec2: Any, aws: AwsProxy, first: FirstBoot) -> None:
    port = with_ssh(root)
    variables = {"region": REGION, "ec2_endpoint": aws.url, "ssh_host": "127.0.0.1", "ssh_port": str(port)}
    env = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_POLL_DELAY_SECONDS": "1"}
    given = [f"--var={name}={value}" for name, value in variables.items()]

    wheel = folder / "nommerd-0.0.9-py3-none-any.whl"
    wheel.write_bytes(b"half of a wheel")
    broken = nommerd("ami", "build", *given, f"--source={wheel}", timeout=600, **env)
    assert broken.returncode == 1, broken.stderr[-4000:]
    assert f"/tmp/nommerd-image/{wheel.name}" in broken.stderr, broken.stderr
    assert "provision.sh: " in broken.stderr
    assert broken.stderr.rstrip().splitlines()[-1].startswith("nommerd: node.packer: ")
    assert left_over(ec2) == {"instances": 0, "keys": 0, "groups": 0, "images": 0}

    built = nommerd("ami", "build", *given, "--json", timeout=600, **env)
    assert built.returncode == 0, built.stderr[-6000:]
    said = json.loads(built.stdout)
    assert (said["base"], said["arch"], said["version"]) == ("debian-12", "x86_64", __version__)
    image = ec2.describe_images(ImageIds=[said["images"][REGION]])["Images"][0]
    assert image["Name"].startswith(f"nommerd-{__version__}-debian-12-x86_64-")
    assert {"nommerd:version": __version__, "nommerd:base": "debian-12", "nommerd:made-of": NEWEST}.items() <= {
        tag["Key"]: tag["Value"] for tag in image["Tags"]}.items()
    assert left_over(ec2) == {"instances": 0, "keys": 0, "groups": 0, "images": 1}
    assert all("PRIVATE KEY" not in text for text in first.told.values())
    assert SECRET_KEY not in built.stderr + broken.stderr
    asked = {f"ec2:{call.action}" for call in aws.calls}
    assert asked - permissions() == set(), "docs/image.md lists what a build must be allowed to"
    assert {"ec2:RunInstances", "ec2:CreateImage"} <= asked


def permissions() -> set[str]:
    """What the page says a build needs."""
    return set(re.findall(r'"(ec2:\w+)"', (CHECKOUT / "docs" / "image.md").read_text(encoding="utf-8")))


def holds_as_an_image(root: Root) -> None:
    """What every machine from this image begins with."""
    assert root.run("nommerd", "--version").stdout == f"nommerd {__version__}\n"
    manifest = json.loads((root.path / "etc/nommerd/manifest.json").read_text())
    assert (manifest["nommerd"], manifest["roles"], manifest["ffmpeg_from"]) == (__version__, [], "distribution")
    assert [path for path in SEALED if root.run("test", "-e", path, check=False).returncode == 0] == []
    assert (root.path / "etc/machine-id").read_text() == ""
    assert root.run("sh", "-c", "ls /etc/supervisor/conf.d /var/lib/nommerd").stdout.split() == [
        "/etc/supervisor/conf.d:", "/var/lib/nommerd:"]
    assert root.run("sh", "-c", "pgrep -u nommerd; pgrep supervisord; :").stdout == ""
