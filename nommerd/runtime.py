"""The only place that patches the standard library for gevent, and that keeps `sh` working under it.

Why each piece is here:

`patch` makes blocking calls cooperative. It must run before anything imports ssl, requests or boto3: a TLS client made from
an unpatched ssl module recurses for ever.

`arrange_sh` gives sh an `os` of its own. gevent defers `os.close` to its event loop, but sh closes its end of a pipe and at
once reads the other end until EOF: the first command deadlocks. In the forked child a second close of a deferred descriptor
even runs the loop, and with it our greenlets. So sh closes at once, and forks without gevent's re-initialisation, which
would start thread pools in a child that only wants to exec.

`in_pool` takes disk and hashing work off the event loop. It has a pool of its own: the hub's resolves names.

`self_test` proves at start that all this holds for the installed versions.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

from nommerd.errors import ConfigError, NommerdError, Stop

T = TypeVar("T")
POOL_THREADS = 8
SELF_TEST_SECONDS = 5.0
BROKEN_EXIT_CODE = 2  # "usage or configuration", as for every other fault of the installation
_GREETING = "nommerd"

_pools: list[Any] = []


@dataclass(slots=True)
class _Start:
    """A program being started by sh: what sh opened for it and has not closed yet, and the child once there is one."""

    opened: set[int] = field(default_factory=set)
    pid: int = 0


_start: ContextVar[_Start | None] = ContextVar("_start", default=None)  # of this greenlet or thread


def patch() -> None:
    """Make the standard library cooperative. May be called again. Must run before anything imports ssl, requests or boto3."""
    from gevent import monkey

    if not monkey.is_module_patched("os"):
        monkey.patch_all()


def patched() -> bool:
    """True once `patch` has run. Does not import gevent."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("os"))


def native(module: str, name: str) -> Any:
    """The standard library's own `module.name`, whether patched or not: for what must work without the event loop."""
    if patched():
        from gevent import monkey

        return monkey.get_original(module, name)
    return getattr(import_module(module), name)


def on_main_thread() -> bool:
    """True on the process's first native thread (all greenlets of the main thread are on it)."""
    return threading.get_native_id() == os.getpid()


def in_pool(fn: Callable[..., T], *args: Any) -> T:
    """Run `fn(*args)` on a native thread, so that the event loop goes on; return its result or raise its exception.

    For disk and hashing work. Unpatched, or off the main thread already, it just calls. `fn` must not use anything that
    belongs to the loop (locks, events, queues, sockets). It runs on when the waiting greenlet is killed.
    """
    if not (patched() and on_main_thread()):
        return fn(*args)
    if not _pools:
        from gevent.threadpool import ThreadPool

        _pools.append(ThreadPool(POOL_THREADS))
    value, error = _pools[0].spawn(_outcome, fn, args).get()
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def _outcome(fn: Callable[..., T], args: tuple[Any, ...]) -> tuple[T | None, BaseException | None]:
    """What `fn` returned or raised: gevent's pool prints the traceback of whatever is raised in it."""
    try:
        return fn(*args), None
    except BaseException as error:
        return None, error


class _OsForSh(ModuleType):
    """`os` as sh needs it: close and fork are the originals; what sh opens is noted, so that a failed start can be undone."""

    def __init__(self) -> None:
        super().__init__("os")

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def close(fd: int) -> None:
        if start := _start.get():
            start.opened.discard(fd)
        _original_close()(fd)

    @staticmethod
    def pipe() -> tuple[int, int]:
        ends = os.pipe()
        if start := _start.get():
            start.opened.update(ends)
        return ends

    @staticmethod
    def dup(fd: int) -> int:
        copy = os.dup(fd)
        if start := _start.get():
            start.opened.add(copy)
        return copy

    @staticmethod
    def fork() -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded": the child does nothing but exec
            pid = _fork_and_watch() if patched() else os.fork()
        if start := _start.get():
            start.pid = pid
        return pid


def _original_close() -> Callable[[int], None]:
    close: Callable[[int], None] = native("os", "close")
    return close


def _fork_and_watch() -> int:
    """Fork with the parent's loop watching the child, and no gevent in the child.

    gevent installs its SIGCHLD handler with the first watcher, so after the first fork: on a busy machine that child has
    ended by then, and nobody ever hears of it.
    """
    from gevent import get_hub, monkey
    from gevent import os as gevent_os

    get_hub().loop.install_sigchld()
    return int(gevent_os.fork_and_watch(fork=monkey.get_original("os", "fork")))


def arrange_sh(sh: Any) -> None:
    """Give the module `sh` its own `os` (see above). Without it, the first command under gevent deadlocks."""
    sh.Command.__init__.__globals__["os"] = _OsForSh()


@contextmanager
def undone_on_failure() -> Iterator[None]:
    """Around the start of a program by sh: if it fails, close what sh opened for it and reap the child it forked.

    sh itself leaves four or five descriptors behind, and the garbage collector off when the fork itself fails.
    """
    collecting = gc.isenabled()
    start = _Start()
    token = _start.set(start)
    try:
        yield
    except BaseException:
        if collecting:
            gc.enable()
        for fd in tuple(start.opened):
            with suppress(OSError):
                _original_close()(fd)
        if start.pid:
            with suppress(ProcessLookupError):
                os.kill(start.pid, signal.SIGKILL)
            os.waitpid(start.pid, 0)
        raise
    finally:
        _start.reset(token)


def self_test() -> None:
    """Start one trivial program the way all are started. Raises ConfigError if that does not work with what is installed.

    A deadlock cannot be raised: then a native thread (gevent's time-outs cannot fire) says so after SELF_TEST_SECONDS and
    ends the process with BROKEN_EXIT_CODE.
    """
    from pathlib import Path

    done = _guard(SELF_TEST_SECONDS)
    try:
        from nommerd.media import process

        exit, said = process.output(["/bin/sh", "-c", f"echo {_GREETING}"], cwd=Path("/"), stop=Stop(),
                                    timeout_seconds=SELF_TEST_SECONDS, max_bytes=1024)
    except NommerdError:
        raise
    except Exception as error:
        raise ConfigError("config.broken_runtime", f"{_broken()} ({type(error).__name__}: {error})", _HINT) from error
    finally:
        done()
    if exit.code != 0 or said.decode(errors="replace").strip() != _GREETING:
        raise ConfigError("config.broken_runtime", f"{_broken()} (exit {exit.code}, {len(said)} bytes of output)", _HINT)


_HINT = "Install versions that nommerd's setup.py names, and say so in an issue if these are."


def _broken() -> str:
    from importlib.metadata import version

    return f"Programs cannot be started: gevent {version('gevent')} and sh {version('sh')} do not work together here."


def _guard(seconds: float) -> Callable[[], None]:
    """End the process with a clear message unless the returned function is called within `seconds`.

    Native locks and threads: the event loop may be what hangs.
    """
    import faulthandler

    finished = native("_thread", "allocate_lock")()
    finished.acquire()
    message = f"nommerd: config.broken_runtime: {_broken()} The self-test hung for {seconds:g} s. {_HINT}\n".encode()

    def watch() -> None:
        if not finished.acquire(True, seconds):
            os.write(2, message)
            faulthandler.dump_traceback(2)
            os._exit(BROKEN_EXIT_CODE)

    native("_thread", "start_new_thread")(watch, ())
    return finished.release  # type: ignore[no-any-return]
