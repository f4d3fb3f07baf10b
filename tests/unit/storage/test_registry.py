"""Which backend a URI gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nommerd.errors import ConfigError, InputError
from nommerd.net.egress import Egress
from nommerd.storage import build_registry
from nommerd.storage.base import StorageRegistry
from nommerd.storage.file import FileStorage
from nommerd.storage.http import HttpStorage

BACKEND = """
from nommerd.storage.file import FileStorage

class Local(FileStorage):
    def __init__(self):
        super().__init__([], 1)

class Broken:
    def __init__(self):
        raise RuntimeError("no")

class Other: ...
"""


def build(**backends: str) -> StorageRegistry:
    return build_registry([], Egress(), 1000, backends)


@pytest.fixture(autouse=True)
def operators_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operators_backends.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "operators_backends", raising=False)


def test_each_scheme_has_its_backend_however_it_is_written() -> None:
    assert isinstance(build().for_uri("FILE:///a"), FileStorage)
    assert isinstance(build().for_uri("Https://h/a"), HttpStorage)
    assert build().schemes == ["file", "http", "https"]


@pytest.mark.parametrize("uri", ["ftp://h/a", "data:,x", "concat:a|b", "pipe:0", "/etc/passwd", "-i", "",
                                 "crypto:file:///a", "http"])
def test_a_scheme_that_nobody_serves_is_refused_with_those_that_are(uri: str) -> None:
    with pytest.raises(InputError, match="file, http, https") as caught:
        build().for_uri(uri)
    assert caught.value.code == "source.unknown_scheme"


@pytest.mark.parametrize("path", ["operators_backends.Local", "operators_backends:Local"])
def test_an_operators_backend_serves_its_scheme(path: str) -> None:
    assert type(build(s3=path).for_uri("s3://bucket/key")).__name__ == "Local"


@pytest.mark.parametrize("path", ["nowhere.Backend", "operators_backends.Gone", "operators_backends.Broken",
                                  "operators_backends.Other", "nodots", "", "os.path"])
def test_what_is_no_backend_is_the_operators_to_mend(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(gs=path)
    assert caught.value.code == "config.storage_backend"
    assert caught.value.place == "storage.backends.gs"
