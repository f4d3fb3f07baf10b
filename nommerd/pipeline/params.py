"""What a preset or a job may set in a pipeline: typed values, and their way into the settings by `$name`.

Values are not converted: a bitrate stays `2500k`, a duration `1:30`, once it is known to be one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from nommerd.media.units import parse_bitrate, parse_duration
from nommerd.pipeline.tree import Faults, Node

ParamType = Literal["integer", "number", "string", "boolean", "bitrate", "duration", "choice"]
Value = str | int | float | bool
PARAM_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"

TEXT_MAX = 1000  # characters in a string param
RUNTIME_NAMES = frozenset({"source.stem", "rendition.name", "n"})  # known only at run time, in `output`
RESERVED = frozenset({"n", "source", "rendition"})
OUTPUT = "output"  # the setting under which runtime names may stand

# The forms that ffmpeg reads as well: params go into raw options as they were written.
_BITRATE = re.compile(r"[0-9]+(\.[0-9]+)?[kKM]?")
_DURATION = re.compile(r"[0-9]+(\.[0-9]+)?(ms|s)?|([0-9]+:)?[0-9]+:[0-5]?[0-9](\.[0-9]+)?")
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_DOLLAR = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<braced>[^{}$]*)\}|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<bad>))")


def name_check(pattern: str, words: str) -> Callable[[str], str]:
    """A validator that says what a name is made of instead of showing a pattern."""
    def check(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"{describe(name)} is no name here: {words}")
        return name

    return check


ParamName = Annotated[
    str, AfterValidator(name_check(PARAM_PATTERN, "letters, digits and `_`, at most 64, no digit in front")),
    WithJsonSchema({"type": "string", "pattern": PARAM_PATTERN}),
]


class ParamSpec(BaseModel):
    """One param a pipeline takes. `min` and `max` bound numbers, bitrates and durations, and the length of a string."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    type: ParamType = Field(description="What its values are.")
    description: str = Field("", description="What it is for, in a sentence.")
    default: Value | None = Field(None, description="Its value where nobody sets it. Without one, a setting that is nothing "
                                                    "but this param is left out.")
    required: bool = Field(False, description="Whether a preset or the job must set it.")
    min: Value | None = Field(None, description="The least value; of a string, the least length.")
    max: Value | None = Field(None, description="The greatest value; of a string, the greatest length.")
    choices: Annotated[tuple[Value, ...], Field(max_length=100)] = Field((), description="The values of a `choice`.")


def accept(spec: ParamSpec, value: Any) -> Value:
    """The value, if it is one this param takes. Raises ValueError that says what would be right. `true` is not 1."""
    if spec.type == "choice":
        if not any(type(value) is type(choice) and value == choice for choice in spec.choices):
            raise ValueError(f"expected {one_of(spec.choices)}, got {describe(value)}{meant(value, spec.choices)}")
        return value  # type: ignore[no-any-return]
    size = _size(spec, value)
    unit = " characters" if spec.type == "string" else ""
    if spec.min is not None and size < _bound(spec, spec.min):
        raise ValueError(f"must be at least {spec.min}{unit}, got {describe(value)}")
    if spec.max is not None and size > _bound(spec, spec.max):
        raise ValueError(f"must be at most {spec.max}{unit}, got {describe(value)}")
    return value  # type: ignore[no-any-return]


def from_text(spec: ParamSpec, text: str) -> Value:
    """The value of a text from a command line (`--set NAME=TEXT`). Raises ValueError."""
    if spec.type == "choice":
        return accept(spec, next((choice for choice in spec.choices if as_text(choice) == text), text))
    if spec.type == "boolean":
        return accept(spec, {"true": True, "false": False}.get(text, text))
    if spec.type in ("integer", "number", "bitrate") and re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return accept(spec, int(text))
    if spec.type == "number" and re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]{1,2})?", text):
        return accept(spec, float(text))
    return accept(spec, text)


