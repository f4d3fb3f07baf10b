"""The contract of a bus: two queues, at-least-once, with visibility, receive counts and dead letters.

A received message is a handle: whoever holds it deletes it (`ack`), gives it back (`release`) or keeps it hidden
(`extend`). Every backend passes tests/contracts/test_bus.py unchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nommerd.errors import InfrastructureError
from nommerd.job import Priority
from nommerd.messages import JobMessage, Message

RECEIVE_VISIBILITY_SECONDS = 10.0  # how long a received message is hidden until it is extended
MAX_RECEIVES = 100  # then it is a dead letter: a far backstop, the record decides about attempts


PRIORITIES = (Priority.HIGH, Priority.NORMAL, Priority.LOW)  # by rank
_RANKS = {priority: rank for rank, priority in enumerate(PRIORITIES)}


def rank(message: Message) -> int:
    """A message's place among the priorities: lower ones are received first."""
    return _RANKS[message.priority] if isinstance(message, JobMessage) else _RANKS[Priority.NORMAL]


class BusUnavailable(InfrastructureError):
    """Throttled, reset or out of reach: try again later. Whether the call was applied is not known."""

    def __init__(self, message: str) -> None:
        super().__init__("node.bus_unavailable", message, "It is tried again; jobs that run go on meanwhile.")


class Delivery(ABC):
    """One receipt of a message. The methods raise BusUnavailable; a receipt that has lapsed (the message was received
    again, or is gone) makes them do nothing and return False."""

    message: Message
    message_id: str
    receive_count: int

    @abstractmethod
    def ack(self) -> bool:
        """Delete the message."""

    @abstractmethod
    def release(self, delay_seconds: float = 0.0) -> bool:
        """Let anyone receive it again after `delay_seconds`."""

    @abstractmethod
    def extend(self, seconds: float) -> bool:
        """Keep it hidden for `seconds` from now."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue holds (approximate on SQS, where one released with a delay counts as in flight)."""

    visible: int = 0
    in_flight: int = 0
    delayed: int = 0
    dead: int = 0
    by_priority: dict[Priority, int] = field(default_factory=dict, compare=False)  # of the visible ones, each priority

    @staticmethod
    def of(by_rank: Mapping[int, int], in_flight: int, delayed: int, dead: int) -> Depth:
        """From how many visible messages there are of each rank."""
        by_priority = {priority: by_rank.get(rank, 0) for rank, priority in enumerate(PRIORITIES)}
        return Depth(sum(by_priority.values()), in_flight, delayed, dead, by_priority)


class Queue(ABC):
    """One kind of message. Higher priorities are received first; within one, roughly the oldest."""

    @abstractmethod
    def send(self, message: Message, delay_seconds: float = 0.0) -> str:
        """Enqueue durably; returns the message id."""

    @abstractmethod
    def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        """Up to `limit` messages, hidden for RECEIVE_VISIBILITY_SECONDS; waits up to `wait_seconds` for the first.

        Messages that cannot be decoded become dead letters and are never delivered. `interrupt` ends the wait early.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """End the waits of this process's receivers now (for stopping, and when a slot becomes free)."""

    def settle(self, timeout_seconds: float) -> bool:
        """For who will receive no more: return once nothing is on its way to this process, and what came late is shown to
        others again. False where that takes longer. For backends whose receivers may go before their polls end."""
        return True

    @abstractmethod
    def dead_letters(self, limit: int) -> Sequence[Delivery]:
        """Messages received MAX_RECEIVES times without an ack. `ack` deletes one for good."""

    @abstractmethod
    def depth(self) -> Depth:
        """Counts, for people and for the sweeper."""

    @abstractmethod
    def purge(self) -> None:
        """Delete everything in it, dead letters too."""


class Bus(ABC):
    """`jobs` carries JobMessage to workers, `changes` ChangeMessage to the feeder."""

    jobs: Queue
    changes: Queue

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Safe to call twice."""
