"""Children are kept running, given up when they cannot run, stopped in order, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nommerd.cli import supervisor as module
from nommerd.cli.supervisor import Child, Supervisor
from tests.rig import wait_until

SLEEPER = "import signal, sys, time; print('up', flush=True); time.sleep(60)"


class Scene:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.events: list[str] = []
        self.supervisor = Supervisor(lambda name, line: self.lines.append((name, line)), self.events.append)

    def child(self, name: str, script: str, stop_order: int = 0) -> Child:
        child = Child(name, [sys.executable, "-c", script], os.environ, stop_order)
        self.supervisor.start(child)
        return child


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(module, "TICK_SECONDS", 0.02)
    made = Scene()
    yield made
    made.supervisor.stop()


def test_a_child_that_dies_is_started_again_and_its_lines_are_forwarded(scene: Scene) -> None:
    child = scene.child("w", SLEEPER)
    wait_until(lambda: scene.lines == [("w", "up")], 20, "the first start")
    assert child.process is not None
    child.process.kill()
    assert scene.supervisor.watch(until=lambda: len(scene.lines) == 2) == 0
    assert child.alive
    assert "SIGKILL" in scene.events[0]


def test_a_child_that_keeps_dying_is_given_up_with_its_last_words(scene: Scene) -> None:
    child = scene.child("w", "print('why'); raise SystemExit(3)")
    assert scene.supervisor.watch() == 1
    assert len(child.exits) == module.EARLY_DEATHS_MAX
    assert scene.lines == [("w", "why")] * module.EARLY_DEATHS_MAX
    assert "giving up" in scene.events[-1]


def test_a_child_whose_configuration_is_wrong_is_not_started_again(scene: Scene) -> None:
    child = scene.child("w", "raise SystemExit(2)")
    assert scene.supervisor.watch() == 2
    assert child.exits == [2]


def test_a_child_begins_with_sighup_held_back_and_its_parent_does_not(scene: Scene) -> None:
    scene.child("w", "import signal; print(signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)")
    wait_until(lambda: scene.lines, 20, "what it says")
    assert scene.lines[0] == ("w", "True")
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_stopping_goes_by_order_and_leaves_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 2.0)
    polite = "import signal, sys; signal.signal(signal.SIGTERM, lambda *a: (print('bye', flush=True), sys.exit())); " \
             "print('up', flush=True); signal.pause()"
    scene.child("feeder", polite, stop_order=1)
    scene.child("worker", polite)
    stubborn = scene.child("stubborn", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                                       "print('up', flush=True)\nwhile True: signal.pause()")
    wait_until(lambda: len(scene.lines) == 3, 20, "all three are up")
    scene.supervisor.stop()
    assert [name for name, line in scene.lines if line == "bye"] == ["worker", "feeder"]
    assert not any(child.alive for child in scene.supervisor.children)
    assert stubborn.process is not None
    assert stubborn.process.returncode == -signal.SIGKILL


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    child = "import sys, time; from nommerd.cli.parent import die_with; die_with(int(sys.argv[-1])); " \
            "print('up', flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", f"""
import os, sys
from nommerd.cli.supervisor import Child, Supervisor
supervisor = Supervisor(lambda name, line: print(child.process.pid, flush=True), print)
child = Child("w", [sys.executable, "-c", {child!r}], os.environ)
supervisor.start(child)
supervisor.watch()
"""], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: gone(pid), 10, "the child's end")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_child_started_by_a_parent_that_is_gone_ends_at_once() -> None:
    script = "from nommerd.cli.parent import die_with; die_with(1 << 30); print('alive')"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_request_to_stop_is_heard_within_a_moment(scene: Scene) -> None:
    scene.child("w", SLEEPER)
    scene.supervisor.ask_to_stop()
    begun = time.monotonic()
    assert scene.supervisor.watch() == 0
    assert time.monotonic() - begun < 5


def test_a_signal_may_come_at_any_moment() -> None:
    """Also while locks are held that its handler could want: one comes at each line that is run in three rounds."""
    script = """
import os, signal, sys
from nommerd.cli import supervisor as module

module.TICK_SECONDS = 0.001
supervisor, rounds = module.Supervisor(print, print), []
supervisor.heed_signals()

def trace(frame, event, _):
    if frame.f_code.co_name.startswith("ask_to"):
        return None
    os.kill(os.getpid(), signal.SIGHUP)
    return trace

def third():
    rounds.append(None)
    if len(rounds) == 3:
        sys.settrace(None)
        os.kill(os.getpid(), signal.SIGTERM)
    return False

sys.settrace(trace)
print(supervisor.watch(third), supervisor.asked)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stdout) == (0, "0 True\n"), ended.stderr[-2000:]
