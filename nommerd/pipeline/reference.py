"""docs/reference.md, made of the models that check documents: `python -m nommerd.pipeline.reference > docs/reference.md`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from nommerd.media.binaries import ENCODERS
from nommerd.media.filters import FILTERS
from nommerd.media.options import CODEC_PARAMS, FILTER_OPTIONS, INPUT_FLAGS, INPUT_OPTIONS, OUTPUT_FLAGS, OUTPUT_OPTIONS
from nommerd.media.targets import HOLDS, AudioCodec, VideoCodec
from nommerd.media.units import BITRATE_MAX, BITRATE_MIN, DURATION_MAX
from nommerd.pipeline.allowed import OPERATORS
from nommerd.pipeline.params import TEXT_MAX, ParamSpec
from nommerd.pipeline.schema import Schema, properties_of, settings_schema
from nommerd.pipeline.spec import LATER, InputSpec, PipelineDocument, PresetDocument
from nommerd.pipeline.stage import Stage
from nommerd.pipeline.stages import STAGES

HEAD = """\
# Reference of pipelines and presets

Every setting, as the code checks it. How they go together: [pipelines.md](pipelines.md). `nommerd pipelines schema` and
`nommerd presets schema` print the same for editors.

A word has letters, digits, `_`, `.` and `-`; a plain value is a text, a number, `true` or `false`. `$name` may stand wherever
a value does, but for `id`, `input` and `pass`.
"""
STAGE_LINES = {
    "fetch": "Copies the source, and what else the job names, to the worker's disk.",
    "ffmpeg": "Makes one file of the source or of an earlier stage's file: typed (`video`, `audio`, …), or raw (`options`).",
    "faststart": "Moves the index of an MP4 or MOV to its front, without encoding; a file that already is so stays as it is.",
    "verify": "Holds every output to what its stage promised. It also runs by itself before each upload.",
    "upload": "Publishes every output that no later stage took: all of them whole, or none.",
    "notify": "Says which changes are posted to the job's `notify_url`. A pipeline without it posts nothing.",
}
RAW = """\
### `ffmpeg`: raw options from the API

