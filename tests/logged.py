"""What is logged in a test, as a daemon would log it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import gevent
import structlog

from nommerd import logs


@contextmanager
def undone() -> Iterator[None]:
    """Logging as it was, whatever happens to it within."""
    root, hub = logging.getLogger(), gevent.get_hub()
    kept = root.handlers[:], root.level, sys.excepthook, hub.exception_stream
    try:
        yield
    finally:
        root.handlers, sys.excepthook, hub.exception_stream = kept[0], kept[2], kept[3]
        root.setLevel(kept[1])
        structlog.reset_defaults()


@contextmanager
def captured() -> Iterator[StringIO]:
    """JSON lines."""
    stream = StringIO()
    with undone():
        logs.configure(stream, json=True)
        yield stream
