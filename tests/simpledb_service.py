"""What Amazon SimpleDB does, without its wire: limits, conditional puts and deletes, selects with their pages, lagging reads.

As its Developer Guide says (API version 2009-04-15). What that leaves open is done in the way that is hardest on a client:
attributes and unordered items come in no useful order, and any page may be short, or empty, with a NextToken. Results are
the XML inside an answer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from xml.sax.saxutils import escape

from tests.simpledb_select import Attributes, Item, Select, SelectError, parse

NAME_BYTES = VALUE_BYTES = 1024
PAIRS_MAX = 256  # of one item, and of one call
BATCH_MAX = 25
PAGE_BYTES = 1024 * 1024
_DOMAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff]")

Parameters = Mapping[str, str]


class Fault(Enum):
    """What becomes of a request to SimpleDB."""

    UNAVAILABLE = (503, "ServiceUnavailable", "Service Amazon SimpleDB is currently unavailable. Please try again later.")
    TIMEOUT = (408, "RequestTimeout", "A timeout occurred when attempting to query the domain.")
    INTERNAL = (500, "InternalError", "Request could not be executed due to an internal service error.")
    REFUSED = (400, "InvalidParameterValue", "Value () for parameter Value is invalid.")
    DENIED = (403, "AuthorizationFailure", "User does not have permission to perform this action.")
    FULL = (409, "NumberDomainBytesExceeded", "Too many bytes in this domain.")
    WELL = (200, "", "")  # nothing
    LOST = (0, "", "")  # applied, but the connection is closed without an answer
    CUT = (-1, "", "")  # the connection is closed before anything is done


class Refused(Exception):
    """An error answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


# --- what is stored ----------------------------------------------------------------------------------------------


@dataclass
class Versions:
    """An item as it was and is: only the last two moments matter to a reader who lags."""

    written: list[tuple[float, Attributes]] = field(default_factory=list)  # oldest first; no attributes: not there

    @property
    def now(self) -> Attributes:
        return self.written[-1][1] if self.written else frozenset()

    def at(self, moment: float) -> Attributes:
        return next((attributes for when, attributes in reversed(self.written) if when <= moment), frozenset())

    def write(self, attributes: Attributes, forget_before: float) -> None:
        old = [index for index, (when, _) in enumerate(self.written) if when <= forget_before]
        del self.written[:old[-1] if old else 0]
        self.written.append((time.monotonic(), attributes))


Domain = dict[str, Versions]


