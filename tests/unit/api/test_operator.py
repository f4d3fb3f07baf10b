"""Workers, drain, pause and resume, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from nommerd import lifecycle
from nommerd.api.access import Scope
from nommerd.api.stats import Stats
from nommerd.bus.base import Bus
from nommerd.control import Control, Heed
from nommerd.errors import Problem
from nommerd.job import Job, JobState, Key, Owner, new_id, utcnow
from nommerd.store.base import Ending, Store, StoreUnavailable, WorkerRecord
from nommerd.store.memory import MemoryStore
from tests.unit.api.calls import Api

NOW = utcnow()
WORKER = WorkerRecord(name="w1", node="n", state="ACTIVE", slots=2, active=(Key("p", "j"),), version="1",
                      encoders=("libx264",), reported=NOW, started=NOW - timedelta(hours=1), heartbeat_seconds=60,
                      disk_free_bytes=1, disk_total_bytes=2)


def states(api: Api) -> dict[str, str]:
    return {one["name"]: one["state"] for one in api.call("GET", "/v1/workers").json["workers"]}


def token(api: Api, project: str, *scopes: Scope) -> str:
    return api.tokens.make("t", project, scopes)[1].reveal()


# --- workers ------------------------------------------------------------------------------------------------------


def test_a_worker_is_shown_as_its_heartbeat_says(api: Api) -> None:
    api.store.put_worker(replace(WORKER, reported=utcnow()))
    (worker,) = api.call("GET", "/v1/workers").json["workers"]
    assert worker["started"].endswith("Z") and worker["reported"].endswith("Z")
    assert {key: worker[key] for key in worker.keys() - {"started", "reported"}} == {
        "name": "w1", "node": "n", "state": "ACTIVE", "slots": 2, "busy": 1, "jobs": [{"project": "p", "id": "j"}],
        "version": "1", "encoders": ["libx264"], "disk": {"free_bytes": 1, "total_bytes": 2}}


def test_one_that_misses_three_heartbeats_is_silent_and_one_that_ended_long_ago_is_left_out(api: Api) -> None:
    day = timedelta(days=1)
    for name, state, ago in (("late", "ACTIVE", timedelta(seconds=175)), ("silent", "DRAINING", timedelta(seconds=190)),
                             ("ended", "TERMINATED", day / 2), ("gone", "TERMINATED", day + timedelta(minutes=1)),
                             ("dead", "ACTIVE", 3 * day)):
        api.store.put_worker(replace(WORKER, name=name, state=state, reported=utcnow() - ago))
    assert states(api) == {"late": "ACTIVE", "silent": "SILENT", "ended": "TERMINATED", "dead": "SILENT"}


def test_an_unknown_worker_and_one_that_ended_cannot_be_drained(api: Api) -> None:
    api.store.put_worker(replace(WORKER, name="ended", state="TERMINATED"))
    api.store.put_worker(replace(WORKER, name="old", started=None, reported=utcnow()))
    for name, status, code in (("nobody", 404, "request.unknown_worker"), ("ended", 409, "request.wrong_state"),
                               ("old", 409, "request.wrong_state")):
        answer = api.call("POST", f"/v1/workers/{name}/drain")
        assert (answer.status, answer.codes, answer.places) == (status, [code], ["path.name"])


def test_a_drain_is_of_one_life_of_one_worker(api: Api) -> None:
    api.store.put_worker(WORKER)
    assert api.call("POST", "/v1/workers/w1/drain").status == 202
    assert WORKER.started is not None
    lives = [Heed(api.control, name, started) for name, started in
             (("w1", WORKER.started), ("w1", WORKER.started + timedelta(seconds=5)), ("w2", WORKER.started))]
    assert [life.look() for life in lives] == [True, False, False]
    assert [life.draining for life in lives] == [True, False, False]


# --- pause --------------------------------------------------------------------------------------------------------


def test_a_pause_keeps_who_said_it_first_until_somebody_resumes(api: Api) -> None:
    heed = Heed(api.control, "w1", NOW)
    first = api.call("POST", "/v1/pause")
    assert first.status == 200 and first.json["paused"]["by"] == "token file"
    again = api.call("POST", "/v1/pause", token=token(api, "default", Scope.OPERATE))
    assert again.json == first.json
    assert heed.look() and heed.held and not heed.look()
    assert api.call("POST", "/v1/resume").json == {"paused": None} == api.call("POST", "/v1/resume").json
    assert heed.look() and not heed.held


def test_orders_stand_while_the_store_is_out_of_reach(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.call("POST", "/v1/pause")
    heed = Heed(api.control, "w1", NOW)
    heed.look()

    def unavailable(*key: str) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(api.store, "documents", unavailable)
    assert not heed.look() and heed.paused


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/workers"), ("POST", "/v1/workers/w1/drain"), ("POST", "/v1/pause"),
                                              ("POST", "/v1/resume")])
def test_only_the_operator_may_and_other_projects_may_not(api: Api, method: str, path: str) -> None:
    api.store.put_worker(WORKER)
    assert api.call(method, path, token=token(api, "default", Scope.READ, Scope.SUBMIT)).status == 403
    assert api.call(method, path, token=token(api, "other", Scope.ADMIN)).status == 403
    assert api.call(method, path, token=token(api, "default", Scope.OPERATE)).status < 300


# --- stats --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Counting(MemoryStore):
    """Says how often it was asked for counts, and for endings since when."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.away = 0, False
        self.looks: list[datetime] = []

    def endings(self, project: str, since: datetime, limit: int) -> Sequence[Ending]:
        self.looks.append(since)
        return super().endings(project, since, limit)

    def count(self, project: str) -> dict[JobState, int]:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return super().count(project)


