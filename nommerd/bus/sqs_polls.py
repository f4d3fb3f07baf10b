"""Receiving from several SQS queues at once: by rank, waiting on all of them, and without a message in too many hands.

A long poll cannot be called off: SQS may answer it with a message after its caller has gone, and the message is hidden
then. So polls belong to nobody: they run on in the background, and what they bring goes to who receives next, or back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Protocol

import gevent
from gevent.event import Event

from nommerd import logs
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.bus.sqs_queues import POLL_SECONDS

BATCH = 10  # what one request brings at most
HOLD_SECONDS = 0.5  # how long what came while nobody receives is kept for who receives next


class Source(Protocol):
    """One SQS queue."""

    name: str

    def fetch(self, count: int, wait_seconds: int) -> Sequence[Delivery]:
        """Up to `count` (at most BATCH) messages, waiting so long for the first. Raises BusUnavailable."""


@dataclass(eq=False, slots=True)
class _Lane:
    """A queue and its place among the others. `polled`: a long poll is under way, so nothing has been there."""

    rank: int
    source: Source
    polled: bool = False


@dataclass(eq=False, slots=True)
class _Wish:
    """A receive under way."""

    limit: int
    until: float
    news: Event = field(default_factory=Event)
    looking: int = 0  # looks under way for it
    trouble: Exception | None = None


@dataclass(eq=False, slots=True)
class _Held:
    """A message that nobody has taken yet."""

    rank: int
    delivery: Delivery
    at: float


class Polls:
    """`receive` of a Queue over its sources, the first of which has the highest rank."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._lanes = [_Lane(rank, source) for rank, source in enumerate(sources)]
        self._wishes: list[_Wish] = []
        self._held: list[_Held] = []
        self._interrupts = 0
        self._closed = False
        self._greenlets: set[gevent.Greenlet] = set()

    def receive(self, limit: int, wait_seconds: float) -> list[Delivery]:
        """See nommerd.bus.base.Queue. Raises BusUnavailable where a queue is out of reach and no other had a message."""
        if limit < 1:
            return []
        wish = _Wish(limit, time.monotonic() + wait_seconds)
        before = self._interrupts
        taken: list[Delivery] = []
        self._wishes.append(wish)
        try:
            self._look(wish, taken, wait_seconds > 0, before)
            while not (taken or self._over(wish, before)):
                self._poll_all()
                wish.news.wait(wish.until - time.monotonic())
                wish.news.clear()
                self._take(wish, taken)
        except BaseException:
            self._hold(0, taken)
            raise
        finally:
            self._wishes.remove(wish)
            self._watch_held()
        if wish.trouble is not None and not taken:
            raise wish.trouble
        return taken

    def interrupt(self) -> None:
        """End the receives under way. Their polls go on; what these bring goes to who receives next, or back."""
        self._interrupts += 1
        for wish in self._wishes:
            wish.news.set()

    def settle(self, timeout_seconds: float) -> bool:
        """See nommerd.bus.base.Queue: polls outlive their receivers, and what they bring goes back after a while."""
        until = time.monotonic() + timeout_seconds
        while self._greenlets and (left := until - time.monotonic()) > 0:
            gevent.joinall(list(self._greenlets), timeout=left)
        return not self._greenlets

    def forget(self) -> None:
        """What is held is gone (purged)."""
        self._held.clear()

    def close(self) -> None:
        """End everything; what is held goes back if that is quickly done. A message that SQS gives to a poll after this is
        hidden for the receive visibility."""
        if self._closed:
            return
        self._closed = True
        self.interrupt()
        back, self._held = self._held, []
        gevent.joinall([gevent.spawn(_release, one.delivery) for one in back], timeout=1)
        gevent.killall(list(self._greenlets), block=False)

    # --- what is there now ---------------------------------------------------------------------------------------

    def _look(self, wish: _Wish, taken: list[Delivery], will_wait: bool, before: int) -> None:
        """Ask the queues in turn without waiting, so that a backlog is received by rank.

        Who will wait anyway skips queues that are being polled, and the last of the others, whose poll tells the same; and is
        content with what the first queue has. Who will not wait gets all it may.
        """
        self._take(wish, taken)
        lanes = [lane for lane in self._lanes if not lane.polled][:-1] if will_wait else self._lanes
        for lane in lanes:
            while len(taken) < wish.limit and not (taken and will_wait):
                had, asked = len(taken), min(BATCH, wish.limit - len(taken))
                wish.looking += 1
                self._spawn(self._look_once, wish, lane, asked)
                while wish.looking and not self._ended(before):
                    wish.news.wait()
                    wish.news.clear()
                self._take(wish, taken)
                if len(taken) - had < asked or self._ended(before):
                    break

    def _look_once(self, wish: _Wish, lane: _Lane, count: int) -> None:
        try:
            self._hold(lane.rank, lane.source.fetch(count, 0))
        except Exception as error:
            wish.trouble = error
        finally:
            wish.looking -= 1
            wish.news.set()

    # --- what comes later ----------------------------------------------------------------------------------------

    def _poll_all(self) -> None:
        for lane in self._lanes:
            if not lane.polled:
                lane.polled = True
                self._spawn(self._poll, lane)

    def _poll(self, lane: _Lane) -> None:
        """Poll for as long as anybody waits; the last poll outlives them."""
        try:
            while not self._closed and (wanted := sum(wish.limit for wish in self._wishes)):
                left = max(wish.until for wish in self._wishes) - time.monotonic()
                found = lane.source.fetch(min(BATCH, wanted), max(1, min(POLL_SECONDS, math.ceil(left))))
                self._hold(lane.rank, found)
                if found:
                    gevent.sleep(0)  # who waits takes it now, and may want no more
        except Exception as error:
            self._failed(lane, error)
        finally:
            lane.polled = False

    def _failed(self, lane: _Lane, error: Exception) -> None:
        if not self._wishes and not isinstance(error, BusUnavailable):
            logs.get().error("poll.failed", queue=lane.source.name, exc_info=error)
        for wish in self._wishes:
            wish.trouble = error
            wish.news.set()

    # --- who gets what -------------------------------------------------------------------------------------------

    def _hold(self, rank: int, deliveries: Sequence[Delivery]) -> None:
        """Keep messages until somebody takes them; who receives is told."""
        now = time.monotonic()
        self._held.extend(_Held(rank, delivery, now) for delivery in deliveries)
        self._held.sort(key=attrgetter("rank"))
        if self._held:
            for wish in self._wishes:
                wish.news.set()
            self._watch_held()

    def _take(self, wish: _Wish, taken: list[Delivery]) -> None:
        """Fill up `taken` from what is held, by rank; what nobody who receives now can take goes back at once."""
        count = min(wish.limit - len(taken), len(self._held))
        taken.extend(one.delivery for one in self._held[:count])
        rest = self._held[count:]
        if taken and rest:
            others = sum(other.limit for other in self._wishes if other is not wish)
            self._give_back(rest[others:])
            rest = rest[:others]
        self._held = rest

    def _watch_held(self) -> None:
        """While nobody receives, what is held goes back after a while."""
        if self._held and not self._wishes:
            self._spawn(self._expire, delay_seconds=HOLD_SECONDS)

    def _expire(self) -> None:
        if self._wishes:
            return
        before = time.monotonic() - HOLD_SECONDS
        old = [one for one in self._held if one.at <= before]
        self._held = [one for one in self._held if one.at > before]
        self._give_back(old)
        self._watch_held()

    def _give_back(self, surplus: Sequence[_Held]) -> None:
        """Show these again at once, the lowest rank first."""
        for one in sorted(surplus, key=attrgetter("rank"), reverse=True):
            self._spawn(_release, one.delivery)

    # --- small things --------------------------------------------------------------------------------------------

    def _ended(self, before: int) -> bool:
        return self._closed or self._interrupts != before

    def _over(self, wish: _Wish, before: int) -> bool:
        return self._ended(before) or wish.trouble is not None or time.monotonic() >= wish.until

    def _spawn(self, function: object, *args: object, delay_seconds: float = 0.0) -> None:
        greenlet = gevent.Greenlet(function, *args)
        self._greenlets.add(greenlet)
        greenlet.link(self._greenlets.discard)
        greenlet.start_later(delay_seconds) if delay_seconds else greenlet.start()


def _release(delivery: Delivery) -> None:
    """Show it again; where that fails it shows itself, after the receive visibility."""
    try:
        delivery.release()
    except BusUnavailable as error:
        logs.get().warning("surplus.not_released", message=delivery.message_id, why=str(error))
