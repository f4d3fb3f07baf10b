"""Whether what came from S3 is what was put there, by the best of what S3 tells of the object:

1. our own SHA-256 in the metadata of an output of ours,
2. the object's checksum, where it is one that can be computed here (CRC32, SHA-1, SHA-256; not CRC32C, CRC64NVME and the
   newer ones), of the whole object or composed of its parts',
3. the ETag, which on AWS is made of MD5s in the same two ways unless the object is encrypted with KMS or a customer's key.

An object with none of the three is not checked; its transport is (TLS).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nommerd import runtime
from nommerd.aws.clients import is_transient
from nommerd.errors import InfrastructureError, Stop
from nommerd.net.watched import watched
from nommerd.storage.s3_parts import persistently, side_by_side
from nommerd.storage.s3_uri import Place

SHA256_KEY = "nommerd-sha256"  # in the metadata of our outputs
BITE_BYTES = 8 * 2**20  # hashed per visit to the thread pool
READ_BYTES = 2**20

_ETAG = re.compile(r'"?([0-9a-f]{32})(?:-([0-9]{1,5}))?"?')
_COMPOSITE = re.compile(r"(.+)-([0-9]{1,5})")
_KMS = ("aws:kms", "aws:kms:dsse")


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class Crc32:
    """CRC-32 as S3 has it: four bytes, big-endian."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


def make(algorithm: str) -> Digest:
    """A new digest of `crc32` or one of hashlib's."""
    return Crc32() if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Expected:
    """What the bytes must come to. `parts`: a digest of the digests of so many parts; 0: of the whole."""

    algorithm: str
    value: bytes
    parts: int = 0


def expected(head: dict[str, Any], md5_etags: bool) -> Iterable[Expected]:
    """What the answer to HEAD says of the content, the best first."""
    ours = str(head.get("Metadata", {}).get(SHA256_KEY, ""))
    if re.fullmatch("[0-9a-f]{64}", ours):
        yield Expected("sha256", bytes.fromhex(ours))
    etag = _ETAG.fullmatch(str(head.get("ETag", "")))
    whole = head.get("ChecksumType") == "FULL_OBJECT" or not (etag and etag[2])
    for algorithm in ("crc32", "sha1", "sha256"):
        text = head.get(f"Checksum{algorithm.upper()}", "")
        composite = _COMPOSITE.fullmatch(text)
        if composite:
            yield Expected(algorithm, base64.b64decode(composite[1]), int(composite[2]))
        elif text and whole:  # else put in parts, by one that does not say of what the checksum is (AWS always does)
            yield Expected(algorithm, base64.b64decode(text))
    if md5_etags and etag and head.get("ServerSideEncryption") not in _KMS and not head.get("SSECustomerAlgorithm"):
        yield Expected("md5", bytes.fromhex(etag[1]), int(etag[2] or 0))


def verify(client: Any, place: Place, head: dict[str, Any], descriptor: int, *, md5_etags: bool, stop: Stop) -> str | None:
    """Raise InfrastructureError source.corrupted where the file is not the object; else say by what it was checked."""
    size = int(head["ContentLength"])
    for wanted in expected(head, md5_etags):
        if not wanted.parts:
            same = of_range(wanted.algorithm, descriptor, 0, size, stop) == wanted.value
        else:
            try:
                same = _parts_are(client, place, wanted, descriptor, size, stop)
            except _Unknown:
                continue
        if not same:
            raise InfrastructureError("source.corrupted", f"What came is not what S3 keeps: its {wanted.algorithm} differs.")
        return wanted.algorithm
    return None


class _Unknown(Exception):
    """S3 does not say how large the parts are."""


def _parts_are(client: Any, place: Place, wanted: Expected, descriptor: int, size: int, stop: Stop) -> bool:
    """Whether the digests of the parts have this digest. Nearly always all parts but the last have one size; only where
    that does not come out, each is asked for."""
    first = _size_of(client, place, 1, stop)
    alike = [min(first, size - begin) for begin in range(0, size, first)] if first else [0]
    if len(alike) == wanted.parts and _of_parts(wanted.algorithm, descriptor, alike, stop) == wanted.value:
        return True
    sizes: dict[int, int] = {1: first}

    def ask(number: int) -> None:
        sizes[number] = _size_of(client, place, number, stop)

    side_by_side(ask, range(2, wanted.parts + 1), stop)
    asked = [sizes[number] for number in sorted(sizes)]
    if sum(asked) != size:
        raise _Unknown
    return asked != alike and _of_parts(wanted.algorithm, descriptor, asked, stop) == wanted.value


def _size_of(client: Any, place: Place, part: int, stop: Stop) -> int:
    """Of a part. Raises _Unknown where S3 does not tell, InfrastructureError where it cannot be asked."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer = persistently(lambda: watched(
            lambda: client.head_object(Bucket=place.bucket, Key=place.key, PartNumber=part), stop), stop)
    except (BotoCoreError, ClientError) as error:
        if is_transient(error):
            raise InfrastructureError("source.unavailable", "S3 could not be used to check the source.") from None
        raise _Unknown from None
    return int(answer["ContentLength"])


def _of_parts(algorithm: str, descriptor: int, sizes: Sequence[int], stop: Stop) -> bytes:
    outer, begin = make(algorithm), 0
    for count in sizes:
        outer.update(of_range(algorithm, descriptor, begin, count, stop))
        begin += count
    return outer.digest()


def of_range(algorithm: str, descriptor: int, begin: int, count: int, stop: Stop) -> bytes:
    """The digest of a piece of a file, computed in the thread pool. Raises stop's reason."""
    digest = make(algorithm)
    for at in range(begin, begin + count, BITE_BYTES):
        stop.check()
        runtime.in_pool(_bite, digest, descriptor, at, min(BITE_BYTES, begin + count - at))
    return digest.digest()


def _bite(digest: Digest, descriptor: int, at: int, count: int) -> None:
    while count:
        data = os.pread(descriptor, min(READ_BYTES, count), at)
        if not data:
            raise InfrastructureError("node.io_error", "A file shrank while it was read.")
        digest.update(data)
        at, count = at + len(data), count - len(data)
