"""The log of an attempt: what is in it, what never is, and that it stays small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nommerd import logs
from nommerd.errors import ConfigError, Stop
from nommerd.job import Output
from nommerd.journal import COMMANDS_MAX, LOG_BYTES_MAX, STDERR_BYTES_MAX, Journal, shown_text
from nommerd.media.process import Exit, observed, run


def told(journal: Journal) -> dict[str, Any]:
    text = journal.text()
    assert len(text.encode()) <= LOG_BYTES_MAX
    found: dict[str, Any] = json.loads(text)
    return found


def commands(journal: Journal) -> list[dict[str, Any]]:
    return [command for stage in told(journal)["stages"] for command in stage["commands"]]


def ran(journal: Journal, argv: list[str], stderr: str = "", code: int = 0) -> None:
    journal.program(argv)(Exit(code=code, stderr=stderr))


def shell(journal: Journal, folder: Path, script: str, stop: Stop | None = None) -> None:
    with observed(journal.program):
        run(["/bin/sh", "-c", script], cwd=folder, stop=stop or Stop(), stall_seconds=None)


def test_programs_are_noted_with_what_they_said_and_how_they_ended(tmp_path: Path) -> None:
    journal = Journal(3, "w1", "node")
    journal.begin("one")
    shell(journal, tmp_path, "echo oh >&2; exit 7")
    journal.begin("two")
    shell(journal, tmp_path, "kill -9 $$")
    shown = told(journal)
    assert (shown["number"], shown["worker"], shown["node"], shown["ended"], shown["outcome"]) == (3, "w1", "node", None, None)
    assert [stage["stage"] for stage in shown["stages"]] == ["one", "two"]
    assert shown["stages"][0]["seconds"] is not None and shown["stages"][1]["seconds"] is None
    first, second = commands(journal)
    assert first["argv"] == ["/bin/sh", "-c", "echo oh >&2; exit 7"]
    assert (first["code"], first["stderr"], second["code"]) == (7, "oh", -9)


def test_a_program_that_runs_is_there_without_an_end(tmp_path: Path) -> None:
    journal, stop = Journal(), Stop()
    seen: list[dict[str, Any]] = []
    with observed(journal.program):
        run(["/bin/sh", "-c", "echo now"], cwd=tmp_path, stop=stop, stall_seconds=None,
            on_line=lambda line: seen.extend(commands(journal)))
    assert [(one["code"], one["seconds"]) for one in seen] == [(None, None)]
    assert commands(journal)[0]["code"] == 0


def test_a_program_that_cannot_be_started_is_noted_too(tmp_path: Path) -> None:
    journal = Journal()
    with pytest.raises(ConfigError), observed(journal.program):
        run(["/nowhere/ffmpeg"], cwd=tmp_path, stop=Stop(), stall_seconds=None)
    only, = commands(journal)
    assert only["argv"] == ["/nowhere/ffmpeg"] and only["code"] is None and only["seconds"] is not None


def test_outside_the_block_nothing_is_noted(tmp_path: Path) -> None:
    journal = Journal()
    shell(journal, tmp_path, "true")
    run(["/bin/sh", "-c", "true"], cwd=tmp_path, stop=Stop(), stall_seconds=None)
    assert len(commands(journal)) == 1


def test_files_of_the_workspace_go_by_their_names() -> None:
    journal = Journal()
    journal.workspace = Path("/var/lib/nommerd/work/abc.1")
    ran(journal, ["/usr/bin/ffmpeg", "-i", "file:/var/lib/nommerd/work/abc.1/source.mov", "-passlogfile",
                  "/var/lib/nommerd/work/abc.1/out.pass"], "[error] /var/lib/nommerd/work/abc.1/source.mov: bad")
    only, = commands(journal)
    assert only["argv"] == ["/usr/bin/ffmpeg", "-i", "file:source.mov", "-passlogfile", "out.pass"]
    assert only["stderr"] == "[error] source.mov: bad"


def test_what_programs_say_is_harmless() -> None:
    logs.register("a-registered-secret")
    said = "\x1b[31mred\x1b[0m\u202e a-registered-secret\r\nhttps://user:pass@host/a?sig=hidden\x00\n"
    shown = shown_text(said, None)
    assert shown.splitlines() == ["[31mred [0m  ********", "https://********@host/a?********"]


def test_of_much_the_end_is_kept_and_no_line_is_cut_before_it_was_cleaned() -> None:
    secret = "https://user:hunter2@host/"
    text = "".join(f"{number} {secret}{'x' * 90}\n" for number in range(2000))
    shown = shown_text(text, None)
    assert "hunter2" not in shown and shown.splitlines()[-1].startswith("1999 ")
    assert STDERR_BYTES_MAX / 2 < len(shown.encode()) <= STDERR_BYTES_MAX
    assert len(shown_text("é" * 100_000, None).encode()) <= STDERR_BYTES_MAX


def test_a_log_stays_small_and_what_is_oldest_is_shortened_first() -> None:
    journal = Journal()
    journal.begin("noisy")
    for number in range(20):
        ran(journal, ["/usr/bin/ffmpeg", str(number)], f"{number}: " + f"ü{number}\n" * 2000)
    shown = told(journal)
    sizes = [len(one["stderr"].encode()) for one in commands(journal)]
    assert shown["truncated"] and len(sizes) == 20
    assert sizes[-1] > 7000 and sizes[0] <= 512 and sizes == sorted(sizes)
    assert len(journal.text().encode()) > LOG_BYTES_MAX * 0.8


def test_a_small_log_is_whole() -> None:
    journal = Journal()
    for number in range(3):
        journal.begin(f"stage-{number}")
        ran(journal, ["/usr/bin/ffmpeg"], "x\n" * 10)
    assert told(journal)["truncated"] is False


@pytest.mark.parametrize("argument", ["x" * 3000, "\x00\udcff\\\"" * 1000, "€" * 3000])
def test_however_much_is_run_with_whatever_arguments_the_log_stays_small(argument: str) -> None:
    journal = Journal()
    journal.begin("a")
    for number in range(2 * COMMANDS_MAX):
        ran(journal, ["/usr/bin/ffmpeg", argument, str(number)], "y" * 5000)
    outputs = [Output(uri=f"file:///out/{number}", bytes=1, sha256="", probe={"x": "z" * 2000}) for number in range(60)]
    journal.close("finished", outputs)
    shown = told(journal)
    assert shown["truncated"] and shown["outcome"] == "finished" and shown["ended"] >= shown["begun"]
    assert shown["stages"][0]["stage"] == "a"
