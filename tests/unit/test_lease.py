"""Leases: kept by their owner, ended by its own clock, watched by others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
import pytest

from nommerd import lifecycle
from nommerd.errors import CancelRequested, Fenced, InputError, Problem, ShuttingDown, Stop
from nommerd.job import Job, JobState, Owner, Staged, new_id, utcnow
from nommerd.lease import Leadership, Lease, LeaseWatch, this_process, vanished
from nommerd.store.base import Store, StoreUnavailable
from nommerd.store.memory import MemoryStore
from nommerd.watch import FORGET_SECONDS, MARGIN, SLACK
from tests.contracts.lossy import Fate, LossyStore
from tests.rig import wait_until

LOST = Problem(code="node.lost", message="gone", retryable=True)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Away(LossyStore):
    """A store that is out of reach while `away`."""

    away = False

    def get(self, key: tuple[str, str]) -> Job:  # type: ignore[override]
        if self.away:
            raise StoreUnavailable("away")
        return super().get(key)  # type: ignore[arg-type]


def pending(**fields: object) -> Job:
    now = utcnow()
    return Job(**{"id": new_id(), "pipeline": "p", "recipe": "r", "source": "file:///a", "dest": "file:///b",  # type: ignore[arg-type]
                  "created": now, "updated": now, "write_id": new_id(), **fields})


def claimed(store: Store, lease_seconds: float = 30.0, worker: str = "w1") -> Job:
    job = pending()
    store.create(job)
    owner = replace(this_process(worker), claim=new_id())
    return store.update(job.key, lifecycle.claim(owner, "m1", lease_seconds, utcnow()))


def taken_over(store: Store, job: Job) -> Job:
    """Broken by an observer and claimed by somebody else."""
    seen = store.get(job.key)
    store.update(job.key, lifecycle.break_lease(seen.lease_version, LOST, 3, utcnow()))
    return store.update(job.key, lifecycle.claim(Owner(worker="w2", node="n2", claim=new_id()), "m2", 30, utcnow()))


@pytest.fixture
def store() -> Iterator[Store]:
    yield MemoryStore()


# --- the owner's side ------------------------------------------------------------------------------------------


def test_a_lease_is_renewed_several_times_within_its_life_with_the_newest_progress(store: Store) -> None:
    job = claimed(store, lease_seconds=0.9)
    with Lease(store, job, Stop(), poll_seconds=None) as lease:
        lease.progress(0.4, "encode", 7.0)
        wait_until(lambda: store.get(job.key).lease_version >= job.lease_version + 3, 10, "three renewals")
        assert not lease.expired
        seen = store.get(job.key)
        assert (seen.progress, seen.stage, seen.eta_seconds) == (0.4, "encode", 7.0)
    assert all(greenlet.ready() for greenlet in lease._greenlets), "a closed lease is renewed no more"


def test_work_stops_before_an_observer_could_break_the_lease(store: Store) -> None:
    away = Away(store)
    job = claimed(store, lease_seconds=2.4)
    stop = Stop()
    watch = LeaseWatch(me=Owner(worker="observer", node="elsewhere"))
    assert watch.expired(job) is None  # the observer saw this version when it was written: the worst case
    away.away = True
    with Lease(away, job, stop):
        assert stop.wait(10)
        assert watch.expired(job) is None
    assert isinstance(stop.reason, Fenced)
    wait_until(lambda: watch.expired(job), 10, "the observer to see it dead")


def test_a_renewal_that_hangs_does_not_keep_the_work_going(store: Store) -> None:
    class Hanging(LossyStore):
        def get(self, key):  # type: ignore[no-untyped-def]
            gevent.sleep(60)

    job = claimed(store, lease_seconds=0.6)
    stop = Stop()
    with Lease(Hanging(store), job, stop):
        assert stop.wait(5)
    assert isinstance(stop.reason, Fenced)


def test_the_deadline_counts_from_when_the_renewal_was_sent_not_from_when_it_was_answered(store: Store) -> None:
    clock = Clock()

    class Slow(LossyStore):
        def swap(self, job: Job, expected_version: int) -> None:
            super().swap(job, expected_version)
            clock.now += 8  # the answer takes its time

    job = claimed(store)
    lease = Lease(Slow(store), job, Stop(), since=clock.now, clock=clock)
    clock.now += 10
    lease.confirm()
    assert lease.deadline == pytest.approx(1010 + 30 * (1 - MARGIN))


def test_a_worker_that_slept_past_its_lease_is_fenced_before_it_writes(store: Store) -> None:
    clock = Clock()
    job = claimed(store)
    stop = Stop()
    lease = Lease(store, job, stop, since=clock.now, clock=clock)
    clock.now += 30  # as after SIGSTOP and SIGCONT
    before = store.get(job.key)
    for write in (lease.confirm, lambda: lease.stage_outputs(()), lambda: lease.advance(JobState.UPLOADING, "upload", 0.9)):
        with pytest.raises(Fenced):
            write()
    assert store.get(job.key) == before
    assert isinstance(stop.reason, Fenced)


def test_every_write_is_fenced_once_somebody_else_has_the_job(store: Store) -> None:
    job = claimed(store)
    theirs = taken_over(store, job)
    acts: list[Callable[[Lease], None]] = [Lease.confirm, lambda one: one.stage_outputs(()),
                                           lambda one: one.advance(JobState.ENCODING, "e", 0.1)]
    for act in acts:
        stop = Stop()
        with pytest.raises(Fenced):
            act(Lease(store, job, stop))
        assert isinstance(stop.reason, Fenced)
    assert store.get(job.key) == theirs


def test_a_take_over_is_noticed_without_a_write_of_ours(store: Store) -> None:
    job = claimed(store)
    stop = Stop()
    with Lease(store, job, stop, poll_seconds=0.1):
        taken_over(store, job)
        assert stop.wait(5)
    assert isinstance(stop.reason, Fenced)


def test_a_cancellation_is_noticed_within_two_seconds_where_reads_are_cheap(store: Store) -> None:
    job = claimed(store)
    stop = Stop()
    with Lease(store, job, stop):
        store.update(job.key, lifecycle.cancel(utcnow()))
        assert stop.wait(2)
    assert isinstance(stop.reason, CancelRequested)


def test_a_cancellation_is_noticed_at_the_next_renewal_where_reads_cost_money(store: Store) -> None:
    job = claimed(store, lease_seconds=1.5)
    stop = Stop()
    with Lease(store, job, stop, poll_seconds=None):
        store.update(job.key, lifecycle.cancel(utcnow()))
        assert stop.wait(5)
    assert isinstance(stop.reason, CancelRequested)


def test_a_cancelled_job_is_not_published(store: Store) -> None:
    job = claimed(store)
    lease = Lease(store, job, Stop())
    store.update(job.key, lifecycle.cancel(utcnow()))
    with pytest.raises(CancelRequested):
        lease.confirm()


def test_a_job_stays_ours_while_its_cancelled_work_is_being_stopped(store: Store) -> None:
    job = claimed(store, lease_seconds=0.6)
    stop = Stop()
    with Lease(store, job, stop):
        stop.set(ShuttingDown())
        wait_until(lambda: store.get(job.key).lease_version >= job.lease_version + 3, 10, "renewals going on")


def test_a_write_is_tried_again_while_the_lease_lives(store: Store) -> None:
    job = claimed(store)
    lossy = LossyStore(store, Fate.REFUSED, Fate.LOST, Fate.REFUSED, Fate.REFUSED, Fate.LOST)
    lease = Lease(lossy, job, Stop())
    staged = (Staged(uri="file:///b", handle=".b.1.part", bytes=1, sha256="0", token=1),)
    lease.stage_outputs(staged)
    assert store.get(job.key).staged == staged


def test_progress_is_written_at_most_once_a_second_and_apart_from_the_lease(store: Store) -> None:
    reports: list[float] = []

    class Counting(LossyStore):
        def report_progress(self, key, token, progress, stage, eta_seconds, speed=None):  # type: ignore[no-untyped-def]
            reports.append(progress)
            self.store.report_progress(key, token, progress, stage, eta_seconds, speed)

    job = claimed(store)
    counting = Counting(store)
    with Lease(counting, job, Stop(), poll_seconds=None) as lease:
        for step in range(250):
            lease.progress(step / 250, "encode", None)
            gevent.sleep(0.01)
    assert 1 <= len(reports) <= 4
    assert counting.writes == 0
    assert store.get(job.key).progress == reports[-1]


def test_the_beginning_of_a_stage_is_written_at_once_and_told(store: Store) -> None:
    job = claimed(store)
    told: list[JobState] = []
    lease = Lease(store, job, Stop(), on_change=lambda changed: told.append(changed.state))
    lease.advance(JobState.DOWNLOADING, "fetch", 0.0)
    lease.advance(JobState.ENCODING, "one", 0.1)
    lease.advance(JobState.ENCODING, "two", 0.5)
    seen = store.get(job.key)
    assert (seen.state, seen.stage, seen.progress) == (JobState.ENCODING, "two", 0.5)
    assert told == [JobState.DOWNLOADING, JobState.ENCODING]


def test_settling_ends_the_lease_and_is_refused_to_an_owner_of_yesterday(store: Store) -> None:
    job = claimed(store)
    assert job.owner is not None
    stop = Stop()
    with Lease(store, job, stop, poll_seconds=0.05) as lease:
        done = lease.settle(lifecycle.give_back(job.owner, "shutting down", utcnow()), 3)
        assert done.state is JobState.PENDING
        wait_until(lambda: all(greenlet.ready() for greenlet in lease._greenlets), 10, "the keeper to end")
    assert stop.reason is None, "our own settling is no loss"
    with pytest.raises(Fenced):
        Lease(store, job, Stop()).settle(lifecycle.finish(job.owner, (), (), utcnow()), 3)


# --- the observer's side ---------------------------------------------------------------------------------------


def far_away(store: Store, lease_seconds: float = 30.0) -> Job:
    job = pending()
    store.create(job)
    return store.update(job.key, lifecycle.claim(Owner(worker="w", node="far", claim=new_id()), "m", lease_seconds, utcnow()))


def test_a_silent_lease_is_dead_after_its_length_on_the_observers_own_clock(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(clock)
    job = far_away(store)
    assert watch.expired(job) is None
    clock.now += 30
    assert watch.expired(job) is None
    clock.now += 30 * SLACK
    problem = watch.expired(job)
    assert problem is not None
    assert (problem.code, problem.retryable) == ("node.lost", True)


def test_each_renewal_begins_the_wait_anew(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(clock)
    job = far_away(store)
    assert job.owner is not None
    for _ in range(5):
        assert watch.expired(job) is None
        clock.now += 29
        job = store.update(job.key, lifecycle.renew(job.owner, 0.5, None, None))
    assert watch.expired(job) is None


def test_wall_clocks_that_differ_by_ten_minutes_change_nothing(store: Store) -> None:
    job = replace(far_away(store), updated=utcnow().replace(year=2001), created=utcnow().replace(year=2001))
    assert LeaseWatch(Clock()).expired(job) is None


def test_a_job_that_nobody_holds_has_no_lease_to_expire(store: Store) -> None:
    assert LeaseWatch().expired(pending()) is None


def test_leases_that_nobody_asks_about_are_forgotten(store: Store) -> None:
    clock = Clock()
    watch = LeaseWatch(clock)
    watch.expired(far_away(store))
    clock.now += FORGET_SECONDS + 1
    watch.expired(far_away(store))
    assert len(watch._sights) == 1


def held_by(pid: int, started: int | None = None) -> Owner:
    me = this_process("w")
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    return replace(me, pid=pid, started=ticks if started is None else started, claim=new_id())


def test_a_process_that_is_gone_is_dead_at_once_and_one_that_lives_is_not(store: Store) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    owner = held_by(child.pid)
    job = replace(far_away(store), owner=owner)
    watch = LeaseWatch()
    assert watch.expired(job) is None
    child.kill()
    child.wait(10)
    problem = watch.expired(job)
    assert problem is not None
    assert "ended" in problem.message


def test_a_zombie_and_a_reused_pid_count_as_gone() -> None:
    me = this_process("observer")
    assert not vanished(held_by(os.getpid()), me)
    assert vanished(held_by(os.getpid(), started=1), me)
    zombie = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 0"], {})
    try:
        owner = held_by(zombie)
        wait_until(lambda: vanished(owner, me), 10, "a zombie taken for gone")
    finally:
        os.waitpid(zombie, 0)


def test_a_process_of_another_machine_or_namespace_is_never_judged_by_our_proc() -> None:
    me = this_process("observer")
    gone = replace(me, pid=2**22 - 1, started=1)
    assert vanished(gone, me)
    assert not vanished(replace(gone, boot_id="another"), me)
    assert not vanished(replace(gone, pid_namespace="pid:[1]"), me)
    assert not vanished(Owner(worker="w", node="n"), Owner(worker="o", node="n"))


# --- the leader ------------------------------------------------------------------------------------------------


def leader(store: Store, clock: Clock, name: str) -> Leadership:
    return Leadership(store, Owner(worker=name, node=name), 30, clock=clock, watch=LeaseWatch(clock))


def test_one_of_two_leads_and_the_other_takes_over_from_the_dead(store: Store) -> None:
    clock = Clock()
    a, b = leader(store, clock, "a"), leader(store, clock, "b")
    assert a.tick()
    assert not b.tick()
    clock.now += 26  # a is silent
    assert not a.leads, "it stops before another may begin"
    assert not b.tick()
    clock.now += 8
    assert b.tick()
    assert b.token == a.token + 1
    assert not a.tick()
    assert not a.leads


def test_a_leader_that_resigns_is_followed_at_once(store: Store) -> None:
    clock = Clock()
    a, b = leader(store, clock, "a"), leader(store, clock, "b")
    assert a.tick()
    a.resign()
    assert not a.leads
    assert b.tick()


def test_a_leader_whose_take_over_was_applied_but_not_answered_leads_at_the_next_tick() -> None:
    class Unsure(LossyStore):
        def swap_leader(self, *arguments):  # type: ignore[no-untyped-def]
            self._write(self.store.swap_leader, *arguments)

    clock = Clock()
    a = leader(Unsure(MemoryStore(), Fate.LOST), clock, "a")
    assert not a.tick()
    assert a.tick()
    assert a.token == 1


def test_two_that_reach_for_an_empty_seat_at_once_do_not_both_lead() -> None:
    clock = Clock()
    store = MemoryStore()
    b = leader(store, clock, "b")

    class Racing(LossyStore):
        def swap_leader(self, *arguments):  # type: ignore[no-untyped-def]
            b.tick()  # just before ours is applied
            self.store.swap_leader(*arguments)

    a = leader(Racing(store), clock, "a")
    assert not a.tick()
    assert b.leads


def test_errors_that_are_no_unavailability_pass_through_a_lease(store: Store) -> None:
    class Broken(LossyStore):
        def swap(self, job: Job, expected_version: int) -> None:
            raise InputError("internal.record_too_large", "too large")

    job = claimed(store)
    with pytest.raises(InputError):
        Lease(Broken(store), job, Stop()).confirm()
