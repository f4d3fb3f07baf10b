"""A pydantic model over a positioned tree: every fault with its place, its path and what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import ErrorDetails

from nommerd.pipeline.params import describe, known_hint, meant
from nommerd.pipeline.tree import FAULTS_MAX, Faults, Node, joined

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]

WRONG_TYPE = "wrong_type"
DETAILS_MAX = 4 * FAULTS_MAX  # of pydantic's errors: a union's branches bring several for one fault

# Errors that say "another kind of value": of a union, each branch that was not meant adds one.
_KINDS = {
    "string_type": "text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "list_type": "a list", "tuple_type": "a list", "set_type": "a list", "frozen_set_type": "a list", "dict_type": "a mapping",
    "model_type": "a mapping", "model_attributes_type": "a mapping", "none_required": "nothing (null)",
    "int_from_float": "a whole number",
}
# Error types of our own validators that have a code of their own; the others are recipe.bad_setting.
_CODES = {"two_pass": "two_pass", "forbidden": "forbidden_option", "not_yet_supported": "not_yet_supported",
          "extra_forbidden": "unknown_key", "missing": "missing_key"}


@dataclass(frozen=True, slots=True)
class Complaint:
    """One fault: where in the tree (path and place), and in words. `code` is without its family."""

    at: Path
    place: str
    message: str
    hint: str
    code: str

_AT_KEY = frozenset({"unknown_key", "not_yet_supported", "bad_name"})


def validate(model: type[M], node: Node, faults: Faults, path: str = "") -> M | None:
    """The tree as a model; None if it has faults, which are then in `faults`. `path` is where `node` stands."""
    value, found = inspect(model, node)
    for complaint in found:
        faults.add(complaint.code, sentence(path, complaint), complaint.hint, complaint.place)
    return value


def inspect(model: type[M], node: Node) -> tuple[M | None, list[Complaint]]:
    """The tree as a model under JSON's strict rules (lists for tuples, no other conversion), or what is wrong with it."""
    try:
        return model.model_validate_json(json.dumps(node.plain()), strict=True), []
    except ValidationError as error:
        return None, list(_complaints(model, node, error))


def sentence(path: str, complaint: Complaint) -> str:
    """`stages[1].ffmpeg.crf: expected …`"""
    for step in complaint.at:
        path = joined(path, step)
    end = "" if complaint.message.endswith("?") else "."
    return f"{path or 'The document'}: {complaint.message}{end}"


def _complaints(model: type[BaseModel], node: Node, error: ValidationError) -> Iterator[Complaint]:
    """Several faults of one place are brought together: each branch of a union brings its own."""
    found: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_input=False, include_url=False)[:DETAILS_MAX]:
        found.setdefault(_located(node, detail), []).append(detail)
    for at, details in found.items():
        deeper = any(len(other) > len(at) and other[: len(at)] == at for other in found)
        others = [detail for detail in details if detail["type"] not in _KINDS]
        for detail in _distinct(others):
            code = "bad_name" if detail["loc"][-1:] == ("[key]",) else _CODES.get(detail["type"], "bad_setting")
            yield Complaint(at, _place(node, at, code), *_words(model, node, at, detail), code)
        if not others and not deeper:
            yield Complaint(at, _place(node, at, WRONG_TYPE), _wrong_kind(node.get(*at), details), "", WRONG_TYPE)


def _distinct(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Unknown and missing keys of unions' other branches left out where a branch says something better."""
    later = [detail for detail in details if detail["type"] == "not_yet_supported"]
    return later[:1] or details


def _located(node: Node, detail: ErrorDetails) -> Path:
    """The path in the tree of pydantic's location, which also names the branches of unions."""
    at: Path = ()
    current: Node | None = node
    steps = detail["loc"]
    for index, step in enumerate(steps):
        child = current.get(step) if current else None
        if child is None and isinstance(step, str) and current and isinstance(current.value, list) and len(current.value) == 1:
            child, at = current.get(0, step), (*at, 0)  # a list of one where a mapping would do
        if child is not None:
            current, at = child, (*at, step)
        elif index == len(steps) - 1 and detail["type"] == "missing":
            at = (*at, step)
    return at


def _place(node: Node, at: Path, code: str) -> str:
    """The key for one that should not be there, the mapping for one that is missing, else the value."""
    found = node.get(*at)
    if found is None:
        return (node.get(*at[:-1]) or node).place
    return found.key_place if code in _AT_KEY and at and isinstance(at[-1], str) else found.place


def _words(model: type[BaseModel], node: Node, at: Path, detail: ErrorDetails) -> tuple[str, str]:
    """Message and hint."""
    kind, context = detail["type"], detail.get("ctx", {})
    found = node.get(*at)
    value = found.plain() if found else None
    hint = ""
    if kind == "not_yet_supported":
        message, hint = "not yet supported", "Remove it, or wait for a later version."
    elif kind == "extra_forbidden":
        message, hint = "unknown key", known_hint(str(at[-1]), _known_keys(model, detail["loc"][:-1]), "Known here")
    elif kind == "missing":
        message = "missing"
    elif kind in ("literal_error", "enum"):
        choices = str(context.get("expected", "")).replace("'", "")
        message = f"expected {choices}, got {describe(value)}{meant(value, choices.replace(' or ', ', ').split(', '))}"
    elif kind in ("too_long", "too_short", "string_too_long", "string_too_short"):
        message = _wrong_length(kind, context, value)
    elif kind == "string_pattern_mismatch":
        message = f"{describe(value)} does not fit the pattern {context.get('pattern')}"
    else:
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return message, hint


def _wrong_length(kind: str, context: dict[str, Any], value: Any) -> str:
    unit = "characters" if kind.startswith("string") else "items"
    word, bound = ("most", context.get("max_length")) if kind.endswith("long") else ("least", context.get("min_length"))
    return f"at {word} {bound} {unit}, got {len(value) if isinstance(value, str | list | dict) else 'another kind of value'}"


def _wrong_kind(found: Node | None, details: list[ErrorDetails]) -> str:
    wanted = list(dict.fromkeys(_KINDS[detail["type"]] for detail in details))
    expected = " or ".join(filter(None, [", ".join(wanted[:-1]), wanted[-1]]))
    value = found.plain() if found else None
    slip = " (quote it, if it is meant as text)" if wanted == ["text"] and isinstance(value, bool | int | float) else ""
    return f"expected {expected}, got {describe(value)}{slip}"


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    try:
        return model.model_json_schema(by_alias=True)
    except PydanticInvalidForJsonSchema:
        return {}


def _known_keys(model: type[BaseModel], loc: Path) -> list[str]:
    """The keys that may stand in the mapping at `loc`, from the model's JSON Schema."""
    root = _schema(model)
    schemas: list[dict[str, Any]] = list(_branches(root, root))
    for step in loc:
        below = [branch for schema in schemas for part in _below(schema, step) for branch in _branches(part, root)]
        schemas = below or schemas  # a union's branch is no step of the tree
    return sorted({key for schema in schemas for key in schema.get("properties", {})})


def _branches(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "$ref" in schema:
        yield from _branches(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
        return
    yield schema
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _branches(part, root)


def _below(schema: dict[str, Any], step: str | int) -> Iterator[dict[str, Any]]:
    if isinstance(step, int):
        parts = [schema.get("items"), *schema.get("prefixItems", ())]
    else:
        named = schema.get("properties", {}).get(step)
        parts = [named] if named else [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]
    yield from (part for part in parts if isinstance(part, dict))
