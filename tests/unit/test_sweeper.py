from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog

from nommerd import lifecycle, messages
from nommerd.bus.base import MAX_RECEIVES, BusUnavailable
from nommerd.bus.memory import MemoryBus
from nommerd.control import Control
from nommerd.errors import InfrastructureError, Problem
from nommerd.job import RESEND_SECONDS, UNSENT_SECONDS, Job, JobState, Key, Owner, Priority, Staged, new_id, utcnow
from nommerd.messages import JobMessage
from nommerd.rules import retry_delay
from nommerd.sending import MARK_SECONDS, Sending
from nommerd.store.memory import MemoryStore
from nommerd.sweeper import Sweeper

OWNER = Owner(worker="w1", node="n1", claim="c1")
LOST = Problem(code="node.lost", message="Worker w1 has ended.", retryable=True)
ABANDON_AFTER = 32400.0


class Rig:
    """A sweeper on a store and a bus in memory; `dead` are the jobs whose owner counts as lost."""

    def __init__(self, page: int = 200, max_attempts: int = 3) -> None:
        self.store, self.bus = MemoryStore(), MemoryBus()
        self.now = 0.0
        self.sending = Sending(self.store, self.bus, clock=lambda: self.now)
        self.dead: set[Key] = set()
        self.changed: list[JobState] = []
        self.sweeper = Sweeper(self.store, self.bus, self.sending, self, lambda job: self.changed.append(job.state),
                               max_attempts=max_attempts, abandon_after_seconds=ABANDON_AFTER, page=page)

    def expired(self, job: Job) -> Problem | None:
        return LOST if job.key in self.dead else None

    def create(self, **more: Any) -> Key:
        now = utcnow()
        job = Job(id=new_id(), pipeline="p", recipe="r", source="file:///s", dest="file:///d", created=now, updated=now,
                  write_id=new_id(), **more)
        self.store.create(job)
        return job.key

    def claim(self, key: Key, at: datetime | None = None) -> Job:
        return self.store.update(key, lifecycle.claim(replace(OWNER, claim=new_id()), "m", 30.0, at or utcnow()))

    def sweep(self, after_seconds: float = 0.0, starting: bool = False) -> Any:
        return self.sweeper.sweep(utcnow() + timedelta(seconds=after_seconds), starting)

    def received(self) -> list[Key]:
        """The keys of all visible messages, which are taken away."""
        found = []
        while deliveries := self.bus.jobs.receive(10, 0):
            for delivery in deliveries:
                assert isinstance(delivery.message, JobMessage)
                found.append(delivery.message.key)
                delivery.ack()
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


def test_a_job_whose_message_was_never_sent_is_sent_once_and_marked(rig: Rig) -> None:
    key = rig.create(priority=Priority.HIGH)
    assert rig.sweep().sent == []
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [key.id]
    assert rig.store.get(key).message_id is not None
    assert rig.sweep(UNSENT_SECONDS + 2).sent == []
    assert rig.received() == [key]


def test_at_the_start_what_is_unsent_is_sent_at_once(rig: Rig) -> None:
    key = rig.create()
    assert rig.sweep(starting=True).sent == [key.id]


def test_a_message_that_this_process_sent_is_marked_and_not_sent_again(rig: Rig) -> None:
    key = rig.create()
    message_id = rig.sending.send(rig.store.get(key))
    swept = rig.sweep(UNSENT_SECONDS + 1)
    assert (swept.sent, swept.marked) == ([], [key.id])
    assert rig.store.get(key).message_id == message_id
    assert len(rig.received()) == 1


def test_sent_messages_are_marked_later_unless_a_worker_was_quicker(rig: Rig) -> None:
    slow, quick = rig.create(), rig.create()
    for key in (slow, quick):
        rig.sending.send(rig.store.get(key))
    rig.claim(quick)
    version = rig.store.get(quick).version
    assert rig.sending.mark_old() == 0
    rig.now = MARK_SECONDS
    assert rig.sending.mark_old() == 2
    assert rig.store.get(slow).message_id is not None
    assert rig.store.get(quick).version == version
    assert not rig.sending.is_out(rig.store.get(slow))


