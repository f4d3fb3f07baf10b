"""The figures of a project and of the installation, computed from the store and the bus for all who ask, now and then.

However many dashboards and scrapes ask, each figure is computed once in STATS_SECONDS; where each look costs money, in
DEAR_STATS_SECONDS. Of the last day the hours that are over are read again every few minutes, the present one each time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import gevent
from gevent.lock import RLock

from nommerd.api.view import timestamp
from nommerd.api.workers import SILENT, state_of
from nommerd.bus.base import Bus, Depth
from nommerd.control import Control, Switch
from nommerd.errors import InfrastructureError
from nommerd.job import Job, JobState, Priority, utcnow
from nommerd.store.base import FAR_FUTURE, Ending, Store, WorkerRecord

T = TypeVar("T")
STATS_SECONDS, DEAR_STATS_SECONDS = 2.0, 60.0
FAILURE_SECONDS = 1.0  # for so long a store out of reach is not asked again
PAST_SECONDS = 300.0  # between looks at the hours that are over: a retry takes a job out of them
ENDINGS_MAX = 20_000  # of a day, and of an hour: the newest; older ones are not counted
ENDINGS_A_SECOND = 500  # are read on average: where an hour has thousands, it is read less often
WEBHOOKS_MAX = 1_000  # jobs with events due that are counted
WEBHOOKS_SECONDS = 10.0
PAGE = 100
HOURS = 24
PROJECTS_KEPT = 256
_HOUR = timedelta(hours=1)
_FAILED = frozenset({JobState.ERROR, JobState.ABANDONED})


@dataclass(frozen=True, slots=True)
class WebhooksDue:
    """Jobs with events that their receivers have not accepted; of them, those whose receiver has refused or failed."""

    due: int = 0
    failing: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How jobs ended: by the hour that it was, and by the code of their error."""

    finished: Counter[datetime] = field(default_factory=Counter)
    failed: Counter[datetime] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(endings: Iterable[Ending]) -> Ended:
        ended = Ended()
        for one in endings:
            if one.state is JobState.FINISHED:
                ended.finished[_floor(one.at)] += 1
            elif one.state in _FAILED:
                ended.failed[_floor(one.at)] += 1
            if one.code is not None:
                ended.codes[one.code] += 1
        return ended

    def __add__(self, other: Ended) -> Ended:
        return Ended(self.finished + other.finished, self.failed + other.failed, self.codes + other.codes)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one project."""

    at: datetime
    oldest_pending: datetime | None
    states: Mapping[JobState, int]

    @property
    def oldest_pending_seconds(self) -> float | None:
        """For how long the longest waiting PENDING job has been waiting."""
        return None if self.oldest_pending is None else max(0.0, (self.at - self.oldest_pending).total_seconds())


@dataclass(frozen=True, slots=True)
class Installation:
    """Of all projects."""

    switch: Switch
    depth: Depth
    dead_changes: int
    workers: Sequence[WorkerRecord]
    at: datetime

    @property
    def dead_letters(self) -> int:
        """On both queues."""
        return self.depth.dead + self.dead_changes

    @property
    def by_state(self) -> Counter[str]:
        """How many workers are ACTIVE, DRAINING and SILENT."""
        states = Counter({"ACTIVE": 0, "DRAINING": 0, SILENT: 0})
        states.update(state_of(one, self.at) for one in self.workers)
        del states["TERMINATED"]
        return states

    @property
    def slots(self) -> tuple[int, int]:
        """Of the workers that report: how many slots they have, and how many are busy."""
        alive = [one for one in self.workers if state_of(one, self.at) in ("ACTIVE", "DRAINING")]
        return sum(one.slots for one in alive), sum(len(one.active) for one in alive)


@dataclass(slots=True)
class _Shared:
    """A value that is made anew when it is older than asked for; by one, for all who ask at once."""

    value: Any = None
    failure: InfrastructureError | None = None
    at: float | None = None
    lock: RLock = field(default_factory=RLock)

    def get(self, make: Callable[[], T], seconds: float, clock: Callable[[], float]) -> T:
        with self.lock:
            if self.at is None or clock() - self.at >= (FAILURE_SECONDS if self.failure else seconds):
                self._make(make)
                self.at = clock()  # how long it took does not make it old
            if self.failure is not None:
                raise self.failure
            value: T = self.value
            return value

    def _make(self, make: Callable[[], Any]) -> None:
        """A store out of reach is not asked once more for each who waited."""
        try:
            self.value, self.failure = make(), None
        except InfrastructureError as failure:
            self.value, self.failure = None, failure


@dataclass(slots=True)
class _Project:
    """What is kept of one project."""

    figures: _Shared = field(default_factory=_Shared)
    ended: _Shared = field(default_factory=_Shared)
    past: _Shared = field(default_factory=_Shared)
    hour: datetime | None = None
    endings: int = 0  # in the present hour, when it was last read


class Stats:
    """Figures, no older than a few seconds; all calls may raise StoreUnavailable or BusUnavailable."""

    def __init__(self, store: Store, bus: Bus, control: Control, *, clock: Callable[[], float] = time.monotonic,
                 now: Callable[[], datetime] = utcnow) -> None:
        self._store, self._bus, self._control, self._clock, self._now = store, bus, control, clock, now
        self._seconds = STATS_SECONDS if store.look_seconds <= Store.look_seconds else DEAR_STATS_SECONDS
        self._projects: dict[str, _Project] = {}
        self._installation, self._webhooks = _Shared(), _Shared()

    def forget(self) -> None:
        """The installation was changed here: the next who asks sees it."""
        self._installation.at = None

    def figures(self, project: str) -> Figures:
        """Those of a project."""
        def make() -> Figures:
            return Figures(self._now(), self._store.oldest_pending(project), self._store.count(project))

        return self._of(project).figures.get(make, self._seconds, self._clock)

    def ended(self, project: str) -> Ended:
        """How its jobs ended in the last day."""
        kept = self._of(project)
        seconds = max(self._seconds, kept.endings / ENDINGS_A_SECOND)
        return kept.ended.get(lambda: self._ended(project, kept, self._now()), seconds, self._clock)

    def installation(self) -> Installation:
        """Those of all projects."""
        return self._installation.get(self._look, self._seconds, self._clock)

    def _of(self, project: str) -> _Project:
        kept = self._projects.pop(project, None) or _Project()
        self._projects[project] = kept
        while len(self._projects) > PROJECTS_KEPT:
            del self._projects[next(iter(self._projects))]
        return kept

    def _look(self) -> Installation:
        return Installation(switch=self._control.switch(), depth=self._bus.jobs.depth(),
                            dead_changes=self._bus.changes.depth().dead, workers=self._store.workers(), at=self._now())

    def _ended(self, project: str, kept: _Project, now: datetime) -> Ended:
        hour = _floor(now)
        if kept.hour != hour:
            kept.past.at, kept.hour = None, hour

        def past() -> Ended:
            endings = self._store.endings(project, now - HOURS * _HOUR, ENDINGS_MAX)
            return Ended.of(one for one in endings if one.at < hour)

        older = kept.past.get(past, PAST_SECONDS, self._clock)
        present = self._store.endings(project, hour, ENDINGS_MAX)
        kept.endings = len(present)
        return older + Ended.of(present)

    def webhooks(self) -> Mapping[str, WebhooksDue]:
        """By project; none is left out but those without any."""
        return self._webhooks.get(self._count_webhooks, max(WEBHOOKS_SECONDS, self._seconds), self._clock)

    def _count_webhooks(self) -> Mapping[str, WebhooksDue]:
        due, failing, seen = Counter[str](), Counter[str](), 0
        after: Job | None = None
        while seen < WEBHOOKS_MAX:
            page = self._store.webhooks_due(FAR_FUTURE, PAGE, after)
            due.update(job.project for job in page)
            failing.update(job.project for job in page if job.webhook.tries)
            seen += len(page)
            if len(page) < PAGE:
                break
            after = page[-1]
            gevent.sleep(0)  # decoding them takes its time, and others wait
        return {project: WebhooksDue(count, failing[project]) for project, count in due.items()}


def stats_json(stats: Stats, project: str, of_all: bool) -> dict[str, Any]:
    """The answer; `of_all`: the asking token concerns the installation."""
    figures, ended = stats.figures(project), stats.ended(project)
    webhooks = stats.webhooks().get(project, WebhooksDue())
    return {"at": timestamp(figures.at), "project": project,
            "oldest_pending_seconds": figures.oldest_pending_seconds,
            "states": {state.value: figures.states.get(state, 0) for state in JobState},
            "webhooks": {"due": webhooks.due, "failing": webhooks.failing}, "errors": _errors(ended),
            "throughput": _throughput(figures.at, ended), **_of_all(stats.installation() if of_all else None)}


def _of_all(installation: Installation | None) -> dict[str, Any]:
    if installation is None:
        return {"paused": None, "queue": None, "dead_letters": None, "workers": None}
    states, (slots, busy) = installation.by_state, installation.slots
    return {"paused": paused_json(installation.switch), "dead_letters": installation.dead_letters,
            "queue": {priority.value: installation.depth.by_priority.get(priority, 0) for priority in Priority},
            "workers": {"active": states["ACTIVE"] + states["DRAINING"], "silent": states[SILENT], "slots": slots,
                        "busy": busy}}


def paused_json(switch: Switch) -> dict[str, Any] | None:
    """Since when and by whom; None while work is begun."""
    return {"since": timestamp(switch.since), "by": switch.by} if switch.paused and switch.since is not None else None


def _errors(ended: Ended) -> list[dict[str, Any]]:
    """By code, the most frequent first."""
    found = sorted(ended.codes.items(), key=lambda item: (-item[1], item[0]))
    return [{"code": code, "count": count} for code, count in found]


def _throughput(at: datetime, ended: Ended) -> list[dict[str, Any]]:
    """By hour, the oldest first; the last is the present one."""
    last = _floor(at)
    hours = [last - back * _HOUR for back in range(HOURS - 1, -1, -1)]
    return [{"hour": timestamp(hour), "finished": ended.finished[hour], "failed": ended.failed[hour]} for hour in hours]


def _floor(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
