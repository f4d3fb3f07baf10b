"""The tables of docs/deploy.md: what is computed from measured encodes, and that the page holds just that."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.costs import (
    ADDRESS_HOURLY,
    BUSY,
    MULTIPLIER,
    NODES,
    VOLUME_HOURLY,
    Node,
    ec2_cost,
    figure,
    mediaconvert_cost,
    money,
    node_jobs,
    tables,
)
from benchmarks.measured import PAGE, Measured, Run, load, save, tables_in, write_tables
from nommerd.places import shipped_conf

NODE = Node("test", 4, 8192, 0.36, 0.12, 0.5)


def run(**more: object) -> Run:
    fields = {"preset": "web-720p", "jobs": 2, "media_seconds": 30.0, "wall_seconds": 40.0, "cpu_seconds": 60.0,
              "memory_mb": 300.0, "others": 0.0}
    return Run(**{**fields, **more})  # type: ignore[arg-type]


def measured(*runs: Run) -> Measured:
    return Measured(date="2026-01-02", processor="test", cores=2, ffmpeg="5.1", runs=runs)


def test_an_hour_of_output_costs_the_nodes_hours_that_it_takes_idle_ones_too() -> None:
    hourly = 0.36 + VOLUME_HOURLY + ADDRESS_HOURLY
    assert ec2_cost(1.0, NODE, spot=False) == pytest.approx(hourly / (4 * 0.5) / BUSY)
    assert ec2_cost(2.0, NODE, spot=False) == pytest.approx(hourly / (4 * 0.5) / BUSY / 2)
    assert ec2_cost(1.0, NODE, spot=True) == pytest.approx((hourly - 0.24) / (4 * 0.5) / BUSY)


def test_mediaconvert_bills_a_minute_of_output_by_its_size() -> None:
    assert mediaconvert_cost("web-480p", "basic") == pytest.approx(0.45)
    assert mediaconvert_cost("web-1080p", "basic") == pytest.approx(0.90)
    assert mediaconvert_cost("web-1080p", "professional") == pytest.approx(1.44)
    assert mediaconvert_cost("remux-mp4", "basic") is None


def test_a_node_takes_a_job_a_processor_unless_memory_is_short() -> None:
    assert node_jobs(300, NODE) == 4
    assert node_jobs(3000, NODE) == 2
    assert node_jobs(2600, NODE) == 2, "some is the system's"
    assert node_jobs(30000, NODE) == 1


def test_the_speed_of_a_core_is_that_of_processor_time_with_all_cores_busy() -> None:
    found = measured(run(jobs=1, cpu_seconds=1.0), run(), run(jobs=4, cpu_seconds=1.0))
    assert found.speed_per_core("web-720p") == pytest.approx(1.0)
    assert found.speed("web-720p", 2) == pytest.approx(1.5)


def test_a_machine_that_was_not_idle_is_told_of() -> None:
    assert "Something else used up to 40%" in measured(run(), run(others=0.4)).where
    assert "Something else" not in measured(run(others=0.01)).where


@pytest.mark.parametrize(("value", "shown"), [(123.4, "123"), (12.34, "12"), (1.26, "1.3"), (0.9, "0.90"), (0.0123, "0.012"),
                                              (0.00461, "0.0046")])
def test_figures_are_written_with_two_that_count(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_dollars_are_written_in_cents() -> None:
    assert [money(1.444), money(0.012), money(None)] == ["$1.44", "$0.012", "–"]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    found = measured(run(), run(jobs=4))
    save(found, tmp_path / "measured.json")
    assert load(tmp_path / "measured.json") == found


def test_tables_go_between_their_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one: how -->\nold\n<!-- end -->\nb\n<!-- two: how -->\n<!-- end -->\n", encoding="utf-8")
    write_tables({"one": "1", "two": "2"}, page)
    assert tables_in(page) == {"one": "1", "two": "2"}
    assert page.read_text(encoding="utf-8").startswith("a\n<!-- one: how -->\n\n1\n\n<!-- end -->\nb\n")
    with pytest.raises(SystemExit, match="three"):
        write_tables({"three": ""}, page)


def test_the_page_holds_the_tables_that_the_measurements_make() -> None:
    assert tables_in(PAGE) == tables(load())


def test_every_shipped_preset_is_measured() -> None:
    assert set(load().presets) == {path.stem for path in (shipped_conf() / "presets").glob("*.yaml")}
    assert set(MULTIPLIER) <= set(load().presets)


def test_spot_is_cheaper_than_on_demand() -> None:
    assert all(node.spot < node.on_demand for node in NODES)
