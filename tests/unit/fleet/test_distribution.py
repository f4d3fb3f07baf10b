"""The configuration of nodes: what is published, where, and what a node refuses."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from nommerd import boot
from nommerd.aws.clients import Clients
from nommerd.catalog import Catalog
from nommerd.config import Aws, Settings, load
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.fleet.distribution import BYTES_MAX, Pin, bundle, fetch, publish
from nommerd.pipeline.stages import STAGES
from nommerd.secrets import Keyring, Secret
from tests.aws_proxy import AwsProxy
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, emulator
from tests.rig import CANARY

PIPELINE = "kind: pipeline\nname: own\nstages: [fetch, {ffmpeg: {pass: 1, options: [[f, mp4]]}}, upload]\n"
PRESET = "kind: preset\nname: mine\npipeline: own\n"
KEY = "kP3h2cVvX3zYl0l7m0Jm2r2h3n3i2o0m2nJt0m1b0aQ="


@pytest.fixture
def bucket() -> str:
    return f"config-{uuid4().hex[:12]}"


@pytest.fixture
def keyring() -> Keyring:
    return Keyring([Secret(KEY)])


@pytest.fixture
def settings(tmp_path: Path, bucket: str) -> Settings:
    """An operator's: a file with directories beside it, secrets of all kinds, and a variable that goes before the file."""
    for folder, name, text in (("pipelines", "own.yaml", PIPELINE), ("presets", "mine.yaml", PRESET),
                               ("pipelines", "notes.txt", "not for nodes")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    file = tmp_path / "nommerd.yaml"
    file.write_text(f"""\
cluster: east
store: dynamodb://east
bus: sqs://east
paths: {{pipelines: [pipelines], presets: [presets], data: "{tmp_path}/feeder-data"}}
worker: {{lease_seconds: 20}}
webhooks: {{secret: "whsec_{'YWJj' * 8}"}}
aws: {{region: {REGION}, endpoint_url: "{emulator().url}", access_key_id: {ACCESS_KEY}, secret_access_key: "{SECRET_KEY}",
      config_bucket: {bucket}}}
fleet: {{jobs_per_node: 5}}
""")
    return load(file, {"NOMMERD_WORKER__LEASE_SECONDS": "25"})


@pytest.fixture
def pin(settings: Settings, keyring: Keyring) -> Pin:
    published = publish(settings, emulator().clients(), keyring)
    assert published is not None
    return published


def put(bucket: str, body: bytes) -> Pin:
    """Some other object in the bucket, pinned as it is."""
    s3 = emulator().client("s3")
    version = s3.put_object(Bucket=bucket, Key="other", Body=body)["VersionId"]
    return Pin(f"s3://{bucket}/other", version, sha256(body).hexdigest())


def test_the_bucket_is_made_private_versioned_and_encrypted(pin: Pin, bucket: str) -> None:
    s3 = emulator().client("s3")
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert pin.uri == f"s3://{bucket}/nommerd/east/{pin.sha256}.json"
    body = s3.get_object(Bucket=bucket, Key=pin.uri.partition(f"{bucket}/")[2], VersionId=pin.version)["Body"].read()
    assert sha256(body).hexdigest() == pin.sha256


def test_the_same_configuration_is_uploaded_once_and_another_one_beside_it(
        settings: Settings, keyring: Keyring, pin: Pin, bucket: str) -> None:
    assert publish(settings, emulator().clients(), keyring) == pin
    other = publish(settings.model_copy(update={"cluster": "west"}), emulator().clients(), keyring)
    assert other is not None and other.sha256 != pin.sha256
    versions = emulator().client("s3").list_object_versions(Bucket=bucket)["Versions"]
    assert len(versions) == 2


def test_an_object_that_somebody_changed_is_replaced(settings: Settings, keyring: Keyring, pin: Pin, bucket: str) -> None:
    emulator().client("s3").put_object(Bucket=bucket, Key=pin.uri.partition(f"{bucket}/")[2], Body=b"{}")
    again = publish(settings, emulator().clients(), keyring)
    assert again is not None
    assert (again.sha256, again.version != pin.version) == (pin.sha256, True)


def test_without_a_bucket_nothing_is_published(settings: Settings, keyring: Keyring) -> None:
    assert publish(settings.model_copy(update={"aws": Aws(region=REGION)}), emulator().clients(), keyring) is None


def test_it_holds_what_nodes_need_and_no_credential_of_the_feeders(settings: Settings, keyring: Keyring) -> None:
    text = bundle(settings, keyring, REGION).decode()
    for secret in (ACCESS_KEY, SECRET_KEY, CANARY, "whsec_", "feeder-data"):
        assert secret not in text
    assert KEY in text  # without it a node could not read a URI with credentials
    assert "not for nodes" not in text
    assert bundle(settings, keyring, REGION) == text.encode()


def test_a_node_gets_the_settings_in_effect_and_the_catalog_of_the_operator(pin: Pin, tmp_path: Path) -> None:
    file = fetch(pin, emulator().clients(), tmp_path / "node")
    got = load(file, {})
    assert (got.cluster, got.store, got.bus) == ("east", "dynamodb://east", "sqs://east")
    assert (got.worker.lease_seconds, got.worker.slots) == (25, 5)
    assert [key.reveal() for key in got.secrets.keys] == [KEY]
    assert (got.aws.access_key_id, got.aws.region) == (None, REGION)
    catalog = Catalog(got.paths.pipelines, got.paths.presets, STAGES)
    assert catalog.errors == []
    assert catalog.resolve(preset="mine").pipeline == "own"
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "node").rglob("*")}
    assert modes == {0o600, 0o700}


