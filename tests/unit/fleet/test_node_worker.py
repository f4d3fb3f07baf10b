"""A worker on an EC2 node, in this process: when it leaves, what becomes of jobs and messages meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from nommerd import lifecycle
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.control import Control
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.fleet.metadata import Node, Notice
from nommerd.fleet.node import Life
from nommerd.job import JobState, Key, utcnow
from nommerd.messages import JobMessage
from nommerd.parting import LAST_RECEIVE_SECONDS
from nommerd.pipeline.context import Context
from nommerd.store.base import WorkerRecord
from nommerd.worker import Worker
from tests.rig import wait_until
from tests.unit.test_worker import Act, House, until_stopped

ID = "i-0123456789abcdef0"


class Place:
    """A house whose worker runs on an EC2 node; time there is `now`."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.now = 0.0
        self.notice: Notice | None = None
        self.touched = 0
        self.ends: list[list[str]] = []  # for each try to end the node: the worker's states at that moment
        self.ending: Callable[[], None] = lambda: None
        self.worker: Worker | None = None

    def start(self, *, idle_seconds: float | None = 600.0, **options: Any) -> Worker:
        place = self

        class Watched(Life):
            def touch(self) -> None:
                place.touched += 1
                super().touch()

        life = Watched(Node(ID), lambda: self.notice, idle_seconds=idle_seconds, terminate=self._terminate,
                       clock=lambda: self.now)
        self.worker = self.house.start(life=life, **options)
        return self.worker

    def _terminate(self) -> None:
        self.ends.append([record.state for record in self.house.store.workers() if record.name == "w1"])
        self.ending()

    def later(self, seconds: float) -> None:
        """So much time passes, and the worker looks at its clock."""
        self.now += seconds
        self.house.bus.jobs.interrupt()

    def up(self) -> None:
        wait_until(lambda: self.house.bus.jobs._waiting, 10, "the worker to wait for jobs")

    def gone(self, seconds: float = 10) -> None:
        greenlet = self.house.running[0][1]
        greenlet.join(seconds)
        assert greenlet.successful()

    @property
    def greenlet(self) -> gevent.Greenlet:
        return self.house.running[0][1]

    @property
    def state(self) -> str:
        return next(record.state for record in self.house.store.workers() if record.name == "w1")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    Act.act = staticmethod(lambda context: None)
    Act.seen.clear()
    house = House(tmp_path)
    yield Place(house)
    house.stop()


# --- idle --------------------------------------------------------------------------------------------------------


def test_an_idle_node_says_so_and_then_ends_itself(place: Place) -> None:
    place.start()
    place.up()
    assert place.state == "ACTIVE"
    place.later(599)
    place.up()
    assert place.ends == []
    place.later(2)
    place.gone()
    assert place.ends == [["TERMINATED"]], "reported before it ends"
    assert place.state == "TERMINATED"
    assert [record.node for record in place.house.store.workers()] == [ID]


def test_a_message_that_comes_with_the_last_poll_is_taken_and_the_node_stays(place: Place) -> None:
    house = place.house
    job = house.job()
    receive, sent = house.bus.jobs.receive, []

    def last_comes_late(limit: int, wait_seconds: float) -> Sequence[Delivery]:
        if wait_seconds == LAST_RECEIVE_SECONDS and place.now > 600 and not sent:
            sent.append(house.bus.jobs.send(JobMessage(id=job.id)))
        return receive(limit, wait_seconds)

    house.bus.jobs.receive = last_comes_late  # type: ignore[method-assign]
    place.start()
    place.up()
    place.later(601)
    house.wait(job)
    assert sent and place.ends == [] and place.state == "ACTIVE"
    assert not place.greenlet.ready()
    place.up()
    place.later(601)
    place.gone()
    assert len(place.ends) == 1


def test_polls_that_are_under_way_at_the_bus_end_before_the_node_does(place: Place) -> None:
    seen: list[tuple[str, int]] = []

    def settle(timeout_seconds: float) -> bool:
        seen.append((place.state, len(place.ends)))
        return False

    place.house.bus.jobs.settle = settle  # type: ignore[method-assign]
    place.start()
    place.up()
    place.later(601)
    place.gone()
    assert (seen, place.ends) == ([("ACTIVE", 0)], [["TERMINATED"]])


@pytest.mark.parametrize("when", ["as it decides", "as it ends"])
def test_a_message_that_comes_after_the_last_poll_stays_in_the_queue_for_others(when: str, place: Place) -> None:
    house = place.house
    job = house.job()

    def send() -> None:
        house.bus.jobs.send(JobMessage(id=job.id))

    if when == "as it ends":
        place.ending = send
    else:
        receive = house.bus.jobs.receive

        def then_send(limit: int, wait_seconds: float) -> Sequence[Delivery]:
            found = receive(limit, wait_seconds)
            if wait_seconds == LAST_RECEIVE_SECONDS and place.now > 600:
                send()
            return found

        house.bus.jobs.receive = then_send  # type: ignore[method-assign]
    place.start()
    place.up()
    place.later(601)
    place.gone()
    assert house.depth[0] >= 1 and house.depth[1:] == (0, 0), "visible at once"
    assert house.see(job) == job
    house.start()  # another one
    assert house.wait(job).attempts[0].worker == "w2"


