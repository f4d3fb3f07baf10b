"""The backends that each contract suite runs on. A new backend is one more entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nommerd.bus import open_bus
from nommerd.bus.base import Bus, Queue
from nommerd.bus.memory import MemoryBus
from nommerd.bus.sqs import SqsQueue
from nommerd.sqlite import Database
from nommerd.store.base import RECIPE_GRACE_SECONDS, Store
from nommerd.store.dynamodb import DynamoStore
from nommerd.store.memory import MemoryStore
from nommerd.store.sqlite import SqliteStore
from tests.contracts.lagging import client, lagging_store, new_table
from tests.simpledb_stores import HARD, new_store
from tests.sqs import new_bus, strict

OpenStore = Callable[..., Store]
STORES: dict[str, OpenStore] = {
    "memory": lambda folder, grace=RECIPE_GRACE_SECONDS: MemoryStore(grace),
    "sqlite": lambda folder, grace=RECIPE_GRACE_SECONDS: SqliteStore(Database.open(folder / "nommerd.db"), grace),
    "dynamodb": lambda folder, grace=RECIPE_GRACE_SECONDS: DynamoStore(client(), new_table(), grace),
    "dynamodb, indexes lagging": lambda folder, grace=RECIPE_GRACE_SECONDS: lagging_store(grace),
    "simpledb": lambda folder, grace=RECIPE_GRACE_SECONDS: new_store(grace),
    "simpledb, small pages": lambda folder, grace=RECIPE_GRACE_SECONDS: new_store(grace, **HARD),
}
BUSES: dict[str, Callable[[Path], Bus]] = {
    "memory": lambda folder: MemoryBus(),
    "sqlite": lambda folder: open_bus("sqlite:///nommerd.db", folder),
    "sqs": lambda folder: new_bus(strict().url),
}


EASIER = ("dynamodb", "simpledb")  # what holds where answers come late or in parts holds where they are whole and at once


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] if name in EASIER else []) for name in STORES])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Opens an empty store of the backend; `grace` is how long recipes without jobs are kept."""
    opened: list[Store] = []

    def make(**options: Any) -> Store:
        opened.append(STORES[request.param](tmp_path, **options))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    opened = BUSES[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def send_text(bus: Bus) -> Callable[[Queue, str], None]:
    """Puts bytes that no version of ours wrote into a queue."""
    def send(queue: Queue, text: str) -> None:
        if isinstance(queue, SqsQueue):
            queue.sources[1].ask("send_message", MessageBody=text)
        else:
            queue._put(text, 1)  # type: ignore[attr-defined]

    return send
