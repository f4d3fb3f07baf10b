"""Real daemons, real ffmpeg, killed and frozen at bad moments: no job is lost and none is done twice."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.media import clip
from tests.rig import FINAL, Daemon, Receiver, Rig, digest, invariants, path_of, wait_until

FAST = """\
kind: pipeline
name: fast
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, ultrafast], [c:a, aac], [f, mp4]]}
  - faststart
  - upload
  - notify
"""
SLOW = FAST.replace("fast\n", "slow\n", 1).replace("ultrafast", "veryslow")


def operator_pipelines(root: Path) -> str:
    folder = root / "pipelines"
    folder.mkdir(parents=True)
    (root / "presets").mkdir()
    (folder / "fast.yaml").write_text(FAST)
    (folder / "slow.yaml").write_text(SLOW)
    return "\n"


def owner_of(rig: Rig, job_id: str, workers: list[Daemon]) -> Daemon:
    owner = rig.job(job_id)["owner"]
    return next(w for w in workers if w.name == (owner["worker"] if isinstance(owner, dict) else owner))


def encoding(rig: Rig, job_id: str) -> bool:
    job = rig.job(job_id)
    assert job["state"] not in FINAL, job
    return bool(job["state"] == "ENCODING" and rig.processes("ffmpeg"))


def test_a_worker_killed_in_mid_encode_costs_one_attempt_and_little_time(tmp_path: Path) -> None:
    source = clip(seconds=6, size="640x360")
    receiver = Receiver()
    with Rig(tmp_path, config=operator_pipelines(tmp_path)) as rig:
        (rig.media / "in.mp4").write_bytes(source.read_bytes())
        rig.start_feeder()
        workers = [rig.start_worker("w1"), rig.start_worker("w2")]
        begun = time.monotonic()
        rig.wait_finished(rig.submit(rig.media / "in.mp4", rig.media / "out" / "plain.mp4", pipeline="slow"), 90)
        undisturbed = time.monotonic() - begun

        job_id = rig.submit(rig.media / "in.mp4", rig.media / "out" / "killed.mp4", pipeline="slow", notify_url=receiver.url)
        wait_until(lambda: encoding(rig, job_id), 30, "the encode under way")
        owner_of(rig, job_id, workers).kill()
        killed = time.monotonic()
        job = rig.wait_finished(job_id, 10 + undisturbed + 5)
        took = time.monotonic() - killed
        print(f"recovered {took:.1f} s after the kill; undisturbed it takes {undisturbed:.1f} s")
        assert took < 10 + undisturbed
        assert len(job["attempts"]) == 2
        assert len(job["outputs"]) == 1
        wait_until(lambda: receiver.ids(job_id, "FINISHED"), 15, "the webhook")
        assert len(receiver.ids(job_id, "FINISHED")) == 1
        invariants(rig, outputs=[rig.media / "out" / "killed.mp4"])
    receiver.close()


def holds_the_lock(rig: Rig) -> bool:
    """Whether some process is inside a write right now."""
    fd = os.open(rig.data / "nommerd.db.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def freeze_outside_a_write(rig: Rig, worker: Daemon) -> None:
    for _ in range(50):
        worker.signal(signal.SIGSTOP)
        busy = True
        for _ in range(20):  # others' writes are over within this time; only a frozen one lasts
            busy = holds_the_lock(rig)
            if not busy:
                return
            time.sleep(0.02)
        worker.signal(signal.SIGCONT)
    raise AssertionError("the worker was always inside a write")


def test_a_frozen_worker_that_wakes_after_its_lease_commits_nothing(tmp_path: Path) -> None:
    source = clip(seconds=6, size="640x360")
    receiver = Receiver()
    with Rig(tmp_path, config=operator_pipelines(tmp_path), lease_seconds=3) as rig:
        (rig.media / "in.mp4").write_bytes(source.read_bytes())
        out = rig.media / "out" / "frozen.mp4"
        rig.start_feeder()
        workers = [rig.start_worker("w1"), rig.start_worker("w2")]
        job_id = rig.submit(rig.media / "in.mp4", out, pipeline="slow", notify_url=receiver.url)
        wait_until(lambda: encoding(rig, job_id), 30, "the encode under way")
        frozen = owner_of(rig, job_id, workers)
        freeze_outside_a_write(rig, frozen)

        job = rig.wait_finished(job_id, 90)
        wait_until(lambda: receiver.ids(job_id, "FINISHED"), 15, "the webhook")
        before = (out.stat().st_ino, digest(out), job["event_seq"], len(receiver.accepted))
        assert len(job["attempts"]) == 2
        assert job["attempts"][1]["worker"] != frozen.name

        frozen.signal(signal.SIGCONT)
        wait_until(lambda: "fenced" in rig.tail(frozen.name).lower(), 20, "the woken worker to notice")
        wait_until(lambda: not rig.processes("ff"), 10, "its ffmpeg stopped")
        again = rig.job(job_id)
        assert (out.stat().st_ino, digest(out), again["event_seq"], len(receiver.accepted)) == before
        assert again["state"] == "FINISHED"
        assert frozen.alive
        invariants(rig, outputs=[out])
        other = rig.submit(rig.media / "in.mp4", rig.media / "out2" / "next.mp4", pipeline="fast")
        rig.wait_finished(other, 60)
    receiver.close()


def test_a_stopped_worker_gives_its_job_back_within_five_seconds_uncharged(tmp_path: Path) -> None:
    with Rig(tmp_path, config=operator_pipelines(tmp_path)) as rig:
        (rig.media / "in.mp4").write_bytes(clip(seconds=6, size="640x360").read_bytes())
        rig.start_feeder()
        workers = [rig.start_worker("w1"), rig.start_worker("w2")]
        job_id = rig.submit(rig.media / "in.mp4", rig.media / "out" / "a.mp4", pipeline="slow")
        wait_until(lambda: encoding(rig, job_id), 30, "the encode under way")
        assert owner_of(rig, job_id, workers).stop(5) == 0
        job = rig.wait_finished(job_id, 90)
        assert len(job["attempts"]) == 2
        assert job["attempts"][0]["why"] not in (None, "finished")
        invariants(rig, outputs=[rig.media / "out" / "a.mp4"])


def submit_until_accepted(rig: Rig, number: int) -> str | None:
    """One submission under its own idempotency key; None when the feeder was killed meanwhile."""
    dest = rig.media / "out" / f"{number}.mp4"
    body = {"source": (rig.media / "in.mp4").as_uri(), "dest": dest.as_uri(), "pipeline": "fast"}
    try:
        status, answer = rig.call("POST", "/v1/jobs", body, headers={"Idempotency-Key": f"job-{number}"}, timeout=5)
    except OSError:
        return None
    if status == 503:
        return None
    assert status in (200, 201), answer
    return str(answer["id"])


def note_finished(rig: Rig, seen: dict[str, tuple[int, str]]) -> bool:
    """Remember inode and sha256 of each output the first time its job is FINISHED; they may never change."""
    try:
        jobs = rig.jobs()
    except OSError:
        return False
    for job in jobs:
        if job["state"] == "FINISHED":
            path = path_of(job["outputs"][0]["uri"])
            now = (path.stat().st_ino, job["outputs"][0]["sha256"])
            assert seen.setdefault(job["id"], now) == now, f"{path} was published twice"
    return True


def crash_run(tmp_path: Path, *, jobs: int, kills: int, seconds: float) -> None:
    seed = int(os.environ.get("NOMMERD_TEST_SEED") or random.randrange(2**32))
    print(f"seed {seed} (NOMMERD_TEST_SEED={seed} repeats it)")
    dice = random.Random(seed)
    begun = time.monotonic()
    source = clip(seconds=2, size="160x120")
    with Rig(tmp_path, config=operator_pipelines(tmp_path), lease_seconds=3, max_attempts=1000) as rig:
        (rig.media / "in.mp4").write_bytes(source.read_bytes())
        seen: dict[str, tuple[int, str]] = {}
        accepted: dict[int, str] = {}
        for round_ in range(kills + 1):
            rig.start_feeder()
            daemons = [rig.feeder, rig.start_worker(f"a{round_}"), rig.start_worker(f"b{round_}")]
            wanted = jobs if round_ == kills else min(jobs, (round_ + 1) * jobs // kills + 1)
            if round_ < kills:
                until = time.monotonic() + dice.uniform(0.2, 3.0)
                while time.monotonic() < until:
                    missing = next((n for n in range(wanted) if n not in accepted), None)
                    if missing is None:
                        note_finished(rig, seen)
                        time.sleep(0.05)
                    elif (job_id := submit_until_accepted(rig, missing)) is not None:
                        accepted[missing] = job_id
                for daemon in dice.sample(daemons, len(daemons)):
                    daemon.process.kill()  # type: ignore[union-attr]
                for daemon in daemons:
                    daemon.kill()  # type: ignore[union-attr]
                rig.daemons.clear()
        for number in range(jobs):
            if number not in accepted:
                accepted[number] = str(submit_until_accepted(rig, number))
        wait_until(lambda: note_finished(rig, seen) and len(seen) == jobs, seconds - (time.monotonic() - begun),
                   lambda: f"all FINISHED: {[j for j in rig.jobs() if j['state'] != 'FINISHED']}")
        assert len(set(accepted.values())) == jobs
        note_finished(rig, seen)
        invariants(rig, outputs=[path_of(job["dest"]) for job in rig.jobs()])
        note_finished(rig, seen)
        took = time.monotonic() - begun
        print(f"{jobs} jobs, {kills} times everything killed, {took:.0f} s")
        assert took < seconds


@pytest.mark.timeout(180)
def test_killing_everything_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    crash_run(tmp_path, jobs=20, kills=10, seconds=120)


@pytest.mark.slow
@pytest.mark.timeout(330)
def test_killing_everything_fifty_times_over_a_hundred_jobs(tmp_path: Path) -> None:
    crash_run(tmp_path, jobs=100, kills=50, seconds=300)
