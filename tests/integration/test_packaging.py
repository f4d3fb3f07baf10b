"""The sdist and the wheel: the same bytes wherever they are made; installed elsewhere, everything is there and works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.media import clip

ROOT = Path(__file__).parents[2]
CONTENTS = ("nommerd", "conf", "deploy", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")
EPOCH = 1_700_000_000  # 14 November 2023


def tree(folder: Path, *, contents: tuple[str, ...] = CONTENTS, modes: int = 0o777, at: float = EPOCH) -> Path:
    """A copy of what is built, made in this order, with modes under this mask and of this time."""
    folder.mkdir()
    for name in contents:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / name)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & modes)
        os.utime(path, (at, at))
    return folder


def dist(source: Path, out: Path, **env: str) -> tuple[Path, Path]:
    """The sdist and the wheel that are made of it, and told."""
    told = run(sys.executable, "-m", "tools.dist", "--tree", str(source), "--out", str(out), cwd=ROOT,
               env={"SOURCE_DATE_EPOCH": str(EPOCH), **env})
    sdist, wheel = (out / line.split()[1] for line in told.splitlines())
    return sdist, wheel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Built from a copy, so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("dist")
    return dist(tree(folder / "tree"), folder / "out")


@pytest.fixture(scope="module")
def wheel(made: tuple[Path, Path]) -> Path:
    return made[1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another environment's `nommerd`; its dependencies are this environment's, its nommerd is not."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python = home / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel),
        cwd=home)
    site = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip()
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "venv" / "bin" / "nommerd"


def run(*argv: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 100, umask: int = 0o022) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NOMMERD_", "PYTHON", "XDG_", "SOURCE_DATE"))}
    ended = subprocess.run(argv, cwd=cwd, env=clean | {"HOME": str(cwd)} | (env or {}), capture_output=True, text=True,
                           timeout=timeout, umask=umask, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, f"{argv}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_another_folder_order_umask_time_and_zone_make_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = tree(tmp_path / "another folder", contents=CONTENTS[::-1], modes=0o700, at=EPOCH + 12345)
    old = os.umask(0o077)
    try:
        again = dist(other, tmp_path / "out", TZ="Asia/Kathmandu", LC_ALL="C", PYTHONHASHSEED="7", USER="somebody")
    finally:
        os.umask(old)
    assert [path.name for path in again] == [path.name for path in made]
    assert [path.read_bytes() == first.read_bytes() for path, first in zip(again, made, strict=True)] == [True, True]


@pytest.mark.slow
def test_the_bytes_follow_modes_and_time(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = tree(tmp_path / "tree")
    script = "deploy/ami/provision.sh"
    (other / script).chmod(0o644)
    _, wheel = dist(other, tmp_path / "out", SOURCE_DATE_EPOCH="1600000000")
    (is_now,) = (info for info in zipfile.ZipFile(wheel).infolist() if info.filename == f"nommerd/{script}")
    assert (is_now.date_time[0], is_now.external_attr >> 16 & 0o111) == (2020, 0)
    assert wheel.read_bytes() != made[1].read_bytes()


def test_pip_makes_the_same_wheel_of_the_sdist_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = made
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "-w", str(tmp_path), str(sdist), cwd=tmp_path, env={"SOURCE_DATE_EPOCH": str(EPOCH)})
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_sdist_is_of_nobody_and_scripts_can_be_run(made: tuple[Path, Path]) -> None:
    with tarfile.open(made[0]) as tar:
        members = tar.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", EPOCH)}
    assert {m.mode for m in members if m.isfile()} == {0o644, 0o755}
    scripts = {Path(m.name).name for m in members if m.isfile() and m.mode == 0o755}
    assert "provision.sh" in scripts
    assert [info.filename for info in zipfile.ZipFile(made[1]).infolist()
            if Path(info.filename).name in scripts and not info.external_attr >> 16 & 0o111] == []


@pytest.mark.parametrize(("arguments", "env", "why"), [
    (("--tree", "{}"), {"SOURCE_DATE_EPOCH": str(EPOCH)}, "has no setup.py"),
    (("--tree", str(ROOT)), {}, "SOURCE_DATE_EPOCH must say"),
    (("--tree", str(ROOT)), {"SOURCE_DATE_EPOCH": "today"}, "must be whole seconds"),
    ((), {"GIT_DIR": "/nonexistent"}, "--tree"),
    ((), {"PATH": "/nonexistent"}, "git is not installed")])
def test_what_cannot_be_built_is_said_in_a_line(arguments: tuple[str, ...], env: dict[str, str], why: str,
                                                tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"} | env
    argv = [sys.executable, "-m", "tools.dist", "--out", str(tmp_path / "out"), *(word.format(tmp_path) for word in arguments)]
    ended = subprocess.run(argv, cwd=ROOT, env=clean, capture_output=True, text=True)
    assert (ended.returncode, why in ended.stderr, "Traceback" in ended.stderr) == (1, True, False), ended.stderr


def test_a_checkout_is_built_as_it_was_committed_and_told_what_is_not(tmp_path: Path) -> None:
    checkout = tree(tmp_path / "checkout")
    shutil.copytree(ROOT / "tools", checkout / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
             "GIT_COMMITTER_DATE": f"{EPOCH} +0000", "GIT_CONFIG_GLOBAL": "/dev/null"}
    for argv in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "all")):
        run("git", *argv, cwd=checkout, env=names)
    (checkout / "README.md").write_text("not yet\n")
    (checkout / "nommerd" / "stray.py").write_text("raise SystemExit\n")
    ended = subprocess.run([sys.executable, "-m", "tools.dist"], cwd=checkout, capture_output=True, text=True,
                           env={k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"})
    assert (ended.returncode, "README.md" in ended.stderr) == (0, True), ended.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        assert "nommerd/stray.py" not in opened.namelist()
        assert {info.date_time[:3] for info in opened.infolist()} == {(2023, 11, 14)}
    sums = (checkout / "dist" / "SHA256SUMS").read_text()
    assert run("sha256sum", "-c", "SHA256SUMS", cwd=checkout / "dist").count(": OK") == 2 == len(sums.splitlines())


def test_the_wheel_holds_code_presets_pipelines_and_pages_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for inside in ("nommerd", "nommerd/conf", "nommerd/deploy/ami"):
        folder = ROOT / (inside.removeprefix("nommerd/"))
        wanted = {f"{inside}/{path.relative_to(folder)}" for path in folder.rglob("*")
                  if path.is_file() and "__pycache__" not in path.parts}
        assert sorted(wanted - names) == []
    assert any(name.startswith("nommerd/dashboard/") and name.endswith(".html") for name in names)
    assert [name for name in names if not name.startswith(("nommerd/", "nommerd-"))] == []


def test_installed_elsewhere_it_finds_its_own_presets_and_pipelines(installed: Path, tmp_path: Path) -> None:
    presets = json.loads(run(str(installed), "presets", "ls", "--json", cwd=tmp_path))
    assert {"web-480p", "web-720p", "web-1080p", "audio-aac", "remux-mp4"} <= {preset["name"] for preset in presets}
    assert all(Path(preset["file"]).is_relative_to(installed.parents[1]) for preset in presets)
    pipelines = json.loads(run(str(installed), "pipelines", "ls", "--json", cwd=tmp_path))
    assert {"web-mp4", "audio-aac", "remux-mp4"} <= {pipeline["name"] for pipeline in pipelines}


def test_installed_elsewhere_it_encodes(installed: Path, tmp_path: Path) -> None:
    shutil.copy(clip(seconds=1, size="160x120"), tmp_path / "in.mp4")
    told = json.loads(run(str(installed), "encode", "in.mp4", "out.mp4", "-p", "web-480p", "--json", cwd=tmp_path))
    assert told["error"] is None
    assert (tmp_path / "out.mp4").stat().st_size == told["outputs"][0]["bytes"]


def test_installed_elsewhere_its_whole_system_runs(installed: Path, tmp_path: Path) -> None:
    shutil.copy(clip(seconds=1, size="160x120"), tmp_path / "in.mp4")
    told = json.loads(run(str(installed), "demo", "in.mp4", "--json", cwd=tmp_path))
    assert (told["job"]["state"], told["faults"]) == ("FINISHED", [])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_the_package_index_and_the_wheel_alone_with_its_ffmpeg_the_demo_works(wheel: Path, tmp_path: Path) -> None:
    """What a newcomer does: an empty environment, no ffmpeg in PATH, `pip install`, `nommerd demo`."""
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    bin_ = tmp_path / "venv" / "bin"
    run(str(bin_ / "python"), "-m", "pip", "install", "--quiet", f"{wheel}[ffmpeg]", cwd=tmp_path, timeout=500)
    assert run(str(bin_ / "python"), "-m", "pip", "check", cwd=tmp_path).startswith("No broken requirements")
    few = tmp_path / "few"
    few.mkdir()
    for program in ("sh", "bwrap"):
        if found := shutil.which(program):
            (few / program).symlink_to(found)
    told = json.loads(run(str(bin_ / "nommerd"), "demo", "--json", cwd=tmp_path, env={"PATH": f"{bin_}:{few}"}, timeout=200))
    assert (told["job"]["state"], told["faults"]) == ("FINISHED", [])
