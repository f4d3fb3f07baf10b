"""Roots of the tests: one that is provisioned, which costs a minute, is shared as the layer below many.

It is provisioned as docs/deploy.md begins, and test_bare_server.py goes on with that page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.root import CHECKOUT, Root, debian, missing_tools, ports
from tests.pages import ROOTS_PROMPT, blocks_of, commands, section

PROVISION = ("bash", "/root/nommerd/deploy/ami/provision.sh")
PAGE = CHECKOUT / "docs" / "deploy.md"


def shown(title: str) -> list[list[str]]:
    """The commands for root in this section of the page, block by block."""
    return [found for block in blocks_of(section(PAGE, title)) if block.language == "console"
            if (found := commands(block.text, ROOTS_PROMPT))]


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
        done = root.shell("\n".join(["umask 077; cd /root/nommerd", *shown("An empty server")[0]]), timeout=600)
        (root.path / "root/provision.log").write_text(done.stdout + done.stderr)
    return root


@pytest.fixture
def ready(provisioned: Root, tmp_path: Path) -> Iterator[Root]:
    """A provisioned machine, switched on; nothing runs in it yet."""
    with ports(), closing(Root.over(provisioned, tmp_path / "ready")) as root:
        yield root
