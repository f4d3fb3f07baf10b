"""A bus that lives and dies with its process: for tests, and for one job here and now."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gevent.event import Event

from nommerd.bus.base import MAX_RECEIVES, RECEIVE_VISIBILITY_SECONDS, Bus, Delivery, Depth, Queue, rank
from nommerd.job import new_id
from nommerd.messages import Message, UndecodableMessage, decode, encode


@dataclass(slots=True, eq=False)
class _Entry:
    seq: int
    id: str
    rank: int
    text: str
    visible_at: float
    received: int = 0
    receipt: str | None = None
    dead: bool = False
    readable: bool = True


class MemoryDelivery(Delivery):
    """A receipt of one entry."""

    def __init__(self, queue: MemoryQueue, entry: _Entry, message: Message) -> None:
        self.message = message
        self.message_id = entry.id
        self.receive_count = entry.received
        self._queue = queue
        self._entry = entry
        self._receipt = entry.receipt

    def ack(self) -> bool:
        return self._held() and self._queue._remove(self._entry)

    def release(self, delay_seconds: float = 0.0) -> bool:
        return self._held() and self._queue._show(self._entry, delay_seconds, receipt=None)

    def extend(self, seconds: float) -> bool:
        return self._held() and self._queue._show(self._entry, seconds, receipt=self._receipt)

    def _held(self) -> bool:
        return self._receipt is not None and self._entry.receipt == self._receipt


class MemoryQueue(Queue):
    """A list; times are of the monotonic clock."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._seq = 0
        self._interrupts = 0
        self._waiting: set[Event] = set()

    def send(self, message: Message, delay_seconds: float = 0.0) -> str:
        return self._put(encode(message), rank(message), delay_seconds)

    def _put(self, text: str, rank: int, delay_seconds: float = 0.0) -> str:
        self._seq += 1
        entry = _Entry(self._seq, new_id(), rank, text, time.monotonic() + delay_seconds)
        self._entries.append(entry)
        self._wake()
        return entry.id

    def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + wait_seconds
        interrupts = self._interrupts
        news = Event()
        self._waiting.add(news)
        try:
            while True:
                news.clear()
                found = self._take(limit, dead=False)
                now = time.monotonic()
                if found or now >= deadline or limit < 1 or interrupts != self._interrupts:
                    return found
                news.wait(max(0.0, min(deadline, self._next_at()) - now))
        finally:
            self._waiting.discard(news)

    def interrupt(self) -> None:
        self._interrupts += 1
        self._wake()

    def dead_letters(self, limit: int) -> Sequence[Delivery]:
        return self._take(limit, dead=True)

    def depth(self) -> Depth:
        now = time.monotonic()
        alive = [entry for entry in self._entries if not entry.dead]
        hidden = [entry for entry in alive if entry.visible_at > now]
        in_flight = sum(entry.receipt is not None for entry in hidden)
        visible = Counter(entry.rank for entry in alive if entry.visible_at <= now)
        return Depth.of(visible, in_flight, len(hidden) - in_flight, len(self._entries) - len(alive))

    def purge(self) -> None:
        for entry in self._entries:
            entry.receipt = None
        self._entries.clear()

    def _take(self, limit: int, dead: bool) -> list[Delivery]:
        now = time.monotonic()
        taken: list[Delivery] = []
        for entry in sorted(self._entries, key=lambda entry: (entry.rank, entry.seq)):
            if len(taken) >= limit:
                break
            if entry.dead is dead and entry.readable and entry.visible_at <= now:
                taken.extend(self._receipt(entry, now))
        return taken

    def _receipt(self, entry: _Entry, now: float) -> list[Delivery]:
        if not entry.dead and entry.received >= MAX_RECEIVES:
            entry.dead, entry.receipt = True, None
            return []
        try:
            message = decode(entry.text)
        except UndecodableMessage:
            entry.dead, entry.readable = True, False
            return []
        entry.received += not entry.dead
        entry.receipt = new_id()
        entry.visible_at = now + RECEIVE_VISIBILITY_SECONDS
        return [MemoryDelivery(self, entry, message)]

    def _next_at(self) -> float:
        return min((entry.visible_at for entry in self._entries if not entry.dead), default=float("inf"))

    def _show(self, entry: _Entry, seconds: float, receipt: str | None) -> bool:
        entry.visible_at = time.monotonic() + seconds
        entry.receipt = receipt
        self._wake()
        return True

    def _remove(self, entry: _Entry) -> bool:
        entry.receipt = None
        self._entries.remove(entry)
        return True

    def _wake(self) -> None:
        for news in self._waiting:
            news.set()


class MemoryBus(Bus):
    """Two lists. Closing it does nothing: what is queued stays until the process ends."""

    def __init__(self) -> None:
        self.jobs = MemoryQueue()
        self.changes = MemoryQueue()

    def close(self) -> None:
        """Nothing to let go of."""
