"""Calls of the DynamoDB service: its limits per call, its unprocessed remainders, its errors as ours."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from nommerd.aws.clients import error_code, explain, is_transient
from nommerd.aws.faults import credentials_fault
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.store.base import StoreUnavailable
from nommerd.store.dynamodb_items import Item

T = TypeVar("T")
GET_MAX = 100  # keys in one BatchGetItem
WRITE_MAX = 25  # requests in one BatchWriteItem
PAGE_MAX = 1000  # index entries in one answer: parsing more at a time would hold up the event loop
BATCH_TRIES = 8  # of what a batch left unprocessed
BATCH_BACKOFF_SECONDS = 0.05  # doubled at each try, with jitter
AT_ONCE = 16  # calls side by side
_SETUP = "Run nommerd aws setup."
_DENIED = {"AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "KMSAccessDeniedException"}


class Refused(Exception):
    """The condition of a write does not hold; `item` is what is there, None for nothing."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("the condition does not hold")
        self.item = item


class Table:
    """One table. Every method may raise StoreUnavailable (try later) or ConfigError (missing, not ours, not allowed)."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        self._closed = False

    def close(self) -> None:
        """Let go of the connections; later calls raise. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self.client.close()

    def get(self, key: Item, *attributes: str) -> Item | None:
        """These attributes of an item as it is now, None where there is none."""
        names = {f"#{number}": attribute for number, attribute in enumerate(attributes)}
        answer = self.call("get_item", Key=key, ConsistentRead=True, ProjectionExpression=", ".join(names),
                           ExpressionAttributeNames=names)
        found: Item | None = answer.get("Item")
        return found

    def put(self, item: Item, condition: str | None = None, values: Item | None = None) -> None:
        """Write a whole item, if the condition on what is there holds; else Refused."""
        more: dict[str, Any] = {}
        if condition is not None:
            more = {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        if values:
            more["ExpressionAttributeValues"] = values
        self.call("put_item", Item=item, **more)

    def delete(self, key: Item, condition: str | None = None, values: Item | None = None) -> bool:
        """Delete the item, if the condition on it holds; whether one was there. Raises Refused, also where none is there."""
        more: dict[str, Any] = {} if values is None else {"ExpressionAttributeValues": values}
        if condition is not None:
            more |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        return bool(self.call("delete_item", Key=key, ReturnValues="ALL_OLD", **more).get("Attributes"))

    def delete_aged(self, entry: Item) -> bool:
        """Delete the item of an entry in the index by age, unless that is out of date: whether it did."""
        try:
            self.call("delete_item", Key={"pk": entry["pk"], "sk": entry["sk"]}, ConditionExpression="age_at = :seen",
                      ExpressionAttributeValues={":seen": entry["age_at"]})
        except Refused:
            return False
        return True

    def get_many(self, keys: Sequence[Item], *attributes: str) -> dict[tuple[str, str], Item]:
        """These attributes, and the keys, of the items that are there now, by primary key."""
        chunks = [keys[start:start + GET_MAX] for start in range(0, len(keys), GET_MAX)]
        found: dict[tuple[str, str], Item] = {}
        for items in self.side_by_side(lambda chunk: self._get_chunk(chunk, attributes), chunks):
            found |= {(item["pk"]["S"], item["sk"]["S"]): item for item in items}
        return found

    def _get_chunk(self, keys: Sequence[Item], attributes: Sequence[str]) -> list[Item]:
        names = {f"#{number}": attribute for number, attribute in enumerate(("pk", "sk", *attributes))}
        how = {"ConsistentRead": True, "ProjectionExpression": ", ".join(names), "ExpressionAttributeNames": names}
        found: list[Item] = []

        def get(wanted: dict[str, Any]) -> dict[str, Any]:
            answer = self.call("batch_get_item", named=False, RequestItems=wanted)
            found.extend(answer.get("Responses", {}).get(self.name, ()))
            left: dict[str, Any] = answer.get("UnprocessedKeys") or {}
            return left

        self._until_processed(get, {self.name: {"Keys": list(keys), **how}})
        return found

    def delete_many(self, keys: Sequence[Item]) -> None:
        """Delete these items, each key once."""
        chunks = [keys[start:start + WRITE_MAX] for start in range(0, len(keys), WRITE_MAX)]
        list(self.side_by_side(self._delete_chunk, chunks))

    def _delete_chunk(self, keys: Sequence[Item]) -> None:
        def delete(wanted: dict[str, Any]) -> dict[str, Any]:
            answer = self.call("batch_write_item", named=False, RequestItems=wanted)
            left: dict[str, Any] = answer.get("UnprocessedItems") or {}
            return left

        self._until_processed(delete, {self.name: [{"DeleteRequest": {"Key": key}} for key in keys]})

    def _until_processed(self, work: Callable[[dict[str, Any]], dict[str, Any]], wanted: dict[str, Any]) -> None:
        """A batch may be done in part: the rest is tried again, ever later."""
        for attempt in range(BATCH_TRIES):
            if attempt:
                time.sleep(BATCH_BACKOFF_SECONDS * 2 ** (attempt - 1) * random.random())
            wanted = work(wanted)
            if not wanted:
                return
        raise StoreUnavailable(f"DynamoDB left a part of a batch on {self.name} undone in {BATCH_TRIES} tries.")

    def pages(self, operation: str, limit: int | None = None, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The answers of a query or scan. The first looks at `limit` entries, later ones at more: what passes a filter may be
        rare."""
        size = min(limit or PAGE_MAX, PAGE_MAX)
        while True:
            answer = self.call(operation, Limit=size, **arguments)
            yield answer
            if not answer.get("LastEvaluatedKey"):
                return
            arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
            size = min(size * 4, PAGE_MAX)

    def side_by_side(self, work: Callable[[Any], T], many: Iterable[Any]) -> list[T]:
        """The work on each, AT_ONCE at a time, in order; raises what the first of them raised."""
        todo = list(many)
        if len(todo) < 2:
            return [work(one) for one in todo]
        from gevent.pool import Pool

        def guarded(one: Any) -> tuple[T | None, Exception | None]:
            try:
                return work(one), None
            except Exception as error:
                return None, error

        done = Pool(AT_ONCE).map(guarded, todo)
        for _, error in done:
            if error is not None:
                raise error
        return [value for value, _ in done]

    def call(self, operation: str, *, named: bool = True, **arguments: Any) -> dict[str, Any]:
        """One call of the service, its errors as ours. Raises Refused where a condition does not hold."""
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        if named:
            arguments["TableName"] = self.name
        try:
            answer: dict[str, Any] = getattr(self.client, operation)(**arguments)
        except Exception as error:
            self._raise(error)
        return answer

    def _raise(self, error: Exception) -> NoReturn:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        code = error_code(error)
        if code == "ConditionalCheckFailedException":
            raise Refused(getattr(error, "response", {}).get("Item")) from None
        if not isinstance(error, (BotoCoreError, ClientError)) or isinstance(error, ParamValidationError):
            raise error
        why = explain(error)
        if code in ("ResourceNotFoundException", "TableNotFoundException"):
            raise ConfigError("config.store", f"There is no DynamoDB table {self.name} in this region.", _SETUP,
                              place="store") from None
        if code in _DENIED:
            action = f"dynamodb:{getattr(error, 'operation_name', '?')}"
            raise ConfigError("config.aws_permission", f"AWS does not allow {action} on the table {self.name}.",
                              f"Allow it in the role's policy; `nommerd aws setup --dry-run` prints one. AWS says: {why}",
                              place="store") from None
        if fault := credentials_fault(error):
            raise fault from None
        if code == "ValidationException" and re.search(r"\bindex\b|schema|[Mm]issing the key|key element|key attribute", why):
            raise ConfigError("config.store", f"The DynamoDB table {self.name} is not as this version needs it: {why}",
                              _SETUP, place="store") from None
        if is_transient(error) or isinstance(error, BotoCoreError) or code.startswith("ExpiredToken"):
            raise StoreUnavailable(f"DynamoDB: {why}") from None
        raise InfrastructureError("internal.store_refused", f"DynamoDB refused a call: {why}", retryable=False) from None
