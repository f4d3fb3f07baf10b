"""Publishing to S3: one owner, whole or not at all, under AWS's rules and S3's faults."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nommerd.aws.clients import Clients
from nommerd.config import Aws
from nommerd.errors import CancelRequested, ConfigError, Fenced, InfrastructureError, NommerdError, Stop
from nommerd.secrets import Secret
from nommerd.storage import s3_upload
from nommerd.storage.base import UploadOptions
from nommerd.storage.s3 import S3Storage
from nommerd.storage.s3_parts import TRIES
from nommerd.storage.s3_upload import PART_BYTES, PART_BYTES_MAX, PARTS_MAX, parts_of
from tests.emulator import ACCESS_KEY, REGION
from tests.s3_proxy import Exchange, answer, hang_up
from tests.s3_scene import Scene, begin, publish

PARTS_OF_TEST = 5 * 2**20  # the least that S3 takes
CANARY = "canary-7f3a91"
THEIRS = f"AKIATHEIRS:the/{CANARY}+ir"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "PART_BYTES", PARTS_OF_TEST)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output.mp4"
    path.write_bytes(os.urandom(2 * PARTS_OF_TEST + 12_345))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def error_code_of(act: Callable[[], object]) -> str:
    with pytest.raises(NommerdError) as caught:
        act()
    assert CANARY not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
    return caught.value.code


# --- what is sent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 5 * 10**11, 5 * 2**40, PARTS_MAX * PART_BYTES_MAX])
def test_parts_cover_the_file_within_aws_limits(size: int) -> None:
    parts = list(parts_of(size))
    assert 1 <= len(parts) <= PARTS_MAX
    assert sum(part.bytes for part in parts) == size
    assert [part.begin for part in parts] == [i * parts[0].bytes for i in range(len(parts))]
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert all(5 * 2**20 <= part.bytes <= PART_BYTES_MAX for part in parts[:-1])


def test_what_s3_cannot_keep_is_refused() -> None:
    assert error_code_of(lambda: list(parts_of(PARTS_MAX * PART_BYTES_MAX + 1))) == "dest.too_large"


def test_a_large_output_goes_in_parts_that_s3_can_check(s3: Scene, output: Path, small_parts: None) -> None:
    told: list[int] = []
    storage = s3.storage()
    staging = storage.begin(s3.uri("a.mp4"), 1)
    storage.upload(staging, output, lambda: None, lambda done, total: told.append(done), Stop())
    assert s3.keys == []
    storage.publish(staging, False)
    assert s3.get("a.mp4") == output.read_bytes()
    parts = {exchange.query["partNumber"]: exchange for exchange in s3.proxy.asked("UploadPart")}
    assert [len(parts[number].body) for number in ("1", "2", "3")] == [PARTS_OF_TEST, PARTS_OF_TEST, 12_345]
    assert all("content-md5" in part.headers for part in parts.values())
    assert told == sorted(told) and told[-1] == output.stat().st_size
    assert len(told) > 10
    assert s3.leftovers == []


def test_what_the_upload_stage_says_is_said_of_the_object(s3: Scene, output: Path) -> None:
    publish(s3.storage(), s3.uri("a b/é.mp4"), output, UploadOptions(
        content_type="video/mp4", sha256=sha256(output), cache_control="max-age=60", storage_class="STANDARD_IA",
        encryption="aws:kms", kms_key_id="alias/media", acl="public-read", tags={"who": "us + them", "cost/centre": "é=1"}))
    where = {"Bucket": s3.bucket, "Key": "a b/é.mp4"}
    head = s3.plain.head_object(**where)
    assert head["StorageClass"] == "STANDARD_IA"
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/media")
    assert head["Metadata"]["nommerd-sha256"] == sha256(output)
    assert head["Metadata"]["nommerd-token"].startswith("1-")
    assert {tag["Key"]: tag["Value"] for tag in s3.plain.get_object_tagging(**where)["TagSet"]} == {
        "who": "us + them", "cost/centre": "é=1"}
    assert any(grant["Grantee"].get("URI", "").endswith("AllUsers") for grant in s3.plain.get_object_acl(**where)["Grants"])
    (created,) = s3.proxy.asked("CreateMultipartUpload")
    assert (created.headers["content-type"], created.headers["cache-control"]) == ("video/mp4", "max-age=60")


@pytest.mark.parametrize(("credentials", "signer"), [("", ACCESS_KEY), (THEIRS, "AKIATHEIRS")])
def test_each_request_is_signed_by_the_credentials_that_the_uri_names(
        s3: Scene, output: Path, tmp_path: Path, credentials: str, signer: str) -> None:
    storage, uri = s3.storage(), s3.uri("a.mp4", credentials)
    publish(storage, uri, output)
    storage.revoke(uri, begin(storage, uri, output).handle)
    assert storage.exists(uri)
    storage.fetch(uri, tmp_path / "back", lambda done, total: None, Stop())
    assert {exchange.operation for exchange in s3.proxy.seen} >= {
        "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload", "HeadObject", "GetObject"}
    for exchange in s3.proxy.seen:
        assert f"Credential={signer}/" in exchange.headers["authorization"]
        assert CANARY not in str(exchange.headers) + exchange.path


def test_clients_of_credentials_are_kept_for_a_while(s3: Scene) -> None:
    storage = s3.storage()
    for number in (1, 2, 1, 2):
        storage.exists(s3.uri("a", f"AKIA{number}:s"))
    assert len(storage._theirs) == 2
    for number in range(20):
        storage.exists(s3.uri("a", f"AKIA{number}:s"))
    assert len(storage._theirs) == 16


# --- who may --------------------------------------------------------------------------------------------------------------


def test_own_credentials_reach_what_the_operator_listed_and_others_whatever_they_may(s3: Scene) -> None:
    storage = S3Storage(s3.clients, ["inbox/a"], ["outbox"], 10, closed_buckets=["config-bucket"])
    storage.check_source("s3://inbox/a/b")
    storage.check_dest("s3://outbox/b")
    storage.check_dest("s3://outbox/b/")
    storage.check_source(f"s3://{THEIRS}@anything/b")
    storage.check_dest(f"s3://{THEIRS}@anything/b")
    for check, uri in ((storage.check_source, "s3://inbox/b"), (storage.check_source, "s3://outbox/a"),
                       (storage.check_dest, "s3://inbox/a/b"), (storage.exists, "s3://inbox/a/b")):
        assert error_code_of(lambda check=check, uri=uri: check(uri)).endswith(".outside_buckets")  # type: ignore[misc]
    for uri in ("s3://config-bucket/a", f"s3://{THEIRS}@config-bucket/a"):
        assert error_code_of(lambda uri=uri: storage.check_source(uri)) == "source.outside_buckets"  # type: ignore[misc]
        assert error_code_of(lambda uri=uri: storage.check_dest(uri)) == "dest.outside_buckets"  # type: ignore[misc]


def test_folders_are_destinations_and_no_sources(s3: Scene) -> None:
    storage = s3.storage()
    storage.check_dest(s3.uri("out/"))
    storage.check_dest(s3.uri(""))
    assert storage.exists(s3.uri("out/")) is False
    assert error_code_of(lambda: storage.check_dest(f"s3://{s3.bucket}")) == "dest.bad_uri"
    assert error_code_of(lambda: storage.begin(s3.uri("out/"), 1)) == "dest.bad_uri"
    assert error_code_of(lambda: storage.check_source(s3.uri("out/"))) == "source.bad_uri"


def test_a_bucket_that_is_not_there_is_told(s3: Scene) -> None:
    storage = S3Storage(s3.clients, [], ["no-such-bucket-7f3a"], 10)
    assert error_code_of(lambda: storage.begin("s3://no-such-bucket-7f3a/a", 1)) == "dest.not_found"


@pytest.mark.parametrize(("status", "code", "credentials", "expected"), [
    (403, "AccessDenied", "", "dest.forbidden"), (403, "AccessDenied", THEIRS, "dest.forbidden"),
    (403, "SignatureDoesNotMatch", THEIRS, "dest.forbidden"), (403, "InvalidAccessKeyId", "", "config.aws"),
    (400, "ExpiredToken", "", "dest.unavailable"), (400, "AccessControlListNotSupported", "", "dest.refused"),
    (507, "XMinioStorageFull", "", "dest.disk_full"), (400, "InvalidStorageClass", "", "dest.refused")])
def test_errors_say_who_must_act(s3: Scene, status: int, code: str, credentials: str, expected: str) -> None:
    s3.proxy.fault("CreateMultipartUpload", before=answer(status, code), times=99)
    assert error_code_of(lambda: s3.storage().begin(s3.uri("a", credentials), 1)) == expected


def test_a_node_without_credentials_or_region_says_so(s3: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for aws in (Aws(region=REGION), Aws(access_key_id=Secret("AKIA"), secret_access_key=Secret("s"))):
        storage = S3Storage(Clients(aws), [s3.bucket], [s3.bucket], 10, endpoint_url=s3.proxy.url)
        with pytest.raises(ConfigError) as caught:
            storage.begin(s3.uri("a"), 1)
        assert caught.value.code == "config.aws"


# --- faults ---------------------------------------------------------------------------------------------------------------


def test_a_part_that_meets_errors_is_sent_again(s3: Scene, output: Path, small_parts: None) -> None:
    s3.proxy.fault("UploadPart", before=answer(500, "InternalError"), times=2)
    s3.proxy.fault("UploadPart", before=hang_up, times=1)
    s3.proxy.fault("UploadPart", after=hang_up, times=1)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert s3.get("a.mp4") == output.read_bytes()
    assert len(s3.proxy.asked("UploadPart")) == 3 + 4


def test_a_part_that_is_corrupted_on_its_way_is_refused_by_s3_and_sent_again(s3: Scene, output: Path) -> None:
    def corrupt(exchange: Exchange) -> None:
        exchange.body = b"X" + exchange.body[1:] if exchange.body[:1] != b"X" else b"Y" + exchange.body[1:]

    s3.proxy.fault("UploadPart", before=corrupt)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert s3.get("a.mp4") == output.read_bytes()
    s3.proxy.fault("UploadPart", before=corrupt, times=99)
    assert error_code_of(lambda: begin(s3.storage(), s3.uri("b.mp4"), output)) == "dest.corrupted"
    assert s3.leftovers == []


def test_a_part_that_never_gets_through_ends_the_upload_and_nothing_is_left(s3: Scene, output: Path) -> None:
    s3.proxy.fault("UploadPart", before=answer(503, "SlowDown"), times=99)
    with pytest.raises(InfrastructureError) as caught:
        begin(s3.storage(), s3.uri("a.mp4"), output)
    assert caught.value.code == "dest.unavailable"
    assert len(s3.proxy.asked("UploadPart")) == TRIES
    assert (s3.keys, s3.leftovers) == ([], [])


def test_a_completion_that_was_applied_though_its_answer_was_lost_is_recognised(s3: Scene, output: Path) -> None:
    refused = answer(412, "PreconditionFailed")
    for name, second, overwrite in (("gone", None, False), ("there", refused, False), ("over", None, True)):
        s3.proxy.fault("CompleteMultipartUpload", after=hang_up)
        if second:
            s3.proxy.fault("CompleteMultipartUpload", before=second)
        publish(s3.storage(), s3.uri(name), output, UploadOptions(sha256=sha256(output)), overwrite=overwrite)
        assert s3.get(name) == output.read_bytes()
    assert s3.leftovers == []


def test_somebody_elses_object_is_not_taken_for_ours_even_if_it_is_the_same(s3: Scene, output: Path) -> None:
    """Two jobs on one destination with equal outputs and tokens: one was first."""
    options = UploadOptions(sha256=sha256(output))
    one, two = (begin(s3.storage(), s3.uri("a.mp4"), output, options) for _ in range(2))
    storage = s3.storage()
    three = begin(storage, s3.uri("a.mp4"), output, options)
    publish(s3.storage(), s3.uri("a.mp4"), output, options)
    s3.proxy.fault("CompleteMultipartUpload", before=answer(503, "SlowDown"))
    s3.proxy.fault("HeadObject", before=answer(404, "NoSuchKey"))  # the look before completing, on what is not AWS
    assert error_code_of(lambda: storage.publish(three, False)) == "dest.exists"
    assert storage.carries(three.uri, output.stat().st_size, sha256(output), three.handle) is False
    assert storage.carries(three.uri, output.stat().st_size, sha256(output), "") is True
    for staging in (one, two):
        storage.revoke(staging.uri, staging.handle)
    assert s3.leftovers == []


def test_an_answer_200_with_an_error_in_its_body_is_no_success(s3: Scene, output: Path) -> None:
    def late_error(exchange: Exchange) -> None:
        exchange.refuse(200, "InternalError")

    s3.proxy.fault("CompleteMultipartUpload", before=late_error, times=2)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert len(s3.proxy.asked("CompleteMultipartUpload")) == 3
    assert s3.get("a.mp4") == output.read_bytes()


def test_a_conflict_is_tried_again_and_one_that_cost_the_upload_is_for_the_next_attempt(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=answer(409, "ConditionalRequestConflict"))
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert s3.get("a.mp4") == output.read_bytes()

    def end(exchange: Exchange) -> None:
        s3.plain.abort_multipart_upload(Bucket=s3.bucket, Key="b.mp4", UploadId=exchange.query["uploadId"])
        s3.proxy.uploads[exchange.query["uploadId"]] = "aborted"
        exchange.refuse(409, "ConditionalRequestConflict")

    s3.proxy.fault("CompleteMultipartUpload", before=end)
    with pytest.raises(InfrastructureError) as caught:
        publish(s3.storage(), s3.uri("b.mp4"), output)
    assert caught.value.code == "dest.conflict"


def test_the_condition_is_part_of_the_request_unless_the_job_overwrites(s3: Scene, output: Path) -> None:
    publish(s3.storage(), s3.uri("a.mp4"), output)
    publish(s3.storage(), s3.uri("a.mp4"), output, overwrite=True)
    assert [exchange.headers.get("if-none-match") for exchange in s3.proxy.asked("CompleteMultipartUpload")] == ["*", None]


def test_a_server_without_the_condition_is_asked_what_is_there(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=answer(501, "NotImplemented"), times=1)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert [exchange.headers.get("if-none-match") for exchange in s3.proxy.asked("CompleteMultipartUpload")] == ["*", None]
    count = len(s3.proxy.asked("CompleteMultipartUpload"))
    assert error_code_of(lambda: publish(s3.storage(), s3.uri("a.mp4"), output)) == "dest.exists"
    assert len(s3.proxy.asked("CompleteMultipartUpload")) == count
    assert s3.leftovers == []


def test_a_completion_without_any_answer_is_retryable_and_leaves_nothing(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=hang_up, times=99)
    assert error_code_of(lambda: publish(s3.storage(), s3.uri("a.mp4"), output)) == "dest.unavailable"
    assert (s3.keys, s3.leftovers) == ([], [])


def test_where_nobody_can_say_whether_it_was_published_nothing_is_claimed(s3: Scene, output: Path) -> None:
    """The completion was applied, its answer lost, and these credentials may write but not look."""
    s3.proxy.fault("CompleteMultipartUpload", after=hang_up)
    s3.proxy.fault("HeadObject", before=answer(403, "AccessDenied"), times=99)
    with pytest.raises(InfrastructureError):
        publish(s3.storage(), s3.uri("a.mp4"), output)


# --- fences ---------------------------------------------------------------------------------------------------------------


def test_a_late_owner_cannot_publish_what_another_process_revoked(s3: Scene, output: Path) -> None:
    late = s3.storage()
    for overwrite in (False, True):
        staging = begin(late, s3.uri("a.mp4"), output)
        s3.storage().revoke(staging.uri, staging.handle)
        with pytest.raises(Fenced):
            late.publish(staging, overwrite)
    assert (s3.keys, s3.leftovers) == ([], [])


def test_an_owner_that_is_fenced_while_it_sends_stops_sending(s3: Scene, output: Path, small_parts: None) -> None:
    storage = s3.storage()
    staging = storage.begin(s3.uri("a.mp4"), 1)
    with pytest.raises(Fenced):
        storage.upload(staging, output, lambda: s3.storage().revoke(staging.uri, staging.handle), lambda done, total: None,
                       Stop())
    assert (s3.keys, s3.leftovers) == ([], [])


def test_an_upload_is_aborted_again_until_s3_knows_nothing_of_it(s3: Scene, output: Path) -> None:
    """A part on its way when the first abort came keeps the upload (AWS, AbortMultipartUpload)."""
    def only_said(exchange: Exchange) -> None:
        exchange.status = 204

    staging = begin(s3.storage(), s3.uri("a.mp4"), output)
    s3.proxy.fault("AbortMultipartUpload", before=only_said, times=2)
    s3.storage().revoke(staging.uri, staging.handle)
    assert len(s3.proxy.asked("AbortMultipartUpload")) == 3
    assert s3.leftovers == []


def test_an_upload_that_would_not_end_is_told_so_that_it_is_tried_again(s3: Scene, output: Path) -> None:
    staging = begin(s3.storage(), s3.uri("a.mp4"), output)
    for kind in (answer(500, "InternalError"), answer(403, "AccessDenied")):
        s3.proxy.fault("AbortMultipartUpload", before=kind, times=3)
        with pytest.raises(NommerdError):
            s3.storage().revoke(staging.uri, staging.handle)
        s3.proxy._faults.clear()
    assert len(s3.leftovers) == 1


def test_revoking_needs_neither_the_lists_nor_credentials_that_nobody_can_use_any_longer(s3: Scene, output: Path) -> None:
    staging = begin(s3.storage(), s3.uri("a.mp4"), output)
    narrowed = S3Storage(s3.clients, [], [], 1, endpoint_url=s3.proxy.url)
    narrowed.revoke(staging.uri, staging.handle)
    assert s3.leftovers == []
    s3.proxy.fault("AbortMultipartUpload", before=answer(403, "InvalidAccessKeyId"))
    narrowed.revoke(s3.uri("a.mp4", THEIRS), staging.handle)
    with pytest.raises(InfrastructureError, match="none of ours"):
        narrowed.revoke(staging.uri, "../../etc")


def test_whether_an_output_is_there_is_not_guessed_when_s3_is_away(s3: Scene, output: Path) -> None:
    storage = s3.storage()
    staging = publish(storage, s3.uri("a.mp4"), output, UploadOptions(sha256=sha256(output)))
    s3.proxy.fault("HeadObject", before=answer(503, "SlowDown"), times=TRIES)
    with pytest.raises(InfrastructureError):
        storage.carries(staging.uri, output.stat().st_size, sha256(output), staging.handle)
    assert storage.carries(staging.uri, output.stat().st_size, sha256(output), staging.handle)


@pytest.mark.parametrize(("status", "told"), [(403, None), (404, False), (400, None)])
def test_what_is_there_is_told_as_far_as_it_can_be_seen(s3: Scene, status: int, told: bool | None) -> None:
    s3.proxy.fault("HeadObject", before=answer(status, "x"), times=99)
    assert s3.storage().exists(s3.uri("a.mp4")) is told


def test_a_stop_ends_an_upload_within_a_second_and_nothing_is_left(s3: Scene, output: Path) -> None:
    stop, release = Stop(), threading.Event()
    began: list[float] = []

    def hang(exchange: Exchange) -> None:
        began.append(time.monotonic())
        stop.set(CancelRequested())
        release.wait(20)
        exchange.refuse(500, "InternalError")

    s3.proxy.fault("UploadPart", before=hang, times=4)
    storage = s3.storage()
    staging = storage.begin(s3.uri("a.mp4"), 1)
    with pytest.raises(CancelRequested):
        storage.upload(staging, output, lambda: None, lambda done, total: None, stop)
    assert time.monotonic() - began[0] < 1.5
    release.set()
    assert (s3.keys, s3.leftovers) == ([], [])
