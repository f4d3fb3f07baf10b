"""`jobs cancel` and `jobs retry` by filters: never more than was meant, each job told of, one connection."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.unit.cli.scripted import Feeder, here, job

WRONG_STATE = {"status": 409, "code": "request.wrong_state", "errors": [
    {"place": "path.id", "code": "request.wrong_state", "message": "It is FINISHED.", "hint": ""}]}
GONE = {"status": 500, "code": "internal.error", "detail": "Sorry.", "errors": []}
BUSY = {"status": 503, "code": "node.store_unavailable", "detail": "Busy.", "errors": []}


def page(*ids: str, **more: Any) -> tuple[int, Any]:
    return 200, {"jobs": [job(id=one, **more) for one in ids], "next": None}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_job_is_told_of_and_a_409_keeps_no_other_from_its_turn(feeder: Feeder) -> None:
    feeder.script = [page("a", "b", "c", state="ERROR"), (202, job(id="a")), (409, WRONG_STATE), (202, job(id="c"))]
    ended = here(feeder, "jobs", "retry", "--code", "input.x", "--label", "k=v=w", "--preset", "p", "--yes")
    assert (ended.returncode, ended.stdout.splitlines()) == (
        0, ["a  PENDING", "b  skipped: It is FINISHED.", "c  PENDING", "2 of 3 retried, 1 skipped."])
    assert [(method, path) for method, path, _, _ in feeder.asked] == [
        ("GET", "/v1/jobs?state=ERROR&state=ABANDONED&label=k%3Dv%3Dw&preset=p&error_code=input.x&limit=500"),
        ("POST", "/v1/jobs/a/retry"), ("POST", "/v1/jobs/b/retry"), ("POST", "/v1/jobs/c/retry")]
    assert feeder.connections == 1


def test_one_that_fails_makes_it_end_with_1_and_the_others_are_done(feeder: Feeder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.cli.bulk.PAUSE_SECONDS", 0.001)
    refused = {"code": "request.invalid", "errors": [{"place": None, "code": "x.y", "message": "No.", "hint": ""}]}
    feeder.script = [page("a", "b"), (422, refused), (200, job(id="b", state="CANCELLED"))]
    ended = here(feeder, "jobs", "cancel", "--state", "pending", "--yes", "--json")
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert (told["matched"], told["done"], told["failed"]) == (2, 1, 1)
    assert [one["outcome"] for one in told["jobs"]] == ["failed", "done"]


def test_a_busy_feeder_is_given_its_time(feeder: Feeder, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    feeder.headers = {"Retry-After": "7"}
    feeder.script = [page("a"), (503, BUSY), (429, BUSY), (202, job(id="a"))]
    ended = here(feeder, "jobs", "cancel", "--state", "ENCODING", "--yes")
    assert (ended.returncode, slept) == (0, [7.0, 7.0])


def test_a_dry_run_and_a_no_do_nothing(feeder: Feeder, monkeypatch: pytest.MonkeyPatch) -> None:
    feeder.script = [page("a", "b"), page("a"), page("a", "b"), page("a", "b"), (200, job(id="a")), (200, job(id="b"))]
    ended = here(feeder, "jobs", "cancel", "--label", "a=b", "--dry-run")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "2 would be cancelled; nothing was done.")
    assert json.loads(here(feeder, "jobs", "cancel", "--label", "a=b", "--dry-run", "--json").stdout)["matched"] == 1
    assert here(feeder, "jobs", "cancel", "--label", "a=b", stdin=Terminal("n\n")).returncode == 130
    ended = here(feeder, "jobs", "cancel", "--label", "a=b", stdin=Terminal("y\n"))
    assert (ended.returncode, "Cancel these 2 jobs?" in ended.stderr) == (0, True)
    assert [method for method, *_ in feeder.asked] == ["GET"] * 4 + ["POST"] * 2


@pytest.mark.parametrize("arguments", [["--label", "a=b"], ["--label", "a=b", "--json"]], ids=" ".join)
def test_where_nobody_can_be_asked_it_needs_a_yes(feeder: Feeder, arguments: list[str]) -> None:
    feeder.script = [page("a")]
    ended = here(feeder, "jobs", "cancel", *arguments)
    assert (ended.returncode, "--yes" in ended.stderr + ended.stdout) == (2, True)
    assert len(feeder.asked) == 1


@pytest.mark.parametrize("arguments", [
    [], ["--yes"], ["--yes", "--preset", ""], ["--yes", "--code", " "], ["--yes", "--label", ""], ["--yes", "--label", "=x"],
    ["--yes", "--since", ""], ["--yes", "--state", ""], ["a", "--state", "ERROR"], [""], ["a", ""], ["a", "--dry-run"],
    ["--state", "FINISHED", "--yes"]], ids=" ".join)
def test_nothing_is_matched_by_accident(feeder: Feeder, arguments: list[str]) -> None:
    for verb in ("cancel", "retry"):
        assert here(feeder, "jobs", verb, *arguments).returncode == 2
    assert feeder.asked == []


def test_what_cannot_be_done_in_a_state_is_refused_before_anything_is_asked(feeder: Feeder) -> None:
    ended = here(feeder, "jobs", "retry", "--state", "ENCODING", "--yes")
    assert (ended.returncode, "ENCODING jobs cannot be retried" in ended.stderr) == (2, True)


def test_a_wrong_token_ends_it_at_once(feeder: Feeder) -> None:
    feeder.script = [page("a", "b"), (403, {"code": "request.forbidden", "detail": "Needs operate.", "errors": []})]
    assert here(feeder, "jobs", "cancel", "--state", "PENDING", "--yes").returncode == 2
