"""A worker in this process, on real media: what becomes of jobs, messages and workspaces."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gevent
import pytest

from nommerd import lifecycle, logs
from nommerd.attempt import Tools, make_task, threads_per_job
from nommerd.bus.base import BusUnavailable, Delivery
from nommerd.bus.memory import MemoryBus
from nommerd.config import Settings
from nommerd.control import Control
from nommerd.errors import ConfigError, EncoderError, InfrastructureError, InputError, Problem
from nommerd.health import serve
from nommerd.job import Job, JobState, Owner, Staged, new_id, utcnow
from nommerd.media import binaries
from nommerd.messages import JobMessage
from nommerd.pipeline.context import SOURCE, Context, MediaFile
from nommerd.pipeline.recipe import Recipe, StageSpec
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.storage.base import StorageRegistry
from nommerd.storage.file import FileStorage, uri_of
from nommerd.store.memory import MemoryStore
from nommerd.worker import Worker, backoff_seconds, main
from nommerd.workspace import Workspaces
from tests import media
from tests.contracts.lossy import Fate, LossyStore
from tests.logged import undone
from tests.rig import digest, free_port, wait_until


class Act(Stage):
    """A media stage that does what the test says, and then copies the source."""

    name = "act"
    act: ClassVar[Callable[[Context], object]] = staticmethod(lambda context: None)
    seen: ClassVar[list[Context]] = []

    def run(self, context: Context) -> None:
        Act.seen.append(context)
        type(self).act(context)
        path = media.copy(context.take(SOURCE).path, context.workspace / "copy.mp4")
        context.add(MediaFile(path=path, stage_id=self.id))


def until_stopped(context: Context) -> None:
    """Work without an end."""
    assert context.stop.wait(30), "nobody stopped the work"
    context.stop.check()


RECIPE = Recipe(pipeline="test", stages=tuple(StageSpec(name=name, id=name) for name in ("fetch", "act", "upload", "notify")))


class House:
    """A store, a bus, a folder of media and workers."""

    def __init__(self, folder: Path) -> None:
        self.store, self.bus = MemoryStore(), MemoryBus()
        self.files = folder / "files"
        self.files.mkdir()
        self.source = media.copy(media.clip(seconds=1, size="160x120"), self.files / "in.mp4")
        self.work = folder / "work"
        self.keyring = Keyring([Secret(new_key())])
        self.store.put_recipe(RECIPE.hash, RECIPE.document)
        self.running: list[tuple[Worker, gevent.Greenlet]] = []
        self.log = io.StringIO()

    def tools(self, **changes: Any) -> Tools:
        made = Tools(store=self.store, storage=StorageRegistry({"file": FileStorage([self.files], 10**9)}),
                     stages={**STAGES, "act": Act}, binaries=binaries.find(None, None), keyring=self.keyring,
                     workspaces=Workspaces(self.work))
        return replace(made, **changes)

    def start(self, *, bus: Any = None, tools: Tools | None = None, **options: Any) -> Worker:
        given = {"slots": 1, "lease_seconds": 30.0, "max_attempts": 3, **options}
        worker = Worker(tools=tools or self.tools(), bus=bus or self.bus, name=f"w{len(self.running) + 1}", **given)
        self.running.append((worker, gevent.spawn(worker.run)))
        return worker

    def stop(self) -> None:
        for worker, _ in self.running:
            worker.stop()
        for _, greenlet in self.running:
            greenlet.join(10)
            assert greenlet.successful()

    def job(self, **fields: Any) -> Job:
        now = utcnow()
        name = new_id()
        given = {"id": name, "pipeline": "test", "recipe": RECIPE.hash, "source": uri_of(self.source),
                 "dest": uri_of(self.files / f"{name}.mp4"), "created": now, "updated": now, **fields}
        job = Job(**given)
        self.store.create(job)
        return job

    def submit(self, **fields: Any) -> Job:
        job = self.job(**fields)
        self.bus.jobs.send(JobMessage(id=job.id))
        return job

    def see(self, job: Job) -> Job:
        return self.store.get(job.key)

    def wait(self, job: Job, *states: JobState, seconds: float = 20) -> Job:
        wanted = states or (JobState.FINISHED,)
        wait_until(lambda: self.see(job).state in wanted, seconds, lambda: f"{wanted}: {self.see(job)}\n{self.log.getvalue()}")
        return self.see(job)

    def quiet(self) -> None:
        """No message is left, in any form."""
        wait_until(lambda: self.depth == (0, 0, 0), 10, lambda: f"an empty queue: {self.bus.jobs.depth()}")

    @property
    def depth(self) -> tuple[int, int, int]:
        depth = self.bus.jobs.depth()
        return depth.visible, depth.in_flight, depth.delayed

    @property
    def workspaces(self) -> list[str]:
        return [path.name for path in self.work.iterdir() if path.name != ".lock"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    Act.act = staticmethod(lambda context: None)
    Act.seen.clear()
    house = House(tmp_path)
    with undone():
        logs.configure(house.log, json=True)
        yield house
        house.stop()


def fails(*errors: Exception) -> Callable[[Context], None]:
    """Raises these one after the other, then does nothing."""
    left = list(errors)

    def act(context: Context) -> None:
        if left:
            raise left.pop(0)

    return act


KILLED = EncoderError("encoder.killed", "ffmpeg was killed by SIGKILL.", retryable=True)


# --- the way of a job --------------------------------------------------------------------------------------------


def test_a_job_is_finished_told_and_cleaned_up_after(house: House) -> None:
    house.start()
    job = house.submit()
    done = house.wait(job)
    assert [event.state.value for event in done.events] == ["DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED"]
    (output,) = done.outputs
    assert (house.files / f"{job.id}.mp4").stat().st_size == output.bytes
    assert (done.progress, done.owner, done.staged, done.attempts_charged) == (1.0, None, (), 1)
    assert [attempt.why for attempt in done.attempts] == ["finished"]
    house.quiet()
    assert house.workspaces == []

    told: list[int] = []

    def heard() -> bool:
        for delivery in house.bus.changes.receive(10, 0):
            told.append(delivery.message.event_seq)  # type: ignore[union-attr]
            delivery.ack()
        return set(told) >= {event.seq for event in done.events}

    wait_until(heard, 10, "a hint for each change")


def test_an_error_of_the_caller_ends_the_job_at_once(house: House) -> None:
    Act.act = staticmethod(fails(InputError("input.no_video", "There is no picture.", "Send one.")))
    house.start()
    done = house.wait(house.submit(), JobState.ERROR)
    assert done.error is not None
    assert (done.error.code, done.error.stage, done.error.attempt, done.error.retryable) == ("input.no_video", "act", 1, False)
    house.quiet()
    assert house.workspaces == []


def test_a_killed_encoder_is_tried_again_after_a_moment(house: House) -> None:
    Act.act = staticmethod(fails(KILLED))
    house.start()
    done = house.wait(house.submit())
    assert [attempt.why for attempt in done.attempts] == ["encoder.killed", "finished"]
    assert done.attempts[1].begun.timestamp() - done.attempts[0].begun.timestamp() >= 1.0
    assert done.error is None
    house.quiet()


def test_attempts_are_bounded(house: House) -> None:
    Act.act = staticmethod(fails(*[KILLED] * 5))
    house.start(max_attempts=2)
    done = house.wait(house.submit(), JobState.ERROR)
    assert done.error is not None
    assert (done.error.code, done.error.attempt, done.attempts_charged, len(Act.seen)) == ("encoder.killed", 2, 2, 2)
    house.quiet()


def test_a_fault_of_ours_is_logged_with_its_traceback_and_names_nothing_private(house: House) -> None:
    Act.act = staticmethod(fails(ZeroDivisionError("https://user:hunter2@host/")))
    house.start(max_attempts=1)
    done = house.wait(house.submit(), JobState.ERROR)
    assert done.error is not None
    assert (done.error.code, done.error.stage) == ("internal.error", "act")
    assert "hunter2" not in done.encode().decode() + house.log.getvalue()
    line = next(line for line in house.log.getvalue().splitlines() if "attempt.failed" in line)
    assert "Traceback" in line
    assert done.id in line


def test_warnings_come_with_the_result(house: House) -> None:
    Act.act = staticmethod(lambda context: context.warn("input.damaged", "A little."))
    house.start()
    done = house.wait(house.submit())
    assert [(warning.code, warning.stage) for warning in done.warnings] == [("input.damaged", "act")]


def test_uris_are_complete_for_the_work_and_only_for_the_work(house: House) -> None:
    full = {"source": "https://u:p@host/a?sig=s", "dest": "s3://k:s@b/out.mp4", "inputs": {"logo": ["https://u:p@host/l.png"]}}
    job = replace(house.job(), source="https://host/a", dest="s3://b/out.mp4", secrets=house.keyring.encrypt(full),
                  inputs={"logo": [{"uri": "https://host/l.png"}], "captions": [{"uri": "file:///c.vtt", "language": "en"}]})
    task = make_task(job, house.keyring)
    assert (task.source, task.dest) == (full["source"], full["dest"])
    assert task.inputs == {"logo": [{"uri": "https://u:p@host/l.png"}],
                           "captions": [{"uri": "file:///c.vtt", "language": "en"}]}


def test_secrets_that_no_key_opens_are_the_operators_to_mend(house: House) -> None:
    house.start(tools=house.tools(keyring=Keyring([Secret(new_key())])))
    done = house.wait(house.submit(secrets=house.keyring.encrypt({"source": "file:///x"})), JobState.ERROR)
    assert done.error is not None
    assert done.error.code == "config.wrong_keys"


def test_a_recipe_of_a_newer_version_is_left_to_newer_workers_uncharged(house: House) -> None:
    newer = replace(RECIPE, schema_version=99)
    house.store.put_recipe(newer.hash, newer.document)
    house.start()
    job = house.submit(recipe=newer.hash)
    wait_until(lambda: house.see(job).token == 1 and not house.see(job).claimed, 10, "the job given back")
    seen = house.see(job)
    assert (seen.state, seen.attempts_charged, seen.event_seq) == (JobState.PENDING, 0, 0)
    wait_until(lambda: house.depth == (0, 0, 1), 10, "one message, for later")


def test_no_more_is_taken_than_there_are_slots(house: House) -> None:
    Act.act = staticmethod(until_stopped)
    house.start(slots=2)
    jobs = [house.submit() for _ in range(5)]
    wait_until(lambda: len(Act.seen) == 2, 10, "two jobs at work")
    assert house.depth == (3, 2, 0)
    assert sum(house.see(job).claimed for job in jobs) == 2


def test_failed_workspaces_are_kept_for_the_operator_as_many_as_asked(house: House) -> None:
    Act.act = staticmethod(fails(*[InputError("input.bad", "x")] * 3))
    house.start(tools=house.tools(workspaces=Workspaces(house.work, keep_failed=2)))
    jobs = [house.submit() for _ in range(3)]
    for job in jobs:
        house.wait(job, JobState.ERROR)
    house.wait(house.submit())
    assert len(house.workspaces) == 2
    assert all(name.startswith("failed-") for name in house.workspaces)


# --- stopping ----------------------------------------------------------------------------------------------------


def test_a_cancelled_job_stops_within_two_seconds(house: House) -> None:
    Act.act = staticmethod(until_stopped)
    house.start()
    job = house.submit()
    house.wait(job, JobState.ENCODING)
    house.store.update(job.key, lifecycle.cancel(utcnow()))
    house.wait(job, JobState.CANCELLED, seconds=2)
    house.quiet()
    assert house.workspaces == []


def test_a_stopping_worker_gives_its_work_back_at_once_and_uncharged(house: House) -> None:
    Act.act = staticmethod(until_stopped)
    worker = house.start()
    job = house.submit()
    house.wait(job, JobState.ENCODING)
    worker.stop()
    house.running[0][1].join(5)
    assert house.running[0][1].ready()
    seen = house.see(job)
    assert (seen.state, seen.attempts_charged, seen.claimed) == (JobState.PENDING, 0, False)
    assert seen.attempts[0].why == "shutting down"
    assert house.depth == (1, 0, 0)
    assert house.workspaces == []
    assert [record.state for record in house.store.workers()] == ["TERMINATED"]
    Act.act = staticmethod(lambda context: None)
    house.start()
    assert house.wait(job).token == 2


def test_an_error_that_stopping_caused_is_not_held_against_the_job(house: House) -> None:
    def broken_off(context: Context) -> None:
        assert context.stop.wait(30)
        raise EncoderError("encoder.failed", "ffmpeg ended with code 255.")

    Act.act = staticmethod(broken_off)
    worker = house.start()
    job = house.submit()
    house.wait(job, JobState.ENCODING)
    worker.stop()
    house.running[0][1].join(5)
    seen = house.see(job)
    assert (seen.state, seen.attempts_charged, seen.error) == (JobState.PENDING, 0, None)


def test_an_idle_worker_stops_at_once(house: House) -> None:
    worker = house.start()
    wait_until(house.store.workers, 10, "the first heartbeat")
    worker.stop()
    house.running[0][1].join(2)
    assert house.running[0][1].ready()


def test_a_message_that_arrives_as_the_worker_stops_is_not_lost(house: House) -> None:
    class Late(MemoryBus):
        """Delivers only once the worker is stopping."""

    bus = Late()
    receive = bus.jobs.receive
    holder: list[Worker] = []

    def late(limit: int, wait_seconds: float) -> Sequence[Delivery]:
        found = receive(limit, wait_seconds)
        if found:
            holder[0].stop()
        return found

    bus.jobs.receive = late  # type: ignore[method-assign]
    holder.append(house.start(bus=bus))
    job = house.job()
    bus.jobs.send(JobMessage(id=job.id))
    house.running[0][1].join(5)
    assert house.running[0][1].ready()
    assert bus.jobs.depth().visible == 1
    assert house.see(job) == job, "it was not even claimed"


# --- messages and others' leases ---------------------------------------------------------------------------------


def test_messages_without_work_are_dropped(house: House) -> None:
    done = house.job()
    house.store.update(done.key, lifecycle.cancel(utcnow()))
    house.bus.jobs.send(JobMessage(id=done.id))
    house.bus.jobs.send(JobMessage(id="deleted"))
    house.start()
    house.quiet()


def test_a_second_message_for_a_running_job_is_dropped_and_the_job_runs_once(house: House) -> None:
    Act.act = staticmethod(until_stopped)
    house.start(slots=2)
    job = house.submit()
    house.wait(job, JobState.ENCODING)
    house.bus.jobs.send(JobMessage(id=job.id))
    wait_until(lambda: house.depth == (0, 1, 0), 10, "the second message gone, the first kept hidden")
    assert len(Act.seen) == 1


def test_a_newer_message_waits_for_a_newer_worker(house: House) -> None:
    job = house.job()
    house.bus.jobs.send(JobMessage(id=job.id, schema_version=99))
    house.start()
    wait_until(lambda: house.depth == (0, 0, 1), 10, "the message put off")
    assert house.see(job).token == 0


def test_what_a_settled_job_left_staged_is_revoked(house: House) -> None:
    part = house.files / ".x.mp4.1-aaaa.part"
    part.write_bytes(b"half")
    job = house.job()
    owner = Owner(worker="dead", node="n", claim=new_id())
    house.store.update(job.key, lifecycle.claim(owner, "m", 30, utcnow()))
    entry = Staged(uri=job.dest, handle=part.name, bytes=9, sha256="0" * 64, token=1)
    house.store.update(job.key, lifecycle.stage(owner, [entry]))
    house.store.update(job.key, lifecycle.fail(owner, KILLED.problem(), (), 1, utcnow()))
    house.bus.jobs.send(JobMessage(id=job.id))
    house.start()
    house.quiet()
    assert not part.exists()
    assert house.see(job).staged == ()


def lost_on_its_last_attempt(house: House, *, published: bool) -> tuple[Job, Path]:
    """A job whose only attempt was lost while it published; and what it had staged."""
    job = house.job()
    owner = Owner(worker="dead", node="n", claim=new_id())
    part = house.files / f".{job.id}.mp4.1-aaaa.part"
    where = house.files / f"{job.id}.mp4" if published else part
    where.write_bytes(house.source.read_bytes())
    entry = Staged(uri=job.dest, handle=part.name, bytes=where.stat().st_size, sha256=digest(where), token=1)
    house.store.update(job.key, lifecycle.claim(owner, "m", 30, utcnow()))
    damaged = Problem(code="input.damaged", message="A little.")
    held = house.store.update(job.key, lifecycle.stage(owner, [entry], [damaged]))
    lost = Problem(code="node.lost", message="Its process has ended.", retryable=True)
    house.store.update(job.key, lifecycle.break_lease(held.lease_version, lost, 1, utcnow()))
    house.bus.jobs.send(JobMessage(id=job.id))
    return job, part


def test_what_the_last_attempt_published_before_it_was_lost_is_adopted_with_its_warnings(house: House) -> None:
    job, _ = lost_on_its_last_attempt(house, published=True)
    house.start(max_attempts=1)
    done = house.wait(job)
    assert [output.uri for output in done.outputs] == [job.dest]
    assert (done.attempts_charged, done.error, done.staged, Act.seen) == (1, None, (), [])
    assert [warning.code for warning in done.warnings] == ["input.damaged"]
    house.quiet()
    assert house.workspaces == []


def test_where_the_last_attempt_did_not_publish_the_job_ends_with_its_error_and_nothing_is_left(house: House) -> None:
    job, part = lost_on_its_last_attempt(house, published=False)
    house.start(max_attempts=1)
    done = house.wait(job, JobState.ERROR)
    assert done.error is not None
    assert (done.error.code, done.error.attempt, done.staged, Act.seen) == ("node.lost", 1, (), [])
    assert not part.exists()
    house.quiet()


def test_an_upload_that_always_fails_ends_with_its_own_error_after_as_many_attempts_as_allowed(house: House) -> None:
    class Full(FileStorage):
        def upload(self, *arguments: Any, **named: Any) -> None:
            raise InfrastructureError("dest.disk_full", "No space is left.")

    house.start(max_attempts=2, tools=house.tools(storage=StorageRegistry({"file": Full([house.files], 10**9)})))
    done = house.wait(house.submit(), JobState.ERROR)
    assert done.error is not None
    assert (done.error.code, done.error.stage, done.error.attempt) == ("dest.disk_full", "upload", 2)
    assert (done.attempts_charged, done.staged, len(Act.seen)) == (2, (), 2)
    house.quiet()


def test_a_retry_may_replace_what_a_failed_try_published_of_several_outputs(house: House) -> None:
    def two(context: Context) -> None:
        path = media.copy(context.files[SOURCE].path, context.workspace / "first.mp4")
        context.add(MediaFile(path=path, stage_id="first"))

    Act.act = staticmethod(two)
    folder = house.files / "out"
    folder.mkdir()
    (folder / "copy.mp4").write_bytes(b"theirs")
    house.start()
    job = house.submit(dest=uri_of(folder) + "/")
    failed = house.wait(job, JobState.ERROR)
    assert failed.error is not None and failed.error.code == "dest.exists"
    house.quiet()
    assert sorted(path.name for path in folder.iterdir()) == ["copy.mp4", "first.mp4"]
    (folder / "copy.mp4").unlink()
    house.store.update(job.key, lifecycle.retry(utcnow()))
    house.bus.jobs.send(JobMessage(id=job.id))
    done = house.wait(job)
    assert len(Act.seen) == 2, "one output is missing: nothing to adopt"
    assert [output.sha256 for output in done.outputs] == [digest(folder / name) for name in ("first.mp4", "copy.mp4")]
    house.quiet()


def test_a_redelivered_message_is_watched_outside_the_slots_until_its_owner_is_dead(house: House) -> None:
    job = house.submit()
    (delivery,) = house.bus.jobs.receive(1, 0)  # by a worker far away, which dies now
    silent = Owner(worker="far", node="away", claim=new_id())
    house.store.update(job.key, lifecycle.claim(silent, delivery.message_id, 2.0, utcnow()))
    delivery.release()
    house.start(slots=1, lease_seconds=2.0)
    other = house.submit()
    house.wait(other)  # the only slot is free meanwhile
    assert house.see(job).token == 1
    done = house.wait(job)
    assert done.token == 2
    assert [attempt.why for attempt in done.attempts] == ["node.lost", "finished"]
    house.quiet()


def test_a_watched_job_whose_owner_lives_is_left_alone(house: House) -> None:
    job = house.submit()
    (delivery,) = house.bus.jobs.receive(1, 0)
    owner = Owner(worker="far", node="away", claim=new_id())
    house.store.update(job.key, lifecycle.claim(owner, delivery.message_id, 1.0, utcnow()))
    delivery.release()
    house.start(lease_seconds=1.0)
    wait_until(lambda: house.depth == (0, 1, 0), 10, "the message to be held")
    for step in range(25):
        house.store.update(job.key, lifecycle.renew(owner, step / 25, "x", None))
        gevent.sleep(0.1)
    assert house.see(job).owner == owner
    house.store.update(job.key, lifecycle.finish(owner, (), (), utcnow()))
    house.quiet()


# --- a bus and a store in trouble --------------------------------------------------------------------------------


def test_a_bus_in_trouble_only_delays(house: House) -> None:
    class Rough(MemoryBus):
        pass

    bus = Rough()
    receive, troubles = bus.jobs.receive, [3]

    def rough(limit: int, wait_seconds: float) -> Sequence[Delivery]:
        if troubles[0]:
            troubles[0] -= 1
            raise BusUnavailable("reset")
        return receive(limit, wait_seconds)

    def deaf(*arguments: object) -> str:
        raise BusUnavailable("throttled")

    bus.jobs.receive = rough  # type: ignore[method-assign]
    bus.changes.send = deaf  # type: ignore[method-assign]
    house.start(bus=bus)
    job = house.job()
    bus.jobs.send(JobMessage(id=job.id))
    assert house.wait(job).attempts_charged == 1


def test_a_retry_whose_message_cannot_be_sent_uses_the_one_at_hand(house: House) -> None:
    Act.act = staticmethod(fails(KILLED))
    send = house.bus.jobs.send
    house.start()
    job = house.submit()

    def deaf(*arguments: object) -> str:
        raise BusUnavailable("throttled")

    house.bus.jobs.send = deaf  # type: ignore[method-assign]
    done = house.wait(job)
    house.bus.jobs.send = send  # type: ignore[method-assign]
    assert done.token == 2
    house.quiet()


def test_backing_off_stays_below_half_a_minute_and_is_spread() -> None:
    assert all(backoff_seconds(n) <= 15 for n in range(1, 60))
    assert len({backoff_seconds(9) for _ in range(20)}) > 10


def test_a_result_waits_for_a_store_that_is_away(house: House) -> None:
    lossy = LossyStore(house.store)

    def trouble_ahead(context: Context) -> None:
        """Four writes until the output is published, and then the one that counts."""
        lossy.fates = iter([Fate.WELL] * 4 + [Fate.REFUSED, Fate.REFUSED, Fate.LOST])

    Act.act = staticmethod(trouble_ahead)
    house.start(tools=house.tools(store=lossy))
    done = house.wait(house.submit())
    assert done.token == 1
    assert [event.state.value for event in done.events][-2:] == ["UPLOADING", "FINISHED"]
    assert len(done.outputs) == 1
    assert next(lossy.fates, None) is None, "all of the trouble was met"


# --- the daemon --------------------------------------------------------------------------------------------------


def test_a_heartbeat_tells_what_the_worker_is_and_does(house: House) -> None:
    Act.act = staticmethod(until_stopped)
    house.start(slots=3, heartbeat_seconds=0.1)
    job = house.submit()
    wait_until(lambda: any(record.active == (job.key,) for record in house.store.workers()), 10, "the job in the heartbeat")
    (record,) = house.store.workers()
    assert (record.name, record.state, record.slots, record.heartbeat_seconds) == ("w1", "ACTIVE", 3, 0.1)
    assert record.started is not None and record.started <= record.reported
    assert 0 < (record.disk_free_bytes or 0) <= (record.disk_total_bytes or 0)
    assert "libx264" in record.encoders


def test_a_message_received_in_the_moment_of_a_pause_goes_back(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.control.LOOK_SECONDS", 0.05)
    control = Control(house.store)
    control.pause("somebody")
    worker = house.start()
    wait_until(house.store.workers, 10, "the worker reports")
    job = house.submit()
    (delivery,) = house.bus.jobs.receive(1, 0)
    worker._handling.handle(delivery)
    assert house.depth == (1, 0, 0) and house.see(job).token == 0
    control.resume("somebody")
    assert house.wait(job).attempts_charged == 1


def test_a_dead_neighbours_scratch_is_cleaned_at_heartbeats(house: House) -> None:
    house.start(heartbeat_seconds=0.1)
    wait_until(house.store.workers, 10, "the first heartbeat")
    (house.work / "gone.1").mkdir()
    wait_until(lambda: house.workspaces == [], 10, "the scratch gone")


def get(port: int, path: str) -> int:
    """One GET; the status. In a thread, since the server runs here."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_health_says_alive_and_whether_it_takes_work(house: House) -> None:
    worker = house.start()
    port = free_port()
    server = serve("127.0.0.1", port, worker.ready, worker.metrics)
    try:
        assert [get(port, path) for path in ("/healthz", "/readyz", "/other")] == [200, 200, 404]
        worker.stop()
        assert [get(port, path) for path in ("/healthz", "/readyz")] == [200, 503]
        with pytest.raises(ConfigError) as caught:
            serve("127.0.0.1", port, worker.ready, worker.metrics)
        assert caught.value.code == "config.port_taken"
    finally:
        server.stop(0)


def test_threads_are_shared_among_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert [threads_per_job("auto", slots) for slots in (1, 3, 16)] == [8, 2, 1]
    assert threads_per_job(5, 16) == 5


def test_a_worker_makes_neither_data_directory_nor_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings.model_validate({"paths": {"data": tmp_path / "none"}, "worker": {"health_port": None}})
    assert main(settings) == 2
    assert "config.no_data" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").mkdir()
    assert main(settings) == 2
    assert "config.missing_file" in capsys.readouterr().err
    assert not (tmp_path / "none" / "keys").exists()
