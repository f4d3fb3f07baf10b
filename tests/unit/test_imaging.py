"""Which commands build the image, and what is refused before any of them runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nommerd import __version__, imaging
from nommerd.errors import ConfigError, InfrastructureError
from tests.rig import wait_until
from tests.unit.cli.scripted import here, nommerd

ROOT = Path(imaging.__file__).parent.parent
OLD, NEW = imaging.Packer("/bin/packer", (1, 6, 6)), imaging.Packer("/bin/packer", (1, 11, 2))


def packer(folder: Path, told: str) -> dict[str, str]:
    """A PATH with a packer that tells this as its version."""
    (folder / "packer").write_text(f"#!/bin/sh\necho '{told}'\n")
    (folder / "packer").chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


@pytest.mark.parametrize(("told", "version"), [
    ("Packer v1.6.6", (1, 6, 6)), ("Packer v1.14.2\n\nYour version of Packer is out of date!", (1, 14, 2)),
    ("Packer v1.12.0-dev (abc)", (1, 12, 0))])
def test_the_version_of_packer_is_found(tmp_path: Path, told: str, version: tuple[int, ...]) -> None:
    assert imaging.find_packer(packer(tmp_path, told)).version == version


@pytest.mark.parametrize(("told", "code"), [("Packer v1.5.9", "config.packer"), ("0 0", "config.packer")])
def test_an_old_packer_and_another_program_of_that_name_are_refused(tmp_path: Path, told: str, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        imaging.find_packer(packer(tmp_path, told))
    assert refused.value.code == code


def test_without_packer_the_command_says_where_to_get_it(tmp_path: Path) -> None:
    ended = here(None, "ami", "check", PATH=str(tmp_path))
    assert ended.returncode == 2
    assert "packer: config.no_program: " in ended.stderr
    assert "Install Packer 1.6 or newer" in ended.stderr


def test_only_a_packer_without_builders_fetches_them() -> None:
    assert imaging.init_argv(OLD) == []
    assert imaging.init_argv(NEW) == ["/bin/packer", "init", str(imaging.recipe() / "plugins")]


def test_a_build_is_a_set_of_variables_then_values_then_the_template() -> None:
    file = imaging.variable_sets()["debian-13", "arm64"]
    assert imaging.build_argv(OLD, file, {"region": "eu-central-1", "ffmpeg": "wheels"}) == [
        "/bin/packer", "build", "-color=false", f"-var-file={file}", "-var=region=eu-central-1", "-var=ffmpeg=wheels",
        str(imaging.recipe() / "encoder.pkr.hcl")]


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path) -> None:
    env = packer(tmp_path, "Packer v1.11.2")
    ended = here(None, "ami", "build", "--dry-run", "--json", "--arch", "arm64", "--var", "region=eu-west-1", **env)
    assert ended.returncode == 0, ended.stderr
    init, build = json.loads(ended.stdout)["commands"]
    assert init[1] == "init"
    assert build[1] == "build"
    assert f"-var-file={imaging.variable_sets()['debian-12', 'arm64']}" in build
    assert {"-var=region=eu-west-1", f"-var=nommerd_version={__version__}"} <= set(build)


def test_the_region_is_the_variable_else_that_of_the_environment_else_refused(tmp_path: Path) -> None:
    assert imaging.region_of({"region": "a"}, {"AWS_REGION": "b"}) == "a"
    assert imaging.region_of({}, {"AWS_REGION": "b", "AWS_DEFAULT_REGION": "c"}) == "b"
    assert imaging.region_of({}, {"AWS_DEFAULT_REGION": "c"}) == "c"
    with pytest.raises(ConfigError, match="No region"):
        imaging.region_of({}, {})


@pytest.mark.parametrize("name", [
    "other-1.0-py3-none-any.whl", "nommerd-0.1.0.tar.gz", "nommerd-1'$(x)-py3-none-any.whl", "empty"])
def test_what_is_no_source_is_refused_before_anything_is_started(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name == "empty":
        source.mkdir()
    else:
        source.write_bytes(b"")
    with pytest.raises(ConfigError):
        imaging.check_source(source)


def test_the_version_is_that_of_the_wheel_or_the_source(tmp_path: Path) -> None:
    wheel = tmp_path / "nommerd-2.3.4-py3-none-any.whl"
    wheel.write_bytes(b"")
    imaging.check_source(wheel)
    assert imaging.source_version(wheel) == "2.3.4"
    assert imaging.source_version(imaging.default_source()) == __version__


def test_of_a_checkout_goes_up_what_is_installed_and_nothing_else(tmp_path: Path) -> None:
    source = imaging.default_source()
    assert source is not None
    tree = imaging.copy_source(source, tmp_path)
    assert {path.name for path in tree.iterdir()} == set(imaging.SOURCES)
    (tree / "nommerd" / "__pycache__").mkdir(exist_ok=True)  # a checkout has some, unless Python was told to make none
    (tmp_path / "second").mkdir()
    assert list(imaging.copy_source(tree, tmp_path / "second").rglob("__pycache__")) == []
    assert (tree / "deploy" / "ami" / "provision.sh").stat().st_mode & 0o111


def test_a_set_that_is_not_there_is_told_with_those_that_are() -> None:
    ended = here(None, "ami", "build", "--base", "slackware")
    assert ended.returncode == 2
    assert "debian-12 x86_64" in ended.stderr


def test_the_key_of_a_build_is_no_rsa_key_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    made = imaging.make_key(tmp_path)
    assert made["authorized_key"].startswith("ssh-ed25519 ")
    assert Path(made["ssh_private_key_file"]).stat().st_mode & 0o077 == 0


BUILDING = """#!/bin/sh
echo "building, $CHECKPOINT_DISABLE"
case $2 in
    fails) exit 3 ;;