def test_a_mark_that_comes_after_a_claim_and_its_end_says_nothing(rig: Rig) -> None:
    key = rig.create()
    rig.sending.send(rig.store.get(key))
    owner = rig.claim(key).owner
    assert owner is not None
    rig.store.update(key, lifecycle.give_back(owner, "shutting down", utcnow()))
    rig.now = MARK_SECONDS
    rig.sending.mark_old()
    assert rig.store.get(key).message_id is None


def test_a_message_out_for_long_is_sent_again_only_when_the_queue_is_empty(rig: Rig) -> None:
    key = rig.create()
    rig.sweep(starting=True)
    assert rig.sweep(RESEND_SECONDS + 1).sent == []
    assert rig.received() == [key]
    assert rig.sweep(RESEND_SECONDS + 1).sent == [key.id]
    assert rig.received() == [key]
    assert rig.sweep(RESEND_SECONDS - 5).sent == []


def test_after_an_hour_it_is_sent_again_though_others_wait(rig: Rig) -> None:
    key = rig.create()
    rig.sweep(starting=True)
    assert rig.sweep(3590).sent == []
    assert rig.sweep(3601).sent == [key.id]


def test_while_no_worker_runs_messages_do_not_pile_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.create()
    begun, sent = utcnow(), 0
    for hours in range(5 * 24):
        now = begun + timedelta(hours=hours, minutes=1)
        monkeypatch.setattr("nommerd.sending.utcnow", lambda now=now: now)
        sent += len(rig.sweeper.sweep(now).sent)
    assert sent == len(rig.received())
    assert 5 < sent < 10, "after one hour, two, four, …"


def test_while_the_installation_is_paused_nothing_is_sent_again_and_nothing_abandoned(rig: Rig) -> None:
    """Nor soon afterwards: its silence is counted from the end of the pause."""
    key = rig.create()
    owner = rig.claim(key).owner
    assert owner is not None
    rig.store.update(key, lifecycle.give_back(owner, "shutting down", utcnow()))
    rig.sweep(starting=True)
    clock = utcnow()
    control = Control(rig.store, now=lambda: clock)
    control.pause("somebody")
    days = [rig.sweep(hours * 3600 + 60) for hours in range(5 * 24)]
    assert not any(days), "while there is a message on the queue"
    clock += timedelta(days=5)
    control.resume("somebody")
    after = [rig.sweep(5 * 86400 + seconds) for seconds in (1, 3590, 3660, ABANDON_AFTER - 60, ABANDON_AFTER + 60)]
    assert [(one.sent, one.abandoned) for one in after[:2]] == [([], []), ([], [])]
    assert after[2].sent == [key.id] and after[3].abandoned == [] and after[4].abandoned == [key.id]


def test_messages_that_the_queue_lost_in_a_pause_are_sent_again(rig: Rig) -> None:
    key = rig.create()
    rig.sweep(starting=True)
    Control(rig.store).pause("somebody")
    assert rig.received() == [key]
    assert rig.sweep(RESEND_SECONDS + 1).sent == [key.id]


@pytest.mark.parametrize("claimed", [False, True])
def test_however_many_jobs_wait_or_run_an_unsent_one_is_sent_in_the_next_sweep(claimed: bool) -> None:
    rig = Rig(page=3)
    others = [rig.create() for _ in range(20)]
    rig.sweep(starting=True)
    for key in others if claimed else ():
        rig.claim(key)
    lost = rig.create()
    assert lost.id in rig.sweep(RESEND_SECONDS + 1).sent
    assert rig.received().count(lost) == 1


def test_however_many_jobs_run_each_dead_lease_is_broken_in_its_turn() -> None:
    rig = Rig(page=3)
    keys = [rig.create() for _ in range(20)]
    for key in keys:
        rig.claim(key)
    rig.dead.add(max(keys))
    broken = [rig.sweep().broken for _ in range(8)]
    assert [max(keys).id] in broken
    rig.dead.add(min(keys))
    assert [min(keys).id] in [rig.sweep().broken for _ in range(8)]


def test_of_many_whose_messages_were_lost_each_is_sent_in_its_turn() -> None:
    rig = Rig(page=3)
    keys = {rig.create() for _ in range(10)}
    rig.sweep(starting=True)
    rig.bus.jobs.purge()
    again: set[Key] = set()
    for _ in range(4):
        rig.sweep(RESEND_SECONDS + 1)
        again |= set(rig.received())
    assert again == keys


