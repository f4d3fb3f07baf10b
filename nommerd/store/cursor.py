"""The opaque cursor of a listing: after which job, newest first, the next page begins."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from nommerd.errors import InputError
from nommerd.job import Job

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_VERSION = 1
_CREATED_MAX = 2**53


class Cursor(NamedTuple):
    """A job's place in the listing; `created` in whole microseconds since the epoch."""

    created: int
    id: str

    def encode(self) -> str:
        text = json.dumps([_VERSION, *self], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @staticmethod
    def decode(text: str) -> Cursor:
        """Raises InputError("request.bad_cursor") for text that `encode` did not write."""
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            version, created, id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
            if version != _VERSION or type(created) is not int or not 0 <= created <= _CREATED_MAX or not isinstance(id, str):
                raise ValueError
            id.encode()  # no half of a surrogate pair: SQLite takes UTF-8
        except (ValueError, TypeError, binascii.Error, RecursionError):
            raise InputError("request.bad_cursor", "This cursor was never given out.",
                             "Use the `next` of the page before, or none.", place="cursor") from None
        return Cursor(created, id)

    @staticmethod
    def of(job: Job) -> Cursor:
        return Cursor(microseconds(job.created), job.id)


def microseconds(at: datetime) -> int:
    """Whole microseconds since the epoch, exactly."""
    return (at - _EPOCH) // timedelta(microseconds=1)