def check_spec(name: str, node: Node, spec: ParamSpec, faults: Faults) -> None:
    """Report what is wrong in a param's own declaration: a default that it would not take, bounds of another type."""
    if name in RESERVED:
        faults.add("bad_param", f"{name} is a name that has a meaning at run time.", "Choose another name.", node.key_place)
    if (spec.type == "choice") != bool(spec.choices):
        faults.add("bad_param", f"{name}: `choices` and `type: choice` go together.", "Write choices: [a, b].", node.key_place)
        return
    for bound in ("min", "max"):
        at = node.get(bound)
        if at is not None and at.value is not None and (spec.type in ("boolean", "choice") or not _is_bound(spec, at.value)):
            faults.add("bad_param", f"{name}: {bound} does not fit the type {spec.type}.", place=at.place)
            return
    if spec.min is not None and spec.max is not None and _bound(spec, spec.min) > _bound(spec, spec.max):
        faults.add("bad_param", f"{name}: min is greater than max.", place=node.key_place)
        return
    at = node.get("default")
    if at is None or at.value is None:
        return
    if spec.required:
        faults.add("bad_param", f"{name}: a required param needs no default.", "Remove one of the two.", at.place)
    try:
        accept(spec, at.plain())
    except ValueError as error:
        faults.add("bad_param", f"{name}: the default: {error}.", place=at.place)


def samples(spec: ParamSpec) -> tuple[Value, ...]:
    """Values this param would take, to try settings with while nobody has set it."""
    if spec.default is not None:
        return (spec.default,)
    if spec.type == "choice":
        return spec.choices
    tries: dict[str, tuple[Value, ...]] = {
        "boolean": (True, False), "bitrate": ("1M", "128k"), "duration": (1, "1:00:00", 0), "integer": (1, 640, 48000, 0, 25),
        "number": (1, 640, 25.0, 0.5), "string": ("text", "a"),
    }
    bounds = tuple(bound for bound in (spec.min, spec.max) if bound is not None and spec.type != "string")
    if spec.type == "string" and isinstance(spec.min, int):
        bounds = ("x" * min(spec.min, TEXT_MAX),)
    return tuple(value for value in (*bounds, *tries[spec.type]) if _takes(spec, value))


# --- substitution ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """A value that params went into: where (path in the settings), which ones, and whether it is nothing else."""

    path: tuple[str | int, ...]
    names: frozenset[str]
    whole: bool


def substitute(node: Node, values: Mapping[str, Value], known: frozenset[str], faults: Faults) -> tuple[Node, list[Use]]:
    """The settings with `$name` and `${name}` filled in, and where they were.

    `known` are the params the pipeline declares. A setting that is nothing but a param without a value is left out. Under
    `output`, runtime names stay as they are, and so do dollars (`$$`): `expand` reads that text again at run time.
    """
    filling = _Filling(values, known, faults)
    return filling.fill(node, ()), filling.uses


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text of an `output` setting at run time: `${source.stem}` and its like filled in, `$$` a dollar.

    Raises ValueError for a name that has no value.
    """
    def fill(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "$"
        name = found["braced"] or found["name"]
        if name not in values:
            raise ValueError(f"{found[0]} has no value here")
        return values[name]

    return _DOLLAR.sub(fill, text)


def as_text(value: Value | None) -> str:
    """A value inside a longer text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15f}".rstrip("0").rstrip(".") if 1e-9 < abs(value) < 1e15 else repr(value)
    return str(value)


class _Filling:
    """One run of `substitute`."""

    def __init__(self, values: Mapping[str, Value], known: frozenset[str], faults: Faults) -> None:
        self.values = values
        self.known = known
        self.faults = faults
        self.uses: list[Use] = []

    def fill(self, node: Node, path: tuple[str | int, ...]) -> Node:
        if isinstance(node.value, dict):
            present = {key: child for key, child in node.value.items() if not self._left_out(child)}
            return node.replace({key: self.fill(child, (*path, key)) for key, child in present.items()})
        if isinstance(node.value, list):
            return node.replace([self.fill(child, (*path, index)) for index, child in enumerate(node.value)])
        if isinstance(node.value, str) and "$" in node.value:
            return node.replace(self._text(node.value, node.place, path))
        return node

    def _left_out(self, node: Node) -> bool:
        name = _whole(node.value)
        return name in self.known and self.values.get(name or "") is None

    def _text(self, text: str, place: str, path: tuple[str | int, ...]) -> Value:
        at_runtime = OUTPUT in path
        params = frozenset(name for name in self._names(text, place, at_runtime) if name in self.known)
        whole = _whole(text)
        if params:
            self.uses.append(Use(path, params, whole is not None))
        for name in sorted(params - {name for name, value in self.values.items() if value is not None}):
            self.faults.add("bad_param", f"The param {name} may be left unset, and this needs a value.",
                            f"Give {name} a default, or `required: true`.", place)
        if whole in params:
            value = self.values.get(whole or "", "")
            return value.replace("$", "$$") if at_runtime and isinstance(value, str) else value
        return _DOLLAR.sub(lambda found: self._filled(found, at_runtime), text)

    def _filled(self, found: re.Match[str], at_runtime: bool) -> str:
        if found["escaped"]:
            return "$$" if at_runtime else "$"
        name = found["braced"] or found["name"]
        if name not in self.known:
            return f"${{{name}}}" if at_runtime and name else found[0]  # braced: letters may follow once the params are in
        text = as_text(self.values.get(name))
        return text.replace("$", "$$") if at_runtime else text

    def _names(self, text: str, place: str, at_runtime: bool) -> Iterator[str]:
        for found in _DOLLAR.finditer(text):
            name = found["braced"] or found["name"]
            if found["escaped"] or name in self.known or (at_runtime and name in RUNTIME_NAMES):
                yield name or ""
            elif not name:
                self.faults.add("bad_param", f"A $ without a name in {describe(text)}.",
                                "Write $$ for a dollar, $name or ${name} for a param.", place)
            elif name in RUNTIME_NAMES:
                self.faults.add("unknown_param", f"{found[0]} is known only at run time, in `output`.", place=place)
            else:
                hint = known_hint(name, self.known, "Params here")
                self.faults.add("unknown_param", f"No param is called {name!r}.", hint, place)


