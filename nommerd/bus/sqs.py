"""The bus on SQS: a queue for each priority of jobs, one for changes, and a dead-letter queue for each kind.

What is particular to SQS: seconds are whole ones (rounded up); a delay is at most DELAY_MAX_SECONDS, a message hidden for at
most CAP_SECONDS after its receipt; a message released with a delay counts as in flight; and SQS may answer the deletion by a
stale receipt with success. So a delivery keeps the time by which its receipt has lapsed, and asks nothing after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gevent

from nommerd import logs
from nommerd.bus.base import (
    MAX_RECEIVES,
    PRIORITIES,
    RECEIVE_VISIBILITY_SECONDS,
    Bus,
    BusUnavailable,
    Delivery,
    Depth,
    Queue,
    rank,
)
from nommerd.bus.sqs_calls import SETUP, Batches, Refused, at_start, call, code_of, missing, ours
from nommerd.bus.sqs_polls import BATCH, Polls
from nommerd.bus.sqs_queues import change_queue, dead_queue, job_queues
from nommerd.errors import ConfigError
from nommerd.job import Priority
from nommerd.messages import Message, UndecodableMessage, decode, encode
from nommerd.watch import Clock, boot_clock

DELAY_MAX_SECONDS = 900
CAP_SECONDS = 12 * 3600 - 60  # SQS counts twelve hours from the receipt, which is a little before we hear of it
DEAD_LOOK_SECONDS = 20.0  # before an empty dead-letter queue is looked at again: each look is a request to pay for
PURGE_RETRY_SECONDS = 5.0
PURGE_TRIES = 14  # a queue can be purged once in 60 s
LAPSED = frozenset({"ReceiptHandleIsInvalid", "MessageNotInflight", "InvalidParameterValue"})  # our values are valid ones


class SqsDelivery(Delivery):
    """One receipt. `ack`, `release` and `extend` of many go out together."""

    def __init__(self, source: SqsSource, received: dict[str, Any], message: Message, receive_count: int) -> None:
        self.message = message
        self.message_id = str(received["MessageId"])
        self.receive_count = receive_count
        self._source = source
        self._handle = str(received["ReceiptHandle"])
        self._epoch = source.epoch
        self._received = source.clock()
        self._lapses = self._received + RECEIVE_VISIBILITY_SECONDS

    def ack(self) -> bool:
        return self._held() and self._change(self._source.deletes, {}, ends=True)

    def release(self, delay_seconds: float = 0.0) -> bool:
        return self._held() and self._hide(delay_seconds, ends=True)

    def extend(self, seconds: float) -> bool:
        return self._held() and self._hide(seconds, ends=False)

    def _held(self) -> bool:
        return self._epoch == self._source.epoch and self._source.clock() < self._lapses

    def _hide(self, seconds: float, ends: bool) -> bool:
        """`seconds` as far as the cap allows."""
        left = self._received + CAP_SECONDS - self._source.clock()
        whole = max(0, min(math.ceil(seconds), int(left)))
        if whole == 0 < seconds:
            return False
        return self._change(self._source.visibilities, {"VisibilityTimeout": whole}, ends, whole)

    def _change(self, batches: Batches, fields: dict[str, Any], ends: bool, seconds: int = 0) -> bool:
        try:
            batches.add({"ReceiptHandle": self._handle, **fields})
        except Refused as refused:
            if refused.code not in LAPSED:
                raise BusUnavailable(f"SQS refused: {refused}") from None
            self._lapses = 0.0
            return False
        self._lapses = 0.0 if ends else self._source.clock() + seconds
        return True


class SqsSource:
    """One SQS queue: its address, found once, and the calls on it. `epoch` counts purges."""

    def __init__(self, client: Any, polls: Any, name: str, clock: Clock, dead: SqsSource | None = None) -> None:
        """`polls` makes the long polls; `dead` is the dead-letter queue, None for one itself."""
        self.name, self.clock, self.epoch = name, clock, 0
        self._client, self._polls, self._dead = client, polls, dead
        self._url: str | None = None
        self.sends = Batches(self._batch("send_message_batch"), name)
        self.deletes = Batches(self._batch("delete_message_batch"), name, LAPSED)
        self.visibilities = Batches(self._batch("change_message_visibility_batch"), name, LAPSED)

    @property
    def url(self) -> str:
        """Asked for at first use. Raises botocore's errors."""
        if self._url is None:
            self._url = str(self._client.get_queue_url(QueueName=self.name)["QueueUrl"])
        return self._url

    def find(self) -> str:
        """The address, as a call to be retried."""
        return self.url

    def _batch(self, operation: str) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        return lambda entries: dict(getattr(self._client, operation)(QueueUrl=self.url, Entries=entries))

    def ask(self, operation: str, **arguments: Any) -> Any:
        """One call about this queue, answered in bounded time. Raises BusUnavailable."""
        try:
            return call(lambda: getattr(self._client, operation)(QueueUrl=self.url, **arguments))
        except Exception as error:
            raise ours(error) from None

    def fetch(self, count: int, wait_seconds: int) -> list[Delivery]:
        """See nommerd.bus.sqs_polls.Source. What cannot be decoded is buried before this returns."""
        wanted = {"MaxNumberOfMessages": count, "WaitTimeSeconds": wait_seconds,
                  "VisibilityTimeout": int(RECEIVE_VISIBILITY_SECONDS),
                  "MessageSystemAttributeNames": ["ApproximateReceiveCount"]}
        while True:
            received = self._receive(wanted)
            sound, broken = self._sorted(received)
            gevent.joinall([gevent.spawn(self._bury, one) for one in broken])
            if sound or not broken:
                return sound

    def _receive(self, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        if not wanted["WaitTimeSeconds"]:
            return list(self.ask("receive_message", **wanted).get("Messages", ()))
        try:
            return list(self._polls.receive_message(QueueUrl=self.url, **wanted).get("Messages", ()))
        except Exception as error:
            raise ours(error) from None

    def _sorted(self, received: Sequence[dict[str, Any]]) -> tuple[list[Delivery], list[dict[str, Any]]]:
        sound: list[Delivery] = []
        broken: list[dict[str, Any]] = []
        for one in received:
            count = int(one.get("Attributes", {}).get("ApproximateReceiveCount", 1))
            try:  # a dead-letter queue goes on counting
                sound.append(SqsDelivery(self, one, decode(one["Body"]), min(count, MAX_RECEIVES)))
            except UndecodableMessage:
                broken.append(one)
        return sound, broken

    def _bury(self, broken: dict[str, Any]) -> None:
        """Put what cannot be decoded into the dead-letter queue; there, hide it for long. Where that fails it comes again."""
        try:
            if self._dead is None:
                self.ask("change_message_visibility", ReceiptHandle=broken["ReceiptHandle"], VisibilityTimeout=CAP_SECONDS)
                return
            self._dead.ask("send_message", MessageBody=broken["Body"])
            self.ask("delete_message", ReceiptHandle=broken["ReceiptHandle"])
            logs.get().warning("dead_letter", queue=self.name, message=broken["MessageId"], undecodable=True)
        except BusUnavailable as error:
            logs.get().warning("dead_letter.put_off", queue=self.name, message=broken["MessageId"], why=str(error))

    def depth(self) -> tuple[int, int, int]:
        """Visible, in flight, delayed."""
        names = [f"ApproximateNumberOfMessages{which}" for which in ("", "NotVisible", "Delayed")]
        said = self.ask("get_queue_attributes", AttributeNames=names)["Attributes"]
        visible, in_flight, delayed = (int(said[name]) for name in names)
        return visible, in_flight, delayed

    def purge(self) -> None:
        """Everything goes. A queue that was purged within the last minute is drained, and purged when it can be."""
        self.epoch += 1
        for _ in range(PURGE_TRIES):
            try:
                call(lambda: self._client.purge_queue(QueueUrl=self.url))
                return
            except Exception as error:
                if code_of(error) != "PurgeQueueInProgress":
                    raise ours(error) from None
            self._drain()
            if not any(self.depth()):
                return
            gevent.sleep(PURGE_RETRY_SECONDS)
        raise BusUnavailable(f"SQS still refuses to purge {self.name}.")

    def _drain(self) -> None:
        while found := self.ask("receive_message", MaxNumberOfMessages=BATCH, WaitTimeSeconds=0).get("Messages"):
            self.ask("delete_message_batch", Entries=[{"Id": str(number), "ReceiptHandle": one["ReceiptHandle"]}
                                                      for number, one in enumerate(found)])


class SqsQueue(Queue):
    """One kind of message: its queues, highest priority first, and its dead-letter queue."""

    def __init__(self, sources: Sequence[SqsSource], dead: SqsSource, clock: Clock) -> None:
        self.sources, self.dead = sources, dead
        self._clock = clock
        self._polls = Polls(sources)
        self._dead_at = 0.0  # when the dead-letter queue is looked at again

    def send(self, message: Message, delay_seconds: float = 0.0) -> str:
        """See the contract; delays of more than DELAY_MAX_SECONDS are cut."""
        text = encode(message)
        fields: dict[str, Any] = {"MessageBody": text}
        if delay_seconds > 0:
            fields["DelaySeconds"] = min(math.ceil(delay_seconds), DELAY_MAX_SECONDS)
        source = self.sources[rank(message)] if len(self.sources) > 1 else self.sources[0]
        try:
            return str(source.sends.add(fields, len(text))["MessageId"])
        except Refused as refused:
            raise BusUnavailable(f"SQS refused a message: {refused}") from None

    def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        return self._polls.receive(limit, wait_seconds)

    def interrupt(self) -> None:
        self._polls.interrupt()

    def settle(self, timeout_seconds: float) -> bool:
        return self._polls.settle(timeout_seconds)

    def dead_letters(self, limit: int) -> Sequence[Delivery]:
        """See the contract. After a look that found none, there is no other for DEAD_LOOK_SECONDS."""
        if self._clock() < self._dead_at:
            return []
        found: list[Delivery] = []
        while len(found) < limit:
            more = self.dead.fetch(min(BATCH, limit - len(found)), 0)
            found.extend(more)
            if not more:
                break
        self._dead_at = 0.0 if found else self._clock() + DEAD_LOOK_SECONDS
        return found

    def depth(self) -> Depth:
        asked = [gevent.spawn(_outcome, source.depth) for source in (*self.sources, self.dead)]
        *alive, dead = [_value(greenlet) for greenlet in asked]
        visible, in_flight, delayed = zip(*alive, strict=True)
        by_rank = dict(enumerate(visible)) if len(visible) > 1 else {PRIORITIES.index(Priority.NORMAL): visible[0]}
        return Depth.of(by_rank, sum(in_flight), sum(delayed), sum(dead))

    def purge(self) -> None:
        """See the contract. On AWS it takes up to a minute until all is gone; what is sent meanwhile may go too."""
        self._polls.forget()
        for greenlet in [gevent.spawn(_outcome, source.purge) for source in (*self.sources, self.dead)]:
            _value(greenlet)
        self._dead_at = 0.0

    def close(self) -> None:
        self._polls.close()


class SqsBus(Bus):
    """The queues that nommerd.bus.sqs_queues defines for a prefix. They must be there: nothing is made here."""

    def __init__(self, client: Any, prefix: str, polls: Any = None, clock: Clock = boot_clock) -> None:
        """`client` is boto3's for SQS; `polls` one whose answers may take 20 s and a little (default: the same).

        Raises ConfigError for a queue that is missing or not ours to use. An SQS out of reach is no error here: the calls
        say so, until it is back.
        """
        make = partial(SqsSource, client, polls or client, clock=clock)
        dead = make(name=dead_queue(prefix, "jobs")), make(name=dead_queue(prefix, "changes"))
        jobs = SqsQueue([make(name=name, dead=dead[0]) for name in job_queues(prefix)], dead[0], clock)
        changes = SqsQueue([make(name=change_queue(prefix), dead=dead[1])], dead[1], clock)
        self.jobs, self.changes, self._queues = jobs, changes, (jobs, changes)
        self._find(client.meta.region_name)

    def close(self) -> None:
        """Receivers that wait end now."""
        for queue in self._queues:
            queue.close()

    def _find(self, region: str) -> None:
        sources = [source for queue in self._queues for source in (*queue.sources, queue.dead)]
        asked = [gevent.spawn(_outcome, partial(call, source.find)) for source in sources]
        errors = {source.name: greenlet.get()[1] for source, greenlet in zip(sources, asked, strict=True)}
        absent = [name for name, error in errors.items() if error is not None and missing(error)]
        if absent:
            raise ConfigError("config.bus", f"There is no SQS queue {', '.join(absent)} in {region}.", SETUP, place="bus")
        for name, error in errors.items():
            if error is not None:
                if refusal := at_start(error):
                    raise refusal
                logs.get().warning("sqs.out_of_reach", queue=name, why=str(ours(error)))


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What the work returned or raised: a greenlet that raises prints its traceback."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def _value(greenlet: gevent.Greenlet[..., tuple[Any, Exception | None]]) -> Any:
    value, error = greenlet.get()
    if error is not None:
        raise error
    return value