def test_thousands_left_unsent_by_a_crash_are_sent_within_a_few_sweeps() -> None:
    rig = Rig()
    keys = {rig.create() for _ in range(500)}
    assert len(rig.sweep(starting=True).sent) == len(keys)
    assert set(rig.received()) == keys


def test_a_retry_that_waits_for_its_moment_is_not_sent_before_it(rig: Rig) -> None:
    key = rig.create()
    owner = rig.claim(key).owner
    assert owner is not None
    rig.store.update(key, lifecycle.fail(owner, LOST, [], 3, utcnow()))
    message_id = rig.bus.jobs.send(JobMessage(id=key.id), retry_delay(99))
    rig.store.update(key, lifecycle.sent(message_id, utcnow()))
    for seconds in range(int(retry_delay(99)) + 5):
        assert rig.sweep(seconds).sent == []
    rig.store.update(key, lifecycle.cancel(utcnow()))
    assert rig.store.get(key).state is JobState.CANCELLED
    assert rig.sweep(RESEND_SECONDS + 1).seen == 0


def test_a_dead_lease_is_broken_and_the_job_sent_at_once(rig: Rig) -> None:
    key = rig.create()
    job = rig.claim(key)
    assert job.owner is not None
    rig.store.update(key, lifecycle.advance(job.owner, JobState.ENCODING, "ffmpeg", 0.5, utcnow()))
    assert rig.sweep().broken == []
    rig.dead.add(key)
    swept = rig.sweep()
    assert (swept.broken, swept.sent) == ([key.id], [key.id])
    free = rig.store.get(key)
    assert (free.state, free.owner, free.attempts[-1].why) == (JobState.PENDING, None, "node.lost")
    assert free.message_id is not None
    assert rig.received() == [key] and rig.changed == [JobState.PENDING]


def test_the_last_attempt_that_is_lost_ends_in_an_error_that_names_it() -> None:
    rig = Rig(max_attempts=1)
    key = rig.create()
    rig.claim(key)
    rig.dead.add(key)
    rig.sweep()
    job = rig.store.get(key)
    assert job.state is JobState.ERROR and job.error is not None and job.error.code == "node.lost"
    assert rig.received() == [] and rig.changed == [JobState.ERROR]


def test_a_last_attempt_that_may_have_published_is_sent_once_more() -> None:
    rig = Rig(max_attempts=1)
    key = rig.create()
    owner = rig.claim(key).owner
    assert owner is not None
    rig.store.update(key, lifecycle.stage(owner, [Staged(uri="file:///d", handle="h", bytes=1, sha256="0", token=1)]))
    rig.dead.add(key)
    rig.sweep()
    job = rig.store.get(key)
    assert (job.state, job.adopt_only, job.attempts_charged) == (JobState.PENDING, True, 1)
    assert rig.received() == [key]
    rig.claim(key)
    rig.sweep()
    job = rig.store.get(key)
    assert job.state is JobState.ERROR and job.error is not None and job.error.code == "node.lost"


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(rig: Rig) -> None:
    key = rig.create()
    rig.claim(key)
    rig.store.update(key, lifecycle.cancel(utcnow()))
    rig.dead.add(key)
    rig.sweep()
    assert rig.store.get(key).state is JobState.CANCELLED and rig.received() == []


def test_a_lease_renewed_meanwhile_is_left_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rig.create()
    job = rig.claim(key)

    def expired(seen: Job) -> Problem:
        assert job.owner is not None
        rig.store.update(key, lifecycle.renew(job.owner, 0.5, "ffmpeg", None))
        return LOST
    monkeypatch.setattr(rig, "expired", expired)
    assert rig.sweep().broken == []
    assert rig.store.get(key).claimed and rig.received() == []


def test_a_settled_job_with_something_staged_is_sent_so_that_a_worker_revokes_it(rig: Rig) -> None:
    key = rig.create()
    owner = rig.claim(key).owner
    assert owner is not None
    staged = Staged(uri="file:///d", handle="h", bytes=1, sha256="0", token=1)
    rig.store.update(key, lifecycle.stage(owner, [staged]))
    rig.store.update(key, lifecycle.fail(owner, Problem(code="input.damaged", message="x"), [], 3, utcnow()))
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [key.id]
    rig.store.update(key, lifecycle.unstaged(["h"]))
    assert rig.received() == [key]
    assert rig.sweep(10 * RESEND_SECONDS).seen == 0


