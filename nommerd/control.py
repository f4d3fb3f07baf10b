"""What the operator asks of the workers: to pause, to go on, and of one of them to drain.

It is kept as documents of the store, at which workers, sweeper and fleet look. A pause concerns everybody: no new work is
begun, what runs goes on. A drain names one life of one worker, by when that started as its own heartbeat says, so it is void
once the worker has been started anew, and nobody compares two clocks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from nommerd import logs
from nommerd.errors import InfrastructureError
from nommerd.job import utcnow
from nommerd.store.base import Conflict, Document, Store, StoreUnavailable, WorkerRecord

KIND, PAUSE, DRAIN = "control", "pause", "drain."
DRAIN_KEPT_SECONDS = 30 * 86400.0
TRIES = 5  # of a write that others race with
LOOK_SECONDS, DEAR_LOOK_SECONDS = 1.0, 10.0  # between a worker's looks: where they cost nothing, and where each costs money


@dataclass(frozen=True, slots=True)
class Switch:
    """Whether new work is begun; since when that is so, and who said it (None and empty: nobody ever did)."""

    paused: bool = False
    since: datetime | None = None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Orders:
    """All that is asked: the switch, and by worker which of its lives is to drain."""

    switch: Switch = Switch()
    drains: Mapping[str, str] = field(default_factory=dict)

    def drain(self, worker: str, started: datetime) -> bool:
        """Whether that life of the worker is to drain."""
        return self.drains.get(worker) == started.isoformat()


class Control:
    """Reads and gives orders. All methods may raise StoreUnavailable."""

    def __init__(self, store: Store, now: Callable[[], datetime] = utcnow) -> None:
        self._store, self._now = store, now

    @property
    def look_seconds(self) -> float:
        """How often a worker looks."""
        return LOOK_SECONDS if self._store.look_seconds <= Store.look_seconds else DEAR_LOOK_SECONDS

    def switch(self) -> Switch:
        """Whether the installation is paused."""
        return _switch(self._store.document(KIND, "", PAUSE))

    def orders(self) -> Orders:
        """Everything, by one look."""
        found = {document.name: document for document in self._store.documents(KIND, "")}
        drains = {name.removeprefix(DRAIN): str(_fields(document).get("started"))
                  for name, document in found.items() if name.startswith(DRAIN)}
        return Orders(_switch(found.get(PAUSE)), drains)

    def pause(self, by: str) -> Switch:
        """Begin nothing new. One that is paused already keeps who did it, and when."""
        return self._turn(True, by)

    def resume(self, by: str) -> Switch:
        """Go on."""
        return self._turn(False, by)

    def drain(self, worker: WorkerRecord, by: str) -> None:
        """Let this life of the worker finish its jobs, take no more, and end."""
        body = json.dumps({"started": None if worker.started is None else worker.started.isoformat(), "by": by})
        self._put(DRAIN + worker.name, lambda before: body, time.time() + DRAIN_KEPT_SECONDS)

    def _turn(self, paused: bool, by: str) -> Switch:
        def body(before: Document | None) -> str | None:
            if _switch(before).paused == paused:
                return None
            return json.dumps({"paused": paused, "since": self._now().isoformat(), "by": by})

        return _switch(self._put(PAUSE, body))

    def _put(self, name: str, body: Callable[[Document | None], str | None], expires: float | None = None) -> Document | None:
        """Write what `body` makes of the document that is there; None leaves it. Returns what is there then."""
        for _ in range(TRIES):
            before = self._store.document(KIND, "", name)
            text = body(before)
            if text is None:
                return before
            version = before.version if before is not None else 0
            after = Document(kind=KIND, scope="", name=name, body=text, version=version + 1, expires=expires)
            try:
                self._store.put_document(after, version)
            except Conflict:
                continue
            return after
        raise StoreUnavailable(f"The order {name} kept changing under {TRIES} tries.")


class Heed:
    """The orders as one life of one worker heeds them: as of its last look. Where it cannot look, the last ones stand."""

    def __init__(self, control: Control, worker: str, started: datetime) -> None:
        self._control, self._worker, self._started = control, worker, started
        self._deaf = False
        self.paused = self.draining = False

    @property
    def held(self) -> bool:
        """Whether no new work is begun."""
        return self.paused or self.draining

    @property
    def look_seconds(self) -> float:
        """How often to look."""
        return self._control.look_seconds

    def look(self) -> bool:
        """Look; whether anything is different now. A drain is not taken back. Never raises."""
        try:
            orders = self._control.orders()
        except Exception as error:
            if not self._deaf:
                logs.get().warning("control.not_read", worker=self._worker, why=str(error),
                                   exc_info=not isinstance(error, InfrastructureError))
            self._deaf = True
            return False
        self._deaf = False
        before = (self.paused, self.draining)
        self.paused = orders.switch.paused
        self.draining = self.draining or orders.drain(self._worker, self._started)
        if before == (self.paused, self.draining):
            return False
        logs.get().info("control.heeded", worker=self._worker, paused=self.paused, draining=self.draining)
        return True


def _switch(document: Document | None) -> Switch:
    if document is None:
        return Switch()
    said = _fields(document)
    return Switch(bool(said.get("paused")), datetime.fromisoformat(said["since"]), str(said.get("by", "")))


def _fields(document: Document) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(document.body)
    return fields
