"""Progress: never ahead of the truth, never wider than the terminal, quiet where there is none."""

from __future__ import annotations

import io
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from nommerd.cli.progress import Bar, Board, ProgressLine, draw, duration, percent, plain

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 10)))
    return Terminal()


@pytest.mark.parametrize(("fraction", "done", "shown"), [
    (0.0, False, "  0 %"), (0.299, False, " 29 %"), (0.29, False, " 29 %"), (0.9999, False, " 99 %"), (1.0, False, " 99 %"),
    (1.0, True, "100 %"), (0.5, True, " 50 %"), (-1, False, "  0 %"), (7, True, "100 %")])
def test_a_percentage_is_rounded_down_and_100_means_that_it_is_over(fraction: float, done: bool, shown: str) -> None:
    assert percent(Bar("x", fraction, done=done)) == shown


@given(st.text(max_size=40), st.floats(-1, 2), st.none() | st.floats(0, 1e7), st.text(max_size=30), st.integers(6, 200),
       st.booleans())
def test_a_bar_fits_its_line_whatever_it_says(label: str, fraction: float, eta: float | None, note: str, room: int,
                                              colour: bool) -> None:
    drawn = ESCAPES.sub("", draw(Bar(label, fraction, eta, note), room, colour))
    assert cell_len(drawn) <= room
    assert drawn.isprintable()
    assert percent(Bar("", fraction)).strip() in drawn


def test_what_goes_first_is_the_bar_then_what_is_beside_it_then_the_label() -> None:
    bar = Bar("encode", 0.5, 75, "w1")
    assert draw(bar, 60) == "encode       " + "━" * 13 + "╌" * 13 + "  50 %  1:15 left  w1"
    assert draw(bar, 36) == "encode        50 %  1:15 left  w1"
    assert draw(bar, 30) == "encode        50 %  1:15 left"
    assert draw(bar, 20) == "encode        50 %"
    assert draw(Bar("a-long-label", 0.5), 10) == "a-lo  50 %"


def test_a_line_is_redrawn_on_a_terminal(terminal: Terminal) -> None:
    line = ProgressLine(terminal)
    line.show("fetch", 0.1)
    line.show("encode", 0.2, 5)
    line.say("a word")
    assert ESCAPES.sub("", terminal.getvalue()).split("\r")[-1] == "a word\n"
    assert terminal.getvalue().count("\n") == 1


def test_several_lines_are_redrawn_in_place_and_no_more_than_fit(terminal: Terminal) -> None:
    board = Board(terminal)
    board.draw([f"line {number}" for number in range(30)])
    assert terminal.getvalue().count("\n") == 8
    board.draw(["one"])
    assert terminal.getvalue().endswith("\r\x1b[8Aone\x1b[K\x1b[J")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("NO_COLOR", "")])
def test_no_color_is_heeded(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    ProgressLine(terminal).show("x", 0.5)
    assert "\x1b[32m" in terminal.getvalue()
    monkeypatch.setenv(name, value)
    quiet = Terminal()
    ProgressLine(quiet).show("x", 0.5)
    assert "\x1b[3" not in quiet.getvalue()


def test_elsewhere_there_are_plain_lines_and_not_many(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    line = ProgressLine(out)
    for number in range(100):
        line.show("encode", number / 100, 3)
    assert out.getvalue() == "encode         0 %  0:03 left\n"
    monkeypatch.setenv("TERM", "dumb")
    dumb = Terminal()
    ProgressLine(dumb).show("encode", 0.5)
    assert dumb.getvalue() == plain(Bar("encode", 0.5)) + "\n"


def test_durations() -> None:
    assert [duration(s) for s in (None, 0, 75.2, 3600, -4)] == ["", "0:00", "1:15", "1:00:00", "0:00"]
