"""Logs are kept beside the work: few writes, the newest last, and nobody waits for them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import gevent
import pytest

from nommerd.job import JobState, Key
from nommerd.joblog import DAY_SECONDS, LogKeeper, read_logs
from nommerd.pipeline.recipe import Recipe, StageSpec
from nommerd.store.base import Document, StoreUnavailable
from nommerd.store.memory import MemoryStore
from tests.logged import captured
from tests.rig import wait_until
from tests.unit.test_worker import House

KEY = Key("default", "j1")


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    with captured() as stream:
        yield stream


class Slow(MemoryStore):
    """Each write takes a while, or fails."""

    def __init__(self, seconds: float = 0.0, failures: int = 0) -> None:
        super().__init__()
        self.seconds, self.failures, self.writes = seconds, failures, 0

    def put_document(self, document: Document, expected_version: int | None) -> None:
        self.writes += 1
        gevent.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        super().put_document(document, expected_version)


def kept(store: MemoryStore) -> list[str]:
    return [json.loads(document.body) for document in read_logs(store, KEY)]


def test_many_wishes_become_two_writes_and_the_last_one_stays() -> None:
    store, said = Slow(), ["first"]
    keeper = LogKeeper(store, KEY, 7, lambda: json.dumps(said[0]), keep_days=3)
    keeper.save()
    wait_until(lambda: kept(store) == ["first"], 5, "the first write")
    for number in range(50):
        said[0] = f"then {number}"
        keeper.save()
        gevent.sleep(0)
    keeper.finish()
    wait_until(lambda: kept(store) == ["then 49"], 5, "the last write")
    assert store.writes == 2
    document, = read_logs(store, KEY)
    assert (document.kind, document.scope, document.name) == ("log", "default/j1", "000007")
    assert document.expires == pytest.approx(time.time() + 3 * DAY_SECONDS, abs=60)


def test_nobody_waits_for_a_store_that_is_slow_and_writes_stay_in_order() -> None:
    store, said = Slow(seconds=0.2), ["early"]
    keeper = LogKeeper(store, KEY, 1, lambda: json.dumps(said[0]), keep_days=3)
    began = time.monotonic()
    keeper.save()
    gevent.sleep(0.01)  # the early text is on its way
    said[0] = "late"
    keeper.finish()
    assert time.monotonic() - began < 0.15
    wait_until(lambda: kept(store) == ["late"], 5, "the last write")


def test_what_cannot_be_written_is_dropped_and_told(log: StringIO) -> None:
    store = Slow(failures=1)
    keeper = LogKeeper(store, KEY, 1, lambda: json.dumps("x"), keep_days=3)
    keeper.save()
    wait_until(lambda: "log.not_kept" in log.getvalue(), 5, "the warning")
    keeper.finish()
    wait_until(lambda: kept(store) == ["x"], 5, "the last write")


class Retrying(MemoryStore):
    """Takes any Exception for one of its connection, as botocore does, and asks again."""

    def put_document(self, document: Document, expected_version: int | None) -> None:
        for _ in range(5):
            try:
                gevent.sleep(60)
            except Exception:
                continue


def test_a_write_that_hangs_is_dropped_in_time_whatever_its_client_makes_of_errors(
        log: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.joblog.WRITE_SECONDS", 0.05)
    LogKeeper(Retrying(), KEY, 1, lambda: json.dumps("x"), keep_days=3).finish()
    wait_until(lambda: "it took too long" in log.getvalue(), 5, "the warning")


def test_logs_come_in_the_order_of_the_attempts() -> None:
    store = MemoryStore()
    for number in (12, 2, 100):
        LogKeeper(store, KEY, number, lambda number=number: json.dumps(number), keep_days=3).finish()  # type: ignore[misc]
    wait_until(lambda: kept(store) == [2, 12, 100], 5, "three logs")


# --- on a worker ---------------------------------------------------------------------------------------------------


class Hanging(MemoryStore):
    """Takes records, and no log."""

    def put_document(self, document: Document, expected_version: int | None) -> None:
        gevent.sleep(60)


@pytest.mark.parametrize("store", [Hanging(), Slow(failures=99)], ids=["hangs", "refuses"])
def test_a_store_that_takes_no_log_neither_fails_nor_delays_a_job(store: MemoryStore, tmp_path: Path) -> None:
    house = House(tmp_path)
    house.store = store
    recipe = Recipe(pipeline="test", stages=tuple(StageSpec(name=name, id=name, settings=settings) for name, settings in (
        ("fetch", {}), ("ffmpeg", {"audio": {"codec": "aac"}}), ("upload", {}))))
    store.put_recipe(recipe.hash, recipe.document)
    house.start()
    try:
        done = house.wait(house.submit(recipe=recipe.hash), JobState.FINISHED, JobState.ERROR)
        assert done.state is JobState.FINISHED and done.attempts[0].ended is not None
        assert (done.attempts[0].ended - done.attempts[0].begun).total_seconds() < 5
    finally:
        house.stop()
