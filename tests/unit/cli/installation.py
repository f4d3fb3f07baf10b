"""What tests of backups do with an installation and its backup."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from nommerd import restoring
from nommerd.config import Settings, load
from nommerd.errors import ConfigError
from nommerd.sqlite import Database
from nommerd.store.sqlite import SqliteStore

Members = list[tuple[tarfile.TarInfo, bytes]]


def open_store(settings: Settings) -> SqliteStore:
    return SqliteStore(Database.open(settings.database_path(settings.store)))


def settings_of(root: Path, more: str = "") -> Settings:
    file = root / "nommerd.yaml"
    file.write_text(f"paths: {{data: data}}\n{more}", encoding="utf-8")
    return load(file, {})


def state(settings: Settings) -> dict[str, bytes]:
    """Every file of the data directory, but locks."""
    return {path.name: path.read_bytes() for path in settings.data_dir.iterdir() if not path.name.endswith(".lock")}


def refused(settings: Settings, file: Path, *, force: bool = True) -> ConfigError:
    """The error of a restore that has changed nothing."""
    before = state(settings)
    with pytest.raises(ConfigError) as caught:
        restoring.restore(settings, file, force=force)
    assert state(settings) == before
    return caught.value


def repacked(good: Path, change: Callable[[Members], Members | None]) -> Path:
    """The backup with other members; the manifest's checksums are made to fit them."""
    with tarfile.open(good) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    members = change(members) or members
    bad = good.with_name("bad.tar.gz")
    with tarfile.open(bad, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return bad


def with_manifest(members: Members, **fields: Any) -> Members:
    """The members with a manifest that fits them, but for these fields."""
    (head, text), *rest = members
    files = {member.name: {"bytes": len(content), "sha256": sha256(content).hexdigest()} for member, content in rest}
    return [(head, json.dumps({**json.loads(text), "files": files, **fields}).encode()), *rest]


def let_in(folder: Path) -> None:
    """Let other users through to this folder of the test's."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for one in (folder, *folder.parents):
        if one.stat().st_uid == 0 and not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)
