"""`nommerd presets` and `nommerd pipelines` without a feeder: files checked, directories listed, and who is asked when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nommerd.cli.app import run
from tests.rig import free_port

PIPELINE = """\
kind: pipeline
name: mine
params:
  width: {type: integer, default: 128, min: 16}
stages:
  - fetch
  - ffmpeg: {video: {codec: h264, width: $width}}
  - upload
"""
PRESET = "kind: preset\nname: small\ndescription: |-\n  Two\n  lines.\npipeline: mine\nparams: {width: 64}\n"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """In a folder with one pipeline and one preset in directories that nommerd.yaml names; no feeder, no token."""
    for folder, name, text in (("pipelines", "mine", PIPELINE), ("presets", "small", PRESET)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.yaml").write_text(text)
    (tmp_path / "nommerd.yaml").write_text("paths: {pipelines: [pipelines], presets: [presets], data: data}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("NOMMERD_URL", "NOMMERD_TOKEN", "NOMMERD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))

    def call(*argv: str) -> tuple[int, str, str]:
        code = run(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_without_a_feeder_this_machines_directories_are_read_and_that_is_said(cli: Cli,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("presets", "ls")
    assert (code, "web-720p" in out) == (0, True)
    assert err == "There is no token for a feeder: these are the presets in this machine's directories.\n"
    monkeypatch.setenv("NOMMERD_TOKEN", "t")
    monkeypatch.setenv("NOMMERD_URL", f"http://127.0.0.1:{free_port()}")
    code, out, err = cli("pipelines", "show", "web-mp4")
    assert (code, out) == (0, (Path(__file__).parents[3] / "conf/pipelines/web-mp4.yaml").read_text())
    assert err == "No feeder answers: these are the pipelines in this machine's directories.\n"


def test_a_feeder_that_was_told_is_asked_and_no_other_place(cli: Cli) -> None:
    code, out, err = cli("presets", "ls", "--url", f"http://127.0.0.1:{free_port()}", "--token", "t")
    assert (code, out, "node.no_feeder" in err) == (1, "", True)
    assert cli("presets", "ls", "--local", "--token", "t")[0] == 2


def test_with_local_or_a_configuration_nobody_is_asked(cli: Cli) -> None:
    code, out, err = cli("presets", "ls", "-c", "nommerd.yaml")
    assert (code, err) == (0, "")
    [line] = [line for line in out.splitlines() if line.startswith("small")]
    assert line.split() == ["small", "mine", "disk", "Two", "lines."]
    [row] = [one for one in json.loads(cli("presets", "ls", "-c", "nommerd.yaml", "--json")[1]) if one["name"] == "small"]
    assert (row["params"], row["origin"], row["errors"]) == ({"width": 64}, "disk", [])
    assert row["file"].endswith("presets/small.yaml")
    assert cli("presets", "show", "small", "-c", "nommerd.yaml")[1] == PRESET
    assert json.loads(cli("presets", "show", "small", "-c", "nommerd.yaml", "--json")[1])["pipeline"] == "mine"
    code, _, err = cli("presets", "show", "smal", "-c", "nommerd.yaml")
    assert (code, "Did you mean small?" in err) == (1, True)
    assert cli("presets", "ls", "--local")[2] == ""


def test_a_broken_file_of_the_directories_is_listed_with_its_fault(cli: Cli) -> None:
    Path("presets/bad.yaml").write_text("kind: preset\nname: bad\npipeline: [\n")
    _, out, _ = cli("presets", "ls", "-c", "nommerd.yaml")
    line = next(line for line in out.splitlines() if line.startswith("bad"))
    assert "recipe.bad_yaml" in line and "bad.yaml:4:1" in line


def test_files_are_checked_together_with_file_line_and_column(cli: Cli) -> None:
    Path("new.yaml").write_text(PIPELINE.replace("mine", "new"))
    Path("of-new.yaml").write_text(PRESET.replace("small", "of-new").replace("mine", "new"))
    assert cli("presets", "check", "of-new.yaml", "new.yaml") == (0, "ok: pipeline new, preset of-new\n", "")
    assert json.loads(cli("presets", "check", "new.yaml", "--json")[1]) == {"pipelines": ["new"], "presets": []}
    code, _, err = cli("presets", "check", "of-new.yaml")
    assert (code, "of-new.yaml:6:11: recipe.unknown_pipeline" in err) == (2, True)
    Path("new.yaml").write_text(PIPELINE.replace("mine", "new").replace("width: {", "with: {"))
    Path("tabs.yaml").write_text("kind: preset\n\tname: x\n")
    code, out, _ = cli("pipelines", "check", "new.yaml", "tabs.yaml", "none.yaml", "--json")
    assert code == 2
    assert {(one["place"], one["code"]) for one in json.loads(out)["errors"]} == {
        ("new.yaml:7:42", "recipe.unknown_param"), ("tabs.yaml:2:1", "recipe.bad_yaml"), ("none.yaml", "config.unreadable")}


def test_a_file_that_the_feeder_would_not_take_under_its_name_is_told(cli: Cli) -> None:
    Path("draft.yaml").write_text(PRESET.replace("small", "final"))
    code, out, err = cli("presets", "check", "draft.yaml", "-c", "nommerd.yaml")
    assert (code, out, "draft.yaml is to be called final.yaml" in err) == (0, "ok: preset final\n", True)


def test_a_changed_pipeline_is_held_against_the_presets_that_are_there(cli: Cli) -> None:
    Path("mine.yaml").write_text(PIPELINE.replace("min: 16", "min: 100"))
    code, _, err = cli("pipelines", "check", "mine.yaml", "-c", "nommerd.yaml")
    assert (code, "presets/small.yaml:7:17: recipe.bad_param: params.width: must be at least 100" in err) == (2, True)
    assert cli("pipelines", "check", "mine.yaml")[0] == 0, "elsewhere nothing names it"


def test_push_tells_faults_of_files_before_it_asks_anybody(cli: Cli) -> None:
    Path("bad.yaml").write_text("kind: preset\nname: [\n")
    for file, place in (("bad.yaml", "bad.yaml:3:1"), ("pipelines/mine.yaml", "mine.yaml:1:1")):
        code, _, err = cli("presets", "push", file, "--token", "t")
        assert (code, place in err) == (2, True), err
    assert cli("presets", "push", "a", "b", "--if-match", '"1"', "--token", "t")[0] == 2


@pytest.mark.parametrize("kind", ["presets", "pipelines"])
def test_the_schema_is_printed(cli: Cli, kind: str) -> None:
    assert json.loads(cli(kind, "schema")[1])["properties"]["name"]["type"] == "string"
