"""`jobs ls` with its filters, and `jobs watch`."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.unit.cli.scripted import Feeder, event, here, job


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.cli.jobwatch.INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr("nommerd.cli.client.AGAIN_SECONDS", 0.001)


def test_several_jobs_are_followed_to_their_end_and_one_failure_is_a_1(feeder: Feeder) -> None:
    problem = {"code": "input.truncated", "message": "Half.", "hint": "Again."}
    feeder.script = [
        (200, job(id="a")), (200, job(id="b")),
        (200, job(id="a", state="FINISHED", progress=1.0, event_seq=2, events=[event(1, "ENCODING"), event(2, "FINISHED")])),
        (503, {"code": "node.store_unavailable", "detail": "Busy.", "errors": []}),
        (200, job(id="b", state="ERROR", event_seq=1, events=[event(1, "ERROR")], error=problem))]
    ended = here(feeder, "jobs", "watch", "a", "b", "a")
    assert ended.returncode == 1
    states = [line.split()[1:3] for line in ended.stderr.splitlines() if line.startswith("09:00")]
    assert states == [["a", "PENDING"], ["b", "PENDING"], ["a", "ENCODING"], ["a", "FINISHED"], ["b", "ERROR"]]
    assert "input.truncated: Half." in ended.stderr


def test_for_machines_each_change_is_one_line(feeder: Feeder) -> None:
    feeder.script = [(200, job()), (200, job()), (200, job(state="ENCODING", event_seq=1, progress=0.2)),
                     (200, job(state="ENCODING", event_seq=1, progress=0.4)),
                     (200, job(state="FINISHED", event_seq=2, progress=1.0))]
    ended = here(feeder, "jobs", "watch", "j1", "--json")
    assert ended.returncode == 0
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(one["state"], one["progress"]) for one in told] == [
        ("PENDING", 0.0), ("ENCODING", 0.2), ("ENCODING", 0.4), ("FINISHED", 1.0)]


def test_without_ids_what_runs_is_told_until_ctrl_c(feeder: Feeder, monkeypatch: pytest.MonkeyPatch) -> None:
    feeder.script = [(200, {"jobs": [job(state="ENCODING", event_seq=1, progress=0.2)], "next": None}),
                     (200, {"jobs": [], "next": None}), (200, job(state="FINISHED", event_seq=2, progress=1.0))]
    pauses = iter([None, KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        if (error := next(pauses)) is not None:
            raise error

    monkeypatch.setattr("nommerd.cli.jobwatch.time.sleep", sleep)
    ended = here(feeder, "jobs", "watch", "--json")
    assert ended.returncode == 0
    assert [json.loads(line)["state"] for line in ended.stdout.splitlines()] == ["ENCODING", "FINISHED"]


def test_since_is_an_age_or_a_time_and_all_has_no_limit(feeder: Feeder) -> None:
    feeder.script = [(200, {"jobs": [job()] * 500, "next": "c"}), (200, {"jobs": [job()], "next": None}),
                     (200, {"jobs": [], "next": None})]
    assert len(json.loads(here(feeder, "jobs", "ls", "--since", "2h", "--all", "--json").stdout)) == 501
    since = parse_qs(urlsplit(feeder.asked[0][1]).query)["since"][0]
    assert since.endswith("Z")
    assert abs(datetime.now(UTC) - timedelta(hours=2) - datetime.fromisoformat(since)) < timedelta(minutes=1)
    assert here(feeder, "jobs", "ls", "--since", "2026-01-31T09:00:00+02:00", "--json").stdout == "[]\n"
    assert "since=2026-01-31T07%3A00%3A00Z" in feeder.asked[2][1]
    for wrong in ("yesterday", "2x", "-2h", "nanh", "1e400h", "99999999999d"):
        assert here(feeder, "jobs", "ls", f"--since={wrong}").returncode == 2


def test_more_than_are_shown_are_told_of(feeder: Feeder) -> None:
    feeder.script = [(200, {"jobs": [job()] * 3, "next": None})]
    ended = here(feeder, "jobs", "ls", "--limit", "2")
    assert (len(ended.stdout.splitlines()), "There are more than these 2" in ended.stderr) == (3, True)


def test_names_from_elsewhere_cannot_speak_to_the_terminal(feeder: Feeder) -> None:
    hostile = job(source="file:///m/%1b[2Jx%0Ay.mov", labels={"a": "\x1b]0;owned\x07"},
                  error={"code": "input.x", "message": "\x1b[31m", "hint": ""}, state="ERROR")
    feeder.script = [(200, {"jobs": [hostile], "next": None}), (200, hostile)]
    for command in (["jobs", "ls"], ["jobs", "show", "j1"]):
        shown = here(feeder, *command).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown), shown


def test_show_tells_of_deliveries(feeder: Feeder) -> None:
    hook = {"accepted_seq": 1, "tries": 3, "next_at": "2026-01-31T09:05:00Z", "disabled": False, "deliveries": [
        {"seq": 2, "at": "2026-01-31T09:00:00Z", "status": None, "why": "connection refused"},
        {"seq": 2, "at": "2026-01-31T09:01:00Z", "status": 500, "why": "answered 500"}]}
    feeder.script = [(200, job(event_seq=2, webhook=hook))]
    shown = here(feeder, "jobs", "show", "j1").stdout
    for text in ("events up to 1 accepted, tried 3 times, again at 2026-01-31T09:05:00Z",
                 "event 2 at 2026-01-31T09:00:00Z: no answer, connection refused", "500, answered 500"):
        assert text in shown
