"""What a worker does with one message: claim its job and see it through, or what the rules say instead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gevent.event import Event

from nommerd import lifecycle, logs, metrics
from nommerd.attempt import Tools, attempt
from nommerd.bus.base import Bus, BusUnavailable, Delivery
from nommerd.errors import InfrastructureError, ShuttingDown, Stop
from nommerd.greenlets import Greenlets
from nommerd.job import Job, Key, Owner, new_id, utcnow
from nommerd.lease import POLL_SECONDS, Lease, LeaseWatch, boot_clock
from nommerd.receipt import Receipt
from nommerd.rules import RELEASE_SECONDS, Action, decide
from nommerd.settling import Settling
from nommerd.store.base import StoreUnavailable, UnknownJob

UNAVAILABLE_SECONDS = 2.0  # before a message is shown again when the store was out of reach
WATCHES_MAX = 32  # messages held for others' leases; more are put off for a lease
WATCH_SECONDS = 1.0  # between looks at another's lease, where looking is cheap


class Otherwise(Exception):
    """The message is not to be claimed but to be treated so; `job` is the record as it was seen."""

    def __init__(self, action: Action, job: Job) -> None:
        super().__init__(action.value)
        self.action = action
        self.job = job


class Handling:
    """Handles messages for one worker, each call in a greenlet of its own. `stopping` ends all of it.

    `embedded`: reading the store is cheap, so cancellations and others' leases are looked at each second.
    """

    def __init__(self, tools: Tools, bus: Bus, me: Owner, stopping: Event, *, lease_seconds: float, max_attempts: int,
                 embedded: bool, on_activity: Callable[[], None] = lambda: None,
                 held: Callable[[], bool] = lambda: False) -> None:
        """`on_activity` is called when a job begins, at each change of its state, and when it is settled. While `held`,
        nothing is begun: messages go back."""
        self._on_activity, self._held = on_activity, held
        self._tools, self._store, self._bus, self._me, self._stopping = tools, tools.store, bus, me, stopping
        self._lease_seconds, self._max_attempts, self._embedded = lease_seconds, max_attempts, embedded
        self._watch = LeaseWatch(me=me)
        self._settling = Settling(tools, bus, max_attempts)
        self.active: dict[tuple[Key, int], Stop] = {}  # the claims in the slots: a job lost and won again has two for a moment
        self.watching = Greenlets()
        self.aside = Greenlets()  # short calls to the bus that nobody waits for

    def handle(self, delivery: Delivery) -> None:
        """Claim its job and work, or do what the rules say. One read and one write until the claim is committed."""
        message = delivery.message
        if self._stopping.is_set() or self._held():
            _quietly(delivery.release)
            return
        owner = replace(self._me, claim=new_id())
        claim = lifecycle.claim(owner, delivery.message_id, self._lease_seconds, utcnow())

        def change(job: Job) -> Job:
            action = decide(job, message, delivery.message_id)
            if action is not Action.CLAIM:
                raise Otherwise(action, job)
            return claim(job)

        since = boot_clock()
        try:
            job = self._store.update(message.key, change)
        except Otherwise as other:
            self._otherwise(other.action, other.job, delivery)
        except UnknownJob:
            self._otherwise(decide(None, message, delivery.message_id), None, delivery)
        except InfrastructureError as error:
            logs.get().warning("claim.failed", job=message.id, why=str(error))
            _quietly(delivery.release, UNAVAILABLE_SECONDS if isinstance(error, StoreUnavailable) else RELEASE_SECONDS)
        else:
            with logs.bound(job=job.id, token=job.token):
                self._work(job, Receipt(delivery, job, self._store, self._bus.jobs), since)

    def _work(self, job: Job, receipt: Receipt, since: float) -> None:
        """See the claimed job through."""
        stop = self.active[job.key, job.token] = Stop()
        if self._stopping.is_set():
            stop.set(ShuttingDown("the worker is stopping"))
        logs.get().info("job.claimed", attempt=job.attempts_charged)
        self._on_activity()
        try:
            self.aside.spawn(receipt.keep)
            with Lease(self._store, job, stop, since=since, poll_seconds=POLL_SECONDS if self._embedded else None,
                       on_change=self._changed,
                       on_renewal=lambda: self.aside.spawn(receipt.keep)) as lease:
                verdict = attempt(job, self._tools, stop, lease)
                settled = self._settling.settle(lease, verdict)
            problem = verdict.problem
            metrics.ATTEMPTS.add(verdict.outcome.name.lower(), problem.code if problem else "")
            _count(settled)
            logs.get().info("job.settled", outcome=verdict.outcome.value, seconds=round(boot_clock() - since, 3),
                            state=settled and settled.state.value, **({"code": problem.code, "stage": problem.stage,
                                                                       "message": problem.message} if problem else {}))
            if settled is None:
                receipt.release(self._lease_seconds / 3)  # whoever receives it sees what the record says
            else:
                self._settling.pass_on(settled, verdict, receipt)
        finally:
            del self.active[job.key, job.token]
            self._on_activity()

    def _changed(self, job: Job) -> None:
        self._on_activity()
        self.aside.spawn(self._settling.announce, job)

    def _otherwise(self, action: Action, job: Job | None, delivery: Delivery) -> None:
        if action is Action.WATCH and job is not None:
            if len(self.watching) < WATCHES_MAX:
                self.watching.spawn(self._watch_owner, delivery, job)
            else:
                _quietly(delivery.release, job.lease_seconds)
        elif action is Action.RELEASE or (action is Action.REVOKE and job is not None and not self._settling.revoke(job)):
            _quietly(delivery.release, RELEASE_SECONDS)
        else:
            _quietly(delivery.ack)

    def _watch_owner(self, delivery: Delivery, job: Job) -> None:
        """Hold a message whose job another owner has, until that is settled or its lease is dead; then show it again."""
        pause = WATCH_SECONDS if self._embedded else job.lease_seconds / 10
        hidden_until = 0.0
        while not self._stopping.is_set() and not self._broke(job):
            if boot_clock() > hidden_until:
                _quietly(delivery.extend, job.lease_seconds)
                hidden_until = boot_clock() + job.lease_seconds / 3
            self._stopping.wait(pause)
            try:
                job = self._store.get(job.key)
            except UnknownJob:
                break
            except InfrastructureError:
                continue
            if decide(job, delivery.message, delivery.message_id) is not Action.WATCH:
                break
        _quietly(delivery.release)

    def _broke(self, job: Job) -> bool:
        """Whether the lease was dead and is broken now."""
        problem = self._watch.expired(job)
        if problem is None:
            return False
        try:
            free = self._store.update(job.key, lifecycle.break_lease(job.lease_version, problem, self._max_attempts, utcnow()))
        except (InfrastructureError, UnknownJob):
            return False
        if free.event_seq != job.event_seq:
            metrics.LEASES_LOST.add()
            _count(free)
            logs.get().warning("lease.broken", job=job.id, token=job.token, state=free.state.value, why=problem.message)
            self._settling.announce(free)
        return not free.claimed


def _count(settled: Job | None) -> None:
    """A job that was recorded as ended."""
    if settled is not None and settled.state.final:
        metrics.job_ended(settled.state.value, settled.error.code if settled.error else None)


def _quietly(call: Callable[..., bool], *args: float) -> None:
    """What is done to a message may fail: it is then received again."""
    with suppress(BusUnavailable):
        call(*args)
