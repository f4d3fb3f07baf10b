"""Documents in the DynamoDB table: an item each, those of one kind and scope in one partition, sorted by name.

One that expires carries `expires`, and AWS deletes it within days for nothing. As a backstop (expiry may be switched off) it
also stands in the index by age, and `delete_expired` deletes what AWS has left for AWS_DELETES_SECONDS.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from nommerd.store.base import Conflict, Document, keyable, storable
from nommerd.store.dynamodb_calls import Refused, Table
from nommerd.store.dynamodb_index import Range, Walk
from nommerd.store.dynamodb_items import DOCUMENT_PARTITIONS, Item, document_key, document_place, moment
from nommerd.store.dynamodb_table import AGE, TTL_ATTRIBUTE

AWS_DELETES_SECONDS = 2 * 86400.0
DELETED_AT_ONCE = 100
_ATTRIBUTES = ("sk", "body", "version", "until")


class Documents:
    """The documents of a table; see Store for what the methods promise."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def get(self, kind: str, scope: str, name: str) -> Document | None:
        if not keyable(kind, scope, name):
            return None
        found = self._table.get(document_key(kind, scope, name), *_ATTRIBUTES)
        return None if found is None else _document(kind, scope, found)

    def all(self, kind: str, scope: str) -> Sequence[Document]:
        if not keyable(kind, scope):
            return []
        partition = document_key(kind, scope, "")["pk"]
        pages = self._table.pages("query", ConsistentRead=True, KeyConditionExpression="pk = :in",
                                  ExpressionAttributeValues={":in": partition})
        return [_document(kind, scope, item) for page in pages for item in page["Items"]]

    def put(self, document: Document, expected_version: int | None) -> None:
        item = _item(storable(document))
        try:
            if expected_version is None:
                self._table.put(item)
            elif expected_version == 0:
                self._table.put(item, "attribute_not_exists(pk)")
            else:
                self._table.put(item, "version = :expected", {":expected": {"N": str(expected_version)}})
        except Refused as refused:
            if refused.item is None or _document(document.kind, document.scope, refused.item) != document:
                raise Conflict(document.name) from None

    def delete(self, kind: str, scope: str, name: str, expected_version: int | None) -> bool:
        if not keyable(kind, scope, name):
            return False
        key = document_key(kind, scope, name)
        if expected_version is None:
            return self._table.delete(key)
        try:
            return self._table.delete(key, "version = :expected", {":expected": {"N": str(expected_version)}})
        except Refused as refused:
            if refused.item is not None:
                raise Conflict(name) from None
            return False

    def delete_expired(self) -> None:
        """Each under the condition that it expires when its index entry says: it may have been written anew."""
        before = moment(time.time() - AWS_DELETES_SECONDS, 1)
        walk = Walk(self._table, Range(index=AGE, partitions=DOCUMENT_PARTITIONS, highest=before), DELETED_AT_ONCE)
        while entries := walk.take(DELETED_AT_ONCE):
            self._table.side_by_side(self._table.delete_aged, entries)


def _item(document: Document) -> Item:
    item: Item = {**document_key(document.kind, document.scope, document.name), "body": {"S": document.body},
                  "version": {"N": str(document.version)}}
    if document.expires is None:
        return item
    place = document_place(document.kind, document.scope, document.name, document.expires)
    return {**item, TTL_ATTRIBUTE: {"N": str(math.ceil(document.expires))}, "until": {"N": repr(document.expires)},
            "age_in": {"S": place.partition}, "age_at": {"S": place.at}}


def _document(kind: str, scope: str, item: Item) -> Document:
    return Document(kind=kind, scope=scope, name=item["sk"]["S"], body=item["body"]["S"], version=int(item["version"]["N"]),
                    expires=float(item["until"]["N"]) if "until" in item else None)
