"""JSON Schema of pipeline and preset documents, for editors and the reference; made of the models that check them.

What depends on several settings (`bitrate` and `crf` exclude each other) is left to `check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nommerd.pipeline.spec import PipelineDocument, PresetDocument
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = frozenset({"id", "pass", "input"})  # settings that no param may stand in
TYPED = frozenset({"type", "anyOf", "$ref", "enum", "const", "allOf"})  # a property without any has its place kept for later
SCALARS = frozenset({"string", "integer", "number", "boolean"})
PARAM: Schema = {"type": "string", "pattern": r"\$"}


def schema_of(kind: str, stages: Mapping[str, type[Stage]] = STAGES) -> Schema:
    """The schema of `presets` or `pipelines`, with these stages."""
    if kind == "presets":
        return {"$schema": DIALECT, **_clean(PresetDocument.model_json_schema())}
    root = PipelineDocument.model_json_schema()
    parts = {name: settings_schema(cls) for name, cls in stages.items()}
    for schema in parts.values():
        root["$defs"].update({name: _with_params(one) for name, one in schema.pop("$defs", {}).items()})
    properties = {name: {"anyOf": [_with_params(schema), {"type": "null"}]} for name, schema in parts.items()}
    bare = [name for name, schema in parts.items() if not schema.get("required")]
    root["properties"]["stages"]["items"] = {"anyOf": [
        {"enum": bare},
        {"type": "object", "properties": properties, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}]}
    return {"$schema": DIALECT, **_clean(root)}


def settings_schema(stage: type[Stage]) -> Schema:
    """What a stage may be told, as it is written: without params, and without what is not yet supported."""
    schema: Schema = _without_later(stage.Settings.model_json_schema(by_alias=True))
    return schema


def _without_later(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_later(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _without_later(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {name: one for name, one in made["properties"].items() if TYPED & one.keys()}
    return made


def _with_params(schema: Schema) -> Schema:
    """The same, with `$name` wherever a value stands."""
    made = dict(schema)
    if "properties" in made:
        made["properties"] = {name: one if name in PLAIN else _with_params(one) for name, one in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = _with_params(made[key])
    for key in ("anyOf", "prefixItems"):
        if key in made:
            made[key] = [_with_params(one) for one in made[key]]
    if "enum" in made or "const" in made or str(made.get("type")) in SCALARS:
        about: Schema = {key: made.pop(key) for key in ("title", "description", "default") if key in made}
        return {**about, "anyOf": [made, PARAM]}
    return made


def _clean(schema: Any) -> Any:
    """Without pydantic's titles and our own keywords, which say nothing to an editor."""
    if isinstance(schema, list):
        return [_clean(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: {name: _clean(one) for name, one in value.items()} if key in ("properties", "$defs", "patternProperties")
            else _clean(value) for key, value in schema.items()
            if key != "x-type" and not (key == "title" and isinstance(value, str))}


def properties_of(schema: Schema, root: Schema) -> Iterator[tuple[str, Schema, bool]]:
    """The settings in an object's schema: name, schema, whether it must be there."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    required = schema.get("required", ())
    for name, one in schema.get("properties", {}).items():
        yield name, one, name in required
