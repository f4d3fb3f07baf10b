"""Reading an index of the DynamoDB table: the partitions of one index merged in order, a piece at a time.

An index shows the table as it was some moments ago. So what it names is a hint: whoever reads one looks at the records
themselves before acting (nommerd.store.dynamodb does), and drops what no longer fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from nommerd.store.dynamodb_calls import PAGE_MAX, Table
from nommerd.store.dynamodb_items import Item
from nommerd.store.dynamodb_table import INDEXES

FIRST, LAST = "0", ":"  # before and behind every sort key: they begin with digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Part of an index: these partitions, sort keys from `lowest` to `highest`, both included, newest first or oldest."""

    index: str
    partitions: Sequence[str]
    lowest: str = FIRST
    highest: str = LAST
    newest_first: bool = False
    condition: str | None = None  # a filter on the entries, with its names and values
    names: dict[str, str] = field(default_factory=dict)
    values: Item = field(default_factory=dict)


class Walk:
    """The entries of a range in order, read as they are asked for; an entry has the keys of table and index."""

    def __init__(self, table: Table, part: Range, expected: int) -> None:
        """`expected`: about how many entries will be asked for."""
        sort_key = INDEXES[part.index][1]
        partitions = part.partitions if part.lowest <= part.highest else ()  # AWS refuses bounds that are crossed
        answers = [table.pages("query", min(expected, PAGE_MAX), **_query(part, name)) for name in partitions]
        firsts: list[dict[str, Any]] = table.side_by_side(lambda pages: next(pages, {}), answers)
        runs = [self._run(first, rest) for first, rest in zip(firsts, answers, strict=True)]
        self._entries = heapq.merge(*runs, key=lambda entry: entry[sort_key]["S"], reverse=part.newest_first)

    def take(self, count: int) -> list[Item]:
        """The next entries, fewer only at the end."""
        return list(islice(self._entries, count))

    @staticmethod
    def _run(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[Item]:
        yield from first.get("Items", ())
        for answer in rest:
            yield from answer.get("Items", ())


def count(table: Table, part: Range) -> int:
    """How many entries are in the range."""
    return sum(table.side_by_side(lambda name: _count(table, part, name), part.partitions))


def _count(table: Table, part: Range, partition: str) -> int:
    pages = table.pages("query", None, Select="COUNT", **_query(part, partition))
    return sum(answer["Count"] for answer in pages)


def _query(part: Range, partition: str) -> dict[str, Any]:
    """The arguments of a Query on one partition."""
    names = {"#in": INDEXES[part.index][0], **part.names}
    values: Item = {":in": {"S": partition}, **part.values}
    keys = "#in = :in"
    if (part.lowest, part.highest) != (FIRST, LAST):
        names["#at"] = INDEXES[part.index][1]
        values |= {":lowest": {"S": part.lowest}, ":highest": {"S": part.highest}}
        keys += " AND #at BETWEEN :lowest AND :highest"
    query = {"IndexName": part.index, "KeyConditionExpression": keys, "ExpressionAttributeNames": names,
             "ExpressionAttributeValues": values, "ScanIndexForward": not part.newest_first}
    if part.condition is not None:
        query["FilterExpression"] = part.condition
    return query
