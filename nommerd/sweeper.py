"""What a crash left: unsent messages, dead leases, silent jobs, dead letters.

The record is the truth, a message is a hint. Whatever is not final, has no live lease and was not sent recently is sent
again; a duplicate is harmless, because a claim is refused to all but one. While the installation is paused silence proves
nothing: no job is abandoned, and none sent again whose message is on the queue. Afterwards their time begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from gevent.pool import Pool

from nommerd import lifecycle, logs, metrics
from nommerd.bus.base import Bus, BusUnavailable, Delivery
from nommerd.control import Control, Switch
from nommerd.errors import InfrastructureError, Problem
from nommerd.job import UNSENT_SECONDS, Job, JobState, Sweep, utcnow
from nommerd.messages import JobMessage
from nommerd.sending import Sending
from nommerd.store.base import Store, UnknownJob

PAGE = 200  # jobs of a kind looked at in one go
UNSENT_PAGES = 10  # of unsent jobs in one sweep: each is dealt with then
AT_ONCE = 32  # jobs, so that their writes share transactions
DEAD_LETTERS = 50  # in one sweep
RESEND_ANYWAY = timedelta(hours=1)  # a message out for so long, twice as long, … is sent again though the queue is not empty


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
    dead_letters: int = 0

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.broken or self.sent or self.abandoned or self.dead_letters)


class Sweeper:
    """Runs where a feeder leads. `on_change` gets each record whose state it changed."""

    def __init__(self, store: Store, bus: Bus, sending: Sending, watch: Watch, on_change: Callable[[Job], None], *,
                 max_attempts: int, abandon_after_seconds: float, page: int = PAGE) -> None:
        self._store = store
        self._control = Control(store)
        self._bus = bus
        self._sending = sending
        self._watch = watch
        self._on_change = on_change
        self._max_attempts = max_attempts
        self._abandon_after = timedelta(seconds=abandon_after_seconds)
        self._page = page
        self._behind: dict[Sweep, Job] = {}  # how far the last sweep came, where its page was full

    def sweep(self, now: datetime, starting: bool = False) -> Swept:
        """Look after what is due at `now`. `starting`: nobody in this process is about to send, so unsent is due at once.

        Raises StoreUnavailable when it cannot look at all; one job's trouble is logged and waits for the next sweep.
        """
        swept, look = Swept(), _Look(now, self._bus, self._control.switch())
        for kind in Sweep:
            ahead = UNSENT_SECONDS if starting and kind is Sweep.UNSENT else 0.0
            for _ in range(UNSENT_PAGES if kind is Sweep.UNSENT else 1):
                jobs = self._next_page(kind, now.timestamp() + ahead)
                swept.seen += len(jobs)
                Pool(AT_ONCE).map(lambda job: self._guarded(job, look, swept), jobs)
                if kind not in self._behind:
                    break
        self._settle_dead_letters(swept)
        return swept

    def _next_page(self, kind: Sweep, now: float) -> Sequence[Job]:
        """The page behind the last one; after the last of all, the first again. So however many jobs must be looked at again
        and again, each has its turn."""
        jobs = self._store.due_for_sweep(kind, now, self._page, self._behind.get(kind))
        if len(jobs) >= self._page:
            self._behind[kind] = jobs[-1]
        else:
            self._behind.pop(kind, None)
        return jobs

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
            self._watch_lease(job, look, swept)
        elif job.state is JobState.PENDING and job.token > 0 and look.silent(job) > self._abandon_after:
            self._abandon(job, swept)
        elif job.message_id is None:
            self._send_unsent(job, look, swept)
        elif look.should_resend(job):
            self._send(job, look, swept)

    def _watch_lease(self, job: Job, look: _Look, swept: Swept) -> None:
        why = self._watch.expired(job)
        if why is None:
            return
        free = self._store.update(job.key, lifecycle.break_lease(job.lease_version, why, self._max_attempts, utcnow()))
        if free.claimed:
            return  # renewed, or claimed anew, in the meantime
        swept.broken.append(job.id)
        metrics.LEASES_LOST.add()
        logs.get().warning("lease.broken", job=job.id, token=job.token, state=free.state.value, why=why.message)
        if free.sweep_at is not None:  # it waits for a worker, or what it staged must be revoked
            self._send(free, look, swept)
        if free.event_seq != job.event_seq:
            self._on_change(free)

    def _abandon(self, job: Job, swept: Swept) -> None:
        gone = self._store.update(job.key, lifecycle.abandon(utcnow()))
        if gone.state is JobState.ABANDONED:
            swept.abandoned.append(job.id)
            logs.get().warning("job.abandoned", job=job.id, last_heard=str(_last_heard(job)))
            self._on_change(gone)

    def _send_unsent(self, job: Job, look: _Look, swept: Swept) -> None:
        if self._sending.is_out(job):
            self._sending.mark(job.key)
            swept.marked.append(job.id)
        elif self._store.get(job.key).version == job.version:  # else it was marked or claimed since we looked
            self._send(job, look, swept)

    def _send(self, job: Job, look: _Look, swept: Swept) -> None:
        if look.deaf:
            return
        if self._sending.send(job) is None:
            look.deaf = True  # each try may take long: leases must be watched meanwhile
            return
        swept.sent.append(job.id)
        self._sending.mark(job.key)

    def _settle_dead_letters(self, swept: Swept) -> None:
        try:
            letters = [*self._bus.jobs.dead_letters(DEAD_LETTERS), *self._bus.changes.dead_letters(DEAD_LETTERS)]
        except InfrastructureError as error:
            logs.get().warning("sweep.dead_letters_put_off", why=str(error))
            return
        for letter in letters:
            try:
                self._settle_dead_letter(letter)
                swept.dead_letters += isinstance(letter.message, JobMessage)
                metrics.DEAD_LETTERS.add()
            except InfrastructureError as error:
                logs.get().warning("sweep.dead_letter_put_off", job=letter.message.id, why=str(error))

    def _settle_dead_letter(self, letter: Delivery) -> None:
        if isinstance(letter.message, JobMessage):
            with suppress(UnknownJob):
                self._store.update(letter.message.key, lifecycle.dead_lettered(letter.message_id, utcnow()))
        letter.ack()


class _Look:
    """One sweep's view of the bus: asked at most once. `deaf`: it took no message."""

    def __init__(self, now: datetime, bus: Bus, switch: Switch) -> None:
        self.now = now
        self.deaf = False
        self._bus, self._switch = bus, switch
        self._empty: bool | None = None

    def should_resend(self, job: Job) -> bool:
        """Whether a message that was sent counts as lost: nobody has any to receive, or it is out for an hour, two, four, ….

        While no worker runs, each message that is sent once more is one more to be received and dropped later.
        """
        base = self._heard(job)
        if _doublings(self.now - base) > _doublings((job.sent_at or base) - base):
            return True
        if self._empty is None:
            try:
                self._empty = self._bus.jobs.depth().visible == 0
            except BusUnavailable:
                self._empty = False
        return self._empty

    def silent(self, job: Job) -> timedelta:
        """For how long nothing was heard of a job that could have been begun."""
        return self.now - self._heard(job)

    def _heard(self, job: Job) -> datetime:
        if self._switch.paused:
            return self.now
        return max(_last_heard(job), self._switch.since or job.created)


def _doublings(out: timedelta) -> int:
    """How often RESEND_ANYWAY has passed, each time twice as long as before."""
    return max(0, out // RESEND_ANYWAY).bit_length()


def _last_heard(job: Job) -> datetime:
    """When the job last changed its state or was let go by a worker. Marking it as sent is not news of it."""
    times: Sequence[datetime | None] = [job.created, *(event.at for event in job.events[-1:]),
                                        *(attempt.ended or attempt.begun for attempt in job.attempts[-1:])]
    return max(at for at in times if at is not None)
