"""S3 against an emulator behind a proxy that holds AWS's rules and fails as it is told: what every kind of
fault, option, owner and credential comes to. See test_s3_publish and test_s3_fetch for how it is done."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from nommerd.errors import InfrastructureError, InputError, NommerdError, Stop
from nommerd.storage import s3_fetch, s3_upload
from nommerd.storage.base import UploadOptions
from nommerd.storage.s3 import S3Storage
from tests.s3_proxy import Action, Exchange, answer, hang_up
from tests.s3_scene import Scene, fetch, publish

MIB = 2**20
OFTEN = 1000  # more than anybody tries
RANGE = 100_000  # fetched at once
BODY = os.urandom(10 * RANGE + 3)
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


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_fetch, "RANGE_BYTES", RANGE)


def refused(call: Callable[[], object]) -> NommerdError:
    """The error that it ends with."""
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
    s3.proxy.fault("UploadPart", before=before, after=after, times=3, when=lambda part: part.query["partNumber"] == "2")
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


def test_progress_only_grows_though_parts_fail_and_ends_with_the_size(s3: Scene, three_parts: Path) -> None:
    s3.proxy.fault("UploadPart", before=answer(500, "InternalError"), times=4)
    storage, told = s3.storage(), list[tuple[int, int | None]]()
    staging = storage.begin(s3.uri("a.mp4"), 1)
    storage.upload(staging, three_parts, lambda: None, lambda done, total: told.append((done, total)), Stop())
    size = three_parts.stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


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


def test_an_object_that_appears_at_the_last_moment_is_not_replaced(s3: Scene, output: Path) -> None:
    s3.proxy.fault("CompleteMultipartUpload", before=lambda exchange: s3.put("a.mp4", b"theirs"))
    error = refused(lambda: publish(s3.storage(), s3.uri("a.mp4"), output))
    assert isinstance(error, InputError) and error.code == "dest.exists"
    assert s3.get("a.mp4") == b"theirs" and nothing_is_left(s3)


# --- owners -------------------------------------------------------------------------------------------------------

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


# --- what the object is described with ----------------------------------------------------------------------------

def test_every_option_reaches_s3_as_it_was_given(s3: Scene, output: Path) -> None:
    options = UploadOptions(content_type="video/mp4", sha256=SHA256, cache_control="public, max-age=3600",
                            storage_class="STANDARD_IA", encryption="aws:kms", kms_key_id="alias/media",
                            acl="bucket-owner-full-control", tags={"team": "a+b=c/d", "für": "x y+z", "none": ""})
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
    assert parse_qs(tagging, keep_blank_values=True) == {"team": ["a+b=c/d"], "für": ["x y+z"], "none": [""]}
    head = s3.plain.head_object(Bucket=s3.bucket, Key="a.mp4")
    assert head["ContentType"] == "video/mp4" and head["StorageClass"] == "STANDARD_IA"
    assert head["Metadata"] == {"nommerd-sha256": SHA256, "nommerd-token": f"1-{mark}"}


def test_without_options_only_type_and_token_are_sent(s3: Scene, output: Path) -> None:
    publish(s3.storage(), s3.uri("a.mp4"), output)
    (created,) = s3.proxy.asked("CreateMultipartUpload")
    names = {name for name in created.headers if name.startswith("x-amz-")} - {"x-amz-date", "x-amz-content-sha256"}
    assert names == {"x-amz-meta-nommerd-token"}
    assert created.headers["content-type"] == "application/octet-stream"


# --- who may, and with whose credentials --------------------------------------------------------------------------

KEY_ID, KEY = "AKIATHEIRS", "canary-7f3a91/th+ei/rs"


def test_credentials_in_a_uri_are_used_for_every_request_and_shown_nowhere(
        s3: Scene, output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("INFO")
    storage = S3Storage(s3.clients, [], [], 10**9, endpoint_url=s3.proxy.url)
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
    storage = S3Storage(s3.clients, [f"{s3.bucket}/in"], [f"{s3.bucket}/out"], 10**9, endpoint_url=s3.proxy.url)
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


# --- fetching -----------------------------------------------------------------------------------------------------

def begins_at(offset: int) -> Callable[[Exchange], bool]:
    """Whether a request is for the range from there."""
    return lambda exchange: exchange.headers.get("range", "").startswith(f"bytes={offset}-")


def flip_answer(exchange: Exchange) -> None:
    """A fault that damages an answer on its way."""
    exchange.content = exchange.content[:-1] + bytes([exchange.content[-1] ^ 1])


@pytest.mark.parametrize("size", [0, 1, RANGE - 1, RANGE, RANGE + 1, 10 * RANGE + 3])
def test_ranges_of_one_version_come_together_as_the_object(s3: Scene, tmp_path: Path, small_ranges: None, size: int) -> None:
    s3.put("a.mov", BODY[:size])
    assert fetch(s3.storage(md5_etags=True), s3.uri("a.mov"), tmp_path / "a") == BODY[:size]
    etag = s3.plain.head_object(Bucket=s3.bucket, Key="a.mov")["ETag"]
    asked = s3.proxy.asked("GetObject")
    assert sorted(exchange.headers["range"] for exchange in asked) == sorted(
        f"bytes={begin}-{min(begin + RANGE, size) - 1}" for begin in range(0, size, RANGE))
    assert all(exchange.headers["if-match"] == etag for exchange in asked)


@pytest.mark.parametrize("newer", [BODY[::-1], BODY[:-1], BODY + b"more", b"", BODY[:RANGE]])
def test_a_source_that_is_replaced_while_it_is_fetched_may_be_tried_again(s3: Scene, tmp_path: Path, small_ranges: None,
                                                                         newer: bytes) -> None:
    s3.put("a.mov", BODY)
    s3.proxy.fault("GetObject", before=lambda exchange: s3.put("a.mov", newer), when=begins_at(5 * RANGE))
    error = refused(lambda: fetch(s3.storage(), s3.uri("a.mov"), tmp_path / "a"))
    assert isinstance(error, InfrastructureError) and error.code == "source.changed"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("newer", [BODY[:-1], BODY + b"more"])
def test_a_server_that_ignores_if_match_is_found_out_by_the_size(s3: Scene, tmp_path: Path, small_ranges: None,
                                                                 newer: bytes) -> None:
    s3.put("a.mov", BODY)

    def ignore(exchange: Exchange) -> None:
        del exchange.headers["if-match"]
        if begins_at(5 * RANGE)(exchange):
            s3.put("a.mov", newer)

    s3.proxy.fault("GetObject", before=ignore, times=OFTEN)
    assert refused(lambda: fetch(s3.storage(), s3.uri("a.mov"), tmp_path / "a")).code == "source.changed"


def test_a_source_that_goes_away_while_it_is_fetched_is_not_found(s3: Scene, tmp_path: Path, small_ranges: None) -> None:
    s3.put("a.mov", BODY)
    s3.proxy.fault("GetObject", when=begins_at(5 * RANGE),
                   before=lambda exchange: s3.plain.delete_object(Bucket=s3.bucket, Key="a.mov"))
    assert refused(lambda: fetch(s3.storage(), s3.uri("a.mov"), tmp_path / "a")).code == "source.not_found"


def parts(*megabytes: int) -> list[bytes]:
    return [os.urandom(count * 2**20 + 1) for count in megabytes] + [b"the last part may be small"]


@pytest.mark.parametrize("pieces", [parts(), parts(5), parts(5, 5), parts(6, 5)], ids=["one", "two", "alike", "unlike"])
def test_a_source_put_in_parts_is_checked_part_by_part(s3: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       pieces: list[bytes]) -> None:
    monkeypatch.setattr(s3_fetch, "RANGE_BYTES", 4 * 2**20)
    s3.put_parts("a.mov", pieces)
    s3.proxy.fault("HeadObject", after=lambda exchange: part_size(exchange, pieces), times=OFTEN,
                   when=lambda exchange: "partNumber" in exchange.query)
    assert fetch(s3.storage(md5_etags=True), s3.uri("a.mov"), tmp_path / "whole") == b"".join(pieces)
    s3.proxy.fault("GetObject", after=flip_answer, when=begins_at(0))
    assert refused(lambda: fetch(s3.storage(md5_etags=True), s3.uri("a.mov"), tmp_path / "a")).code == "source.corrupted"


def part_size(exchange: Exchange, pieces: list[bytes]) -> None:
    """What AWS answers to HEAD with partNumber: the size of the part."""
    exchange.answer = [(name, value) for name, value in exchange.answer if name.lower() != "content-length"]
    exchange.answer.append(("Content-Length", str(len(pieces[int(exchange.query["partNumber"]) - 1]))))


def test_an_object_in_the_archive_tier_is_told_by_its_answer_to_get(s3: Scene, tmp_path: Path) -> None:
    s3.put("a.mov", BODY)
    s3.proxy.fault("GetObject", before=answer(403, "InvalidObjectState"), times=OFTEN)
    assert refused(lambda: fetch(s3.storage(), s3.uri("a.mov"), tmp_path / "a")).code == "source.archived"


def test_an_output_is_read_at_a_presigned_address_until_it_expires(s3: Scene) -> None:
    s3.put("films/täter.mp4", BODY)
    uri = s3.uri("films/täter.mp4")
    address = s3.storage().link_output(uri, 300, "attachment; filename=\"x.mp4\"", "video/mp4")
    asked = parse_qs(urlsplit(address).query)
    assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"] and asked["X-Amz-Expires"] == ["300"]
    with urllib.request.urlopen(address, timeout=10) as got:
        assert got.read() == BODY
        assert got.headers["Content-Type"] == "video/mp4"
        assert got.headers["Content-Disposition"] == 'attachment; filename="x.mp4"'


def test_credentials_of_a_uri_sign_its_address_and_their_secret_is_not_in_it(s3: Scene) -> None:
    address = s3.storage().link_output(s3.uri("out.mp4", "AKIDTHEIRS:their-secret"), 300, "inline", "video/mp4")
    assert parse_qs(urlsplit(address).query)["X-Amz-Credential"][0].startswith("AKIDTHEIRS/")
    assert "their-secret" not in address


def test_no_address_is_made_outside_the_buckets_that_may_be_written(s3: Scene) -> None:
    error = refused(lambda: s3.storage().link_output("s3://another-bucket/x.mp4", 300, "inline", "video/mp4"))
    assert error.code == "dest.outside_buckets"
