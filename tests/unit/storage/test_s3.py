"""S3 against an emulator behind a proxy that holds AWS's rules and fails as it is told: uploads and publishing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from nommerd.errors import Fenced, InfrastructureError, InputError, NommerdError, Stop
from nommerd.storage import s3_upload
from nommerd.storage.base import UploadOptions
from nommerd.storage.s3 import S3Storage
from nommerd.storage.s3_upload import PARTS_MAX, parts_of
from tests.s3_proxy import Action, Exchange, answer, hang_up
from tests.s3_scene import Scene, begin, fetch, publish

MIB = 2**20
OFTEN = 1000  # more than anybody tries
BODY = os.urandom(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output.mp4"
    path.write_bytes(BODY)
    return path


@pytest.fixture
def three_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output that goes in parts of S3's least size."""
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 * MIB)
    path = tmp_path / "large.mp4"
    path.write_bytes(os.urandom(11 * MIB + 7))
    return path


def refused(call: Callable[[], object]) -> NommerdError:
    """The error that it ends with, which names nobody's keys."""
    with pytest.raises(NommerdError) as caught:
        call()
    return caught.value


def nothing_is_left(s3: Scene) -> bool:
    return s3.leftovers == [] and s3.proxy.open_uploads == []


def flip(exchange: Exchange) -> None:
    """A fault that damages a body on its way to S3."""
    exchange.body = bytes([exchange.body[0] ^ 1]) + exchange.body[1:]


def completed_in_vain(exchange: Exchange) -> None:
    """S3's way of failing late: 200, and the error in the body."""
    exchange.refuse(500, "InternalError")
    exchange.status = 200


# --- parts --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("before", "after"), [
    (answer(500, "InternalError"), None), (answer(503, "SlowDown"), None), (answer(400, "RequestTimeout"), None),
    (hang_up, None), (None, hang_up), (flip, None), (None, answer(500, "InternalError"))])
def test_a_part_that_fails_is_sent_again(s3: Scene, three_parts: Path, before: Action | None, after: Action | None) -> None:
    s3.proxy.fault("UploadPart", before=before, after=after, times=3, when=lambda exchange: exchange.query["partNumber"] == "2")
    publish(s3.storage(), s3.uri("a.mp4"), three_parts)
    assert s3.get("a.mp4") == three_parts.read_bytes()
    assert sorted(part.query["partNumber"] for part in s3.proxy.asked("UploadPart")) == ["1", "2", "2", "2", "2", "3"]
    assert nothing_is_left(s3)


@pytest.mark.parametrize(("fault", "code"), [
    (answer(500, "InternalError"), "dest.unavailable"), (hang_up, "dest.unavailable"), (flip, "dest.corrupted"),
    (answer(507, "XMinioStorageFull"), "dest.disk_full"), (answer(403, "AccessDenied"), "dest.forbidden"),
    (answer(400, "EntityTooLarge"), "dest.too_large"), (answer(400, "InvalidRequest"), "dest.refused")])
def test_an_upload_that_is_given_up_leaves_nothing(s3: Scene, three_parts: Path, fault: Action, code: str) -> None:
    s3.proxy.fault("UploadPart", before=fault, times=OFTEN, when=lambda exchange: exchange.query["partNumber"] == "2")
    error = refused(lambda: publish(s3.storage(), s3.uri("a.mp4"), three_parts))
    assert error.code == code
    assert isinstance(error, InfrastructureError) is (code in ("dest.unavailable", "dest.corrupted", "dest.disk_full"))
    assert s3.keys == [] and nothing_is_left(s3)
    assert s3.proxy.asked("AbortMultipartUpload") and not s3.proxy.asked("CompleteMultipartUpload")


def test_an_abort_that_fails_at_first_is_repeated_until_s3_knows_nothing_of_the_upload(s3: Scene, output: Path) -> None:
    storage = s3.storage()
    staging = begin(storage, s3.uri("a.mp4"), output)
    s3.proxy.fault("AbortMultipartUpload", before=answer(503, "SlowDown"), times=2)
    s3.proxy.fault("ListParts", before=lambda exchange: setattr(exchange, "status", 200))  # parts were still on their way
    storage.revoke(staging.uri, staging.handle)
    assert nothing_is_left(s3)
    assert len(s3.proxy.asked("AbortMultipartUpload")) == 4


