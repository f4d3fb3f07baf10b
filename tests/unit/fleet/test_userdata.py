"""What a node is told at its birth."""

from __future__ import annotations

import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from nommerd.errors import ConfigError
from nommerd.fleet.cloudconfig import BYTES_MAX
from nommerd.fleet.distribution import Pin
from nommerd.fleet.userdata import render

PIN = Pin("s3://example-config/nommerd/east/" + "0" * 64 + ".json", "3sL4kqtJlcpXroDTDmJ", "0" * 64)
TOP = {"users", "write_files", "runcmd"}  # all of them keys that cloud-init knows


def document(**changes: Any) -> dict[str, Any]:
    given = {"region": "eu-central-1", "cluster": "east", "version": "1.2.3", **changes}
    text = render(PIN, **given)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < BYTES_MAX
    return dict(yaml.safe_load(text))


def written(of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["path"]: file for file in of["write_files"]}


def test_it_is_a_cloud_config_that_writes_the_boot_file_and_starts_the_worker_under_supervisor() -> None:
    told = document(endpoint_url="https://vpce.example")
    assert set(told) == TOP
    files = written(told)
    boot = files["/etc/nommerd/boot.yaml"]
    assert (boot["permissions"], boot["owner"]) == ("0600", "root:root")
    assert yaml.safe_load(boot["content"]) == {
        "cluster": "east", "data": "/var/lib/nommerd", "region": "eu-central-1", "endpoint_url": "https://vpce.example",
        "config": {"uri": PIN.uri, "version": PIN.version, "sha256": PIN.sha256}}
    assert told["runcmd"] == [["/etc/nommerd/start"]]


def test_its_user_may_shut_the_machine_down_and_nothing_else_as_root() -> None:
    default, user = document()["users"]
    assert default == "default", "who enters by key"
    assert user == {"name": "nommerd", "system": True, "homedir": "/var/lib/nommerd", "shell": "/usr/sbin/nologin",
                    "sudo": "ALL=(root) NOPASSWD: /usr/sbin/shutdown -h now"}


def test_the_start_is_a_shell_script_that_pins_the_version(tmp_path: Path) -> None:
    script = written(document(version="7.8.9"))["/etc/nommerd/start"]["content"]
    assert "nommerd[ffmpeg]==7.8.9" in script
    assert "VERSION" not in script
    path = tmp_path / "start"
    path.write_text(script)
    assert subprocess.run(["sh", "-n", str(path)]).returncode == 0


def test_supervisor_starts_the_worker_with_the_boot_file_and_not_again_once_it_ended_itself() -> None:
    parser = RawConfigParser()
    parser.read_string(written(document())["/etc/nommerd/nommerd-worker.conf"]["content"])
    worker = dict(parser["program:nommerd-worker"])
    assert "/opt/nommerd/bin/nommerd worker --boot /etc/nommerd/boot.yaml " in worker["command"]
    assert (worker["autorestart"], worker["exitcodes"], worker["user"]) == ("unexpected", "0,2", "nommerd")


@pytest.mark.parametrize("wrong", [{"version": "1; reboot"}, {"region": "eu\nx"}, {"cluster": "$(id)"},
                                   {"endpoint_url": "https://key:canary@host"}, {"endpoint_url": "https://host/?token=canary"}])
