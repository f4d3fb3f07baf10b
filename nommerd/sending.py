"""Job messages on their way: sent at once, noted in the record only where no worker was quicker.

A worker claims most jobs within milliseconds, and its claim notes the message too. Writing "sent" into each record would
double the writes of a submission and race with the claim; so it is written a little later, and only to what still waits.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from gevent.pool import Pool

from nommerd import lifecycle, logs
from nommerd.bus.base import Bus, BusUnavailable
from nommerd.job import Job, Key, utcnow
from nommerd.messages import ChangeMessage, JobMessage
from nommerd.store.base import Store, UnknownJob

MARK_SECONDS = 2.0  # how long a message may be out before its record is looked at
AT_ONCE = 32  # marked side by side
UNMARKED_MAX = 50_000  # sent messages remembered; older ones are forgotten, and their jobs sent again by the sweeper


class Sent(NamedTuple):
    """A message that is on the bus."""

    message_id: str
    at: float  # on the monotonic clock
    token: int  # the job's then: a claim since has dealt with the message


class Sending:
    """Puts messages on the bus for this feeder and remembers, until marked, which job's message is out."""

    def __init__(self, store: Store, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._unmarked: OrderedDict[Key, Sent] = OrderedDict()
        self.sent = 0  # messages so far

    def send(self, job: Job) -> str | None:
        """Tell the workers of this job. None when the bus is out of reach: the record stands, the sweeper sends it."""
        try:
            message_id = self._bus.jobs.send(JobMessage(id=job.id, project=job.project, priority=job.priority))
        except BusUnavailable as error:
            logs.get().warning("job.not_sent", job=job.id, why=str(error))
            return None
        self.sent += 1
        self._unmarked.pop(job.key, None)
        self._unmarked[job.key] = Sent(message_id, self._clock(), job.token)
        if len(self._unmarked) > UNMARKED_MAX:
            self._unmarked.popitem(last=False)
        return message_id

    def announce(self, job: Job) -> None:
        """Tell the feeders that this job's state changed. A hint: a lost one costs a second."""
        try:
            self._bus.changes.send(ChangeMessage(id=job.id, project=job.project, event_seq=job.event_seq))
        except BusUnavailable as error:
            logs.get().warning("change.not_sent", job=job.id, why=str(error))

    def is_out(self, job: Job) -> bool:
        """Whether this process has sent a message for the job as it is now, and not yet noted it in the record."""
        sent = self._unmarked.get(job.key)
        return sent is not None and sent.token == job.token

    def mark(self, key: Key) -> None:
        """Note in the record that its message is out, unless somebody works or has worked on it, or it is settled."""
        sent = self._unmarked.get(key)
        if sent is None:
            return
        note = lifecycle.sent(sent.message_id, utcnow())
        with suppress(UnknownJob):
            self._store.update(key, lambda job: note(job) if job.token == sent.token else job)
        if self._unmarked.get(key) is sent:
            del self._unmarked[key]

    def mark_old(self, limit: int = 400) -> int:
        """Mark up to `limit` messages that are out for MARK_SECONDS, side by side so that they share transactions; returns how
        many. Raises StoreUnavailable where one could not be marked."""
        before = self._clock() - MARK_SECONDS
        old = [key for key, sent in islice(self._unmarked.items(), limit) if sent.at <= before]
        failures = [failure for failure in Pool(AT_ONCE).imap_unordered(self._failure, old) if failure is not None]
        if failures:
            raise failures[0]
        return len(old)

    def _failure(self, key: Key) -> Exception | None:
        """What went wrong in marking."""
        try:
            self.mark(key)
        except Exception as error:
            return error
        return None
