"""A wheel built from the tree, installed elsewhere, has everything in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.media import clip

ROOT = Path(__file__).parents[2]
CONTENTS = ("nommerd", "conf", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in CONTENTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tree / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder),
        str(tree), cwd=folder)
    (made,) = folder.glob("nommerd-*.whl")
    return made


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


def run(*argv: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NOMMERD_", "PYTHON", "XDG_"))} | {"HOME": str(cwd)}
    ended = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, f"{argv}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_the_wheel_holds_code_presets_pipelines_and_pages_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in ((ROOT / "nommerd", "nommerd"), (ROOT / "conf", "nommerd/conf")):
        wanted = {f"{inside}/{path.relative_to(folder)}" for path in folder.rglob("*")
                  if path.is_file() and path.suffix in (".py", ".yaml", ".html", ".js", ".css", ".typed", ".conf")
                  and "__pycache__" not in path.parts}
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
