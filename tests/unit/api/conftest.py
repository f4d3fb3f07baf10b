from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import gevent
import pytest
import structlog

from nommerd import logs
from tests.unit.api.calls import Api


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture(autouse=True)
def log() -> Iterator[StringIO]:
    """What is logged, as a daemon would log it."""
    root, hub = logging.getLogger(), gevent.get_hub()
    kept = root.handlers[:], root.level, sys.excepthook, hub.exception_stream
    stream = StringIO()
    logs.configure(stream, json=True)
    yield stream
    root.handlers, sys.excepthook, hub.exception_stream = kept[0], kept[2], kept[3]
    root.setLevel(kept[1])
    structlog.reset_defaults()
