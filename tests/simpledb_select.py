"""SimpleDB's select expressions, parsed and evaluated as Amazon's Developer Guide says, in the strictest reading of it.

    select * | itemName() | count(*) | attribute, …
    from domain [where …] [order by attribute | itemName() [asc | desc]] [limit n]

Values are compared as UTF-8. A predicate is about one attribute: comparisons of the same attribute that are joined by `and`
and `or` must hold for one and the same value of it; predicates of several attributes, and those joined by `intersection`,
may each hold for another. `intersection` binds least, then `or`, `and`, `not`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

Attributes = frozenset[tuple[str, str]]  # an item: names and values
ITEM_NAME = "itemName()"  # as an attribute (none may be called so here): its one value is the item's name
LIMIT_DEFAULT = 100
LIMIT_MAX = 2500
COMPARISONS_MAX = 20  # in one expression
ATTRIBUTES_MAX = 20
RESERVED = frozenset({"or", "and", "not", "from", "where", "select", "like", "null", "is", "order", "by", "asc", "desc", "in",
                      "between", "intersection", "limit", "every"})


class SelectError(Exception):
    """What Amazon answers with HTTP status 400."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Item(NamedTuple):
    """What an expression is evaluated on."""

    name: str
    attributes: Attributes

    def values(self, attribute: str) -> list[str]:
        if attribute == ITEM_NAME:
            return [self.name]
        return sorted(value for name, value in self.attributes if name == attribute)


@dataclass(frozen=True)
class Comparison:
    """One test of an attribute's values; `null`: the test is for its absence."""

    attribute: str
    holds: Callable[[str], bool]
    every: bool = False
    null: bool = False

    def matches(self, item: Item) -> bool:
        values = item.values(self.attribute)
        if self.null:
            return not values
        return bool(values) and (all if self.every else any)(map(self.holds, values))


@dataclass(frozen=True)
class Combined:
    """`and`, `or` or `intersection` of several expressions."""

    word: str
    parts: tuple[Expression, ...]

    def matches(self, item: Item) -> bool:
        if self.word == "or":
            return any(part.matches(item) for part in self.parts)
        if self.word == "intersection":
            return all(part.matches(item) for part in self.parts)
        about = {attribute: [part for part in self.parts if _predicate_attribute(part) == attribute]
                 for attribute in map(_predicate_attribute, self.parts) if attribute is not None}
        return (all(part.matches(item) for part in self.parts if _predicate_attribute(part) is None)
                and all(any(all(part.holds(value) for part in parts) for value in item.values(attribute))
                        for attribute, parts in about.items()))

    def holds(self, value: str) -> bool:
        """For a predicate: whether this one value meets it."""
        return (any if self.word == "or" else all)(part.holds(value) for part in self.parts)

    @property
    def predicate_attribute(self) -> str | None:
        """The attribute that all of it is about, if it is one predicate."""
        attributes = {_predicate_attribute(part) for part in self.parts}
        return attributes.pop() if self.word != "intersection" and len(attributes) == 1 else None


@dataclass(frozen=True)
class Not:
    """The items that do not match."""

    part: Expression

    def matches(self, item: Item) -> bool:
        return not self.part.matches(item)

    def holds(self, value: str) -> bool:
        raise AssertionError("no predicate")


Expression = Comparison | Combined | Not


def _predicate_attribute(part: Expression) -> str | None:
    if isinstance(part, Comparison):
        return None if part.every or part.null else part.attribute
    return part.predicate_attribute if isinstance(part, Combined) else None


@dataclass(frozen=True)
class Select:
    """A parsed expression. `output`: "*", "count(*)", "itemName()" or the names of attributes."""

    output: str | tuple[str, ...]
    domain: str
    where: Expression | None = None
    order: str | None = None
    descending: bool = False
    limit: int = LIMIT_DEFAULT

    def matches(self, item: Item) -> bool:
        found = self.where is None or self.where.matches(item)
        return found and (self.order is None or bool(item.values(self.order)))

    def sort_value(self, item: Item) -> str:
        """What the item is sorted by; nothing where no order is asked for."""
        if self.order is None:
            return ""
        return (max if self.descending else min)(item.values(self.order))


def parse(expression: str) -> Select:
    """Raises SelectError."""
    return _Parser(expression).select()


