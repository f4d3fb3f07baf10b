"""A store whose writes fail as a plan says: before they are applied, or after, so that only the answer is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

from nommerd.job import Job, Key
from nommerd.store.base import Store, StoreUnavailable


class Fate(Enum):
    """What becomes of one write."""

    WELL = "applied and answered"
    REFUSED = "not applied"
    LOST = "applied, but the answer is lost"


class LossyStore(Store):
    """Another store behind a bad line. `fates` says what becomes of each write, then all goes well."""

    def __init__(self, store: Store, *fates: Fate) -> None:
        self.store = store
        self.fates: Iterator[Fate] = iter(fates)
        self.writes = 0

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        self.writes += 1
        fate = next(self.fates, Fate.WELL)
        if fate is not Fate.REFUSED:
            write(*arguments)
        if fate is not Fate.WELL:
            raise StoreUnavailable(fate.value)

    def create(self, job: Job) -> None:
        self._write(self.store.create, job)

    def swap(self, job: Job, expected_version: int) -> None:
        self._write(self.store.swap, job, expected_version)

    def get(self, key: Key) -> Job:
        return self.store.get(key)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: LossyStore, *arguments: Any) -> Any:
        return getattr(self.store, name)(*arguments)

    return method


for _name in Store.__abstractmethods__ - {"create", "swap", "get"}:
    setattr(LossyStore, _name, _passed_on(_name))
LossyStore.__abstractmethods__ = frozenset()
