"""A whole nommerd on AWS for tests: a rig whose store, bus and media are an emulator's, and what must hold after any fault.

Each cloud has a cluster of its own in the emulator: queues, table, buckets. Daemons share the rig's data directory, as
machines share the configured keys.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from nommerd.aws.clients import Clients
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, account, emulator
from tests.rig import CANARY, FINAL, Rig, free_port, scratch, wait_until

SECRETS = (CANARY, ACCESS_KEY, SECRET_KEY, quote(SECRET_KEY, safe=""))
PIPELINES = """\
kind: pipeline
name: {name}
stages:
  - fetch
  - ffmpeg: {{pass: 1, options: [[c:v, libx264], [preset, {speed}], [c:a, aac], [f, mp4]]}}
  - faststart
  - upload
  - notify
"""


class Cloud(Rig):
    """Use as a context manager. `url`: the emulator, or a proxy in front of it, as the daemons see it; `store`: dynamodb or
    simpledb. Pipelines `fast` and `slow` are there; buckets `self.inbox` (sources) and `self.outbox` (outputs)."""

    def __init__(self, root: Path, *, url: str | None = None, store: str = "dynamodb", env: dict[str, str] | None = None,
                 lease_seconds: float = 30, slots: int = 2, max_attempts: int = 3, config: str = "") -> None:
        self.cluster = f"t{uuid4().hex[:10]}"
        self.url = url or emulator().url
        self.store, self.bus = f"{store}://{self.cluster}", f"sqs://{self.cluster}"
        self.inbox, self.outbox = f"{self.cluster}-in", f"{self.cluster}-out"
        self.config_bucket = f"{self.cluster}-config"
        for folder, text in (("presets", ""), ("pipelines", "fast"), ("pipelines", "slow")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            if text:
                speed = {"fast": "ultrafast", "slow": "veryslow"}[text]
                (root / folder / f"{text}.yaml").write_text(PIPELINES.format(name=text, speed=speed))
        super().__init__(root, config=f"""\
cluster: {self.cluster}
store: {self.store}
bus: {self.bus}
aws: {{region: {REGION}, endpoint_url: "{self.url}"}}
""" + config, lease_seconds=lease_seconds, slots=slots, max_attempts=max_attempts, env={
            "NOMMERD_STORAGE__S3_READ": json.dumps([self.inbox]), "NOMMERD_STORAGE__S3_WRITE": json.dumps([self.outbox]),
            "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_EC2_METADATA_DISABLED": "true",
            **(env or {})})
        self.clients = Clients(account(self.url if store == "simpledb" else emulator().url))
        self.s3 = self.clients("s3")
        for bucket in (self.inbox, self.outbox):
            self.s3.create_bucket(Bucket=bucket)

    def command(self) -> list[str]:
        """`nommerd`, in this Python."""
        return [sys.executable, "-m", "nommerd"]

    def user_data(self, node: str) -> str:
        """What an instance was told at its birth, as the emulator has it."""
        ec2 = self.clients("ec2")
        found = ec2.describe_instance_attribute(InstanceId=node, Attribute="userData")["UserData"].get("Value", "")
        return b64decode(found).decode()

    def nommerd(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """One command to its end, on this cloud's configuration."""
        argv = [*self.command(), *arguments, "-c", str(self.config)]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=seconds, cwd=self.root, check=False)

    def set_up(self) -> Cloud:
        """`nommerd aws setup`."""
        done = self.nommerd("aws", "setup")
        assert done.returncode == 0, done.stdout + done.stderr
        return self

    def neighbour(self) -> Cloud:
        """Another machine of this cluster, once a feeder has started here: its own port and data directory, the same keys."""
        other = copy.copy(self)
        other.root = self.root / f"neighbour-{uuid4().hex[:6]}"
        other.data, other.logs = other.root / "data", other.root / "logs"
        other.port, other.config = free_port(), self.root / f"{other.root.name}.yaml"
        for folder in (other.data, other.logs):
            folder.mkdir(parents=True)
        for name in ("keys", "token", "webhook-secret"):
            shutil.copy(self.data / name, other.data / name)
        text = self.config.read_text().replace(str(self.data), str(other.data)).replace(str(self.port), str(other.port))
        other.config.write_text(text)
        other.daemons, other.answers, other.feeder = [], [], None
        return other

    def put_source(self, clip: Path, key: str = "in.mp4") -> str:
        """The clip in the inbox; returns its URI."""
        self.s3.put_object(Bucket=self.inbox, Key=key, Body=clip.read_bytes())
        return f"s3://{self.inbox}/{key}"

    def dest(self, key: str) -> str:
        return f"s3://{self.outbox}/{key}"

    def submit_uris(self, source: str, dest: str, **more: object) -> str:
        status, answer = self.call("POST", "/v1/jobs", {"source": source, "dest": dest, **more})
        assert status == 201, answer
        return str(answer["id"])

    def keys(self, bucket: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def open_uploads(self) -> list[str]:
        return [entry["Key"] for entry in self.s3.list_multipart_uploads(Bucket=self.outbox).get("Uploads", [])]

    def head(self, uri: str) -> dict[str, Any]:
        bucket, key = bucket_and_key(uri)
        return dict(self.s3.get_object(Bucket=bucket, Key=key))

    def body(self, uri: str) -> bytes:
        return bytes(self.head(uri)["Body"].read())

    def queued(self) -> int:
        """Messages on every queue of this cluster, hidden ones too."""
        sqs, total = self.clients("sqs"), 0
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")
        for url in sqs.list_queues(QueueNamePrefix=self.cluster).get("QueueUrls", []):
            if "-changes" in url and "dead" not in url:
                continue  # hints, consumed while a feeder runs
            found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(names))["Attributes"]
            total += sum(int(found[name]) for name in names)
        return total


def bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").rpartition("@")[2].partition("/")
    return bucket, key


def cloud_invariants(cloud: Cloud, *, seconds: float = 45, secrets: Iterable[str] = SECRETS) -> None:
    """What must hold after every fault, once the jobs have had their time: every job final; each FINISHED one has exactly
    its recorded output and the outbox holds nothing else; no open upload, no ffmpeg, no scratch, empty queues; no secret in
    logs, answers, table, messages or process arguments."""
    jobs = cloud.jobs()
    assert {job["id"]: job["state"] for job in jobs if job["state"] not in FINAL} == {}
    seen: dict[str, str] = {}
    for job in jobs:
        if job["state"] != "FINISHED":
            assert job["error"] or job["state"] in {"CANCELLED", "ABANDONED"}, job
            continue
        assert job["outputs"], job
        for output in job["outputs"]:
            if output["uri"].startswith("http"):
                continue
            if output["uri"].startswith("file:"):
                path = Path(unquote(urlsplit(output["uri"]).path))
                assert sha256(path.read_bytes()).hexdigest() == output["sha256"]
                continue
            body = cloud.body(output["uri"])
            bucket, key = bucket_and_key(output["uri"])
            assert (bucket, key) not in seen.items(), f"two jobs published {key}"
            seen[key] = bucket
            assert (len(body), sha256(body).hexdigest()) == (output["bytes"], output["sha256"]), key
    assert sorted(cloud.keys(cloud.outbox)) == sorted(key for key, bucket in seen.items() if bucket == cloud.outbox)
    wait_until(lambda: not cloud.open_uploads(), seconds, lambda: f"no open upload: {cloud.open_uploads()}")
    wait_until(lambda: not cloud.processes("ff"), seconds, lambda: f"no ffmpeg left: {cloud.processes('ff')}")
    wait_until(lambda: not scratch(cloud), seconds, lambda: f"no scratch left: {scratch(cloud)}")
    wait_until(lambda: cloud.queued() == 0, seconds, lambda: f"empty queues: {cloud.queued()}")
    no_secrets(cloud, secrets)


def no_secrets(cloud: Cloud, secrets: Iterable[str] = SECRETS) -> None:
    """No secret in logs, answers, records, queue messages or process arguments."""
    texts = {str(log): log.read_text(errors="replace") for log in cloud.logs.iterdir()}
    texts |= {f"answer {number}": answer for number, answer in enumerate(cloud.answers)}
    texts |= {f"/proc/{pid}": text for pid, text in process_arguments(cloud)}
    if cloud.store.startswith("dynamodb"):
        for page in cloud.clients("dynamodb").get_paginator("scan").paginate(TableName=cloud.cluster):
            texts |= {f"item {item}": json.dumps(item, default=str) for item in page["Items"]}
    for secret in secrets:
        for place, text in texts.items():
            assert secret not in text, f"a secret in {place[:200]}"


def process_arguments(cloud: Cloud) -> list[tuple[int, str]]:
    """The argument lists of this cloud's daemons and of every ffmpeg."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(cloud.root) in text:
            found.append((int(entry.parent.name), text))
    return found
