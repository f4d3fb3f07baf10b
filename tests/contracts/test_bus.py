"""What nommerd.bus.base promises, on every backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import gevent
import pytest

from nommerd.bus.base import MAX_RECEIVES, RECEIVE_VISIBILITY_SECONDS, Bus, Delivery, Depth, Queue
from nommerd.job import Priority
from nommerd.messages import ChangeMessage, JobMessage

PATIENCE_SECONDS = 20.0  # for what must come at once; the machine may be busy
SendText = Callable[[Queue, str], None]


def names(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.id for delivery in deliveries]


def receive_one(queue: Queue, wait_seconds: float = PATIENCE_SECONDS) -> Delivery:
    delivery, = queue.receive(1, wait_seconds)
    return delivery


def hidden(depth: Depth) -> int:
    """Messages that wait for their time: which count one released with a delay belongs to is the backend's affair."""
    return depth.in_flight + depth.delayed


def waiter(queue: Queue) -> gevent.Greenlet:
    """Somebody who waits for a message; while another tries in vain, so that the wait has really begun."""
    waiting = gevent.spawn(receive_one, queue)
    assert queue.receive(1, 0.05) == []
    return waiting


class TestSendAndReceive:
    def test_a_message_comes_back_as_it_was_sent(self, bus: Bus) -> None:
        job = JobMessage(id="j", project="p", priority=Priority.HIGH, schema_version=7)
        change = ChangeMessage(id="c", project="p", event_seq=12)
        sent = bus.jobs.send(job), bus.changes.send(change)
        got = receive_one(bus.jobs), receive_one(bus.changes)
        assert [one.message for one in got] == [job, change]
        assert tuple(one.message_id for one in got) == sent
        assert [one.receive_count for one in got] == [1, 1]

    def test_message_ids_differ(self, bus: Bus) -> None:
        assert len({bus.jobs.send(JobMessage(id="same")) for _ in range(20)}) == 20

    def test_higher_priorities_come_first_and_within_one_the_oldest(self, bus: Bus) -> None:
        for number, priority in enumerate((Priority.LOW, Priority.NORMAL, Priority.HIGH) * 3):
            bus.jobs.send(JobMessage(id=f"{priority}-{number}", priority=priority))
        assert names(bus.jobs.receive(4, 0)) == ["high-2", "high-5", "high-8", "normal-1"]
        assert names(bus.jobs.receive(10, 0)) == ["normal-4", "normal-7", "low-0", "low-3", "low-6"]

    def test_no_more_than_the_limit_come(self, bus: Bus) -> None:
        for number in range(5):
            bus.jobs.send(JobMessage(id=str(number)))
        assert [len(bus.jobs.receive(2, 0)) for _ in range(4)] == [2, 2, 1, 0]
        assert bus.jobs.receive(0, 0) == []

    def test_a_received_message_is_hidden_from_others(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        receive_one(bus.jobs)
        assert bus.jobs.receive(1, 0.05) == []
        assert bus.jobs.depth() == Depth(in_flight=1)

    def test_an_empty_queue_gives_nothing_after_the_wait(self, bus: Bus) -> None:
        begun = time.monotonic()
        assert bus.jobs.receive(1, 0.2) == []
        assert time.monotonic() - begun >= 0.2

    def test_the_two_queues_are_apart(self, bus: Bus) -> None:
        bus.changes.send(ChangeMessage(id="a"))
        assert bus.jobs.receive(1, 0) == []
        bus.jobs.purge()
        assert bus.changes.depth() == Depth(visible=1)

    def test_each_of_many_messages_goes_to_exactly_one_of_many_receivers(self, bus: Bus) -> None:
        got: list[str] = []

        def consume() -> None:
            while found := bus.jobs.receive(3, 0.2):
                got.extend(names(found))
                assert all(one.ack() for one in found)

        consumers = [gevent.spawn(consume) for _ in range(5)]
        for number in range(60):
            bus.jobs.send(JobMessage(id=str(number)))
        gevent.joinall(consumers, timeout=60, raise_error=True)
        assert sorted(got, key=int) == [str(number) for number in range(60)]
        assert bus.jobs.depth() == Depth()


class TestWaiting:
    def test_a_send_ends_a_wait(self, bus: Bus) -> None:
        waiting = waiter(bus.jobs)
        begun = time.monotonic()
        bus.jobs.send(JobMessage(id="a"))
        assert waiting.get(timeout=PATIENCE_SECONDS).message.id == "a"
        assert time.monotonic() - begun < PATIENCE_SECONDS / 4

    def test_a_delayed_message_is_hidden_and_then_wakes_who_waits(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="later"), delay_seconds=PATIENCE_SECONDS * 2)
        assert bus.jobs.depth() == Depth(delayed=1)
        begun = time.monotonic()
        bus.jobs.send(JobMessage(id="a"), delay_seconds=0.3)
        assert receive_one(bus.jobs).message.id == "a"
        assert 0.29 <= time.monotonic() - begun < PATIENCE_SECONDS / 4

    def test_a_shorter_delay_sent_later_is_not_missed_by_who_waits_for_a_longer_one(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="late"), delay_seconds=PATIENCE_SECONDS * 2)
        waiting = waiter(bus.jobs)
        bus.jobs.send(JobMessage(id="soon"), delay_seconds=0.1)
        assert waiting.get(timeout=PATIENCE_SECONDS).message.id == "soon"

    @pytest.mark.parametrize("how", ["jobs", "changes"])
    def test_interrupt_ends_every_wait_of_that_queue(self, bus: Bus, how: str) -> None:
        queue: Queue = getattr(bus, how)
        waiting = [gevent.spawn(queue.receive, 1, PATIENCE_SECONDS * 5) for _ in range(3)]
        assert queue.receive(1, 0.05) == []
        queue.interrupt()
        assert [one.get(timeout=PATIENCE_SECONDS) for one in waiting] == [[], [], []]

    def test_interrupt_does_not_lose_what_is_there(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        waiting = gevent.spawn(bus.jobs.receive, 1, PATIENCE_SECONDS)
        gevent.sleep(0)
        bus.jobs.interrupt()
        assert names(waiting.get(timeout=PATIENCE_SECONDS)) + names(bus.jobs.receive(1, 0)) == ["a"]

    def test_waiting_costs_no_processor_time(self, bus: Bus) -> None:
        used = time.process_time()
        assert bus.jobs.receive(1, 1.0) == []
        assert time.process_time() - used < 0.3


class TestReceipts:
    def test_ack_deletes_the_message(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        assert receive_one(bus.jobs).ack() is True
        assert bus.jobs.depth() == Depth()

    def test_release_lets_anyone_receive_it_again_and_counts_on(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        assert receive_one(bus.jobs).release() is True
        again = receive_one(bus.jobs)
        assert (again.message.id, again.receive_count) == ("a", 2)

    def test_release_wakes_who_waits(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        held = receive_one(bus.jobs)
        waiting = waiter(bus.jobs)
        held.release()
        assert waiting.get(timeout=RECEIVE_VISIBILITY_SECONDS / 2).receive_count == 2

    def test_release_with_a_delay_hides_it(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        assert receive_one(bus.jobs).release(PATIENCE_SECONDS * 2) is True
        depth = bus.jobs.depth()
        assert (depth.visible, hidden(depth)) == (0, 1)
        assert bus.jobs.receive(1, 0.05) == []

    def test_release_with_a_delay_hides_it_that_long_and_no_longer(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        held = receive_one(bus.jobs)
        begun = time.monotonic()
        assert held.release(0.3) is True
        receive_one(bus.jobs)
        assert 0.29 <= time.monotonic() - begun < RECEIVE_VISIBILITY_SECONDS / 2

    def test_a_message_whose_holder_fell_silent_comes_again_after_its_last_extension(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        held = receive_one(bus.jobs)
        begun = time.monotonic()
        assert held.extend(0.3) is True
        assert receive_one(bus.jobs).receive_count == 2
        assert 0.25 <= time.monotonic() - begun < RECEIVE_VISIBILITY_SECONDS / 2

    def test_extend_keeps_it_hidden_longer_than_it_would_have_been(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        held = receive_one(bus.jobs)
        held.extend(0.1)
        held.extend(60)
        assert bus.jobs.receive(1, 0.3) == []
        assert held.ack() is True

    def test_a_lapsed_receipt_does_nothing_and_returns_false(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        stale = receive_one(bus.jobs)
        stale.extend(0)
        newer = receive_one(bus.jobs)
        assert (stale.ack(), stale.release(), stale.extend(60)) == (False, False, False)
        assert bus.jobs.depth() == Depth(in_flight=1)
        assert newer.ack() is True

    def test_the_receipt_of_a_deleted_message_does_nothing_and_returns_false(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        held = receive_one(bus.jobs)
        held.ack()
        assert (held.ack(), held.release(), held.extend(60)) == (False, False, False)
        assert bus.jobs.depth() == Depth()


class TestDeadLetters:
    def test_a_message_received_too_often_becomes_one_and_is_not_delivered_again(self, bus: Bus) -> None:
        sent = bus.jobs.send(JobMessage(id="a"))
        for count in range(1, MAX_RECEIVES + 1):
            held = receive_one(bus.jobs)
            assert held.receive_count == count
            held.release()
        bus.jobs.send(JobMessage(id="b"))
        assert names(bus.jobs.receive(2, 0)) == ["b"]
        assert bus.jobs.depth() == Depth(in_flight=1, dead=1)
        dead, = bus.jobs.dead_letters(10)
        assert (dead.message.id, dead.message_id, dead.receive_count) == ("a", sent, MAX_RECEIVES)
        assert dead.ack() is True
        assert bus.jobs.depth() == Depth(in_flight=1)
        assert bus.jobs.dead_letters(10) == []

    def test_it_does_not_end_the_wait_of_who_receives(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        for _ in range(MAX_RECEIVES):
            receive_one(bus.jobs).release()
        waiting = waiter(bus.jobs)
        bus.jobs.send(JobMessage(id="b"))
        assert waiting.get(timeout=PATIENCE_SECONDS).message.id == "b"

    @pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"kind": "job"}', '{"kind": "other", "id": "a"}', "\x00\ud7ff"])
    def test_what_cannot_be_decoded_becomes_one_and_is_never_delivered(self, bus: Bus, send_text: SendText, text: str) -> None:
        send_text(bus.jobs, text)
        bus.jobs.send(JobMessage(id="a"))
        assert names(bus.jobs.receive(1, 0)) == ["a"]
        assert bus.jobs.receive(5, 0) == []
        assert bus.jobs.depth() == Depth(in_flight=1, dead=1)
        assert bus.jobs.dead_letters(10) == []


class TestDepthAndPurge:
    def test_depth_tells_visible_in_flight_and_delayed_apart(self, bus: Bus) -> None:
        for number in range(6):
            bus.jobs.send(JobMessage(id=str(number)))
        bus.jobs.send(JobMessage(id="later"), delay_seconds=60)
        first, *_ = bus.jobs.receive(3, 0)
        first.release(60)
        depth = bus.jobs.depth()
        assert (depth.visible, hidden(depth)) == (3, 4)
        assert depth.in_flight >= 2 and depth.delayed >= 1

    def test_visible_messages_are_counted_by_priority(self, bus: Bus) -> None:
        nothing = {Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 0}
        assert bus.jobs.depth().by_priority == nothing
        for priority, count in ((Priority.LOW, 3), (Priority.HIGH, 2), (Priority.NORMAL, 1)):
            for number in range(count):
                bus.jobs.send(JobMessage(id=f"{priority}{number}", priority=priority))
        bus.jobs.send(JobMessage(id="later", priority=Priority.HIGH), delay_seconds=60)
        assert bus.jobs.depth().by_priority == {Priority.HIGH: 2, Priority.NORMAL: 1, Priority.LOW: 3}
        held = receive_one(bus.jobs)
        assert bus.jobs.depth().by_priority == {Priority.HIGH: 1, Priority.NORMAL: 1, Priority.LOW: 3}
        held.release()
        assert bus.jobs.depth().by_priority == {Priority.HIGH: 2, Priority.NORMAL: 1, Priority.LOW: 3}
        bus.changes.send(ChangeMessage(id="a"))
        assert bus.changes.depth().by_priority == nothing | {Priority.NORMAL: 1}

    def test_a_message_whose_time_has_come_counts_as_visible(self, bus: Bus) -> None:
        bus.jobs.send(JobMessage(id="a"))
        receive_one(bus.jobs).extend(0)
        assert bus.jobs.depth() == Depth(visible=1)

    def test_purge_deletes_everything_and_lapses_every_receipt(self, bus: Bus, send_text: SendText) -> None:
        for number in range(3):
            bus.jobs.send(JobMessage(id=str(number)), delay_seconds=60.0 * (number == 2))
        send_text(bus.jobs, "nonsense")
        held, *_ = bus.jobs.receive(3, 0)
        bus.jobs.purge()
        assert bus.jobs.depth() == Depth()
        assert (held.ack(), held.extend(1)) == (False, False)

    def test_close_is_safe_twice(self, bus: Bus) -> None:
        bus.close()
        bus.close()
