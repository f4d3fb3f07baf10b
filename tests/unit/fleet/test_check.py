"""A fleet that is switched on is checked before anything starts, each fault at its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nommerd.config import load
from nommerd.errors import ManyErrors, NommerdError
from tests.unit.test_config import HOME

GOOD = {"fleet": {"enabled": True, "image_id": "ami-1", "instance_types": ["c7i.large"]}, "store": "dynamodb://t",
        "bus": "sqs://q", "aws": {"config_bucket": "b"}}


def faults(folder: Path, env: dict[str, str] | None = None, **sections: object) -> list[str]:
    """What is told of this configuration, one section a line."""
    path = folder / "nommerd.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in sections.items()))
    try:
        load(path, HOME | (env or {}))
    except ManyErrors as error:
        return [str(one) for one in error.errors]
    except NommerdError as error:
        return [str(error)]
    return []


def fleet(**more: object) -> dict[str, object]:
    return {**GOOD, "fleet": {**GOOD["fleet"], **more}}  # type: ignore[dict-item]


def test_a_fleet_with_all_it_needs_is_taken_and_one_that_is_off_needs_nothing(tmp_path: Path) -> None:
    assert faults(tmp_path, **GOOD) == []
    assert faults(tmp_path, **{**GOOD, "store": "simpledb://t"}) == []
    assert faults(tmp_path, fleet={"enabled": False}) == []


def test_all_that_is_missing_is_told_at_once_with_an_example(tmp_path: Path) -> None:
    place = f"{tmp_path}/nommerd.yaml:1:"
    said = faults(tmp_path, fleet={"enabled": True})
    assert all(line.startswith(place) for line in said)
    assert [line.partition("config.fleet: ")[2] for line in said] == [
        "fleet.enabled needs fleet.image_id. For example fleet.image_id: ami-0123456789abcdef0.",
        "fleet.enabled needs fleet.instance_types. For example fleet.instance_types: [c7i.2xlarge, c6i.2xlarge].",
        "fleet.enabled needs aws.config_bucket. For example aws.config_bucket: example-nommerd-config.",
        "store is sqlite://, which nodes cannot reach. fleet.enabled needs store: dynamodb://NAME or store: simpledb://NAME.",
        "bus is sqlite://, which nodes cannot reach. fleet.enabled needs bus: sqs://NAME."]


def test_what_is_switched_on_by_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    said = faults(tmp_path, {"NOMMERD_FLEET__ENABLED": "true"}, **{**GOOD, "fleet": {"instance_types": ["c7i.large"]}})
    assert len(said) == 1
    assert said[0].startswith("NOMMERD_FLEET__ENABLED: config.fleet: fleet.enabled needs fleet.image_id.")


@pytest.mark.parametrize(("changes", "line", "said"), [
    ({"zones": ["eu-central-1a"], "subnets": ["subnet-1"]}, 1, "fleet.zones and fleet.subnets exclude each other"),
    ({"instance_types": [f"c{n}.large" for n in range(61)], "zones": ["a", "b"]}, 1, "122 combinations"),
    ({"silent_seconds": 119}, 1, "Nodes report every 60 s"),
])
def test_settings_that_do_not_fit_each_other_are_refused(tmp_path: Path, changes: dict[str, object], line: int,
                                                         said: str) -> None:
    found, = faults(tmp_path, **fleet(**changes))
    assert found.startswith(f"{tmp_path}/nommerd.yaml:{line}:") and said in found


def test_a_node_that_takes_no_job_is_refused_whether_the_fleet_is_on_or_off(tmp_path: Path) -> None:
    for enabled in (True, False):
        found, = faults(tmp_path, **fleet(enabled=enabled, jobs_per_node=0))
        assert "fleet.jobs_per_node must be greater than or equal to 1" in found
