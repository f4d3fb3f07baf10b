"""Recipes of submissions: each resolved once, and stored once in a while."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from nommerd.api.models import Submission
from nommerd.secrets import public_uri
from nommerd.store.base import RECIPE_GRACE_SECONDS, Store

if TYPE_CHECKING:
    from nommerd.catalog import Catalog
    from nommerd.pipeline.recipe import Recipe

RECIPES_KEPT = 256
RECIPE_STORED_SECONDS = RECIPE_GRACE_SECONDS / 4  # how long this process trusts that a recipe it stored is there


class Recipes:
    """Resolves what was asked for once, and stores each recipe once in a while: recipes are content-addressed.

    `catalog_of` gives the catalog of a project as it is now; a catalog never changes, another one takes its place."""

    def __init__(self, store: Store, catalog_of: Callable[[str], Catalog],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._catalog_of = catalog_of
        self._clock = clock
        self._resolved: OrderedDict[tuple[Catalog, str], Recipe] = OrderedDict()
        self._stored: dict[str, float] = {}

    def get(self, project: str, wanted: Submission) -> Recipe:
        """The recipe a submission asks for. Raises NommerdError recipe.*."""
        catalog = self._catalog_of(project)
        given = public_inputs(wanted)
        counts = sorted((name, len(items)) for name, items in given.items())
        known = (catalog, json.dumps([wanted.preset, wanted.pipeline, wanted.params, counts], sort_keys=True))
        recipe = self._resolved.get(known)
        if recipe is None:
            recipe = catalog.resolve(preset=wanted.preset, pipeline=wanted.pipeline, params=wanted.params, inputs=given)
            self._resolved[known] = recipe
            if len(self._resolved) > RECIPES_KEPT:
                self._resolved.popitem(last=False)
        return recipe

    def store(self, recipe: Recipe) -> None:
        """See to it that the recipe is in the store."""
        now = self._clock()
        if now - self._stored.get(recipe.hash, -RECIPE_STORED_SECONDS) < RECIPE_STORED_SECONDS:
            return
        self._store.put_recipe(recipe.hash, recipe.document)
        if len(self._stored) >= RECIPES_KEPT:
            self._stored.clear()
        self._stored[recipe.hash] = now


def public_inputs(wanted: Submission) -> dict[str, list[dict[str, str]]]:
    """A submission's inputs as a record holds them: without what is secret in their URIs."""
    return {name: [{"uri": public_uri(item.uri)} | ({"language": item.language} if item.language else {}) for item in items]
            for name, items in wanted.inputs.items()}
