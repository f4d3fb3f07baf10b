"""The watchdog's arithmetic, the sinks, and what is refused before any program is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from nommerd.errors import ConfigError, InfrastructureError, ShuttingDown, Stop
from nommerd.media import process
from nommerd.media.watchdog import MOVED_BYTES, Body, Lines, Tail, Watch, Why
from nommerd.runtime import in_pool


def looks(watch: Watch, ticks: int, *, alive: bool = False, moved: int = 0, tick_seconds: float = 0.5) -> list[Why | None]:
    return [watch.look(number * tick_seconds, tick_seconds, alive, lambda: moved) for number in range(1, ticks + 1)]


def test_silence_as_long_as_allowed_is_not_a_stall_and_longer_is() -> None:
    assert looks(Watch(2.0, None), 5) == [None, None, None, None, Why.STALLED]


def test_each_sign_of_life_starts_the_silence_anew() -> None:
    watch = Watch(2.0, None)
    assert looks(watch, 4) == [None] * 4
    assert looks(watch, 1, alive=True) == [None]
    assert looks(watch, 5) == [None, None, None, None, Why.STALLED]


def test_a_silent_program_that_moves_data_is_at_work_until_it_stops_moving_it() -> None:
    watch = Watch(2.0, None)
    moved = iter([100, 100 + MOVED_BYTES, 2 * MOVED_BYTES, 2 * MOVED_BYTES + 10])
    verdicts = [watch.look(number * 0.5, 0.5, False, lambda: next(moved)) for number in range(1, 11)]
    assert verdicts == [None] * 9 + [Why.STALLED]


def test_time_in_which_this_process_was_stopped_is_not_held_against_the_program() -> None:
    assert looks(Watch(5.0, None), 5, tick_seconds=3600.0) == [None] * 5
    assert looks(Watch(5.0, None), 6, tick_seconds=3600.0)[-1] is Why.STALLED


def test_without_a_limit_silence_may_last() -> None:
    assert looks(Watch(None, None), 1000) == [None] * 1000


def test_the_time_out_holds_for_a_program_full_of_life() -> None:
    assert looks(Watch(2.0, 3.0), 7, alive=True) == [None] * 6 + [Why.TIMED_OUT]


def test_a_callback_that_answers_false_shows_no_life_and_any_other_answer_does() -> None:
    for answer, alive in ((False, False), (None, True), (True, True)):
        lines = Lines(lambda line, answer=answer: answer)
        lines.write(b"frame=1\n")
        assert lines.alive is alive


def test_after_a_callback_raised_it_is_not_called_again_and_the_first_error_stays() -> None:
    calls: list[str] = []

    def on_line(line: str) -> None:
        calls.append(line)
        raise ValueError(line)

    lines = Lines(on_line)
    lines.write(b"one\n")
    lines.write(b"two\n")
    assert calls == ["one"]
    assert str(lines.error) == "one"


def test_bytes_that_are_no_utf8_reach_the_callback_as_text() -> None:
    calls: list[str] = []
    Lines(calls.append).write(b"caf\xe9\r\n")
    assert calls == ["caf\ufffd"]


def test_a_body_keeps_what_fits_and_says_that_there_was_more() -> None:
    body = Body(5)
    body.write(b"abc")
    body.write(b"de")
    assert not body.flooded
    body.write(b"f")
    assert (bytes(body.kept), body.flooded) == (b"abcde", True)


def test_a_tail_keeps_the_end() -> None:
    tail = Tail(5)
    for chunk in (b"abc", b"defg", b"h"):
        tail.write(chunk)
    assert tail.text == "defgh"


def test_a_relative_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        process.run(["true"], cwd=tmp_path, stop=Stop(), stall_seconds=5)


def test_a_missing_program_is_the_operators_to_mend(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    for program in (tmp_path / "missing", plain, tmp_path):
        with pytest.raises(ConfigError) as caught:
            process.run([str(program)], cwd=tmp_path, stop=Stop(), stall_seconds=5)
        assert caught.value.code == "config.no_program"


def test_a_missing_working_directory_is_named_and_costs_no_descriptor(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(InfrastructureError, match="does not exist") as caught:
        process.run(["/bin/true"], cwd=tmp_path / "gone", stop=Stop(), stall_seconds=5)
    assert caught.value.code == "node.no_workspace"
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_arguments_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        process.run(["/bin/echo", None], cwd=tmp_path, stop=Stop(), stall_seconds=5)  # type: ignore[list-item]


def test_nothing_is_started_once_the_work_must_stop(tmp_path: Path) -> None:
    stop = Stop()
    stop.set(ShuttingDown())
    exit = process.run(["/bin/sh", "-c", "touch started"], cwd=tmp_path, stop=stop, stall_seconds=5)
    assert exit.stopped and not exit.ok
    assert not (tmp_path / "started").exists()


def test_off_the_main_thread_nothing_is_started(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        in_pool(lambda: process.run(["/bin/true"], cwd=tmp_path, stop=Stop(), stall_seconds=5))


def test_an_exit_is_ok_only_if_the_program_ended_well_by_itself() -> None:
    assert process.Exit(code=0).ok
    for bad in (process.Exit(code=1), process.Exit(signal=9), process.Exit(code=0, timed_out=True),
                process.Exit(code=0, stalled=True), process.Exit(code=0, flooded=True), process.Exit(stopped=True)):
        assert not bad.ok
