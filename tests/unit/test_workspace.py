"""Workspaces: private, removed whatever happens, and those of dead processes found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nommerd.errors import ConfigError
from nommerd.workspace import Workspaces

HOLD = """
import sys, pathlib
from nommerd.workspace import Workspaces
place = Workspaces(pathlib.Path(sys.argv[1])).open("job", 1)
(place.path / "big").write_bytes(b"x" * 1000)
print(place.path, flush=True)
sys.stdin.read()
"""


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.name != ".lock"}


def test_a_workspace_is_private_and_gone_when_it_is_closed(tmp_path: Path) -> None:
    place = Workspaces(tmp_path / "work").open("abc", 3)
    assert place.path.stat().st_mode & 0o777 == 0o700
    (place.path / "deep").mkdir()
    (place.path / "deep" / "file").write_text("x")
    place.close()
    place.close()
    assert names(tmp_path / "work") == set()


def test_only_the_newest_failed_ones_are_kept_and_only_if_asked(tmp_path: Path) -> None:
    home = Workspaces(tmp_path, keep_failed=2)
    for token in range(1, 5):
        place = home.open("job", token)
        (place.path / "log").write_text(str(token))
        place.close(failed=True)
    home.open("job", 9).close(failed=False)
    assert {(tmp_path / name / "log").read_text() for name in names(tmp_path)} == {"3", "4"}
    home.clean()
    assert len(names(tmp_path)) == 2
    Workspaces(tmp_path / "other").open("job", 1).close(failed=True)
    assert names(tmp_path / "other") == set()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    home = Workspaces(tmp_path)
    mine = home.open("mine", 1)
    assert home.clean() == 0
    assert theirs.is_dir()
    process.kill()
    process.wait(10)
    assert home.clean() == 1
    assert names(tmp_path) == {mine.path.name}
    mine.close()


def test_one_that_was_killed_while_it_was_made_or_removed_goes_too(tmp_path: Path) -> None:
    home = Workspaces(tmp_path)
    (tmp_path / "half.1").mkdir()
    (tmp_path / ".trash-old.1.aa").mkdir()
    assert home.clean() == 2
    assert names(tmp_path) == set()


def test_names_are_harmless_and_never_shared(tmp_path: Path) -> None:
    home = Workspaces(tmp_path)
    one, two = home.open("../a%d b", 1), home.open("../a%d b", 1)
    assert one.path != two.path
    for place in (one, two):
        assert place.path.parent == tmp_path
        assert "%" not in place.path.name
        place.close()


@pytest.mark.parametrize("bad", ["with%percent", "file/below"])
def test_a_root_that_cannot_serve_is_a_configuration_error(tmp_path: Path, bad: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        Workspaces(tmp_path / bad)
    assert caught.value.code == "config.bad_workspace"
