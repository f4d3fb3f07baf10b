"""A data directory with many jobs in it, made through the store itself."""

from __future__ import annotations

from pathlib import Path

STATES = ("FINISHED", "FINISHED", "FINISHED", "ERROR", "CANCELLED")


def fill(data: Path, count: int) -> list[str]:
    """`count` final jobs in DATA/nommerd.db; returns a thousand of their ids."""
    import gevent

    from nommerd.job import Job, JobState, new_id, utcnow
    from nommerd.store import open_store

    store = open_store(f"sqlite:///{data / 'nommerd.db'}", data)
    numbers = iter(range(count))
    ids: list[str] = []

    def work() -> None:
        for number in numbers:
            now = utcnow()
            job = Job(id=new_id(), preset="web-720p", pipeline="web-mp4", recipe="0" * 64, created=now, updated=now,
                      source=f"file:///media/in/{number}.mov", dest=f"file:///media/out/{number}.mp4",
                      labels={"customer": str(number % 50)})
            store.create(job.move(JobState(STATES[number % len(STATES)]), now))
            if number % (count // 1000) == 0:
                ids.append(job.id)

    gevent.joinall([gevent.spawn(work) for _ in range(64)], raise_error=True)
    store.close()
    return ids
