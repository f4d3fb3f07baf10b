"""A machine whose data directory is an earlier version's: upgraded, and put back, by root as docs/deploy.md says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.deploy.machine import Machine
from tests.deploy.root import Root
from tests.earlier import schema_1
from tests.media import clip

KEPT = "jobs: {keep_finished_days: 36500, abandon_after_seconds: 1000000000}\n"  # however old the directory is by now


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_old_data_directory_works_and_goes_back_by_the_backup_that_root_made(ready: Root, tmp_path: Path) -> None:
    data, old = ready.path / "var/lib/nommerd", tmp_path / "old"
    for path in data.iterdir():
        ready.run("rm", "-rf", f"/var/lib/nommerd/{path.name}")
    ids = schema_1(old, Path("/srv/media"))
    shutil.copytree(old, data, dirs_exist_ok=True)
    ready.run("chown", "-R", "nommerd:nommerd", "/var/lib/nommerd")
    with (ready.path / "etc/nommerd/nommerd.yaml").open("a") as settings:
        settings.write(KEPT)
    told = json.loads(ready.run("nommerd", "backup", "/root/before.tar.gz", "--json").stdout)
    assert (told["schema_version"], told["jobs"]) == (1, 10)

    machine = Machine(ready)
    machine.wait_listening()
    machine.put(clip(seconds=1, size="160x120"), "in.mp4")
    machine.call("POST", f"/v1/jobs/{ids['CANCELLED']}/retry")
    assert machine.wait_state(ids["CANCELLED"], "FINISHED")["outputs"]

    ready.run("supervisorctl", "stop", "nommerd-worker", "nommerd-feeder")
    ready.run("nommerd", "restore", "--force", "/root/before.tar.gz")
    owners = ready.run("stat", "-c", "%U:%G", *(f"/var/lib/nommerd/{path.name}" for path in data.iterdir())).stdout.split()
    assert set(owners) == {"nommerd:nommerd"}
    ready.run("supervisorctl", "start", "nommerd-feeder", "nommerd-worker")
    machine.wait_listening()
    assert machine.job(ids["CANCELLED"])["state"] == "CANCELLED"
