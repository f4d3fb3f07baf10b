"""Worker processes on one SQLite file, with real ffmpeg: killed, stopped, frozen, and their work taken over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from nommerd import lifecycle
from nommerd.bus import open_bus
from nommerd.bus.base import Bus
from nommerd.job import Job, JobState, new_id, utcnow
from nommerd.messages import JobMessage
from nommerd.pipeline.recipe import Recipe, StageSpec
from nommerd.secrets import Keyring
from nommerd.storage.file import uri_of
from nommerd.store import open_store
from nommerd.store.base import Store
from tests import media
from tests.rig import wait_until

RUN = """
import sys
from pathlib import Path
from nommerd import runtime
runtime.patch()
from nommerd import logs
from nommerd.config import load
from nommerd.worker import main
logs.configure(json=True)
{before}
sys.exit(main(load(Path(sys.argv[1]), {{}}), name=sys.argv[2]))
"""
# Ends the process between publishing and the write that says FINISHED.
DIE_AFTER_PUBLISHING = """
import os
from nommerd.storage.file import FileStorage
publish = FileStorage.publish
def publish_and_die(self, staging, overwrite):
    publish(self, staging, overwrite)
    os.kill(os.getpid(), 9)
FileStorage.publish = publish_and_die
"""
ENCODE = [["c:v", "libx264"], ["preset", "ultrafast"], ["c:a", "aac"], ["f", "mp4"]]
AS_IT_PLAYS = [["re", None]]  # ffmpeg reads at the speed of the clip: slow without work


def recipe(slow: bool) -> Recipe:
    ffmpeg = {"options": ENCODE, **({"input_options": AS_IT_PLAYS} if slow else {})}
    settings = {"ffmpeg": ffmpeg}
    return Recipe(pipeline="test", stages=tuple(StageSpec(name=name, id=name, settings=settings.get(name, {}))
                                                for name in ("fetch", "ffmpeg", "upload", "notify")))


class Yard:
    """A data directory, its store and bus opened here as well, and workers as processes."""

    def __init__(self, folder: Path, *, lease_seconds: float = 30.0, max_attempts: int = 3) -> None:
        self.folder = folder
        self.data, self.files = folder / "data", folder / "files"
        self.data.mkdir()
        self.files.mkdir()
        Keyring.load_or_make(self.data, (), make=True)
        self.config = folder / "nommerd.yaml"
        self.config.write_text(f"""\
paths: {{data: "{self.data}"}}
worker: {{slots: 1, lease_seconds: {lease_seconds}, max_attempts: {max_attempts}, heartbeat_seconds: 0.5, health_port: null}}
storage: {{file_roots: ["{self.files}"]}}
""", encoding="utf-8")
        self.store: Store = open_store("sqlite:///nommerd.db", self.data)
        self.bus: Bus = open_bus("sqlite:///nommerd.db", self.data)
        self.source = media.copy(media.clip(seconds=4, size="160x120"), self.files / "in.mp4")
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, before: str = "") -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.workers[name] = subprocess.Popen([sys.executable, "-c", RUN.format(before=before), str(self.config), name],
                                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                  cwd=Path(__file__).parents[2])
        return self.workers[name]

    def submit(self, *, slow: bool = True) -> Job:
        made, now, name = recipe(slow), utcnow(), new_id()
        self.store.put_recipe(made.hash, made.document)
        job = Job(id=name, pipeline="test", recipe=made.hash, source=uri_of(self.source),
                  dest=uri_of(self.files / f"{name}.mp4"), created=now, updated=now)
        self.store.create(job)
        self.bus.jobs.send(JobMessage(id=name))
        return job

    def see(self, job: Job) -> Job:
        return self.store.get(job.key)

    def wait(self, job: Job, state: JobState = JobState.FINISHED, seconds: float = 40) -> Job:
        wait_until(lambda: self.see(job).state is state, seconds, lambda: f"{state}: {self.see(job)}\n{self.logs}")
        return self.see(job)

    def encoding(self, job: Job) -> int:
        """Once ffmpeg works on it: the pid of that ffmpeg."""
        self.wait(job, JobState.ENCODING)
        return int(wait_until(lambda: next(iter(self.ffmpegs(job)), 0), 20, "an ffmpeg at work"))

    def ffmpegs(self, job: Job) -> list[int]:
        """ffmpeg processes that work in a workspace of this job."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"ffmpeg" in words[0] and any(job.id.encode() in word for word in words):
                        found.append(int(entry.name))
        return found

    @property
    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log"))

    def clean(self, job: Job) -> None:
        """Nothing is left but the output: no process, message, scratch or part."""
        wait_until(lambda: not self.ffmpegs(job), 10, "ffmpeg gone")
        wait_until(lambda: (d := self.bus.jobs.depth()).visible + d.in_flight + d.delayed == 0, 40,
                   lambda: f"an empty queue: {self.bus.jobs.depth()}")
        wait_until(lambda: not [p for p in (self.data / "work").iterdir() if p.name != ".lock"], 10,
                   lambda: f"no scratch: {list((self.data / 'work').iterdir())}")
        assert not list(self.files.glob(".*.part"))

    def check_output(self, job: Job) -> None:
        (output,) = self.see(job).outputs
        body = (self.files / f"{job.id}.mp4").read_bytes()
        assert (output.bytes, output.sha256) == (len(body), sha256(body).hexdigest())

    def close(self) -> None:
        for worker in self.workers.values():
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)
            worker.kill()
            worker.wait(10)
        self.store.close()
        self.bus.close()


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    yard.close()


