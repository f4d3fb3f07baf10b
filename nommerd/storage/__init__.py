"""Where media comes from and goes to. `base` is the contract; one backend a file; backends by URI scheme."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from nommerd.errors import ConfigError, InputError
from nommerd.storage.base import Storage, StorageRegistry

if TYPE_CHECKING:
    from nommerd.aws.clients import Clients
    from nommerd.config import Settings
    from nommerd.net.egress import Egress

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def build_registry(file_roots: Sequence[str | Path], egress: Egress, max_source_bytes: int,
                   backends: Mapping[str, str] | None = None, closed: Sequence[str | Path] = (),
                   s3: Storage | None = None) -> StorageRegistry:
    """The backends of this process: file, http, https, s3 where there is one, and the operator's own (scheme -> dotted
    path), which go first. `closed` are our own files, which no URI may name.

    An operator's backend is a subclass of Storage, made without arguments. ConfigError config.storage_backend for a
    path that brings none.
    """
    from nommerd.storage.file import FileStorage
    from nommerd.storage.http import HttpStorage

    http = HttpStorage(egress, max_source_bytes)
    known: dict[str, Storage] = {"file": FileStorage(file_roots, max_source_bytes, closed), "http": http, "https": http}
    if s3 is not None:
        known["s3"] = s3
    return StorageRegistry(known | {scheme: _load(scheme, path) for scheme, path in (backends or {}).items()})


def open_registry(settings: Settings, egress: Egress, clients: Clients, *,
                  named: Sequence[str] | None = None) -> StorageRegistry:
    """The backends that the settings describe. `named`: the URIs that may be read and written instead of
    storage.file_roots, and besides s3_read and s3_write (`nommerd encode` names its own)."""
    from nommerd.storage.s3 import S3Storage
    from nommerd.storage.s3_uri import entry_of

    wanted, ours = settings.storage, settings.aws.config_bucket
    objects = [entry_of(uri) for uri in named or () if uri[:5].lower() == "s3://"]
    s3 = S3Storage(clients, [*wanted.s3_read, *objects], [*wanted.s3_write, *objects], wanted.max_source_bytes,
                   endpoint_url=wanted.s3_endpoint_url or settings.aws.endpoint_url, closed_buckets=(ours,) if ours else ())
    if named is None:
        roots, closed = wanted.file_roots, settings.own_files
    else:
        from nommerd.storage.file import path_of

        roots, closed = tuple(path_of(uri) for uri in named if uri.startswith("file:")), ()
    return build_registry(roots, egress, wanted.max_source_bytes, wanted.backends, closed, s3)


def same_place(source: str, dest: str) -> bool:
    """Whether these two URIs surely name one thing: the same file after links are resolved, the same object, or the
    same URL but for credentials, query and spelling. False where that cannot be told, and for malformed ones."""
    try:
        if source[:5].lower() == dest[:5].lower() == "s3://":
            return _same_object(source, dest)
        a, b = urlsplit(source), urlsplit(dest)
        if a.scheme.lower() != b.scheme.lower():
            return False
        if a.scheme.lower() == "file":
            return _same_file(source, dest)
        port = {"http": 80, "https": 443}.get(a.scheme.lower())
        return (a.hostname, a.port or port, unquote(a.path)) == (b.hostname, b.port or port, unquote(b.path))
    except (ValueError, InputError):
        return False


def _same_object(source: str, dest: str) -> bool:
    from nommerd.storage.s3_uri import parse

    a, b = parse(source), parse(dest)
    return (a.bucket, a.key) == (b.bucket, b.key)


def _same_file(source: str, dest: str) -> bool:
    from nommerd.storage.file import path_of

    a, b = path_of(source), path_of(dest)
    try:
        return os.path.realpath(a) == os.path.realpath(b) or a.samefile(b)
    except OSError:
        return False


def _load(scheme: str, path: str) -> Storage:
    """The operator's backend: `package.module.Class` or `package.module:Class`."""
    place = f"storage.backends.{scheme}"
    if not _SCHEME.fullmatch(scheme):
        raise ConfigError("config.storage_backend", f"{scheme!r} is no scheme.", "Write it in lower case: gs.", place=place)
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        backend = getattr(importlib.import_module(module), name)()
    except Exception as error:  # the operator's code: anything may come
        raise ConfigError("config.storage_backend", f"{path} cannot be loaded: {type(error).__name__}: {error}.",
                          "It must be a class that can be imported and takes no arguments.", place=place) from error
    if not isinstance(backend, Storage):
        raise ConfigError("config.storage_backend", f"{path} is no storage backend.",
                          "Derive it from nommerd.storage.base.Storage.", place=place)
    return backend
