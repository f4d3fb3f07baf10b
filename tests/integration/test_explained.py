"""Logs and explanations on real processes: what was explained is what is then run, and what runs is in the log."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import media
from tests.http_site import serve
from tests.rig import Rig, wait_until

OWN = {  # pipelines besides those that came with nommerd
    "archive": """\
kind: pipeline
name: archive
stages:
  - fetch
  - ffmpeg:
      video: {codec: prores, profile: hq, pixel_format: yuv422p10le}
      audio: {codec: pcm_s24le, tracks: all}
      metadata: {keep: all, timecode: true, chapters: true}
      output: {container: mov}
  - upload
  - notify
""",
    "two-steps": """\
kind: pipeline
name: two-steps
stages:
  - fetch
  - ffmpeg: {id: master, video: {codec: h264, encoder_preset: ultrafast, width: 160, height: 90}, output: {container: mkv}}
  - ffmpeg: {id: small, input: master, video: {codec: h264, encoder_preset: ultrafast, width: 64, height: 64, fit: pad}}
  - ffmpeg: {id: sound, audio: {codec: flac}, output: {file: "${source.stem}.flac"}}
  - verify: {decode: full}
  - upload
""",
    "raw-copy": """\
kind: pipeline
name: raw-copy
stages:
  - fetch
  - ffmpeg: {options: [[c, copy], [movflags, +faststart], [f, mp4]]}
  - faststart
  - upload
""",
    "slow": """\
kind: pipeline
name: slow
stages:
  - fetch
  - ffmpeg: {video: {codec: h264, encoder_preset: placebo, width: 3840, height: 2160, fit: stretch, upscale: true}}
  - upload
""",
}
SMALL = {"video_bitrate": "300k"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    root = tmp_path_factory.mktemp("explained")
    for folder in ("pipelines", "presets"):
        (root / folder).mkdir()
    for name, text in OWN.items():
        (root / "pipelines" / f"{name}.yaml").write_text(text)
    with Rig(root, config=" ", slots=1, lease_seconds=3) as rig:
        media.copy(media.clip(seconds=1, size="320x180"), rig.media / "in.mov")
        rig.start_feeder()
        rig.start_worker("w1")
        yield rig


def submit(rig: Rig, **wanted: Any) -> str:
    status, job = rig.call("POST", "/v1/jobs", {"source": (rig.media / "in.mov").as_uri(), **wanted})
    assert status == 201, job
    return str(job["id"])


def attempts(rig: Rig, job_id: str) -> list[dict[str, Any]]:
    status, answer = rig.call("GET", f"/v1/jobs/{job_id}/log")
    assert status == 200 and answer["job"] == job_id, answer
    found: list[dict[str, Any]] = answer["attempts"]
    return found


def finished_log(rig: Rig, job_id: str) -> dict[str, Any]:
    """The log of the only attempt, once it is written to its end: that is beside the job's."""
    only, = wait_until(lambda: [one for one in attempts(rig, job_id) if one["stages"] and one["ended"]], 10, "the log's end")
    return only


def cli(rig: Rig, *arguments: str) -> str:
    env = {**rig.env, "NOMMERD_TOKEN": rig.token, "NOMMERD_URL": f"http://127.0.0.1:{rig.port}"}
    return subprocess.run([sys.executable, "-m", "nommerd", *arguments], env=env, check=True, capture_output=True, text=True,
                          timeout=60).stdout


@pytest.mark.parametrize("wanted", [
    {"preset": "web-480p"}, {"pipeline": "two-steps"},
    *(pytest.param(wanted, marks=pytest.mark.slow) for wanted in (
        {"preset": "web-720p"}, {"preset": "web-1080p"}, {"preset": "audio-aac"}, {"preset": "remux-mp4"},
        {"pipeline": "classic-2pass"}, {"pipeline": "archive"}, {"pipeline": "raw-copy"})),
], ids=lambda wanted: next(iter(wanted.values())))
def test_what_is_explained_is_what_is_run_and_made(rig: Rig, wanted: dict[str, str]) -> None:
    name = next(iter(wanted.values()))
    params = SMALL if name in ("web-480p", "classic-2pass") else {}
    body = {**wanted, "params": params, "dest": (rig.media / f"out-{name}").as_uri() + "/"}
    status, explained = rig.call("POST", "/v1/explain", {"source": (rig.media / "in.mov").as_uri(), **body})
    assert status == 200, explained
    job_id = submit(rig, **body)
    job = rig.wait_finished(job_id)
    log = finished_log(rig, job_id)
    ran = [{"stage": stage["stage"], "argv": command["argv"]} for stage in log["stages"] for command in stage["commands"]]
    assert explained["commands"] == ran
    assert rig.call("POST", "/v1/explain", {"job": job_id})[1]["commands"] == ran
    assert [output["name"] for output in explained["outputs"]] == [one["uri"].rpartition("/")[2] for one in job["outputs"]]
    for planned, made in zip(explained["outputs"], job["outputs"], strict=True):
        assert planned["container"] == made["probe"]["container"]
        for plan, stream in zip(planned["streams"], made["probe"]["streams"], strict=True):
            seconds, expected = plan.pop("duration_seconds", None), stream.pop("duration_seconds", None)
            assert plan.items() <= stream.items()
            assert seconds is None or expected is None or seconds == pytest.approx(expected, abs=0.1)
    assert log["outcome"] == "finished" and log["source"]["streams"][0]["width"] == 320
    assert log["outputs"] == [{"uri": one["uri"], "probe": one["probe"]} for one in rig.job(job_id)["outputs"]]
    assert log["stages"][0]["stage"] == "fetch" and not log["truncated"]
    assert all(command["code"] == 0 and command["seconds"] is not None for s in log["stages"] for command in s["commands"])


