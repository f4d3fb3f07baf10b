"""`make demo` and `nommerd demo`: every state shown, progress, the output's place, and that it was verified."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.media import clip, facts
from tests.rig import wait_until

ROOT = Path(__file__).parents[2]
STATES = "PENDING DOWNLOADING ENCODING UPLOADING FINISHED"


def environment(tmp_path: Path) -> dict[str, str]:
    """A home and a scratch directory of its own, and none of our settings."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("NOMMERD_", "XDG_", "MAKE"))}
    return clean | {"HOME": str(tmp_path), "TMPDIR": str(scratch)}


def demo(tmp_path: Path, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    env = environment(tmp_path)
    ended = subprocess.run([sys.executable, "-m", "nommerd", "demo", *arguments], cwd=tmp_path, env=env, capture_output=True,
                           text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    assert "Traceback" not in ended.stdout + ended.stderr, ended
    assert_nothing_is_left(Path(env["TMPDIR"]))
    return ended


def assert_nothing_is_left(scratch: Path) -> None:
    """No scratch, no process that names it."""
    assert list(scratch.iterdir()) == []
    assert_no_process_names(scratch)


def assert_no_process_names(scratch: Path) -> None:
    def living() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(entry.read_text(errors="replace"))
            except OSError:
                continue
        return [line for line in found if str(scratch) in line]
    wait_until(lambda: not living(), 10, lambda: f"no process left: {living()}")


@pytest.mark.timeout(200)
def test_make_demo_shows_every_state_the_progress_and_a_verified_output(tmp_path: Path) -> None:
    """The Makefile as it is, with this Python's environment for the one it would make."""
    env = environment(tmp_path)
    made = f"{sys.prefix}/.installed"
    output = ROOT / "demo-output"
    before = set(output.iterdir()) if output.is_dir() else set()
    ended = subprocess.run(["make", "-C", str(ROOT), "-o", made, "demo", f"VENV={sys.prefix}"], env=env, capture_output=True,
                           text=True, timeout=180, stdin=subprocess.DEVNULL)
    new = [path for path in (output.iterdir() if output.is_dir() else []) if path not in before]
    try:
        assert ended.returncode == 0, ended
        shown = [line.split()[1] for line in ended.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d\.\d", line)]
        assert " ".join(shown) == STATES, ended.stdout
        assert "none missed: events 1 to 4" in ended.stdout
        figures = {found for found in re.findall(r"(\d+) %", ended.stdout) if 0 < int(found) < 100}
        assert len(figures) >= 3, ended.stdout
        assert len(new) == 1
        assert f"output    {new[0]}" in ended.stdout
        assert re.search(r"^verified  10\.\d\d s, h264 1280x720, aac, moov before mdat", ended.stdout, re.MULTILINE)
        found = facts(new[0])
        assert float(found["format"]["duration"]) == pytest.approx(10, abs=0.2)  # type: ignore[index]
        assert_nothing_is_left(Path(env["TMPDIR"]))
    finally:
        for path in new:
            path.unlink()
        if not before and output.is_dir():
            output.rmdir()


def test_a_file_of_ones_own_goes_through_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "own film.mkv").write_bytes(clip(seconds=2, size="480x270", container="mkv").read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "own film-web-720p.mp4").write_text("precious")
    ended = demo(tmp_path, "own film.mkv", "-o", "out", "--json")
    assert ended.returncode == 0, ended
    told = json.loads(ended.stdout)
    assert told["output"] == str(tmp_path / "out" / "own film-web-720p-2.mp4")
    assert " ".join(told["states"]) == STATES
    assert told["faults"] == []
    assert (tmp_path / "out" / "own film-web-720p.mp4").read_text() == "precious"
    assert Path(told["output"]).stat().st_size == told["job"]["outputs"][0]["bytes"]


def test_sound_alone_goes_through_the_audio_preset(tmp_path: Path) -> None:
    source = clip(seconds=2, video=False, container="wav")
    ended = demo(tmp_path, str(source), "--json")
    assert ended.returncode == 0, ended
    assert json.loads(ended.stdout)["job"]["preset"] == "audio-aac"


@pytest.mark.parametrize(("name", "code"), [("text.mp4", "input.not_media"), ("missing.mp4", "source.not_found")])
def test_what_is_no_media_is_an_error_that_says_so(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "text.mp4").write_text("only words\n" * 100)
    ended = demo(tmp_path, name)
    assert ended.returncode == 1
    assert f"{code}: " in ended.stderr
    assert name in ended.stderr
    assert not (tmp_path / "demo-output").exists()


def test_a_job_that_fails_is_shown_with_its_error_and_the_daemons_last_words(tmp_path: Path) -> None:
    whole = clip(seconds=4, size="320x180").read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[:len(whole) // 2])
    ended = demo(tmp_path, "half.mp4")
    assert ended.returncode == 1
    assert "input.truncated" in ended.stdout
    assert "worker-1 |" in ended.stderr
    assert list((tmp_path / "demo-output").iterdir() if (tmp_path / "demo-output").exists() else []) == []


def test_ctrl_c_stops_everything_and_leaves_nothing(tmp_path: Path) -> None:
    env = environment(tmp_path)
    running = subprocess.Popen([sys.executable, "-m", "nommerd", "demo"], cwd=tmp_path, env=env, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    assert running.stdout is not None
    for line in running.stdout:
        if "ENCODING" in line:
            break
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGINT
    assert_nothing_is_left(Path(env["TMPDIR"]))