def test_a_job_given_back_and_silent_for_too_long_is_abandoned(rig: Rig) -> None:
    key, fresh = rig.create(), rig.create()
    owner = rig.claim(key).owner
    assert owner is not None
    rig.store.update(key, lifecycle.give_back(owner, "shutting down", utcnow()))
    assert rig.sweep(ABANDON_AFTER - 60).abandoned == []
    assert rig.store.get(key).state is JobState.PENDING
    assert rig.sweep(ABANDON_AFTER + 60).abandoned == [key.id]
    assert rig.store.get(key).state is JobState.ABANDONED and rig.changed == [JobState.ABANDONED]
    assert rig.store.get(fresh).state is JobState.PENDING


def test_a_retry_of_a_job_from_long_ago_is_not_abandoned(rig: Rig) -> None:
    key = rig.create()
    long_ago = utcnow() - timedelta(days=3)
    owner = rig.claim(key, long_ago).owner
    assert owner is not None
    rig.store.update(key, lifecycle.fail(owner, Problem(code="input.damaged", message="x"), [], 3, long_ago))
    rig.store.update(key, lifecycle.retry(utcnow()))
    swept = rig.sweep(UNSENT_SECONDS + 1)
    assert (swept.abandoned, swept.sent) == ([], [key.id])


def test_a_claimed_job_is_never_abandoned(rig: Rig) -> None:
    key = rig.create()
    rig.claim(key)
    assert rig.sweep(2 * ABANDON_AFTER).abandoned == []


def test_a_dead_letter_is_settled_from_the_record(rig: Rig) -> None:
    key = rig.create()
    rig.sweep(starting=True)
    for _ in range(MAX_RECEIVES + 1):
        for delivery in rig.bus.jobs.receive(1, 0):
            delivery.release()
    assert rig.bus.jobs.depth().dead == 1
    assert rig.sweep().dead_letters == 1
    assert rig.bus.jobs.depth().dead == 0
    assert rig.store.get(key).message_id is None
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [key.id]


def test_one_dead_letter_that_cannot_be_settled_does_not_keep_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = rig.create(), rig.create()
    for key in (bad, good):
        rig.sending.send(rig.store.get(key))
    for _ in range(MAX_RECEIVES + 1):
        for delivery in rig.bus.jobs.receive(2, 0):
            delivery.release()
    update = rig.store.update

    def picky(key: Key, change: Any, **more: Any) -> Job:
        if key == bad:
            raise InfrastructureError("internal.bad_record", "A stored record cannot be read.")
        return update(key, change, **more)
    monkeypatch.setattr(rig.store, "update", picky)
    assert rig.sweep().dead_letters == 1
    assert rig.bus.jobs.depth().dead == 1


def test_a_dead_letter_of_a_job_that_is_gone_is_dropped(rig: Rig) -> None:
    rig.bus.jobs.send(messages.JobMessage(id="gone"))
    for _ in range(MAX_RECEIVES + 1):
        for delivery in rig.bus.jobs.receive(1, 0):
            delivery.release()
    assert rig.sweep().dead_letters == 1
    assert rig.bus.jobs.depth().dead == 0


def test_one_jobs_trouble_does_not_keep_others_waiting(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = rig.create(), rig.create()
    send = rig.sending.send

    def picky(job: Job) -> str | None:
        if job.key == bad:
            raise RuntimeError("a fault of ours")
        return send(job)
    monkeypatch.setattr(rig.sending, "send", picky)
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [good.id]
    monkeypatch.undo()
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [bad.id]


def test_a_bus_out_of_reach_leaves_the_job_unsent_for_the_next_sweep(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rig.create()

    def refuse(message: object, delay_seconds: float = 0.0) -> str:
        raise BusUnavailable("reset")
    monkeypatch.setattr(rig.bus.jobs, "send", refuse)
    assert rig.sweep(UNSENT_SECONDS + 1).sent == []
    monkeypatch.undo()
    assert rig.sweep(UNSENT_SECONDS + 1).sent == [key.id]