def make_stats(api: Api, store: Store, bus: Bus) -> tuple[Stats, Clock]:
    clock = Clock()
    return Stats(store, bus, Control(store), clock=clock), clock


def fail(api: Api, code: str, **more: Any) -> None:
    job_id = api.submit(**more).json["id"]
    key, owner, now = Key("default", job_id), Owner(worker="w", node="n", claim=new_id()), utcnow()
    api.store.update(key, lifecycle.claim(owner, "m", 30, now))
    problem = Problem(code=code, message="m", hint="", retryable=False)
    api.store.update(key, lifecycle.fail(owner, problem, (), 1, now))


def test_the_figures_are_those_of_the_jobs(api: Api) -> None:
    for code in ("input.damaged", "input.truncated"):
        fail(api, code)
    fail(api, "input.damaged", notify_url="https://1.1.1.1/hook")
    api.submit(priority="low")
    api.store.put_worker(replace(WORKER, reported=utcnow()))
    api.store.put_worker(replace(WORKER, name="w2", active=(), reported=utcnow() - timedelta(hours=1)))
    stats = api.call("GET", "/v1/stats").json
    assert 0 <= stats["oldest_pending_seconds"] < 60
    assert stats["states"] == {**{state.value: 0 for state in JobState}, "PENDING": 1, "ERROR": 3}
    assert stats["queue"] == {"high": 0, "normal": 3, "low": 1}
    assert stats["errors"] == [{"code": "input.damaged", "count": 2}, {"code": "input.truncated", "count": 1}]
    assert len(stats["throughput"]) == 24 and sum(hour["failed"] for hour in stats["throughput"][-2:]) == 3
    assert stats["workers"] == {"active": 1, "silent": 1, "slots": 2, "busy": 1}
    assert (stats["paused"], stats["dead_letters"], stats["webhooks"]) == (None, 0, {"due": 1, "failing": 0})


def test_a_project_sees_its_own_figures_and_nothing_of_the_installation(api: Api) -> None:
    fail(api, "input.damaged")
    api.call("POST", "/v1/pause")
    stats = api.call("GET", "/v1/stats", token=token(api, "other", Scope.READ)).json
    assert stats["project"] == "other" and sum(stats["states"].values()) == 0 and stats["errors"] == []
    assert [stats[name] for name in ("paused", "queue", "dead_letters", "workers")] == [None] * 4


def test_a_pause_is_in_the_figures_at_once(api: Api) -> None:
    assert api.call("GET", "/v1/stats").json["paused"] is None
    paused = api.call("POST", "/v1/pause").json["paused"]
    assert api.call("GET", "/v1/stats").json["paused"] == paused


def test_however_many_ask_the_store_is_asked_once_in_two_seconds(api: Api) -> None:
    store = Counting()
    stats, clock = make_stats(api, store, api.bus)
    first = stats.figures("p")
    clock.time = 1.9
    assert stats.figures("p") is first and store.asked == 1
    clock.time = 2.1
    assert stats.figures("p") is not first and store.asked == 2
    stats.figures("q")
    assert store.asked == 3


def test_a_store_out_of_reach_is_not_asked_again_by_everybody(api: Api) -> None:
    store = Counting()
    store.away = True
    stats, clock = make_stats(api, store, api.bus)
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            stats.figures("p")
    assert store.asked == 1
    store.away, clock.time = False, 1.5
    assert stats.figures("p").states == {}


def test_hours_that_are_over_are_read_once_in_five_minutes_and_the_present_one_each_time(api: Api) -> None:
    now = utcnow().replace(minute=30, second=0, microsecond=0)
    store = Counting()

    def job(minutes_ago: int) -> None:
        at = now - timedelta(minutes=minutes_ago)
        made = Job(id=new_id(), pipeline="p", recipe="r", source="s", dest="d", created=at, updated=at)
        store.create(made.move(JobState.FINISHED, at))

    clock = Clock()
    stats = Stats(store, api.bus, Control(store), clock=clock, now=lambda: now)
    for minutes in (0, 10, 29, 31, 23 * 60 + 20, 24 * 60 + 20):
        job(minutes)
    ended = stats.ended("default")
    assert sum(ended.finished.values()) == 5, "one is more than a day old"
    assert ended.finished[now.replace(minute=0, second=0, microsecond=0)] == 3
    job(1)
    clock.time = 3
    assert sum(stats.ended("default").finished.values()) == 6
    assert [now - since for since in store.looks] == [timedelta(days=1), timedelta(minutes=30), timedelta(minutes=30)]
