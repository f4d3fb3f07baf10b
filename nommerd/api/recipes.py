"""Recipes of submissions: each resolved once, and stored once in a while."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nommerd.api.models import Submission
from nommerd.errors import InputError
from nommerd.secrets import public_uri
from nommerd.store.base import RECIPE_GRACE_SECONDS, Store

if TYPE_CHECKING:
    from nommerd.catalog import Catalog
    from nommerd.pipeline.recipe import Recipe

RECIPES_KEPT = 256  # of a project, and of those stored
PROJECTS_KEPT = 16
UNKNOWN = frozenset({"recipe.unknown_preset", "recipe.unknown_pipeline"})
RECIPE_STORED_SECONDS = RECIPE_GRACE_SECONDS / 4  # how long this process trusts that a recipe it stored is there


@dataclass(slots=True)
class _Resolved:
    """What was made of one catalog."""

    catalog: Catalog
    recipes: OrderedDict[str, Recipe] = field(default_factory=OrderedDict)


class Recipes:
    """Resolves what was asked for once, and stores each recipe once in a while: recipes are content-addressed.

    `catalog_of` gives the catalog of a project; a catalog never changes, another one takes its place. `look` gives it as it is
    now, and is asked where a name is not known."""

    def __init__(self, store: Store, catalog_of: Callable[[str], Catalog], look: Callable[[str], Catalog] | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._catalog_of = catalog_of
        self._look = look
        self._clock = clock
        self._resolved: OrderedDict[str, _Resolved] = OrderedDict()
        self._stored: dict[str, float] = {}

    def get(self, project: str, wanted: Submission) -> Recipe:
        """The recipe a submission asks for. Raises NommerdError recipe.*."""
        try:
            return self._recipe(project, self._catalog_of(project), wanted)
        except InputError as error:
            if error.code not in UNKNOWN or self._look is None:
                raise
        return self._recipe(project, self._look(project), wanted)

    def _recipe(self, project: str, catalog: Catalog, wanted: Submission) -> Recipe:
        given = public_inputs(wanted)
        counts = sorted((name, len(items)) for name, items in given.items())
        asked = json.dumps([wanted.preset, wanted.pipeline, wanted.params, counts], sort_keys=True)
        known = self._resolved.get(project)
        if known is None or known.catalog is not catalog:  # what was made of another one is of no use
            known = self._resolved[project] = _Resolved(catalog)
            if len(self._resolved) > PROJECTS_KEPT:
                self._resolved.popitem(last=False)
        recipe = known.recipes.get(asked)
        if recipe is None:
            recipe = catalog.resolve(preset=wanted.preset, pipeline=wanted.pipeline, params=wanted.params, inputs=given)
            known.recipes[asked] = recipe
            if len(known.recipes) > RECIPES_KEPT:
                known.recipes.popitem(last=False)
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
