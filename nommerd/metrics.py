"""What this process counts and measures, for whoever scrapes it.

Modules that know of something worth counting call `add` or `observe` on an object here, from the hub's thread: a few
dictionary operations, and nothing else happens until somebody asks. `exposition` then makes the text, and only it imports
prometheus-client. Labels have few values: no job, no path, no name that a user gave but projects.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING

import gevent

from nommerd import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "nommerd_"
HUB_LOOK_SECONDS = 0.25
Labels = tuple[str, ...]


class Who(Flag):
    """Which daemon tells of it."""

    FEEDER = auto()
    WORKER = auto()
    BOTH = FEEDER | WORKER


@dataclass(slots=True)
class Counts:
    """Things that happened, by labels. Its name ends in _total where it is shown; `first` are label values told from the
    start, as 0."""

    name: str
    help: str
    who: Who
    labels: Labels = ()
    first: Iterable[Labels] = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values.update(dict.fromkeys(self.first if self.labels else [()], 0))

    def add(self, *labels: str, amount: float = 1) -> None:
        """So many more."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def metric(self) -> Metric:
        from prometheus_client.core import CounterMetricFamily

        family = CounterMetricFamily(PREFIX + self.name, self.help, labels=self.labels)
        for labels, value in sorted(self.values.items()):
            family.add_metric(labels, value)
        return family


@dataclass(slots=True)
class Spread:
    """How values are spread, by labels: a histogram. `bounds` are the upper ones of its buckets."""

    name: str
    help: str
    who: Who
    bounds: Sequence[float]
    labels: Labels = ()
    values: dict[Labels, list[float]] = field(default_factory=dict)  # a count for each bucket, then the sum

    def __post_init__(self) -> None:
        if not self.labels:
            self.values[()] = self._empty()

    def _empty(self) -> list[float]:
        return [0.0] * (len(self.bounds) + 2)

    def observe(self, value: float, *labels: str) -> None:
        """One more value."""
        counts = self.values.get(labels)
        if counts is None:
            counts = self.values[labels] = self._empty()
        counts[bisect_left(self.bounds, value)] += 1
        counts[-1] += value

    def metric(self) -> Metric:
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(PREFIX + self.name, self.help, labels=self.labels)
        for labels, counts in sorted(self.values.items()):
            buckets, total = [], 0.0
            for bound, count in zip([*map(str, map(float, self.bounds)), "+Inf"], counts[:-1], strict=True):
                total += count
                buckets.append((bound, total))
            family.add_metric(labels, buckets, sum_value=counts[-1])
        return family


@dataclass(frozen=True, slots=True)
class Gauge:
    """A value of this moment, by labels; made when somebody asks."""

    name: str
    help: str
    values: Mapping[Labels, float]
    labels: Labels = ()

    @staticmethod
    def of(name: str, help: str, value: float) -> Gauge:
        """One without labels."""
        return Gauge(name, help, {(): value})

    def metric(self) -> Metric:
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(PREFIX + self.name, self.help, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


RESULTS = ("accepted", "refused", "unreachable", "gone")
STATES = ("FINISHED", "ERROR", "ABANDONED", "CANCELLED")
SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)  # of stages: from a remux to a film
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SPEEDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
LAGS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)

LEASES_LOST = Counts("leases_lost", "Leases that were not renewed and were broken here", Who.BOTH)
WRITES_FENCED = Counts("writes_fenced", "Attempts whose end was not recorded: the job was no longer this worker's", Who.WORKER)
ATTEMPTS = Counts("attempts", "Attempts that ended, by outcome and the code of their error", Who.WORKER, ("outcome", "code"))
JOBS_ENDED = Counts("jobs_ended", "Jobs that this process recorded as ended, by state", Who.BOTH, ("state",),
                    [(state,) for state in STATES])
JOB_ERRORS = Counts("job_errors", "Of those, the ones with an error, by its code", Who.BOTH, ("code",))
STAGE_SECONDS = Spread("stage_seconds", "How long stages took, by kind of stage", Who.WORKER, SECONDS, ("stage",))
ENCODE_SPEED = Spread("encode_speed", "Media seconds per second of each ffmpeg command that was done", Who.WORKER, SPEEDS)
DEAD_LETTERS = Counts("dead_letters", "Dead letters that were settled from the records of their jobs", Who.FEEDER)
WEBHOOK_DELIVERIES = Counts("webhook_deliveries", "Deliveries of webhooks that were tried, by result", Who.FEEDER, ("result",),
                            [(result,) for result in RESULTS])
HTTP_REQUESTS = Counts("http_requests", "Requests that were answered", Who.FEEDER, ("route", "method", "status"))
HTTP_SECONDS = Spread("http_request_seconds", "Until answers began, without those to requests that wait for news", Who.FEEDER,
                      REQUEST_SECONDS, ("route",))
HUB_LAG = Spread("hub_lag_seconds", "How late the event loop is: what everything here waits for as well", Who.BOTH, LAGS)
ALL: tuple[Counts | Spread, ...] = (
    LEASES_LOST, WRITES_FENCED, ATTEMPTS, JOBS_ENDED, JOB_ERRORS, STAGE_SECONDS, ENCODE_SPEED, DEAD_LETTERS,
    WEBHOOK_DELIVERIES, HTTP_REQUESTS, HTTP_SECONDS, HUB_LAG)


def job_ended(state: str, code: str | None) -> None:
    """This process recorded a job as ended."""
    JOBS_ENDED.add(state)
    if code is not None:
        JOB_ERRORS.add(code)


def watch_hub() -> None:
    """Measure the event loop's lag for ever, in a greenlet of its own."""
    while True:
        due = time.perf_counter() + HUB_LOOK_SECONDS
        gevent.sleep(HUB_LOOK_SECONDS)
        HUB_LAG.observe(max(0.0, time.perf_counter() - due))


def build_info(who: Who) -> Gauge:
    """Which version of what runs."""
    return Gauge("build_info", "What runs here", {(__version__, (who.name or "").lower()): 1}, ("version", "daemon"))


def disks(usage: Mapping[str, tuple[int, int]]) -> list[Gauge]:
    """Free and total bytes, by path."""
    return [Gauge("disk_free_bytes", "What is free where this process keeps its files",
                  {(path,): free for path, (free, _) in usage.items()}, ("path",)),
            Gauge("disk_size_bytes", "How large that disk is",
                  {(path,): total for path, (_, total) in usage.items()}, ("path",))]


class _Collector:
    """What a registry of prometheus-client asks."""

    def __init__(self, who: Who, more: Iterable[Gauge | Counts]) -> None:
        self._who, self._more = who, more

    def collect(self) -> Iterator[Metric]:
        for one in ALL:
            if one.who & self._who:
                yield one.metric()
        for other in self._more:
            yield other.metric()


def exposition(who: Who, more: Iterable[Gauge | Counts], accept: str) -> tuple[bytes, str]:
    """The text and its content type: as OpenMetrics where `accept` wants that, else as Prometheus has it. `more` is told
    besides what this module counts for that daemon."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(who, [build_info(who), *more]))
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
