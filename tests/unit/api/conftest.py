from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from tests.logged import captured
from tests.unit.api.calls import Api


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """What is logged, as a daemon would log it."""
    with captured() as stream:
        yield stream
