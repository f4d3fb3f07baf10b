"""The command line starts quickly, and client commands import nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("gevent", "pydantic", "boto3", "botocore", "sh", "requests", "structlog", "cryptography")
PROBE = f"""
import sys
from pathlib import Path
sys.argv = ["nommerd", *sys.argv[1:]]
from nommerd.__main__ import main
try:
    code = main()
finally:
    print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
"""


def loaded(*arguments: str, **more: str) -> list[str]:
    """Heavy modules that a command imported, whatever became of it (no feeder answers on port 1)."""
    env = {**os.environ, "NOMMERD_URL": "http://127.0.0.1:1", "NOMMERD_TOKEN": "x", **more}
    ended = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, env=env, timeout=30)
    line = next(line for line in ended.stderr.splitlines() if line.startswith("LOADED"))
    assert "Traceback" not in ended.stderr, ended.stderr
    return line.split()[1:]


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["jobs", "--help"], ["submit", "--help"], ["jobs", "ls"], ["jobs", "show", "x", "--json"],
    ["jobs", "cancel", "x"], ["jobs", "retry", "x"], ["submit", "a.mov", "b.mp4", "-p", "web-720p", "--wait"], ["nonsense"],
    ["presets", "push", "--help"], ["presets", "rm", "x"], ["feeder", "--help"], ["up", "--help"], ["demo", "--help"],
    ["encode", "--help"], ["watch", "--help"], ["doctor", "--help"], ["completion", "bash"], ["jobs", "watch", "x"],
    ["ami", "check"], ["ami", "build", "--help"]],
                         ids=" ".join)
def test_client_commands_and_help_import_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(*arguments) == []


@pytest.mark.parametrize("words", ["e", "encode --o", "jobs ls --", "doctor --", "encode a b -p web-4"])
def test_completion_imports_nothing_heavy(words: str) -> None:
    asked = f"nommerd {words}"
    assert loaded(_NOMMERD_COMPLETE="bash_complete", COMP_WORDS=asked, COMP_CWORD=str(len(asked.split()) - 1)) == []


def test_the_probe_sees_heavy_modules_where_there_are_some() -> None:
    assert "pydantic" in loaded("config", "check")


@pytest.mark.parametrize("arguments", [["presets", "ls", "--local"], ["presets", "ls", "--local", "--json"], ["--version"]])
def test_a_full_disk_under_the_output_is_told_in_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-m", "nommerd", *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("nommerd: node.disk_full: ")
    assert ended.stderr.count("\n") == 1
