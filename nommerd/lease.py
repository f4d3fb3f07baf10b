"""Keeps what we claimed ours, tells the work to stop when it no longer is, and watches others' leases.

The rule, with lease L. Nobody compares two machines' clocks; each side measures one span on its own:

- The owner *sends* a renewal at s; the store applies it at a, and a >= s. The owner stops its work at s + L - margin
  unless a later renewal succeeded, so an answer that was lost or late never lengthens the lease.
- An observer first sees that lease_version at f, and f >= a, because before a there was none to see. It breaks the lease
  at f + L + slack at the earliest, and only while lease_version still is what it saw.

So between the owner's stop and the earliest break lie at least margin + slack, a fifth of the lease and more: enough for
clocks that run at different rates (parts in a million) and for ffmpeg to be killed. The owner's clock also counts while
the machine sleeps, the observer's does not: each errs on the safe side. Whatever else goes wrong (a process stopped
between its check and its write), the token refuses it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import gevent
from gevent.event import Event
from gevent.lock import RLock

from nommerd import lifecycle, logs
from nommerd.errors import CancelRequested, Fenced, Problem, Stop
from nommerd.job import Job, JobState, Owner, Staged, utcnow
from nommerd.leadership import Leadership
from nommerd.lifecycle import Change
from nommerd.store.base import Store, StoreUnavailable, UnknownJob
from nommerd.watch import MARGIN, Clock, LeaseWatch, boot_clock, this_process, vanished

__all__ = ["Leadership", "Lease", "LeaseWatch", "boot_clock", "this_process", "vanished"]

RENEWALS_PER_LEASE = 3
TICK_SECONDS = 0.25  # how often the keeper looks at what is due
REPORT_SECONDS = 1.0  # progress is written at most this often
POLL_SECONDS = 1.0  # how often a cheap store is asked whether somebody cancelled
RETRY_SECONDS = 0.25  # between tries of a write that the store could not take


@dataclass(frozen=True, slots=True)
class _News:
    """The newest progress."""

    progress: float
    stage: str | None
    eta_seconds: float | None = None
    speed: float | None = None


class Lease:
    """A claimed job stays ours while this is open (`with`, or `start` and, in `finally`, `close`).

    It is the pipeline's Recorder. A greenlet renews each third of the lease, writes progress at most once a
    second and, where reads are cheap (`poll_seconds`), looks for a cancellation. When the job is not ours any longer, or
    may soon not be, `stop` is set to Fenced. `on_change` gets the record after each change of state, `on_renewal` after
    each renewal; neither may block for long or raise.
    """

    def __init__(self, store: Store, job: Job, stop: Stop, *, since: float | None = None, clock: Clock = boot_clock,
                 poll_seconds: float | None = POLL_SECONDS, on_change: Callable[[Job], None] = lambda job: None,
                 on_renewal: Callable[[], None] = lambda: None) -> None:
        """`job` as it was claimed, `since` when (on `clock`) that claim was sent."""
        if job.owner is None:
            raise ValueError("only a claimed job has a lease")
        self._store, self._key, self._owner, self._token = store, job.key, job.owner, job.token
        self._seconds = job.lease_seconds
        self._stop, self._clock = stop, clock
        self._poll_seconds, self._on_change, self._on_renewal = poll_seconds, on_change, on_renewal
        self._sent = clock() if since is None else since
        self._state, self._events_seen = job.state, job.event_seq
        self._news = self._reported = _News(job.progress, job.stage)
        self._reported_at = self._polled_at = self._clock()
        self._renew_at = self._sent + self._seconds / RENEWALS_PER_LEASE
        self._over = Event()
        self._writing = RLock()  # the keeper and the work would only make each other try again
        self._greenlets: list[gevent.Greenlet] = []
        self._log = logs.get(job=job.id, token=job.token)

    @property
    def owner(self) -> Owner:
        return self._owner

    @property
    def seconds(self) -> float:
        return self._seconds

    @property
    def deadline(self) -> float:
        """When, on the lease's clock, the work must have stopped if no renewal succeeds until then."""
        return self._sent + self._seconds * (1 - MARGIN)

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed. The record may name us still: others need a little longer to break it."""
        return self._clock() >= self.deadline

    def start(self) -> None:
        """Begin to renew."""
        self._greenlets = [gevent.spawn(self._guard), gevent.spawn(self._keep)]

    def close(self) -> None:
        """Renew no more. The record stays as it is: settling is the worker's."""
        self._over.set()
        gevent.killall(self._greenlets, timeout=1.0)

    def settle(self, change: Change, tries: int) -> Job:
        """The last write under this lease, whatever the clock says: the record itself tells whether the job is still ours.

        Raises Fenced or UnknownJob if it is not, StoreUnavailable after `tries`. Nothing is renewed afterwards.
        """
        with self._writing:
            job = self._store.update(self._key, change, tries=tries)
            self._over.set()
        return job

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # the pipeline's Recorder

    def advance(self, state: JobState, stage_id: str, progress: float) -> None:
        """A stage begins: written at once. Raises Fenced (or another WorkStopped that is due)."""
        self._news = _News(progress, stage_id)
        self._write(lifecycle.advance(self._owner, state, stage_id, progress, utcnow()))
        self._reported, self._reported_at = self._news, self._clock()

    def progress(self, progress: float, stage_id: str, eta_seconds: float | None, speed: float | None = None) -> None:
        """Note how far the job is. Never waits, never raises; any thread may call it."""
        self._news = _News(progress, stage_id, eta_seconds, speed)

    def stage_outputs(self, staged: Sequence[Staged], warnings: Sequence[Problem] = ()) -> None:
        """Durably note the whole list of what is about to be uploaded. Raises Fenced."""
        self._write(lifecycle.stage(self._owner, staged, warnings))

    def confirm(self) -> None:
        """Return once a fresh write has shown that the job is ours; else raise Fenced."""
        self._write(self._renewal())

    # writes

    def _renewal(self) -> Change:
        news = self._news
        return lifecycle.renew(self._owner, news.progress, news.stage, news.eta_seconds, news.speed)

    def _write(self, change: Change) -> None:
        """Write a change that renews the lease, trying for as long as the lease lives."""
        while True:
            self._check()
            try:
                with self._writing:
                    self._write_once(change)
                self._check()
                return
            except StoreUnavailable:
                self._stop.wait(RETRY_SECONDS * (0.5 + random.random()))

    def _write_once(self, change: Change) -> None:
        sent = self._clock()
        try:
            job = self._store.update(self._key, change, tries=3)
        except (Fenced, UnknownJob) as error:
            self._lose(error if isinstance(error, Fenced) else Fenced(f"job {self._key.id} is gone"))
            raise AssertionError from error  # _lose raises
        self._sent = max(self._sent, sent)
        self._renew_at = self._sent + self._seconds / RENEWALS_PER_LEASE
        self._look_at(job)

    def _check(self) -> None:
        """Raise what stops the work. A process that slept past its deadline finds out here, before it writes."""
        if self.expired:
            self._stop.set(Fenced(f"job {self._key.id}: no renewal for {self._clock() - self._sent:.1f} s"))
        self._stop.check()

    def _lose(self, reason: Fenced) -> None:
        self._log.warning("lease.lost", why=str(reason))
        self._stop.set(reason)
        raise reason

    def _look_at(self, job: Job) -> None:
        if job.cancel_requested:
            self._stop.set(CancelRequested(f"job {job.id} was cancelled"))
        if job.event_seq != self._events_seen:
            self._events_seen = job.event_seq
            self._on_change(job)

    # greenlets

    def _guard(self) -> None:
        """Stop the work at the deadline, also while a renewal hangs in the store."""
        while not self._over.wait(max(0.0, self.deadline - self._clock())):
            if self.expired:
                self._log.warning("lease.expired", seconds=round(self._clock() - self._sent, 3))
                self._stop.set(Fenced(f"job {self._key.id}: its lease could not be renewed"))
                return

    def _keep(self) -> None:
        tick = min(TICK_SECONDS, self._seconds / RENEWALS_PER_LEASE / 4)
        while not self._over.wait(tick) and not isinstance(self._stop.reason, Fenced):
            try:
                self._due(self._clock())
            except Fenced:
                return
            except StoreUnavailable:
                self._over.wait(RETRY_SECONDS * random.random())
            except Exception:
                self._log.error("lease.keeper_failed", exc_info=True)

    def _due(self, now: float) -> None:
        if now >= self._renew_at:
            self._renew()
        elif self._poll_seconds is not None and now >= self._polled_at + self._poll_seconds:
            self._polled_at = now
            self._poll()
        if self._news != self._reported and now >= self._reported_at + REPORT_SECONDS:
            self._report(now)

    def _renew(self) -> None:
        """Also while the work is being stopped: it stays ours until it is settled."""
        if self.expired:
            return
        with self._writing:
            if self._over.is_set():
                return
            self._write_once(self._renewal())
            self._reported, self._reported_at = self._news, self._clock()
        self._on_renewal()

    def _poll(self) -> None:
        with self._writing:
            if not self._over.is_set():
                self._read()

    def _read(self) -> None:
        try:
            job = self._store.get(self._key)
        except UnknownJob:
            self._lose(Fenced(f"job {self._key.id} is gone"))
            return
        if job.owner is None or job.owner.claim != self._owner.claim:
            self._lose(Fenced(f"job {job.id} is {job.state} under token {job.token}: no longer ours"))
        self._look_at(job)

    def _report(self, now: float) -> None:
        news = self._reported = self._news
        self._reported_at = now
        self._store.report_progress(self._key, self._token, news.progress, news.stage, news.eta_seconds, news.speed)
