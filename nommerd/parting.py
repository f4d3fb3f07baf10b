"""Why and how a worker leaves: AWS wants its node back, nothing has happened for long enough, or it was drained."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum

import gevent
from gevent.event import Event

from nommerd import logs
from nommerd.errors import InfrastructureError
from nommerd.fleet.node import Life, Notice
from nommerd.job import Owner, utcnow
from nommerd.store.base import Store, WorkerRecord

LAST_RECEIVE_SECONDS = 1.0  # the poll before the end: one that waits asks all of SQS's servers
HEARTBEATS_MISSED = 3  # then a neighbour's heartbeat counts for nothing


class Reason(StrEnum):
    """Why a worker leaves."""

    SPOT = Notice.SPOT.value
    REBALANCE = Notice.REBALANCE.value
    IDLE = "idle"
    DRAINED = "drained"


class Parting:
    """Of one worker. Without a `life` there is no node to leave: one that was drained ends, and nothing else ever happens.

    `leave` notes the reason and calls `stop` (which must end all work and return at once); once the work has ended, `end`
    ends the node. `asked` is set when somebody else wants the worker to stop.
    """

    def __init__(self, life: Life | None, store: Store, me: Owner, *, heartbeat_seconds: float, stop: Callable[[], None],
                 asked: Event) -> None:
        self._life, self._store, self._me = life, store, me
        self._neighbour_seconds = HEARTBEATS_MISSED * heartbeat_seconds
        self._stop, self._asked = stop, asked
        self.reason: Reason | None = None

    def touch(self) -> None:
        """Something happened to a job."""
        if self._life is not None:
            self._life.touch()

    def leave(self, reason: Reason) -> None:
        if self.reason is None and not self._asked.is_set():
            self.reason = reason
            logs.get().info("worker.leaving", worker=self._me.worker, why=reason.value)
            self._stop()

    def look_for_notice(self) -> None:
        """Leave if AWS says so."""
        notice = self._life.notice() if self._life is not None else None
        if notice is not None:
            self.leave(Reason(notice.value))

    def may_end(self) -> bool:
        """Whether the node has nothing to live for, if one last poll brings nothing. For a worker without jobs."""
        if self._life is None or self._life.idle_left() > 0:
            return False
        try:
            busy = any(one.active for one in self._neighbours())
        except InfrastructureError as error:
            logs.get().warning("node.not_ended", why=str(error))
            return False
        if busy:  # it is their node too
            self._life.touch()
        return not busy

    def _neighbours(self) -> list[WorkerRecord]:
        """The other workers of this node that have reported lately."""
        return [one for one in self._store.workers() if one.node == self._me.node and one.name != self._me.worker
                and utcnow() - one.reported < timedelta(seconds=self._neighbour_seconds)]

    def receive_seconds(self, longest: float) -> float:
        """How long a worker without jobs waits for one: until it may end, but no longer than `longest`."""
        left = self._life.idle_left() if self._life is not None else longest
        return max(LAST_RECEIVE_SECONDS, min(left, longest))

    def end(self) -> bool:
        """End the node, if that is why the work ended. False where the work must go on: an idle node that could not be ended.

        After a spot notice AWS ends it. A recommendation is no promise: there the node ends itself, if it may; if it cannot,
        the feeder ends it for its silence. A drained worker ends alone where others live on its node.
        """
        reason, self.reason = self.reason, None
        if self._asked.is_set() or self._life is None or reason is None or reason is Reason.SPOT or not self._life.ends_itself:
            return True
        if reason is Reason.DRAINED and self._shared():
            return True
        ending = gevent.spawn(self._life.end, reason.value)
        gevent.wait([ending, self._asked], count=1)
        ended = not ending.ready() or bool(ending.get())
        ending.kill(block=False)
        return ended or self._asked.is_set() or reason is not Reason.IDLE

    def _shared(self) -> bool:
        """Whether other workers live on this node, or may."""
        try:
            return any(one.state != "TERMINATED" for one in self._neighbours())
        except InfrastructureError as error:
            logs.get().warning("node.not_ended", why=str(error))
            return True
