"""What the tests of S3 share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nommerd.storage import s3_parts
from tests.s3_scene import Scene, s3_scene


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A bucket behind a strict proxy; tries follow one another at once."""
    monkeypatch.setattr(s3_parts, "BACKOFF_SECONDS", 0.005)
    with s3_scene() as scene:
        yield scene
