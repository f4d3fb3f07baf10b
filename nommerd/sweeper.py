"""What a crash left: unsent messages, dead leases, silent jobs, dead letters.

The record is the truth, a message is a hint. Whatever is not final, has no live lease and was not sent recently is sent
again; a duplicate is harmless, because a claim is refused to all but one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from gevent.pool import Pool

from nommerd import lifecycle, logs
from nommerd.bus.base import Bus, BusUnavailable
from nommerd.errors import InfrastructureError, Problem
from nommerd.job import UNSENT_SECONDS, Job, JobState, utcnow
from nommerd.messages import JobMessage
from nommerd.sending import Sending
from nommerd.store.base import Store, UnknownJob

PAGE = 200  # jobs looked at in one sweep
AT_ONCE = 16  # of them, so that their writes share transactions
DEAD_LETTERS = 50  # in one sweep
RESEND_ANYWAY = timedelta(hours=1)  # a message that long out is sent again even though the queue is not empty


class Watch(Protocol):
    """nommerd.watch.LeaseWatch."""

    def expired(self, job: Job) -> Problem | None: ...


@dataclass(slots=True)
class Swept:
    """What one sweep did."""

    seen: int = 0
    broken: list[str] = field(default_factory=list)  # job ids
    sent: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    postponed: int = 0
    dead_letters: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.broken or self.sent or self.abandoned or self.dead_letters)


class Sweeper:
    """Runs where a feeder leads. `on_change` gets each record whose state it changed."""

    def __init__(self, store: Store, bus: Bus, sending: Sending, watch: Watch, on_change: Callable[[Job], None], *,
                 max_attempts: int, abandon_after_seconds: float, page: int = PAGE) -> None:
        self._store = store
        self._bus = bus
        self._sending = sending
        self._watch = watch
        self._on_change = on_change
        self._max_attempts = max_attempts
        self._abandon_after = timedelta(seconds=abandon_after_seconds)
        self._page = page

    def sweep(self, now: datetime, starting: bool = False) -> Swept:
        """Look after what is due at `now`. `starting`: nobody in this process is about to send, so unsent is due at once.

        Raises StoreUnavailable when it cannot look at all; one job's trouble is logged and waits for the next sweep.
        """
        swept = Swept()
        ahead = UNSENT_SECONDS if starting else 0.0
        jobs = self._store.due_for_sweep(now.timestamp() + ahead, self._page)
        swept.seen = len(jobs)
        look = _Look(now, self._bus, full=len(jobs) >= self._page)
        Pool(AT_ONCE).map(lambda job: self._guarded(job, look, swept), jobs)
        self._settle_dead_letters(swept)
        return swept

    def _guarded(self, job: Job, look: _Look, swept: Swept) -> None:
        try:
            self._tend(job, look, swept)
        except UnknownJob:
            pass
        except InfrastructureError as error:
            logs.get().warning("sweep.put_off", job=job.id, why=str(error))
        except Exception:
            logs.get().exception("sweep.failed", job=job.id)

    def _tend(self, job: Job, look: _Look, swept: Swept) -> None:
        if job.claimed:
            self._watch_lease(job, swept)
        elif job.state is JobState.PENDING and job.token > 0 and look.now - _last_heard(job) > self._abandon_after:
            self._abandon(job, swept)
        elif job.message_id is None:
            self._send_unsent(job, swept)
        elif look.should_resend(job):
            self._send(job, swept)
        elif look.full:
            self._postpone(job, look.now, swept)

    def _watch_lease(self, job: Job, swept: Swept) -> None:
        why = self._watch.expired(job)
        if why is None:
            return
        free = self._store.update(job.key, lifecycle.break_lease(job.lease_version, why, self._max_attempts, utcnow()))
        if free.claimed:
            return  # renewed, or claimed anew, in the meantime
        swept.broken.append(job.id)
        logs.get().warning("lease.broken", job=job.id, token=job.token, state=free.state.value, why=why.message)
        if free.sweep_at is not None:  # it waits for a worker, or what it staged must be revoked
            self._send(free, swept)
        if free.event_seq != job.event_seq:
            self._on_change(free)

    def _abandon(self, job: Job, swept: Swept) -> None:
        gone = self._store.update(job.key, lifecycle.abandon(utcnow()))
        if gone.state is JobState.ABANDONED:
            swept.abandoned.append(job.id)
            logs.get().warning("job.abandoned", job=job.id, last_heard=str(_last_heard(job)))
            self._on_change(gone)

    def _send_unsent(self, job: Job, swept: Swept) -> None:
        if self._sending.is_out(job):
            self._sending.mark(job.key)
            swept.marked.append(job.id)
        elif self._store.get(job.key).version == job.version:  # else it was marked or claimed since we looked
            self._send(job, swept)

    def _send(self, job: Job, swept: Swept) -> None:
        if self._sending.send(job) is not None:
            swept.sent.append(job.id)
            self._sending.mark(job.key)

    def _postpone(self, job: Job, now: datetime, swept: Swept) -> None:
        """Let others be seen: the page is full of jobs whose messages just wait their turn."""
        if job.message_id is not None:
            self._store.update(job.key, lifecycle.sent(job.message_id, now))
            swept.postponed += 1

    def _settle_dead_letters(self, swept: Swept) -> None:
        try:
            for letter in self._bus.jobs.dead_letters(DEAD_LETTERS):
                if isinstance(letter.message, JobMessage):
                    with suppress(UnknownJob):
                        self._store.update(letter.message.key, lifecycle.dead_lettered(letter.message_id, utcnow()))
                letter.ack()
                swept.dead_letters += 1
            for letter in self._bus.changes.dead_letters(DEAD_LETTERS):
                letter.ack()
        except InfrastructureError as error:
            logs.get().warning("sweep.dead_letters_put_off", why=str(error))


class _Look:
    """One sweep's view of the bus: asked at most once."""

    def __init__(self, now: datetime, bus: Bus, full: bool) -> None:
        self.now = now
        self.full = full
        self._bus = bus
        self._empty: bool | None = None

    def should_resend(self, job: Job) -> bool:
        """Whether a message that was sent counts as lost: nobody has any to receive, or another hour has passed."""
        base = _last_heard(job)
        if (self.now - base) // RESEND_ANYWAY > ((job.sent_at or base) - base) // RESEND_ANYWAY:
            return True
        if self._empty is None:
            try:
                self._empty = self._bus.jobs.depth().visible == 0
            except BusUnavailable:
                self._empty = False
        return self._empty


def _last_heard(job: Job) -> datetime:
    """When the job last changed its state or was let go by a worker. Marking it as sent is not news of it."""
    times: Sequence[datetime | None] = [job.created, *(event.at for event in job.events[-1:]),
                                        *(attempt.ended or attempt.begun for attempt in job.attempts[-1:])]
    return max(at for at in times if at is not None)
