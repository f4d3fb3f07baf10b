"""The leading feeder's part in watches: finds their queues, and makes a job of each object that S3 says appeared.

A message is deleted once its job is stored, or can never be made; after a fault that may pass it stays and comes again. An
event that comes twice makes one job: its id is made from bucket, key and sequencer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.pool import Group, Pool

from nommerd import logs
from nommerd.api.problems import Refusal
from nommerd.aws.clients import explain
from nommerd.aws.faults import is_missing
from nommerd.aws.watch import Created, Watch, created, feeds
from nommerd.aws.watch_queues import read_watch, watch_queues
from nommerd.errors import InfrastructureError, InputError, NommerdError
from nommerd.pipeline.extension import extension_of

if TYPE_CHECKING:
    from nommerd.catalog import Catalog
    from nommerd.job import Job

Submit = Callable[[bytes, str | None], tuple["Job", bool]]  # Jobs.submit: body and idempotency key -> job, whether it is new

LOOK_SECONDS = 60.0  # between looks at which watches there are
POLL_SECONDS = 20  # SQS's longest: an idle watch costs three of these a minute, and one look
AT_ONCE = 10  # SQS's batch
BACKOFF_SECONDS = 1.0  # doubled with each failure in a row
BACKOFF_MAX_SECONDS = 30.0
ALREADY = "idempotency.conflict"  # the event was a job before the watch was changed
KEPT_FAMILIES = frozenset({"node", "internal", "config"})  # nothing that another object would do better with
KEPT_CODES = frozenset({"source.forbidden", "dest.forbidden", "source.outside_buckets", "dest.outside_buckets"})


@dataclass(slots=True)
class Counts:
    """What became of the events of one watch, since this feeder leads."""

    jobs: int = 0
    repeated: int = 0  # delivered again, a job already
    refused: int = 0  # no job can be made of it
    ignored: int = 0  # other objects, folders, what is no event


@dataclass(slots=True)
class _Open:
    """A watch that is read: its definition as of the last look."""

    watch: Watch
    url: str
    extension: str | None
    params: Mapping[str, Any]
    counts: Counts = field(default_factory=Counts)


class _Later(Exception):
    """The event stays on the queue."""


class Watching:
    """Call `look` every second or two; it does something once a minute, and only while this feeder leads."""

    def __init__(self, sqs: Any, prefix: str, cluster: str, catalog: Callable[[], Catalog], submit: Submit,
                 leads: Callable[[], bool], *, look_seconds: float = LOOK_SECONDS,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._sqs, self._prefix, self._cluster, self._catalog = sqs, prefix, cluster, catalog
        self._submit, self._leads, self._clock = submit, leads, clock
        self._look_seconds = look_seconds
        self._next_look = clock()
        self._open: dict[str, _Open] = {}
        self._told: dict[str, str] = {}  # faults that were logged: once each, not once a minute
        self._stopping = Event()
        self._pollers = Group()

    @property
    def counts(self) -> dict[str, Counts]:
        """By watch."""
        return {name: one.counts for name, one in self._open.items()}

    def look(self) -> None:
        """Find the watches there are, and see to it that each is read."""
        if not self._leads():
            self._open.clear()  # their pollers end with their next poll
            self._next_look = self._clock()
            return
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + self._look_seconds
        try:
            queues = watch_queues(self._sqs, self._prefix)
        except Exception as error:
            self._tell("", _ours(error))
            return
        self._told.pop("", None)
        for name in self._open.keys() - queues.keys():
            del self._open[name]
        for name, url in queues.items():
            self._refresh(name, url)

    def stop(self) -> None:
        """Read no more. What was received and is no job yet comes again."""
        self._stopping.set()
        self._open.clear()
        self._pollers.kill(timeout=1)

    # --- definitions -------------------------------------------------------------------------------------------------

    def _refresh(self, name: str, url: str) -> None:
        """Read the definition; one with a fault is not read from, so that no event is lost to it."""
        try:
            watch = read_watch(self._sqs, name, url, self._cluster)
            found = None if watch is None else self._checked(watch, url)
        except NommerdError as error:
            self._open.pop(name, None)
            self._tell(name, error)
            return
        except Exception as error:  # what is known goes on
            self._tell(name, _ours(error))
            return
        self._told.pop(name, None)
        before = self._open.get(name)
        if found is None:
            self._open.pop(name, None)
        elif before is None:
            self._open[name] = found
            self._pollers.spawn(self._poll_on, name, found)
            logs.get().info("watch.opened", watch=name, source=found.watch.source, preset=found.watch.preset)
        else:
            before.watch, before.extension, before.params = found.watch, found.extension, found.params

    def _checked(self, watch: Watch, url: str) -> _Open:
        """With what this feeder's own presets make of it. Raises NommerdError."""
        catalog = self._catalog()
        params = catalog.params_from_text(catalog.pipeline_of(preset=watch.preset), watch.params)
        extension = extension_of(catalog.resolve(preset=watch.preset, params=params), catalog.stages)
        if feeds(watch, watch, extension):
            raise InputError("dest.watched", f"Outputs under {watch.dest} would be watched for, and encoded again for ever.")
        return _Open(watch, url, extension, params)

    def _tell(self, name: str, error: NommerdError) -> None:
        text = str(error)
        if self._told.get(name) != text:
            self._told[name] = text
            logs.get().error("watch.not_read", watch=name or "all", why=text)

    # --- events ------------------------------------------------------------------------------------------------------

    def _poll_on(self, name: str, one: _Open) -> None:
        """Until the watch is gone, or another feeder leads."""
        failures = 0
        while self._open.get(name) is one and not self._stopping.is_set() and self._leads():
            try:
                failures = 0 if self.poll(one) else failures + 1
            except Exception as error:
                if is_missing(error):  # the queue was deleted: the next look drops it
                    failures = max(failures, 5)
                else:
                    logs.get().warning("watch.unavailable", watch=name, why=str(_ours(error)))
                failures += 1
            if failures:
                self._stopping.wait(min(BACKOFF_SECONDS * 2 ** (failures - 1), BACKOFF_MAX_SECONDS))
        if self._open.get(name) is one:  # another leads: a look begins anew when that ends
            del self._open[name]

    def poll(self, one: _Open) -> bool:
        """One long poll and what comes of it. False where something was left on the queue."""
        answer = self._sqs.receive_message(QueueUrl=one.url, MaxNumberOfMessages=AT_ONCE, WaitTimeSeconds=POLL_SECONDS)
        messages = answer.get("Messages") or []
        done = Pool(AT_ONCE).map(lambda message: self._settle(one, message["Body"]), messages)
        self._delete(one, [message["ReceiptHandle"] for message, is_done in zip(messages, done, strict=True) if is_done])
        return all(done)

    def _settle(self, one: _Open, body: str) -> bool:
        """Whether the message is done with."""
        log = logs.get().bind(watch=one.watch.name)
        try:
            for event in _wanted(one, body):
                self._make_job(one, event)
            return True
        except _Later as later:
            log.warning("watch.later", why=str(later))
        except InfrastructureError as error:
            log.warning("watch.later", why=str(error))
        except Exception:
            log.exception("watch.failed")
        return False

    def _make_job(self, one: _Open, event: Created) -> None:
        watch = one.watch
        body = {"source": f"s3://{event.bucket}/{event.key}", "dest": watch.dest_of(event.key, one.extension),
                "preset": watch.preset, "params": dict(one.params), "priority": watch.priority, "overwrite": watch.overwrite,
                "labels": {"watch": watch.name}}
        log = logs.get().bind(watch=watch.name)
        try:
            job, new = self._submit(json.dumps(body).encode(), event.idempotency_key)
        except Refusal as refusal:
            fault = refusal.faults[0]
            if fault.code == ALREADY:
                one.counts.repeated += 1
            elif _may_pass(refusal):
                raise _Later(f"{fault.code}: {fault.message}") from None
            else:
                one.counts.refused += 1
                log.error("watch.refused", source=body["source"], code=fault.code, why=fault.message, hint=fault.hint)
            return
        one.counts.jobs += new
        one.counts.repeated += not new
        log.info("watch.job", job=job.id, new=new)

    def _delete(self, one: _Open, handles: Sequence[str]) -> None:
        """What cannot be deleted comes again, and is found to be a job already."""
        if not handles:
            return
        entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handles)]
        failed = self._sqs.delete_message_batch(QueueUrl=one.url, Entries=entries).get("Failed") or ()
        for entry in failed:
            logs.get().warning("watch.not_deleted", watch=one.watch.name, code=entry.get("Code"), why=entry.get("Message"))


def _wanted(one: _Open, body: str) -> list[Created]:
    """The events of a message that become jobs."""
    try:
        events = created(body)
    except (ValueError, RecursionError) as error:
        logs.get().warning("watch.unreadable", watch=one.watch.name, why=f"{type(error).__name__}: {error}"[:200])
        one.counts.ignored += 1
        return []
    wanted = [event for event in events if one.watch.takes(event.bucket, event.key)]
    one.counts.ignored += len(events) - len(wanted) if events else 1
    return wanted


def _may_pass(refusal: Refusal) -> bool:
    """Whether the same event can become a job later, as it is: a fault of ours, or one that the operator will mend."""
    code = refusal.faults[0].code
    return refusal.status >= 500 or code.partition(".")[0] in KEPT_FAMILIES or code in KEPT_CODES


def _ours(error: Exception) -> NommerdError:
    return error if isinstance(error, NommerdError) else InfrastructureError("node.bus_unavailable", f"SQS: {explain(error)}")
