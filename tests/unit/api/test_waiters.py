"""Who waits for a change: woken by hints, and asking the store no more often than it may be asked."""

from __future__ import annotations

import gevent
import pytest

from nommerd.api import waiters as module
from nommerd.api.waiters import Waiters
from nommerd.job import Job, utcnow

NOW = utcnow()
JOB = Job(id="j", pipeline="p", recipe="r", source="file:///s", dest="file:///d", created=NOW, updated=NOW)


class Reads:
    """A record that is read; counts."""

    def __init__(self) -> None:
        self.job = JOB
        self.count = 0

    def __call__(self) -> Job:
        self.count += 1
        return self.job


@pytest.mark.parametrize(("look_seconds", "least", "most"), [(0.01, 8, 40), (0.15, 4, 6)])
def test_a_waiter_asks_the_store_as_often_as_it_may_be_asked(monkeypatch: pytest.MonkeyPatch, look_seconds: float, least: int,
                                                             most: int) -> None:
    monkeypatch.setattr(module, "BACKSTOP_SECONDS", 0.01)
    reads = Reads()
    assert Waiters(look_seconds).wait(reads, None, 0.35) == JOB
    assert least <= reads.count <= most


def test_a_hint_wakes_it_long_before_it_would_look_by_itself() -> None:
    reads, waiters = Reads(), Waiters(60.0)
    waiting = gevent.spawn(waiters.wait, reads, None, 60.0)
    gevent.sleep(0)
    reads.job = JOB.evolve(event_seq=1)
    waiters.wake(JOB.key)
    assert waiting.get(timeout=5).event_seq == 1
    assert waiters._events == {}
