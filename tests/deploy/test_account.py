"""docs/deploy.md's way from an empty account, as far as an emulator goes: its commands in order, with its configuration."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import PAGE
from tests.emulator import Emulator
from tests.pages import blocks_of, section

ELSEWHERE = {"nommerd ami build": "tests/deploy/test_packer.py", "nommerd submit": "tests/acceptance/test_cloud.py",
             "aws ec2": "an instance of AWS's own"}


def test_the_commands_for_an_empty_account_work_on_one(tmp_path: Path) -> None:
    found = blocks_of(section(PAGE, "An empty account"))
    for block in found:
        if block.language == "yaml":
            (tmp_path / block.rest).write_text(block.text)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NOMMERD_", "AWS_"))}
    run: list[str] = []
    emulator = Emulator()
    try:
        env |= {"AWS_ENDPOINT_URL": emulator.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
                "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
        for bucket in ("example-inbox", "example-outbox"):  # the page asks for them
            emulator.client("s3").create_bucket(Bucket=bucket,
                                                CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        for block in found:
            if block.language != "text":
                continue
            for command in block.text.replace("\\\n", "").splitlines():
                if command.startswith(tuple(ELSEWHERE)):
                    continue
                assert command.startswith("nommerd "), command
                done = subprocess.run(["bash", "-c", f"{shlex.quote(sys.executable)} -P -m {command}"], cwd=tmp_path, env=env,
                                      capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                run.append(command)
    finally:
        emulator.stop()
    assert len(run) == 4, run
    told = yaml.safe_load((tmp_path / "feeder.yaml").read_text())
    config = next(file for file in told["write_files"] if file["path"] == "/etc/nommerd/nommerd.yaml")
    assert yaml.safe_load(config["content"])["store"] == "dynamodb://media"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_on_the_page(command: str) -> None:
    assert command in section(PAGE, "An empty account")