def test_an_abort_that_cannot_be_had_is_an_error_that_a_retry_may_mend(s3: Scene, output: Path) -> None:
    storage = s3.storage()
    staging = begin(storage, s3.uri("a.mp4"), output)
    s3.proxy.fault("AbortMultipartUpload", before=answer(503, "SlowDown"), times=OFTEN)
    assert refused(lambda: storage.revoke(staging.uri, staging.handle)).code == "dest.unavailable"


def test_progress_only_grows_though_parts_fail_and_ends_with_the_size(s3: Scene, three_parts: Path) -> None:
    s3.proxy.fault("UploadPart", before=answer(500, "InternalError"), times=4)
    storage, told = s3.storage(), list[tuple[int, int | None]]()
    staging = storage.begin(s3.uri("a.mp4"), 1)
    storage.upload(staging, three_parts, lambda: None, lambda done, total: told.append((done, total)), Stop())
    size = three_parts.stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("size", [0, 1, 16 * MIB, 16 * MIB + 1, 160_000 * MIB, 160_001 * MIB, 2**42, 5 * 2**40])
def test_parts_cover_the_file_within_s3s_limits(size: int) -> None:
    parts = list(parts_of(size))
    assert [part.number for part in parts] == list(range(1, len(parts) + 1)) and len(parts) <= PARTS_MAX
    assert parts[0].begin == 0 and sum(part.bytes for part in parts) == size
    assert all(a.begin + a.bytes == b.begin for a, b in zip(parts, parts[1:], strict=False))
    assert len({part.bytes for part in parts[:-1]}) <= 1 and all(part.bytes >= 5 * MIB for part in parts[:-1])
    assert max(part.bytes for part in parts) <= 5 * 2**30


def test_an_empty_output_is_an_object_and_goes_there_and_back(s3: Scene, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    publish(s3.storage(), s3.uri("a.mp4"), empty, UploadOptions(sha256=hashlib.sha256().hexdigest()))
    assert s3.get("a.mp4") == b""
    assert fetch(s3.storage(), s3.uri("a.mp4"), tmp_path / "back") == b""


# --- completing ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("lost", [hang_up, answer(500, "InternalError"), completed_in_vain])
def test_a_completion_whose_answer_was_lost_is_a_success(s3: Scene, output: Path, overwrite: bool, forgets: bool,
                                                         lost: Action) -> None:
    if overwrite:
        s3.put("a.mp4", b"old")
    s3.proxy.forgets_completed = forgets
    s3.proxy.fault("CompleteMultipartUpload", after=lost)
    publish(s3.storage(), s3.uri("a.mp4"), output, UploadOptions(sha256=SHA256), overwrite=overwrite)
    assert s3.get("a.mp4") == BODY and nothing_is_left(s3)


@pytest.mark.parametrize("fault", [hang_up, answer(503, "SlowDown"), completed_in_vain, answer(409, "OperationAborted")])
def test_a_completion_that_did_not_happen_is_asked_for_again(s3: Scene, output: Path, fault: Action) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=fault, times=3)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert s3.get("a.mp4") == BODY and nothing_is_left(s3)


def test_a_completion_that_never_happens_leaves_nothing_and_may_be_tried_again(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=answer(500, "InternalError"), times=OFTEN)
    error = refused(lambda: publish(s3.storage(), s3.uri("a.mp4"), output))
    assert isinstance(error, InfrastructureError) and error.code == "dest.unavailable"
    assert s3.keys == [] and nothing_is_left(s3)


def test_an_object_of_somebody_elses_is_not_taken_for_a_completion_that_was_lost(s3: Scene, output: Path) -> None:
    """The same bytes, even by the same token: only the mark of this upload tells them apart."""
    publish(s3.storage(), s3.uri("a.mp4"), output, UploadOptions(sha256=SHA256))
    other, storage = s3.storage(), s3.storage()
    staging = begin(storage, s3.uri("a.mp4"), output, UploadOptions(sha256=SHA256))

    def revoked_meanwhile(exchange: Exchange) -> None:
        other.revoke(staging.uri, staging.handle)
        hang_up(exchange)

    s3.proxy.fault("CompleteMultipartUpload", before=revoked_meanwhile)
    with pytest.raises(Fenced):
        storage.publish(staging, True)