@pytest.fixture
def brisk(tmp_path: Path) -> Iterator[Yard]:
    """With leases of three seconds."""
    yard = Yard(tmp_path, lease_seconds=3.0)
    yield yard
    yard.close()


def test_an_idle_worker_claims_within_milliseconds_and_finishes(yard: Yard) -> None:
    yard.start("w1")
    wait_until(lambda: [r for r in yard.store.workers() if r.state == "ACTIVE"], 30, "the worker up")
    job = yard.submit(slow=False)
    done = yard.wait(job)
    begun = done.attempts[0].begun - done.created
    assert begun.total_seconds() < 1.0
    yard.check_output(job)
    yard.clean(job)


def test_a_worker_killed_in_mid_encode_is_replaced_by_a_neighbour(brisk: Yard) -> None:
    first = brisk.start("w1")
    job = brisk.submit()
    brisk.encoding(job)
    brisk.start("w2")
    first.kill()
    done = brisk.wait(job)
    assert [(attempt.worker, attempt.why) for attempt in done.attempts] == [("w1", "node.lost"), ("w2", "finished")]
    assert done.attempts_charged == 2
    brisk.check_output(job)
    brisk.clean(job)


def test_a_terminated_worker_gives_back_within_five_seconds_uncharged(yard: Yard) -> None:
    worker = yard.start("w1")
    job = yard.submit()
    yard.encoding(job)
    begun = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert time.monotonic() - begun < 5
    assert yard.ffmpegs(job) == []
    seen = yard.see(job)
    assert (seen.state, seen.attempts_charged, seen.claimed) == (JobState.PENDING, 0, False)
    assert yard.bus.jobs.depth().visible == 1, "it is back in the queue at once"
    yard.start("w2")
    assert yard.wait(job).attempts_charged == 1
    yard.clean(job)


def test_a_frozen_worker_commits_nothing_once_it_wakes(brisk: Yard) -> None:
    frozen = brisk.start("w1")
    job = brisk.submit()
    ffmpeg = brisk.encoding(job)
    freeze_outside_a_write(brisk, frozen)
    brisk.start("w2")
    done = brisk.wait(job)
    assert [attempt.worker for attempt in done.attempts] == ["w1", "w2"]
    inode = (brisk.files / f"{job.id}.mp4").stat().st_ino

    frozen.send_signal(signal.SIGCONT)
    log = brisk.folder / "w1.log"
    wait_until(lambda: "job.fenced" in log.read_text(), 20, "the woken worker to notice")
    wait_until(lambda: ffmpeg not in brisk.ffmpegs(job), 10, "its ffmpeg stopped")
    assert brisk.see(job) == done
    assert (brisk.files / f"{job.id}.mp4").stat().st_ino == inode
    assert frozen.poll() is None
    brisk.clean(job)


def freeze_outside_a_write(yard: Yard, worker: subprocess.Popen[bytes]) -> None:
    """SIGSTOP, but not while it holds the database's lock: nobody could write then."""
    for _ in range(50):
        worker.send_signal(signal.SIGSTOP)
        taken = subprocess.run(["flock", "-n", str(yard.data / "nommerd.db.lock"), "true"], timeout=10).returncode
        if taken == 0:
            return
        worker.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the worker was always inside a write")


def test_an_ffmpeg_that_is_killed_is_tried_again_and_the_reason_names_the_signal(yard: Yard) -> None:
    yard.start("w1")
    job = yard.submit()
    os.kill(yard.encoding(job), signal.SIGKILL)
    done = yard.wait(job)
    assert [attempt.why for attempt in done.attempts] == ["encoder.killed", "finished"]
    assert "SIGKILL" in (yard.folder / "w1.log").read_text()
    yard.check_output(job)
    yard.clean(job)


