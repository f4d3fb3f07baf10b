"""Patching, the pool, and the self-test that fails at once where it could hang."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import gevent
import pytest

from nommerd import runtime

BROKEN = """
from nommerd import runtime
runtime.patch()
runtime.arrange_sh = lambda sh: None  # as if a new version of sh or gevent had made our arrangement void
runtime.self_test()
print("passed")
"""
WHOLE = """
from nommerd import runtime
{patch}
from nommerd.media import process  # what a daemon imports anyway
import time
runtime.self_test()
begun = time.perf_counter()
runtime.self_test()
print(time.perf_counter() - begun)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_patching_again_changes_nothing() -> None:
    before = (threading.Thread.start, os.fork, time.sleep)
    runtime.patch()
    assert runtime.patched()
    assert (threading.Thread.start, os.fork, time.sleep) == before


def test_the_self_test_passes_with_what_is_installed_patched_or_not() -> None:
    for patch in ("runtime.patch()", ""):
        done = python(WHOLE.format(patch=patch))
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 1.0  # some 6 ms on an idle machine


def test_a_broken_arrangement_ends_the_process_with_a_clear_message_within_ten_seconds() -> None:
    begun = time.monotonic()
    done = python(BROKEN)
    assert time.monotonic() - begun < 10.0
    assert done.returncode == runtime.BROKEN_EXIT_CODE
    assert "passed" not in done.stdout
    assert "config.broken_runtime" in done.stderr and "gevent" in done.stderr and "sh" in done.stderr
    assert done.stderr.startswith("nommerd: "), "the message comes before the traceback"


def test_the_pool_returns_results_and_raises_what_was_raised(capfd: pytest.CaptureFixture[str]) -> None:
    assert runtime.in_pool(pow, 2, 10) == 1024
    with pytest.raises(ZeroDivisionError):
        runtime.in_pool(lambda: 1 / 0)
    assert capfd.readouterr().err == "", "gevent's pool prints tracebacks of what is raised in it"


def test_the_pool_is_of_native_threads_and_the_event_loop_goes_on_meanwhile() -> None:
    released = os.pipe()
    turns: list[int] = []

    def release() -> None:
        turns.append(1)
        os.write(released[1], b"x")

    gevent.spawn(release)  # runs only if the read does not block the loop
    thread, byte = runtime.in_pool(lambda: (threading.get_native_id(), os.read(released[0], 1)))
    assert (turns, byte) == ([1], b"x")
    assert thread != threading.get_native_id()
    for end in released:
        os.close(end)


def test_work_in_the_pool_may_use_the_pool() -> None:
    assert runtime.in_pool(lambda: runtime.in_pool(lambda: runtime.in_pool(int, "7"))) == 7


def test_unpatched_the_pool_just_calls_and_imports_no_gevent() -> None:
    done = python("import sys; from nommerd import runtime\nprint(runtime.in_pool(int, '7'), 'gevent' in sys.modules)")
    assert done.stdout.split() == ["7", "False"], done.stderr
