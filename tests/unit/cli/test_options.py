from __future__ import annotations

from pathlib import Path

import pytest

from nommerd.cli.options import absolute_uri, scalar
from nommerd.cli.output import duration, size


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


def test_sizes_and_times_in_words() -> None:
    assert [size(n) for n in (None, 0, 999, 1000, 1_234_567, 5 * 10**12)] == ["", "0 B", "999 B", "1.0 kB", "1.2 MB", "5.0 TB"]
    assert [duration(s) for s in (None, 0, 75.2, 3661)] == ["", "0:00", "1:15", "1:01:01"]
