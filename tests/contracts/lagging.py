"""A DynamoDB whose indexes lag, as AWS's do and the emulator's never do, and that holds to AWS's limits.

Queries and scans of an index are answered from a shadow table, which follows the table itself some moments later: each
write by a delay of its own, so that different items overtake one another, while one item's writes stay in order.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

from gevent.lock import RLock

from nommerd.store.base import Store
from nommerd.store.dynamodb import DynamoStore
from nommerd.store.dynamodb_table import table
from tests.emulator import emulator

T = TypeVar("T")
LAG_SECONDS = (0.02, 0.12)
SOON_SECONDS = 10.0
Key = tuple[str, str]


@cache
def client() -> Any:
    """The emulator's DynamoDB; to make a client takes longer than most tests."""
    return emulator().client("dynamodb")


def new_table() -> str:
    """A table of its own for one test; its name."""
    name = f"test-{uuid4().hex}"
    client().create_table(**table(name))
    return name


class LaggingClient:
    """In front of the emulator's client: everything goes through, but indexes are read from the shadow."""

    def __init__(self, name: str, *, lag_seconds: tuple[float, float] = LAG_SECONDS, seed: int = 7) -> None:
        self._client, self._name, self._lag = client(), name, lag_seconds
        self._shadow = new_table()
        self._random = random.Random(seed)
        self.torn: Callable[[str], bool] = lambda partition: False  # which partitions of indexes are up to date
        self._lock = RLock()
        self._coming: dict[Key, list[tuple[float, dict[str, Any] | None]]] = {}  # when, and the item as of then

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def put_item(self, **arguments: Any) -> Any:
        return self._written([arguments["Item"]], lambda: self._client.put_item(**arguments))

    def update_item(self, **arguments: Any) -> Any:
        return self._written([arguments["Key"]], lambda: self._client.update_item(**arguments))

    def delete_item(self, **arguments: Any) -> Any:
        return self._written([arguments["Key"]], lambda: self._client.delete_item(**arguments))

    def batch_write_item(self, **arguments: Any) -> Any:
        keys = [request["DeleteRequest"]["Key"] for request in arguments["RequestItems"][self._name]]
        return self._written(keys, lambda: self._client.batch_write_item(**arguments))

    def query(self, **arguments: Any) -> Any:
        return self._read(self._client.query, arguments)

    def scan(self, **arguments: Any) -> Any:
        return self._read(self._client.scan, arguments)

    def _read(self, read: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if "IndexName" not in arguments:
            return read(**arguments)
        assert not arguments.get("ConsistentRead"), "AWS refuses consistent reads of a global index"
        if self.torn(arguments.get("ExpressionAttributeValues", {}).get(":in", {}).get("S", "")):
            return read(**arguments)
        self._catch_up(time.monotonic())
        return read(**{**arguments, "TableName": self._shadow})

    def _written(self, items: list[dict[str, Any]], write: Callable[[], T]) -> T:
        """The write, and what is there afterwards on its way to the shadow."""
        answer = write()
        with self._lock:
            for item in items:
                key = {"pk": item["pk"], "sk": item["sk"]}
                now = self._client.get_item(TableName=self._name, Key=key, ConsistentRead=True).get("Item")
                queue = self._coming.setdefault((key["pk"]["S"], key["sk"]["S"]), [])
                ready = time.monotonic() + self._random.uniform(*self._lag)
                queue.append((max(ready, queue[-1][0]) if queue else ready, now))
        return answer

    def let_go(self) -> None:
        """The shadow catches up at once with all that was written until now."""
        self._catch_up(math.inf)

    def _catch_up(self, now: float) -> None:
        with self._lock:
            for (pk, sk), queue in list(self._coming.items()):
                ready = [item for at, item in queue if at <= now]
                del queue[:len(ready)]
                if not queue:
                    del self._coming[pk, sk]
                if ready and ready[-1] is not None:
                    self._client.put_item(TableName=self._shadow, Item=ready[-1])
                elif ready:
                    self._client.delete_item(TableName=self._shadow, Key={"pk": {"S": pk}, "sk": {"S": sk}})


class LaggingStore(DynamoStore):
    """Jobs in a table whose indexes lag."""


def lagging_store(grace: float) -> LaggingStore:
    """An empty one on the shared emulator."""
    name = new_table()
    return LaggingStore(LaggingClient(name), name, grace)


def soon(store: Store, see: Callable[[], T], expected: T) -> None:
    """What one sees in this store's indexes is as expected: at once, or where they lag within SOON_SECONDS."""
    deadline = time.monotonic() + (SOON_SECONDS if isinstance(store, LaggingStore) else 0.0)
    while (seen := see()) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == expected
