"""docs/deploy.md, followed to the letter on an empty Debian, from its second block on: its first one made the machine."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.deploy.conftest import shown
from tests.deploy.machine import Machine
from tests.deploy.root import Root
from tests.media import clip


@pytest.mark.timeout(600)
def test_the_page_leads_from_an_empty_server_to_a_finished_job(ready: Root) -> None:
    first, *then = shown("An empty server")
    told = (ready.path / "root/provision.log").read_text()
    assert len(first) == 2
    assert "self-test: a clip was encoded and verified by the user nommerd" in told
    assert all(f" {state} " not in told.rpartition("changes\n")[2] for state in ("FATAL", "BACKOFF", "STARTING", "STOPPED"))
    assert told.rpartition("changes\n")[2].count(" RUNNING ") == 4, told
    Machine(ready).wait_listening()
    todo = [command for block in [*then, *shown("Upgrade")] for command in block]
    shutil.copy(clip(seconds=2, size="320x180", container="mov"), ready.path / "root/nommerd/holiday.mov")
    # one shell, as a person would have, that stops at the first command that fails and says which
    script = "cd /root/nommerd\n" + "\n".join(f"echo '--- {number}'\n{command}" for number, command in enumerate(todo))
    done = ready.run("bash", "-e", "-c", script, timeout=600, check=False)
    last = int(done.stdout.rpartition("--- ")[2].partition("\n")[0])
    assert done.returncode == 0, f"# {todo[last]}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    jobs = json.loads(ready.shell("NOMMERD_TOKEN=$(cat /var/lib/nommerd/token) nommerd jobs ls --json").stdout)
    assert jobs, "the page submits some"
    assert {job["state"] for job in jobs} == {"FINISHED"}
    for name in ("holiday.mp4", "small.mp4", "after.mp4"):
        codecs = ("ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", f"/srv/media/{name}")
        assert "h264" in ready.run(*codecs).stdout