In pipelines of the operator's disk any option may stand. Pipelines that came through the API may have these, with values that
name no file, host, script or further input or output:
"""
PARAM_TYPES = (
    ("integer", "a whole number", "`min` and `max` bound it."),
    ("number", "a number", "`min` and `max` bound it."),
    ("string", f"a text of at most {TEXT_MAX} characters, without control characters", "`min` and `max` bound its length."),
    ("boolean", "`true` or `false`", ""),
    ("bitrate", f"bit/s: `2500k`, `5M`, `2500000`; from {BITRATE_MIN // 1000}k to {BITRATE_MAX // 1_000_000}M",
     "`min` and `max` bound it, in any of these forms."),
    ("duration", f"`10s`, `250ms`, `1:30`, `1:00:00`, or seconds; at most {DURATION_MAX / 86400:.0f} days",
     "`min` and `max` bound it, in any of these forms."),
    ("choice", "one of `choices`", ""),
)
STAGE_ORDER = ("fetch", "ffmpeg", "faststart", "verify", "upload", "notify")
PLAIN_VALUE = {"text", "whole number", "number", "true or false"}
LINKS = {"bit rate": "[bitrate](#types-of-params)", "duration": "[duration](#types-of-params)",
         "InputSpec": "[mapping](#inputs)", "ParamSpec": "[mapping](#params)"}
PLURAL = {"word", "plain value", "`[name, value]` pair"}
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping",
         "array": "list"}


def reference(stages: Mapping[str, type[Stage]] = STAGES) -> str:
    """The page."""
    parts = [HEAD, *_document("Pipeline", PipelineDocument), *_declared("Inputs", "inputs", InputSpec),
             *_declared("Params", "params", ParamSpec), _param_types(), *_document("Preset", PresetDocument)]
    for name in sorted(stages, key=lambda one: (STAGE_ORDER.index(one) if one in STAGE_ORDER else len(STAGE_ORDER), one)):
        parts += _stage(name, stages[name])
    parts.append(f"## Later\n\nThe names {_listed(sorted(LATER))} are kept for stages that are not yet supported.\n")
    return "\n".join(parts)


def _document(title: str, model: Any) -> Iterator[str]:
    schema = model.model_json_schema()
    yield f"## {title}\n"
    yield _table(schema, schema)


def _declared(title: str, key: str, model: Any) -> Iterator[str]:
    schema = model.model_json_schema()
    yield f"### {title}\n\nWhat stands under a name in `{key}`.\n"
    yield _table(schema, schema)


def _param_types() -> str:
    rows = [f"| `{name}` | {values} | {bounds} |" for name, values, bounds in PARAM_TYPES]
    return "\n".join(["### Types of params\n", "| type | values | bounds |", "|---|---|---|", *rows, ""])


def _stage(name: str, stage: type[Stage]) -> Iterator[str]:
    schema = settings_schema(stage)
    yield f"## Stage `{name}`\n\n{STAGE_LINES.get(name) or _paragraph(stage.__doc__)}\n"
    yield _table(schema, schema)
    for part, found in sorted(schema.get("$defs", {}).items(), key=lambda item: _position(schema, item[0])):
        yield f"### `{name}`: `{_setting_of(schema, part)}`\n\n{_paragraph(found.get('description'))}\n"
        yield _table(found, schema)
    if name == "ffmpeg":
        yield from _codecs()
    for_operators = OPERATORS.get(name)
    if for_operators:
        yield f"In pipelines that came through the API, {_listed(for_operators)} are refused.\n"


def _codecs() -> Iterator[str]:
    """What goes with what."""
    typed = {*get_args(VideoCodec), *get_args(AudioCodec)}
    yield "### `ffmpeg`: encoders\n\nThe first that the ffmpeg at work has is taken, or what `encoder` names of these.\n"
    yield "\n".join(["| codec | encoders |", "|---|---|", *(f"| `{codec}` | {_listed(known)} |"
                                                          for codec, known in ENCODERS.items() if codec in typed), ""])
    yield "### `ffmpeg`: containers\n"
    yield "\n".join(["| container | holds |", "|---|---|", *(
        f"| `{container}` | {_listed(sorted(codecs)) if codecs is not None else 'anything'} |"
        for container, codecs in HOLDS.items()), ""])
    yield RAW
    for title, names in (("Output options", {*OUTPUT_OPTIONS, *OUTPUT_FLAGS, *FILTER_OPTIONS, *CODEC_PARAMS}),
                         ("Input options", {*INPUT_OPTIONS, *INPUT_FLAGS}), ("Filters", set(FILTERS))):
        yield f"- {title}: {_listed(sorted(names))}."
    yield ""


def _position(schema: Schema, part: str) -> int:
    return list(schema["properties"]).index(_setting_of(schema, part))


def _setting_of(schema: Schema, part: str) -> str:
    """The setting that is described by this part of the schema."""
    return next(str(name) for name, one in schema["properties"].items() if f"#/$defs/{part}" in json.dumps(one))


def _table(schema: Schema, root: Schema) -> str:
    rows = [f"| `{name}` | {_type(one)} | {_default(one, needed)} | {_escaped(_meaning(one))} |"
            for name, one, needed in properties_of(schema, root)]
    return "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows, ""])


def _meaning(schema: Schema) -> str:
    return f"{schema.get('description', '')}"


def _default(schema: Schema, needed: bool) -> str:
    if needed:
        return "required"
    value = schema.get("default")
    if value is None or value in ("", [], {}) or isinstance(value, dict):
        return ""
    return f"`{value if isinstance(value, str) else f'{value:g}' if isinstance(value, float) else json.dumps(value)}`"


def _type(schema: Schema) -> str:
    """What may stand there, in words."""
    if "x-type" in schema:
        return LINKS.get(schema["x-type"], str(schema["x-type"]))
    if "$ref" in schema:
        part = schema["$ref"].rsplit("/", 1)[-1]
        return LINKS.get(part, "mapping, below")
    if "const" in schema or "enum" in schema:
        return _listed(schema.get("enum") or [schema["const"]])
    if "anyOf" in schema:
        kinds = dict.fromkeys(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
        return "plain value" if kinds.keys() == PLAIN_VALUE else " or ".join(kinds)
    return _collection(schema) if schema.get("type") in ("array", "object") else _scalar(schema)


def _collection(schema: Schema) -> str:
    if schema["type"] == "array":
        inner = _type(schema["items"])
        return f"list of {inner}{'s' if inner in PLURAL else ''}" if "below" not in inner else "a list of one"
    held = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
    return f"names, each with a {_type(held)}" if isinstance(held, dict) and held else "mapping"


def _scalar(schema: Schema) -> str:
    kind = WORDS.get(str(schema.get("type")), "anything")
    least, most = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']:g}, at most {most:g}"
    if least is not None and most is not None:
        return f"{kind}, {least:g} to {most:g}"
    if "maxLength" in schema:
        return f"{kind} of at most {schema['maxLength']} characters"
    return kind


def _listed(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _paragraph(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip()


def _escaped(text: str) -> str:
    return _paragraph(text).replace("|", r"\|")


if __name__ == "__main__":
    print(reference(), end="")
