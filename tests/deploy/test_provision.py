"""provision.sh in a minimal Debian: what it makes, that a second run changes nothing, and that it fails where it must."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.conftest import PROVISION
from tests.deploy.root import CHECKOUT, Root, ports
from tests.rig import wait_until

BOTH = ("--role", "feeder", "--role", "worker")
SCRIPTS = [*sorted((CHECKOUT / "deploy").rglob("*.sh")), CHECKOUT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in(script: Path) -> None:
    assert shutil.which("shellcheck"), "install shellcheck"
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def again(provisioned: Root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Root, str]]:
    """A machine that was provisioned twice, and what the second time told."""
    with ports(), closing(Root.over(provisioned, tmp_path_factory.mktemp("again"))) as root:
        with (root.path / "etc/nommerd/nommerd.yaml").open("a") as config:
            config.write("# mine\n")
        yield root, root.run(*PROVISION, *BOTH, timeout=300).stdout


@pytest.mark.timeout(600)
def test_the_second_run_changes_nothing_and_the_first_left_a_machine_that_is_locked_up(
        again: tuple[Root, str]) -> None:
    machine, second = again
    first = (machine.path / "root/provision.log").read_text()
    assert "self-test: a clip was encoded and verified by the user nommerd" in first
    assert "changed    /etc/nommerd/nommerd.yaml" in first
    assert [line for line in second.splitlines() if line.startswith("changed")] == []
    assert second.rstrip().endswith("0 changes")
    assert (machine.path / "etc/nommerd/nommerd.yaml").read_text().endswith("# mine\n")
    listing = "find /etc /opt /srv /usr/local -newer /root/provision.log -not -path /etc/resolv.conf -type f"  # the root's own
    assert machine.shell(listing).stdout.split() == ["/etc/nommerd/nommerd.yaml"]
    # nobody but nommerd reads its data and settings, and nothing of nommerd runs as root but what starts and watches it
    for denied in (("nobody", "ls", "/var/lib/nommerd"), ("nobody", "cat", "/etc/nommerd/nommerd.yaml"),
                   ("nommerd", "touch", "/opt/nommerd/bin/nommerd")):
        assert machine.run("runuser", "-u", denied[0], "--", *denied[1:], check=False).returncode != 0, denied
    users = machine.shell("ps -eo user=,args= | grep '[/]opt/nommerd'").stdout.splitlines()
    assert {line.split()[0] for line in users if "nommerd.livecheck" not in line} == {"nommerd"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_new_version_leaves_the_one_that_runs_alone_and_going_back_is_the_same_command(again: tuple[Root, str]) -> None:
    machine, _ = again
    before = machine.run("readlink", "/opt/nommerd").stdout
    init = machine.path / "root/nommerd/nommerd/__init__.py"
    text = init.read_text()
    init.write_text(text.replace('__version__ = "0.1.0"', '__version__ = "0.1.1"'))
    assert init.read_text() != text
    conf = machine.path / "root/nommerd/conf/supervisor/worker.conf"
    kept_conf = conf.read_text()
    conf.write_text(kept_conf.replace("startsecs=15", "startsecs=14"))
    worker, health = (machine.run("supervisorctl", "pid", f"nommerd-{name}").stdout for name in ("worker", "worker-health"))
    machine.run("chown", "games:games", "/srv/media")
    done = machine.run(*PROVISION, "--role=feeder", "--role=worker")
    assert "nommerd-worker still goes by its file of before: supervisorctl update nommerd-worker" in done.stdout
    assert machine.run("supervisorctl", "pid", "nommerd-worker").stdout == worker, "its operator restarts it"
    assert "/srv/media: the user nommerd may not read and write there" in done.stdout
    assert machine.run("stat", "-c", "%U", "/srv/media").stdout.strip() == "games"
    assert "nommerd-feeder still runs the version before: supervisorctl restart nommerd-feeder" in done.stdout
    after = machine.run("readlink", "/opt/nommerd").stdout
    assert after != before
    watcher = machine.run("supervisorctl", "pid", "nommerd-worker-health").stdout
    assert watcher != health
    assert machine.run("readlink", f"/proc/{watcher.strip()}/cwd").stdout == after, "it is of the new version"
    assert "0.1.1" in machine.run("nommerd", "--version").stdout
    pid = machine.run("supervisorctl", "pid", "nommerd-feeder").stdout.strip()
    assert before.strip() in (machine.path / f"proc/{pid}/cmdline").read_text()
    machine.run("supervisorctl", "restart", "nommerd-feeder")
    pid = machine.run("supervisorctl", "pid", "nommerd-feeder").stdout.strip()
    assert after.strip() in (machine.path / f"proc/{pid}/cmdline").read_text()
    init.write_text(text)
    conf.write_text(kept_conf)
    # of those that stay behind, the one that was in use goes on, not the one that was made last or only by half; one that
    # still runs; and what is somebody's own
    machine.shell("cd /opt; mkdir nommerd-aaaaaaaaaaaa nommerd-bbbbbbbbbbbb nommerd-cccccccccccc nommerd-mystagesmine;"
                  " touch nommerd-bbbbbbbbbbbb/.complete; cp /bin/sleep nommerd-cccccccccccc/")
    running = machine.start("/opt/nommerd-cccccccccccc/sleep", "600")
    # what an operator has stopped stays so; what others could read is closed again
    machine.run("supervisorctl", "stop", "nommerd-worker")
    (machine.path / "etc/nommerd/nommerd.yaml").chmod(0o644)
    last = machine.run(*PROVISION, *BOTH).stdout
    running.kill()
    running.wait()
    kept = set(machine.shell("ls -d /opt/nommerd-*").stdout.split())
    assert kept == {before.strip(), after.strip(), "/opt/nommerd-cccccccccccc", "/opt/nommerd-mystagesmine"}
    assert machine.run("readlink", "/opt/nommerd").stdout == before
    assert "nommerd-worker was stopped, and stays so" in last
    assert "changed    who may read /etc/nommerd/nommerd.yaml" in last
    assert "STOPPED" in machine.run("supervisorctl", "status", "nommerd-worker", check=False).stdout


def test_the_manifest_says_what_is_installed(ready: Root) -> None:
    told = json.loads((ready.path / "etc/nommerd/manifest.json").read_text())
    assert told["roles"] == ["feeder", "worker"]
    assert told["nommerd"] in ready.run("nommerd", "--version").stdout
    assert told["ffmpeg"] == ready.run("ffmpeg", "-version").stdout.partition("\n")[0]
    pinned = dict(line.split("==") for line in (CHECKOUT / "deploy/ami/constraints.txt").read_text().split() if "==" in line)
    unpinned = ("nommerd", "pip", "setuptools")
    installed = {name: version for name, version in told["python_packages"].items() if name not in unpinned}
    assert installed.items() <= pinned.items(), "every package is pinned"


@pytest.mark.timeout(300)
def test_a_version_that_cannot_encode_does_not_become_the_machines(ready: Root) -> None:
    init = ready.path / "root/nommerd/nommerd/__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9.'))
    now = ready.run("readlink", "/opt/nommerd").stdout
    broken = ready.path / "usr/bin/ffmpeg"
    broken.rename(broken.with_name("whole-ffmpeg"))
    # it answers, so that only an encode shows what is wrong with it
    asked = "|".join(f"*-{name}*" for name in ("version", "encoders", "formats", "filters", "protocols"))
    broken.write_text(f'#!/bin/sh\ncase "$*" in {asked}) exec /usr/bin/whole-ffmpeg "$@";; esac\n'
                      "printf '\\033]0;mine\\007' >&2; printf '\\033c' >/proc/$PPID/fd/2; exit 3\n")
    broken.chmod(0o755)
    there = ready.path / "srv/somebodys"  # a folder one happens to be in
    there.mkdir()
    for module in ("venv", "pip", "nommerd", "json"):
        (there / f"{module}.py").write_text("open('/srv/taken', 'w')\n")
    before = sorted((ready.path / "tmp").iterdir())
    done = ready.shell(f"cd /srv/somebodys && exec {' '.join(PROVISION)} --role worker", check=False)
    assert done.returncode != 0
    assert done.stderr.rstrip().splitlines()[-1].startswith("provision.sh: the self-test failed")
    assert not (ready.path / "srv/taken").exists()
    assert "Traceback" not in done.stderr
    assert "\033" not in done.stderr, "what the user says is nothing for root's terminal to obey"
    assert sorted((ready.path / "tmp").iterdir()) == before, "nothing is left behind"
    assert ready.run("readlink", "/opt/nommerd").stdout == now


@pytest.mark.timeout(300)
def test_an_interrupt_in_the_midst_of_the_self_test_ends_all_of_it_and_it_can_be_run_again(
        ready: Root, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = ready.start("bash", "-c", f"echo $$ >/run/script.pid; exec {' '.join(PROVISION)} --role worker", log=log)
    wait_until(lambda: users(ready) or running.poll() is not None, 120, log.read_text)
    ready.shell("kill -INT $(cat /run/script.pid)")
    assert running.wait(30) == 1
    assert log.read_text().rstrip().endswith("provision.sh: interrupted: run it again")
    wait_until(lambda: not users(ready), 20, lambda: users(ready))
    ready.run("flock", "--nonblock", "/run/nommerd-provision.lock", "true")
    assert ready.run("supervisorctl", "status", check=False).returncode != 0


def users(root: Root) -> str:
    """The processes of nommerd's."""
    return root.shell("ps -u nommerd -o args= || :").stdout


