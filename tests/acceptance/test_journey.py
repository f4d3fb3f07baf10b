"""What a newcomer does after the demo: `nommerd up`, a job by curl, a pipeline of one's own, and a typo in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nommerd.media.binaries import find
from tests.media import clip
from tests.rig import CANARY, Receiver, Rig, invariants, wait_until

TWO_PASS = """\
kind: pipeline
name: classic
description: Two-pass H.264 by flags.
params:
  video_bitrate: {type: bitrate, default: 800k}
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, veryfast], [b:v, $video_bitrate], [vf, "scale=-2:180"]]}
  - ffmpeg: {pass: 2, options: [[c:v, libx264], [preset, veryfast], [b:v, $video_bitrate], [vf, "scale=-2:180"], [c:a, aac]]}
  - faststart
  - upload
  - notify
"""


def probe(path: Path) -> dict[str, object]:
    argv = [str(find(None, None).ffprobe), "-v", "error", "-of", "json", "-show_format", "-show_streams", str(path)]
    return dict(json.loads(subprocess.run(argv, check=True, capture_output=True).stdout))


def boxes(path: Path) -> list[str]:
    """Names of the top-level boxes of an MP4, in order."""
    names, data, at = [], path.read_bytes(), 0
    while at < len(data):
        size = int.from_bytes(data[at:at + 4])
        names.append(data[at + 4:at + 8].decode("latin-1"))
        if size == 1:
            size = int.from_bytes(data[at + 8:at + 16])
        at += size or len(data)
    return names


def with_pipeline(root: Path, text: str) -> str:
    (root / "presets").mkdir(parents=True, exist_ok=True)
    (root / "pipelines").mkdir(exist_ok=True)
    (root / "pipelines" / "classic.yaml").write_text(text)
    return "\n"


def nommerd(*argv: str, cwd: Path, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nommerd", *argv], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=timeout, check=False, stdin=subprocess.DEVNULL)


def test_up_takes_a_job_by_curl_and_the_result_is_what_was_asked_for(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        source = rig.media / "holiday film.mov"
        source.write_bytes(clip(seconds=4, size="1280x720", container="mov").read_bytes())
        up = rig.start("up", "--workers", "2")
        rig.feeder = up
        wait_until(lambda: "ready: " in rig.tail("up"), 60, lambda: rig.tail("up"))
        workers = rig.call("GET", "/v1/workers")[1]["workers"]  # it is not ready before its workers are
        assert [(worker["name"], worker["state"]) for worker in workers] == [("worker-1", "ACTIVE"), ("worker-2", "ACTIVE")]
        body = json.dumps({"source": source.as_uri(), "dest": (rig.media / "out.mp4").as_uri(), "preset": "web-480p"})
        curl = subprocess.run(["curl", "-sS", "-H", "Authorization: Bearer " + rig.token, "-d", body,
                               f"http://127.0.0.1:{rig.port}/v1/jobs"], capture_output=True, text=True, check=True)
        job = rig.wait_finished(json.loads(curl.stdout)["id"], 90)
        out = probe(rig.media / "out.mp4")
        video = next(s for s in out["streams"] if s["codec_type"] == "video")  # type: ignore[attr-defined]
        audio = next(s for s in out["streams"] if s["codec_type"] == "audio")  # type: ignore[attr-defined]
        assert (video["codec_name"], audio["codec_name"]) == ("h264", "aac")
        assert (video["width"], video["height"]) == (854, 480)
        assert abs(float(out["format"]["duration"]) - 4) < 0.2  # type: ignore[index]
        names = boxes(rig.media / "out.mp4")
        assert names.index("moov") < names.index("mdat")
        assert [e["seq"] for e in job["events"]] == list(range(1, job["event_seq"] + 1))
        assert [e["state"] for e in job["events"]] == ["DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED"]
        invariants(rig, outputs=[])
        assert up.stop(15) == 0
        assert not rig.processes("python")


def test_up_restarts_a_worker_that_dies(tmp_path: Path) -> None:
    with Rig(tmp_path) as rig:
        source = rig.media / "in.mp4"
        source.write_bytes(clip(seconds=2, size="160x120").read_bytes())
        up = rig.start("up", "--workers", "1")
        rig.feeder = up
        wait_until(rig._ready, 30, lambda: rig.tail("up"))
        first = rig.wait_finished(rig.submit(source, rig.media / "a.m4a", preset="audio-aac"), 60)
        pid = next(pid for pid in children(up.pid) if " worker " in cmdline(pid))
        os.kill(pid, signal.SIGKILL)
        second = rig.wait_finished(rig.submit(source, rig.media / "b.m4a", preset="audio-aac"), 60)
        assert first["id"] != second["id"]
        assert up.stop(15) == 0


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_an_operators_two_pass_pipeline_works_by_name(tmp_path: Path) -> None:
    with Rig(tmp_path, config=with_pipeline(tmp_path, TWO_PASS)) as rig:
        source = rig.media / "in.mp4"
        source.write_bytes(clip(seconds=3, size="640x360").read_bytes())
        rig.start_feeder()
        rig.start_worker("w1")
        job_id = rig.submit(source, rig.media / "out.mp4", pipeline="classic", params={"video_bitrate": "300k"})
        job = rig.wait_finished(job_id, 60)
        video = next(s for s in probe(rig.media / "out.mp4")["streams"] if s["codec_type"] == "video")  # type: ignore[attr-defined]
        assert (video["width"], video["height"]) == (320, 180)
        assert 150_000 < int(video["bit_rate"]) < 500_000
        names = boxes(rig.media / "out.mp4")
        assert names.index("moov") < names.index("mdat")
        assert job["pipeline"] == "classic"


@pytest.mark.parametrize(("wrong", "right", "place"), [
    ("faststrat", "  - faststart", "classic.yaml:10:5"),
    ("- ffmpeg: {pas: 1,", "- ffmpeg: {pass: 1,", "classic.yaml:8:14"),
    ("[b:v, $video_bitrat]], [vf", "[b:v, $video_bitrate], [vf", "classic.yaml:"),
])
def test_a_typo_is_reported_with_its_place_by_config_check_and_at_feeder_start(tmp_path: Path, wrong: str, right: str,
                                                                               place: str) -> None:
    text = TWO_PASS.replace(right, "  - faststrat" if wrong == "faststrat" else wrong, 1)
    assert text != TWO_PASS
    with Rig(tmp_path, config=with_pipeline(tmp_path, text)) as rig:
        check = nommerd("config", "check", "-c", str(rig.config), cwd=tmp_path)
        assert check.returncode == 2, check
        assert place in check.stdout + check.stderr
        assert "Traceback" not in check.stdout + check.stderr
        feeder = rig.start("feeder")
        assert feeder.process.wait(30) == 2
        assert place in rig.tail("feeder")
        assert "Traceback" not in rig.tail("feeder")


def test_no_secret_is_seen_anywhere(tmp_path: Path) -> None:
    receiver = Receiver()
    with Rig(tmp_path) as rig:
        source = rig.media / "in.mp4"
        source.write_bytes(clip(seconds=2, size="160x120").read_bytes())
        rig.start_feeder()
        rig.start_worker("w1")
        hook = receiver.url.replace("http://", f"http://user:{CANARY}@") + f"?key={CANARY}"
        done = rig.submit(source, rig.media / "o" / "a.m4a", preset="audio-aac", notify_url=hook)
        lost = {"source": f"http://me:{CANARY}@127.0.0.1:9/a.mp4?sig={CANARY}", "preset": "audio-aac",
                "dest": (rig.media / "o" / "b.m4a").as_uri(), "notify_url": hook}
        status, answer = rig.call("POST", "/v1/jobs", lost)
        assert status == 201, answer
        rig.wait_finished(done, 60)
        rig.wait_state(answer["id"], {"ERROR"}, 60)
        wait_until(lambda: receiver.ids(done, "FINISHED") and receiver.ids(answer["id"], "ERROR"), 15, "both webhooks")
        invariants(rig, outputs=[rig.media / "o" / "a.m4a"], secrets=[CANARY, rig.token])
        assert not any(CANARY.encode() in body for _, _, _, body in receiver.accepted)
    receiver.close()
