"""Webhooks that are due: in order within a job, side by side across jobs, safe to restart at any moment.

An event stays due until the record says that its receiver accepted it. A crash between the two delivers it once more,
under the same webhook-id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

from gevent.pool import Pool

from nommerd import lifecycle, logs, metrics
from nommerd.api.view import webhook_form, webhook_json
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.job import Delivery, Event, Job, Key, utcnow
from nommerd.secrets import Keyring
from nommerd.store.base import Store, UnknownJob
from nommerd.webhook import FORM, JSON, Reply, message_id, next_try

AT_ONCE = 64
RECEIVER_AT_ONCE = 48  # of them to one receiver: one that hangs must not hold up the others
PAGE = 200  # due jobs looked through in one go
WHY_MAX = 80  # characters of a failure's reason that a record keeps
Deliver = Callable[[str, str, str, bytes, str], Reply]  # project, url, message id, body and its content type


class Deliveries:
    """`kick` delivers a job's events now if one is due; `run_due` finds the others. `leads` is asked before each."""

    def __init__(self, store: Store, keyring: Keyring, deliver: Deliver, *, max_tries: int, leads: Callable[[], bool],
                 at_once: int = AT_ONCE) -> None:
        self._store = store
        self._keyring = keyring
        self._deliver = deliver
        self._max_tries = max_tries
        self._leads = leads
        self._pool = Pool(at_once)
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._receivers: Counter[str] = Counter()  # deliveries under way
        self._behind: Job | None = None  # how far the last look came

    def kick(self, key: Key) -> None:
        """This job may have an event to deliver. Never waits: when all hands are busy, `run_due` comes back to it."""
        if key in self._active:
            self._again.add(key)
        elif self._leads() and self._pool.free_count() > 0:
            self._active.add(key)
            self._pool.spawn(self._work, key)

    def run_due(self, now: datetime) -> int:
        """Begin what is due, as far as hands are free; returns how many jobs were found. Goes on where the last look ended, so
        that jobs whose receiver has enough under way do not hide others."""
        if not (self._pool.free_count() and self._leads()):
            return 0
        due = self._store.webhooks_due(now.timestamp(), PAGE, self._behind)
        coming = self._receivers.copy()
        for job in due:
            if not self._pool.free_count():
                return len(due)
            self._behind = job
            if job.key not in self._active and coming[_receiver(job)] < RECEIVER_AT_ONCE:
                coming[_receiver(job)] += 1
                self.kick(job.key)
        if len(due) < PAGE:
            self._behind = None
        return len(due)

    def stop(self, within_seconds: float) -> None:
        """Let deliveries end for so long, then drop them: they are still due."""
        self._pool.join(timeout=within_seconds)
        self._pool.kill(timeout=1)

    def _work(self, key: Key) -> None:
        try:
            self._again.add(key)
            while key in self._again and self._leads():
                self._again.discard(key)
                self._deliver_all(key)
        except UnknownJob:
            pass
        except InfrastructureError as error:
            logs.get().warning("webhook.put_off", job=key.id, why=str(error))
        except Exception:
            logs.get().exception("webhook.failed", job=key.id)
        finally:
            self._active.discard(key)
            self._again.discard(key)

    def _deliver_all(self, key: Key) -> None:
        """Deliver this job's events in order until none is left or one has to wait. They stay due where their receiver has
        enough under way."""
        job = self._store.get(key)
        receiver = _receiver(job)
        if not job.due_events or self._receivers[receiver] >= RECEIVER_AT_ONCE:
            return
        self._receivers[receiver] += 1
        try:
            self._deliver_each(key, job)
        finally:
            self._receivers[receiver] -= 1
            self._receivers += Counter()  # forget those with nothing under way

    def _deliver_each(self, key: Key, job: Job) -> None:
        while job.due_events and not _later(job, utcnow()):
            event = job.due_events[0]
            reply = self._post(job, event)
            metrics.WEBHOOK_DELIVERIES.add(_result(reply))
            now = utcnow()
            tried = Delivery(seq=event.seq, at=now, status=reply.status, why=reply.why[:WHY_MAX])
            if reply.accepted:
                logs.get().info("webhook.accepted", job=key.id, seq=event.seq, state=event.state.value, status=reply.status)
                job = self._store.update(key, lifecycle.events_accepted(event.seq, tried))
                continue
            again = None if reply.gone else next_try(job.webhook.tries + 1, self._max_tries, reply.retry_after_seconds, now)
            logs.get().warning("webhook.refused", job=key.id, seq=event.seq, status=reply.status, why=reply.why,
                               next_at=again.isoformat() if again else None)
            job = self._store.update(key, lifecycle.event_postponed(event.seq, again, tried))

    def _post(self, job: Job, event: Event) -> Reply:
        """What cannot even be sent waits for its next try like what was refused: else it would be the longest overdue for
        ever, and others would never have their turn."""
        try:
            body, kind = (webhook_form(job, event), FORM) if job.webhook.form else (_json(webhook_json(job, event)), JSON)
            return self._deliver(job.project, self._url(job), message_id(job.id, event.seq), body, kind)
        except ConfigError as error:
            return Reply(None, why=f"{error.code}: {error.message}")
        except InfrastructureError:  # the store is out of reach, where the secrets are: no try of the receiver's
            raise
        except Exception as error:
            logs.get().exception("webhook.failed", job=job.id)
            return Reply(None, why=f"internal.error: {type(error).__name__}")

    def _url(self, job: Job) -> str:
        hidden = self._keyring.decrypt(job.secrets) if job.secrets else {}
        return str(hidden.get("notify_url") or job.notify_url)


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _result(reply: Reply) -> str:
    """One of nommerd.metrics.RESULTS."""
    if reply.accepted:
        return "accepted"
    return "unreachable" if reply.status is None else "gone" if reply.gone else "refused"


def _receiver(job: Job) -> str:
    return urlsplit(job.notify_url or "").netloc


def _later(job: Job, now: datetime) -> bool:
    return job.webhook.next_at is not None and job.webhook.next_at > now
