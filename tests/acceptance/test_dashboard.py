"""The dashboard in a real browser, on a real feeder and worker: one walk, looked at from many sides."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.media import clip, missing
from tests.rig import Rig

ROOT = Path(__file__).parents[2]
SLOW = """\
kind: pipeline
name: slow
description: As fast as it plays.
params:
  width: {type: integer, default: 640, min: 16, max: 7680}
stages:
  - fetch
  - ffmpeg:
      options: [[c:v, libx264], [preset, ultrafast], [vf, "realtime,scale=$width:-2"], [c:a, aac]]
  - faststart
  - upload
  - notify
"""
STEPS = ("sign_in", "refuse_a_bad_form", "explain", "submit_and_watch", "read_the_job", "play", "take_home",
         "find_the_failed_and_retry", "cancel", "check_yaml", "pause_and_resume", "hostile_names", "labelled",
         "narrow", "dark", "by_keyboard", "with_less")


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    return found or missing("no chromium in PATH: apt install chromium")


def browse(script: str, rig: Rig, **settings: Any) -> dict[str, Any]:
    """What a script of tests/browser saw. It is a process of its own, unpatched."""
    given = {"url": f"http://127.0.0.1:{rig.port}", "token": rig.token, "media": str(rig.media), "chromium": chromium(),
             "shots": os.environ.get("NOMMERD_SHOTS"), **settings}
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, "-m", f"tests.browser.{script}"], cwd=ROOT, env=env, input=json.dumps(given),
                          capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-4000:]
    told = dict(json.loads(done.stdout))
    print(told["seconds"])
    return told


def start(rig: Rig) -> None:
    for folder in ("pipelines", "presets"):
        (rig.root / folder).mkdir()
    (rig.root / "pipelines" / "slow.yaml").write_text(SLOW)
    rig.start_feeder()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    chromium()
    with Rig(tmp_path_factory.mktemp("dashboard"), config="\n") as rig:
        start(rig)
        rig.start_worker("encoder-1")
        hostile = rig.media / "<img src=x onerror=alert(1)>.mov"
        hostile.write_bytes(clip(seconds=1, size="160x120").read_bytes())
        shutil.copy(clip(seconds=2.4, size="320x180"), rig.media / "live.mov")
        shutil.copy(clip(seconds=100, size="160x120", rate=5), rig.media / "long.mov")
        (rig.media / "broken.mp4").write_bytes(b"nothing")
        rig.submit(rig.media / "broken.mp4", rig.media / "b.mp4", preset="web-480p")
        rig.submit(hostile, rig.media / "h.mp4", preset="remux-mp4", labels={"<script>alert(2)</script>": "\"'&<"})
        long = rig.submit(rig.media / "long.mov", rig.media / "long.mp4", pipeline="slow")
        yield {"rig": rig, **browse("dashboard", rig, long=long)}


@pytest.mark.parametrize("step", STEPS)
def test_a_walk_through_the_dashboard(seen: dict[str, Any], step: str) -> None:
    assert seen["steps"].keys() == set(STEPS)
    assert seen["steps"][step] is None, seen["steps"][step]


def test_nothing_happened_that_nobody_asked_for(seen: dict[str, Any]) -> None:
    told = seen["seen"]
    assert told["violations"] == []
    assert told["console"] == []
    assert told["errors"] == []
    assert told["dialogs"] == []
    assert len(told["hosts"]) == 1 and told["hosts"][0].startswith("127.0.0.1:")
    assert set(told["refused"]) <= {"401 GET /v1/token", "422 POST /v1/jobs", "422 PUT /v1/presets/web-ours",
                                    "401 GET /v1/jobs", "401 GET /v1/stats"}


def test_the_output_plays_in_place_and_is_taken_home_whole(seen: dict[str, Any]) -> None:
    facts = seen["facts"]
    assert facts["media_status"] in (200, 206)
    assert facts["download"]["name"] == "live.mp4" and facts["download"]["bytes"] > 1000
    assert facts["size"] == [320, 180] if facts["can_play"] else facts["media_status"] == 206


def test_an_output_over_http_comes_whole_in_part_and_as_a_head(seen: dict[str, Any]) -> None:
    rig: Rig = seen["rig"]
    job = rig.job(seen["facts"]["live"])
    path, size = f"/v1/jobs/{job['id']}/outputs/0", job["outputs"][0]["bytes"]
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=20)  # one: each answer ends where it says
    headers = {"Authorization": f"Bearer {rig.token}"}

    def fetch(method: str, **more: str) -> tuple[int, bytes, str | None]:
        connection.request(method, path, headers=headers | more)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Content-Length")

    status, whole, length = fetch("GET")
    assert (status, length, sha256(whole).hexdigest()) == (200, str(size), job["outputs"][0]["sha256"])
    assert fetch("HEAD") == (200, b"", str(size))
    assert fetch("GET", Range="bytes=100-299") == (206, whole[100:300], "200")
    assert fetch("GET", Range=f"bytes={size}-")[0] == 416
    assert fetch("GET", **{"If-None-Match": f'"{job["outputs"][0]["sha256"]}"'})[:2] == (304, b"")
    connection.close()


@pytest.mark.slow
def test_the_page_stays_quick_while_a_thousand_jobs_come_in_and_wait(tmp_path: Path) -> None:
    with Rig(tmp_path, config="\n") as rig:
        start(rig)
        source = rig.media / "in.mov"
        source.write_bytes(b"nobody looks")
        with ThreadPoolExecutor(8) as pool:
            submitted = [pool.submit(rig.submit, source, rig.media / f"{n}.mp4", preset="web-480p", labels={"n": str(n)})
                         for n in range(1050)]
            told = browse("crowd", rig)
            for one in submitted:
                one.result()
        facts = told["facts"]
        for name in ("clicked_ms", "filled_ms", "long_ms"):
            print(name, sorted(round(ms) for ms in facts[name]))
        assert told["seen"]["errors"] == [] and told["seen"]["console"] == []
        assert median(facts["clicked_ms"]) < 100  # to the next frame: what one calls instant
        assert sorted(facts["filled_ms"])[-2] < 1000
        assert max(facts["long_ms"], default=0) < 300
        assert facts["nodes"] < 3000
        assert facts["asked_while_hidden"] == 0
