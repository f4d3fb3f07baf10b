"""Real programs under sh and gevent: every line arrives, and nothing is left behind, whatever happens."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import psutil
import pytest
from gevent.event import AsyncResult

from nommerd.errors import CancelRequested, InfrastructureError, ShuttingDown, Stop
from nommerd.media import process
from nommerd.media.progress import ProgressReader
from tests import emulator, media

SH = "/bin/sh"
SIDE_BY_SIDE = 16
DEADLINE_SECONDS = 30.0
TIME_OUT_SECONDS = 1.0  # long enough for a shell to set its traps on a busy machine
DEAF = "trap '' TERM; echo ready; while :; do sleep 0.1; done"  # ignores SIGTERM
WORKER = """
import sys
from nommerd import runtime
{patch}
from pathlib import Path
from nommerd.errors import Stop
from nommerd.media import process
process.run(sys.argv[2:], cwd=Path(sys.argv[1]), stop=Stop(), stall_seconds=60, on_line=lambda line: print(line, flush=True))
"""

SCARCE = """
import gc, os, resource, sys
from nommerd import runtime
runtime.patch()
from pathlib import Path
from nommerd.errors import InfrastructureError, Stop
from nommerd.media import process

def start():
    return process.run(["/bin/true"], cwd=Path(sys.argv[1]), stop=Stop(), stall_seconds=60)

def descriptors():
    return {fd for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}")}

start()
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
for free in range(16):
    before = descriptors()
    try:
        print("ok" if start().ok else "bad")
    except InfrastructureError as error:
        print(error.code)
    assert descriptors() == before, (free, descriptors() ^ before)
    assert gc.isenabled()
    os.closerange(held[-1], held.pop() + 1)  # one more is free
"""

BUSY = """
import sys
from nommerd import runtime
runtime.patch()
from pathlib import Path
from gevent import monkey
from nommerd.errors import Stop
from nommerd.media import process
fork, sleep = monkey.get_original("os", "fork"), monkey.get_original("time", "sleep")

def slow_fork():
    pid = fork()
    if pid:
        sleep(0.5)  # a busy machine: the child has long ended when its parent gets its next turn
    return pid

monkey.saved["os"]["fork"] = slow_fork
for _ in range(2):
    assert process.run(["/bin/true"], cwd=Path(sys.argv[1]), stop=Stop(), stall_seconds=60).ok
"""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, not for a time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:g} s in vain: {what}"
        gevent.sleep(0.01)


def gone(pid: int) -> bool:
    """No such process, or dead and waiting for whoever inherited it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what they are (a listing's own is not among them)."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue
    return found


def greenlets() -> int:
    gc.collect()
    return sum(1 for thing in gc.get_objects() if isinstance(thing, gevent.Greenlet) and not thing.dead)


def children() -> list[psutil.Process]:
    """Ours, but for an AWS emulator that other tests have started."""
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in emulator.running()]


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    """Around every test: no process (zombies are processes), descriptor, greenlet or native thread more than before."""
    run([SH, "-c", "true"], tmp_path)  # what the loop opens at first use is not a leak
    before = descriptors(), greenlets(), psutil.Process().num_threads(), children()
    yield
    until(lambda: children() == before[3], f"processes left: {children()}")
    until(lambda: len(descriptors()) <= len(before[0]), f"descriptors left: {descriptors()} after {before[0]}")
    until(lambda: greenlets() <= before[1], "greenlets left")
    assert psutil.Process().num_threads() <= before[2]
    assert gc.isenabled()


def run(argv: list[str], cwd: Path, *, stop: Stop | None = None, on_line: process.OnLine | None = None,
        stall_seconds: float = DEADLINE_SECONDS, timeout_seconds: float | None = None) -> process.Exit:
    return process.run(argv, cwd=cwd, stop=stop or Stop(), on_line=on_line, stall_seconds=stall_seconds,
                       timeout_seconds=timeout_seconds)


def live_encode(ffmpeg: Path, seconds: float, *progress_to: str) -> list[str]:
    """An ffmpeg that takes as long as its media and reports often."""
    return [str(ffmpeg), "-nostdin", "-hide_banner", "-loglevel", "error", "-nostats", "-stats_period", "0.05",
            "-progress", progress_to[0] if progress_to else "pipe:1", "-re", "-f", "lavfi", "-i",
            f"testsrc2=size=64x64:rate=25:duration={seconds}", "-f", "null", "-"]