esac
echo '{"builds": [{"artifact_id": "eu-west-1:ami-1"}]}' >"$2"
"""
BUILD = """
import os, sys
from pathlib import Path
from nommerd import imaging
with imaging.interrupts() as stop:
    print(imaging.build(imaging.Packer(sys.argv[1], (1, 6, 6)), sys.argv[1:], Path(sys.argv[3]), os.environ, stop))
"""


def built(folder: Path, what: str) -> subprocess.Popen[str]:
    """A build by something that does as Packer does."""
    program = folder / "packer"
    program.write_text(BUILDING)
    program.chmod(0o755)
    return subprocess.Popen([sys.executable, "-c", BUILD, str(program), "build", what], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_a_build_says_on_stderr_what_packer_says_and_gives_the_images(tmp_path: Path) -> None:
    out, err = built(tmp_path, str(tmp_path / "manifest.json")).communicate(timeout=20)
    assert (out, err) == ("{'eu-west-1': 'ami-1'}\n", "building, 1\n"), "and it calls nobody to tell that it is used"


def test_a_build_that_fails_has_no_images_even_where_an_older_manifest_is(tmp_path: Path) -> None:
    (tmp_path / "fails").write_text('{"builds": [{"artifact_id": "eu-west-1:ami-1"}]}')
    out, err = built(tmp_path, "fails").communicate(timeout=20)
    assert (out, "packer build ended with 3." in err) == ("", True), err


def test_what_packer_finds_wrong_is_told_with_its_words(tmp_path: Path) -> None:
    program = tmp_path / "packer"
    program.write_text("#!/bin/sh\n[ $1 = fmt ] || { echo 'no such variable'; exit 1; }\n")
    program.chmod(0o755)
    sets = {("debian-12", "arm64"): imaging.variable_sets()["debian-12", "arm64"]}
    found = list(imaging.check(imaging.Packer(str(program), (1, 6, 6)), sets, {}, {"PATH": "/usr/bin:/bin"}))
    assert {one.what: one.fault for one in found if one.fault} == {"debian-12 on arm64": "no such variable"}
    assert len(found) == 4


def test_the_images_are_read_from_packers_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"builds": [{"artifact_id": "eu-central-1:ami-1,us-east-1:ami-2"}]}))
    assert imaging.image_ids(manifest) == {"eu-central-1": "ami-1", "us-east-1": "ami-2"}
    manifest.write_text(json.dumps({"builds": []}))
    with pytest.raises(InfrastructureError, match="no image"):
        imaging.image_ids(manifest)


def test_the_page_tells_the_size_of_the_images_volume_and_that_it_is_the_nodes_disk() -> None:
    template = (imaging.recipe() / imaging.TEMPLATE).read_text()
    told = re.search(r'variable "volume_gib" {\n +description = "(.*)"\n.*\n +default += (\d+)\n', template)
    row = re.search(r"^\| `volume_gib` \| (\d+) \| (.*) \|$", (ROOT / "docs/image.md").read_text(), re.M)
    assert told is not None
    assert row is not None
    assert told[2] == row[1] == "20"
    assert "only disk" in told[1]
    assert "only disk of each node that starts from it" in row[2]
    assert "(deploy.md#sizing)" in row[2]


# --- the whole command -------------------------------------------------------------------------------------------------

# As Packer: the process that is started leaves an interrupt to another one, which it waits for. That one counts interrupts for
# longer than the command takes to pass one on, then ends where there is a file `go`; in any case some time.
FAKE = """#!{python} -IS
import json, os, signal, subprocess, sys, time
from pathlib import Path

