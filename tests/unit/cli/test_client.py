"""Client commands against a scripted feeder: what they send, show, and exit with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nommerd import __version__
from tests.unit.cli.scripted import TOKEN, Feeder, event, here, job, nommerd


def test_submit_sends_absolute_uris_and_only_what_was_given(feeder: Feeder, tmp_path: Path) -> None:
    feeder.script = [(201, job())]
    ended = nommerd(feeder, "submit", "in it.mov", "out/", "-p", "web-720p", "--set", "width=640", "--set",
                    "video_bitrate=600k", "--label", "a=b=c", "--input", "captions=en.vtt", "--input", "captions=http://h/x.vtt",
                    "--priority", "high", "--idempotency-key", "k1", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "j1\n")
    ((method, path, body, headers),) = feeder.asked
    assert (method, path) == ("POST", "/v1/jobs")
    assert (headers["authorization"], headers["idempotency-key"]) == (f"Bearer {TOKEN}", "k1")
    assert body == {
        "source": f"{tmp_path.as_uri()}/in%20it.mov", "dest": f"{tmp_path.as_uri()}/out/", "preset": "web-720p",
        "params": {"width": 640, "video_bitrate": "600k"}, "labels": {"a": "b=c"}, "priority": "high",
        "inputs": {"captions": [{"uri": f"{tmp_path.as_uri()}/en.vtt"}, {"uri": "http://h/x.vtt"}]}}


def test_waiting_shows_every_state_even_those_that_were_over_between_two_looks(feeder: Feeder) -> None:
    feeder.script = [
        (201, job()),
        (200, job(state="ENCODING", event_seq=2, progress=0.3, stage="ffmpeg",
                  events=[event(1, "DOWNLOADING"), event(2, "ENCODING")])),
        (200, job(state="FINISHED", event_seq=6, progress=1.0,
                  outputs=[{"uri": "file:///m/out.mp4", "bytes": 1, "sha256": "0"}],
                  events=[event(n, s, 1 if n < 4 else 2) for n, s in enumerate(
                      ["DOWNLOADING", "ENCODING", "PENDING", "DOWNLOADING", "UPLOADING", "FINISHED"], 1)]))]
    ended = nommerd(feeder, "submit", "/m/in.mov", "/m/out.mp4", "-p", "web-720p", "--wait")
    assert (ended.returncode, ended.stdout) == (0, "file:///m/out.mp4\n")
    states = [line.split()[1] for line in ended.stderr.splitlines() if line.startswith("09:00:0")]
    assert states == ["PENDING", "DOWNLOADING", "ENCODING", "PENDING", "DOWNLOADING", "UPLOADING", "FINISHED"]
    assert "attempt 2" in ended.stderr
    assert [path for _, path, _, _ in feeder.asked[1:]] == ["/v1/jobs/j1?wait=0.5&after=0", "/v1/jobs/j1?wait=0.5&after=2"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_waiting_for_a_job_that_fails_ends_with_1_and_its_error(feeder: Feeder, arguments: list[str]) -> None:
    problem = {"code": "input.truncated", "message": "Half of it is missing.", "hint": "Send it again."}
    feeder.script = [(201, job()), (200, job(state="ERROR", event_seq=1, events=[event(1, "ERROR")], error=problem))]
    ended = nommerd(feeder, "submit", "/m/in.mov", "/m/out.mp4", "--pipeline", "web-mp4", "--wait", *arguments)
    assert ended.returncode == 1
    if arguments:
        assert json.loads(ended.stdout)["error"] == problem
    else:
        assert "input.truncated: Half of it is missing.\n  Send it again." in ended.stderr


def test_a_list_goes_over_as_many_pages_as_it_takes(feeder: Feeder) -> None:
    feeder.script = [(200, {"jobs": [job(id=f"a{i}") for i in range(500)], "next": "c 1"}),
                     (200, {"jobs": [job(id=f"b{i}") for i in range(100)], "next": "c2"})]
    ended = nommerd(feeder, "jobs", "ls", "--limit", "600", "--state", "pending", "--label", "a=b", "--code", "input.x",
                    "--json")
    assert [one["id"] for one in json.loads(ended.stdout)] == [f"a{i}" for i in range(500)] + [f"b{i}" for i in range(100)]
    assert [path for _, path, _, _ in feeder.asked] == [
        "/v1/jobs?state=PENDING&label=a%3Db&error_code=input.x&limit=500",
        "/v1/jobs?state=PENDING&label=a%3Db&error_code=input.x&limit=100&cursor=c+1"]


def test_a_table_shows_one_job_a_line(feeder: Feeder) -> None:
    feeder.script = [(200, {"jobs": [job(), job(id="j2", state="ERROR", error={"code": "input.damaged"})], "next": None})]
    lines = nommerd(feeder, "jobs", "ls").stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].split() == ["ID", "STATE", "DONE", "PRESET", "SOURCE", "UPDATED", "ERROR"]
    assert "in it.mov" in lines[1]
    assert lines[2].split()[-1] == "input.damaged"


def test_show_tells_attempts_outputs_and_the_error(feeder: Feeder) -> None:
    attempts = [{"worker": "w1", "node": "n", "begun": "2026-01-31T09:00:00Z", "ended": "2026-01-31T09:01:00Z",
                 "why": "node.lost"}]
    feeder.script = [(200, job(attempts=attempts, warnings=[{"code": "input.damaged", "message": "A bit.", "hint": ""}],
                               outputs=[{"uri": "file:///m/out.mp4", "bytes": 1_500_000, "sha256": "ab" * 32}]))]
    shown = nommerd(feeder, "jobs", "show", "j1").stdout
    for text in ("w1 on n", "node.lost", "input.damaged: A bit.", "file:///m/out.mp4 (1.5 MB"):
        assert text in shown


def test_show_tells_what_was_asked_for_and_times_to_the_second(feeder: Feeder) -> None:
    feeder.script = [(200, job(params={"video_bitrate": "600k"}, labels={"album": "of 2026"}, priority="high",
                               created="2026-01-31T09:00:00.123456Z")), (200, job())]
    lines = nommerd(feeder, "jobs", "show", "j1").stdout.splitlines()
    assert {"params    video_bitrate=600k", "labels    album=of 2026", "priority  high",
            "created   2026-01-31T09:00:00Z"} <= set(lines)
    assert "priority" not in nommerd(feeder, "jobs", "show", "j1").stdout


def test_a_refused_id_keeps_no_other_from_its_turn(feeder: Feeder) -> None:
    refusal = {"status": 404, "code": "request.unknown_job", "errors": [
        {"place": "path.id", "code": "request.unknown_job", "message": "There is no job 'x'.", "hint": ""}]}
    feeder.script = [(404, refusal), (200, job(state="CANCELLED"))]
    ended = nommerd(feeder, "jobs", "cancel", "x", "j1")
    assert (ended.returncode, ended.stdout) == (1, "j1  CANCELLED\n")
    assert "There is no job 'x'." in ended.stderr


def test_cancel_and_retry_take_several_ids(feeder: Feeder) -> None:
    feeder.script = [(202, job(state="ENCODING")), (200, job(id="j2", state="CANCELLED")), (202, job(id="j/3"))]
    assert nommerd(feeder, "jobs", "cancel", "j1", "j2").stdout == "j1  cancel requested\nj2  CANCELLED\n"
    assert nommerd(feeder, "jobs", "retry", "j/3").returncode == 0
    assert [path for _, path, _, _ in feeder.asked] == ["/v1/jobs/j1/cancel", "/v1/jobs/j2/cancel", "/v1/jobs/j%2F3/retry"]


PROBLEM = {"status": 422, "code": "request.unknown_field", "detail": "2 faults", "errors": [
    {"place": "body.presett", "code": "request.unknown_field", "message": "There is no field presett.",
     "hint": "Did you mean preset?"},
    {"place": "body.dest", "code": "dest.bad_uri", "message": "Not a URI.", "hint": ""}]}


def test_a_refusal_shows_every_fault_with_its_place_and_hint(feeder: Feeder) -> None:
    feeder.script = [(422, PROBLEM), (422, PROBLEM)]
    ended = nommerd(feeder, "submit", "/a", "/b", "-p", "x")
    assert ended.returncode == 1
    assert "body.presett: request.unknown_field: There is no field presett. Did you mean preset?" in ended.stderr
    assert "body.dest: dest.bad_uri: Not a URI." in ended.stderr
    ended = nommerd(feeder, "submit", "/a", "/b", "-p", "x", "--json")
    assert json.loads(ended.stdout)["errors"] == PROBLEM["errors"]


@pytest.mark.parametrize(("status", "answer", "code", "says"), [
    (401, {"code": "request.unauthorized", "errors": []}, 2, "NOMMERD_TOKEN"),
    (503, {"code": "node.store_unavailable", "detail": "Busy.", "errors": []}, 1, "Busy."),
    (200, "<html>", 1, "not JSON"),
    (500, "", 1, "500"),
])
def test_other_answers_say_what_to_do(feeder: Feeder, status: int, answer: Any, code: int, says: str) -> None:
    feeder.script = [(status, answer)]
    ended = nommerd(feeder, "jobs", "ls")
    assert ended.returncode == code
    assert says in ended.stderr


def test_without_a_feeder_it_says_so_and_ends_with_1() -> None:
    ended = nommerd(None, "jobs", "ls", NOMMERD_URL="http://127.0.0.1:1", NOMMERD_TOKEN="x")
    assert ended.returncode == 1
    assert "nommerd up" in ended.stderr


def test_the_token_comes_from_the_file_that_up_makes(feeder: Feeder, tmp_path: Path) -> None:
    (tmp_path / "nommerd").mkdir()
    (tmp_path / "nommerd" / "token").write_text("from-the-file\n")
    feeder.script = [(200, {"jobs": [], "next": None})] * 2
    for arguments, token in (([], "from-the-file"), (["--token", "given"], "given")):
        env = {"XDG_DATA_HOME": str(tmp_path), "NOMMERD_URL": feeder.url}
        assert nommerd(None, "jobs", "ls", *arguments, **env).returncode == 0
        assert feeder.asked[-1][3]["authorization"] == f"Bearer {token}"


def test_without_any_token_it_says_where_to_get_one(tmp_path: Path) -> None:
    ended = nommerd(None, "jobs", "ls", XDG_DATA_HOME=str(tmp_path))
    assert ended.returncode == 2
    assert "config.no_token" in ended.stderr


def test_an_empty_token_never_becomes_the_operators(feeder: Feeder, tmp_path: Path) -> None:
    (tmp_path / "nommerd").mkdir()
    (tmp_path / "nommerd" / "token").write_text("from-the-file\n")
    ended = nommerd(None, "jobs", "ls", "--token", "", XDG_DATA_HOME=str(tmp_path), NOMMERD_URL=feeder.url)
    assert (ended.returncode, "--token is empty" in ended.stderr, feeder.asked) == (2, True, [])


@pytest.mark.parametrize("expires", ["90", "-1d", "soon"])
def test_a_token_without_a_unit_of_time_is_not_made(feeder: Feeder, expires: str) -> None:
    ended = here(feeder, "tokens", "create", "ci", "--scope", "read", "--expires", expires)
    assert (ended.returncode, "Write 12h or 90d" in ended.stderr, feeder.asked) == (2, True, [])


def test_a_replay_of_what_is_not_there_says_so(feeder: Feeder) -> None:
    for accepted, said in ((2, "events behind 2 are due"), (4, "none is due")):
        feeder.script = [(202, {"id": "j", "event_seq": 4, "webhook": {"accepted_seq": accepted}})]
        assert said in here(feeder, "webhooks", "replay", "j", "--after", str(accepted)).stdout


@pytest.mark.parametrize("arguments", [
    ["nonsense"], ["submit"], ["submit", "/a", "/b"], ["submit", "/a", "/b", "-p", "x", "--pipeline", "y"],
    ["submit", "/a", "/b", "-p", "x", "--set", "novalue"], ["jobs", "cancel"], ["jobs", "ls", "--limit", "0"],
    ["jobs", "ls", "--url", "ftp://x"], ["config", "check", "-c", "/none.yaml"], ["encode", "/a", "/b"]], ids=" ".join)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    ended = nommerd(None, *arguments, NOMMERD_TOKEN="x")
    assert ended.returncode == 2
    assert ended.stderr


def test_version() -> None:
    assert nommerd(None, "--version").stdout == f"nommerd {__version__}\n"
