from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from nommerd.cli.options import absolute_uri, scalar
from nommerd.cli.output import duration, moment, size, table


@pytest.mark.parametrize(("text", "value"), [
    ("640", 640), ("-3", -3), ("2.5", 2.5), ("1e3", 1000.0), ("true", True), ("false", False), ("2500k", "2500k"),
    ("1:30", "1:30"), ("nan", "nan"), ("inf", "inf"), ("1_000", "1_000"), ("yes", "yes"), ("", "")])
def test_values_on_the_command_line_become_numbers_only_where_they_are_plain_ones(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "uri"), [
    ("in.mov", "file:///here/in.mov"), ("a b%.mov", "file:///here/a%20b%25.mov"), ("/x/y", "file:///x/y"),
    ("out/", "file:///here/out/"),
    ("file:///x", "file:///x"), ("https://h/x?y", "https://h/x?y"), ("file:in.mov", "file:///here/in.mov"), ("-x", "file:///here/-x")])
def test_paths_become_absolute_uris(text: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/here"))
    assert absolute_uri(text) == uri


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, out: io.StringIO, *name: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout", out)
    table(["ID", "STATE", "SOURCE", "ERROR"], [["a3bf4943c3e8c841d9b5", "ERROR", one, "input.not_media"] for one in name],
          shrink=["SOURCE", "ERROR"])
    return re.sub(r"\x1b\[\d+m", "", out.getvalue()).splitlines()


@pytest.mark.parametrize("name", ["A very long name of a holiday film " * 3, "\N{CJK UNIFIED IDEOGRAPH-6620}" * 60],
                         ids=["narrow", "wide"])
def test_a_table_fits_into_80_columns_and_its_ids_stay_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, Terminal(), name, "b.mov")
    assert [cell_len(line) for line in lines] == [70, 80, 80]
    assert all(line.startswith("a3bf4943c3e8c841d9b5  ERROR  ") for line in lines[1:])
    assert "…" in lines[1]
    assert lines[2].split() == ["a3bf4943c3e8c841d9b5", "ERROR", "b.mov", "input.not_media"]


def test_a_terminal_without_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    shown(monkeypatch, coloured, "a.mov")
    monkeypatch.setenv("NO_COLOR", "1")
    shown(monkeypatch, plain, "a.mov")
    assert "\x1b[31mERROR" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()


def test_a_table_in_a_pipe_is_never_cut_and_has_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    assert "x" * 200 in shown(monkeypatch, out, "x" * 200)[1]
    assert "\x1b" not in out.getvalue()


def test_sizes_and_times_in_words() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 1_234_567, 5 * 10**12)] == ["", "0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 TB"]
    assert [duration(s) for s in (None, 0, 75.2, 3661)] == ["", "0:00", "1:15", "1:01:01"]
    assert moment("2026-01-31T09:00:00.123456Z") == "2026-01-31T09:00:00Z"