def note(**what):
    with log.open("a") as file:
        file.write(json.dumps(what) + "\\n")

log, told, interrupts = Path(__file__).with_name("calls"), os.environ.get("TOLD", ""), []
command, *rest = sys.argv[1:]
given = dict(one[5:].split("=", 1) for one in rest if one.startswith("-var="))
if command == "version":
    print("Packer v" + os.environ.get("VERSION", "1.6.6"))
    if told == "goes":
        os.unlink(__file__)
elif command != "build":
    note(argv=sys.argv[1:])
    sys.exit(told == command)
else:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(time.monotonic()) or note(interrupt=True))
    key, source = given.get("ssh_private_key_file"), given.get("nommerd_source")
    note(argv=sys.argv[1:], given=given, group=os.getpgrp(),
         source=source and sorted(path.name for path in Path(source).glob("*")),
         public=key and subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True).stdout)
    ends = time.monotonic() + 30
    while told.startswith("lasts") and time.monotonic() < ends:
        time.sleep(0.01)
        if interrupts and time.monotonic() > interrupts[0] + {counting} and log.with_name("go").exists():
            break
    if told != "lasts":
        made = json.dumps(dict(builds=[dict(artifact_id=given["region"] + ":ami-1")]))
        Path(given.get("manifest", "packer-manifest.json")).write_text(made)
    sys.exit(told == "lasts" and 4)