class SimpleDB:
    """The service without its wire. `page_items`: the most a page of a select holds; `scan_items`: how many items it looks at
    before it gives a short page; `lag_seconds`: how old what an inconsistent read sees may be, always as old as that."""

    def __init__(self, *, page_items: int = 2500, scan_items: int = 1_000_000, lag_seconds: float = 0.0) -> None:
        self.page_items, self.scan_items, self.lag_seconds = page_items, scan_items, lag_seconds
        self.domains: dict[str, Domain] = {}
        self.faults: deque[tuple[str | None, Fault]] = deque()
        self.calls: list[str] = []  # the actions of all requests
        self._lock = threading.Lock()

    def fail(self, *faults: Fault, action: str | None = None) -> None:
        """What becomes of the next requests (of this action)."""
        self.faults.extend((action, fault) for fault in faults)

    def next_fault(self, action: str) -> Fault | None:
        for entry in self.faults:
            if entry[0] in (None, action):
                self.faults.remove(entry)
                return None if entry[1] is Fault.WELL else entry[1]
        return None

    def call(self, parameters: Parameters) -> str:
        """The answer's result, as XML. Raises Refused."""
        action = parameters.get("Action", "")
        self.calls.append(action)
        with self._lock:
            return ACTIONS[action](self, parameters)

    # domains

    def create_domain(self, parameters: Parameters) -> str:
        name = _required(parameters, "DomainName")
        if not _DOMAIN_NAME.fullmatch(name):
            raise _bad_value("DomainName", name, "")
        self.domains.setdefault(name, {})
        return ""

    def delete_domain(self, parameters: Parameters) -> str:
        self.domains.pop(_required(parameters, "DomainName"), None)
        return ""

    def list_domains(self, parameters: Parameters) -> str:
        most = int(parameters.get("MaxNumberOfDomains", "100"))
        if not 1 <= most <= 100:
            raise _bad_value("MaxNumberOfDomains", str(most), "MaxNumberOfDomains must be between 1 and 100.")
        behind = parameters.get("NextToken", "")
        names = [name for name in sorted(self.domains) if name > behind]
        more = _element("NextToken", names[most - 1]) if len(names) > most else ""
        return "".join(_element("DomainName", name) for name in names[:most]) + more

    def domain_metadata(self, parameters: Parameters) -> str:
        items = {name: item.now for name, item in self._domain(parameters).items() if item.now}
        pairs = [pair for attributes in items.values() for pair in attributes]
        names = {name for name, _ in pairs}
        figures = {"ItemCount": len(items), "ItemNamesSizeBytes": sum(map(_size, items)),
                   "AttributeNameCount": len(names), "AttributeNamesSizeBytes": sum(map(_size, names)),
                   "AttributeValueCount": len(pairs), "AttributeValuesSizeBytes": sum(_size(value) for _, value in pairs),
                   "Timestamp": int(time.time())}
        return "".join(_element(name, str(figure)) for name, figure in figures.items())

    # items

    def put_attributes(self, parameters: Parameters) -> str:
        domain = self._domain(parameters)
        name = _item_name(parameters, "ItemName")
        pairs = _pairs(parameters, "Attribute", whole=True)
        item = domain.get(name, Versions())
        _check_expected(item.now, parameters)
        self._write(domain, {name: _put(item.now, pairs)})
        return ""

    def batch_put_attributes(self, parameters: Parameters) -> str:
        domain = self._domain(parameters)
        new = {}
        for name, prefix in _batch(parameters):
            pairs = _pairs(parameters, f"{prefix}.Attribute", whole=True)
            new[name] = _put(domain.get(name, Versions()).now, pairs)
        self._write(domain, new)
        return ""

    def delete_attributes(self, parameters: Parameters) -> str:
        domain = self._domain(parameters)
        name = _item_name(parameters, "ItemName")
        pairs = _pairs(parameters, "Attribute", whole=False)
        item = domain.get(name, Versions())
        _check_expected(item.now, parameters)
        self._write(domain, {name: _without(item.now, pairs)})
        return ""

    def batch_delete_attributes(self, parameters: Parameters) -> str:
        domain = self._domain(parameters)
        self._write(domain, {name: _without(domain.get(name, Versions()).now,
                                            _pairs(parameters, f"{prefix}.Attribute", whole=False))
                             for name, prefix in _batch(parameters)})
        return ""

    def get_attributes(self, parameters: Parameters) -> str:
        domain = self._domain(parameters)
        item = domain.get(_item_name(parameters, "ItemName"), Versions())
        wanted = set(_numbered(parameters, "AttributeName"))
        attributes = self._seen(item, parameters)
        return _attributes_xml(pair for pair in attributes if not wanted or pair[0] in wanted)

    def select(self, parameters: Parameters) -> str:
        try:
            select = parse(_required(parameters, "SelectExpression"))
            if select.domain not in self.domains:
                raise _no_such_domain()
            items = self._items(self.domains[select.domain], parameters)
            page = _Page(select, parameters["SelectExpression"], min(self.page_items, select.limit), self.scan_items)
            return page.read(items, parameters.get("NextToken"))
        except SelectError as error:
            raise Refused(400, error.code, error.message) from None

    def _items(self, domain: Domain, parameters: Parameters) -> list[Item]:
        seen = ((name, self._seen(item, parameters)) for name, item in domain.items())
        return [Item(name, attributes) for name, attributes in seen if attributes]

    def _seen(self, item: Versions, parameters: Parameters) -> Attributes:
        if parameters.get("ConsistentRead") == "true":
            return item.now
        return item.at(time.monotonic() - self.lag_seconds)

    def _write(self, domain: Domain, new: Mapping[str, Attributes]) -> None:
        for attributes in new.values():
            if len(attributes) > PAIRS_MAX:
                raise Refused(409, "NumberItemAttributesExceeded", "Too many attributes in this item.")
        for name, attributes in new.items():
            domain.setdefault(name, Versions()).write(attributes, time.monotonic() - self.lag_seconds)

    def _domain(self, parameters: Parameters) -> Domain:
        name = _required(parameters, "DomainName")
        if name not in self.domains:
            raise _no_such_domain()
        return self.domains[name]


ACTIONS: dict[str, Callable[[SimpleDB, Parameters], str]] = {
    "CreateDomain": SimpleDB.create_domain, "DeleteDomain": SimpleDB.delete_domain, "ListDomains": SimpleDB.list_domains,
    "DomainMetadata": SimpleDB.domain_metadata, "PutAttributes": SimpleDB.put_attributes,
    "BatchPutAttributes": SimpleDB.batch_put_attributes, "DeleteAttributes": SimpleDB.delete_attributes,
    "BatchDeleteAttributes": SimpleDB.batch_delete_attributes, "GetAttributes": SimpleDB.get_attributes,
    "Select": SimpleDB.select,
}
WITH_RESULT = frozenset({"ListDomains", "DomainMetadata", "GetAttributes", "Select"})


