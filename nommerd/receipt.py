"""The message that stands for a claim: kept hidden while the work goes on, replaced before the bus's cap."""

from __future__ import annotations

from nommerd import lifecycle, logs
from nommerd.bus.base import BusUnavailable, Delivery, Queue
from nommerd.errors import InfrastructureError, WorkStopped
from nommerd.job import Job
from nommerd.messages import JobMessage
from nommerd.store.base import Store, UnknownJob
from nommerd.watch import Clock, boot_clock

REPLACE_AFTER_SECONDS = 11 * 3600.0  # SQS hides a message for at most twelve hours, counted from its receipt


class Receipt:
    """All methods but `release` keep errors of the bus to themselves: a message is a hint, the work goes on."""

    def __init__(self, delivery: Delivery, job: Job, store: Store, queue: Queue, clock: Clock = boot_clock) -> None:
        """`job` as it was claimed with this delivery."""
        self._delivery: Delivery | None = delivery
        self._job, self._store, self._queue, self._clock = job, store, queue, clock
        self._received = clock()
        self._busy = False
        self._over = False

    def keep(self) -> None:
        """Hide the message for another lease; after eleven hours, replace it. Does nothing while a call is under way."""
        if self._busy or self._over or self._delivery is None:
            return
        self._busy = True
        try:
            if self._clock() - self._received >= REPLACE_AFTER_SECONDS:
                self._replace(self._delivery)
            else:
                self._delivery.extend(self._job.lease_seconds)
        except (InfrastructureError, WorkStopped, UnknownJob) as error:
            logs.get().warning("message.not_kept", job=self._job.id, why=str(error))
        finally:
            self._busy = False

    def drop(self) -> None:
        """Delete the message. A replaced one is dropped by whoever receives it next."""
        delivery, self._over = self._delivery, True
        if delivery is None:
            return
        try:
            delivery.ack()
        except BusUnavailable as error:
            logs.get().warning("message.not_deleted", job=self._job.id, why=str(error))

    def release(self, delay_seconds: float) -> bool:
        """Give the message back; False where that did not work."""
        delivery, self._over = self._delivery, True
        try:
            return delivery is not None and delivery.release(delay_seconds)
        except BusUnavailable:
            return False

    def _replace(self, old: Delivery) -> None:
        """The record names the new message before the old one is deleted; delayed, nobody receives it before that."""
        job = self._job
        assert job.owner is not None
        message_id = self._queue.send(JobMessage(id=job.id, project=job.project, priority=job.priority), job.lease_seconds)
        self._store.update(job.key, lifecycle.replace_message(job.owner, message_id))
        self._delivery = None
        logs.get().info("message.replaced", job=job.id, message=message_id)
        old.ack()
