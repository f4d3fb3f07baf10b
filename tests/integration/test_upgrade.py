"""Today's feeder and worker on a data directory of schema version 1, whose own ones were killed at work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.earlier import schema_1
from tests.media import clip
from tests.rig import Rig, path_of, wait_until

KEPT = "jobs: {keep_finished_days: 36500, abandon_after_seconds: 1000000000}\n"  # however old the directory is by now


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as made:
        made.config.write_text(made.config.read_text() + KEPT)
        for name in ("in.mp4", "long.mp4"):
            shutil.copy(clip(seconds=1, size="160x120"), made.media / name)
        yield made


def test_an_upgraded_installation_shows_its_old_jobs_and_runs_those_that_wait(rig: Rig) -> None:
    ids = schema_1(rig.data, rig.media)
    token = rig.token
    rig.start_feeder()
    assert rig.token == token
    assert {job["id"] for job in rig.jobs()} == set(ids.values())
    rig.start_worker("w2")
    done = rig.wait_finished(ids["PENDING"])
    (output,) = done["outputs"]
    assert path_of(output["uri"]).stat().st_size == output["bytes"]
    for name in ("FINISHED", "ERROR", "CANCELLED", "ABANDONED"):
        assert rig.job(ids[name])["state"] == name
    status, retried = rig.call("POST", f"/v1/jobs/{ids['ABANDONED']}/retry")
    assert (status, retried["state"]) == (202, "PENDING"), retried
    rig.wait_finished(ids["ABANDONED"])
    assert [one for one in rig.events("feeder") if one["level"] == "error"] == []


@pytest.mark.slow
def test_what_ran_when_the_old_ones_were_killed_is_run_again(rig: Rig) -> None:
    ids = schema_1(rig.data, rig.media)
    rig.start_feeder()
    rig.start_worker("w2")
    for name in ("ENCODING", "DOWNLOADING", "UPLOADING"):
        job = rig.wait_finished(ids[name], 90)  # the old leader's and the old workers' leases run out first
        assert [attempt["worker"] for attempt in job["attempts"]] == ["w1", "w2"]


@pytest.mark.slow
def test_backup_on_the_command_line_takes_the_old_file_as_it_is(rig: Rig) -> None:
    schema_1(rig.data, rig.media)
    made = subprocess.run([sys.executable, "-m", "nommerd", "backup", str(rig.root / "before.tar.gz"), "-c", str(rig.config),
                           "--json"], env=rig.env, capture_output=True, text=True, timeout=60, cwd=os.sep)
    told = json.loads(made.stdout)
    assert (made.returncode, told["schema_version"], told["jobs"]) == (0, 1, 10)
    rig.start_feeder()
    assert rig.feeder is not None
    assert rig.feeder.stop() == 0
    back = subprocess.run([sys.executable, "-m", "nommerd", "restore", str(rig.root / "before.tar.gz"), "-c", str(rig.config),
                           "--json", "--force"], env=rig.env, capture_output=True, text=True, timeout=60, cwd=os.sep)
    assert (back.returncode, json.loads(back.stdout)["schema_version"]) == (0, 1)
    rig.start_feeder()
    wait_until(lambda: len(rig.jobs()) == 10, 10, "all jobs")
