"""What `up` says about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nommerd.cli.up import _greeting
from nommerd.config import load


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("nommerd.config.SYSTEM_FILE", tmp_path / "none.yaml")
    return {"XDG_DATA_HOME": str(tmp_path), "NOMMERD_STORAGE__FILE_ROOTS": '["/media"]'}


def test_the_greeting_gives_clients_nothing_they_know_themselves(env: dict[str, str]) -> None:
    assert "\n  or: nommerd submit in.mov" in _greeting(load(None, env), "http://127.0.0.1:8001", 1, env)


def test_the_greeting_tells_clients_where_a_feeder_is_that_they_would_not_find(env: dict[str, str]) -> None:
    there = _greeting(load(None, env | {"NOMMERD_PATHS__DATA": "/srv/no mmerd"}), "http://127.0.0.1:8010", 1, env)
    assert ("\n  or: NOMMERD_URL=http://127.0.0.1:8010 NOMMERD_TOKEN=\"$(cat '/srv/no mmerd/token')\" nommerd submit in.mov"
            in there)


def test_a_console_that_nobody_reads_any_longer_costs_nothing() -> None:
    """Else what is left of its last line makes the exit code 120."""
    code = ("import os; ours, theirs = os.pipe(); os.dup2(theirs, 1); os.close(theirs); os.close(ours); "
            "from nommerd.cli.up import Console; console = Console(); console.event('one'); console.event('two')")
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], env=buffered, stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
