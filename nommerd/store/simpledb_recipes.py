"""Recipes in SimpleDB: long texts under their hash. When a recipe was stored is set anew before each job that names it, and a
recipe is deleted only if that time is still the one that was found stale."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from urllib.parse import unquote

from nommerd.errors import InfrastructureError
from nommerd.store.base import StoreUnavailable
from nommerd.store.simpledb_domain import Domain, Mismatch
from nommerd.store.simpledb_items import Torn, item_name
from nommerd.store.simpledb_select import RECIPE, compared, named, seconds_padded
from nommerd.store.simpledb_texts import TRIES, Texts

STORED = "recipe_stored"


class Recipes:
    """The recipes of a domain; see Store for what the methods promise."""

    def __init__(self, domain: Domain, texts: Texts, grace_seconds: float) -> None:
        self._domain = domain
        self._texts = texts
        self._grace = grace_seconds

    def put(self, recipe_hash: str, document: str) -> None:
        item = item_name("recipe", recipe_hash)
        for _ in range(TRIES):
            now = time.time()
            head = self._domain.get(item)
            if STORED not in head:
                return self._texts.put(item, json.dumps(document, ensure_ascii=False), {STORED: seconds_padded(now)})
            if head[STORED] >= seconds_padded(now - self._grace / 2):
                return None
            with suppress(Mismatch):  # somebody was first, or deleted it
                # a fresh time keeps it through the grace that its job needs
                return self._domain.put(item, {STORED: seconds_padded(now)}, expected=(STORED, head[STORED]))
        raise StoreUnavailable("A recipe kept being stored and deleted.")

    def get(self, recipe_hash: str) -> str:
        try:
            found = self._texts.get(item_name("recipe", recipe_hash))
            if found is not None:
                return str(json.loads(found))
        except (Torn, ValueError):
            raise InfrastructureError("internal.bad_recipe", "A stored recipe is not whole.", retryable=False) from None
        raise LookupError(recipe_hash)

    def delete_unnamed(self) -> None:
        """Delete recipes past their grace that no job names: some at each call, in turn."""
        for row in self._texts.stale(STORED):
            recipe_hash = unquote(row.name.split("/")[1])
            if not self._is_named(recipe_hash):
                with suppress(Mismatch):  # stored anew meanwhile: its job comes
                    self._domain.delete(row.name, expected=(STORED, row.attributes[STORED]))

    def wipe(self) -> None:
        self._domain.delete_all(STORED)

    def _is_named(self, recipe_hash: str) -> bool:
        return any(self._domain.select("itemName()", compared(RECIPE, "=", named(recipe_hash)), 1))