@pytest.mark.parametrize("build", media.BUILDS)
def test_sixteen_ffmpeg_run_side_by_side_and_every_progress_line_arrives(build: str, tmp_path: Path) -> None:
    ffmpeg, _ = media.build(build)

    def one(number: int) -> tuple[process.Exit, list[str], float, float]:
        lines: list[str] = []
        # what ffmpeg writes goes to us and, by its own hand, to a file: the two must be the same
        argv = live_encode(ffmpeg, 4, f"tee:file:/dev/stdout|file:progress-{number}.txt")
        begun = time.monotonic()
        return run(argv, tmp_path, on_line=lines.append), lines, begun, time.monotonic()

    jobs = [gevent.spawn(one, number) for number in range(SIDE_BY_SIDE)]
    results = [job.get(timeout=DEADLINE_SECONDS * 2) for job in jobs]
    for number, (exit, lines, _, _) in enumerate(results):
        assert exit.ok, exit
        assert lines == (tmp_path / f"progress-{number}.txt").read_text().splitlines()
        assert lines.count("progress=end") == 1 and lines[-1] == "progress=end"
        assert len(lines) > 100
        reader = ProgressReader()
        for line in lines:
            reader.feed(line)
        assert reader.last.frame == 100
    assert max(begun for _, _, begun, _ in results) < min(ended for _, _, _, ended in results), "they ran side by side"


