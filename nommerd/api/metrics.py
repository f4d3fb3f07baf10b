"""GET /metrics of the feeder: what it counted itself, and the figures of the installation at this moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nommerd import metrics, watching
from nommerd.api.access import Scope
from nommerd.api.route import Answer, Call, Route
from nommerd.api.stats import Stats
from nommerd.errors import InfrastructureError
from nommerd.job import JobState, Priority
from nommerd.metrics import Counts, Gauge, Labels, Who
from nommerd.runtime import in_pool

WATCHED = ("jobs", "repeated", "refused", "ignored")


def metrics_route(stats: Stats, *, projects: Callable[[], Sequence[str]], leads: Callable[[], bool], disk: Path,
                  watches: Callable[[], Mapping[str, watching.Counts]], nodes: Callable[[], int | None]) -> Route:
    """`projects`: of which jobs are counted; `disk`: where this feeder keeps its files; `nodes`: how many run or are about to,
    None without a fleet."""

    def scrape(call: Call) -> Answer:
        gauges = [*_own(leads(), nodes(), watches()), *_installation(stats, projects), *metrics.disks(disk_usage(disk))]
        text, content_type = metrics.exposition(Who.FEEDER, gauges, call.header("Accept") or "")
        return Answer(body=text, content_type=content_type)

    return Route(method="GET", path="/metrics", scope=Scope.READ, installation=True, handle=scrape, answers={200: None},
                 summary="Metrics for Prometheus, as OpenMetrics where that is asked for.",
                 produces=("text/plain", "application/openmetrics-text"),
                 headers={"Accept": "application/openmetrics-text, or Prometheus' own text"})


def disk_usage(path: Path) -> dict[str, tuple[int, int]]:
    """Free and total bytes by path; nothing where that cannot be told."""
    try:
        usage = in_pool(shutil.disk_usage, path)
    except OSError:
        return {}
    return {str(path): (usage.free, usage.total)}


def _own(leads: bool, nodes: int | None, watches: Mapping[str, watching.Counts]) -> Iterator[Gauge | Counts]:
    yield Gauge.of("leader", "Whether this feeder leads: sweeps, delivers webhooks, runs the fleet", leads)
    if nodes is not None:
        yield Gauge.of("fleet_nodes", "EC2 nodes that run or are about to, as the leading feeder saw", nodes)
    yield Counts("watch_events", "What became of the events of watched buckets since this feeder leads", Who.FEEDER,
                 ("watch", "result"), values={(name, what): getattr(counts, what) for name, counts in watches.items()
                                              for what in WATCHED})


def _installation(stats: Stats, projects: Callable[[], Sequence[str]]) -> list[Gauge]:
    """From the store and the bus; where they are out of reach, that alone is told: what else is known is needed then."""
    try:
        found = [*_jobs(stats, projects()), *_queue(stats), *_webhooks(stats), *_workers(stats)]
    except InfrastructureError:
        return [_reach(False)]
    return [_reach(True), *found]


def _reach(reached: bool) -> Gauge:
    return Gauge.of("store_up", "Whether the store and the bus could be asked", reached)


def _jobs(stats: Stats, projects: Sequence[str]) -> Iterator[Gauge]:
    values: dict[Labels, float] = {}
    oldest = 0.0
    for project in projects:
        figures = stats.figures(project)
        values.update({(project, state.value): figures.states.get(state, 0) for state in JobState})
        oldest = max(oldest, figures.oldest_pending_seconds or 0.0)
    yield Gauge("jobs", "Jobs on record, by project and state", values, ("project", "state"))
    yield Gauge.of("oldest_pending_seconds", "For how long the longest waiting job has been PENDING; 0 without any", oldest)


def _queue(stats: Stats) -> Iterator[Gauge]:
    found = stats.installation()
    yield Gauge("queue_jobs", "Messages that wait for a worker, by priority",
                {(priority.value,): found.depth.by_priority.get(priority, 0) for priority in Priority}, ("priority",))
    yield Gauge.of("dead_letters_waiting", "Dead letters on the queues", found.dead_letters)
    yield Gauge.of("paused", "Whether the operator has paused the installation", found.switch.paused)


def _webhooks(stats: Stats) -> Iterator[Gauge]:
    found = stats.webhooks().values()
    yield Gauge.of("webhooks_due", "Jobs with events that their receiver has not accepted", sum(one.due for one in found))
    yield Gauge.of("webhooks_failing", "Of those, the ones that were tried in vain", sum(one.failing for one in found))


def _workers(stats: Stats) -> Iterator[Gauge]:
    found = stats.installation()
    slots, busy = found.slots
    yield Gauge("workers", "Workers by state; SILENT ones have missed three heartbeats",
                {(state,): count for state, count in found.by_state.items()}, ("state",))
    yield Gauge.of("slots", "Slots of the workers that report", slots)
    yield Gauge.of("slots_busy", "Of those, the ones with a job", busy)
