"""Pause, resume and drain on real processes: nothing new is begun, what runs goes on, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.media import clip
from tests.rig import Daemon, Rig, invariants, wait_until

SLOW = """\
kind: pipeline
name: slow
stages:
  - fetch
  - ffmpeg: {input_options: [[re, null]], options: [[c, copy], [f, mp4]]}
  - upload
"""


class Town(Rig):
    """A feeder and two workers of one slot each; `slow` jobs take as long as their clip."""

    def nommerd(self, *arguments: str, code: int = 0) -> Any:
        """What a client command prints as JSON."""
        env = {**self.env, "NOMMERD_URL": f"http://127.0.0.1:{self.port}", "NOMMERD_TOKEN": self.token}
        done = subprocess.run([sys.executable, "-m", "nommerd", *arguments, "--json"], env=env, capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)

    def begin(self, name: str) -> str:
        """A slow job, once it runs."""
        job_id = self.submit(self.media / "slow.mp4", self.out / f"{name}.mp4", pipeline="slow")
        self.wait_state(job_id, {"ENCODING"}, 20)
        return job_id

    def quick(self, name: str) -> str:
        return self.submit(self.media / "in.mp4", self.out / f"{name}.m4a", preset="audio-aac")

    @property
    def out(self) -> Path:
        return self.media / "out"

    def worker_states(self) -> dict[str, str]:
        return {one["name"]: one["state"] for one in self.nommerd("workers")}


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    root = tmp_path_factory.mktemp("operate")
    (root / "pipelines").mkdir()
    (root / "presets").mkdir()
    (root / "pipelines" / "slow.yaml").write_text(SLOW)
    with Town(root, slots=1, config="jobs: {keep_finished_days: 30}\n") as town:
        (town.media / "in.mp4").write_bytes(clip(seconds=1, size="160x120").read_bytes())
        (town.media / "slow.mp4").write_bytes(clip(seconds=3, size="160x120").read_bytes())
        town.out.mkdir()
        town.start_feeder()
        yield town


def looked(town: Town, worker: str, **orders: bool) -> None:
    """Wait until the worker has seen the order."""
    wait_until(lambda: [{name: one[name] for name in orders} for one in town.events(worker, "control.heeded")][-1:] == [orders],
               10, f"{worker} sees {orders}")


def test_a_pause_begins_nothing_new_and_lets_what_runs_go_on_until_somebody_resumes(town: Town) -> None:
    first = town.start_worker("w1")
    running = town.begin("running")
    assert town.nommerd("pause")["paused"]["by"] == "token file"
    looked(town, "w1", paused=True)
    waiting = [town.quick(f"waiting-{number}") for number in range(3)]
    town.wait_finished(running)
    second = town.start_worker("w2")  # one that starts into a pause begins nothing either
    wait_until(lambda: town.worker_states().get("w2") == "ACTIVE", 20, "the second worker reports")
    stats = town.nommerd("stats")
    assert stats["paused"] and stats["states"]["PENDING"] == 3 and stats["queue"]["normal"] == 3
    assert [town.job(job_id)["attempts"] for job_id in waiting] == [[], [], []]
    assert town.nommerd("resume") == {"paused": None}
    for job_id in waiting:
        job = town.wait_finished(job_id)
        assert len(job["attempts"]) == 1
    assert first.alive and second.alive


def test_a_drained_worker_finishes_its_job_takes_no_other_and_exits_with_success(town: Town) -> None:
    drained = next(daemon for daemon in town.daemons if daemon.name == "w1")
    leave_alone(town, drained)
    running = town.begin("drained")
    assert town.job(running)["owner"]["worker"] == "w1"
    town.nommerd("workers", "drain", "w1")
    wait_until(lambda: town.worker_states()["w1"] == "DRAINING", 10, "the heartbeat says so")
    later = town.quick("later")
    assert town.nommerd("workers", "drain", "w1", "--wait")["state"] == "TERMINATED"
    assert town.job(running)["state"] == "FINISHED"
    drained.process.wait(10)
    assert drained.process.returncode == 0
    assert town.job(later)["state"] == "PENDING"
    again = town.start_worker("w1")  # the request was of the life before
    town.wait_finished(later)
    assert again.alive and town.worker_states()["w1"] == "ACTIVE"


def test_sigterm_gives_back_at_once_also_while_draining(town: Town) -> None:
    daemon = town.daemons[-1]
    running = town.begin("given-back")
    town.nommerd("workers", "drain", "w1")
    looked(town, "w1", draining=True)
    assert daemon.stop(6) == 0
    assert town.job(running)["state"] == "PENDING"
    town.start_worker("w1")
    job = town.wait_finished(running)
    assert len(job["attempts"]) == 2 and job["attempts"][0]["why"] == "shutting down"


def test_a_worker_that_is_not_there_cannot_be_drained(town: Town) -> None:
    (fault,) = town.nommerd("workers", "drain", "nobody", code=1)["errors"]
    assert fault["code"] == "request.unknown_worker"


def test_nothing_was_lost(town: Town) -> None:
    invariants(town, outputs=[town.out / "any"])


def leave_alone(town: Town, daemon: Daemon) -> None:
    """End the other workers: the next job is this one's."""
    for other in town.daemons:
        if other is not daemon and other is not town.feeder and other.alive:
            other.stop()
