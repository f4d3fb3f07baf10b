"""What is made of the models: the reference page, JSON Schema for editors, YAML for those who sent JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.reference import reference
from nommerd.pipeline.schema import schema_of
from nommerd.pipeline.stage import Stage, StageSettings
from nommerd.pipeline.stages import STAGES
from nommerd.pipeline.writer import dump_yaml

ROOT = Path(__file__).parents[3]
RAW = "kind: pipeline\nname: x\nstages: [fetch, {}, upload]\n"


def errors(kind: str, text: str) -> list[str]:
    return [error.json_path for error in Draft202012Validator(schema_of(kind)).iter_errors(load_yaml(text, "x").plain())]


def test_the_page_of_docs_is_what_the_models_say() -> None:
    assert (ROOT / "docs" / "reference.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def described(schema: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(schema, dict):
        for name, one in schema.get("properties", {}).items():
            if not (path.endswith("stages.items") or name in STAGES):
                yield f"{path}.{name}", one.get("description", "")
        for key, value in schema.items():
            yield from described(value, f"{path}.{key}")
    elif isinstance(schema, list):
        for one in schema:
            yield from described(one, path)


@pytest.mark.parametrize("kind", ["pipelines", "presets"])
def test_every_setting_says_what_it_is_for(kind: str) -> None:
    found = dict(described(schema_of(kind)))
    assert len(found) > (60 if kind == "pipelines" else 5)
    assert [path for path, text in found.items() if not text] == []


@pytest.mark.parametrize("kind", ["pipelines", "presets"])
def test_what_ships_fits_the_schema(kind: str) -> None:
    Draft202012Validator.check_schema(schema_of(kind))
    files = sorted((ROOT / "conf" / kind).glob("*.yaml"))
    assert files
    assert [(file.name, errors(kind, file.read_text())) for file in files if errors(kind, file.read_text())] == []


@pytest.mark.parametrize("stage", [
    "ffmpeg: {video: {codec: h265}}", "ffmpeg: {vidio: {}}", "ffmpeg: {video: {width: 1}}", "ffmpeg: {video: {bitrate: fast}}",
    "ffmpeg: {options: [[a, b, c]]}", "ffmpeg: {renditions: []}", "fetsch", "faststart: {input: 3}",
    "ffmpeg: {clip: {end: later}}",
])
def test_a_slip_does_not_fit_the_schema(stage: str) -> None:
    assert errors("pipelines", RAW.replace("{}", "{" + stage + "}" if ":" in stage else stage)) != []


@pytest.mark.parametrize("stage", [
    "ffmpeg: {video: {codec: h264, width: $width, bitrate: $b, encoder: libx264, encoder_preset: 6}, audio: [{codec: aac}]}",
    "ffmpeg: {options: [[crf, 20], [an, null], [vf, 'scale=$w:-2']], clip: {start: 1:30, end: 95.5}}",
    "ffmpeg: {video: {bitrate: 2500000, crf: 20.5}}",
])
def test_what_the_loader_takes_fits_the_schema(stage: str) -> None:
    assert errors("pipelines", RAW.replace("{}", "{" + stage + "}")) == []


def test_an_operators_own_stage_is_in_the_schema_and_on_a_page_made_with_it() -> None:
    class Settings(StageSettings):
        text: str

    class Stamp(Stage):
        """Writes a text."""

        name = "stamp"

        def run(self, context: object) -> None:
            raise NotImplementedError

    Stamp.Settings = Settings
    stages: dict[str, type[Stage]] = {**STAGES, "stamp": Stamp}
    schema = Draft202012Validator(schema_of("pipelines", stages))
    good, bare = (load_yaml(RAW.replace("{}", text), "x").plain() for text in ("{stamp: {text: $t}}", "stamp"))
    assert (schema.is_valid(good), schema.is_valid(bare)) == (True, False)
    assert "## Stage `stamp`\n\nWrites a text.\n" in reference(stages)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["no", "1:30", "017", "0o17", "1e3", "0x1f", "~", "null", "<<", "=", "2026-01-31", ".inf", "-", "? a", "a: b", "# c",
     "1_000", "+.5", "true", "$x", "&a", "*a", "!t", "%", "@", "`", "", " ", "a\nb", "\ttab", "é\u2028", "\U0001f600",
     "\ufeff", "\x85"])
keys = texts.filter(lambda key: key not in ("", "<<"))
scalars = st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
                      max_leaves=8)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(keys, values, max_size=4))
def test_what_is_written_as_yaml_is_read_back_as_the_same(value: dict[str, Any]) -> None:
    again = load_yaml(dump_yaml(value), "x").plain()
    assert json.dumps(again, sort_keys=True) == json.dumps(value, sort_keys=True)