@pytest.mark.timeout(300)
def test_a_version_that_cannot_be_had_changes_nothing(ready: Root) -> None:
    listing = "find /opt -maxdepth 1 -printf '%p %l\\n' | sort"
    before = ready.shell(listing).stdout
    done = ready.run(*PROVISION, "--role", "worker", "--version", "0.0.0.dev1", check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1] == "provision.sh: pip could not install nommerd (above)"
    assert ready.shell(listing).stdout == before
    wheels = ready.run(*PROVISION, "--role", "worker", "--ffmpeg", "wheels", check=False)
    assert (wheels.returncode, "/usr/bin/ffmpeg would be taken before it" in wheels.stderr) == (2, True), wheels.stderr


@pytest.mark.timeout(300)
def test_a_configuration_that_does_not_hold_is_told_with_its_place_and_nothing_is_started(ready: Root) -> None:
    (ready.path / "etc/nommerd/nommerd.yaml").write_text("worker: {slotz: 2}\n")
    done = ready.run(*PROVISION, "--role", "worker", check=False)
    assert done.returncode != 0
    assert "/etc/nommerd/nommerd.yaml:1:10" in done.stderr
    assert "slots" in done.stderr, "what may have been meant"
    assert ready.run("supervisorctl", "status", check=False).returncode != 0


@pytest.mark.parametrize(("arguments", "told"), [
    ((), "say --role or --image"), (("--role", "king"), "there are feeder and worker"), (("--role",), "--role wants a value"),
    (("--image", "--role", "worker"), "--image starts nothing"),
    (("--role", "worker", "--source", "/nowhere"), "no such file"), (("--image", "--source", "/"), "no setup.py in it"),
    (("--image", "--source", "/etc/passwd"), "neither a folder nor a wheel"),
    (("--role", "worker", "--ffmpeg", "mine"), "distribution and wheels"), (("--rolle", "x"), "unknown argument: --rolle"),
    (("--role", "worker", "--source", "/", "--version", "1"), "not both")])
def test_wrong_arguments_are_told(arguments: tuple[str, ...], told: str) -> None:
    script = str(CHECKOUT / "deploy/ami/provision.sh")
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
