"""Documents in SimpleDB: long texts, each all of a document as JSON, found by kind and scope together."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from nommerd import logs
from nommerd.errors import InfrastructureError
from nommerd.store.base import Conflict, Document, StoreUnavailable, keyable, storable
from nommerd.store.simpledb_domain import PAGE_MAX, Domain, Mismatch, Row
from nommerd.store.simpledb_items import VERSION, Torn, item_name
from nommerd.store.simpledb_select import NEVER, compared, quoted_name, seconds_padded, within
from nommerd.store.simpledb_texts import HEAD_BYTES, TRIES, Texts

DOCUMENT_IN = "document_in"  # the kind and the scope
EXPIRES = "document_expires"


class Documents:
    """The documents of a domain; see Store for what the methods promise."""

    def __init__(self, domain: Domain, texts: Texts) -> None:
        self._domain = domain
        self._texts = texts

    def get(self, kind: str, scope: str, name: str) -> Document | None:
        if not keyable(kind, scope, name):
            return None
        try:
            found = self._texts.get(_item(kind, scope, name))
            return None if found is None else _decoded(found)
        except Torn:
            raise InfrastructureError("internal.bad_record", "A stored document is not whole.", retryable=False) from None

    def all(self, kind: str, scope: str) -> Sequence[Document]:
        if not keyable(kind, scope):
            return []
        rows = self._domain.select("*", compared(DOCUMENT_IN, "=", _scope(kind, scope)), PAGE_MAX)
        return sorted(self._readable(rows), key=lambda document: document.name)

    def _readable(self, rows: Iterator[Row]) -> Iterator[Document]:
        """What can be read, a document written anew meanwhile as it is now. One that cannot must not hide the others."""
        for row in rows:
            try:
                yield _decoded(self._texts.read(row.name, row.attributes))
            except Torn:
                try:
                    found = self._texts.get(row.name)
                except Torn:
                    logs.get().error("record.unreadable", why=f"{row.name}: A stored document is not whole.")
                else:
                    yield from () if found is None else (_decoded(found),)

    def put(self, document: Document, expected_version: int | None) -> None:
        item = _item(document.kind, document.scope, storable(document).name)
        expires = NEVER if document.expires is None else seconds_padded(document.expires)
        more = {VERSION: str(document.version), DOCUMENT_IN: _scope(document.kind, document.scope), EXPIRES: expires}
        expected = None if expected_version is None else (VERSION, str(expected_version) if expected_version else None)
        try:
            self._texts.put(item, _encoded(document), more, expected=expected)
        except Mismatch:
            if self.get(document.kind, document.scope, document.name) != document:  # else our own write, its answer lost
                raise Conflict(document.name) from None

    def delete(self, kind: str, scope: str, name: str, expected_version: int | None) -> bool:
        item = _item(kind, scope, name) if keyable(kind, scope, name) else ""
        for _ in range(TRIES if item else 0):
            version = self._domain.get(item).get(VERSION)
            if version is None:
                return False
            if expected_version is not None and version != str(expected_version):
                raise Conflict(name)
            with suppress(Mismatch):  # written or deleted meanwhile: look again
                self._domain.delete(item, expected=(VERSION, version))
                return True
        if item:
            raise StoreUnavailable("A document kept being written.")
        return False

    def delete_expired(self) -> None:
        """Delete those whose time has come, unless they were written anew."""
        self._delete(seconds_padded(time.time() + 0.000001))

    def wipe_expiring(self) -> None:
        """Delete those that ever expire."""
        self._delete(NEVER)

    def _delete(self, expiring_before: str) -> None:
        for row in list(self._domain.select(quoted_name(VERSION), within(EXPIRES, "", expiring_before), PAGE_MAX)):
            with suppress(Mismatch):
                self._domain.delete(row.name, expected=(VERSION, row.attributes[VERSION]))


def _encoded(document: Document) -> str:
    return json.dumps([document.kind, document.scope, document.name, document.body, document.version, document.expires],
                      ensure_ascii=False, separators=(",", ":"))


def _decoded(text: str) -> Document:
    try:
        kind, scope, name, body, version, expires = json.loads(text)
    except ValueError:
        raise Torn from None
    return Document(kind=kind, scope=scope, name=name, body=body, version=version, expires=expires)


def _item(kind: str, scope: str, name: str) -> str:
    """The name of a document's item, readable where there is room."""
    return _fitting(item_name("document", kind, scope, name), item_name("document", kind))


def _scope(kind: str, scope: str) -> str:
    """What all documents of a kind and scope share, and no others."""
    return _fitting(item_name(kind, scope), item_name(kind))


def _fitting(name: str, beginning: str) -> str:
    """A name, or its beginning and a checksum of it: with fewer slashes than a name, so that it is none."""
    return name if len(name) <= HEAD_BYTES else f"{beginning}:{hashlib.sha256(name.encode()).hexdigest()}"
