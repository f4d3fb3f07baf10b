"""The walk through the API that the docs show, as they show it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.media import clip
from tests.rig import Rig

WALK = Path(__file__).parents[2] / "docs" / "walk.sh"


@pytest.mark.timeout(180)
def test_the_walk_with_curl_and_jq_goes_to_its_end(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        rig.start_feeder()
        rig.start_worker("w1")
        source = rig.media / "holiday.mov"
        source.write_bytes(clip(seconds=1, size="320x180", container="mov").read_bytes())
        env = {**os.environ, "TOKEN": rig.token, "NOMMERD_URL": f"http://127.0.0.1:{rig.port}"}
        done = subprocess.run(["bash", str(WALK), str(source)], env=env, cwd=tmp_path, capture_output=True, text=True,
                              timeout=150)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{rig.tail('w1')}"
        folder = next(rig.media.glob("walk-*"))
        assert {path.name for path in folder.iterdir()} >= {"first.mp4", "small.mp4", "again.mp4"}
        states = {job["dest"].rpartition("/")[2]: job["state"] for job in rig.jobs()}
        assert states == {"first.mp4": "FINISHED", "small.mp4": "FINISHED", "again.mp4": "FINISHED"}
        small = next(job for job in rig.jobs() if job["dest"].endswith("small.mp4"))
        streams = small["outputs"][0]["probe"]["streams"]
        assert max(stream.get("height") or 0 for stream in streams) == 90  # as the preset said after it was changed
        assert rig.token not in done.stdout + done.stderr
