"""Which backend a URI gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nommerd.aws.clients import Clients
from nommerd.config import Settings
from nommerd.errors import ConfigError, InputError
from nommerd.net.egress import Egress
from nommerd.storage import build_registry, open_registry
from nommerd.storage.base import StorageRegistry
from nommerd.storage.file import FileStorage
from nommerd.storage.http import HttpStorage
from nommerd.storage.s3_uri import parse

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


def settings(**sections: object) -> Settings:
    return Settings.model_validate({"aws": {"region": "eu-west-1"}, **sections})


def opened(settings: Settings, **options: Any) -> StorageRegistry:
    return open_registry(settings, Egress(), Clients(settings.aws), **options)


def test_the_settings_open_buckets_and_close_the_configurations_own() -> None:
    registry = opened(settings(aws={"config_bucket": "conf-bucket"},
                               storage={"s3_read": ["inbox", "conf-bucket"], "s3_write": ["out/a"]}))
    s3 = registry.for_uri("s3://inbox/a")
    s3.check_source("s3://inbox/a")
    s3.check_dest("s3://out/a/b")
    for uri in ("s3://conf-bucket/a", "s3://AKIA:s@conf-bucket/a"):
        with pytest.raises(InputError, match="own"):
            s3.check_source(uri)
    with pytest.raises(InputError):
        s3.check_dest("s3://inbox/a")
    with pytest.raises(ConfigError):
        opened(settings(storage={"s3_write": ["s3://out"]}))


def test_what_is_named_on_a_command_line_is_open_and_nothing_beside_it(tmp_path: Path) -> None:
    named = ["s3://inbox/in/a.mov", "s3://AKIA:s@out/web/", (tmp_path / "logo.png").as_uri()]
    registry = opened(settings(storage={"file_roots": ["/"]}), named=named)
    s3, file = registry.for_uri("s3://x/y"), registry.for_uri("file:///")
    s3.check_source("s3://inbox/in/a.mov")
    s3.check_dest("s3://out/web/a.mp4")
    file.check_source((tmp_path / "logo.png").as_uri())
    for backend, uri in ((s3, "s3://inbox/in/b.mov"), (s3, "s3://out/website"), (file, (tmp_path / "b").as_uri())):
        with pytest.raises(InputError):
            backend.check_source(uri)


def test_the_endpoint_of_storage_goes_before_the_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    keys = {"region": "eu-west-1", "access_key_id": "AKIA", "secret_access_key": "s"}

    def url_of(endpoint: str | None, account: str | None) -> str:
        wanted = settings(aws={**keys, "endpoint_url": account}, storage={"s3_read": ["inbox"], "s3_endpoint_url": endpoint})
        client = opened(wanted).for_uri("s3://inbox/a")._client(parse("s3://inbox/a b"))  # type: ignore[attr-defined]
        return str(client.generate_presigned_url("get_object", Params={"Bucket": "inbox", "Key": "a b"})).partition("?")[0]

    assert url_of("http://minio:9000", "http://emulator:5000") == "http://minio:9000/inbox/a%20b"
    assert url_of(None, "http://emulator:5000") == "http://emulator:5000/inbox/a%20b"
    assert url_of(None, None) == "https://inbox.s3.amazonaws.com/a%20b"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://theirs:9000")
    assert url_of(None, None) == "http://theirs:9000/inbox/a%20b"
