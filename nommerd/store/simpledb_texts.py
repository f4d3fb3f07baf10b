"""Long texts in SimpleDB. A text is an item; a very long one is several, and only the one written last makes it whole.

The head holds the text, or names the generation that does: items of their own, written before the head. A writer that stops
halfway, and one that replaces or deletes a head, leaves a generation that no head names: nobody reads it, and it is deleted
once it is older than any writer could be.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import islice

from nommerd.job import new_id
from nommerd.store.simpledb_domain import PAGE_MAX, Attributes, Domain, Row
from nommerd.store.simpledb_items import Torn, joined, parted, split, xml_safe
from nommerd.store.simpledb_select import NEVER, quoted_name, seconds_padded, within

GENERATION = "text_generation"  # of a head
GROUPS = "text_groups"  # items of the generation; 0: the head holds the text
WRITTEN = "text_written"  # of an item of a generation
GROUP_PARTS = 100  # of one item; SimpleDB takes 256 pairs, and requests of 1 MB
HEAD_BYTES = 990  # of a head's name: those of its generation are longer, and SimpleDB takes 1,024
CHECKED = 100  # items looked at in one go
TRIES = 4  # while others store and delete the same text


class Texts:
    """The long texts of a domain, each compact JSON."""

    def __init__(self, domain: Domain, grace_seconds: float) -> None:
        """A generation that no head names is deleted `grace_seconds` after it was written."""
        self._domain = domain
        self._grace = grace_seconds
        self._behind: dict[str, str | None] = {}  # how far the last look at old items came, where it did not see all

    def put(self, head: str, json_text: str, more: Attributes, *, expected: tuple[str, str | None] | None = None) -> None:
        """Store the text under this head, with `more` attributes. `expected` as Domain's: else Mismatch."""
        pieces = split(xml_safe(json_text))
        attributes = {**more, GENERATION: NEVER, GROUPS: "0"}
        if len(pieces) <= GROUP_PARTS:
            attributes |= parted(pieces)
        else:
            attributes |= {GENERATION: new_id(), GROUPS: str(-(-len(pieces) // GROUP_PARTS))}
            now = seconds_padded(time.time())
            for number, item in enumerate(_groups(head, attributes)):
                self._domain.put(item, {WRITTEN: now, **parted(pieces[number * GROUP_PARTS:][:GROUP_PARTS])})
        self._domain.put(head, attributes, expected=expected)

    def get(self, head: str) -> str | None:
        """The same JSON, maybe with escapes; None where there is no such head. Raises Torn where it is not whole."""
        for _ in range(TRIES):
            attributes = self._domain.get(head)
            if GROUPS not in attributes:
                return None
            with suppress(Torn):  # unless it was deleted while we read
                return self.read(head, attributes)
        raise Torn

    def read(self, head: str, attributes: Attributes) -> str:
        """The text of a head that was read already. Raises Torn."""
        try:
            groups = [self._domain.get(item) for item in _groups(head, attributes)] or [attributes]
        except (KeyError, ValueError):
            raise Torn from None
        return "".join(map(joined, groups))

    def stale(self, time_name: str) -> list[Row]:
        """Items past the grace by this time of theirs; the next call goes on behind them, and begins anew after the last."""
        before = seconds_padded(time.time() - self._grace + 0.000001)
        where = within(time_name, "", before, behind=self._behind.get(time_name))
        rows = list(islice(self._domain.select(quoted_name(time_name), where, CHECKED), CHECKED))
        self._behind[time_name] = rows[-1].attributes[time_name] if len(rows) == CHECKED else None
        return rows

    def delete_unread(self) -> None:
        """Delete items that no head names and no writer can be about to name: some at each call, in turn."""
        self._domain.delete_many(self._unread(row.name for row in self.stale(WRITTEN)))

    def wipe_unread(self) -> None:
        """Delete all items that no head names, for when nobody writes."""
        rows = self._domain.select("itemName()", f"{quoted_name(WRITTEN)} is not null", PAGE_MAX)
        self._domain.delete_many(self._unread(row.name for row in rows))

    def _unread(self, names: Iterable[str]) -> list[str]:
        @cache
        def generation_of(head: str) -> str | None:
            return self._domain.get(head).get(GENERATION)

        def unread(name: str) -> bool:
            head, generation, _ = name.rsplit("/", 2)
            return generation_of(head) != generation

        return [name for name in names if unread(name)]


def _groups(head: str, attributes: Attributes) -> list[str]:
    """The items of the generation that a head names, none where the text is in the head."""
    return [f"{head}/{attributes[GENERATION]}/{number:04d}" for number in range(int(attributes[GROUPS]))]
