"""Backups made while feeder and worker run, put back after everything is gone."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.media import clip
from tests.rig import FINAL, Rig, invariants, wait_until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as made:
        shutil.copy(clip(seconds=4, size="320x180"), made.media / "in.mp4")
        made.start_feeder()
        yield made


def nommerd(rig: Rig, *arguments: str) -> tuple[int, dict[str, Any]]:
    """A command with --json; its exit code and what it says."""
    ended = subprocess.run([sys.executable, "-m", "nommerd", *arguments, "-c", str(rig.config), "--json"], env=rig.env,
                           capture_output=True, text=True, timeout=60, check=False, cwd=rig.root)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def refusal(rig: Rig, *arguments: str) -> tuple[int, str]:
    code, told = nommerd(rig, *arguments)
    return code, told["errors"][0]["code"]


def submit(rig: Rig, name: str) -> str:
    return rig.submit(rig.media / "in.mp4", rig.media / name, preset="web-480p")


def test_a_backup_amid_submissions_brings_back_jobs_and_token_on_an_empty_disk(rig: Rig) -> None:
    file, done = str(rig.root / "backup.tar.gz"), Event()
    known = [submit(rig, "out.mp4")]
    token = rig.token

    def keep_submitting() -> None:
        while not done.is_set():
            known.append(submit(rig, f"{len(known)}.mp4"))

    writer = Thread(target=keep_submitting)
    writer.start()
    try:
        wait_until(lambda: len(known) > 5, 20, "jobs")
        sure = list(known)
        code, told = nommerd(rig, "backup", file)
    finally:
        done.set()
        writer.join()
    assert code == 0
    assert len(sure) <= told["jobs"] <= len(known)
    assert refusal(rig, "restore", file, "--force") == (2, "config.feeder_running")
    assert rig.feeder is not None
    rig.feeder.stop()
    assert refusal(rig, "restore", file) == (2, "config.data_exists")
    shutil.rmtree(rig.data)
    code, back = nommerd(rig, "restore", file)
    assert (code, back["jobs"], rig.token) == (0, told["jobs"], token)
    rig.start_feeder()
    jobs = {job["id"] for job in rig.jobs()}  # asked with the token of before
    assert len(jobs) == told["jobs"]
    assert set(sure) <= jobs <= set(known)


@pytest.mark.slow
def test_a_job_that_ran_when_the_backup_was_made_is_run_again_and_a_working_worker_stops_a_restore(rig: Rig) -> None:
    file = str(rig.root / "backup.tar.gz")
    worker = rig.start_worker("w")
    job = submit(rig, "out.mp4")
    wait_until(lambda: rig.job(job)["state"] not in {"PENDING", *FINAL}, 30, "it runs")
    worker.signal(signal.SIGSTOP)
    assert nommerd(rig, "backup", file)[0] == 0
    assert rig.feeder is not None
    rig.feeder.stop()
    assert refusal(rig, "restore", file, "--force") == (2, "config.in_use")
    worker.kill()
    shutil.rmtree(rig.data)
    assert nommerd(rig, "restore", file)[0] == 0
    with closing(sqlite3.connect(rig.data / "nommerd.db")) as db:
        body, = db.execute("SELECT body FROM jobs").fetchone()
    assert json.loads(body)["owner"]["worker"] == "w"
    rig.start_feeder()
    rig.start_worker("w2")
    assert [attempt["worker"] for attempt in rig.wait_finished(job)["attempts"]] == ["w", "w2"]
    invariants(rig, outputs=[])
