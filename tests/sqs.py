"""SQS buses on the emulator for tests: their queues are made from nommerd's own definitions."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from nommerd.bus import open_bus
from nommerd.bus.base import Bus
from nommerd.bus.sqs_queues import queues
from nommerd.job import new_id
from tests.aws_proxy import AwsProxy
from tests.emulator import REGION, emulator
from tests.strict_sqs import StrictSqs

ACCOUNT = "123456789012"  # the emulator's


def make_queues(client: Any, prefix: str) -> None:
    """Every queue of the bus `sqs://PREFIX`."""
    for queue in queues(prefix, REGION, ACCOUNT):
        client.create_queue(QueueName=queue.name, Attributes=queue.attributes)


def new_prefix() -> str:
    """A prefix nobody has, with its queues made."""
    prefix = f"test-{new_id()}"
    make_queues(emulator().client("sqs"), prefix)
    return prefix


def new_bus(url: str | None = None, prefix: str | None = None) -> Bus:
    """A bus of its own as a daemon opens it, reached at `url` (the emulator, or a proxy before it)."""
    return open_bus(f"sqs://{prefix or new_prefix()}", Path("/nonexistent"), emulator().clients(url))


@cache
def strict() -> AwsProxy:
    """A proxy that holds SQS's rules, shared by the tests of this process: set no faults on it."""
    proxy = AwsProxy()
    proxy.rules.append(StrictSqs())
    return proxy
