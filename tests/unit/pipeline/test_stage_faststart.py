"""The faststart stage on real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nommerd.errors import InputError
from nommerd.media.mp4 import is_fast_start
from nommerd.pipeline.stages.faststart import Faststart, FaststartSettings
from nommerd.pipeline.stages.verify import verify_outputs
from tests import media, stages


def faststart(input: str | None = None) -> Faststart:
    return Faststart("faststart", FaststartSettings(input=input))


@pytest.mark.parametrize("build", media.BUILDS)
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_the_index_is_brought_to_the_front_and_nothing_else_changes(tmp_path: Path, build: str, container: str) -> None:
    source = media.clip(seconds=2, size="320x180", container=container, faststart=False, metadata={"title": "A film"})
    made = stages.context(tmp_path, source, build=build)
    faststart().run(made)
    verify_outputs(made)
    file = made.files["faststart"]
    assert is_fast_start(file.path) and file.path.parent == tmp_path
    assert file.probe is not None and file.frames == 50 and file.probe.container == container
    assert [stream.codec for stream in file.probe.streams] == ["h264", "aac"] and file.probe.tags["title"] == "A film"
    assert made.warnings == []


def test_a_file_that_already_is_stays_as_it_is(tmp_path: Path) -> None:
    source = media.clip(seconds=2, size="320x180")
    made = stages.context(tmp_path, source)
    faststart().run(made)
    assert made.files["faststart"].path == source and list(tmp_path.iterdir()) == []
    verify_outputs(made)
    assert made.files["faststart"].verified


def test_after_a_raw_encode_its_promises_go_on(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180"))
    stages.ffmpeg(options=[["c:v", "libx264"], ["preset", "ultrafast"], ["c:a", "aac"]]).run(made)
    before = made.files["ffmpeg"]
    faststart().run(made)
    file = made.files["faststart"]
    assert [one.stage_id for one in made.unpublished] == ["faststart"]
    assert (file.frames, file.leaf) == (before.frames, before.leaf)
    assert file.expect is not None and before.expect is not None and file.expect.fast_start
    assert file.expect.duration_seconds == before.expect.duration_seconds
    verify_outputs(made)


@pytest.mark.parametrize("container", ["mkv", "wav"])
def test_other_containers_are_refused(tmp_path: Path, container: str) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180", container=container))
    with pytest.raises(InputError) as caught:
        faststart().run(made)
    assert caught.value.code == "recipe.not_mp4"


def test_explain_shows_the_copy(tmp_path: Path) -> None:
    made = stages.context(tmp_path, media.clip(seconds=2, size="320x180", faststart=False))
    command, = faststart().explain(made)
    assert "+faststart" in command.argv and "copy" in command.argv and list(tmp_path.iterdir()) == []
