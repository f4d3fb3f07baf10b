"""YAML text as a tree that knows where everything stands.

The YAML 1.2 core schema on top of libyaml's events: `NO`, `on`, `1:30`, `16:9`, `017` and dates stay the text the operator
wrote. Aliases, anchors, merge keys, tags, duplicate keys and several documents in one file are refused.
The tree is built from the events with a stack of our own: PyYAML's composer recurses (60 KB of `[` crash it), and its
constructors let a merge key of 400 bytes work for half a minute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from nommerd.errors import ConfigError, NommerdError
from nommerd.pipeline.tree import DEPTH_MAX, FAULTS_MAX, Faults, Node, Scalar, check_text, in_range

BYTES_MAX = 64 * 1024
TOO_DEEP = f"Nested more than {DEPTH_MAX} deep."
_WRITE_OUT = "Write the value out; quote a text that starts with {}."
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}
# What YAML does not let stand in a stream.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def load_yaml(text: str | bytes, file: str, raises: type[NommerdError] = ConfigError, family: str = "recipe") -> Node:
    """The document in `text`, which came from `file` (a name for messages; nothing is opened).

    Raises `raises`, or ManyErrors of them, with the code FAMILY.bad_yaml and file:line:column in `place`.
    """
    faults = Faults(raises, family)
    content = _decoded(text, file, faults)
    faults.check()
    builder = _Builder(file, faults)
    try:
        for event in yaml.parse(content, Loader=_Loader):
            builder.take(event)
            if builder.done:
                break
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or "this is not YAML"
        context = getattr(error, "context", None)
        said = f"YAML: {problem}{f' ({context})' if context else ''}."
        if "nesting depth" in problem:  # libyaml's own bound: its scanner is ahead of what it parses
            said = TOO_DEEP
        faults.add("bad_yaml", said, _advice(problem), _place(file, mark))
    except (ValueError, OverflowError):  # escapes beyond Unicode, with the parser in Python
        faults.add("bad_yaml", "YAML: a character that does not exist.", place=_place(file, None))
    faults.check()
    if builder.root is None:
        faults.add("bad_yaml", "The document is empty.", "It must be a mapping, of `key: value` lines.", _place(file, None))
        faults.check()
    assert builder.root is not None
    return builder.root


def _decoded(text: str | bytes, file: str, faults: Faults) -> str:
    """The text, checked for size, encoding and characters that cannot stand in YAML."""
    try:
        body = text.encode() if isinstance(text, str) else text
        content = body[: BYTES_MAX + 1].decode() if len(body) <= BYTES_MAX else ""
    except UnicodeError as error:
        before = text[: error.start] if isinstance(error, UnicodeEncodeError | UnicodeDecodeError) else ""
        shown = before.decode(errors="replace") if isinstance(before, bytes) else str(before)
        faults.add("bad_yaml", "Not UTF-8.", "Save the file as UTF-8.", _place_after(file, shown))
        return ""
    if len(body) > BYTES_MAX:
        faults.add("bad_yaml", f"More than {BYTES_MAX} bytes.", "Split it.", f"{file}:1:1")
        return ""
    content = content.removeprefix("\ufeff")
    if found := _UNPRINTABLE.search(content):
        faults.add("bad_yaml", f"A character that cannot stand in YAML (U+{ord(found[0]):04X}).", "Remove it.",
                   _place_after(file, content[: found.start()]))
    return content


def _place_after(file: str, before: str) -> str:
    lines = before.split("\n")
    return f"{file}:{len(lines)}:{len(lines[-1]) + 1}"


def _place(file: str, mark: Any) -> str:
    return f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{file}:1:1"


def _advice(problem: str) -> str:
    if "tab" in problem or "cannot start any token" in problem:
        return "Indent with spaces; quote a value that starts with %, @, ` or a tab."
    if "mapping values are not allowed" in problem:
        return "Quote a value that holds a colon followed by a space, and check the indentation."
    if "did not find expected" in problem:
        return "Check the indentation, and that brackets and quotes are closed."
    return ""


@dataclass(slots=True)
class _Open:
    """A collection whose end was not read yet."""

    value: dict[str, Node] | list[Node]
    place: str
    key_place: str
    key: str | None = None  # a mapping's key whose value comes next
    next_key_place: str = ""
    expects_key: bool = False


@dataclass(slots=True)
class _Builder:
    """Builds the tree from events. Goes on after a fault where the rest still makes sense."""

    file: str
    faults: Faults
    root: Node | None = None
    done: bool = False
    _stack: list[_Open] = field(default_factory=list)
    _skipping: int = 0  # depth inside a collection that was used as a key

    def take(self, event: Any) -> None:
        place = _place(self.file, event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent):
            self._document(event, place)
        elif isinstance(event, yaml.AliasEvent):
            self._fault("An alias (*) is not read here.", _WRITE_OUT.format("*"), place)
            self._put(Node(None, place, place), None)
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, place)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()

    def _fault(self, message: str, hint: str, place: str) -> None:
        self.faults.add("bad_yaml", message, hint, place)
        self.done = self.done or len(self.faults.errors) >= FAULTS_MAX

    def _document(self, event: Any, place: str) -> None:
        if self.root is not None:
            self._fault("A second document begins here.", "One file holds one document.", place)
            self.done = True
        elif event.tags:
            self._fault("A %TAG directive is not read here.", "Remove it.", place)

    def _node(self, event: Any, place: str) -> None:
        if event.anchor is not None:
            self._fault("An anchor (&) is not read here.", _WRITE_OUT.format("&"), place)
        if event.tag is not None:
            self._fault("A tag (!) is not read here.", "Remove it; quote a text that starts with !.", place)
        if isinstance(event, yaml.ScalarEvent):
            if self._expects_key():
                self._key(event, place)
            else:
                self._put(Node(self._scalar(event, place), place, place), None)
            return
        if len(self._stack) + self._skipping >= DEPTH_MAX:
            self._fault(TOO_DEEP, "", place)
            self.done = True
        elif self._expects_key() or self._skipping:
            if not self._skipping:
                self._fault("A list or mapping as a key.", "Keys are names; quote a text that starts with [ or {.", place)
            self._skipping += 1
        else:
            is_map = isinstance(event, yaml.MappingStartEvent)
            key_place = self._stack[-1].next_key_place if self._stack and self._stack[-1].key is not None else place
            self._stack.append(_Open({} if is_map else [], place, key_place, expects_key=is_map))

    def _expects_key(self) -> bool:
        return bool(self._stack) and self._stack[-1].expects_key and not self._skipping

    def _key(self, event: Any, place: str) -> None:
        top = self._stack[-1]
        assert isinstance(top.value, dict)
        if event.implicit[0] and event.value == "<<":
            self._fault("A merge key (<<) is not read here.", "Write the values out.", place)
        elif event.value == "":
            self._fault("A key without a name.", "Write `name: value`.", place)
        elif event.value in top.value:
            first = top.value[event.value].key_place
            self._fault(f"The key {event.value!r} stands here a second time.", f"The first is at {first}.", place)
        check_text(event.value, place, self.faults, "bad_yaml")
        top.key, top.next_key_place, top.expects_key = event.value, place, False

    def _put(self, node: Node, key_place: str | None) -> None:
        if self._skipping:
            return
        if not self._stack:
            self.root = node
            return
        top = self._stack[-1]
        if isinstance(top.value, list):
            top.value.append(node)
        elif top.expects_key:  # an alias as a key, reported already: its value is skipped under a name nobody writes
            top.key, top.next_key_place, top.expects_key = "\0alias", node.place, False
        else:
            assert top.key is not None
            top.value.setdefault(top.key, Node(node.value, node.place, top.next_key_place))
            top.key, top.expects_key = None, True

    def _close(self) -> None:
        if self._skipping:
            self._skipping -= 1
            if not self._skipping:  # the value of that key is read, and dropped
                self._stack[-1].key, self._stack[-1].expects_key = "\0key", False
            return
        top = self._stack.pop()
        self._put(Node(top.value, top.place, top.key_place), top.key_place)

    def _scalar(self, event: Any, place: str) -> Scalar:
        text: str = event.value
        if not event.implicit[0]:
            check_text(text, place, self.faults, "bad_yaml")
            return text
        try:
            return plain_scalar(text)
        except ValueError as error:
            self._fault(str(error), "Quote it if it is meant as text.", place)
            return None


def plain_scalar(text: str) -> Scalar:
    """What an unquoted scalar stands for. Raises ValueError for numbers that are not finite or out of range."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a number that can be used here.")
    for pattern, read in _NUMBERS:
        if pattern.fullmatch(text) and not _LEADING_ZERO.fullmatch(text):
            number = read(text) if len(text) < 400 else math.inf
            if not in_range(number):
                raise ValueError("The number is out of range.")
            return number
    return text


_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (_INTEGER, int), (_OCTAL, lambda text: int(text, 8)), (_HEXADECIMAL, lambda text: int(text, 16)), (_FLOAT, float),
)
