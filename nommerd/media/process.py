"""Starts, watches, kills and reaps external programs. The only module that imports `sh`.

What it promises of each program: its standard input is /dev/null; it sees a minimal environment and none of our
descriptors; it leads a session and process group of its own, which is killed as a whole, with whatever outlives its leader;
the kernel kills it when this process dies; it leaves no zombie, descriptor or thread here.

Under gevent, call from greenlets of the main thread: only its loop sees children end. It works unpatched as well. Each
program is started and reaped by a thread (under gevent: a greenlet) of its own. So the kernel's parent-death signal, which
fires when the starting *thread* ends, fires neither early nor late, and killing the calling greenlet cannot lose a child
between fork and return.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import sh

from nommerd import runtime
from nommerd.errors import ConfigError, InfrastructureError, Stop
from nommerd.media.watchdog import GENTLE, Body, Lines, OnLine, Sink, Tail, Watch, Why

TICK_SECONDS = 0.1  # how often a program is looked at: half of what a stop may take
GRACE_SECONDS = 1.0  # between SIGTERM and SIGKILL, for a program that stalled or timed out
UNKILLABLE_SECONDS = 60.0  # a program that SIGKILL does not end (a dead network disk) is given up after this long
BURY_SECONDS = 5.0
STDERR_BYTES = 8192
CHUNK_BYTES = 65536
OOM_SCORE = 500  # the kernel takes an encoder for the culprit before it takes the worker
PASSED_ON = ("LD_LIBRARY_PATH", "FONTCONFIG_FILE", "FONTCONFIG_PATH", "TZ")  # all that programs see of our environment
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
ANY_CODE = frozenset(range(-64, 256))  # sh raises for codes it was not told of
PR_SET_PDEATHSIG = 1

logging.getLogger("sh").setLevel(logging.WARNING)  # it logs argument lists and output
runtime.arrange_sh(sh)
_prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: a forked child should not load anything
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a program ended. `code` is None where `signal` ended it; both are None where it was never started."""

    code: int | None = None
    signal: int | None = None
    stderr: str = ""  # the last `stderr_bytes` of it
    stalled: bool = False  # we killed it: no progress
    timed_out: bool = False  # we killed it: too long
    stopped: bool = False  # we killed it, or did not start it: `stop` was set
    flooded: bool = False  # we killed it: more output than `max_bytes`
    seconds: float = 0.0
    pid: int = 0

    @property
    def ok(self) -> bool:
        """It ended by itself, with code 0."""
        return self.code == 0 and not (self.stalled or self.timed_out or self.stopped or self.flooded)


Ended = Callable[[Exit | None], None]  # told of a program's end; None: it could not be started
_observer: ContextVar[Callable[[Sequence[str]], Ended] | None] = ContextVar("_observer", default=None)


