"""Recipes in SimpleDB. A recipe is an item; a very long one is several, and only the one written last makes it whole.

The head holds the document, or names the generation that does: items of their own, written before the head. A writer that
stops halfway leaves a generation that no head names, and nobody reads it. When a recipe was stored is set anew before each
job that names it, and a recipe is deleted only if that time is still the one that was found stale.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from itertools import islice
from urllib.parse import unquote

from nommerd.errors import InfrastructureError
from nommerd.job import new_id
from nommerd.store.base import StoreUnavailable
from nommerd.store.simpledb_domain import Attributes, Domain, Mismatch, Row
from nommerd.store.simpledb_items import Torn, item_name, joined, parted, split, xml_safe
from nommerd.store.simpledb_select import NEVER, RECIPE, compared, named, quoted_name, seconds_padded, within

STORED = "recipe_stored"  # of a head
GENERATION = "recipe_generation"
GROUPS = "recipe_groups"  # items of the generation; 0: the head holds the document
WRITTEN = "recipe_written"  # of an item of a generation
GROUP_PARTS = 100  # of one item; SimpleDB takes 256 pairs, and requests of 1 MB
CHECKED = 100  # recipes looked at in one go
TRIES = 4  # while others store and delete the same recipe


class Recipes:
    """The recipes of a domain; see Store for what the methods promise."""

    def __init__(self, domain: Domain, grace_seconds: float) -> None:
        self._domain = domain
        self._grace = grace_seconds
        self._behind: dict[str, str | None] = {}  # how far the last look at old items came, where it did not see all

    def put(self, recipe_hash: str, document: str) -> None:
        item = item_name("recipe", recipe_hash)
        for _ in range(TRIES):
            now = time.time()
            head = self._domain.get(item)
            if STORED not in head:
                return self._write(recipe_hash, document, seconds_padded(now))
            if head[STORED] >= seconds_padded(now - self._grace / 2):
                return None
            with suppress(Mismatch):  # somebody was first, or deleted it
                # a fresh time keeps it through the grace that its job needs
                return self._domain.put(item, {STORED: seconds_padded(now)}, expected=(STORED, head[STORED]))
        raise StoreUnavailable("A recipe kept being stored and deleted.")

    def get(self, recipe_hash: str) -> str:
        for _ in range(TRIES):
            head = self._domain.get(item_name("recipe", recipe_hash))
            if STORED not in head:
                raise LookupError(recipe_hash)
            try:
                groups = [self._domain.get(item) for item in _groups(recipe_hash, head)] or [head]
                return str(json.loads("".join(map(joined, groups))))
            except (Torn, KeyError, ValueError):  # unless it was deleted while we read
                continue
        raise InfrastructureError("internal.bad_recipe", "A stored recipe is not whole.", retryable=False)

    def delete_unnamed(self) -> None:
        """Delete recipes past their grace that no job names, then the items that no head names: some at each call, in turn."""
        for row in self._stale(STORED):
            recipe_hash = unquote(row.name.split("/")[1])
            if not self._is_named(recipe_hash):
                with suppress(Mismatch):  # stored anew meanwhile: its job comes
                    self._domain.delete(row.name, expected=(STORED, row.attributes[STORED]))
        for row in self._stale(WRITTEN):
            _, escaped, generation, _ = row.name.split("/")
            head = self._domain.get(f"recipe/{escaped}")
            if head.get(GENERATION) != generation:
                self._domain.delete(row.name)

    def wipe(self) -> None:
        for attribute in (STORED, WRITTEN):
            self._domain.delete_all(attribute)

    def _write(self, recipe_hash: str, document: str, now: str) -> None:
        pieces = split(xml_safe(json.dumps(document, ensure_ascii=False)))
        head = {STORED: now, GENERATION: NEVER, GROUPS: "0"}
        if len(pieces) <= GROUP_PARTS:
            head |= parted(pieces)
        else:
            head |= {GENERATION: new_id(), GROUPS: str(-(-len(pieces) // GROUP_PARTS))}
            for number, item in enumerate(_groups(recipe_hash, head)):
                group = pieces[number * GROUP_PARTS:][:GROUP_PARTS]
                self._domain.put(item, {WRITTEN: now, **parted(group)})
        self._domain.put(item_name("recipe", recipe_hash), head)

    def _stale(self, time_name: str) -> list[Row]:
        """Items past their grace, by their time; the next call goes on behind them, and begins anew after the last."""
        before = seconds_padded(time.time() - self._grace + 0.000001)
        where = within(time_name, "", before, behind=self._behind.get(time_name))
        rows = list(islice(self._domain.select(quoted_name(time_name), where, CHECKED), CHECKED))
        self._behind[time_name] = rows[-1].attributes[time_name] if len(rows) == CHECKED else None
        return rows

    def _is_named(self, recipe_hash: str) -> bool:
        return any(self._domain.select("itemName()", compared(RECIPE, "=", named(recipe_hash)), 1))


def _groups(recipe_hash: str, head: Attributes) -> list[str]:
    """The items of the generation that a head names, none where the document is in the head."""
    return [item_name("recipe", recipe_hash, head[GENERATION], f"{number:04d}") for number in range(int(head[GROUPS]))]
