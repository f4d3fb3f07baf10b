"""One SimpleDB domain, as the store uses it: single values, consistent reads, errors that are ours.

What SimpleDB promises, and all above relies on (its Developer Guide, API version 2009-04-15):
- One call on one item is atomic; `Expected` makes it conditional on an attribute that has one value.
- `Replace` puts the new value in the place of all earlier ones of that name. Attributes that a call does not name stay.
- Names and values take 1,024 bytes each, an item 256 pairs, a domain 10 GB; a batch has 25 items and no conditions.
- A select reads at most 2,500 items, 1 MB and 5 seconds at a time. Any page may be short or even empty: only one without a
  NextToken is the last. It takes 20 comparisons of 20 attributes, and `order by` wants a predicate on its attribute.
  Everything is compared as text, by its UTF-8 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from nommerd.aws.clients import error_code, explain, is_transient, status_of
from nommerd.aws.faults import EXPIRED, credentials_fault
from nommerd.errors import ConfigError, InfrastructureError, NommerdError
from nommerd.store.base import StoreUnavailable
from nommerd.store.simpledb_select import Where, quoted_name

PAIRS_MAX = 256  # of one item
VALUE_BYTES = 1024  # of one name or value
BATCH = 25  # items of one batch call
PAGE_MAX = 2500  # items of one page of a select

_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_FULL = frozenset({"NumberDomainBytesExceeded", "NumberDomainAttributesExceeded"})  # until finals are deleted
_DENIED = frozenset({"AccessDenied", "AccessFailure", "AuthorizationFailure", "UnauthorizedOperation"})

Attributes = dict[str, str]


def domain(name: str) -> dict[str, Any]:
    """What create_domain takes. Creating one that exists is no error; it may take ten seconds or more.

    Raises ConfigError config.store for a name that no domain can have.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("config.store", f"{name or '(nothing)'} is no name of a SimpleDB domain.",
                          "Use 3 to 255 letters, digits, hyphens, underscores and dots: simpledb://nommerd.", place="store")
    return {"DomainName": name}


class Mismatch(Exception):
    """The attribute has another value than the expected one, or exists though it should not."""


class Absent(Mismatch):
    """The attribute that should have a value is not there: nor is, with items of ours, the item."""


class Row(NamedTuple):
    """An item that a select found."""

    name: str
    attributes: Attributes


class Domain:
    """All methods raise StoreUnavailable when a later try may help, and ConfigError when only the operator can."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._name = str(domain(name)["DomainName"])
        self._closed = False

    def get(self, item: str) -> Attributes:
        """The item's attributes, as of the last write; empty where there is no such item."""
        answer = self._call(self._client.get_attributes, ItemName=item, ConsistentRead=True)
        return _attributes(answer)

    def put(self, item: str, attributes: Mapping[str, str], *, expected: tuple[str, str | None] | None = None) -> None:
        """Set these attributes, in one step. `expected`: only if this attribute has this value, or (None) does not exist;
        else Mismatch."""
        new = [{"Name": name, "Value": value, "Replace": True} for name, value in attributes.items()]
        self._call(self._client.put_attributes, ItemName=item, Attributes=new, **_condition(expected))

    def delete(self, item: str, *, expected: tuple[str, str | None] | None = None) -> None:
        """Delete the whole item; nothing happens where there is none, unless something is `expected`: see `put`."""
        self._call(self._client.delete_attributes, ItemName=item, **_condition(expected))

    def delete_many(self, items: Sequence[str]) -> None:
        """Delete whole items, a batch at a time: not atomic."""
        for start in range(0, len(items), BATCH):
            batch = [{"Name": item} for item in items[start:start + BATCH]]
            self._call(self._client.batch_delete_attributes, Items=batch)

    def delete_all(self, attribute: str) -> None:
        """Delete every item that has this attribute: not atomic."""
        while rows := list(islice(self.select("itemName()", f"{quoted_name(attribute)} is not null", PAGE_MAX), PAGE_MAX)):
            self.delete_many([row.name for row in rows])

    def select(self, output: str, where: Where, page: int) -> Iterator[Row]:
        """The items that match, in order, read `page` at a time as they are asked for."""
        size = max(1, min(page, PAGE_MAX))
        for answer in self._pages(output, where, f" limit {size}"):
            for item in answer.get("Items", ()):
                yield Row(item["Name"], _attributes(item))

    def count(self, where: Where, at_most: int | None = None) -> int:
        """How many items match; stops looking at `at_most`. One count may take several answers, each with a part of it."""
        found = 0
        for answer in self._pages("count(*)", where, f" limit {PAGE_MAX}"):
            found += sum(int(_attributes(item)["Count"]) for item in answer.get("Items", ()))
            if at_most is not None and found >= at_most:
                return at_most
        return found

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._client.close()

    def _pages(self, output: str, where: Where, limit: str) -> Iterator[dict[str, Any]]:
        expression = f"select {output} from {quoted_name(self._name)} where {where}{limit}"
        more: dict[str, str] = {}
        while True:
            answer = self._send(self._client.select, SelectExpression=expression, ConsistentRead=True, **more)
            yield answer
            if not answer.get("NextToken"):
                return
            more = {"NextToken": answer["NextToken"]}

    def _call(self, operation: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        return self._send(operation, DomainName=self._name, **arguments)

    def _send(self, operation: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        if self._closed:
            raise StoreUnavailable("The store is closed.")
        try:
            return dict(operation(**arguments))
        except ClientError as error:
            code = error_code(error)
            if code == "ConditionalCheckFailed":
                raise Mismatch from None
            if code == "AttributeDoesNotExist":
                raise Absent from None
            raise self._ours(error) from None
        except (BotoCoreError, ResponseParserError) as error:
            raise self._ours(error) from None

    def _ours(self, error: Exception) -> NommerdError:
        """What AWS answered, sorted by who must act."""
        from botocore.exceptions import ClientError, EndpointConnectionError

        code, why = error_code(error), explain(error)
        if code == "NoSuchDomain":
            return ConfigError("config.store", f"There is no SimpleDB domain {self._name} in this region.",
                               "Run nommerd aws setup.", place="store")
        if code in _DENIED:
            action = f"sdb:{getattr(error, 'operation_name', '?')}"
            return ConfigError("config.aws_permission", f"AWS does not allow {action} on the domain {self._name}.",
                               f"Allow it in the role's policy; `nommerd aws setup --dry-run` prints one. AWS says: {why}",
                               place="store")
        if fault := credentials_fault(error):
            return fault
        if status_of(error) in (401, 403) and code not in EXPIRED:
            return ConfigError("config.aws", f"SimpleDB refuses us: {why}", "See the credentials, and the policies that "
                               "`nommerd aws setup --dry-run` prints.", place="store")
        if isinstance(error, EndpointConnectionError):
            why += " (not every region has SimpleDB)"
        if isinstance(error, ClientError) and not is_transient(error) and code not in _FULL | EXPIRED:
            return InfrastructureError("internal.store_refused", f"SimpleDB refused a call: {why}", retryable=False)
        return StoreUnavailable(f"SimpleDB: {why}")


def _attributes(item: Mapping[str, Any]) -> Attributes:
    return {pair["Name"]: pair["Value"] or "" for pair in item.get("Attributes", ())}


def _condition(expected: tuple[str, str | None] | None) -> dict[str, Any]:
    if expected is None:
        return {}
    name, value = expected
    return {"Expected": {"Name": name, "Exists": False} if value is None else {"Name": name, "Value": value, "Exists": True}}
