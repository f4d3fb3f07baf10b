"""The storage backends that the contract runs on, each with real places: a folder, an HTTP server, an emulator of S3 held to
AWS's rules. One more entry each."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from nommerd.net.egress import Egress
from nommerd.storage.base import Storage
from nommerd.storage.file import FileStorage, path_of, uri_of
from nommerd.storage.http import HttpStorage
from nommerd.storage.http_fetch import Patience
from nommerd.storage.s3 import S3Storage
from tests.emulator import emulator
from tests.http_site import serve
from tests.s3_proxy import s3_proxy

MAX_SOURCE_BYTES = 12_000_000
QUICK = Patience(tries=4, backoff_seconds=0.01)


@dataclass(frozen=True)
class Place:
    """A backend and its far side. `fenced`: publishing is staged and can be revoked."""

    storage: Storage
    uri: Callable[[str], str]  # of a name, for sources and destinations
    put: Callable[[str, bytes], None]
    get: Callable[[str], bytes | None]
    everything: Callable[[], dict[str, bytes]]  # visible or not
    fenced: bool
    takes: Callable[[str], bool] = lambda name: True  # whether something can be called so


@contextmanager
def file_place(folder: Path) -> Iterator[Place]:
    root = folder / "media"
    root.mkdir()

    def get(name: str) -> bytes | None:
        path = path_of(uri_of(root / name))
        return path.read_bytes() if path.exists() else None

    def everything() -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def put(name: str, body: bytes) -> None:
        (root / name).write_bytes(body)

    yield Place(FileStorage([root], MAX_SOURCE_BYTES), lambda name: uri_of(root / name), put, get, everything, True)


@contextmanager
def http_place(folder: Path) -> Iterator[Place]:
    with serve() as site:
        def put(name: str, body: bytes) -> None:
            site.files["/" + quote(name)] = body

        storage = HttpStorage(Egress(["127.0.0.0/8"]), MAX_SOURCE_BYTES, QUICK)
        yield Place(storage, lambda name: f"{site.url}/{quote(name)}", put, lambda name: site.files.get("/" + quote(name)),
                    lambda: {unquote(path[1:]): body for path, body in site.files.items()}, False)


@contextmanager
def s3_place(folder: Path) -> Iterator[Place]:
    bucket = f"contract-{secrets.token_hex(6)}"
    plain = emulator().client("s3")
    plain.create_bucket(Bucket=bucket)
    with s3_proxy(emulator().url) as proxy:
        storage = S3Storage(emulator().clients(proxy.url), [f"{bucket}/media"], [f"{bucket}/media"], MAX_SOURCE_BYTES,
                            endpoint_url=proxy.url)

        def get(name: str) -> bytes | None:
            try:
                return bytes(plain.get_object(Bucket=bucket, Key=f"media/{name}")["Body"].read())
            except plain.exceptions.NoSuchKey:
                return None

        def everything() -> dict[str, bytes]:
            names = [found["Key"].removeprefix("media/") for found in plain.list_objects_v2(Bucket=bucket).get("Contents", [])]
            return {name: get(name) or b"" for name in names} | {f"upload {id}": b"" for id in proxy.open_uploads}

        yield Place(storage, lambda name: f"s3://{bucket}/media/{name}",
                    lambda name, body: void(plain.put_object(Bucket=bucket, Key=f"media/{name}", Body=body)), get, everything,
                    True, lambda name: "\n" not in name)


def void(_: object) -> None:
    """For what returns something nobody wants."""


PLACES: dict[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "file": file_place, "http": http_place, "s3": s3_place}
FENCED = ["file", "s3"]