"""


class Desk:
    """Where a command finds a fake Packer first, and everything else that it may use."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir()
        self.program("packer", FAKE.format(python=sys.executable, counting=3 * imaging.HEED_SECONDS))
        self.env = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(self.temporary), "AWS_REGION": "eu-west-3"}
        self.wheel = folder / f"nommerd-{__version__}-py3-none-any.whl"
        self.wheel.write_bytes(b"")

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def calls(self) -> list[dict[str, Any]]:
        log = self.folder / "calls"
        return list(map(json.loads, log.read_text().splitlines())) if log.exists() else []

    def commands(self) -> list[str]:
        return [call["argv"][0] for call in self.calls() if "argv" in call]

    def left(self) -> list[str]:
        return sorted(path.name for path in self.temporary.rglob("*"))

    def build(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return nommerd(None, "ami", "build", *arguments, cwd=self.folder, **{"PYTHONPATH": str(ROOT), **self.env, **env})

    def quick(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """In this process: for what runs no build."""
        return here(None, "ami", *arguments, **{**self.env, **env})


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_build_gets_a_key_of_its_own_a_copy_of_the_source_and_a_manifest_and_leaves_nothing_here(desk: Desk) -> None:
    ended = desk.build("--var", "ffmpeg=wheels")
    assert (ended.returncode, ended.stdout) == (0, "ami-1\n"), ended.stderr
    (call,) = desk.calls()
    given = call["given"]
    for name in ("ssh_private_key_file", "nommerd_source", "manifest"):
        assert Path(given[name]).is_relative_to(desk.temporary), name
    assert call["public"].split()[:2] == given["authorized_key"].split()[:2]
    assert call["source"] == sorted(imaging.SOURCES)
    assert (given["region"], given["ffmpeg"], given["nommerd_version"]) == ("eu-west-3", "wheels", __version__)
    assert desk.left() == []


def test_a_build_with_a_key_that_was_given_makes_none(desk: Desk) -> None:
    desk.program("ssh-keygen", "#!/bin/sh\nexit 1\n")
    ended = desk.build(f"--source={desk.wheel}", "--var", "ssh_private_key_file=mine", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["images"]) == (0, {"eu-west-3": "ami-1"}), ended.stderr
    given = desk.calls()[0]["given"]
    assert (given["ssh_private_key_file"], "authorized_key" in given) == ("mine", False)


@pytest.mark.parametrize(("version", "first"), [("1.10.3", []), ("1.11.0", ["init"])])
def test_builders_are_fetched_before_a_build_and_before_a_check_by_a_packer_without_them(
        desk: Desk, version: str, first: list[str]) -> None:
    assert desk.build(f"--source={desk.wheel}", VERSION=version).returncode == 0
    assert desk.commands() == [*first, "build"]
    (desk.folder / "calls").unlink()
    assert desk.quick("check", "--base", "debian-12", "--arch", "arm64", VERSION=version).returncode == 0
    assert desk.commands() == [*first, "fmt", "fmt", "fmt", "validate"]


def test_without_its_builders_nothing_is_built(desk: Desk) -> None:
    ended = desk.build(f"--source={desk.wheel}", VERSION="1.11.0", TOLD="init")
    assert (ended.returncode, desk.commands(), desk.left()) == (1, ["init"], [])
    assert "packer init ended with 1." in ended.stderr


@pytest.mark.parametrize("fails", ["validate", "fmt", "init"])
def test_a_check_that_finds_a_fault_fails(desk: Desk, fails: str) -> None:
    assert desk.quick("check", "--base", "debian-12", VERSION="1.11.0").returncode == 0
    ended = desk.quick("check", "--base", "debian-12", "--json", VERSION="1.11.0", TOLD=fails)
    assert ended.returncode == 1
    assert not all(one["ok"] for one in json.loads(ended.stdout)["checked"])


@pytest.mark.parametrize("command", [["check"], ["build"], ["build", "--dry-run"]])
@pytest.mark.parametrize(("variable", "told"), [
    ("ffmpeg=foo", "There are distribution and wheels."), ("ffmpeg=", "There are distribution and wheels."),
    ("subnetid=subnet-0abc", "no variable 'subnetid'. It has base, architecture,")])
def test_a_variable_that_would_be_refused_later_is_refused_before_packer_runs(desk: Desk, command: list[str], variable: str,
                                                                             told: str) -> None:
    desk.program("packer", "#!/bin/sh\ntouch $TMPDIR/ran\necho Packer v1.6.6\n")
    ended = desk.quick(*command, "--var", variable)
    assert (ended.returncode, desk.left()) == (2, [])
    assert told in " ".join(ended.stderr.split())


def test_an_empty_region_is_none(desk: Desk) -> None:
    ended = desk.quick("build", "--dry-run", "--json", "--var", "region=")
    (build,) = json.loads(ended.stdout)["commands"]
    assert [one for one in build if one.startswith("-var=region=")] == ["-var=region=eu-west-3"]
    refused = desk.quick("build", "--dry-run", "--var", "region=", AWS_REGION="", AWS_DEFAULT_REGION="")
    assert (refused.returncode, "No region is set" in refused.stderr) == (2, True)
    assert desk.quick("check", "--base", "debian-12", "--var", "region=").returncode == 0
    assert f"-var=region={imaging.ANY_REGION}" in desk.calls()[-1]["argv"]


def test_a_packer_that_cannot_be_started_is_told(desk: Desk) -> None:
    ended = desk.build(f"--source={desk.wheel}", TOLD="goes")
    assert (ended.returncode, desk.left()) == (1, [])
    assert "node.cannot_start: " in ended.stderr
    assert "No such file or directory. See that it runs here" in ended.stderr


@pytest.mark.parametrize(("text", "said"), [("#!/bin/sh\necho no randomness >&2\nexit 1\n", "no randomness"),
                                            ("\x7fELF", "Exec format error")])
def test_an_ssh_keygen_that_makes_no_key_is_told_and_packer_not_called(desk: Desk, text: str, said: str) -> None:
    desk.program("ssh-keygen", text)
    ended = desk.build(f"--source={desk.wheel}")
    assert (ended.returncode, desk.calls(), desk.left()) == (1, [], [])
    assert re.search(f"ssh-keygen: node.packer: .*{said}.* --var ssh_private_key_file=", ended.stderr)


# --- interrupts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def building(desk: Desk, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A command whose Packer is at work, in a process group of its own, as on a terminal. Gone afterwards, Packer too."""
    argv = [sys.executable, "-m", "nommerd", "ami", "build", f"--source={desk.wheel}"]
    env = {**os.environ, **desk.env, "PYTHONPATH": str(ROOT), "TOLD": getattr(request, "param", "lasts")}
    with subprocess.Popen(argv, env=env, cwd=desk.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as command:
        try:
            wait_until(desk.calls, 20, lambda: f"{command.poll()}")
            yield command
        finally:
            for group in {command.pid, *(call["group"] for call in desk.calls() if "group" in call)}:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to-the-command", "as-by-a-terminal"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_a_build_packer_is_interrupted_once_and_waited_for_and_the_key_removed(
        desk: Desk, building: subprocess.Popen[str], number: signal.Signals, send: Any) -> None:
    send(building.pid, number)
    wait_until(lambda: {"interrupt": True} in desk.calls(), 20, lambda: str(desk.calls()))
    send(building.pid, signal.SIGTERM)  # CI systems have little patience
    assert building.poll() is None
    assert "key" in desk.left(), "Packer may need it until it ends"
    (desk.folder / "go").touch()
    out, err = building.communicate(timeout=20)
    assert (building.returncode, out) == (1, ""), err
    assert "packer build ended with 4." in err
    assert desk.calls().count({"interrupt": True}) == 1, "a second one makes Packer leave everything as it is"
    assert desk.left() == []


@pytest.mark.parametrize("building", ["lasts and ends well"], indirect=True)
def test_an_image_that_is_made_in_spite_of_an_interrupt_is_told(desk: Desk, building: subprocess.Popen[str]) -> None:
    (desk.folder / "go").touch()
    building.terminate()
    out, err = building.communicate(timeout=20)
    assert (building.returncode, out, err) == (130, "ami-1\n", "nommerd: interrupted\n")
    assert desk.left() == []


def test_an_interrupt_before_packer_starts_starts_none(desk: Desk) -> None:
    desk.program("ssh-keygen", '#!/bin/sh\nkill -TERM $PPID\nexec /usr/bin/ssh-keygen "$@"\n')
    ended = desk.build(f"--source={desk.wheel}")
    assert (ended.returncode, ended.stderr) == (130, "nommerd: interrupted\n")
    assert (desk.calls(), desk.left()) == ([], [])


def test_a_hangup_that_is_to_be_ignored_is_ignored_and_all_is_as_before_afterwards() -> None:
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        before = list(map(signal.getsignal, numbers))
        with imaging.interrupts() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
        assert list(map(signal.getsignal, numbers)) == before
    finally:
        signal.signal(signal.SIGHUP, was)
