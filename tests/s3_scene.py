"""A bucket of the emulator behind a strict proxy, and the storage that works on it. For tests of S3."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nommerd.aws.clients import Clients
from nommerd.errors import Stop
from nommerd.storage.base import NO_OPTIONS, Staging, UploadOptions
from nommerd.storage.s3 import S3Storage
from tests.emulator import emulator
from tests.s3_proxy import S3Proxy, s3_proxy

MAX_SOURCE_BYTES = 100_000_000


@dataclass
class Scene:
    """`plain` is a client that goes past the proxy. Making clients takes boto3 a while: all share those of `clients`."""

    proxy: S3Proxy
    bucket: str
    plain: Any
    clients: Clients

    def storage(self, **options: Any) -> S3Storage:
        """A storage as another process would have it."""
        given = {"endpoint_url": self.proxy.url, **options}
        return S3Storage(self.clients, [self.bucket], [self.bucket], MAX_SOURCE_BYTES, **given)

    def uri(self, key: str, credentials: str = "") -> str:
        return f"s3://{credentials and credentials + '@'}{self.bucket}/{key}"

    def put(self, key: str, body: bytes, **options: Any) -> None:
        self.plain.put_object(Bucket=self.bucket, Key=key, Body=body, **options)

    def put_parts(self, key: str, parts: list[bytes], **options: Any) -> None:
        """A multipart object of these parts, checksums only as the options say."""
        where = {"Bucket": self.bucket, "Key": key}
        upload = self.plain.create_multipart_upload(**where, **options)["UploadId"]
        done = [{"PartNumber": number, "ETag": self.plain.upload_part(**where, UploadId=upload, PartNumber=number,
                                                                      Body=part)["ETag"]}
                for number, part in enumerate(parts, 1)]
        self.plain.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": done})

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self.plain.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        except self.plain.exceptions.NoSuchKey:
            return None

    @property
    def keys(self) -> list[str]:
        return [found["Key"] for found in self.plain.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    @property
    def leftovers(self) -> list[str]:
        """Uploads that were neither completed nor aborted, as the emulator sees it."""
        found = self.plain.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return [upload["UploadId"] for upload in found]


    def anew(self) -> Scene:
        """The same proxy without faults and memories, and an empty bucket."""
        self.proxy.reset()
        bucket = f"scene-{secrets.token_hex(6)}"
        self.plain.create_bucket(Bucket=bucket)
        return replace(self, bucket=bucket)


@contextmanager
def s3_scene() -> Iterator[Scene]:
    """A scene to take others from, by `anew`."""
    plain = emulator().clients()("s3", request_checksum_calculation="when_required")
    with s3_proxy(emulator().url) as proxy:
        yield Scene(proxy, "", plain, emulator().clients(proxy.url))


def fetch(storage: S3Storage, uri: str, target: Path, stop: Stop | None = None) -> bytes:
    """What came."""
    storage.fetch(uri, target, lambda done, total: None, stop or Stop())
    return target.read_bytes()


def begin(storage: S3Storage, uri: str, path: Path, options: UploadOptions = NO_OPTIONS, token: int = 1) -> Staging:
    """Stage the file; not published yet."""
    staging = storage.begin(uri, token, options)
    storage.upload(staging, path, lambda: None, lambda done, total: None, Stop())
    return staging


def publish(storage: S3Storage, uri: str, path: Path, options: UploadOptions = NO_OPTIONS, *,
            overwrite: bool = False) -> Staging:
    """Stage and publish the file."""
    staging = begin(storage, uri, path, options)
    storage.publish(staging, overwrite)
    return staging
