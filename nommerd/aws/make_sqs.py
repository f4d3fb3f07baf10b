"""Queues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nommerd.aws.account import Account, Outcome, Status, found, outcome, tag_map
from nommerd.aws.clients import error_code
from nommerd.aws.plan import Resource, queue_property

DELETED_RECENTLY = frozenset({"AWS.SimpleQueueService.QueueDeletedRecently", "QueueDeletedRecently"})
DELETED_SECONDS = 90.0  # SQS takes a name again 60 s after its queue was deleted
NO_ATTRIBUTES = frozenset({"QueueName", "Tags"})


class Queues:
    """AWS::SQS::Queue."""

    def ensure(self, account: Account, resource: Resource) -> Outcome:
        sqs = account.clients("sqs")
        wanted = {key: value for key, value in resource.properties.items() if key not in NO_ATTRIBUTES}
        url = queue_url(sqs, resource.name)
        if url is None:
            make_queue(account, resource.name, attributes(wanted), tag_map(resource.properties["Tags"]))
            return outcome(resource, Status.MADE)
        why = account.not_ours(queue_tags(sqs, url))
        if why:
            return outcome(resource, Status.DIFFERS, why)
        changed = change_queue_attributes(sqs, url, wanted)
        return outcome(resource, Status.CHANGED if changed else Status.EXISTS, ", ".join(changed))

    def remove(self, account: Account, resource: Resource) -> Outcome:
        sqs = account.clients("sqs")
        url = queue_url(sqs, resource.name)
        if url is None:
            return outcome(resource, Status.ABSENT)
        why = account.left(queue_tags(sqs, url))
        if why:
            return outcome(resource, Status.LEFT, why)
        found(lambda: sqs.delete_queue(QueueUrl=url))
        return outcome(resource, Status.REMOVED)


def queue_url(sqs: Any, name: str) -> str | None:
    """None where there is no such queue."""
    answer = found(lambda: sqs.get_queue_url(QueueName=name))
    return str(answer["QueueUrl"]) if answer else None


def queue_tags(sqs: Any, url: str) -> dict[str, str]:
    return dict(sqs.list_queue_tags(QueueUrl=url).get("Tags") or {})


def make_queue(account: Account, name: str, texts: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """Make a queue, and wait where one of this name was deleted a moment ago. Its URL."""
    sqs = account.clients("sqs")

    def attempt() -> str | None:
        try:
            return str(sqs.create_queue(QueueName=name, Attributes=dict(texts), tags=dict(tags))["QueueUrl"])
        except Exception as error:
            if error_code(error) in DELETED_RECENTLY:
                return None
            raise

    return account.wait(f"the queue {name}, deleted a moment ago, can be made again", attempt, DELETED_SECONDS)


def change_queue_attributes(sqs: Any, url: str, wanted: Mapping[str, Any]) -> list[str]:
    """Make these attributes what they should be; the names of those that were not."""
    wrong = _wrong(sqs, url, wanted)
    if not wrong:
        return []
    sqs.set_queue_attributes(QueueUrl=url, Attributes=attributes(wrong))
    return sorted(wrong.keys() - _wrong(sqs, url, wrong).keys())  # emulators do not tell every attribute: these do not count


def _wrong(sqs: Any, url: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are otherwise, or not told."""
    texts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]).get("Attributes") or {}
    return {key: value for key, value in wanted.items() if key not in texts or queue_property(key, texts[key]) != value}


def attributes(properties: Mapping[str, Any]) -> dict[str, str]:
    """CloudFormation's properties as SQS takes them: all texts."""
    return {key: _text(value) for key, value in properties.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else str(value)
