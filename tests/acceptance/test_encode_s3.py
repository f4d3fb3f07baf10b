"""`nommerd encode` from S3 to S3, as a user runs it: AWS's own environment variables, no configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from nommerd.media.mp4 import is_fast_start
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY
from tests.media import clip, facts
from tests.s3_scene import s3_scene

PIPELINE = """\
kind: pipeline
name: quick
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, ultrafast], [vf, "scale=-2:180"], [c:a, aac], [f, mp4]]}
  - faststart
  - upload: {cache_control: max-age=60, storage_class: STANDARD_IA, encryption: AES256, acl: private, tags: {team: web video}}
"""


def test_a_source_in_s3_becomes_an_output_in_s3_and_no_key_shows(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(PIPELINE)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NOMMERD_", "AWS_", "XDG_"))}
    env = clean | {"HOME": str(tmp_path), "TMPDIR": str(scratch), "AWS_EC2_METADATA_DISABLED": "true",
                   "NOMMERD_AWS__REGION": REGION}
    seen: list[str] = []
    with s3_scene() as stage:
        s3, proxy_url = stage.anew(), stage.proxy.url
        env["NOMMERD_AWS__ENDPOINT_URL"] = proxy_url
        s3.put("in/a b.mov", clip(seconds=3, container="mov").read_bytes())

        def encode(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
            ended = subprocess.run([sys.executable, "-m", "nommerd", "encode", *arguments, "--pipeline", "quick.yaml"],
                                   cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=90,
                                   stdin=subprocess.DEVNULL)
            seen.append(ended.stdout + ended.stderr)
            assert list(scratch.iterdir()) == []
            return ended

        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        ended = encode(s3.uri("in/a b.mov"), s3.uri("out/a.mp4"), "--json", **keys)
        assert ended.returncode == 0, ended
        body = s3.get("out/a.mp4")
        assert body
        told = json.loads(ended.stdout)
        assert told["outputs"][0]["uri"] == s3.uri("out/a.mp4")
        assert told["outputs"][0]["sha256"] == sha256(body).hexdigest()
        head = s3.plain.head_object(Bucket=s3.bucket, Key="out/a.mp4")
        assert (head["ContentType"], head["CacheControl"], head["StorageClass"], head["ServerSideEncryption"]) == (
            "video/mp4", "max-age=60", "STANDARD_IA", "AES256")
        assert head["Metadata"]["nommerd-sha256"] == sha256(body).hexdigest()
        tags = s3.plain.get_object_tagging(Bucket=s3.bucket, Key="out/a.mp4")["TagSet"]
        assert tags == [{"Key": "team", "Value": "web video"}]
        (tmp_path / "back.mp4").write_bytes(body)
        found = facts(tmp_path / "back.mp4")
        assert "h264" in str(found) and is_fast_start(tmp_path / "back.mp4")

        again = encode(s3.uri("in/a b.mov"), s3.uri("out/a.mp4"), **keys)
        assert again.returncode == 1 and "dest.exists" in again.stdout + again.stderr
        assert s3.get("out/a.mp4") == body

        own = f"{ACCESS_KEY}:{SECRET_KEY}"  # nothing in the environment: the URIs bring them
        ended = encode(s3.uri("in/a b.mov", own), s3.uri("out/", own))
        assert ended.returncode == 0, ended
        missing = encode(s3.uri("in/none.mov", own), s3.uri("out/b.mp4", own))
        assert missing.returncode == 1 and "source.not_found" in missing.stdout + missing.stderr
        assert sorted(s3.keys) == ["in/a b.mov", "out/a b.mp4", "out/a.mp4"] and s3.leftovers == []
    for secret in (SECRET_KEY, quote(SECRET_KEY, safe=""), ACCESS_KEY):
        assert secret not in "".join(seen)


def test_an_account_that_is_not_set_up_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NOMMERD_", "AWS_", "XDG_"))}
    env = clean | {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    for more, words in (({}, "No AWS region is set"), ({"AWS_REGION": REGION}, "no AWS credentials")):
        command = [sys.executable, "-m", "nommerd", "encode", "s3://media-of-nobody/a.mov", "b.mp4", "-p", "web-480p"]
        ended = subprocess.run(command, cwd=tmp_path, env=env | more, capture_output=True, text=True, timeout=60,
                               stdin=subprocess.DEVNULL)
        assert (ended.returncode, words in ended.stderr + ended.stdout) == (2, True), ended
        assert "Traceback" not in ended.stderr