@pytest.mark.parametrize("build", media.BUILDS)
@pytest.mark.parametrize("patch", ["runtime.patch()", ""], ids=["patched", "unpatched"])
def test_a_killed_worker_leaves_no_ffmpeg(build: str, patch: str, tmp_path: Path) -> None:
    ffmpeg, _ = media.build(build)
    with subprocess.Popen([sys.executable, "-c", WORKER.format(patch=patch), str(tmp_path), *live_encode(ffmpeg, 300)],
                          stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip(), "ffmpeg reports"
        encoders = [child for child in psutil.Process(worker.pid).children(recursive=True) if not gone(child.pid)]
        assert len(encoders) == 1
        worker.kill()
        until(lambda: gone(encoders[0].pid), "ffmpeg ends with its worker")


@pytest.mark.parametrize("build", media.BUILDS)
def test_a_frozen_ffmpeg_is_killed_by_the_watchdog(build: str, tmp_path: Path) -> None:
    ffmpeg, _ = media.build(build)
    reader = ProgressReader()
    frozen: list[int] = []

    def on_line(line: str) -> bool:
        reader.feed(line)
        if reader.last.frame and not frozen:
            frozen.extend(child.pid for child in children())
            os.kill(frozen[0], signal.SIGSTOP)
        return reader.advanced

    exit = run(live_encode(ffmpeg, 300), tmp_path, on_line=on_line, stall_seconds=1.0)
    assert exit.stalled and not exit.ok
    assert (exit.signal, exit.pid) == (signal.SIGKILL, frozen[0]), "SIGTERM does not reach a frozen program"


def test_a_program_that_only_repeats_itself_has_stalled(tmp_path: Path) -> None:
    reader = ProgressReader()

    def on_line(line: str) -> bool:
        reader.feed(line)
        return reader.advanced

    stuck = "n=0; while :; do n=$((n < 5 ? n + 1 : 5)); echo frame=$n; echo progress=continue; sleep 0.05; done"
    exit = run([SH, "-c", stuck], tmp_path, on_line=on_line, stall_seconds=0.6)
    assert exit.stalled
    assert reader.last.frame == 5


def test_a_silent_program_that_moves_data_has_not_stalled(tmp_path: Path) -> None:
    busy = ("import time; end = time.monotonic() + 2; zero = open('/dev/zero', 'rb', 0)\n"
            "while time.monotonic() < end: zero.read(1 << 20)")
    assert run([sys.executable, "-S", "-E", "-c", busy], tmp_path, stall_seconds=0.8).ok


def test_a_callback_that_raises_ends_the_program_and_is_raised_to_the_caller(tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        raise KeyError(line)

    with pytest.raises(KeyError, match="tick"):
        run([SH, "-c", "while :; do echo tick; sleep 0.01; done"], tmp_path, on_line=on_line)


def test_a_callback_that_raises_at_the_last_line_is_raised_too(tmp_path: Path) -> None:
    def on_line(line: str) -> None:
        raise KeyError(line)

    with pytest.raises(KeyError, match="only"):
        run([SH, "-c", "printf only"], tmp_path, on_line=on_line)


def test_a_program_that_ignores_sigterm_is_killed_after_a_grace(tmp_path: Path) -> None:
    exit = run([SH, "-c", DEAF], tmp_path, timeout_seconds=TIME_OUT_SECONDS)
    assert (exit.timed_out, exit.signal, exit.code) == (True, signal.SIGKILL, None)
    assert exit.seconds > process.GRACE_SECONDS


def test_a_program_that_heeds_sigterm_still_says_its_last_words(tmp_path: Path) -> None:
    polite = "trap 'echo bye >&2; exit 255' TERM; while :; do sleep 0.05; done"
    exit = run([SH, "-c", polite], tmp_path, timeout_seconds=TIME_OUT_SECONDS)
    assert (exit.timed_out, exit.code) == (True, 255)
    assert exit.stderr.endswith("bye\n")


@pytest.mark.parametrize("pipes", ["", ">/dev/null 2>&1"], ids=["holding-our-pipes", "apart"])
def test_a_grandchild_that_outlives_its_parent_is_killed_and_holds_nothing_up(pipes: str, tmp_path: Path) -> None:
    lines: list[str] = []
    exit = run([SH, "-c", f"(trap '' TERM HUP; exec sleep 1000) {pipes} & echo $!"], tmp_path, on_line=lines.append)
    assert exit.ok
    until(lambda: gone(int(lines[0])), "the grandchild ends")


def test_a_grandchild_that_left_the_group_does_not_hang_us(tmp_path: Path) -> None:
    lines: list[str] = []
    exit = run([SH, "-c", "setsid sleep 1000 & echo $!"], tmp_path, on_line=lines.append)
    assert exit.ok
    os.kill(int(lines[0]), signal.SIGKILL)  # out of reach for a group kill: the sandbox's business
    until(lambda: gone(int(lines[0])), "the grandchild ends")


@pytest.mark.parametrize("reason", [CancelRequested(), ShuttingDown()], ids=["cancel", "shutdown"])
def test_stop_kills_at_once_even_one_that_ignores_sigterm(reason: CancelRequested | ShuttingDown, tmp_path: Path) -> None:
    stop = Stop()
    told: list[float] = []

    def on_line(line: str) -> None:
        if not told:
            told.append(time.monotonic())
            stop.set(reason)

    exit = run([SH, "-c", DEAF], tmp_path, stop=stop, on_line=on_line)
    assert time.monotonic() - told[0] < 1.0  # 0.2 s where the machine is not overloaded by the other tests
    assert (exit.stopped, exit.signal) == (True, signal.SIGKILL)


def test_killing_the_greenlet_that_waits_kills_the_program(tmp_path: Path) -> None:
    ready: AsyncResult = AsyncResult()
    caller = gevent.spawn(run, [SH, "-c", f"echo $$; {DEAF}"], tmp_path, on_line=ready.set)
    line = ready.get(timeout=DEADLINE_SECONDS)
    caller.kill(timeout=DEADLINE_SECONDS)
    until(lambda: not children(), f"the program started as {line} ends")


def test_a_greenlet_killed_while_the_program_is_being_started_leaves_none(tmp_path: Path) -> None:
    for pause in (0, 0.001, 0.003, 0.005, 0.01):
        caller = gevent.spawn(run, [SH, "-c", DEAF], tmp_path)
        gevent.sleep(pause)
        caller.kill(timeout=DEADLINE_SECONDS)
    until(lambda: not children(), "every program ends")


@pytest.mark.parametrize("argument", ["\0", "x" * 200_000], ids=["nul", "too-long"])
def test_a_program_that_the_kernel_refuses_leaves_nothing(argument: str, tmp_path: Path) -> None:
    before = descriptors()
    for _ in range(3):
        with pytest.raises(InfrastructureError) as caught:
            run(["/bin/echo", argument], tmp_path)
        assert caught.value.code == "node.cannot_start"
        assert len(str(caught.value)) < 500
    assert descriptors() == before
    assert not children()


def test_a_working_directory_that_vanishes_in_the_last_moment_leaves_nothing(tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process._Child, "_check", lambda self: None)  # it was there when we looked
    before = descriptors()
    with pytest.raises(InfrastructureError, match="No such file"):
        run([SH, "-c", "true"], tmp_path / "gone")
    assert descriptors() == before


def test_wherever_descriptors_run_out_a_start_fails_cleanly(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCARCE, str(tmp_path)], capture_output=True, text=True,
                          timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert outcomes[0] == "node.cannot_start" and outcomes[-1] == "ok"
    assert set(outcomes) == {"node.cannot_start", "ok"}
    assert outcomes.count("node.cannot_start") > 5, "it failed at each of the descriptors that a start needs"


def test_the_first_program_is_seen_to_end_even_if_it_does_so_before_its_parent_watches(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BUSY, str(tmp_path)], capture_output=True, text=True,
                          timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr


def test_a_program_sees_no_secret_no_input_and_no_descriptor_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("NOMMERD_TOKEN", "canary")
    monkeypatch.setenv("TZ", "UTC")
    ours = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(ours, True)
    lines: list[str] = []
    assert run([SH, "-c", "env; cat; echo fds $(ls /proc/self/fd)"], tmp_path, on_line=lines.append).ok
    os.close(ours)
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert set(seen) <= {"PATH", "HOME", "TMPDIR", "LC_ALL", "PWD", "TZ", *process.PASSED_ON}
    assert (seen["HOME"], seen["LC_ALL"], seen["TZ"]) == (str(tmp_path), "C", "UTC")
    assert lines[-1] == "fds 0 1 2 3", "3 is ls's own"


def test_a_program_leads_a_session_of_its_own_and_goes_first_when_memory_runs_out(tmp_path: Path) -> None:
    lines: list[str] = []
    exit = run([SH, "-c", "cut -d' ' -f5,6 /proc/$$/stat; cat /proc/$$/oom_score_adj"], tmp_path, on_line=lines.append)
    assert lines == [f"{exit.pid} {exit.pid}", str(process.OOM_SCORE)]


def test_arguments_and_output_reach_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        run(["/bin/echo", "canary"], tmp_path)
    assert "canary" not in caplog.text


def test_exit_code_signal_and_the_end_of_stderr_are_reported(tmp_path: Path) -> None:
    exit = run([SH, "-c", "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i + 1)); done; exit 7"], tmp_path)
    assert (exit.code, exit.signal, exit.ok) == (7, None, False)
    assert exit.stderr.endswith("line 1998\nline 1999\n")
    assert len(exit.stderr.encode()) == process.STDERR_BYTES
    killed = run([SH, "-c", "kill -9 $$"], tmp_path)
    assert (killed.code, killed.signal) == (None, signal.SIGKILL)
    assert not (killed.stalled or killed.timed_out or killed.stopped), "it was not us"


def test_output_returns_every_byte(tmp_path: Path) -> None:
    body = os.urandom(300_001)
    (tmp_path / "body").write_bytes(body)
    exit, said = process.output(["/bin/cat", "body"], cwd=tmp_path, stop=Stop(), timeout_seconds=DEADLINE_SECONDS,
                                max_bytes=len(body))
    assert exit.ok and said == body


@pytest.mark.parametrize("command", ["while :; do echo yes; done", "printf 0123456789AB"], ids=["endless", "short"])
def test_output_beyond_its_bound_is_cut_and_said_to_be(command: str, tmp_path: Path) -> None:
    exit, said = process.output([SH, "-c", command], cwd=tmp_path, stop=Stop(), timeout_seconds=DEADLINE_SECONDS, max_bytes=10)
    assert exit.flooded and not exit.ok and not exit.timed_out
    assert len(said) == 10


def test_output_that_hangs_is_ended(tmp_path: Path) -> None:
    exit, said = process.output([SH, "-c", f"echo begun; {DEAF}"], cwd=tmp_path, stop=Stop(),
                                timeout_seconds=TIME_OUT_SECONDS, max_bytes=100)
    assert exit.timed_out and exit.signal == signal.SIGKILL
    assert said.startswith(b"begun\n")


def test_the_event_loop_goes_on_while_a_program_runs(tmp_path: Path) -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0.01)

    counter = gevent.spawn(count)
    run([SH, "-c", "sleep 0.5"], tmp_path)
    counter.kill()
    assert turns > 10


def test_no_greenlet_of_ours_runs_in_the_forked_child(tmp_path: Path) -> None:
    """With gevent's own fork and close, a child waiting for its descriptors ran the parent's greenlets."""
    trace = tmp_path / "trace"

    def note() -> None:
        while True:
            with trace.open("a") as file:
                file.write(f"{os.getpid()}\n")
            gevent.sleep(0)

    noters = [gevent.spawn(note) for _ in range(3)]
    for _ in range(20):
        assert run([SH, "-c", "true"], tmp_path).ok
    gevent.killall(noters)
    assert set(trace.read_text().split()) == {str(os.getpid())}


def test_it_works_unpatched_too(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WORKER.format(patch=""), str(tmp_path), SH, "-c", "echo one; echo two"],
                          capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["one", "two"]), done.stderr
