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
    from nommerd.net.egress import Egress

_NOT_YET = {"s3": "This version cannot reach S3 yet; use file:, http: or https: URIs."}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


class _Registry(StorageRegistry):
    """Tells schemes whose backend is to come from those that nobody knows."""

    def for_uri(self, uri: str, family: str = "source") -> Storage:
        scheme = uri.partition(":")[0].lower()
        if scheme in _NOT_YET and scheme not in self.schemes:
            raise InputError(f"{family}.unknown_scheme", f"{scheme}: is not yet supported.", _NOT_YET[scheme])
        return super().for_uri(uri, family)


def build_registry(file_roots: Sequence[str | Path], egress: Egress, max_source_bytes: int,
                   backends: Mapping[str, str] | None = None, closed: Sequence[str | Path] = ()) -> StorageRegistry:
    """The backends of this process: file, http, https, and the operator's own (scheme -> dotted path), which go first.
    `closed` are our own files, which no URI may name.

    An operator's backend is a subclass of Storage, made without arguments. ConfigError config.storage_backend for a
    path that brings none.
    """
    from nommerd.storage.file import FileStorage
    from nommerd.storage.http import HttpStorage

    http = HttpStorage(egress, max_source_bytes)
    known: dict[str, Storage] = {"file": FileStorage(file_roots, max_source_bytes, closed), "http": http, "https": http}
    return _Registry(known | {scheme: _load(scheme, path) for scheme, path in (backends or {}).items()})


def same_place(source: str, dest: str) -> bool:
    """Whether these two URIs surely name one thing: the same file after links are resolved, or the same URL but for
    credentials, query and spelling. False where that cannot be told, and for malformed ones."""
    try:
        a, b = urlsplit(source), urlsplit(dest)
        if a.scheme.lower() != b.scheme.lower():
            return False
        if a.scheme.lower() == "file":
            return _same_file(source, dest)
        port = {"http": 80, "https": 443}.get(a.scheme.lower())
        return (a.hostname, a.port or port, unquote(a.path)) == (b.hostname, b.port or port, unquote(b.path))
    except (ValueError, InputError):
        return False


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
