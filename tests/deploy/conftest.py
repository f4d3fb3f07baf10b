"""Roots of the tests: one that is provisioned, which costs a minute, is shared as the layer below many."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.root import Root, debian, missing_tools, ports

PROVISION = ("bash", "/root/nommerd/deploy/ami/provision.sh")


@pytest.fixture(scope="session")
def base() -> Path:
    """The lowest layer."""
    missing = missing_tools()
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"roots need {', '.join(missing)}")
    return debian()


@pytest.fixture(scope="session")
def provisioned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A machine that is feeder and worker, provisioned from the checkout in /root/nommerd, then switched off."""
    with ports(), closing(Root([base], tmp_path_factory.mktemp("provisioned"))) as root:
        root.checkout()
        # some operators' shells keep new files to themselves; the user nommerd must be able to read these
        done = root.shell(f"umask 077; {' '.join(PROVISION)} --role feeder --role worker", timeout=600)
        (root.path / "root/provision.log").write_text(done.stdout + done.stderr)
    return root


@pytest.fixture
def fresh(base: Path, tmp_path: Path) -> Iterator[Root]:
    """A minimal Debian with the checkout in /root/nommerd."""
    with ports(), closing(Root([base], tmp_path / "fresh")) as root:
        root.checkout()
        yield root


@pytest.fixture
def ready(provisioned: Root, tmp_path: Path) -> Iterator[Root]:
    """A provisioned machine, switched on; nothing runs in it yet."""
    with ports(), closing(Root.over(provisioned, tmp_path / "ready")) as root:
        yield root
