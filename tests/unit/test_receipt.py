"""The message of a claim: hidden while the work goes on, replaced before the bus would show it."""

from __future__ import annotations

import pytest

from nommerd import lifecycle
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.bus.memory import MemoryBus
from nommerd.job import Job, Owner, new_id, utcnow
from nommerd.messages import JobMessage
from nommerd.receipt import REPLACE_AFTER_SECONDS, Receipt
from nommerd.rules import Action, decide
from nommerd.store.memory import MemoryStore


class Scene:
    """A job claimed from a message, and a clock to move."""

    def __init__(self, lease_seconds: float = 30.0) -> None:
        self.now = 0.0
        self.store, self.bus = MemoryStore(), MemoryBus()
        now = utcnow()
        job = Job(id=new_id(), pipeline="p", recipe="r", source="file:///a", dest="file:///b", created=now, updated=now)
        self.store.create(job)
        self.bus.jobs.send(JobMessage(id=job.id))
        (self.delivery,) = self.bus.jobs.receive(1, 0)
        owner = Owner(worker="w", node="n", claim=new_id())
        self.job = self.store.update(job.key, lifecycle.claim(owner, self.delivery.message_id, lease_seconds, utcnow()))
        self.receipt = Receipt(self.delivery, self.job, self.store, self.bus.jobs, clock=lambda: self.now)

    @property
    def record(self) -> Job:
        return self.store.get(self.job.key)


class Deaf(Delivery):
    """A bus that is out of reach."""

    def __init__(self, real: Delivery) -> None:
        self.message, self.message_id, self.receive_count = real.message, real.message_id, real.receive_count
        self.calls = 0

    def ack(self) -> bool:
        self.calls += 1
        raise BusUnavailable("reset")

    def release(self, delay_seconds: float = 0.0) -> bool:
        return self.ack()

    def extend(self, seconds: float) -> bool:
        return self.ack()


def test_the_message_is_hidden_for_a_lease_at_each_renewal() -> None:
    scene = Scene()
    asked: list[float] = []
    scene.delivery.extend = lambda seconds: bool(asked.append(seconds)) or True  # type: ignore[method-assign]
    scene.receipt.keep()
    scene.now += REPLACE_AFTER_SECONDS - 1
    scene.receipt.keep()
    assert asked == [30.0, 30.0]
    assert scene.record.message_id == scene.delivery.message_id


def test_after_eleven_hours_a_delayed_message_replaces_the_old_one_and_the_owner_goes_on() -> None:
    scene = Scene(lease_seconds=0.2)
    scene.now += REPLACE_AFTER_SECONDS
    scene.receipt.keep()
    old = scene.delivery.message_id
    assert scene.record.message_id not in (None, old)
    assert scene.record.owner == scene.job.owner
    assert scene.bus.jobs.receive(1, 0) == [], "the new one is delayed, the old one is gone"
    assert not scene.delivery.ack()
    scene.receipt.keep()  # nothing is left to hide
    (successor,) = scene.bus.jobs.receive(1, 5)
    assert successor.message_id == scene.record.message_id
    assert decide(scene.record, successor.message, successor.message_id) is Action.WATCH, "it never runs twice at once"


def test_a_replacement_whose_job_is_no_longer_ours_changes_nothing() -> None:
    scene = Scene()
    seen = scene.record
    assert seen.owner is not None
    scene.store.update(seen.key, lifecycle.give_back(seen.owner, "x", utcnow()))
    scene.now += REPLACE_AFTER_SECONDS
    scene.receipt.keep()
    assert scene.record.message_id is None


def test_an_unreachable_bus_never_stops_the_work() -> None:
    scene = Scene()
    deaf = Deaf(scene.delivery)
    receipt = Receipt(deaf, scene.job, scene.store, scene.bus.jobs, clock=lambda: 0.0)
    receipt.keep()
    assert receipt.release(1.0) is False
    receipt.drop()
    assert deaf.calls == 3


@pytest.mark.parametrize("end", ["drop", "release"])
def test_a_settled_message_is_not_hidden_again(end: str) -> None:
    scene = Scene()
    asked: list[float] = []
    scene.delivery.extend = lambda seconds: bool(asked.append(seconds)) or True  # type: ignore[method-assign]
    scene.receipt.drop() if end == "drop" else scene.receipt.release(0.0)
    scene.receipt.keep()
    assert asked == []
