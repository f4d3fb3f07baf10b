"""What workers of an earlier version wrote is still understood."""

from __future__ import annotations

from nommerd.job import Key
from nommerd.store.base import WorkerRecord

OLD = ('{"name":"w","node":"n","state":"ACTIVE","slots":2,"active":["a","b"],"version":"0.1","encoders":["libx264"],'
       '"reported":"2026-01-01T00:00:00Z"}')


def test_a_heartbeat_of_an_earlier_version_names_jobs_of_the_one_project_there_was() -> None:
    record = WorkerRecord.decode(OLD)
    assert record.active == (Key("default", "a"), Key("default", "b"))
    assert (record.started, record.disk_free_bytes, record.disk_total_bytes) == (None, None, None)
    assert WorkerRecord.decode(record.encode()) == record