def _whole(value: Any) -> str | None:
    """The name, of a text that is nothing but `$name` or `${name}`."""
    found = _DOLLAR.fullmatch(value) if isinstance(value, str) else None
    return (found["braced"] or found["name"]) if found else None


# --- words -------------------------------------------------------------------------------------------------------


def describe(value: Any) -> str:
    """A value as an error message shows it: short, and with what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing (null)"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:39] + '…'!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return f"a list of {len(value)}" if isinstance(value, list) else "a mapping"


def one_of(choices: Any) -> str:
    """`a, b or c`."""
    words = [as_text(choice) if not isinstance(choice, str) else choice for choice in choices]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "nothing"


def nearest(name: Any, known: Any) -> str | None:
    """The known name that was probably meant."""
    close = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return close[0] if close else None


def meant(name: Any, known: Any) -> str:
    """`: did you mean web-720p?`, or nothing."""
    close = nearest(name, known)
    return f": did you mean {close}?" if close else ""


def known_hint(name: str, known: Any, label: str) -> str:
    """A hint for an unknown name: what was probably meant, else what there is."""
    close = nearest(name, known)
    if close:
        return f"Did you mean {close}?"
    return f"{label}: {', '.join(sorted(map(str, known)))}." if known else f"{label}: none."


def _size(spec: ParamSpec, value: Any) -> float:
    """What min and max are compared with. Raises ValueError for a value of another type."""
    if spec.type == "bitrate":
        if isinstance(value, str) and not _BITRATE.fullmatch(value):
            raise ValueError(f"expected a bitrate such as 2500k, 5M or 2500000 (bit/s), got {describe(value)}")
        return parse_bitrate(value)
    if spec.type == "duration":
        if isinstance(value, str) and not _DURATION.fullmatch(value):
            raise ValueError(f"expected a duration such as 10s, 250ms, 1:30 or 90 (seconds), got {describe(value)}")
        return parse_duration(value)
    wanted, kinds = _KINDS[spec.type]
    if type(value) not in kinds or (isinstance(value, float) and not math.isfinite(value)):
        slip = " (quote it, if it is meant as text)" if spec.type == "string" and isinstance(value, int | float) else ""
        raise ValueError(f"expected {wanted}, got {describe(value)}{slip}")
    if isinstance(value, str) and spec.type == "string":
        if len(value) > TEXT_MAX or _CONTROL.search(value):
            raise ValueError(f"must be at most {TEXT_MAX} characters, without control characters")
        return len(value)
    return float(value) if spec.type in ("integer", "number") else 0.0


_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "integer": ("a whole number", (int,)), "number": ("a number", (int, float)), "boolean": ("true or false", (bool,)),
    "string": ("a text", (str,)),
}


def _bound(spec: ParamSpec, bound: Any) -> float:
    return float(bound) if spec.type == "string" else _size(spec, bound)


def _is_bound(spec: ParamSpec, bound: Any) -> bool:
    try:
        if spec.type == "string":
            return type(bound) is int and bound >= 0
        _size(spec, bound)
    except ValueError:
        return False
    return True


def _takes(spec: ParamSpec, value: Value) -> bool:
    try:
        accept(spec, value)
    except ValueError:
        return False
    return True
