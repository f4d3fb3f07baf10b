"""What an expression of Prometheus asks for, and what a scrape gives: held against each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

OURS = {"instance", "job"}  # labels that Prometheus adds itself
VARIABLES = {"$__rate_interval": "5m", "$project": ".*"}  # of Grafana
PLAIN = re.compile(r"[A-Za-z_|]+")  # a matcher that lists values


@dataclass
class Scraped:
    """By series: the values of each of its labels."""

    series: dict[str, dict[str, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def add(self, text: str) -> None:
        """One answer, in Prometheus' own text. Fails where that cannot be read."""
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = self.series[sample.name]
                for name, value in sample.labels.items():
                    labels[name].add(value)


def faults(expression: str, scraped: Scraped) -> list[str]:
    """What the expression names that is not there; ValueError where it cannot be parsed."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    parsed = promql_parser.parse(expression)
    selectors = list(_selectors(parsed))
    found = [fault for selector in selectors for fault in _missing(selector, scraped)]
    return found + list(_grouped(parsed, scraped))


def labels_of(expression: str, scraped: Scraped) -> set[str]:
    """Labels that what it names has."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    names = {selector.name for selector in _selectors(promql_parser.parse(expression))}
    return OURS | {label for name in names for label in scraped.series.get(name, {})}


def _selectors(node: Any) -> Iterator[Any]:
    return (one for one in _nodes(node) if isinstance(one, promql_parser.VectorSelector))


def _nodes(node: Any) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(node, lambda one: found.append(getattr(one, "vector_selector", None) or one))
    return found


def _missing(selector: Any, scraped: Scraped) -> Iterator[str]:
    if selector.name == "up":
        return  # Prometheus' own
    labels = scraped.series.get(selector.name)
    if labels is None:
        yield f"no {selector.name}"
        return
    for matcher in selector.matchers.matchers:
        if matcher.name not in labels and matcher.name not in OURS:
            yield f"no label {matcher.name} of {selector.name}"
        elif matcher.name not in OURS and PLAIN.fullmatch(matcher.value):
            yield from (f"no {matcher.name}={value} of {selector.name}"
                        for value in set(matcher.value.split("|")) - labels[matcher.name])


def _grouped(parsed: Any, scraped: Scraped) -> Iterator[str]:
    for node in _nodes(parsed):
        if not isinstance(node, promql_parser.AggregateExpr) or node.modifier is None:
            continue
        names = {selector.name for selector in _selectors(node.expr)}
        for label in node.modifier.labels:
            yield from (f"no label {label} of {name}" for name in names
                        if label not in OURS and label not in scraped.series.get(name, {}))


def all_faults(expressions: Iterable[str], scraped: Scraped) -> list[str]:
    """Of all of them, each with its expression."""
    return [f"{fault}: {expression}" for expression in expressions for fault in faults(expression, scraped)]