@contextmanager
def observed(observer: Callable[[Sequence[str]], Ended]) -> Iterator[None]:
    """Inside the block `observer` is told of every program that this greenlet starts, and of its end. It must not raise."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def run(argv: Sequence[str], *, cwd: Path, stop: Stop, on_line: OnLine | None = None, stall_seconds: float | None,
        timeout_seconds: float | None = None, stderr_bytes: int = STDERR_BYTES, env: Mapping[str, str] | None = None) -> Exit:
    """Run a program to its end and hand each line of its output (without the newline) to `on_line`.

    `argv[0]` is an absolute path. `env` adds to the minimal environment. A line for which `on_line` returns False is no sign
    of life, any other is (ffmpeg prints its progress even when it is stuck): `stall_seconds` without one, and without reading
    or writing, and it is killed. `on_line` must be quick. An exception from it kills the program and is raised here once that
    is reaped. `stop` kills within 0.2 s and is reported, not raised. Raises ConfigError for a missing program,
    InfrastructureError where it cannot be started or not be killed.
    """
    lines = Lines(on_line)
    return _supervise(_Child(argv, cwd, env, lines, line_buffered=True, stderr_bytes=stderr_bytes), stop,
                      Watch(stall_seconds, timeout_seconds), lines)


def output(argv: Sequence[str], *, cwd: Path, stop: Stop, timeout_seconds: float, max_bytes: int,
           stderr_bytes: int = STDERR_BYTES, env: Mapping[str, str] | None = None) -> tuple[Exit, bytes]:
    """Run a program to its end and return what it wrote, at most `max_bytes`: one that writes more is killed (`flooded`).

    Otherwise as `run`.
    """
    body = Body(max_bytes)
    exit = _supervise(_Child(argv, cwd, env, body, line_buffered=False, stderr_bytes=stderr_bytes), stop,
                      Watch(None, timeout_seconds), body)
    return exit, bytes(body.kept)


class _Child:
    """One program, started and reaped by a thread of its own."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None, out: Sink, *, line_buffered: bool,
                 stderr_bytes: int) -> None:
        self.argv = list(argv)
        self.cwd = cwd
        self.env = _environment(cwd, env or {})
        self.out = out
        self.out_bufsize = 1 if line_buffered else CHUNK_BYTES  # sh's 1 is "by lines"
        self.stderr = Tail(stderr_bytes)
        self.begun = time.monotonic()
        self.command: Any = None
        self.error: BaseException | None = None
        self.thread: Thread | None = None
        self.started = Event()
        self.ended = Event()

    def start(self) -> None:
        """Returns once the program runs. Raises ConfigError or InfrastructureError if it does not."""
        self._check()
        self.thread = Thread(target=self._live, name=f"program {Path(self.argv[0]).name}", daemon=True)
        self.thread.start()
        self.started.wait()
        if self.error is not None:
            raise self._cannot_start() from self.error

    def _check(self) -> None:
        if runtime.patched() and not runtime.on_main_thread():
            raise RuntimeError("Programs are started on the main thread: only its event loop sees them end.")
        program = self.argv[0]
        if not Path(program).is_absolute():
            raise ValueError(f"{program!r} is not an absolute path.")
        if not all(isinstance(argument, str) for argument in self.argv):
            raise TypeError("Arguments are strings.")
        if not (Path(program).is_file() and os.access(program, os.X_OK)):
            raise ConfigError("config.no_program", f"{program} is missing or not executable.")
        if not self.cwd.is_dir():
            raise InfrastructureError("node.no_workspace", f"The working directory {self.cwd} does not exist.")

    def _cannot_start(self) -> InfrastructureError:
        reason = (str(self.error).strip().splitlines() or [""])[-1].strip()  # of a failed child sh brings the traceback
        return InfrastructureError("node.cannot_start", f"{self.argv[0]} could not be started: {reason[:300]}")

    def _live(self) -> None:
        try:
            with runtime.undone_on_failure():
                self.command = self._spawn()
        except BaseException as error:
            self.error = error
            return
        finally:
            self.started.set()
        try:
            self.command.wait()
        finally:
            self.ended.set()

    def _spawn(self) -> Any:
        parent = os.getpid()
        command: Any = sh.Command(self.argv[0])
        with Path(os.devnull).open("rb") as nothing:
            return command(
                *self.argv[1:], _bg=True, _bg_exc=False, _tty_out=False, _new_session=True, _in=nothing, _out=self.out,
                _err=self.stderr, _out_bufsize=self.out_bufsize, _err_bufsize=1024, _no_pipe=True, _cwd=str(self.cwd),
                _env=self.env, _ok_code=ANY_CODE, _encoding="utf-8", _preexec_fn=lambda: _before_exec(parent),
                _log_msg=lambda ran, call_args, pid=None: f"pid {pid}")

    @property
    def pid(self) -> int:
        return int(self.command.pid)

    @property
    def leader_ended(self) -> bool:
        """The program itself has ended, though something may still hold its pipes."""
        return self.command.process.exit_code is not None

    def signal_group(self, number: int) -> None:
        """Signal the whole group; nothing where none is left."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.command.pgid, number)

    def bury(self) -> None:
        """Leave nothing of the group alive, however we came here (the caller may have been killed while it waited)."""
        if self.thread is None:
            return
        self.started.wait()
        if self.command is not None:
            self.signal_group(signal.SIGKILL)
            self.ended.wait(BURY_SECONDS)

    def moved(self) -> int:
        """How many bytes the program has read and written, 0 where that cannot be seen."""
        try:
            fields = dict(line.split(": ") for line in Path(f"/proc/{self.pid}/io").read_text().splitlines())
            return int(fields["rchar"]) + int(fields["wchar"])
        except (OSError, ValueError, KeyError):
            return 0

    def exit(self, why: Why | None) -> Exit:
        code = int(self.command.process.exit_code)
        verdict = {why.value: True} if why is not None and why.value else {}
        return Exit(code=code if code >= 0 else None, signal=-code if code < 0 else None, stderr=self.stderr.text,
                    seconds=time.monotonic() - self.begun, pid=self.pid, **verdict)


def _supervise(child: _Child, stop: Stop, watch: Watch, out: Sink) -> Exit:
    """Start the child and see it to its end, whoever decides on that."""
    if stop.is_set():
        return Exit(stopped=True)
    observer = _observer.get()
    ended = observer(child.argv) if observer is not None else None
    exit: Exit | None = None
    try:
        exit = _until_buried(child, stop, watch, out)
    finally:
        if ended is not None:
            ended(exit)
    if out.error is not None:
        raise out.error
    return exit


def _until_buried(child: _Child, stop: Stop, watch: Watch, out: Sink) -> Exit:
    try:
        child.start()
        why = _until_ended(child, stop, watch, out)
    finally:
        child.bury()
    return child.exit(why or (Why.FLOODED if out.flooded else None))


def _until_ended(child: _Child, stop: Stop, watch: Watch, out: Sink) -> Why | None:
    why: Why | None = None
    kill_at = 0.0
    before = time.monotonic()
    while not child.ended.wait(TICK_SECONDS):
        now = time.monotonic()
        if child.leader_ended:
            child.signal_group(signal.SIGKILL)  # what it left behind holds our pipes
        elif why is None:
            alive, out.alive = out.alive, False
            why = _verdict(stop, out) or watch.look(now - child.begun, now - before, alive, child.moved)
            if why is not None:
                child.signal_group(signal.SIGTERM if why in GENTLE else signal.SIGKILL)
                kill_at = now + (GRACE_SECONDS if why in GENTLE else 0.0)
        elif now >= kill_at or stop.is_set():
            child.signal_group(signal.SIGKILL)
            _give_up_after(kill_at + UNKILLABLE_SECONDS, now, child)
        before = now
    return why


def _verdict(stop: Stop, out: Sink) -> Why | None:
    if out.error is not None:
        return Why.FAILED
    if stop.is_set():
        return Why.STOPPED
    return Why.FLOODED if out.flooded else None


def _give_up_after(deadline: float, now: float, child: _Child) -> None:
    if now > deadline:
        raise InfrastructureError("node.unkillable", f"{child.argv[0]} (process {child.pid}) does not end on SIGKILL.",
                                  "A disk or network file system that does not answer does this.")


def _environment(cwd: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What a program sees: no credentials, no settings of ours. HOME is its workspace, which goes when the job does."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {"PATH": SEARCH_PATH, "HOME": str(cwd), "TMPDIR": str(cwd), "LC_ALL": "C", **passed_on, **extra}


def _before_exec(parent: int) -> None:
    """In the child: die with our parent, be the first to go when memory runs out, and handle signals as programs expect."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before that took hold
        os._exit(255)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; a program would inherit that
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