def test_fetching_it_twice_is_fetching_it_once(pin: Pin, tmp_path: Path) -> None:
    first = fetch(pin, emulator().clients(), tmp_path / "node")
    assert fetch(pin, emulator().clients(), tmp_path / "node") == first
    assert len(list((tmp_path / "node").iterdir())) == 1


def good(files: dict[str, Any]) -> bytes:
    return json.dumps({"schema": 1, "files": {"nommerd.yaml": "{}", **files}}).encode()


BAD = {
    "no JSON": b"{",
    "no bundle": b"[]",
    "a newer schema": json.dumps({"schema": 2, "files": {"nommerd.yaml": "{}"}}).encode(),
    "no settings": json.dumps({"schema": 1, "files": {}}).encode(),
    "no text": good({"pipelines/0/a.yaml": 1}),
    "a way out": good({"pipelines/0/../../../a.yaml": ""}),
    "an absolute path": good({"/etc/cron.d/a.yaml": ""}),
    "a hidden file": good({"pipelines/0/.a.yaml": ""}),
    "code": good({"pipelines/0/a.py": ""}),
    "another folder": good({"stages/0/a.yaml": ""}),
    "nested beyond reading": b"[" * 100_000,
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_bundle_of_ours_is_refused_and_leaves_nothing(what: str, pin: Pin, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fetch(put(bucket, BAD[what]), emulator().clients(), tmp_path / "node")
    assert caught.value.code == "config.bad_bundle"
    assert list((tmp_path / "node").rglob("*")) == []


def test_other_bytes_than_pinned_are_refused_before_they_are_read(pin: Pin, bucket: str, tmp_path: Path) -> None:
    changed = put(bucket, good({"pipelines/0/evil.yaml": PIPELINE}))
    for wrong in (replace(changed, sha256=pin.sha256), replace(pin, uri=changed.uri, version=changed.version)):
        with pytest.raises(ConfigError, match="SHA-256"):
            fetch(wrong, emulator().clients(), tmp_path / "node")
    assert not (tmp_path / "node").exists()


def test_the_pinned_version_is_fetched_whatever_came_later(pin: Pin, bucket: str, tmp_path: Path) -> None:
    emulator().client("s3").put_object(Bucket=bucket, Key=pin.uri.partition(f"{bucket}/")[2], Body=good({}))
    assert load(fetch(pin, emulator().clients(), tmp_path / "node"), {}).cluster == "east"
    with pytest.raises(ConfigError) as caught:
        fetch(replace(pin, version="never-was"), emulator().clients(), tmp_path / "node")
    assert caught.value.code == "config.bucket"


def test_one_that_is_too_large_is_refused(pin: Pin, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger"):
        fetch(put(bucket, b" " * (BYTES_MAX + 1)), emulator().clients(), tmp_path / "node")


@pytest.mark.parametrize("uri", ["https://host/a", "s3://", "s3://bucket", "s3://key:secret@bucket/a", "file:///etc/passwd"])
def test_a_pin_names_an_object_without_credentials(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        fetch(Pin(uri, "v", "0" * 64), emulator().clients(), tmp_path / "node")


# --- AWS refuses, or is away --------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[AwsProxy]:
    with AwsProxy() as proxy:
        yield proxy


def test_a_bucket_of_somebody_else_is_an_error_that_says_what_to_do(
        settings: Settings, keyring: Keyring, proxy: AwsProxy) -> None:
    proxy.fail("GetObject", times=9, status=403, code="AccessDenied")
    with pytest.raises(ConfigError) as caught:
        publish(settings, emulator().clients(proxy.url), keyring)
    assert (caught.value.code, caught.value.place) == ("config.bucket", "aws.config_bucket")
    assert "nommerd aws setup" in caught.value.hint


def test_the_bucket_must_be_this_accounts_and_what_is_put_there_is_encrypted_and_checked(
        settings: Settings, keyring: Keyring, proxy: AwsProxy) -> None:
    assert publish(settings, emulator().clients(proxy.url), keyring) is not None
    (put,) = proxy.asked("PutObject")
    headers = {name.lower(): value for name, value in put.headers.items()}
    owner = emulator().client("sts").get_caller_identity()["Account"]
    assert (headers["x-amz-expected-bucket-owner"], headers["x-amz-server-side-encryption"]) == (owner, "AES256")
    assert b64decode(headers["x-amz-checksum-sha256"]).hex() == put.path.rpartition("/")[2].split(".")[0]
    for call in proxy.asked("GetObject"):
        assert {name.lower(): value for name, value in call.headers.items()}["x-amz-expected-bucket-owner"] == owner


def test_keys_go_to_no_account_that_was_quicker_to_take_the_name(
        settings: Settings, keyring: Keyring, proxy: AwsProxy) -> None:
    proxy.fail("GetObject", times=9, status=404, code="NoSuchBucket")
    proxy.fail("CreateBucket", times=9, status=409, code="BucketAlreadyExists")
    with pytest.raises(ConfigError, match="BucketAlreadyExists"):
        publish(settings, emulator().clients(proxy.url), keyring)
    assert proxy.asked("PutObject") == []


def test_where_the_account_cannot_be_known_nothing_is_published_to_aws_itself(settings: Settings, keyring: Keyring,
                                                                            proxy: AwsProxy) -> None:
    proxy.fail("GetCallerIdentity", times=9, status=403, code="AccessDenied")
    real = settings.model_copy(update={"aws": settings.aws.model_copy(update={"endpoint_url": None})})
    with pytest.raises(ConfigError, match="GetCallerIdentity"):
        publish(real, emulator().clients(proxy.url), keyring)
    assert proxy.asked("PutObject") == []


def test_another_feeder_that_makes_the_bucket_first_is_no_trouble(
        settings: Settings, keyring: Keyring, proxy: AwsProxy, bucket: str) -> None:
    emulator().client("s3").create_bucket(Bucket=bucket)
    proxy.fail("GetObject", status=404, code="NoSuchBucket")
    proxy.fail("CreateBucket", status=409, code="BucketAlreadyOwnedByYou")
    assert publish(settings, emulator().clients(proxy.url), keyring) is not None


def test_a_bucket_is_made_in_the_region_of_the_settings(settings: Settings, keyring: Keyring, proxy: AwsProxy,
                                                        bucket: str) -> None:
    aws = settings.aws.model_copy(update={"region": "eu-central-1", "endpoint_url": proxy.url})
    pin = publish(settings.model_copy(update={"aws": aws}), Clients(aws), keyring)
    assert pin is not None
    assert b"<LocationConstraint>eu-central-1</LocationConstraint>" in proxy.asked("CreateBucket")[0].body


def test_a_bucket_of_the_operators_own_without_versions_will_do(settings: Settings, keyring: Keyring, bucket: str,
                                                                tmp_path: Path) -> None:
    s3 = emulator().client("s3")
    s3.create_bucket(Bucket=bucket)
    pin = publish(settings, emulator().clients(), keyring)
    assert pin is not None and pin.version == "null"
    assert publish(settings, emulator().clients(), keyring) == pin
    assert s3.get_bucket_versioning(Bucket=bucket).get("Status") is None, "it is left as it is"
    assert load(fetch(pin, emulator().clients(), tmp_path / "node"), {}).cluster == "east"


def test_a_bucket_out_of_reach_may_be_there_later(settings: Settings, keyring: Keyring, proxy: AwsProxy) -> None:
    proxy.fail("GetObject", times=9, status=503)
    with pytest.raises(InfrastructureError) as caught:
        publish(settings, emulator().clients(proxy.url), keyring)
    assert caught.value.code == "node.config_unavailable"


# --- the boot file ------------------------------------------------------------------------------------------------


def boot_file(folder: Path, pin: Pin, **changes: Any) -> Path:
    told = {"cluster": "east", "region": REGION, "endpoint_url": emulator().url, "data": str(folder / "data"),
            "config": {"uri": pin.uri, "version": pin.version, "sha256": pin.sha256}} | changes
    path = folder / "boot.yaml"
    path.write_text(json.dumps(told))
    return path


@pytest.fixture
def _account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)


@pytest.mark.usefixtures("_account")
def test_a_boot_file_leads_to_settings_and_the_environment_goes_before_them(pin: Pin, tmp_path: Path) -> None:
    got = boot.start(boot_file(tmp_path, pin), {"NOMMERD_WORKER__IDLE_SECONDS": "7"}).settings
    assert (got.cluster, got.worker.idle_seconds, got.data_dir) == ("east", 7, tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("_account")
def test_a_node_of_another_cluster_does_not_start(pin: Pin, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of the cluster west"):
        boot.start(boot_file(tmp_path, pin, cluster="west"), {})


@pytest.mark.usefixtures("_account")
def test_a_bucket_that_comes_up_late_is_waited_for_with_pauses_that_grow(pin: Pin, tmp_path: Path, proxy: AwsProxy) -> None:
    proxy.fail("GetObject", times=6, status=503)
    pauses: list[float] = []
    got = boot.start(boot_file(tmp_path, pin, endpoint_url=proxy.url), {}, sleep=pauses.append, clock=lambda: 0.0).settings
    assert (got.cluster, pauses) == ("east", [1.0, 2.0])


@pytest.mark.parametrize(("change", "words"), [({"colour": "red"}, "colour"), ({"config": {}}, "config.uri"),
                                               ({"cluster": "a b"}, "cluster")])
def test_a_fault_in_a_boot_file_is_told_with_its_place(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=words) as caught:
        boot.start(boot_file(tmp_path, Pin("s3://b/k", "v", "0" * 64), **change), {})
    assert "boot.yaml" in str(caught.value)
