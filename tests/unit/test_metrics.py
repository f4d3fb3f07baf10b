"""What is counted is shown as prometheus-client itself would show it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nommerd import metrics
from nommerd.metrics import Counts, Gauge, Spread, Who, exposition
from tests.rig import wait_until
from tests.unit.api.calls import Api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    yield Api(tmp_path)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text.decode()) for sample in family.samples}


def test_a_spread_has_the_buckets_that_the_clients_own_histogram_has() -> None:
    registry = CollectorRegistry()
    bounds = (0.1, 1, 2.5)
    theirs = Histogram("nommerd_x", "x", ["kind"], registry=registry, buckets=bounds)
    ours = Spread("x", "x", Who.WORKER, bounds, ("kind",))
    for value in (0.0, 0.1, 0.10001, 1, 2, 2.5, 1000):
        theirs.labels("a").observe(value)
        ours.observe(value, "a")
    shown = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in ours.metric().samples}
    assert shown == {key: value for key, value in samples(generate_latest(registry)).items() if "_created" not in key[0]}


def test_known_labels_are_told_from_the_start_and_others_once_they_come() -> None:
    counts = Counts("things", "x", Who.BOTH, ("kind",), [("a",)])
    assert [(sample.labels, sample.value) for sample in counts.metric().samples] == [({"kind": "a"}, 0)]
    counts.add("b")
    counts.add("b", amount=2)
    assert [(sample.labels["kind"], sample.value) for sample in counts.metric().samples] == [("a", 0), ("b", 3)]


def test_each_daemon_tells_what_is_its_own() -> None:
    names = {who: {name for name, _ in samples(exposition(who, [Gauge.of("more", "x", 1)], "")[0])} for who in Who}
    assert "nommerd_more" in names[Who.FEEDER] & names[Who.WORKER]
    assert {"nommerd_webhook_deliveries_total"} <= names[Who.FEEDER] - names[Who.WORKER]
    assert {"nommerd_writes_fenced_total"} <= names[Who.WORKER] - names[Who.FEEDER]
    assert "process_resident_memory_bytes" in names[Who.FEEDER]


def test_names_that_users_gave_are_inert_in_the_text() -> None:
    hostile = 'a"\n} nommerd_paused 1\n'
    text, _ = exposition(Who.FEEDER, [Gauge("jobs", "x", {(hostile,): 1}, ("project",))], "")
    assert samples(text)["nommerd_jobs", frozenset({("project", hostile)})] == 1
    assert not any(name == "nommerd_paused" for name, _ in samples(text))


def test_requests_are_counted_by_call_and_never_by_what_they_name(api: Api) -> None:
    before = dict(metrics.HTTP_REQUESTS.values)
    api.call("GET", "/v1/jobs/one")
    api.call("GET", "/v1/jobs/two", token="wrong")
    api.call("BREW", "/v1/teapot")
    after = {labels: count - before.get(labels, 0) for labels, count in metrics.HTTP_REQUESTS.values.items()
             if count != before.get(labels, 0)}
    assert after == {("/v1/jobs/{id}", "GET", "404"): 1, ("none", "GET", "401"): 1, ("none", "other", "404"): 1}


def test_a_request_that_waits_for_news_is_not_a_slow_one(api: Api) -> None:
    job_id = api.submit().json["id"]
    before = list(metrics.HTTP_SECONDS.values.get(("/v1/jobs/{id}",), [0.0]))
    assert api.call("GET", f"/v1/jobs/{job_id}", query="wait=0.1&after=5").status == 200
    assert list(metrics.HTTP_SECONDS.values.get(("/v1/jobs/{id}",), [0.0])) == before


def test_the_hubs_lag_is_seen_when_something_blocks_it() -> None:
    def late() -> float:
        return sum(metrics.HUB_LAG.values[()][6:-1])

    before, watch = late(), gevent.spawn(metrics.watch_hub)
    gevent.sleep(0.02)  # it has begun
    end = metrics.time.perf_counter() + 0.4
    while metrics.time.perf_counter() < end:
        pass  # as bad code would
    try:
        wait_until(lambda: late() > before, 5, "the lag is noted")
    finally:
        watch.kill()
