"""docs/deploy.md, followed to the letter on an empty Debian, from its second block on: its first one made the machine."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cloud import Cloud
from tests.deploy.conftest import PAGE, shown
from tests.deploy.machine import Machine
from tests.deploy.root import Root, ports
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY
from tests.media import clip
from tests.pages import blocks_of, section


@pytest.mark.timeout(600)
def test_the_page_leads_from_an_empty_server_to_a_finished_job(ready: Root) -> None:
    first, *then = shown("An empty server")
    told = (ready.path / "root/provision.log").read_text()
    assert len(first) == 2
    assert "self-test: a clip was encoded and verified by the user nommerd" in told
    assert all(f" {state} " not in told.rpartition("changes\n")[2] for state in ("FATAL", "BACKOFF", "STARTING", "STOPPED"))
    assert told.rpartition("changes\n")[2].count(" RUNNING ") == 4, told
    machine = Machine(ready)
    machine.wait_listening()
    todo = [command for block in [*then, *shown("Upgrade")] for command in block]
    shutil.copy(clip(seconds=2, size="320x180", container="mov"), ready.path / "root/nommerd/holiday.mov")
    # one shell, as a person would have, that stops at the first command that fails and says which
    script = "cd /root/nommerd\n" + "\n".join(f"echo '--- {number}'\n{command}" for number, command in enumerate(todo))
    done = ready.run("bash", "-e", "-c", script, timeout=600, check=False)
    last = int(done.stdout.rpartition("--- ")[2].partition("\n")[0])
    assert done.returncode == 0, f"# {todo[last]}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    made = {"/srv/media/holiday.mp4", "/srv/media/small.mp4"}
    assert finished(ready) == {*made, "/srv/media/after.mp4"}
    for path in finished(ready):
        codecs = ("ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", path)
        assert "h264" in ready.run(*codecs).stdout
    back = ready.shell("cd /root/nommerd\n" + "\n".join(command for block in shown("Rollback") for command in block))
    assert "0 changes" in back.stdout, "it is the same version"
    machine.wait_listening()
    assert finished(ready) == made, "what the backup knew"


def finished(root: Root) -> set[str]:
    """Where the jobs of the machine went, of which none is in another state."""
    jobs = json.loads(root.shell("NOMMERD_TOKEN=$(cat /var/lib/nommerd/token) nommerd jobs ls --json").stdout)
    assert {job["state"] for job in jobs} == {"FINISHED"}, jobs
    return {job["dest"].removeprefix("file://") for job in jobs}


@pytest.mark.timeout(300)
def test_a_further_machine_takes_jobs_from_a_queue_that_it_shares(provisioned: Root, tmp_path: Path) -> None:
    """The feeder is another machine: this one."""
    (command,) = [block.text for block in blocks_of(section(PAGE, "An empty server")) if block.language == "text"]
    with ports(), Cloud(tmp_path / "cloud") as cloud, closing(Root.over(provisioned, tmp_path / "further")) as root:
        cloud.set_up().start_feeder()
        root.shell("rm -rf /etc/nommerd /etc/supervisor/conf.d/nommerd-* /var/lib/nommerd /var/log/nommerd /srv/media")
        settings: dict[str, Any] = {
            "cluster": cloud.cluster, "store": cloud.store, "bus": cloud.bus,
            "secrets": {"keys": (cloud.data / "keys").read_text().split()},
            "aws": {"region": REGION, "endpoint_url": cloud.url, "access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY},
            "storage": {"s3_read": [cloud.inbox], "s3_write": [cloud.outbox]}, "net": {"allow_networks": ["127.0.0.1/32"]}}
        (root.path / "root/nommerd/nommerd.yaml").write_text(yaml.safe_dump(settings))
        told = root.shell(f"cd /root/nommerd\n{command}").stdout
        assert "nommerd-worker                   RUNNING" in told, told
        id = cloud.submit_uris(cloud.put_source(clip(seconds=2, size="320x180")), cloud.dest("out.mp4"), pipeline="fast")
        (attempt,) = cloud.wait_finished(id)["attempts"]
        assert attempt["worker"].startswith("worker-")
        assert SECRET_KEY not in (root.path / "var/log/nommerd/worker.log").read_text()
        for path in ("/etc/nommerd/nommerd.yaml", "/var/lib/nommerd"):
            assert root.run("runuser", "-u", "nobody", "--", "test", "-r", path, check=False).returncode == 1, path