def test_an_ffmpeg_that_is_always_killed_ends_in_an_error_that_names_the_signal(tmp_path: Path) -> None:
    yard = Yard(tmp_path, max_attempts=1)
    try:
        yard.start("w1")
        job = yard.submit()
        os.kill(yard.encoding(job), signal.SIGKILL)
        done = yard.wait(job, JobState.ERROR)
        assert done.error is not None
        assert (done.error.code, done.error.stage, done.error.attempt) == ("encoder.killed", "ffmpeg", 1)
        assert "SIGKILL" in done.error.message
        yard.clean(job)
    finally:
        yard.close()


def test_a_cancelled_encode_stops_within_two_seconds(yard: Yard) -> None:
    yard.start("w1")
    job = yard.submit()
    yard.encoding(job)
    begun = time.monotonic()
    yard.store.update(job.key, lifecycle.cancel(utcnow()))
    yard.wait(job, JobState.CANCELLED)
    assert time.monotonic() - begun < 2
    yard.clean(job)
    assert not (yard.files / f"{job.id}.mp4").exists()


def test_an_output_published_just_before_the_kill_is_adopted_and_not_encoded_again(brisk: Yard) -> None:
    first = brisk.start("w1", before=DIE_AFTER_PUBLISHING)
    job = brisk.submit(slow=False)
    assert first.wait(30) == -signal.SIGKILL
    path = brisk.files / f"{job.id}.mp4"
    before = path.stat()
    brisk.start("w2")
    done = brisk.wait(job)
    assert [attempt.worker for attempt in done.attempts] == ["w1", "w2"]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [event.state.value for event in done.events][-2:] == ["PENDING", "FINISHED"], "no stage ran again"
    assert done.outputs[0].probe["streams"]
    brisk.check_output(job)
    brisk.clean(job)


def test_the_last_attempt_that_published_and_was_killed_is_no_error_but_adopted(tmp_path: Path) -> None:
    yard = Yard(tmp_path, lease_seconds=3.0, max_attempts=1)
    try:
        first = yard.start("w1", before=DIE_AFTER_PUBLISHING)
        job = yard.submit(slow=False)
        assert first.wait(30) == -signal.SIGKILL
        before = (yard.files / f"{job.id}.mp4").stat()
        yard.start("w2")
        done = yard.wait(job)
        assert (yard.files / f"{job.id}.mp4").stat().st_ino == before.st_ino
        assert [attempt.why for attempt in done.attempts] == ["node.lost", "finished"]
        assert (done.attempts_charged, done.error) == (1, None)
        yard.check_output(job)
        yard.clean(job)
    finally:
        yard.close()


def test_a_cancelled_job_whose_worker_is_killed_ends_cancelled_and_nothing_is_left(brisk: Yard) -> None:
    first = brisk.start("w1")
    job = brisk.submit()
    brisk.encoding(job)
    freeze_outside_a_write(brisk, first)  # else it would notice before it dies
    brisk.store.update(job.key, lifecycle.cancel(utcnow()))
    first.kill()
    brisk.start("w2")
    done = brisk.wait(job, JobState.CANCELLED)
    assert [attempt.why for attempt in done.attempts] == ["node.lost"]
    brisk.clean(job)
    assert not (brisk.files / f"{job.id}.mp4").exists()


def test_a_full_scratch_disk_is_retryable_and_the_worker_lives(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None or \
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        media.missing("needs to mount a small file system")
    yard = Yard(tmp_path, max_attempts=1)
    try:
        text = yard.config.read_text().replace("slots: 1", f'slots: 1, workspace: "{small}"')
        yard.config.write_text(text)
        worker = yard.start("w1")
        big = media.copy(media.clip(seconds=4, size="640x360", extra=["-b:v", "4M", "-minrate", "4M", "-bufsize", "1M"]),
                         yard.files / "big.mp4")
        assert big.stat().st_size > 1 << 20, "it must not fit"
        small_source, yard.source = yard.source, big
        job = yard.submit(slow=False)
        done = yard.wait(job, JobState.ERROR)
        assert done.error is not None
        assert (done.error.code, done.error.retryable) == ("node.disk_full", True)
        assert [path.name for path in small.iterdir()] == [".lock"]
        yard.source = small_source
        yard.wait(yard.submit(slow=False))
        assert worker.poll() is None
    finally:
        yard.close()
        subprocess.run(["umount", str(small)], check=True)
