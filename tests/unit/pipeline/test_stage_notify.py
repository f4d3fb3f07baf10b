"""notify declares; the feeder posts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from nommerd.job import JobState
from nommerd.pipeline.stages.notify import Notify, NotifySettings
from tests.unit.pipeline.scene import Scene, notes


def settings(**values: object) -> NotifySettings:
    return NotifySettings.model_validate_json(json.dumps(values))


def test_it_runs_without_doing_anything_and_takes_no_share_of_the_progress(tmp_path: Path) -> None:
    context = Scene(tmp_path).context()
    Notify("notify", settings()).run(context)
    assert notes(context).news == []
    assert Notify.weight == 0


def test_each_change_is_posted_unless_states_are_chosen() -> None:
    assert Notify("notify", settings()).states is None
    assert Notify("notify", settings(states=["FINISHED", "ERROR"])).states == (JobState.FINISHED, JobState.ERROR)


@pytest.mark.parametrize("bad", [{"states": ["DONE"]}, {"states": "FINISHED"}, {"url": "https://host/"}, {"states": [1]}])
def test_what_it_does_not_know_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings(**bad)