# --- words -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"""
    \s*(?:
      (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<quoted>`(?:[^`]|``)+`)
    | (?P<function>(?:itemName\s*\(\s*\)|count\s*\(\s*\*\s*\)))
    | (?P<word>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<number>[0-9]+)
    | (?P<sign><=|>=|!=|[=<>(),*])
    )""", re.VERBOSE | re.IGNORECASE)


class Token(NamedTuple):
    kind: str  # text, name, function, word (reserved), number, sign, end
    value: str


def tokens(expression: str) -> list[Token]:
    """Raises SelectError where the text is none of ours."""
    found, at = [], 0
    expression = expression.rstrip()
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise invalid()
        found.append(_token(str(match.lastgroup), match[str(match.lastgroup)]))
        at = match.end()
    return [*found, Token("end", "")]


def _token(kind: str, raw: str) -> Token:
    if kind in ("text", "quoted"):
        return Token("text" if kind == "text" else "name", raw[1:-1].replace(raw[0] * 2, raw[0]))
    if kind == "function":
        return Token(kind, "count(*)" if raw[0] in "cC" else ITEM_NAME)
    if kind == "word":
        return Token("word", raw.lower()) if raw.lower() in RESERVED else Token("name", raw)
    return Token(kind, raw)


def invalid(message: str = "The specified query expression syntax is not valid.") -> SelectError:
    return SelectError("InvalidQueryExpression", message)


# --- grammar -----------------------------------------------------------------------------------------------------


class _Parser:
    def __init__(self, expression: str) -> None:
        self._tokens = tokens(expression)
        self._at = 0
        self._comparisons: list[Comparison] = []
        self._tests = 0

    def select(self) -> Select:
        self._word("select")
        output = self._output()
        self._word("from")
        found = Select(output, self._name())
        if self._accept("word", "where"):
            found = replace(found, where=self._combined("intersection", self._or))
        if self._accept("word", "order"):
            self._word("by")
            attribute = self._attribute()
            descending = self._accept("word", "desc") is not None
            if not descending:
                self._accept("word", "asc")
            found = replace(found, order=attribute, descending=descending)
        if self._accept("word", "limit"):
            found = replace(found, limit=self._limit())
        if self._next.kind != "end":
            raise invalid()
        self._check(found)
        return found

    def _check(self, found: Select) -> None:
        if self._tests > COMPARISONS_MAX:
            raise SelectError("InvalidNumberValueTests", "Too many value tests per predicate in the query expression.")
        if len({comparison.attribute for comparison in self._comparisons}) > ATTRIBUTES_MAX:
            raise SelectError("InvalidNumberPredicates", "Too many predicates in the query expression.")
        about = [comparison for comparison in self._comparisons if comparison.attribute == found.order]
        if found.order is not None and (not about or any(comparison.null for comparison in about)):
            raise SelectError("InvalidSortExpression", "The sort attribute must be present in at least one of the predicates, "
                              "and the predicate cannot contain the is null operator.")

    def _output(self) -> str | tuple[str, ...]:
        if self._accept("sign", "*"):
            return "*"
        if function := self._accept("function"):
            return function
        names = [self._name()]
        while self._accept("sign", ","):
            names.append(self._name())
        return tuple(names)

    def _limit(self) -> int:
        limit = int(self._expect("number"))
        if not 1 <= limit <= LIMIT_MAX:
            raise invalid()
        return limit

    def _or(self) -> Expression:
        return self._combined("or", lambda: self._combined("and", self._not))

    def _combined(self, word: str, part: Callable[[], Expression]) -> Expression:
        parts = [part()]
        while self._accept("word", word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Combined(word, tuple(parts))

    def _not(self) -> Expression:
        if self._accept("word", "not"):
            return Not(self._not())
        if self._accept("sign", "("):
            inner = self._combined("intersection", self._or)
            self._expect("sign", ")")
            return inner
        found = self._comparison()
        self._comparisons.append(found)
        return found

    def _comparison(self) -> Comparison:
        every = self._accept("word", "every") is not None
        if every:
            self._expect("sign", "(")
        attribute = self._attribute()
        if every:
            self._expect("sign", ")")
        if self._accept("word", "is"):
            negated = self._accept("word", "not") is not None
            self._word("null")
            self._tests += 1
            return Comparison(attribute, lambda value: True, null=not negated)
        return Comparison(attribute, self._test(), every)

    def _test(self) -> Callable[[str], bool]:
        if self._accept("word", "between"):
            low = self._value()
            self._word("and")
            high = self._value()
            return lambda value: low <= value <= high
        if self._accept("word", "in"):
            self._expect("sign", "(")
            values = {self._value()}
            while self._accept("sign", ","):
                values.add(self._value())
            self._expect("sign", ")")
            return lambda value: value in values
        if self._accept("word", "not"):
            self._word("like")
            pattern = _pattern(self._value())
            return lambda value: pattern.fullmatch(value) is None
        if self._accept("word", "like"):
            wanted = _pattern(self._value())
            return lambda value: wanted.fullmatch(value) is not None
        return self._sign_test()

    def _sign_test(self) -> Callable[[str], bool]:
        sign = self._expect("sign")
        if sign not in _SIGNS:
            raise invalid()
        compare, constant = _SIGNS[sign], self._value()
        return lambda value: compare(value, constant)

    def _value(self) -> str:
        """A constant: each one counts as a test."""
        self._tests += 1
        return self._expect("text")

    def _attribute(self) -> str:
        if self._next == Token("function", ITEM_NAME):
            return self._expect("function")
        return self._name()

    def _name(self) -> str:
        return self._expect("name")

    def _word(self, word: str) -> None:
        self._expect("word", word)

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _expect(self, kind: str, value: str | None = None) -> str:
        found = self._accept(kind, value)
        if found is None:
            raise invalid()
        return found

    def _accept(self, kind: str, value: str | None = None) -> str | None:
        token = self._next
        if token.kind != kind or value not in (None, token.value):
            return None
        self._at += 1
        return token.value


# Python compares by code point, which is the order of the UTF-8 bytes.
_SIGNS: dict[str, Callable[[str, str], bool]] = {
    "=": lambda value, constant: value == constant, "!=": lambda value, constant: value != constant,
    "<": lambda value, constant: value < constant, "<=": lambda value, constant: value <= constant,
    ">": lambda value, constant: value > constant, ">=": lambda value, constant: value >= constant,
}


def _pattern(like: str) -> re.Pattern[str]:
    """`%` stands for any text, at the beginning or the end."""
    return re.compile(".*".join(map(re.escape, like.split("%"))), re.DOTALL)
