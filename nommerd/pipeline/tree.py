"""A document as a tree that knows where everything stands, and what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nommerd.errors import ConfigError, ManyErrors, NommerdError

DEPTH_MAX = 64
FAULTS_MAX = 50  # nobody reads on after so many
INTEGER_MAX = 2**63 - 1
STEP_MAX = 80  # characters of a key in a path
WORDS_MAX = 1000  # characters of a message: keys and values in it are whoever wrote the document's

Scalar = str | int | float | bool | None
_LINE = re.compile(r":([0-9]+):([0-9]+)$")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")  # by an escape, or JSON


@dataclass(frozen=True, slots=True)
class Node:
    """A value, its parts, and where it stands: `file:line:column`, or the path to it in a JSON body.

    `key_place` is where its key stands, for a value in a mapping.
    """

    value: Scalar | dict[str, Node] | list[Node]
    place: str
    key_place: str

    def plain(self) -> Any:
        """The value without places, of dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def count(self) -> int:
        """How many values it holds, itself and those in its parts included."""
        parts = self.value.values() if isinstance(self.value, dict) else self.value if isinstance(self.value, list) else ()
        return 1 + sum(part.count() for part in parts)

    def get(self, *path: str | int) -> Node | None:
        """The node under this path, None where there is none."""
        node: Node | None = self
        for step in path:
            node = node._child(step) if node else None
        return node

    def _child(self, step: str | int) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(step) if isinstance(step, str) else None
        if isinstance(self.value, list) and isinstance(step, int):
            return self.value[step] if 0 <= step < len(self.value) else None
        return None

    def replace(self, value: Scalar | dict[str, Node] | list[Node]) -> Node:
        """Another value in the same place."""
        return Node(value, self.place, self.key_place)


class Faults:
    """Collects what is wrong with one document. `raises` says whose document it is: ConfigError for what the operator
    wrote, InputError for what a caller sent."""

    def __init__(self, raises: type[NommerdError] = ConfigError, family: str = "recipe") -> None:
        self.raises = raises
        self.family = family
        self.errors: list[NommerdError] = []

    def add(self, code: str, message: str, hint: str = "", place: str | None = None) -> None:
        """One fault; `code` without its family. The same fault at the same place counts once."""
        error = self.raises(f"{self.family}.{code}", clipped(message, WORDS_MAX), clipped(hint, WORDS_MAX), place=place)
        if len(self.errors) < FAULTS_MAX and str(error) not in map(str, self.errors):
            self.errors.append(error)

    def sort(self) -> None:
        """In the order of the document, where places have lines."""
        self.errors.sort(key=lambda error: [(int(line), int(column)) for line, column in _LINE.findall(error.place or "")])

    def check(self) -> None:
        """Raise what was found: the error itself if it is one, ManyErrors if there are more, from top to bottom."""
        self.sort()
        if self.errors:
            raise self.errors[0] if len(self.errors) == 1 else ManyErrors(self.errors)


def walk(node: Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Node]]:
    """Every node below this one with its path, this one first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from walk(child, (*path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from walk(child, (*path, index))


def load_value(value: Any, raises: type[NommerdError] = ConfigError, family: str = "recipe", root: str = "") -> Node:
    """A tree from parsed JSON (dicts, lists, scalars), under the same limits; places are paths below `root`."""
    faults = Faults(raises, family)
    node = _from_value(value, root, 0, faults)
    faults.check()
    return node


def joined(path: str, step: str | int) -> str:
    """The path one step further: `stages[1].ffmpeg`."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    step = clipped(step, STEP_MAX)
    return f"{path}.{step}" if path else step


def clipped(text: str, characters: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _from_value(value: Any, path: str, depth: int, faults: Faults) -> Node:
    if depth > DEPTH_MAX:
        faults.add("bad_value", f"Nested more than {DEPTH_MAX} deep.", place=path)
        return Node(None, path, path)
    if isinstance(value, dict):
        for key in value:
            check_text(str(key), path, faults, "bad_value")
        return Node({str(k): _from_value(v, joined(path, str(k)), depth + 1, faults) for k, v in value.items()}, path, path)
    if isinstance(value, list | tuple):
        return Node([_from_value(v, joined(path, i), depth + 1, faults) for i, v in enumerate(value)], path, path)
    if isinstance(value, str):
        check_text(value, path, faults, "bad_value")
    elif isinstance(value, int | float) and not in_range(value):
        faults.add("bad_value", "A number out of range.", place=path)
    elif value is not None and not isinstance(value, int | float):
        faults.add("bad_value", f"{type(value).__name__} is no JSON value.", place=path)
    return Node(value, path, path)


def in_range(number: int | float) -> bool:
    """Whether a number is finite, and an integer not larger than 64 bits hold."""
    return math.isfinite(number) if isinstance(number, float) else abs(number) <= INTEGER_MAX


def check_text(text: str, place: str, faults: Faults, code: str) -> None:
    """Report a control character."""
    if found := _CONTROL.search(text):
        faults.add(code, f"A control character (U+{ord(found[0]):04X}) in a text.", "Remove it.", place)
