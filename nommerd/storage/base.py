"""The contract of a storage backend: fetch a source to disk; publish an output whole, from one owner.

Publishing is staged, so that whoever holds a newer token can make an older owner's completion fail:

    staging = backend.begin(uri, token, options)   nothing is visible; the record keeps staging.handle, size and sha256
    backend.upload(staging, path, confirm, …)      calls `confirm` once the staging place exists: it raises Fenced where
                                                   the record has moved on, and nothing is left
    backend.publish(staging, overwrite)            visible at once and whole; fails if it was revoked

A new owner calls `revoke(uri, handle)` for whatever the record lists, then `carries(…)` to see whether the destination
already is that output. Blocking work runs off the hub. Every backend passes tests/contracts/test_storage.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from nommerd.errors import InputError, Stop
from nommerd.secrets import public_uri

OnBytes = Callable[[int, int | None], None]  # bytes done, bytes in all where known


@dataclass(frozen=True, slots=True)
class Fetched:
    """A source on disk."""

    path: Path
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """What an output is published with; each backend uses what it has a place for (`Storage.options`).

    `sha256`, hexadecimal, is of the whole file. The rest is S3's, by AWS's names and values.
    """

    content_type: str | None = None
    sha256: str | None = None
    cache_control: str | None = None
    storage_class: str | None = None
    encryption: str | None = None
    kms_key_id: str | None = None
    acl: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


NO_OPTIONS = UploadOptions()


@dataclass(frozen=True, slots=True)
class Staging:
    """An upload under way. `handle` is all that another process needs to revoke it."""

    uri: str
    handle: str
    token: int
    options: UploadOptions = NO_OPTIONS


class Storage(ABC):
    """Errors: InputError source.* or dest.* where the caller must act (not found, forbidden, exists), InfrastructureError
    source.* or dest.* where a retry may help. Credentials in `uri` never reach a message."""

    can_fetch = True
    can_publish = True
    options: ClassVar[frozenset[str]] = frozenset()  # names of UploadOptions that show in what is published

    @abstractmethod
    def check_source(self, uri: str) -> None:
        """Raise InputError if this source is malformed or not allowed here. Cheap; no network."""

    @abstractmethod
    def check_dest(self, uri: str) -> None:
        """Raise InputError if this destination is malformed or not allowed here. Cheap; no network."""

    @abstractmethod
    def fetch(self, uri: str, target: Path, on_bytes: OnBytes, stop: Stop) -> Fetched:
        """Bring the source to `target`, streaming; at most `storage.max_source_bytes`. Raises stop's reason."""

    @abstractmethod
    def exists(self, uri: str) -> bool | None:
        """Whether something is at this destination; None where this process cannot tell. Raises as `check_dest`."""

    @abstractmethod
    def begin(self, uri: str, token: int, options: UploadOptions = NO_OPTIONS) -> Staging:
        """Name (or open) a staging place for this destination that no other token shares."""

    @abstractmethod
    def upload(self, staging: Staging, path: Path, confirm: Callable[[], None], on_bytes: OnBytes, stop: Stop) -> None:
        """Bring the file to the staging place, durably. On any failure nothing of it is left. Fenced when it was revoked, as
        far as that can be seen here: `publish` sees it in any case."""

    @abstractmethod
    def publish(self, staging: Staging, overwrite: bool) -> None:
        """Make the upload visible under its name. InputError("dest.exists") when something is there and `overwrite` is
        false; Fenced when the staging place was revoked."""

    @abstractmethod
    def revoke(self, uri: str, handle: str) -> None:
        """Make any later `publish` of this staging fail, and remove it. Nothing happens where it is gone already."""

    @abstractmethod
    def carries(self, uri: str, bytes: int, sha256: str, handle: str) -> bool:
        """Whether the destination holds exactly this output."""

    def open_output(self, uri: str) -> int | None:
        """A descriptor to read a published output by, which the caller closes; None where it is no file of this machine.
        Blocks. Raises as `check_dest`, and InputError("dest.bad_uri") where nothing is there."""
        return None

    def link_output(self, uri: str, seconds: int, disposition: str, content_type: str) -> str | None:
        """An address that anybody may read the output at for so long, to be sent with these headers; None where there is no
        such thing. Raises as `check_dest`; no network."""
        return None


def name_of(uri: str) -> str:
    """The last part of what a URI names, as people know it: unescaped but for s3:, whose keys are literal."""
    shown = public_uri(uri)
    if shown[:5].lower() == "s3://":
        return shown[5:].partition("/")[2].rpartition("/")[2]
    return unquote(urlsplit(shown).path).rpartition("/")[2]


class StorageRegistry:
    """Backends by scheme: ours, and the operator's by dotted path."""

    def __init__(self, backends: Mapping[str, Storage]) -> None:
        self._backends = dict(backends)

    def for_uri(self, uri: str, family: str = "source") -> Storage:
        """The backend of a URI. InputError `FAMILY.bad_uri` or `FAMILY.unknown_scheme` without one."""
        try:
            scheme = urlsplit(uri).scheme.lower()
        except ValueError:
            raise InputError(f"{family}.bad_uri", "This is not a URI.",
                             "Write file:///path, https://host/path or s3://bucket/key.") from None
        backend = self._backends.get(scheme)
        if backend is None:
            known = ", ".join(sorted(self._backends))
            raise InputError(f"{family}.unknown_scheme", f"No storage backend for {scheme or 'a URI without a scheme'!r}.",
                             f"Known schemes: {known}.")
        return backend

    @property
    def schemes(self) -> list[str]:
        return sorted(self._backends)


