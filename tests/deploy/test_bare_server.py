"""docs/deploy.md, followed to the letter on an empty Debian."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.deploy.root import CHECKOUT, Root
from tests.media import clip
from tests.pages import ROOTS_PROMPT, blocks_of, commands, section

PAGE = CHECKOUT / "docs" / "deploy.md"
SECTIONS = ("An empty server", "Upgrade")


@pytest.mark.timeout(600)
def test_the_page_leads_from_an_empty_server_to_a_finished_job(fresh: Root) -> None:
    todo = [command for title in SECTIONS for block in blocks_of(section(PAGE, title)) if block.language == "console"
            for command in commands(block.text, ROOTS_PROMPT)]
    shutil.copy(clip(seconds=2, size="320x180", container="mov"), fresh.path / "root/nommerd/holiday.mov")
    # one shell, as a person would have, that stops at the first command that fails and says which
    script = "cd /root/nommerd\n" + "\n".join(f"echo '--- {number}'\n{command}" for number, command in enumerate(todo))
    done = fresh.run("bash", "-e", "-c", script, timeout=600, check=False)
    last = int(done.stdout.rpartition("--- ")[2].partition("\n")[0])
    assert done.returncode == 0, f"# {todo[last]}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    jobs = json.loads(fresh.shell("NOMMERD_TOKEN=$(cat /var/lib/nommerd/token) nommerd jobs ls --json").stdout)
    assert jobs, "the page submits some"
    assert {job["state"] for job in jobs} == {"FINISHED"}
    for name in ("holiday.mp4", "small.mp4", "after.mp4"):
        shown = fresh.run("ffprobe", "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0",
                          f"/srv/media/{name}")
        assert "h264" in shown.stdout
