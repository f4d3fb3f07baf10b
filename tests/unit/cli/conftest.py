"""The scripted feeder of tests of client commands; an installation and its backup."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nommerd import backups
from nommerd.config import Settings
from nommerd.job import Job, utcnow
from nommerd.secrets import Keyring, secret_file
from tests.rig import CANARY
from tests.unit.cli.installation import let_in, open_store, settings_of
from tests.unit.cli.scripted import Feeder


@pytest.fixture
def feeder() -> Iterator[Feeder]:
    made = Feeder()
    yield made
    made.server.shutdown()
    made.server.server_close()
    assert made.script == [], "answers nobody asked for"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation with two jobs and secrets."""
    made = settings_of(tmp_path)
    made.make_data_dir()
    secret_file(made.token_file, make=True, generate=lambda: f"{CANARY}-token")
    secret_file(made.webhook_secret_file, make=True, generate=lambda: f"whsec_{CANARY}")
    Keyring.load_or_make(made.data_dir, (), make=True)
    store = open_store(made)
    for id in ("one", "two"):
        store.create(Job(id=id, pipeline="web", recipe="r" * 64, source="file:///i", dest="file:///o", created=utcnow(),
                         updated=utcnow()))
    store.close()
    return made


@pytest.fixture
def good(settings: Settings, tmp_path: Path) -> Path:
    """A backup of it."""
    file = tmp_path / "good.tar.gz"
    backups.make(settings, file, force=False)
    return file


@pytest.fixture
def theirs(settings: Settings, good: Path) -> Settings:
    """An installation whose data directory is another user's, who can get there."""
    let_in(settings.data_dir.parent)
    for path in (settings.data_dir, *settings.data_dir.iterdir()):
        os.chown(path, 54321, 54322)
    return settings
