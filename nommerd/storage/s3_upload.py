"""The parts of a multipart upload: how large, sent side by side, each with its MD5 for S3 to check."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nommerd import runtime
from nommerd.aws.clients import error_code, is_transient
from nommerd.errors import InfrastructureError, InputError, Stop
from nommerd.storage.s3_errors import DAMAGED
from nommerd.storage.s3_parts import persistently, side_by_side
from nommerd.storage.s3_uri import Place
from nommerd.storage.s3_verify import of_range

PART_BYTES = 16 * 2**20  # at least 5 MiB (AWS), and so small that one sent in vain is no loss
PARTS_MAX = 10_000  # AWS
PART_BYTES_MAX = 5 * 2**30  # AWS
SEND_BYTES = 2**18  # read from the disk at once


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the file, by its number from 1."""

    number: int
    begin: int
    bytes: int


def parts_of(size: int) -> Iterator[Part]:
    """The parts of a file of this size, all but the last of one size; an empty file has one that is empty. InputError
    dest.too_large for more than S3 can keep."""
    each = max(PART_BYTES, -(-size // PARTS_MAX // 2**20) * 2**20)
    if each > PART_BYTES_MAX:
        raise InputError("dest.too_large", f"S3 cannot keep an object of {size} bytes.")
    for number, begin in enumerate(range(0, max(size, 1), each), 1):
        yield Part(number, begin, min(each, size - begin))


class Sending:
    """Sends a file's parts to one upload; `run` returns what completes it."""

    def __init__(self, client: Any, place: Place, upload_id: str, descriptor: int, size: int,
                 on_bytes: Callable[[int], None], stop: Stop) -> None:
        self._client, self._place, self._upload_id = client, place, upload_id
        self._descriptor, self._size, self._stop = descriptor, size, stop
        self._on_bytes = on_bytes
        self._sent: dict[int, int] = {}
        self._etags: dict[int, str] = {}

    def run(self) -> list[dict[str, Any]]:
        """`[{PartNumber, ETag}]` in their order. Raises what boto3 raises."""
        side_by_side(self._send, parts_of(self._size), self._stop)
        return [{"PartNumber": number, "ETag": self._etags[number]} for number in sorted(self._etags)]

    def _send(self, part: Part) -> None:
        md5 = base64.b64encode(of_range("md5", self._descriptor, part.begin, part.bytes, self._stop)).decode()

        def once() -> str:
            body = Body(self._descriptor, part, lambda done: self._tell(part, done))
            answer = self._client.upload_part(
                Bucket=self._place.bucket, Key=self._place.key, UploadId=self._upload_id, PartNumber=part.number,
                Body=body if part.bytes else b"", ContentMD5=md5)
            return str(answer["ETag"])

        self._etags[part.number] = persistently(once, self._stop, lambda e: is_transient(e) or error_code(e) in DAMAGED)
        self._tell(part, part.bytes)

    def _tell(self, part: Part, done: int) -> None:
        """Never less than before, though a part may be sent again."""
        if done > self._sent.get(part.number, 0):
            self._sent[part.number] = done
            self._on_bytes(sum(self._sent.values()))


class Body:
    """A part as boto3 sends it: of known length, read off the hub, from the start again for another try."""

    def __init__(self, descriptor: int, part: Part, on_read: Callable[[int], None]) -> None:
        self._descriptor, self._part, self._on_read = descriptor, part, on_read
        self._at = 0  # where the next read begins
        self._kept, self._kept_at = b"", 0  # bytes read ahead, and where they begin

    def __len__(self) -> int:
        return self._part.bytes

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.bytes}[whence]
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        """Some bytes, empty at the end of the part."""
        left = self._part.bytes - self._at
        if left <= 0:
            return b""
        if not self._kept_at <= self._at < self._kept_at + len(self._kept):
            self._read_ahead(left)
        skip = self._at - self._kept_at
        data = self._kept[skip:] if count is None or count < 0 else self._kept[skip:skip + count]
        self._at += len(data)
        return data

    def _read_ahead(self, left: int) -> None:
        self._kept = runtime.in_pool(os.pread, self._descriptor, min(SEND_BYTES, left), self._part.begin + self._at)
        self._kept_at = self._at
        if not self._kept:
            raise InfrastructureError("node.io_error", "An output shrank while it was sent.")
        self._on_read(self._at)