class _Page:
    """One page of a select: where it begins and ends."""

    def __init__(self, select: Select, expression: str, items_max: int, scan_max: int) -> None:
        self._select = select
        self._mark = hashlib.sha256(expression.encode()).hexdigest()[:16]  # a token belongs to its expression
        self._items_max, self._scan_max = items_max, scan_max

    def read(self, items: list[Item], token: str | None) -> str:
        behind = None if token is None else self._behind(token)
        # Without an order nothing is matched before it is looked at: a page may be short, or empty.
        ordered = [item for item in items if self._select.matches(item)] if self._select.order else items
        places = sorted(((self._select.sort_value(item) if self._select.order else "", _scrambled(item.name), item)
                         for item in ordered), key=lambda place: place[:2])
        if self._select.descending:
            places.reverse()
        found, size, last, scanned = [], 0, None, 0
        for value, mark, item in places:
            if behind is not None and not self._follows((value, mark), behind):
                continue
            if scanned >= self._scan_max or len(found) >= self._items_max:
                return self._xml(found, last)
            scanned += 1
            if self._select.matches(item):
                text = self._item_xml(item)
                if found and size + len(text.encode()) > PAGE_BYTES:
                    return self._xml(found, last)
                size += len(text.encode())
                found.append(text)
            last = (value, mark)
        return self._xml(found, None)

    def _follows(self, place: tuple[str, str], behind: tuple[str, str]) -> bool:
        return place < behind if self._select.descending else place > behind

    def _behind(self, token: str) -> tuple[str, str]:
        try:
            mark, value, name = json.loads(base64.urlsafe_b64decode(token))
        except ValueError:
            mark = value = name = ""
        if mark != self._mark:
            raise SelectError("InvalidNextToken", "The specified next token is not valid.")
        return value, name

    def _xml(self, found: list[str], last: tuple[str, str] | None) -> str:
        token = ""
        if last is not None:
            token = _element("NextToken", base64.urlsafe_b64encode(json.dumps([self._mark, *last]).encode()).decode())
        if self._select.output == "count(*)":
            count = _element("Name", "Count") + _element("Value", str(len(found)))
            return f"<Item>{_element('Name', 'Domain')}<Attribute>{count}</Attribute></Item>{token}"
        return "".join(found) + token

    def _item_xml(self, item: Item) -> str:
        output = self._select.output
        pairs: Iterator[tuple[str, str]] = iter(())
        if output == "*":
            pairs = iter(item.attributes)
        elif isinstance(output, tuple):
            pairs = (pair for pair in item.attributes if pair[0] in output)
        return f"<Item>{_element('Name', item.name)}{_attributes_xml(pairs)}</Item>"


# --- parameters --------------------------------------------------------------------------------------------------


def _required(parameters: Parameters, name: str) -> str:
    if not parameters.get(name):
        raise Refused(400, "MissingParameter", f"The request must contain the parameter {name}.")
    return parameters[name]


def _bad_value(name: str, value: str, why: str) -> Refused:
    return Refused(400, "InvalidParameterValue", f"Value ({value[:60]}) for parameter {name} is invalid. {why}".rstrip())


def _no_such_domain() -> Refused:
    return Refused(400, "NoSuchDomain", "The specified domain does not exist.")


def _item_name(parameters: Parameters, parameter: str) -> str:
    name = _required(parameters, parameter)
    return _bounded(name, "ItemName", NAME_BYTES)


def _bounded(text: str, what: str, bytes_max: int) -> str:
    if _size(text) > bytes_max:
        raise _bad_value(what, text, f"Value exceeds maximum length of {bytes_max}.")
    return text


def _size(text: str) -> int:
    return len(text.encode())


def _numbered(parameters: Parameters, prefix: str) -> dict[str, str]:
    """`prefix.1`, `prefix.2`, …: values by their place."""
    return {value: name for name, value in parameters.items() if re.fullmatch(rf"{re.escape(prefix)}\.\d+", name)}


def _indexes(parameters: Parameters, prefix: str) -> list[int]:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in parameters)
    return sorted({int(match[1]) for match in found if match})


@dataclass(frozen=True)
class Pair:
    """An attribute of a request; no `value`: all values of that name."""

    name: str
    value: str | None
    replace: bool


