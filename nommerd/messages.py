"""What travels on the bus. A message is a hint: it names a record, and the record is the truth."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from nommerd.job import DEFAULT_PROJECT, Key, Priority

SCHEMA_VERSION = 1


class UndecodableMessage(Exception):
    """The bytes are no message of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMessage:
    """There may be work on this job."""

    id: str
    project: str = DEFAULT_PROJECT
    priority: Priority = Priority.NORMAL
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> Key:
        return Key(self.project, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMessage:
    """This job's state changed, `event_seq` being its newest event then."""

    id: str
    project: str = DEFAULT_PROJECT
    event_seq: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> Key:
        return Key(self.project, self.id)


Message = JobMessage | ChangeMessage
_KINDS: dict[str, type[JobMessage] | type[ChangeMessage]] = {"job": JobMessage, "change": ChangeMessage}
_NAMES = {cls: kind for kind, cls in _KINDS.items()}


def encode(message: Message) -> str:
    """The message as compact JSON text."""
    return json.dumps({"kind": _NAMES[type(message)], **asdict(message)}, separators=(",", ":"))


def decode(text: str | bytes) -> Message:
    """The message from its text. Raises UndecodableMessage for anything that `encode` did not write.

    A newer schema version decodes as long as the fields we know are there: the reader gives back what it must not touch.
    """
    try:
        fields: dict[str, Any] = json.loads(text)
        cls = _KINDS[fields.pop("kind")]
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        numbers = [known["schema_version"], *([known["event_seq"]] if cls is ChangeMessage else [])]
        if not all(isinstance(known[name], str) for name in ("id", "project")) or any(type(n) is not int for n in numbers):
            raise TypeError
        if cls is JobMessage:
            known["priority"] = Priority(known["priority"])
        return cls(**known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UndecodableMessage(f"{type(error).__name__}: not a message of ours: {text[:80]!r}") from None
