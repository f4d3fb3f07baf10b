"""The scripted feeder of tests of client commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.cli.scripted import Feeder


@pytest.fixture
def feeder() -> Iterator[Feeder]:
    made = Feeder()
    yield made
    made.server.shutdown()
    made.server.server_close()
    assert made.script == [], "answers nobody asked for"
