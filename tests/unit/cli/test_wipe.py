"""`nommerd wipe` on a real database: what it deletes, whom it asks, and when it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nommerd import sqlite
from nommerd.bus import open_bus
from nommerd.job import Job, Priority, utcnow
from nommerd.messages import ChangeMessage, JobMessage
from nommerd.store import open_store
from nommerd.store.base import JobQuery

URL = "sqlite:///nommerd.db"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A database with three jobs in two projects, two messages for workers and one for feeders."""
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "nommerd.yaml"
    config.write_text(f"paths: {{data: {data}}}\napi: {{original: {{project: old}}}}\n")
    store, bus = open_store(URL, data), open_bus(URL, data)
    try:
        for number, project in enumerate(("default", "old", "old")):
            store.put_recipe("r", "{}")
            store.create(Job(id=f"j{number}", project=project, pipeline="p", recipe="r", source="file:///s", dest="file:///d",
                             created=utcnow(), updated=utcnow(), write_id="w"))
        for priority in (Priority.HIGH, Priority.LOW):
            bus.jobs.send(JobMessage(id="j0", project="default", priority=priority))
        bus.changes.send(ChangeMessage(id="j0", project="default", event_seq=1))
    finally:
        bus.close()
        store.close()
    return config


def left(config: Path) -> tuple[int, int, int]:
    """Jobs, messages for workers, messages for feeders."""
    data = config.parent / "data"
    store, bus = open_store(URL, data), open_bus(URL, data)
    try:
        jobs = sum(len(store.list(JobQuery(project=project)).jobs) for project in ("default", "old"))
        return jobs, bus.jobs.depth().visible, bus.changes.depth().visible
    finally:
        bus.close()
        store.close()


def wipe(config: Path, *more: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nommerd", "wipe", "-c", str(config), *more], input=answer, text=True,
                          capture_output=True, timeout=60, check=False)


def test_it_deletes_jobs_and_both_queues_and_says_what(config: Path) -> None:
    ended = wipe(config, "--yes")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ("Deleted: 3 jobs with their recipes, 2 messages for workers, 1 messages for feeders.\n")
    assert left(config) == (0, 0, 0)


def test_for_machines_it_answers_in_json(config: Path) -> None:
    ended = wipe(config, "--yes", "--json")
    assert json.loads(ended.stdout) == {"deleted": {"jobs": 3, "job_messages": 2, "change_messages": 1}}
    assert left(config) == (0, 0, 0)


@pytest.mark.parametrize(("answer", "code", "kept"), [("y\n", 0, (0, 0, 0)), ("n\n", 1, (3, 2, 1)), ("\n", 1, (3, 2, 1)),
                                                      ("", 2, (3, 2, 1))])
def test_it_asks_and_without_a_clear_yes_deletes_nothing(config: Path, answer: str, code: int, kept: tuple[int, ...]) -> None:
    ended = wipe(config, answer=answer)
    assert ended.returncode == code
    assert "Delete 3 jobs with their recipes, 2 messages for workers, 1 messages for feeders?" in ended.stderr
    assert left(config) == kept


def test_with_json_nobody_is_asked(config: Path) -> None:
    ended = wipe(config, "--json", answer="y\n")
    assert (ended.returncode, json.loads(ended.stdout)["errors"][0]["code"]) == (2, "usage")
    assert left(config) == (3, 2, 1)


def test_it_refuses_while_a_feeder_runs_on_the_file(config: Path) -> None:
    lock = sqlite.exclusive(config.parent / "data" / "nommerd.db")
    try:
        ended = wipe(config, "--yes")
    finally:
        lock.close()
    assert ended.returncode == 2 and "config.feeder_running" in ended.stderr
    assert left(config) == (3, 2, 1)


@pytest.mark.parametrize(("line", "code"), [("paths: {data: /nonexistent}", "config.no_data"),
                                            ("store: memory://", "config.store"), ("bus: memory://", "config.bus")])
def test_where_there_is_nothing_it_says_so(tmp_path: Path, line: str, code: str) -> None:
    config = tmp_path / "nommerd.yaml"
    config.write_text(line if "paths" in line else f"paths: {{data: {tmp_path}}}\n{line}\n")
    (tmp_path / "nommerd.db").touch()
    ended = wipe(config, "--yes")
    assert ended.returncode == 2 and code in ended.stderr
