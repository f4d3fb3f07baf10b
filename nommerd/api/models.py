"""What a request may hold. Strict: nothing is coerced, unknown names are errors, each fault is told with its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from nommerd.api.body import control_characters, shown
from nommerd.api.problems import Fault, Refusal, refuse
from nommerd.job import DEFAULT_PROJECT, JobState
from nommerd.secrets import split_uri
from nommerd.store.base import JobQuery

M = TypeVar("M", bound=BaseModel)

URI_MAX = 2048
NAME_MAX = 100
VALUE_MAX = 1024
LABELS_MAX = 16
PARAMS_MAX = 64
INPUTS_MAX = 16
LIMIT_DEFAULT = 50
LIMIT_MAX = 500
WAIT_SECONDS_MAX = 60.0
CURSOR_MAX = 512
FAULTS_MAX = 20  # told in one answer
EVENT_SEQ_MAX = 2**53


def _clean(value: Any, handler: Any) -> str:
    text: str = handler(value)
    if control_characters(text):
        raise PydanticCustomError("control_characters", "holds control characters")
    return text


_NO_URI = re.compile("[^\x00-\x7f]|[ \"<>]")  # RFC 3986, 2; where a log line cuts an address, its secrets must not go on


def _uri(value: Any) -> Any:
    if not isinstance(value, str) or value[:5].lower() == "file:":
        return value
    # The keys of s3: are literal: of such a URI its credentials alone must be plain.
    part = "".join(split_uri(value)[:2]) if value[:5].lower() == "s3://" else value
    if _NO_URI.search(part):
        raise PydanticCustomError("bad_uri", "must be percent-encoded: only ASCII, no spaces, quotes or angle brackets")
    return value


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > VALUE_MAX:
            raise PydanticCustomError("too_long", "is longer than {limit} characters", {"limit": VALUE_MAX})
        if control_characters(value):
            raise PydanticCustomError("control_characters", "holds control characters")
        return value
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < EVENT_SEQ_MAX):
        return value
    raise PydanticCustomError("not_scalar", "must be a text, a number, true or false")


Name = Annotated[str, Field(min_length=1, max_length=NAME_MAX), WrapValidator(_clean)]
Uri = Annotated[str, Field(min_length=1, max_length=URI_MAX), WrapValidator(_clean), BeforeValidator(_uri)]
LabelValue = Annotated[str, Field(max_length=NAME_MAX), WrapValidator(_clean)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]


class Strict(BaseModel):
    """What the body of a request is made of."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class InputFile(Strict):
    """A file beside the source: captions, a logo."""

    uri: Uri
    language: Name | None = None


class Submission(Strict):
    """The body of POST /v1/jobs."""

    source: Uri
    dest: Uri
    inputs: Annotated[dict[Name, Annotated[list[InputFile], Field(min_length=1, max_length=INPUTS_MAX)]],
                      Field(max_length=INPUTS_MAX)] = {}
    preset: Name | None = None
    pipeline: Name | None = None
    params: Annotated[dict[Name, Scalar], Field(max_length=PARAMS_MAX)] = {}
    overwrite: bool = False
    on_damage: Literal["tolerate", "fail"] | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    notify_url: Uri | None = None
    labels: Annotated[dict[Name, LabelValue], Field(max_length=LABELS_MAX)] = {}

    @model_validator(mode="after")
    def _one_recipe(self) -> Submission:
        if (self.preset is None) == (self.pipeline is None):
            raise PydanticCustomError("one_recipe", "Name a preset or a pipeline, one of the two")
        return self


_SENTENCES = {
    "missing": "is required",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "list_type": "must be a list",
    "string_unicode": "is not valid Unicode",
}


def submission(fields: Mapping[str, Any]) -> Submission:
    """The validated body of POST /v1/jobs."""
    return validated(Submission, fields)


def validated(model: type[M], fields: Mapping[str, Any], place: str = "body") -> M:
    """The fields as this model. Raises Refusal 422 with a fault for each thing wrong, its place below `place`."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_input=False, include_url=False)[:FAULTS_MAX]
        raise Refusal(422, [_fault(model, fault, place) for fault in faults]) from None


def _fault(model: type[BaseModel], error: Mapping[str, Any], root: str) -> Fault:
    kind: str = error["type"]
    steps = [step for step in error["loc"] if step != "[key]"]
    place = ".".join([root, *(f"{shown(str(step))[1:-1]}" for step in steps)])
    leaf = shown(str(steps[-1])) if steps else f"The {root}"
    if kind == "extra_forbidden":
        known = tuple(_model_at(model, steps[:-1]).model_fields)
        near = get_close_matches(str(steps[-1])[:NAME_MAX], known, n=1)
        return Fault(place, "request.unknown_field", f"There is no field {leaf}.",
                     f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.")
    if kind == "one_recipe":
        return Fault("body.preset", "request.invalid", error["msg"] + ".", "GET /v1/presets lists them.")
    if kind == "missing":
        return Fault(place, "request.missing_field", f"{leaf} is required.")
    wrong = _SENTENCES.get(kind) or error["msg"].replace("Input should", "should").replace("String should", "should")
    code = "request.control_characters" if kind == "control_characters" else "request.invalid"
    return Fault(place, code, f"{leaf} {wrong}.")


def _model_at(model: type[BaseModel], steps: Sequence[str | int]) -> type[BaseModel]:
    """The model that describes what is found by these steps: names of fields, with indexes and keys between them."""
    for step in steps:
        field = model.model_fields.get(str(step))
        model = (_model_in(field.annotation) if field is not None else None) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field's type is, or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


# --- queries -----------------------------------------------------------------------------------------------------


def query_pairs(text: str, known: frozenset[str]) -> list[tuple[str, str]]:
    """The query string's pairs in order. Unknown names are refused."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError:
        raise refuse(422, "query", "request.bad_query", "The query string cannot be read.") from None
    for name, value in pairs:
        if name not in known:
            raise refuse(422, f"query.{shown(name)[1:-1]}", "request.unknown_field", f"There is no parameter {shown(name)}.",
                         f"Known: {', '.join(sorted(known))}.")
        if control_characters(value):
            raise refuse(422, f"query.{name}", "request.control_characters", f"{name} holds control characters.")
    return pairs


