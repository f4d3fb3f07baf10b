"""What the tests of S3 share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nommerd.storage import s3_parts
from tests.s3_scene import Scene, s3_scene


@pytest.fixture(scope="session")
def s3_stage() -> Iterator[Scene]:
    with s3_scene() as scene:
        yield scene


@pytest.fixture
def s3(s3_stage: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A bucket behind a strict proxy; tries follow one another at once."""
    monkeypatch.setattr(s3_parts, "BACKOFF_SECONDS", 0.005)
    return s3_stage.anew()