def test_a_poll_that_failed_is_not_the_last_one(place: Place) -> None:
    house = place.house
    receive = house.bus.jobs.receive
    polls: list[str] = []

    def fails_once(limit: int, wait_seconds: float) -> Sequence[Delivery]:
        if place.now > 600:
            polls.append("failed" if not polls else "answered")
            if len(polls) == 1:
                raise BusUnavailable("throttled")
        return receive(limit, wait_seconds)

    house.bus.jobs.receive = fails_once  # type: ignore[method-assign]
    place.start()
    place.up()
    place.later(601)
    place.gone()
    assert polls == ["failed", "answered"]
    assert len(place.ends) == 1


def test_a_node_at_work_stays_however_long_the_work_takes(place: Place) -> None:
    Act.act = staticmethod(until_stopped)
    place.start(slots=2)
    job = place.house.submit()
    place.house.wait(job, JobState.ENCODING)
    place.later(10**6)
    place.up()
    place.later(10**6)
    place.up()
    assert place.ends == []
    assert place.house.see(job).claimed


def test_the_start_of_a_job_and_each_change_of_its_state_count_as_activity(place: Place) -> None:
    at: list[int] = []
    Act.act = staticmethod(lambda context: at.append(place.touched))
    place.start()
    job = place.house.submit()
    place.house.wait(job)
    place.up()
    assert at[0] >= 3, "claimed, DOWNLOADING, ENCODING"
    assert place.touched >= at[0] + 2, "UPLOADING, settled"


def test_a_job_that_ended_just_now_keeps_the_node(place: Place) -> None:
    def long(context: Context) -> None:
        place.now += 5000

    Act.act = staticmethod(long)
    place.start()
    place.house.wait(place.house.submit())
    place.up()
    place.later(500)
    place.up()
    assert place.ends == []
    place.later(101)
    place.gone()
    assert len(place.ends) == 1


def test_a_node_that_cannot_be_ended_works_again_and_tries_again_later(place: Place) -> None:
    def refused() -> None:
        if len(place.ends) < 3:
            raise InfrastructureError("node.not_terminated", "throttled")

    place.ending = refused
    place.start()
    place.up()
    place.later(601)
    wait_until(lambda: len(place.ends) == 1 and place.state == "ACTIVE", 10, "the worker to go on")
    place.house.wait(place.house.submit())
    place.up()
    place.later(601)
    wait_until(lambda: len(place.ends) == 2 and place.state == "ACTIVE", 10, "the worker to go on again")
    place.up()
    place.later(59)
    place.up()
    assert len(place.ends) == 2, "not before the second wait is over"
    place.later(2)
    place.gone()
    assert place.ends == [["TERMINATED"]] * 3


def test_a_node_stays_while_another_worker_on_it_has_jobs(place: Place) -> None:
    neighbour = WorkerRecord(name="other", node=ID, state="ACTIVE", slots=1, active=(Key("default", "job"),), version="1",
                             encoders=(), reported=utcnow())
    place.house.store.put_worker(neighbour)
    place.house.store.put_worker(replace(neighbour, name="elsewhere", node="i-00000000000000001"))
    place.start()
    place.up()
    place.later(601)
    place.up()
    assert place.ends == []
    place.house.store.put_worker(replace(neighbour, active=()))
    place.later(601)
    place.gone()
    assert len(place.ends) == 1


def test_a_node_that_is_to_stay_stays(place: Place) -> None:
    place.start(idle_seconds=None)
    place.up()
    place.later(10**9)
    place.up()
    assert place.ends == []
    assert place.state == "ACTIVE"


def test_a_worker_that_is_stopped_does_not_wait_for_the_end_of_its_node(place: Place) -> None:
    hanging = Event()
    place.ending = lambda: hanging.wait(60) and None
    worker = place.start()
    place.up()
    place.later(601)
    wait_until(lambda: place.ends, 10, "the call that ends the node")
    begun = time.monotonic()
    worker.stop()
    place.gone(5)
    assert time.monotonic() - begun < 2


def test_a_stopped_worker_does_not_end_its_node(place: Place) -> None:
    worker = place.start()
    place.up()
    worker.stop()
    place.gone()
    assert place.ends == []
    assert place.state == "TERMINATED"


