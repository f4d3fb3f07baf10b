"""Which commands build the image, and what is refused before any of them runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nommerd import __version__, imaging
from nommerd.errors import ConfigError, InfrastructureError
from tests.unit.cli.scripted import here

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
trap 'echo removing what was made; exit 4' INT
echo "building, $CHECKPOINT_DISABLE"
case $2 in
    fails) exit 3 ;;
    lasts) while :; do sleep 0.02; done ;;
esac
echo '{"builds": [{"artifact_id": "eu-west-1:ami-1"}]}' >"$2"
"""
BUILD = """
import os, sys
from pathlib import Path
from nommerd import imaging
print(imaging.build(imaging.Packer(sys.argv[1], (1, 6, 6)), sys.argv[1:], Path(sys.argv[3]), os.environ))
"""


def built(folder: Path, what: str) -> subprocess.Popen[str]:
    """A build by something that does as Packer does, in a process group of its own, as on a terminal."""
    program = folder / "packer"
    program.write_text(BUILDING)
    program.chmod(0o755)
    return subprocess.Popen([sys.executable, "-c", BUILD, str(program), "build", what], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_build_says_on_stderr_what_packer_says_and_gives_the_images(tmp_path: Path) -> None:
    out, err = built(tmp_path, str(tmp_path / "manifest.json")).communicate(timeout=20)
    assert (out, err) == ("{'eu-west-1': 'ami-1'}\n", "building, 1\n"), "and it calls nobody to tell that it is used"


def test_a_build_that_fails_has_no_images_even_where_an_older_manifest_is(tmp_path: Path) -> None:
    (tmp_path / "fails").write_text('{"builds": [{"artifact_id": "eu-west-1:ami-1"}]}')
    out, err = built(tmp_path, "fails").communicate(timeout=20)
    assert (out, "packer build ended with 3." in err) == ("", True), err


def test_an_interrupted_build_waits_until_packer_has_removed_what_it_made(tmp_path: Path) -> None:
    build = built(tmp_path, "lasts")
    assert build.stderr is not None
    try:
        assert build.stderr.readline() == "building, 1\n"
        os.killpg(build.pid, signal.SIGINT)
        _, err = build.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(build.pid, signal.SIGKILL)
    assert err.startswith("removing what was made\n")
    assert "packer build ended with 4." in err


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