def _pairs(parameters: Parameters, prefix: str, *, whole: bool) -> list[Pair]:
    found = []
    for index in _indexes(parameters, prefix):
        name, value = parameters.get(f"{prefix}.{index}.Name"), parameters.get(f"{prefix}.{index}.Value")
        if not name or (whole and value is None):
            raise Refused(400, "MissingParameter", f"Attribute.{'Value' if name else 'Name'} missing for {prefix}.{index}.")
        _bounded(name, "Name", NAME_BYTES)
        _bounded(value or "", "Value", VALUE_BYTES)
        found.append(Pair(name, value, parameters.get(f"{prefix}.{index}.Replace") == "true"))
    if whole and not found:
        raise Refused(400, "MissingParameter", "No attributes.")
    if len(found) > PAIRS_MAX:
        raise Refused(409, "NumberSubmittedAttributesExceeded", "Too many attributes in a single call.")
    return found


def _batch(parameters: Parameters) -> list[tuple[str, str]]:
    """The items of a batch: their names, and the prefix of their parameters."""
    if any(name.startswith("Expected.") for name in parameters):
        raise _bad_value("Expected", "", "A batch takes no conditions.")
    items = [(_item_name(parameters, f"Item.{index}.ItemName"), f"Item.{index}") for index in _indexes(parameters, "Item")]
    if not items:
        raise Refused(400, "MissingParameter", "No items.")
    if len(items) > BATCH_MAX:
        raise Refused(409, "NumberSubmittedItemsExceeded", "Too many items in a single call.")
    if len({name for name, _ in items}) < len(items):
        raise Refused(400, "DuplicateItemName", "An item name was specified more than once.")
    return items


def _put(before: Attributes, pairs: list[Pair]) -> Attributes:
    replaced = {pair.name for pair in pairs if pair.replace}
    return (frozenset(old for old in before if old[0] not in replaced)
            | {(pair.name, pair.value) for pair in pairs if pair.value is not None})


def _without(before: Attributes, pairs: list[Pair]) -> Attributes:
    if not pairs:
        return frozenset()
    return frozenset((name, value) for name, value in before
                     if not any(pair.name == name and pair.value in (None, value) for pair in pairs))


def _check_expected(now: Attributes, parameters: Parameters) -> None:
    """Raises Refused unless the one condition of the request, if there is one, holds."""
    expected = {name.rpartition(".")[2]: value for name, value in parameters.items() if name.startswith("Expected.")}
    if not expected:
        return
    name, value, exists = expected.get("Name"), expected.get("Value"), expected.get("Exists", "true") == "true"
    if len([key for key in parameters if key.startswith("Expected.") and key.endswith("Name")]) > 1:
        raise Refused(400, "MultipleExpectedNames", "Only one Expected.Name can be specified.")
    if not name or (exists and value is None):
        raise Refused(400, "IncompleteExpectedExpression",
                      "If Expected.Exists=true or unspecified, then Expected.Value has to be specified.")
    if not exists and value is not None:
        raise Refused(400, "ExistsAndExpectedValue", "Expected.Exists=false and Expected.Value cannot be specified together.")
    _compare(name, [held for key, held in now if key == name], value)


def _compare(name: str, held: list[str], value: str | None) -> None:
    if value is None:
        if held:
            raise Refused(409, "ConditionalCheckFailed", f"Conditional check failed. Attribute ({name}) value exists.")
    elif not held:
        raise Refused(404, "AttributeDoesNotExist", f"Attribute ({name}) does not exist.")
    elif len(held) > 1:
        raise Refused(409, "MultiValuedAttribute", f"Attribute ({name}) is multi-valued. Conditional check can only be "
                      "performed on a single-valued attribute.")
    elif held[0] != value:
        raise Refused(409, "ConditionalCheckFailed",
                      f"Conditional check failed. Attribute ({name}) value is ({held[0]}) but was expected ({value}).")


# --- results -------------------------------------------------------------------------------------------------------


def _element(name: str, text: str) -> str:
    """An element; what XML cannot hold goes in Base64."""
    if NOT_XML.search(text):
        return f'<{name} encoding="base64">{base64.b64encode(text.encode()).decode()}</{name}>'
    return f"<{name}>{escape(text, {chr(13): '&#13;'})}</{name}>"


def _attributes_xml(pairs: Iterable[tuple[str, str]]) -> str:
    shuffled = sorted(pairs, key=lambda pair: _scrambled(pair[0] + pair[1]))
    return "".join(f"<Attribute>{_element('Name', name)}{_element('Value', value)}</Attribute>" for name, value in shuffled)


def _scrambled(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