def test_what_s3_does_not_say_after_a_lost_completion_is_not_guessed(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", after=hang_up)
    s3.proxy.fault("HeadObject", before=answer(503, "SlowDown"), times=OFTEN, when=lambda e: bool(s3.proxy.uploads))
    storage = s3.storage(endpoint_url=None)
    error = refused(lambda: publish(storage, s3.uri("a.mp4"), output))
    assert isinstance(error, InfrastructureError) and error.code == "dest.unavailable"


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_condition_is_sent_unless_the_destination_may_be_replaced(s3: Scene, output: Path, overwrite: bool) -> None:
    publish(s3.storage(), s3.uri("a.mp4"), output, overwrite=overwrite)
    (completion,) = s3.proxy.asked("CompleteMultipartUpload")
    assert completion.headers.get("if-none-match") == (None if overwrite else "*")


def test_an_object_that_appears_at_the_last_moment_is_not_replaced(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=lambda exchange: s3.put("a.mp4", b"theirs"))
    error = refused(lambda: publish(s3.storage(), s3.uri("a.mp4"), output))
    assert isinstance(error, InputError) and error.code == "dest.exists"
    assert s3.get("a.mp4") == b"theirs" and nothing_is_left(s3)


def test_a_server_that_does_not_know_the_condition_is_asked_whether_something_is_there(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=answer(501, "NotImplemented"), times=OFTEN,
                   when=lambda exchange: "if-none-match" in exchange.headers)
    publish(s3.storage(), s3.uri("a.mp4"), output)
    assert s3.get("a.mp4") == BODY
    s3.put("b.mp4", b"theirs")
    assert refused(lambda: publish(s3.storage(), s3.uri("b.mp4"), output)).code == "dest.exists"
    assert s3.get("b.mp4") == b"theirs" and nothing_is_left(s3)


def test_two_that_complete_at_once_and_s3_ends_one_is_a_conflict_to_be_tried_again(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=answer(409, "ConditionalRequestConflict"))
    s3.proxy.fault("CompleteMultipartUpload", before=answer(404, "NoSuchUpload"))
    error = refused(lambda: publish(s3.storage(), s3.uri("a.mp4"), output))
    assert isinstance(error, InfrastructureError) and nothing_is_left(s3)


# --- owners -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("overwrite", [False, True])
def test_an_upload_that_another_process_revoked_is_never_published(s3: Scene, output: Path, overwrite: bool) -> None:
    old, new = s3.storage(), s3.storage()
    staging = begin(old, s3.uri("a.mp4"), output)
    new.revoke(staging.uri, staging.handle)
    with pytest.raises(Fenced):
        old.publish(staging, overwrite)
    assert s3.proxy.asked("CompleteMultipartUpload")  # S3 itself refused it
    assert s3.keys == [] and nothing_is_left(s3)


def test_parts_of_an_upload_that_another_process_revoked_are_refused(s3: Scene, output: Path) -> None:
    old, new = s3.storage(), s3.storage()
    staging = old.begin(s3.uri("a.mp4"), 1)
    with pytest.raises(Fenced):
        old.upload(staging, output, lambda: new.revoke(staging.uri, staging.handle), lambda done, total: None, Stop())
    assert s3.keys == [] and nothing_is_left(s3)


def test_a_revocation_after_the_completion_takes_nothing_away_and_the_output_is_adopted(s3: Scene, output: Path) -> None:
    staging = publish(s3.storage(), s3.uri("a.mp4"), output, UploadOptions(sha256=SHA256))
    new = s3.storage()
    new.revoke(staging.uri, staging.handle)
    assert new.carries(staging.uri, len(BODY), SHA256, staging.handle)
    assert s3.get("a.mp4") == BODY


def test_an_output_is_known_by_its_size_its_checksum_and_its_upload(s3: Scene, output: Path) -> None:
    storage, uri = s3.storage(), s3.uri("a.mp4")
    other = publish(storage, uri, output, UploadOptions(sha256=SHA256))
    staging = publish(storage, uri, output, UploadOptions(sha256=SHA256), overwrite=True)
    assert storage.carries(uri, len(BODY), SHA256, staging.handle)
    assert not storage.carries(uri, len(BODY), SHA256, other.handle)
    assert not storage.carries(uri, len(BODY) + 1, SHA256, staging.handle)
    assert not storage.carries(uri, len(BODY), "0" * 64, staging.handle)
    s3.put("a.mp4", BODY)
    assert not storage.carries(uri, len(BODY), SHA256, staging.handle)
    assert not storage.carries(s3.uri("none.mp4"), len(BODY), SHA256, staging.handle)


def test_no_answer_is_no_proof_that_an_output_is_missing(s3: Scene, output: Path) -> None:
    staging = publish(s3.storage(), s3.uri("a.mp4"), output, UploadOptions(sha256=SHA256))
    s3.proxy.fault("HeadObject", before=hang_up, times=OFTEN)
    with pytest.raises(InfrastructureError):
        s3.storage().carries(staging.uri, len(BODY), SHA256, staging.handle)


# --- what the object is described with ----------------------------------------------------------------------------

def test_every_option_reaches_s3_as_it_was_given(s3: Scene, output: Path) -> None:
    options = UploadOptions(content_type="video/mp4", sha256=SHA256, cache_control="public, max-age=3600",
                            storage_class="STANDARD_IA", encryption="aws:kms", kms_key_id="alias/media",
                            acl="bucket-owner-full-control", tags={"team": "a&b=c/d", "für": "x y+z", "none": ""})
    staging = publish(s3.storage(), s3.uri("a.mp4"), output, options)
    (created,) = s3.proxy.asked("CreateMultipartUpload")
    mark = staging.handle.partition(":")[0]
    sent = {name: value for name, value in created.headers.items() if name.startswith(("x-amz-", "content-type", "cache-"))}
    tagging = sent.pop("x-amz-tagging")
    assert {name: value for name, value in sent.items() if name not in ("x-amz-date", "x-amz-content-sha256")} == {
        "content-type": "video/mp4", "cache-control": "public, max-age=3600", "x-amz-storage-class": "STANDARD_IA",
        "x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": "alias/media",
        "x-amz-acl": "bucket-owner-full-control", "x-amz-meta-nommerd-sha256": SHA256,
        "x-amz-meta-nommerd-token": f"1-{mark}"}
    assert re.fullmatch(r"[A-Za-z0-9%&=._~+-]*", tagging)
    assert parse_qs(tagging, keep_blank_values=True) == {"team": ["a&b=c/d"], "für": ["x y+z"], "none": [""]}
    head = s3.plain.head_object(Bucket=s3.bucket, Key="a.mp4")
    assert head["ContentType"] == "video/mp4" and head["StorageClass"] == "STANDARD_IA"
    assert head["Metadata"] == {"nommerd-sha256": SHA256, "nommerd-token": f"1-{mark}"}


def test_without_options_only_type_and_token_are_sent(s3: Scene, output: Path) -> None:
    publish(s3.storage(), s3.uri("a.mp4"), output)
    (created,) = s3.proxy.asked("CreateMultipartUpload")
    names = {name for name in created.headers if name.startswith("x-amz-")} - {"x-amz-date", "x-amz-content-sha256"}
    assert names == {"x-amz-meta-nommerd-token"}
    assert created.headers["content-type"] == "application/octet-stream"


def test_every_part_carries_its_md5_and_no_checksum_that_others_than_aws_may_not_know(s3: Scene, three_parts: Path) -> None:
    publish(s3.storage(), s3.uri("a.mp4"), three_parts)
    for part in s3.proxy.asked("UploadPart"):
        assert "content-md5" in part.headers
        assert not [name for name in part.headers if "checksum" in name or name == "x-amz-trailer"]


# --- who may, and with whose credentials --------------------------------------------------------------------------

KEY_ID, KEY = "AKIATHEIRS", "canary-7f3a91/th+ei/rs"


def test_credentials_in_a_uri_are_used_for_every_request_and_shown_nowhere(
        s3: Scene, output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("INFO")
    storage = S3Storage(s3_clients(s3), [], [], 10**9, endpoint_url=s3.proxy.url)
    uri = s3.uri("a.mp4", f"{KEY_ID}:{KEY}")
    staging = publish(storage, uri, output, UploadOptions(sha256=SHA256))
    assert fetch(storage, uri, tmp_path / "back") == BODY
    assert storage.exists(uri) and storage.carries(uri, len(BODY), SHA256, staging.handle)
    storage.revoke(uri, staging.handle)
    assert len(s3.proxy.seen) >= 7
    assert all(f"Credential={KEY_ID}/" in exchange.headers["authorization"] for exchange in s3.proxy.seen)
    assert KEY not in caplog.text + str(capfd.readouterr()) + staging.handle


@pytest.mark.parametrize(("code", "whose"), [("InvalidAccessKeyId", "config.aws"), ("SignatureDoesNotMatch", "config.aws"),
                                             ("AccessDenied", "FAMILY.forbidden")])
def test_refused_credentials_are_told_without_being_shown(s3: Scene, output: Path, tmp_path: Path, code: str,
                                                          whose: str) -> None:
    for operation in ("HeadObject", "GetObject", "CreateMultipartUpload"):
        s3.proxy.fault(operation, before=answer(403, code), times=OFTEN)
    for credentials in ("", f"{KEY_ID}:{KEY}"):
        uri = s3.uri("a.mp4", credentials)
        calls: list[tuple[str, Callable[[], object]]] = [
            ("source", lambda uri=uri: fetch(s3.storage(), uri, tmp_path / "back")),  # type: ignore[misc]
            ("dest", lambda uri=uri: publish(s3.storage(), uri, output))]  # type: ignore[misc]
        for family, call in calls:
            error = refused(call)
            assert error.code == ("FAMILY.forbidden" if credentials else whose).replace("FAMILY", family)
            shown = f"{error} {error!r} {error.hint} {error.__context__!r}"
            assert KEY not in shown and KEY_ID not in shown


def test_the_nodes_credentials_open_what_is_listed_and_nothing_beside_it(s3: Scene, output: Path, tmp_path: Path) -> None:
    s3.put("in/a", b"a")
    s3.put("inbox/a", b"secret")
    storage = S3Storage(s3_clients(s3), [f"{s3.bucket}/in"], [f"{s3.bucket}/out"], 10**9, endpoint_url=s3.proxy.url)
    assert fetch(storage, s3.uri("in/a"), tmp_path / "a") == b"a"
    publish(storage, s3.uri("out/a"), output)
    asked = len(s3.proxy.seen)
    for call in (lambda: storage.check_source(s3.uri("inbox/a")), lambda: fetch(storage, s3.uri("inbox/a"), tmp_path / "b"),
                 lambda: fetch(storage, s3.uri("out/a"), tmp_path / "b"), lambda: storage.check_dest(s3.uri("in/a")),
                 lambda: storage.begin(s3.uri("outer/a"), 1), lambda: storage.exists(s3.uri("in/a"))):
        assert refused(call).code.endswith(".outside_buckets")
    assert len(s3.proxy.seen) == asked and not (tmp_path / "b").exists()


@pytest.mark.parametrize("credentials", ["", f"{KEY_ID}:{KEY}"])
def test_the_buckets_of_nommerd_itself_are_closed_to_everybody(s3: Scene, tmp_path: Path, credentials: str) -> None:
    s3.put("a", b"a")
    storage, uri = s3.storage(closed_buckets=[s3.bucket]), s3.uri("a", credentials)
    for call in (lambda: storage.check_source(uri), lambda: fetch(storage, uri, tmp_path / "b"),
                 lambda: storage.check_dest(uri), lambda: storage.begin(uri, 1), lambda: storage.exists(uri)):
        error = refused(call)
        assert error.code.endswith(".outside_buckets") and KEY not in str(error)
    assert s3.proxy.seen == []


def s3_clients(s3: Scene) -> object:
    from tests.emulator import emulator

    return emulator().clients(s3.proxy.url)
