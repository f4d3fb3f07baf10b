"""The workers as others see them: what their heartbeats say, and whether those still come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from nommerd.api.view import timestamp
from nommerd.store.base import Store, WorkerRecord

SILENT = "SILENT"
HEARTBEATS_MISSED = 3  # then a worker that has not ended is silent
GONE_AFTER = timedelta(days=1)  # so long one that has ended is shown, and the heartbeat of any is kept


def state_of(worker: WorkerRecord, now: datetime) -> str:
    """ACTIVE, DRAINING or TERMINATED as it says; SILENT where it has not reported for more than three heartbeats."""
    late = now - worker.reported > timedelta(seconds=HEARTBEATS_MISSED * worker.heartbeat_seconds)
    return SILENT if late and worker.state != "TERMINATED" else worker.state


def shown_workers(store: Store, now: datetime) -> Sequence[WorkerRecord]:
    """All but those that ended long ago."""
    return [one for one in store.workers() if one.state != "TERMINATED" or now - one.reported <= GONE_AFTER]


def forget_gone(store: Store, now: datetime) -> int:
    """Delete the heartbeats that nobody has renewed for long; returns how many. A worker that lives writes the next."""
    gone = [one for one in store.workers() if now - one.reported > max(GONE_AFTER, _patience(one))]
    for one in gone:
        store.delete_worker(one.name)
    return len(gone)


def _patience(worker: WorkerRecord) -> timedelta:
    return timedelta(seconds=HEARTBEATS_MISSED * worker.heartbeat_seconds)


def worker_json(worker: WorkerRecord, now: datetime) -> dict[str, Any]:
    """One worker, as the API shows it."""
    free, total = worker.disk_free_bytes, worker.disk_total_bytes
    return {"name": worker.name, "node": worker.node, "state": state_of(worker, now), "slots": worker.slots,
            "busy": len(worker.active), "jobs": [{"project": key.project, "id": key.id} for key in worker.active],
            "version": worker.version, "encoders": list(worker.encoders),
            "disk": None if free is None or total is None else {"free_bytes": free, "total_bytes": total},
            "started": None if worker.started is None else timestamp(worker.started),
            "reported": timestamp(worker.reported)}
