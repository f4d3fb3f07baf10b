"""Who gets which message when several queues are polled at once. The queues are plain lists here: what SQS does is held by the
contract suite and test_sqs.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import gevent
import pytest
from gevent.event import Event

from nommerd.bus import sqs_polls
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.bus.sqs_polls import Polls
from nommerd.messages import JobMessage
from tests.rig import wait_until

SECONDS = 10.0
HOLD = 0.1


class Letter(Delivery):
    """A message of a shelf; tells when it is released."""

    def __init__(self, name: str, released: list[str]) -> None:
        self.message, self.message_id, self.receive_count = JobMessage(id=name), name, 1
        self._released = released

    def ack(self) -> bool:
        return True

    def release(self, delay_seconds: float = 0.0) -> bool:
        self._released.append(self.message_id)
        return True

    def extend(self, seconds: float) -> bool:
        return True


class Shelf:
    """A queue. A fetch sees what is on it, and waits as long as it is told; `asked` is (count, wait) of each."""

    def __init__(self, name: str, released: list[str]) -> None:
        self.name = name
        self.asked: list[tuple[int, int]] = []
        self.polling = 0
        self.trouble: Exception | None = None
        self.gate = Event()  # cleared: a fetch gets no answer yet
        self.gate.set()
        self._released = released
        self._names: list[str] = []
        self._news = Event()

    def put(self, *names: str) -> None:
        self._names.extend(names)
        self._news.set()

    def fetch(self, count: int, wait_seconds: int) -> Sequence[Delivery]:
        self.asked.append((count, wait_seconds))
        self.gate.wait()
        gevent.sleep(0)
        self.polling += wait_seconds > 0
        try:
            until = time.monotonic() + wait_seconds
            while not self._names and self.trouble is None and time.monotonic() < until:
                self._news.clear()
                self._news.wait(until - time.monotonic())
            if self.trouble is not None:
                raise self.trouble
            taken, self._names = self._names[:count], self._names[count:]
            return [Letter(name, self._released) for name in taken]
        finally:
            self.polling -= wait_seconds > 0

    def break_(self, error: Exception) -> None:
        self.trouble = error
        self._news.set()


class Scene:
    def __init__(self) -> None:
        self.released: list[str] = []
        self.high, self.normal, self.low = self.shelves = [Shelf(name, self.released) for name in ("high", "normal", "low")]
        self.polls = Polls(self.shelves)

    def receive(self, limit: int, wait_seconds: float = SECONDS) -> list[str]:
        return [one.message_id for one in self.polls.receive(limit, wait_seconds)]

    def waiting(self, limit: int, wait_seconds: float = SECONDS) -> gevent.Greenlet:
        """Somebody who waits, all queues being polled."""
        greenlet = gevent.spawn(self.receive, limit, wait_seconds)
        self.until(lambda: all(shelf.polling for shelf in self.shelves), "polls")
        return greenlet

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, SECONDS, what)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(sqs_polls, "HOLD_SECONDS", HOLD)
    made = Scene()
    yield made
    made.polls.close()


class TestRank:
    def test_a_backlog_is_received_by_rank_without_asking_the_queues_below(self, scene: Scene) -> None:
        for shelf in scene.shelves:
            shelf.put(f"{shelf.name}-1", f"{shelf.name}-2")
        assert scene.receive(2) == ["high-1", "high-2"]
        assert (scene.normal.asked, scene.low.asked) == ([], [])
        assert [scene.receive(2), scene.receive(2)] == [["normal-1", "normal-2"], ["low-1", "low-2"]]
        assert scene.released == []

    def test_who_does_not_wait_gets_as_many_as_there_are_from_all_queues(self, scene: Scene) -> None:
        for shelf in scene.shelves:
            shelf.put(*(f"{shelf.name}-{number:02}" for number in range(12)))
        expected = [f"{name}-{number:02}" for name in ("high", "normal", "low") for number in range(12)]
        assert scene.receive(30, 0) == expected[:30]
        assert scene.receive(30, 0) == expected[30:]

    @pytest.mark.parametrize("name", ["high", "normal", "low"])
    def test_a_message_on_any_queue_ends_a_wait(self, scene: Scene, name: str) -> None:
        waiting = scene.waiting(2)
        getattr(scene, name).put("a")
        assert waiting.get(timeout=SECONDS / 4) == ["a"]

    def test_of_what_comes_at_once_the_highest_is_taken_and_the_lowest_released_first(self, scene: Scene) -> None:
        waiting = scene.waiting(1)
        for shelf in reversed(scene.shelves):
            shelf.put(shelf.name)
        assert waiting.get(timeout=SECONDS) == ["high"]
        scene.until(lambda: len(scene.released) == 2, "two released")
        assert scene.released == ["low", "normal"]


class TestLimit:
    def test_a_receive_never_gives_more_than_its_limit_though_three_queues_answer(self, scene: Scene) -> None:
        waiting = scene.waiting(3)
        for shelf in scene.shelves:
            shelf.put(*(f"{shelf.name}-{number}" for number in range(3)))
        assert waiting.get(timeout=SECONDS) == ["high-0", "high-1", "high-2"]
        scene.until(lambda: len(scene.released) == 6, "the other six released")

    def test_two_receivers_share_what_one_poll_brings(self, scene: Scene) -> None:
        waiting = [scene.waiting(1), scene.waiting(1)]
        scene.until(lambda: scene.normal.polling == 1, "one poll for both")
        scene.normal.put("a")
        scene.until(lambda: any(one.ready() for one in waiting), "the first")
        scene.normal.put("b")
        assert sorted(one.get(timeout=SECONDS)[0] for one in waiting) == ["a", "b"]
        assert scene.released == []

    def test_a_request_never_asks_for_more_than_sqs_gives(self, scene: Scene) -> None:
        scene.waiting(32)
        assert {count for shelf in scene.shelves for count, _ in shelf.asked} == {10}


class TestPollsOutliveReceivers:
    def test_interrupt_ends_a_wait_at_once_while_polls_go_on(self, scene: Scene) -> None:
        waiting = scene.waiting(1)
        begun = time.monotonic()
        scene.polls.interrupt()
        assert waiting.get(timeout=SECONDS) == []
        assert time.monotonic() - begun < SECONDS / 4
        assert [shelf.polling for shelf in scene.shelves] == [1, 1, 1]

    def test_what_an_abandoned_poll_brings_goes_to_who_receives_next(
            self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs_polls, "HOLD_SECONDS", SECONDS * 10)
        scene.waiting(1)
        scene.polls.interrupt()
        scene.low.put("a")
        scene.until(lambda: not scene.low.polling, "the poll's end")
        assert scene.receive(1) == ["a"]
        assert scene.released == []

    def test_what_nobody_receives_goes_back_soon(self, scene: Scene) -> None:
        scene.waiting(1)
        scene.polls.interrupt()
        scene.low.put("a")
        scene.until(lambda: scene.released == ["a"], "it was released")

    def test_the_next_receive_starts_no_second_poll_of_a_queue(self, scene: Scene) -> None:
        scene.waiting(1)
        scene.polls.interrupt()
        assert scene.receive(1, 0.2) == []
        assert [shelf.polling for shelf in scene.shelves] == [1, 1, 1]
        polls = [[wait for _, wait in shelf.asked if wait] for shelf in scene.shelves]
        assert [len(waits) for waits in polls] == [1, 1, 1]

    def test_a_killed_receiver_gives_back_what_it_had(self, scene: Scene) -> None:
        scene.high.put("a")
        scene.normal.gate.clear()
        waiting = gevent.spawn(scene.receive, 2, 0)
        scene.until(lambda: scene.normal.asked, "a look at the second queue, with a message of the first in hand")
        waiting.kill()
        scene.until(lambda: scene.released == ["a"], "it was released")

    def test_closing_ends_waits_and_gives_back_what_is_held(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqs_polls, "HOLD_SECONDS", SECONDS * 10)
        waiting = scene.waiting(1)
        scene.polls.interrupt()
        waiting.get(timeout=SECONDS)
        scene.low.put("a")
        scene.until(lambda: not scene.low.polling, "the poll's end")
        scene.polls.close()
        assert scene.released == ["a"]
        scene.until(lambda: not any(shelf.polling for shelf in scene.shelves), "no poll")


    def test_interrupt_ends_a_look_that_gets_no_answer(self, scene: Scene) -> None:
        scene.high.gate.clear()
        waiting = gevent.spawn(scene.receive, 1)
        scene.until(lambda: scene.high.asked, "a look")
        scene.polls.interrupt()
        assert waiting.get(timeout=SECONDS / 2) == []
        scene.high.put("a")
        scene.high.gate.set()
        scene.until(lambda: scene.released == ["a"], "what the look brought was released")


class TestTrouble:
    def test_a_queue_out_of_reach_ends_the_wait(self, scene: Scene) -> None:
        waiting = scene.waiting(1)
        scene.normal.break_(BusUnavailable("reset"))
        with pytest.raises(BusUnavailable):
            waiting.get(timeout=SECONDS)

    def test_what_another_queue_has_comes_all_the_same(self, scene: Scene) -> None:
        scene.high.break_(BusUnavailable("reset"))
        scene.normal.put("a")
        assert scene.receive(1) == ["a"]

    def test_it_is_asked_again_by_the_next_receive(self, scene: Scene) -> None:
        waiting = scene.waiting(1)
        scene.normal.break_(BusUnavailable("reset"))
        waiting.join()
        scene.normal.trouble = None
        scene.normal.put("a")
        assert scene.receive(1) == ["a"]


class TestSettling:
    def test_who_will_receive_no_more_waits_for_polls_under_way_and_sees_what_they_bring_go_back(self, scene: Scene) -> None:
        scene.low.gate.clear()
        assert scene.receive(1, 0.2) == []
        settling = gevent.spawn(scene.polls.settle, SECONDS)
        scene.low.put("late")
        scene.until(lambda: scene.low.asked, "the poll under way")
        assert not settling.ready()
        scene.low.gate.set()
        assert settling.get(timeout=SECONDS) is True
        assert scene.released == ["late"]

    def test_it_does_not_wait_for_ever(self, scene: Scene) -> None:
        scene.low.gate.clear()
        assert scene.receive(1, 0.1) == []
        assert scene.polls.settle(0.1) is False
        scene.low.gate.set()

    def test_where_nothing_is_under_way_it_returns_at_once(self, scene: Scene) -> None:
        assert scene.polls.settle(0.0) is True
