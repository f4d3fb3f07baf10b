"""Presets and pipelines through the API of a real feeder, by curl and by `nommerd presets`; what jobs make of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nommerd.cli.app import run
from nommerd.media.binaries import find
from tests.media import clip
from tests.rig import Rig

PIPELINE = """\
kind: pipeline
name: small
description: "Quick: for tests."     # stays as it is
params:
  width: {type: integer, default: 128, min: 16, max: 640}
stages:
  - fetch
  - ffmpeg: {video: {codec: h264, encoder_preset: ultrafast, width: $width}}
  - upload
"""
PRESET = "kind: preset\nname: ours\npipeline: small\nparams: {width: 160}\n"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("presets")) as rig:
        (rig.media / "in.mp4").write_bytes(clip(seconds=1, size="320x180").read_bytes())
        rig.start_feeder()
        yield rig


def curl(rig: Rig, *argv: str) -> tuple[int, str]:
    """Status and body."""
    done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", "-H", f"Authorization: Bearer {rig.token}", *argv],
                          capture_output=True, text=True, check=True, timeout=30)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def put(rig: Rig, path: str, text: str, *argv: str) -> tuple[int, Any]:
    file = rig.root / "document.yaml"
    file.write_text(text)
    status, body = curl(rig, "-T", str(file), "-H", "Content-Type: application/yaml", *argv,
                        f"http://127.0.0.1:{rig.port}/v1/{path}")
    return status, json.loads(body)


def width(path: Path) -> int:
    argv = [str(find(None, None).ffprobe), "-v", "error", "-of", "json", "-show_streams", "-select_streams", "v", str(path)]
    return int(json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)["streams"][0]["width"])


def test_a_preset_is_put_used_and_changed_and_a_retry_of_the_old_job_runs_the_old_recipe(rig: Rig) -> None:
    assert put(rig, "pipelines/small", PIPELINE)[0] == 201
    status, made = put(rig, "presets/ours", PRESET)
    assert (status, made["version"]) == (201, 1)
    source, old, new = rig.media / "in.mp4", rig.media / "old.mp4", rig.media / "new.mp4"
    before = rig.submit(source, old, preset="ours")
    assert rig.call("POST", f"/v1/jobs/{before}/cancel")[0] == 202

    status, broken = put(rig, "presets/ours", PRESET.replace("width", "widht"))
    assert (status, broken["errors"][0]["place"], broken["errors"][0]["hint"]) == (422, "body:4:10", "Did you mean width?")
    status, changed = put(rig, "presets/ours", PRESET.replace("160", "64"), "-H", f"If-Match: {made['etag']}")
    assert (status, changed["version"]) == (200, 2)
    assert put(rig, "presets/ours", PRESET, "-H", f"If-Match: {made['etag']}")[0] == 412

    after = rig.submit(source, new, preset="ours")
    assert rig.call("POST", f"/v1/jobs/{before}/retry")[0] == 202
    rig.start_worker("w1")
    jobs = [rig.wait_finished(job_id, 60) for job_id in (before, after)]
    assert (width(old), width(new)) == (160, 64)
    assert jobs[0]["recipe"] != jobs[1]["recipe"]


def test_what_was_put_comes_back_as_it_was_written_over_one_connection_with_a_304(rig: Rig) -> None:
    put(rig, "pipelines/small", PIPELINE)
    address = f"http://127.0.0.1:{rig.port}/v1/pipelines/small"
    status, text = curl(rig, "-H", "Accept: application/yaml", address)
    assert (status, text) == (200, PIPELINE)
    etag = {one["name"]: one for one in rig.call("GET", "/v1/pipelines")[1]["pipelines"]}["small"]["etag"]
    token = f"Authorization: Bearer {rig.token}"
    done = subprocess.run(["curl", "-sS", "-D", "-", "-H", token, "-H", f"If-None-Match: {etag}", address,
                           "--next", "-sS", "-H", token, address], capture_output=True, text=True, check=True, timeout=30)
    head, _, body = done.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 304")
    assert f"etag: {etag}" in head.lower()
    assert json.loads(body)["name"] == "small"


def cli(rig: Rig, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = run([*argv, "--url", f"http://127.0.0.1:{rig.port}", "--token", rig.token])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_line_pushes_lists_shows_and_removes(rig: Rig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, preset = tmp_path / "quick.yaml", tmp_path / "mine.yaml"
    pipeline.write_text(PIPELINE.replace("name: small", "name: quick"))
    preset.write_text(PRESET.replace("ours", "mine").replace("small", "quick"))
    assert cli(rig, capsys, "pipelines", "push", "--dry-run", str(pipeline))[:2] == (0, "quick  ok\n")
    code, _, err = cli(rig, capsys, "presets", "push", str(preset))
    assert code == 1
    assert f"{preset}:3:11: recipe.unknown_pipeline: There is no pipeline called 'quick'." in err
    assert cli(rig, capsys, "pipelines", "push", str(pipeline))[:2] == (0, "quick  made\n")
    assert cli(rig, capsys, "presets", "push", str(preset), "--create-only")[:2] == (0, "mine  made\n")
    code, _, err = cli(rig, capsys, "presets", "push", str(preset), "--create-only")
    assert (code, "request.precondition_failed" in err) == (1, True)
    [listed] = [one for one in json.loads(cli(rig, capsys, "presets", "ls", "--json")[1]) if one["name"] == "mine"]
    preset.write_text(preset.read_text().replace("160", "320"))
    assert cli(rig, capsys, "presets", "push", str(preset), "--if-match", listed["etag"])[:2] == (0, "mine  version 2\n")
    assert cli(rig, capsys, "presets", "push", str(preset), "--if-match", listed["etag"])[0] == 1
    assert cli(rig, capsys, "presets", "show", "mine")[1] == preset.read_text()
    assert json.loads(cli(rig, capsys, "presets", "show", "mine", "--json")[1])["params"] == {"width": 320}
    row = next(line for line in cli(rig, capsys, "pipelines", "ls")[1].splitlines() if line.startswith("quick"))
    assert row.split() == ["quick", "width", "api", "Quick:", "for", "tests."]

    code, out, err = cli(rig, capsys, "pipelines", "rm", "quick", "web-mp4", "none")
    assert (code, out) == (1, "")
    for said in ("recipe.in_use: The preset mine names it.", "recipe.on_disk", "recipe.unknown_pipeline"):
        assert said in err
    assert cli(rig, capsys, "presets", "rm", "mine")[:2] == (0, "mine  deleted\n")
    assert cli(rig, capsys, "pipelines", "rm", "quick")[0] == 0
