"""Calls of SQS: bounded in time, their errors as ours, and gathered into batches where many greenlets call at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import AsyncResult

from nommerd import logs
from nommerd.aws.clients import error_code, explain, is_transient
from nommerd.aws.faults import credentials_fault
from nommerd.bus.base import BusUnavailable
from nommerd.errors import ConfigError

CALL_SECONDS = 10.0  # what a caller waits for an answer; the call itself may go on a little
BATCH_ENTRIES = 10
BATCH_BYTES = 250 * 1024  # SQS takes 256 KiB; the rest is for what it adds
LINGER_SECONDS = 0.02  # how long an entry waits for others at most, while another request is under way
FLUSHES_MAX = 8  # requests of one kind and queue side by side
ENTRY_TRIES = 3
ENTRY_PAUSE_SECONDS = 0.1  # doubled with each try, with jitter
SETUP = "Run `nommerd aws setup`, or see that bus and aws.region name what it made."

Batch = Callable[[list[dict[str, Any]]], dict[str, Any]]  # entries with their Ids -> SQS's answer


class Refused(Exception):
    """SQS will not do this however often it is asked. `code` as `code_of` gives it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}".rstrip(": "))
        self.code = code


def code_of(error: Exception) -> str:
    """AWS's code without the service's name: older and newer protocols differ in it."""
    return bare(error_code(error))


def bare(code: str) -> str:
    """`AWS.SimpleQueueService.NonExistentQueue` -> `NonExistentQueue`."""
    return code.rpartition(".")[2]


def missing(error: Exception) -> bool:
    """Whether the error says that the queue does not exist."""
    return code_of(error) in {"NonExistentQueue", "QueueDoesNotExist"}


def ours(error: Exception) -> Exception:
    """botocore's errors as BusUnavailable; any other is a fault of the program and stays."""
    from botocore.exceptions import BotoCoreError, ClientError

    if not isinstance(error, (BotoCoreError, ClientError)):
        return error
    hint = f" {SETUP}" if missing(error) else ""
    return BusUnavailable(f"SQS: {explain(error)}.{hint}")


def at_start(error: Exception) -> ConfigError | None:
    """What a daemon must not start with; None for what may pass by itself."""
    from botocore.exceptions import BotoCoreError, ClientError

    if is_transient(error) or not isinstance(error, (BotoCoreError, ClientError)):
        return None
    if fault := credentials_fault(error):
        return fault
    return ConfigError("config.aws", f"SQS refuses us: {explain(error)}", place="bus", hint="See the credentials, and the "
                       "policies that `nommerd aws setup --dry-run` prints.")


def call(operation: Callable[[], Any]) -> Any:
    """The answer of one call within CALL_SECONDS. Raises botocore's error, or BusUnavailable when the time is over."""
    result: AsyncResult[Any] = AsyncResult()

    def run() -> None:
        try:
            result.set(operation())
        except Exception as error:
            result.set_exception(error)

    gevent.spawn(run)
    return answer(result)


def answer(result: AsyncResult[Any]) -> Any:
    """The result, waited for CALL_SECONDS and no longer. (`get` with a time-out would raise what an outer time-out raises.)"""
    result.wait(timeout=CALL_SECONDS)
    if not result.ready():
        raise BusUnavailable(f"SQS has not answered within {CALL_SECONDS:g} s.")
    return result.get()


@dataclass(slots=True, eq=False)
class _Entry:
    fields: dict[str, Any]
    size: int
    result: AsyncResult[dict[str, Any]] = field(default_factory=AsyncResult)
    tries: int = 0


class Batches:
    """Gathers calls of one kind on one queue. A lone one goes out at once; those that come while a request is under way go
    out together. Each caller gets the result of its own entry; only failed entries are sent again."""

    def __init__(self, batch: Batch, queue: str, expected: frozenset[str] = frozenset()) -> None:
        """`expected`: codes of entries that are nothing to log."""
        self._batch, self._queue, self._expected = batch, queue, expected
        self._waiting: list[_Entry] = []
        self._flushing = 0
        self._lingering = False

    def add(self, fields: dict[str, Any], size: int = 0) -> dict[str, Any]:
        """Have this entry carried out (`size` in bytes) and return its part of the answer.

        Raises Refused, or BusUnavailable after CALL_SECONDS at the latest: whether it was carried out is not known then.
        """
        entry = _Entry(fields, size)
        self._waiting.append(entry)
        self._kick()
        try:
            return dict(answer(entry.result))
        finally:
            if entry in self._waiting:  # nobody waits for it any longer
                self._waiting.remove(entry)

    def _kick(self) -> None:
        if not self._flushing or len(self._waiting) >= BATCH_ENTRIES:
            self._start()
        elif not self._lingering:
            self._lingering = True
            gevent.spawn_later(LINGER_SECONDS, self._lingered)

    def _lingered(self) -> None:
        self._lingering = False
        if self._waiting:
            self._start()

    def _start(self) -> None:
        """A greenlet runs a turn of the loop later, so that what is added in this turn goes along."""
        if self._flushing < FLUSHES_MAX:
            self._flushing += 1
            gevent.spawn(self._flush)

    def _flush(self) -> None:
        try:
            while entries := self._take():
                self._send(entries)
        finally:
            self._flushing -= 1

    def _take(self) -> list[_Entry]:
        size = count = 0
        for entry in self._waiting[:BATCH_ENTRIES]:
            size += entry.size
            if count and size > BATCH_BYTES:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    def _send(self, entries: Sequence[_Entry]) -> None:
        try:
            said = self._batch([{"Id": str(number), **entry.fields} for number, entry in enumerate(entries)])
        except Exception as error:
            for entry in entries:
                entry.result.set_exception(ours(error))
            return
        done = {one["Id"]: one for one in said.get("Successful", ())}
        failed = {one["Id"]: one for one in said.get("Failed", ())}
        again = []
        for number, entry in enumerate(entries):
            if str(number) in done:
                entry.result.set(done[str(number)])
            elif self._may_try_again(entry, failed.get(str(number), {"Code": "NoResult"})):
                again.append(entry)
        if again:
            pause = ENTRY_PAUSE_SECONDS * 2 ** max(entry.tries for entry in again)
            gevent.spawn_later(pause * random.uniform(0.5, 1), self._again, again)

    def _may_try_again(self, entry: _Entry, fault: dict[str, Any]) -> bool:
        """Whether this failed entry is sent again; if not, its caller is told."""
        entry.tries += 1
        code, message = bare(str(fault["Code"])), str(fault.get("Message", ""))[:300]
        final = bool(fault.get("SenderFault"))
        if code not in self._expected:
            logs.get().warning("sqs.entry_failed", queue=self._queue, code=code, why=message, tries=entry.tries,
                               again=not final and entry.tries < ENTRY_TRIES)
        if final:
            entry.result.set_exception(Refused(code, message))
        elif entry.tries >= ENTRY_TRIES:
            entry.result.set_exception(BusUnavailable(f"SQS refused an entry {entry.tries} times: {code}: {message}"))
        return not entry.result.ready()

    def _again(self, entries: list[_Entry]) -> None:
        self._waiting[:0] = entries
        self._start()
