"""Recipes in the DynamoDB table: an item each, under its hash, and so never changed but for the time it was stored."""

from __future__ import annotations

import time

from nommerd.errors import InputError
from nommerd.store.dynamodb_calls import Table
from nommerd.store.dynamodb_index import Range, Walk
from nommerd.store.dynamodb_items import RECIPE_PARTITION, moment, recipe_key, recipe_place
from nommerd.store.dynamodb_table import AGE, CREATED

RECIPE_BYTES_MAX = 390_000  # of the 400 KB that an item may have
RECIPE_LOOK_GRACES = 24  # how often the recipes are looked through, in times of their grace: once a day
RECIPES_AT_ONCE = 10_000


class Recipes:
    """The recipes of a table; see Store for what the methods promise."""

    def __init__(self, table: Table, grace_seconds: float) -> None:
        self._table = table
        self._grace = grace_seconds
        self._looked: float | None = None

    def put(self, recipe_hash: str, document: str) -> None:
        if len(document.encode()) > RECIPE_BYTES_MAX:
            raise InputError("recipe.too_large", f"The recipe takes more than {RECIPE_BYTES_MAX // 1000} KB.",
                             "Use fewer renditions or shorter settings.")
        now = time.time()
        found = self._table.get(recipe_key(recipe_hash), "stored")
        if found is not None and float(found["stored"]["N"]) > now - self._grace / 2:
            return  # else a fresh time keeps it through the grace that its job needs
        place = recipe_place(recipe_hash, now)
        self._table.put({**recipe_key(recipe_hash), "body": {"S": document}, "stored": {"N": f"{now:.6f}"},
                         "age_in": {"S": place.partition}, "age_at": {"S": place.at}})

    def get(self, recipe_hash: str) -> str:
        found = self._table.get(recipe_key(recipe_hash), "body")
        if found is None:
            raise LookupError(recipe_hash)
        return str(found["body"]["S"])

    def delete_unnamed(self) -> None:
        """Delete those that were not stored anew for the grace, less those that a job names. Which ones a job names, the index
        of all jobs tells: it lags by moments, while a recipe is stored anew for a job long before its grace is over."""
        now = time.monotonic()
        if self._looked is not None and now < self._looked + RECIPE_LOOK_GRACES * self._grace:
            return
        stale = Range(index=AGE, partitions=[RECIPE_PARTITION], highest=moment(time.time() - self._grace, 1))
        walk = Walk(self._table, stale, RECIPES_AT_ONCE)
        while entries := walk.take(RECIPES_AT_ONCE):
            unnamed = {entry["pk"]["S"].removeprefix("recipe#"): entry for entry in entries}
            for answer in self._table.pages("scan", IndexName=CREATED, ProjectionExpression="recipe"):
                for job in answer["Items"]:
                    unnamed.pop(job.get("recipe", {}).get("S", ""), None)
                if not unnamed:
                    break
            self._table.side_by_side(self._table.delete_aged, unnamed.values())
        self._looked = now
