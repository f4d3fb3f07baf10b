"""The verify stage and the verification before an upload."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nommerd.errors import EncoderError
from nommerd.media.verify import Expectation
from nommerd.pipeline.context import MediaFile
from nommerd.pipeline.stages.verify import Verify, VerifySettings, verify_outputs
from tests import media, stages


def context_with(tmp_path: Path, expect: Expectation | None, **more: object) -> MediaFile:
    return MediaFile(path=media.clip(seconds=2, size="320x180"), stage_id="a", expect=expect, **more)  # type: ignore[arg-type]


def test_what_was_verified_has_a_probe_and_is_not_looked_at_again(tmp_path: Path) -> None:
    made = stages.context(tmp_path)
    file = context_with(tmp_path, Expectation(duration_seconds=2.0), frames=50)
    made.add(file)
    Verify("verify", VerifySettings(decode="full")).run(made)
    assert file.verified and file.probe is not None and file.probe.video[0].packets == 50
    file.expect = replace(file.expect or Expectation(), duration_seconds=99.0)
    verify_outputs(made)
    assert made.warnings == []


def test_a_file_without_promises_must_at_least_be_readable(tmp_path: Path) -> None:
    made = stages.context(tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"not a film")
    made.add(MediaFile(path=tmp_path / "x.mp4", stage_id="a"))
    with pytest.raises(EncoderError) as caught:
        verify_outputs(made)
    assert caught.value.code == "encoder.wrong_output" and not made.files["a"].verified


def test_warnings_reach_the_job(tmp_path: Path) -> None:
    made = stages.context(tmp_path)
    made.add(context_with(tmp_path, Expectation(source_name="a.ts", duration_seconds=9.0, duration_certain=False)))
    verify_outputs(made)
    assert stages.codes(made) == ["input.shorter"]


def test_what_another_stage_consumed_is_not_verified(tmp_path: Path) -> None:
    made = stages.context(tmp_path)
    made.add(context_with(tmp_path, Expectation(duration_seconds=99.0)))
    made.take("a")
    verify_outputs(made)
    assert not made.files["a"].verified
