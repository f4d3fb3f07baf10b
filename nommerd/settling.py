"""How a job ends on a worker: the verdict goes into the record, then everybody is told. Only the record must succeed."""

from __future__ import annotations

import math
from contextlib import suppress

from nommerd import lifecycle, logs, metrics
from nommerd.attempt import Outcome, Tools, Verdict, full_dest
from nommerd.bus.base import Bus, BusUnavailable
from nommerd.errors import Fenced, InfrastructureError, NommerdError
from nommerd.job import Job, utcnow
from nommerd.lease import Lease
from nommerd.messages import ChangeMessage, JobMessage
from nommerd.pipeline.destination import complete
from nommerd.receipt import Receipt
from nommerd.rules import RELEASE_SECONDS, retry_delay
from nommerd.store.base import UPDATE_TRIES, UnknownJob


class Settling:
    """Settles jobs of one worker."""

    def __init__(self, tools: Tools, bus: Bus, max_attempts: int) -> None:
        self._tools, self._store, self._bus, self._max_attempts = tools, tools.store, bus, max_attempts

    def settle(self, lease: Lease, verdict: Verdict) -> Job | None:
        """Write the verdict; None where the job is not ours, or the store stays away for longer than a lease lives.

        A fenced worker tries as well: where its own clock ended the lease before anybody broke it, the job need not wait.
        """
        if verdict.outcome is Outcome.FENCED:
            logs.get().warning("job.fenced", why=verdict.why)
        tries = 2 if verdict.outcome is Outcome.FENCED else UPDATE_TRIES + math.ceil(lease.seconds / 2)
        try:
            return lease.settle(verdict.change(lease.owner, self._max_attempts, utcnow()), tries)
        except (Fenced, UnknownJob) as error:
            metrics.WRITES_FENCED.add()
            if verdict.outcome is not Outcome.FENCED:
                logs.get().warning("job.fenced", why=str(error))
        except InfrastructureError as error:
            logs.get().error("job.not_settled", why=str(error))
        return None

    def pass_on(self, job: Job, verdict: Verdict, receipt: Receipt) -> None:
        """Tell feeders and workers of a settled job. All of it may fail: the sweeper finds in the record what is missing."""
        self.announce(job)
        if not job.state.final:
            self._send_again(job, verdict, receipt)
        elif not job.revocable or self.revoke(job):
            receipt.drop()
        else:
            receipt.release(RELEASE_SECONDS)

    def announce(self, job: Job) -> None:
        """Tell the feeders that the state changed: a hint, they look by themselves as well."""
        with suppress(BusUnavailable):
            self._bus.changes.send(ChangeMessage(id=job.id, project=job.project, event_seq=job.event_seq))

    def revoke(self, job: Job) -> bool:
        """Revoke what a settled job left staged, and note it. False where not all of it could be reached."""
        done: list[str] = []
        published = False
        try:
            dest = full_dest(job, self._tools.keyring)
            for entry in job.staged:
                uri = complete(dest, entry.uri)
                backend = self._tools.storage.for_uri(uri, "dest")
                if entry.handle:
                    backend.revoke(uri, entry.handle)
                    done.append(entry.handle)
                published = published or backend.carries(uri, entry.bytes, entry.sha256, entry.handle)
            self._store.update(job.key, lifecycle.unstaged(done, published))
        except UnknownJob:
            return True
        except NommerdError as error:
            logs.get().warning("outputs.not_revoked", job=job.id, why=str(error))
            return False
        return True

    def _send_again(self, job: Job, verdict: Verdict, receipt: Receipt) -> None:
        """A new message instead of the old one, so that a job may be tried long after the old one's life has ended."""
        given_back = verdict.outcome is Outcome.GIVEN_BACK
        delay = verdict.delay_seconds if given_back or job.adopt_only else retry_delay(job.attempts_charged)
        try:
            message_id = self._bus.jobs.send(JobMessage(id=job.id, project=job.project, priority=job.priority), delay)
        except BusUnavailable:
            receipt.release(delay)
            return
        note = lifecycle.sent(message_id, utcnow())
        with suppress(InfrastructureError, UnknownJob):
            self._store.update(job.key, lambda now: note(now) if now.token == job.token else now)
        receipt.drop()
