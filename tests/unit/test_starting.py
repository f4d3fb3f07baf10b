"""One that is not ready in time ends; one that is goes on."""

from __future__ import annotations

import subprocess
import sys
import time

import gevent
import pytest
from gevent.event import Event

from nommerd import starting
from nommerd.bus.base import BusUnavailable, Depth
from nommerd.bus.memory import MemoryBus
from nommerd.errors import InfrastructureError
from nommerd.starting import Start, answer, process_age
from nommerd.store.base import StoreUnavailable
from nommerd.store.memory import MemoryStore

NOT_READY = "It was not ready within 0.1 seconds."
HANGING = """
from nommerd import starting
import gevent
starting.END_SECONDS = 0.1
with starting.Start(0.1) as start:
    start.running(lambda: False, lambda: None)  # asked to stop, it does not
    gevent.sleep(60)
"""


def test_one_that_is_ready_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "END_SECONDS", 0.1)
    asked, stopped = [], Event()
    with Start(0.3) as start:
        start.running(lambda: asked.append(1) or len(asked) > 1, stopped.set)  # not at the first look
        assert not stopped.wait(0.6)
    assert len(asked) == 2


@pytest.mark.parametrize("ready", [lambda: False, lambda: gevent.sleep(60)], ids=["not-ready", "does-not-answer"])
def test_one_that_is_not_ready_is_asked_to_stop_and_says_why(ready: object) -> None:
    stopped = Event()
    with pytest.raises(InfrastructureError, match=NOT_READY), Start(0.1) as start:
        start.running(ready, stopped.set)  # type: ignore[arg-type]
        assert stopped.wait(10)


def test_what_takes_too_long_before_that_is_cut_short_even_where_outages_are_survived() -> None:
    with pytest.raises(InfrastructureError, match=NOT_READY), Start(0.1):
        try:
            gevent.sleep(60)
        except Exception:
            pytest.fail("taken for an outage")


def test_one_that_does_not_stop_either_is_ended() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, NOT_READY in ended.stderr) == (1, True), ended.stderr


def test_the_clock_runs_from_the_start_of_the_process() -> None:
    code = "import time; from nommerd.starting import process_age; a = process_age(); time.sleep(0.5); print(a, process_age())"
    begun = time.monotonic()
    first, second = map(float, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30,
                                              check=True).stdout.split())
    assert 0 < first <= second - 0.5 < time.monotonic() - begun
    assert process_age() > time.monotonic() - begun
    for assembled in (False, True):
        stopped = Event()
        with pytest.raises(InfrastructureError, match="It was not ready within 60 seconds"), Start(60, age=59.9) as start:
            if assembled:
                start.running(lambda: False, stopped.set)
            assert stopped.wait(20)


def test_without_a_limit_nothing_is_ended() -> None:
    stopped = Event()
    with Start(None) as start:
        start.running(lambda: False, stopped.set)
        assert not stopped.wait(0.1)


def test_both_store_and_bus_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    store, bus = MemoryStore(), MemoryBus()
    assert answer(store, bus.jobs)

    def away(error: InfrastructureError) -> Depth:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store, "ping", lambda: away(StoreUnavailable("away")))
        assert not answer(store, bus.jobs)
    with monkeypatch.context() as patch:
        patch.setattr(bus.jobs, "depth", lambda: away(BusUnavailable("away")))
        assert not answer(store, bus.jobs)