# --- notices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notice", list(Notice))
def test_at_a_notice_work_goes_back_at_once_and_uncharged(notice: Notice, place: Place,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.worker.NOTICE_SECONDS", 0.2)
    Act.act = staticmethod(until_stopped)
    place.start()
    job = place.house.submit()
    place.house.wait(job, JobState.ENCODING)
    place.notice = notice
    begun = time.monotonic()
    place.gone()
    assert time.monotonic() - begun < 4
    seen = place.house.see(job)
    assert (seen.state, seen.attempts_charged, seen.claimed, seen.error) == (JobState.PENDING, 0, False, None)
    assert place.house.depth == (1, 0, 0), "visible at once"
    assert place.house.workspaces == []
    assert place.state == "TERMINATED"
    assert place.ends == ([["TERMINATED"]] if notice is Notice.REBALANCE else []), "AWS ends an interrupted one itself"


def test_a_worker_that_starts_on_a_node_with_a_notice_begins_nothing(place: Place) -> None:
    place.notice = Notice.SPOT
    job = place.house.submit()
    place.start()
    place.gone()
    assert place.house.see(job) == job
    assert place.house.depth == (1, 0, 0)


def test_a_recommendation_ends_no_node_that_is_to_stay_and_one_that_cannot_be_ended_takes_no_work(place: Place) -> None:
    def refused() -> None:
        raise InfrastructureError("node.not_terminated", "throttled")

    place.ending = refused
    place.notice = Notice.REBALANCE
    place.start()
    place.gone()
    assert len(place.ends) == 1
    place.house.running.clear()
    place.start(idle_seconds=None)
    place.gone()
    assert len(place.ends) == 1


def test_a_look_for_a_notice_that_fails_is_not_the_last(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.worker.NOTICE_SECONDS", 0.05)
    looks: list[int] = []

    def look() -> Notice | None:
        looks.append(1)
        if 1 < len(looks) < 4:
            raise RuntimeError("a fault of ours")
        return Notice.SPOT if len(looks) > 5 else None

    life = Life(Node(ID), look, idle_seconds=600, terminate=lambda: None)
    place.house.start(life=life)
    place.gone()


# --- where reading the store costs money --------------------------------------------------------------------------


def test_a_cancellation_reaches_a_worker_with_its_next_renewal(place: Place) -> None:
    Act.act = staticmethod(until_stopped)
    place.start(embedded=False, lease_seconds=3.0)
    job = place.house.submit()
    place.house.wait(job, JobState.ENCODING)
    place.house.store.update(job.key, lifecycle.cancel(utcnow()))
    place.house.wait(job, JobState.CANCELLED, seconds=2)


# --- pause and drain ---------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker looks often."""
    monkeypatch.setattr("nommerd.control.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("nommerd.worker.REST_SECONDS", 0.05)


def test_a_drained_node_ends_itself_though_it_has_not_been_idle_for_long(place: Place, quick: None) -> None:
    place.start()
    place.up()
    drain(place)
    place.gone()
    assert place.ends == [["TERMINATED"]]


def test_a_drained_worker_ends_alone_where_another_lives_on_its_node(place: Place, quick: None) -> None:
    place.house.store.put_worker(WorkerRecord(name="other", node=ID, state="ACTIVE", slots=1, active=(), version="1",
                                              encoders=(), reported=utcnow()))
    place.start()
    place.up()
    drain(place)
    place.gone()
    assert place.ends == [] and place.state == "TERMINATED"


def test_a_drained_node_that_cannot_be_ended_takes_no_work_again(place: Place, quick: None) -> None:
    def refused() -> None:
        raise ConfigError("fleet.refused", "No.")

    place.ending = refused
    place.start()
    place.up()
    drain(place)
    place.gone()
    assert len(place.ends) == 1 and place.state == "TERMINATED"


def test_an_idle_node_ends_itself_also_while_the_installation_is_paused(place: Place, quick: None) -> None:
    Control(place.house.store).pause("somebody")
    job = place.house.submit()
    place.start()
    wait_until(place.house.store.workers, 10, "the worker reports")
    place.now += 601
    place.gone()
    assert place.ends == [["TERMINATED"]]
    assert place.house.see(job).token == 0 and place.house.depth == (1, 0, 0)


def test_a_drained_worker_waits_for_the_long_polls_that_it_left(place: Place, quick: None) -> None:
    settled: list[bool] = []

    def settle(timeout_seconds: float) -> bool:
        settled.append(len(settled) == 2)
        return settled[-1]

    place.house.bus.jobs.settle = settle  # type: ignore[method-assign]
    place.start()
    place.up()
    drain(place)
    place.gone()
    assert settled == [False, False, True] and "polls.not_settled" not in place.house.log.getvalue()


def drain(place: Place) -> None:
    """As the API does."""
    Control(place.house.store).drain(next(one for one in place.house.store.workers() if one.name == "w1"), "somebody")
