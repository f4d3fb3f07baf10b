"""Sources from S3: ranges side by side, of one version, whole, and as they were put there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nommerd.errors import CancelRequested, InfrastructureError, InputError, NommerdError, Stop
from nommerd.logs import redact
from nommerd.net.egress import Egress
from nommerd.secrets import public_uri
from nommerd.storage import disk, s3_fetch, s3_verify
from nommerd.storage.base import UploadOptions
from nommerd.storage.http import HttpStorage
from nommerd.storage.s3 import S3Storage
from nommerd.storage.s3_parts import TRIES, WIDTH
from nommerd.storage.s3_uri import Place
from nommerd.storage.s3_verify import make
from tests.emulator import emulator
from tests.rig import free_port
from tests.s3_proxy import Action, Exchange, answer, hang_up
from tests.s3_scene import Scene, fetch, publish

CANARY = "canary-7f3a91"
MIB = 2**20
PART = 5 * MIB


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_fetch, "RANGE_BYTES", MIB)
    monkeypatch.setattr(s3_fetch, "READ_BYTES", 2**16)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "source.mov"


def error_of(act: Callable[[], object], target: Path) -> NommerdError:
    """The error; nothing of the file stays, and no secret is told."""
    with pytest.raises(NommerdError) as caught:
        act()
    assert not target.exists()
    assert CANARY not in f"{caught.value}{caught.value!r}{caught.value.__cause__!r}"
    return caught.value


def ranges(s3: Scene) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.headers.get("range", "")) for exchange in s3.proxy.asked("GetObject")]
    return [(int(match[1]), int(match[2]) + 1) for match in found if match]


def test_a_source_comes_in_ranges_of_one_version_a_few_at_once(s3: Scene, target: Path, small_ranges: None) -> None:
    body = os.urandom(9 * MIB + 77)
    s3.put("a.mov", body)
    gate, most, now = threading.Lock(), [0], [0]

    def enter(exchange: Exchange) -> None:
        with gate:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)

    def leave(exchange: Exchange) -> None:
        now[0] -= 1

    s3.proxy.fault("GetObject", before=enter, after=leave, times=99)
    assert fetch(s3.storage(), s3.uri("a.mov"), target) == body
    assert sorted(ranges(s3)) == [(i * MIB, min((i + 1) * MIB, len(body))) for i in range(10)]
    etag = s3.plain.head_object(Bucket=s3.bucket, Key="a.mov")["ETag"]
    assert {exchange.headers["if-match"] for exchange in s3.proxy.asked("GetObject")} == {etag}
    assert 1 < most[0] <= WIDTH


@pytest.mark.parametrize("cut", ["in the body", "before the answer", "an error", "throttled"])
def test_a_range_that_is_cut_goes_on_where_it_was(s3: Scene, target: Path, small_ranges: None, cut: str) -> None:
    body = os.urandom(3 * MIB)
    s3.put("a.mov", body)

    def half(exchange: Exchange) -> None:
        exchange.send_bytes = 300_000

    faults: dict[str, dict[str, Action]] = {
        "in the body": {"after": half}, "before the answer": {"before": hang_up},
        "an error": {"before": answer(500, "InternalError")}, "throttled": {"before": answer(503, "SlowDown")}}
    s3.proxy.fault("GetObject", times=3, **faults[cut])  # type: ignore[arg-type]
    told: list[int] = []
    s3.storage().fetch(s3.uri("a.mov"), target, lambda done, total: told.append(done), Stop())
    assert target.read_bytes() == body
    assert told == sorted(told) and told[-1] == len(body)
    if cut == "in the body":
        began = {begin for begin, _ in ranges(s3)} - {0, MIB, 2 * MIB}
        assert len(began) == 3 and all(0 < begin % MIB <= 300_000 for begin in began)


def test_a_source_shorter_than_it_says_is_retryable_after_a_bounded_number_of_tries(s3: Scene, target: Path) -> None:
    s3.put("a.mov", bytes(MIB))

    def nothing(exchange: Exchange) -> None:
        exchange.send_bytes = 0

    s3.proxy.fault("GetObject", after=nothing, times=99)
    error = error_of(lambda: fetch(s3.storage(), s3.uri("a.mov"), target), target)
    assert error.retryable and error.code in ("source.incomplete", "source.unavailable")
    assert len(s3.proxy.asked("GetObject")) == TRIES


def test_a_source_that_is_replaced_meanwhile_is_never_a_mixture(s3: Scene, target: Path, small_ranges: None) -> None:
    s3.put("a.mov", os.urandom(6 * MIB))
    s3.proxy.fault("GetObject", before=lambda exchange: s3.put("a.mov", os.urandom(6 * MIB)),
                   when=lambda exchange: exchange.headers["range"].startswith(f"bytes={5 * MIB}-"))
    error = error_of(lambda: fetch(s3.storage(), s3.uri("a.mov"), target), target)
    assert (error.code, error.retryable) == ("source.changed", True)


def test_a_server_that_sends_another_range_is_not_believed(s3: Scene, target: Path, small_ranges: None) -> None:
    s3.put("a.mov", os.urandom(2 * MIB))

    def whole(exchange: Exchange) -> None:
        exchange.headers.pop("range")

    s3.proxy.fault("GetObject", before=whole, times=99)
    assert error_of(lambda: fetch(s3.storage(), s3.uri("a.mov"), target), target).code == "source.incomplete"


def test_a_range_that_is_said_to_begin_elsewhere_is_not_written(s3: Scene, target: Path, small_ranges: None) -> None:
    body = os.urandom(2 * MIB)
    s3.put("a.mov", body)

    def shifted(exchange: Exchange) -> None:
        exchange.answer = [(name, value.replace("bytes 0-", "bytes 1-")) for name, value in exchange.answer]
        exchange.content = b"X" * len(exchange.content)

    s3.proxy.fault("GetObject", after=shifted, when=lambda exchange: exchange.headers["range"].startswith("bytes=0-"))
    assert fetch(s3.storage(), s3.uri("a.mov"), target) == body


def test_tries_are_counted_anew_whenever_something_came(s3: Scene, target: Path, small_ranges: None) -> None:
    body = os.urandom(MIB)
    s3.put("a.mov", body)

    def little(exchange: Exchange) -> None:
        exchange.send_bytes = 70_000

    s3.proxy.fault("GetObject", after=little, times=99)
    assert fetch(s3.storage(), s3.uri("a.mov"), target) == body
    assert len(s3.proxy.asked("GetObject")) > TRIES + 2


# --- checked ---------------------------------------------------------------------------------------------------------------


def put_as(s3: Scene, kind: str, tmp_path: Path) -> bytes:
    """An object, put there the way that is called so."""
    body = os.urandom(2 * PART + 1000)
    parts = [body[:PART], body[PART:2 * PART], body[2 * PART:]]
    path = tmp_path / "output"
    path.write_bytes(body)
    if kind == "output of ours":
        publish(s3.storage(), s3.uri("a.mov"), path, UploadOptions(sha256=hashlib.sha256(body).hexdigest()))
    elif kind in ("crc32", "sha1", "sha256"):
        s3.put("a.mov", body, ChecksumAlgorithm=kind.upper())
    elif kind in ("crc32 of parts", "sha256 of parts"):
        s3.put_parts("a.mov", parts, ChecksumAlgorithm=kind.split(" ", maxsplit=1)[0].upper())
    elif kind == "etag":
        s3.put("a.mov", body)
    elif kind == "etag of parts":
        s3.put_parts("a.mov", parts)
    else:
        assert kind == "etag of parts of odd sizes"
        s3.put_parts("a.mov", [body[:PART + 900], body[PART + 900:2 * PART + 900], body[2 * PART + 900:]])
    return body


KINDS = ["output of ours", "crc32", "sha1", "sha256", "crc32 of parts", "sha256 of parts", "etag", "etag of parts",
         "etag of parts of odd sizes"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_came_is_checked_and_a_body_corrupted_on_its_way_is_refused(
        s3: Scene, target: Path, tmp_path: Path, kind: str) -> None:
    body = put_as(s3, kind, tmp_path)
    storage = s3.storage(md5_etags=True)
    assert fetch(storage, s3.uri("a.mov"), target) == body
    target.unlink()

    def flip(exchange: Exchange) -> None:
        exchange.content = exchange.content[:-1] + bytes([exchange.content[-1] ^ 1])

    s3.proxy.fault("GetObject", after=flip)
    error = error_of(lambda: fetch(storage, s3.uri("a.mov"), target), target)
    assert (error.code, error.retryable) == ("source.corrupted", True)


@pytest.mark.parametrize("kind", ["crc32 of parts", "etag of parts of odd sizes", "etag"])
def test_what_is_said_is_what_it_was_checked_by(s3: Scene, tmp_path: Path, kind: str) -> None:
    body = put_as(s3, kind, tmp_path)
    path = tmp_path / "back"
    path.write_bytes(body)
    client, place, by = s3.clients("s3"), Place(s3.bucket, "a.mov"), []
    for md5_etags in (True, False):
        head = client.head_object(Bucket=s3.bucket, Key="a.mov", ChecksumMode="ENABLED")
        with path.open("rb") as file:
            by.append(s3_verify.verify(client, place, head, file.fileno(), md5_etags=md5_etags, stop=Stop()))
    assert by == (["crc32", "crc32"] if kind.startswith("crc32") else ["md5", None])


def test_an_encrypted_objects_etag_is_no_md5() -> None:
    heads = [{"ETag": f'"{"0" * 32}"', "ServerSideEncryption": kind} for kind in ("aws:kms", "aws:kms:dsse")]
    heads += [{"ETag": f'"{"0" * 32}"', "SSECustomerAlgorithm": "AES256"}, {"ETag": '"not-md5"'}, {}]
    assert [list(s3_verify.expected(head, True)) for head in heads] == [[]] * 5
    of_parts = {"ETag": f'"{"0" * 32}-7"', "ServerSideEncryption": "AES256"}
    assert [(one.algorithm, one.parts) for one in s3_verify.expected(of_parts, True)] == [("md5", 7)]


def test_a_checksum_that_cannot_be_computed_here_is_no_fault() -> None:
    assert list(s3_verify.expected({"ChecksumCRC64NVME": "AAAAAAAAAAA=", "ChecksumCRC32C": "AAAAAA=="}, True)) == []
    of_what = {"ETag": f'"{"0" * 32}-2"', "ChecksumCRC32": "AAAAAA=="}
    assert list(s3_verify.expected(of_what, False)) == []
    assert len(list(s3_verify.expected(of_what | {"ChecksumType": "FULL_OBJECT"}, False))) == 1
    digest = make("crc32")
    digest.update(b"123456789")
    assert digest.digest().hex() == "cbf43926"


# --- refused ---------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_says_why_though_head_has_no_words(s3: Scene, target: Path) -> None:
    s3.put("cold.mov", b"x", StorageClass="GLACIER")
    storage = s3.storage()
    assert error_of(lambda: fetch(storage, s3.uri("none.mov"), target), target).code == "source.not_found"
    assert error_of(lambda: fetch(storage, s3.uri("cold.mov"), target), target).code == "source.archived"
    s3.put("a.mov", b"x")
    for reason, status, credentials, code in (
            ("AccessDenied", 403, "", "source.forbidden"), ("InvalidAccessKeyId", 403, "", "config.aws"),
            ("SignatureDoesNotMatch", 403, f"AKIA:{CANARY}/+", "source.forbidden"),
            ("InvalidObjectState", 403, "", "source.archived"), ("ExpiredToken", 400, "", "source.unavailable"),
            ("NoSuchBucket", 404, "", "source.not_found")):
        s3.proxy.reset()
        s3.proxy.fault("HeadObject", before=answer(status, reason), times=99)
        s3.proxy.fault("GetObject", before=answer(status, reason), times=99)
        uri = s3.uri("a.mov", credentials)
        assert error_of(lambda: fetch(storage, uri, target), target).code == code  # noqa: B023


def test_an_object_that_was_restored_from_its_archive_is_a_source() -> None:
    archived = {"StorageClass": "GLACIER"}
    assert s3_fetch._is_archived(archived)
    assert s3_fetch._is_archived({"StorageClass": "INTELLIGENT_TIERING", "ArchiveStatus": "ARCHIVE_ACCESS"})
    assert s3_fetch._is_archived(archived | {"Restore": 'ongoing-request="true"'})
    restored = {"Restore": 'ongoing-request="false", expiry-date="Fri, 21 Dec 2030 00:00:00 GMT"'}
    assert not s3_fetch._is_archived(archived | restored)
    assert not s3_fetch._is_archived({"StorageClass": "GLACIER_IR"})


def test_a_source_that_is_not_allowed_is_not_asked_for(s3: Scene, target: Path) -> None:
    with pytest.raises(InputError):
        fetch(s3.storage(closed_buckets=[s3.bucket]), s3.uri("a.mov", f"AKIA:{CANARY}"), target)
    assert s3.proxy.seen == []


def test_an_endpoint_that_nobody_is_at_is_retryable(s3: Scene, target: Path) -> None:
    nobody = S3Storage(emulator().clients(f"http://127.0.0.1:{free_port()}"), [s3.bucket], [], 10**9,
                       endpoint_url=f"http://127.0.0.1:{free_port()}")
    error = error_of(lambda: fetch(nobody, s3.uri("a.mov", f"AKIA:{CANARY}"), target), target)
    assert isinstance(error, InfrastructureError)
    assert error.code == "source.unavailable"


@pytest.mark.parametrize("where", ["HeadObject", "GetObject"])
def test_a_stop_is_heard_within_a_second_though_s3_says_nothing(s3: Scene, target: Path, where: str) -> None:
    s3.put("a.mov", bytes(MIB))
    stop, release = Stop(), threading.Event()
    began: list[float] = []

    def hang(exchange: Exchange) -> None:
        began.append(time.monotonic())
        stop.set(CancelRequested())
        release.wait(20)
        exchange.refuse(500, "InternalError")

    s3.proxy.fault(where, before=hang)
    with pytest.raises(CancelRequested):
        fetch(s3.storage(), s3.uri("a.mov"), target, stop)
    assert time.monotonic() - began[0] < 1.5
    release.set()
    assert not target.exists()


def test_a_full_disk_is_the_nodes_fault(s3: Scene, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    s3.put("a.mov", bytes(MIB))
    monkeypatch.setattr(disk, "write_all", full)
    assert error_of(lambda: fetch(s3.storage(), s3.uri("a.mov"), target), target).code == "node.disk_full"


# --- presigned URLs, and what is imported when -----------------------------------------------------------------------------


def test_a_presigned_url_is_an_ordinary_source_whose_query_shows_nowhere(s3: Scene, target: Path) -> None:
    body = os.urandom(3 * MIB)
    s3.put("a b.mov", body)
    url = s3.plain.generate_presigned_url("get_object", Params={"Bucket": s3.bucket, "Key": "a b.mov"}, ExpiresIn=60)
    signature = re.findall(r"(?:Signature|X-Amz-Signature)=([^&]+)", url)[0]
    storage = HttpStorage(Egress(["127.0.0.0/8"]), 10**9)
    storage.check_source(url)
    storage.fetch(url, target, lambda done, total: None, Stop())
    assert target.read_bytes() == body
    s3.plain.delete_object(Bucket=s3.bucket, Key="a b.mov")
    with pytest.raises(NommerdError) as caught:
        storage.fetch(url, target.with_name("b"), lambda done, total: None, Stop())
    assert caught.value.code in ("source.not_found", "source.forbidden")
    for shown in (str(caught.value), repr(caught.value.__cause__), redact(f"get {url} failed"), public_uri(url)):
        assert signature not in shown
        assert "Expires" not in shown


def test_boto3_is_imported_at_the_first_s3_uri_and_not_before(tmp_path: Path) -> None:
    code = """
import sys
from nommerd import runtime
runtime.patch()
from nommerd.aws.clients import Clients
from nommerd.config import Settings
from nommerd.logs import redact
from nommerd.net.egress import Egress
from nommerd.storage import open_registry
settings = Settings.model_validate({"storage": {"s3_read": ["media"], "s3_write": ["media"]}})
registry = open_registry(settings, Egress(), Clients(settings.aws))
registry.for_uri("s3://media/a").check_source("s3://media/a")
registry.for_uri("s3://media/a").check_dest("s3://media/a")
print([name for name in ("boto3", "botocore", "urllib3") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                         env=os.environ | {"HOME": str(tmp_path)})
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