@pytest.mark.slow
def test_commands_of_a_log_run_again_from_a_copy(rig: Rig, tmp_path: Path) -> None:
    job_id = submit(rig, preset="web-480p", params=SMALL, dest=(rig.media / "again.mp4").as_uri())
    rig.wait_finished(job_id)
    finished_log(rig, job_id)
    lines = [line.strip()[2:] for line in cli(rig, "jobs", "log", job_id).splitlines() if line.strip().startswith("$ ")]
    assert len(lines) == 5
    shutil.copy(rig.media / "in.mov", tmp_path / "source.mov")
    subprocess.run(["sh", "-e", "-c", "\n".join(lines)], cwd=tmp_path, check=True, capture_output=True,
                   stdin=subprocess.DEVNULL)
    assert (tmp_path / "out-ffmpeg.mp4").stat().st_size == (rig.media / "again.mp4").stat().st_size


def test_a_failed_attempt_tells_operators_what_ffmpeg_said_and_the_job_does_not(rig: Rig) -> None:
    broken = rig.media / "broken.mkv"
    broken.write_bytes(media.clip(seconds=4, size="320x180", container="mkv").read_bytes()[:60_000])
    job_id = submit(rig, source=broken.as_uri(), preset="web-480p", params=SMALL, dest=(rig.media / "broken.mp4").as_uri())
    job = rig.wait_state(job_id, {"ERROR"}, 30)
    log = finished_log(rig, job_id)
    assert log["outcome"] == "failed" and job["error"]["code"] == "input.truncated"
    said = [command["stderr"] for stage in log["stages"] for command in stage["commands"] if command["stderr"]]
    assert said and any("File ended prematurely" in text for text in said)
    assert "File ended prematurely" not in json.dumps(job)
    assert "File ended prematurely" in cli(rig, "jobs", "log", job_id)


def test_secrets_of_a_job_are_not_in_its_log(rig: Rig) -> None:
    with serve() as site:
        site.files["/film.mp4?sig=canary-7f3a91"] = media.clip(seconds=1, size="320x180").read_bytes()
        source = f"{site.url}/film.mp4?sig=canary-7f3a91"
        job_id = submit(rig, source=source, preset="remux-mp4", dest=(rig.media / "web.mp4").as_uri())
        rig.wait_finished(job_id)
    log = finished_log(rig, job_id)
    assert "canary" not in json.dumps(log) and str(rig.data) not in json.dumps(log)


@pytest.mark.slow
def test_a_killed_workers_log_shows_what_it_ran(rig: Rig) -> None:
    job_id = submit(rig, pipeline="slow", dest=(rig.media / "slow.mp4").as_uri())
    running = wait_until(lambda: [one for one in attempts(rig, job_id) if one["stages"]], 20, "the log of a running attempt")
    command = running[0]["stages"][-1]["commands"][-1]
    assert running[0]["ended"] is None and command["code"] is None and "placebo" in command["argv"]
    next(daemon for daemon in rig.daemons if daemon.name == "w1").kill()
    rig.start_worker("w2")
    wait_until(lambda: any(one["number"] == 2 and one["stages"] for one in attempts(rig, job_id)), 30, "a second attempt")
    first, second = attempts(rig, job_id)
    assert (first["outcome"], first["worker"], first["stages"][-1]["commands"][-1]["code"]) == ("lost", "w1", None)
    assert (second["outcome"], second["worker"]) == (None, "w2")
    rig.call("POST", f"/v1/jobs/{job_id}/cancel")
    rig.wait_state(job_id, {"CANCELLED"}, 20)
    ended = wait_until(lambda: [one for one in [attempts(rig, job_id)[1]] if one["ended"]], 10, "the second attempt's end")
    assert ended[0]["outcome"] == "cancelled"


def test_explain_on_the_command_line(rig: Rig) -> None:
    shown = cli(rig, "explain", str(rig.media / "in.mov"), "-p", "web-720p", "--set", "video_bitrate=1M")
    assert "-b:v 1000000" in shown and "output  in.mp4, mp4\n  video h264 320x180" in shown and "explain.not_enlarged" in shown
    answer = json.loads(cli(rig, "explain", "https://media.example/x.mov", "-p", "audio-aac", "--json"))
    assert answer["recipe"]["pipeline"] == "audio-aac" and answer["warnings"][0]["code"] == "explain.assumed_source"
