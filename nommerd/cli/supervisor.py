"""Runs child processes side by side: forwards what they say, starts again what dies, stops all together.

For `up` and `demo`. Children are started from the main thread with their parent's pid, so that they end when it does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nommerd.hangup import Terminal, held

BACKOFF_SECONDS = 0.5  # before a restart, doubled with each early death in a row
BACKOFF_MAX_SECONDS = 10.0
HEALTHY_SECONDS = 30.0  # a child that lived this long starts with a clean slate
EARLY_DEATHS_MAX = 5  # then it is given up
STOP_SECONDS = 10.0  # for all children together; then they are killed
TICK_SECONDS = 0.1
CONFIG_EXIT = 2  # restarting does not help

OnLine = Callable[[str, str], None]  # child, line


@dataclass
class Child:
    """A process to keep running. `stop_order`: lower ones are stopped first."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    stop_order: int = 0
    process: subprocess.Popen[str] | None = None
    reader: threading.Thread | None = None
    started: float = 0.0
    early_deaths: int = 0
    restart_at: float | None = None
    exits: list[int] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Supervisor:
    """Start children with `start`, then `watch` until a stop is asked for or a child is given up; then `stop`."""

    def __init__(self, on_line: OnLine, on_event: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._on_event = on_event
        # no Events: a handler that came while its thread has an Event's lock would wait for itself
        self.asked = False  # to stop
        self._reload = False
        self._terminal: Terminal | None = None
        self.children: list[Child] = []

    def ask_to_stop(self, *_: object) -> None:
        """Only sets a flag: a signal handler."""
        self.asked = True

    def ask_to_reload(self, *_: object) -> None:
        """Only sets a flag: a signal handler."""
        self._reload = True

    def heed_signals(self) -> None:
        """SIGINT, SIGTERM and the end of the terminal ask to stop; any other SIGHUP is passed on to the children."""
        self._terminal = Terminal()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask_to_stop)
        signal.signal(signal.SIGHUP, self.ask_to_reload)

    def start(self, child: Child) -> None:
        """Start it now. Call from the main thread."""
        self.children.append(child)
        self._spawn(child)

    def _spawn(self, child: Child) -> None:
        child.started, child.restart_at = time.monotonic(), None
        with held():  # until the child can heed it
            child.process = subprocess.Popen(
                [*child.argv, "--parent", str(os.getpid())], env=dict(child.env), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1,
                start_new_session=True)  # a terminal's Ctrl-C reaches us alone, and we stop them in order
        child.reader = threading.Thread(target=self._forward, args=(child.name, child.process), daemon=True)
        child.reader.start()

    def _forward(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._on_line(name, line.rstrip("\n"))

    def watch(self, until: Callable[[], bool] = lambda: False) -> int:
        """Keep the children running. Returns 0 when asked to stop or once `until` holds, else the exit code for ours: 2
        when a child's configuration is wrong, 1 when one keeps dying."""
        while self._tick():
            if self._reload:
                self._pass_on()
            for child in self.children:
                code = self._look_after(child)
                if code:
                    return code
            if until():
                break
        return 0

    def _tick(self) -> bool:
        """Wait a moment. Whether nobody has asked to stop."""
        time.sleep(TICK_SECONDS)
        return not self.asked

    def _pass_on(self) -> None:
        self._reload = False
        if self._terminal is not None and self._terminal.gone:
            self.ask_to_stop()
            return
        for child in self.children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGHUP)

    def _look_after(self, child: Child) -> int:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                self._spawn(child)
            return 0
        if child.process is None or child.process.poll() is None:
            return 0
        return self._died(child, child.process.returncode, now)

    def _died(self, child: Child, code: int, now: float) -> int:
        if child.reader is not None:
            child.reader.join(1)  # its last words first
        child.exits.append(code)
        if code == CONFIG_EXIT:
            self._on_event(f"{child.name} cannot run with this configuration; see above.")
            return CONFIG_EXIT
        child.early_deaths = 0 if now - child.started >= HEALTHY_SECONDS else child.early_deaths + 1
        if child.early_deaths >= EARLY_DEATHS_MAX:
            self._on_event(f"{child.name} ended {child.early_deaths} times soon after its start ({_how(code)}); giving up.")
            return 1
        delay = min(BACKOFF_SECONDS * 2 ** max(0, child.early_deaths - 1), BACKOFF_MAX_SECONDS)
        child.restart_at = now + delay
        self._on_event(f"{child.name} ended ({_how(code)}); starting it again in {delay:g} s.")
        return 0

    def stop(self) -> None:
        """SIGTERM to all, in their order; SIGKILL to those that take too long. Returns when all are gone."""
        deadline = time.monotonic() + STOP_SECONDS
        for order in sorted({child.stop_order for child in self.children}):
            group = [child for child in self.children if child.stop_order == order and child.process is not None]
            for child in group:
                assert child.process is not None
                child.process.terminate()
            for child in group:
                self._reap(child, deadline)

    def _reap(self, child: Child, deadline: float) -> None:
        assert child.process is not None
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._on_event(f"{child.name} did not stop in time; killed.")
            child.process.kill()
            child.process.wait()
        if child.reader is not None:
            child.reader.join(1)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
