"""Which files are complete, what a watch remembers, and where outputs go: without a feeder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nommerd.cli.client import Client
from nommerd.cli.credentials import Token
from nommerd.cli.watcher import Plan, Tell, Watcher
from nommerd.cli.watchnames import destination
from nommerd.cli.watchscan import Scanner
from nommerd.cli.watchstate import Entry, State, opened
from nommerd.errors import ConfigError, InfrastructureError, InputError
from nommerd.secrets import Secret
from tests.unit.cli.scripted import TOKEN, Feeder, here, job


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def names(scanner: Scanner) -> list[str]:
    return [found.path for found in scanner.look()]


def test_a_file_is_complete_once_it_stood_still(tmp_path: Path) -> None:
    clock = Clock()
    scanner = Scanner(tmp_path, settle_seconds=5, clock=clock)
    file = tmp_path / "a.mov"
    file.write_bytes(b"1")
    assert names(scanner) == []
    clock.now = 4.9
    file.write_bytes(b"12")
    assert names(scanner) == []
    clock.now = 9.8
    assert (names(scanner), scanner.unsettled) == ([], 1)
    clock.now = 9.9
    assert (names(scanner), scanner.unsettled) == (["a.mov"], 0)
    os.utime(file, ns=(1, 1))  # as large, but another
    assert names(scanner) == []


def test_with_a_marker_it_is_complete_at_once_and_after_a_change_when_it_stood_still(tmp_path: Path) -> None:
    clock = Clock()
    scanner = Scanner(tmp_path, settle_seconds=5, marker=".done", patterns=["*"], clock=clock)
    (tmp_path / "a.mov").write_bytes(b"1")
    clock.now = 100
    assert names(scanner) == []
    (tmp_path / "a.mov.done").write_bytes(b"x")
    assert names(scanner) == ["a.mov"]
    (tmp_path / "a.mov").write_bytes(b"12")
    assert names(scanner) == []
    clock.now = 105
    assert names(scanner) == ["a.mov"]


def test_what_is_no_source_is_never_seen(tmp_path: Path) -> None:
    (tmp_path / "real.mov").write_bytes(b"1")
    (tmp_path / "folder.mov").mkdir()
    (tmp_path / "folder.mov" / "b.MOV").write_bytes(b"1")
    for name in (".a.mov", "a.mov.part", "a.mov~", "a.tmp", "a.txt", "x.crdownload"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "empty.mov").touch()
    (tmp_path / "link.mov").symlink_to(tmp_path / "real.mov")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mov")
    assert names(Scanner(tmp_path, settle_seconds=0)) == ["real.mov"]
    assert sorted(names(Scanner(tmp_path, settle_seconds=0, recursive=True))) == ["folder.mov/b.MOV", "real.mov"]
    assert names(Scanner(tmp_path, settle_seconds=0, recursive=True, patterns=["folder.mov/*"])) == ["folder.mov/b.MOV"]
    with pytest.raises(OSError):
        Scanner(tmp_path / "away").look()


def entry(path: str, dest: str, **more: object) -> Entry:
    return Entry(**{"key": f"{path}{more}", "path": path, "size": 1, "mtime_ns": 1, "body": {"dest": dest}, **more})  # type: ignore[arg-type]


def test_what_is_remembered_survives_a_torn_line_and_others_wait_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with opened(tmp_path, folder) as state:
        one = state.put(entry("\udce9.mov", "file:///o/a.mp4"), job="j1")
        state.put(one, state="FINISHED")
        with pytest.raises(ConfigError, match="Another"), opened(tmp_path, folder):
            pass
    with state.path.open("ab") as file:
        file.write(b'null\n{"key": "k", "nonsense": 1}\n{"key": "tor')
    with opened(tmp_path, folder) as state:
        assert [(e.path, e.job, e.state) for e in state.entries.values()] == [("\udce9.mov", "j1", "FINISHED")]
        assert len(state.path.read_bytes().splitlines()) == 1
        state.put(one, state="ERROR")
    assert json.loads(state.path.read_bytes().splitlines()[-1])["state"] == "ERROR"


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path, tmp_path) as state:
        state.put(entry("a", "x:/a"))
        real = os.write
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
        with pytest.raises(InfrastructureError, match="No space"):
            state.put(entry("b", "x:/b"))
        monkeypatch.undo()
        assert state.path.read_bytes().endswith(b"}\n")
        assert "b" not in state.latest


@pytest.mark.parametrize(("known", "path", "expected"), [
    ([], "a.mov", ("x:/o/a.mp4", False)),
    ([], "sub/a b%.mov", ("x:/o/sub/a%20b%25.mp4", False)),
    ([("b.mov", "x:/o/B.mp4", {})], "b.mkv", ("x:/o/b.mkv.mp4", False)),
    ([("b.mov", "x:/o/b.mp4", {}), ("b.ts", "x:/o/b.mkv.mp4", {})], "b.mkv", ("x:/o/b-2.mp4", False)),
    ([("a.mov", "x:/o/a.mp4", {"state": "FINISHED"})], "a.mov", ("x:/o/a.mp4", True)),
    ([("a.mov", "x:/o/a.mp4", {"state": "ERROR"})], "a.mov", ("x:/o/a.mp4", False)),
    ([("a.mov", "x:/o/a.mp4", {"state": "FINISHED"}), ("a.mov", "x:/o/a.mp4", {"state": "ERROR"})], "a.mov",
     ("x:/o/a.mp4", True)),
    ([("a.mov", "x:/o/a.mp4", {"state": "FINISHED", "gone": True})], "a.mov", ("x:/o/a.mov.mp4", False)),
    ([("a.mov", "x:/elsewhere/a.mp4", {"state": "FINISHED"})], "a.mov", ("x:/o/a.mp4", False)),
])
def test_each_file_has_a_destination_of_its_own(known: list[tuple[str, str, dict[str, object]]], path: str,
                                                expected: tuple[str, bool]) -> None:
    entries = {str(number): entry(name, dest, **more) for number, (name, dest, more) in enumerate(known)}
    state = State(Path("/nowhere"), entries, -1)
    assert destination(state, "x:/o/", path, "mp4") == expected


def test_several_outputs_get_a_folder_and_keys_of_s3_are_literal() -> None:
    state = State(Path("/nowhere"), {}, -1)
    assert destination(state, "file:///o/", "a é.mov", None)[0] == "file:///o/a%20%C3%A9/"
    assert destination(state, "s3://b/o/", "a é.mov", "mp4")[0] == "s3://b/o/a é.mp4"


@pytest.mark.parametrize("arguments", [
    ["in", "-o", "in", "-p", "x"], ["in", "-o", "in/out", "-p", "x", "--recursive"], ["in", "-o", "out"], ["in", "-p", "x"],
    ["in", "-o", "out", "-p", "x", "--pipeline", "y"], ["none", "-o", "out", "-p", "x"], ["in", "-o", "link", "-p", "x"],
    ["in", "-o", "out", "-p", "x", "--on-finished", "move"], ["in", "-o", "out", "-p", "x", "--move-to", "d"],
    ["in", "-o", "out", "-p", "x", "--on-finished", "move", "--move-to", "in"],
    ["in", "-o", "out", "-p", "x", "--settle", "x"], ["in", "-o", "out", "-p", "x", "--done-marker", ""],
    ["in", "-o", "http://me:pw@h/", "-p", "x"]], ids=" ".join)
def test_what_cannot_be_meant_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    assert here(None, "watch", *arguments, NOMMERD_TOKEN="x", XDG_STATE_HOME=str(tmp_path / "state")).returncode == 2
    assert not (tmp_path / "state").exists()


# --- the watcher against a scripted feeder -------------------------------------------------------------------------------


def watcher(feeder: Feeder, state: State, folder: Path, **recipe: object) -> Watcher:
    plan = Plan(folder=folder, out="file:///o/", recipe={"preset": "p", **recipe}, interval_seconds=0.001, once=True)
    return Watcher(plan=plan, client=Client(feeder.url, Token(Secret(TOKEN))), state=state, tell=Tell(as_json=True),
                   scanner=Scanner(folder, settle_seconds=0))


EXPLAINED = (200, {"outputs": [{"name": "film.mp4"}]})
OUTAGE = (503, {"code": "node.store_unavailable", "detail": "Busy.", "errors": []})


def test_a_submission_whose_answer_was_lost_is_sent_again_word_for_word(feeder: Feeder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mov").write_bytes(b"1")
    feeder.script = [EXPLAINED, OUTAGE]
    with opened(tmp_path, folder) as state:
        first = watcher(feeder, state, folder, labels={"a": "1"})
        first._round()
    feeder.script = [EXPLAINED, (200, job()), (200, job(state="FINISHED"))]
    with opened(tmp_path, folder) as state:
        assert watcher(feeder, state, folder, labels={"a": "2"}).run() == 0
    (lost, again) = [(body, headers["idempotency-key"]) for method, path, body, headers in feeder.asked if path == "/v1/jobs"]
    assert lost == again
    assert lost[0] == {"preset": "p", "labels": {"a": "1"}, "source": (folder / "a.mov").as_uri(), "dest": "file:///o/a.mp4"}


def test_a_refused_file_is_asked_for_once_and_by_the_next_watch_again(feeder: Feeder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mov").write_bytes(b"1")
    refusal = (422, {"errors": [{"place": "body.dest", "code": "dest.exists", "message": "There.", "hint": ""}]})
    for _ in range(2):
        feeder.script = [EXPLAINED, refusal]
        with opened(tmp_path, folder) as state:
            asked = watcher(feeder, state, folder)
            asked._round()
            asked._round()
            assert (asked._done(), asked.failed) == (True, 1)
    feeder.script = [EXPLAINED, (201, job()), (200, job(state="FINISHED"))]
    with opened(tmp_path, folder) as state:
        assert watcher(feeder, state, folder).run() == 0


def test_a_folder_that_the_feeder_may_not_read_is_told_by_its_own_name(feeder: Feeder, tmp_path: Path) -> None:
    outside = {"place": "body.source", "code": "source.outside_roots", "message": "/in/film.mov is outside.", "hint": ""}
    feeder.script = [(422, {"errors": [outside]})]
    with opened(tmp_path, tmp_path) as state, pytest.raises(InputError) as caught:
        watcher(feeder, state, tmp_path).run()
    assert str(caught.value).startswith(f"source.outside_roots: {tmp_path} is outside")
    assert "film.mov" not in str(caught.value)


def test_a_new_version_waits_for_the_job_of_the_old_one(feeder: Feeder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = folder / "a.mov"
    file.write_bytes(b"1")
    feeder.script = [EXPLAINED, (201, job(id="old")), (200, job(id="old", state="ENCODING")),
                     (200, job(id="old", state="ENCODING")), (200, job(id="old", state="FINISHED")), (201, job(id="new")),
                     (200, job(id="new", state="FINISHED"))]
    with opened(tmp_path, folder) as state:
        made = watcher(feeder, state, folder)
        made._round()
        file.write_bytes(b"12")
        for _ in range(3):
            made._round()
        assert made._done()
    assert [(method, path) for method, path, *_ in feeder.asked[1:]] == [
        ("POST", "/v1/jobs"), ("GET", "/v1/jobs/old"), ("GET", "/v1/jobs/old"), ("GET", "/v1/jobs/old"), ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs/new")]
    assert feeder.asked[5][2]["overwrite"] is True, "its own output may be replaced"


def test_a_new_version_waits_also_for_an_old_one_of_which_nobody_heard_whether_it_was_taken(
        feeder: Feeder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    file = folder / "a.mov"
    file.write_bytes(b"1")
    feeder.script = [EXPLAINED, OUTAGE]
    with opened(tmp_path, folder) as state:
        watcher(feeder, state, folder)._round()
    file.write_bytes(b"12")
    feeder.script = [EXPLAINED, (200, job(id="old")), (200, job(id="old", state="FINISHED")), (201, job(id="new")),
                     (200, job(id="new", state="FINISHED"))]
    with opened(tmp_path, folder) as state:
        assert watcher(feeder, state, folder).run() == 0
    lost, again, new = [(body, headers["idempotency-key"]) for _, path, body, headers in feeder.asked if path == "/v1/jobs"]
    assert lost == again and new[1] != lost[1]
    assert new[0] == {**lost[0], "overwrite": True}, "what the old one made is not in its way"


def test_where_the_feeder_cannot_tell_a_name_outputs_get_a_folder_each(feeder: Feeder, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mov").write_bytes(b"1")
    several = {"outputs": [{"name": "x-1.mp4"}, {"name": "x-2.mp4"}]}
    feeder.script = [(200, several), (201, job()), (200, job(state="FINISHED"))]
    with opened(tmp_path, folder) as state:
        watcher(feeder, state, folder)._round()
    assert feeder.asked[1][2]["dest"] == "file:///o/a/"