def test_nothing_that_a_shell_could_misread_and_no_credential_gets_in(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        document(**wrong)
    assert "canary" not in str(caught.value)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A machine on which the start script runs: its programs only note that they were called."""
    home = tmp_path / "opt"
    (home / "bin").mkdir(parents=True)
    has_version(tmp_path, "7.8.9")
    (tmp_path / "nommerd.py").rename(tmp_path / "newer.py")
    has_version(tmp_path, "7.8.8")
    # -I, its first argument, is for the real one: here, what it imports lies beside it
    programs = {"opt/bin/python": 'case "$*" in *pip*) [ -e "$here/no-pip" ] || cp "$here/newer.py" "$here/nommerd.py";; '
                                  f'*) shift; PYTHONPATH=$here exec {sys.executable} -P -B "$@";; esac',
                "supervisorctl": '[ -e "$here/asked" ] || { touch "$here/asked"; exit 4; }'}
    programs["apt-get"] = 'case "$*" in *install*) [ ! -e "$here/no-apt" ] && touch "$here/supervisord.conf";; esac'
    programs |= dict.fromkeys(("service", "shutdown", "install", "chown"), ":")
    (tmp_path / "supervisord.conf").touch()
    for name, body in programs.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nhere={tmp_path}\necho "{program.name} $*" >> $here/calls\n{body}\n')
        program.chmod(0o700)
    script = written(document(version="7.8.9"))["/etc/nommerd/start"]["content"]
    script = script.replace("/opt/nommerd", str(home)).replace("/var/lib/nommerd", str(tmp_path / "data"))
    script = script.replace("/usr/sbin/shutdown", str(tmp_path / "shutdown"))
    script = script.replace("/etc/supervisor/supervisord.conf", str(tmp_path / "supervisord.conf"))
    (tmp_path / "start").write_text(script.replace("sleep 10", "sleep 0").replace("sleep 1", "sleep 0"))
    return tmp_path


def has_version(node: Path, version: str) -> None:
    """The image's nommerd is of this version."""
    (node / "nommerd.py").write_text(f"__version__ = {version!r}\n")


def started(node: Path) -> list[str]:
    env = {"PATH": f"{node}:/usr/bin:/bin"}
    subprocess.run(["sh", str(node / "start")], env=env, timeout=30, check=False, capture_output=True)
    return (node / "calls").read_text().splitlines()


def test_an_image_that_has_the_version_starts_at_once(node: Path) -> None:
    has_version(node, "7.8.9")
    calls = started(node)
    assert not any("pip" in call for call in calls)
    assert "7.8.9" in calls[0]
    # one that is booting does not answer at once
    assert calls[-3:] == ["service supervisor start", "supervisorctl update", "supervisorctl update"]


def test_a_data_directory_that_leads_elsewhere_is_nobodys(node: Path) -> None:
    has_version(node, "7.8.9")
    (node / "data").symlink_to("/etc")
    calls = started(node)
    assert calls[-1] == "shutdown -h +1"
    assert not any(call.startswith(("install", "chown", "supervisorctl")) for call in calls)


def test_a_supervisor_that_never_answers_ends_the_node(node: Path) -> None:
    has_version(node, "7.8.9")
    (node / "supervisorctl").write_text("#!/bin/sh\nexit 4\n")
    assert started(node)[-1] == "shutdown -h +1"


def test_another_image_gets_exactly_the_feeders_version_once(node: Path) -> None:
    calls = started(node)
    assert [call for call in calls if "pip" in call] == [
        "python -m pip install --quiet --disable-pip-version-check nommerd[ffmpeg]==7.8.9"]
    assert calls[-1] == "supervisorctl update"
    assert not any("shutdown" in call for call in calls)


def test_an_image_without_supervisor_gets_it_from_the_distribution(node: Path) -> None:
    has_version(node, "7.8.9")
    (node / "supervisord.conf").unlink()
    calls = started(node)
    assert "supervisor" in next(call for call in calls if " install " in call).split()
    assert calls[-1] == "supervisorctl update"


def test_a_node_whose_supervisor_was_not_installed_to_the_end_is_no_node(node: Path) -> None:
    has_version(node, "7.8.9")
    (node / "supervisord.conf").unlink()
    (node / "no-apt").touch()
    (node / "supervisord").touch(0o700)  # unpacked, but not configured
    calls = started(node)
    assert calls[-1] == "shutdown -h +1"
    assert not any(call.startswith("supervisorctl") for call in calls)


def test_a_node_that_cannot_get_it_shuts_itself_down_and_starts_nothing(node: Path) -> None:
    (node / "no-pip").touch()
    calls = started(node)
    assert sum("pip" in call for call in calls) == 5
    assert calls[-1] == "shutdown -h +1"
    assert not any(call.startswith("supervisorctl") for call in calls)