def validated_query(model: type[M], text: str) -> M:
    """The query string as this model, whose fields are read from text (it is not strict); a field that is a tuple may repeat.
    Raises Refusal 422."""
    found: dict[str, Any] = {}
    for name, value in query_pairs(text, frozenset(model.model_fields)) if text else ():
        if get_origin(model.model_fields[name].annotation) is tuple:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise refuse(422, f"query.{name}", "request.invalid", f"{name} stands twice.")
        else:
            found[name] = value
    return validated(model, found, "query")


class ListQuery(BaseModel):
    """What GET /v1/jobs takes, for its description: `list_query` reads it."""

    state: Annotated[tuple[JobState, ...], Field(description="In one of these states; also with commas")] = ()
    label: Annotated[tuple[Annotated[str, Field(pattern="^[^=]+=.+$")], ...], Field(description="With it: NAME=VALUE")] = ()
    preset: str | None = None
    error_code: str | None = None
    since: Annotated[datetime | None, Field(description="Created at or after")] = None
    cursor: Annotated[str | None, Field(description="`next` of the page before", max_length=CURSOR_MAX)] = None
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = LIMIT_DEFAULT


LIST_NAMES = frozenset(ListQuery.model_fields)


def list_query(text: str, project: str = DEFAULT_PROJECT) -> JobQuery:
    """GET /v1/jobs' query string. `state` and `label` may repeat; `state` takes a list with commas too."""
    states: set[JobState] = set()
    labels: dict[str, str] = {}
    plain: dict[str, str] = {}
    for name, value in query_pairs(text, LIST_NAMES):
        if name == "state":
            states.update(_state(part) for part in value.split(","))
        elif name == "label":
            key, equals, wanted = value.partition("=")
            if not (key and equals):
                raise refuse(422, "query.label", "request.invalid", "label must be NAME=VALUE.")
            labels[key] = wanted
            if len(labels) > LABELS_MAX:
                raise refuse(422, "query.label", "request.invalid", f"No job has more than {LABELS_MAX} labels.")
        elif name in plain:
            raise refuse(422, f"query.{name}", "request.invalid", f"{name} stands twice.")
        else:
            plain[name] = value
    if len(plain.get("cursor", "")) > CURSOR_MAX:
        raise refuse(422, "query.cursor", "request.bad_cursor", "This cursor was not given out here.")
    return JobQuery(project=project, states=frozenset(states), labels=labels, preset=plain.get("preset"),
                    error_code=plain.get("error_code"), since=_since(plain.get("since")), cursor=plain.get("cursor"),
                    limit=int(_number(plain, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)))


def _state(text: str) -> JobState:
    try:
        return JobState(text.upper())
    except ValueError:
        raise refuse(422, "query.state", "request.invalid", f"{shown(text)} is no state.",
                     f"States: {', '.join(JobState)}.") from None


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))  # a + that was not escaped arrives as a space
        if at.tzinfo is None:
            raise ValueError
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise refuse(422, "query.since", "request.invalid", f"{shown(text)} is no time with a time zone.",
                     "Write it like 2026-01-31T09:00:00Z.") from None


def _number(plain: Mapping[str, str], name: str, default: float, least: float, most: float) -> float:
    text = plain.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"[0-9]{1,16}(\.[0-9]{1,6})?", text) or not least <= float(text) <= most:
        raise refuse(422, f"query.{name}", "request.invalid", f"{name} must be a number from {least:g} to {most:g}.")
    return float(text)


class WaitQuery(BaseModel):
    """What GET /v1/jobs/ID takes, for its description: `wait_query` reads it."""

    wait: Annotated[float, Field(ge=0, le=WAIT_SECONDS_MAX, description="Seconds to wait for a change")] = 0
    after: Annotated[int | None, Field(ge=0, description="Answer once event_seq is above this")] = None


WAIT_NAMES = frozenset(WaitQuery.model_fields)


def wait_query(text: str) -> tuple[float, int | None]:
    """GET /v1/jobs/ID's query string: how long to wait (0: not at all), and for an event after which one."""
    plain = dict(query_pairs(text, WAIT_NAMES)) if text else {}
    after = int(_number(plain, "after", -1, 0, EVENT_SEQ_MAX))
    return _number(plain, "wait", 0.0, 0.0, WAIT_SECONDS_MAX), None if after < 0 else after
