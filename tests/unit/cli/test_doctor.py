"""The doctor finds what is wrong, says what to do, and changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from nommerd.cli import credentials
from nommerd.cli import doctor as command
from nommerd.cli.checks import database, encoding, machine, services
from nommerd.cli.checks.finding import Finding, Patient, within
from nommerd.config import load
from nommerd.sqlite_schema import connect, migrate
from tests.rig import free_port
from tests.unit.cli.scripted import Feeder, here, nommerd


def settled(tmp_path: Path, text: str = "") -> Patient:
    config = tmp_path / "nommerd.yaml"
    config.write_text(f"paths: {{data: {tmp_path / 'data'}}}\napi: {{port: {free_port()}}}\n{text}")
    return Patient(config_file=config, env={"XDG_DATA_HOME": str(tmp_path / "xdg")}, settings=load(config, {}))


def statuses(found: Any) -> list[tuple[str, str]]:
    return [(one.check, one.status) for one in found]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_mode) for path in [folder, *folder.rglob("*")]}


def test_on_a_fresh_machine_it_encodes_a_second_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    env = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "share"), "XDG_STATE_HOME": str(tmp_path / "state"),
           "NOMMERD_URL": "http://127.0.0.1:1", "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "tmp")}
    ended = nommerd(None, "doctor", "--json", **env)
    found = json.loads(ended.stdout)
    assert ended.returncode == 0, found
    assert all(set(one) == {"check", "status", "message", "hint"} for one in found)
    said = {one["check"]: one for one in found}
    assert set(said) == {"configuration", "ffmpeg", "presets", "encode", "limits", "sandbox", "clock", "disk", "database",
                         "workspaces", "feeder", "tokens", "webhooks", "aws", "fleet"}
    assert said["encode"]["message"].startswith("One second by ")
    assert (said["feeder"]["status"], "nommerd up" in said["feeder"]["hint"]) == ("warning", True)
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_faults_of_the_configuration_are_told_with_their_place_and_end_with_1(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "programs", lambda patient: iter(()))
    monkeypatch.setattr(encoding, "encode", lambda patient: iter(()))
    config = tmp_path / "nommerd.yaml"
    config.write_text("workr: {slots: 1}\n")
    ended = here(None, "doctor", "-c", str(config))
    assert ended.returncode == 1
    assert "fault     configuration" in ended.stdout and f"{config}:1:1" in ended.stdout
    assert "1 fault, " in ended.stdout


def test_an_ffmpeg_that_is_missing_or_lacks_an_encoder_is_told_by_preset(tmp_path: Path) -> None:
    patient = settled(tmp_path, "media: {ffmpeg: /no/such/ffmpeg}\n")
    assert statuses(encoding.programs(patient)) == [("ffmpeg", "fault")]
    assert statuses(encoding.encode(patient)) == [("encode", "fault")]


def test_a_check_that_hangs_ends_in_time_and_one_that_breaks_is_a_fault() -> None:
    release = threading.Event()

    def hangs(patient: Patient) -> Iterator[Finding]:
        yield Finding("slow", "ok", "So far.")
        release.wait(30)

    def breaks(patient: Patient) -> Iterator[Finding]:
        raise ZeroDivisionError
        yield

    begun = time.monotonic()
    try:
        assert statuses(within(0.05, "slow", hangs, Patient())) == [("slow", "ok"), ("slow", "fault")]
    finally:
        release.set()
    assert time.monotonic() - begun < 5
    assert statuses(within(5, "broken", breaks, Patient())) == [("broken", "fault")]


# --- database ----------------------------------------------------------------------------------------------------------


def made(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    connection = connect(path)
    migrate(connection, path)
    connection.close()
    return path


def test_a_database_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    patient = settled(tmp_path)
    assert statuses(database.database(patient)) == [("database", "ok")]
    path = made(tmp_path / "data" / "nommerd.db")
    before = tree(path.parent)
    assert statuses(database.database(patient)) == [("database", "ok")] * 2
    assert tree(path.parent) == before
    in_use = connect(path)
    in_use.execute("BEGIN IMMEDIATE")
    in_use.execute("INSERT INTO meta VALUES ('x', 1)")
    assert statuses(database.database(patient)) == [("database", "ok")] * 2
    in_use.execute("ROLLBACK")
    in_use.close()


def test_a_database_that_is_damaged_foreign_or_of_a_newer_version_is_a_fault(tmp_path: Path) -> None:
    patient = settled(tmp_path)
    path = made(tmp_path / "data" / "nommerd.db")
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + os.urandom(len(whole) - 8192))
    assert ("database", "fault") in statuses(database.database(patient))
    path.write_bytes(b"no database at all" * 100)
    assert statuses(database.database(patient)) == [("database", "fault")]
    path.write_bytes(whole)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    (fault,) = database.database(patient)
    assert (fault.status, "Upgrade" in fault.hint) == ("fault", True)


# --- machine -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = settled(tmp_path)
    assert {status for _, status in statuses(machine.disk(patient))} == {"ok"}
    monkeypatch.setattr(machine, "FREE_LEAST", 10**18)
    assert ("disk", "fault") in statuses(machine.disk(patient))
    assert not (tmp_path / "data").exists()


def test_few_open_files_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, status in ((64, "fault"), (512, "warning"), (4096, "ok"), (-1, "ok")):
        monkeypatch.setattr(machine.resource, "getrlimit", lambda what, files=files: (files, -1))
        assert statuses(machine.limits(Patient()))[0] == ("limits", status)


def test_what_a_dead_worker_left_is_told_and_what_a_live_one_has_is_not(tmp_path: Path) -> None:
    from nommerd.workspace import Workspaces

    patient = settled(tmp_path)
    assert statuses(machine.workspaces(patient)) == [("workspaces", "ok")]
    work = tmp_path / "data" / "work"
    mine = Workspaces(work).open("mine", 1)
    assert statuses(machine.workspaces(patient)) == [("workspaces", "ok")]
    left = work / "left.1"
    left.mkdir()
    (left / ".lock").touch()
    (left / "film.mov").write_bytes(b"x" * 10_000)
    before = tree(work)
    (found,) = machine.workspaces(patient)
    assert (found.status, found.message.startswith("1 of dead workers")) == ("warning", True)
    assert tree(work) == before
    mine.close()


# --- feeder, tokens, webhooks ------------------------------------------------------------------------------------------


def test_the_feeders_clock_its_token_and_its_webhooks_are_looked_at(feeder: Feeder, tmp_path: Path) -> None:
    patient = settled(tmp_path)
    patient.url, patient.token = feeder.url, "a-token"
    feeder.headers = {"Date": formatdate(time.time() - 100, usegmt=True)}
    failing = {"job": "j", "host": "app.example", "tries": 4, "next_at": None, "status": 500, "why": "answered 500"}
    feeder.script = [(200, {}), (200, {"name": "ci", "project": "default", "scopes": ["read"]}),
                     (200, {"due": 5, "disabled": [], "failing": [failing]})]
    found = list(services.feeder(patient))
    assert ("clock", "warning") in statuses(found)
    assert ("feeder", "ok") in statuses(found)
    assert any("ci, project default, may read" in one.message for one in services.tokens(patient))
    hooks = list(services.webhooks(patient))
    assert ("webhooks", "warning") in statuses(hooks)
    assert any("app.example" in one.message and "nommerd webhooks test" in one.hint for one in hooks)


@pytest.mark.parametrize(("status", "answer"), [(401, {"errors": []}), (403, {"detail": "No.", "errors": []})])
def test_a_token_that_is_refused_is_a_fault(feeder: Feeder, tmp_path: Path, status: int, answer: Any) -> None:
    patient = settled(tmp_path)
    patient.url, patient.token = feeder.url, "a-token"
    feeder.script = [(status, answer)]
    assert ("tokens", "fault") in statuses(services.tokens(patient))


def test_something_else_on_the_port_is_a_fault(feeder: Feeder, tmp_path: Path) -> None:
    patient = settled(tmp_path)
    patient.url = feeder.url
    feeder.script = [(404, {})]
    assert ("feeder", "fault") in statuses(services.feeder(patient))


def test_a_token_file_that_is_of_no_use_is_told_and_not_taken_for_none(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "SYSTEM_DATA", tmp_path / "none")  # this machine may have nommerd itself
    patient = settled(tmp_path)
    file = patient.known.token_file
    told = [one for one in services.tokens(patient) if "no token here" in one.message]
    assert [one.status for one in told] == ["ok"]
    file.parent.mkdir()
    file.touch(0o600)
    assert any(one.status == "warning" and f"{file} was not read" in one.message for one in services.tokens(patient))


def test_a_token_file_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    patient = settled(tmp_path)
    file = patient.known.token_file
    file.parent.mkdir()
    file.write_text("a-token-of-ours\n")
    file.chmod(0o644)
    found = list(services.tokens(patient))
    assert (found[0].status, "chmod 600" in found[0].hint) == ("fault", True)
    assert all("a-token-of-ours" not in one.message + one.hint for one in found)
    file.chmod(0o600)
    assert "fault" not in dict(statuses(services.tokens(patient))).values()


def test_keys_that_others_can_read_are_a_fault_and_are_not_to_be_deleted(tmp_path: Path) -> None:
    patient = settled(tmp_path)
    file = patient.known.keys_file
    file.parent.mkdir()
    file.write_text("a-key-of-ours\n")
    file.chmod(0o640)
    (fault,) = [one for one in services.tokens(patient) if one.status == "fault"]
    assert str(file) in fault.message
    assert "keygen" in fault.hint
    assert "delete" not in fault.hint
    file.chmod(0o600)
    assert "fault" not in dict(statuses(services.tokens(patient))).values()


def test_a_feeder_that_is_not_ready_is_told_in_its_words(feeder: Feeder, tmp_path: Path) -> None:
    patient = settled(tmp_path)
    patient.url = feeder.url
    for answer, said in (({"detail": "It takes no jobs."}, "is not ready: It takes no jobs."), ([], "is not ready: []")):
        feeder.script = [(503, answer)]
        assert next(iter(services.feeder(patient))).message.endswith(said)


def test_it_is_one_list_of_checks_for_people_and_machines() -> None:
    assert set(command.COLOURS) == {"ok", "warning", "fault"}
