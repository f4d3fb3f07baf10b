"""One download from S3: ranges of the object side by side into one file, all of one version, and checked when they are there.

Every range is asked for with If-Match on the ETag that the first look brought, so that an object which is replaced
meanwhile is noticed; a range that is cut goes on where it was. See s3_verify for what is checked at the end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from nommerd import runtime
from nommerd.aws.clients import error_code, is_transient, status_of
from nommerd.errors import InfrastructureError, InputError, NommerdError, Stop
from nommerd.net.watched import watched
from nommerd.storage import disk, s3_verify
from nommerd.storage.base import OnBytes
from nommerd.storage.s3_errors import archived, is_boto, ours
from nommerd.storage.s3_parts import TRIES, backoff_seconds, persistently, side_by_side
from nommerd.storage.s3_uri import Place

RANGE_BYTES = 16 * 2**20
READ_BYTES = 2**20  # taken from a connection and written at once
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


@dataclass(slots=True)
class _Span:
    """What is left of a range: from `at` up to `end`."""

    at: int
    end: int


class Download:
    """Brings an object into an open file. `run` returns the number of bytes."""

    def __init__(self, client: Any, place: Place, descriptor: int, *, max_bytes: int, md5_etags: bool, on_bytes: OnBytes,
                 stop: Stop) -> None:
        """`md5_etags`: the endpoint's ETags are known to be made of MD5s, as AWS documents its own to be."""
        self._client, self._place, self._descriptor = client, place, descriptor
        self._max_bytes, self._md5_etags = max_bytes, md5_etags
        self._on_bytes, self._stop = on_bytes, stop
        self._done = 0
        self._bytes = 0
        self._etag = ""

    def run(self) -> int:
        head = self._head()
        self._bytes, self._etag = int(head["ContentLength"]), str(head.get("ETag", ""))
        self._on_bytes(0, self._bytes)
        runtime.in_pool(os.ftruncate, self._descriptor, self._bytes)
        file = _File(self._descriptor)
        try:
            side_by_side(lambda span: self._bring(span, file), self._spans(), self._stop)
        finally:
            runtime.in_pool(file.close)
        self._verify(head)
        return self._bytes

    def _verify(self, head: dict[str, Any]) -> None:
        readable = runtime.in_pool(os.open, f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            s3_verify.verify(self._client, self._place, head, readable, md5_etags=self._md5_etags, stop=self._stop)
        finally:
            os.close(readable)

    def _spans(self) -> Iterator[_Span]:
        for begin in range(0, self._bytes, RANGE_BYTES):
            yield _Span(begin, min(begin + RANGE_BYTES, self._bytes))

    def _head(self) -> dict[str, Any]:
        """What S3 says of the object. Raises where it cannot be had, is archived, or is too large."""
        where = {"Bucket": self._place.bucket, "Key": self._place.key}
        try:
            head: dict[str, Any] = persistently(lambda: watched(
                lambda: self._client.head_object(**where, ChecksumMode="ENABLED"), self._stop), self._stop)
        except Exception as error:
            raise self._reason(error) from None
        if _is_archived(head):
            raise archived(self._place)
        if int(head["ContentLength"]) > self._max_bytes:
            raise InputError("source.too_large", f"The source has {head['ContentLength']} bytes; at most {self._max_bytes} "
                             "are taken.", "The setting is storage.max_source_bytes.")
        return head

    def _reason(self, error: Exception) -> Exception:
        """An answer to HEAD has a status alone; one to GET says why."""
        if status_of(error) is None:
            return self._told(error)
        try:
            watched(lambda: self._client.get_object(Bucket=self._place.bucket, Key=self._place.key, Range="bytes=0-0"),
                    self._stop)["Body"].close()
        except Exception as better:
            return self._told(better)
        return self._told(error)

    def _told(self, error: Exception) -> Exception:
        return ours(error, "source", self._place)

    def _bring(self, span: _Span, file: _File) -> None:
        """The whole range, in as many requests as it takes: at most TRIES in a row that bring nothing."""
        failures = 0
        while span.at < span.end:
            before = span.at
            try:
                self._some(span, file)
                error: Exception = _incomplete(self._done, self._bytes)
            except Exception as raised:
                error = raised
                if not _may_go_on(raised):
                    raise self._told(raised) from None
            if span.at < span.end:
                failures = failures + 1 if span.at == before else 1
                if failures >= TRIES:
                    raise self._told(error)
                self._stop.wait(backoff_seconds(failures))
                self._stop.check()

    def _some(self, span: _Span, file: _File) -> None:
        """One request; `span.at` is where it ended."""
        answer = self._get(span)
        with closing(answer["Body"]) as body:
            while span.at < span.end:
                data = body.read(min(READ_BYTES, span.end - span.at))
                if not data:
                    return
                with disk.errors("node", "The workspace"):
                    runtime.in_pool(file.write, data, span.at)
                span.at += len(data)
                self._done += len(data)
                self._on_bytes(self._done, self._bytes)

    def _get(self, span: _Span) -> dict[str, Any]:
        condition = {"IfMatch": self._etag} if self._etag else {}
        try:
            answer: dict[str, Any] = self._client.get_object(Bucket=self._place.bucket, Key=self._place.key, **condition,
                                                             Range=f"bytes={span.at}-{span.end - 1}")
        except Exception as error:
            if status_of(error) in (412, 416):
                raise _changed() from None
            raise
        match = _CONTENT_RANGE.match(answer.get("ContentRange", ""))
        if match is None or int(match[1]) != span.at:
            answer["Body"].close()
            raise InfrastructureError("source.incomplete", "S3 sent another range than was asked for.")
        if int(match[2]) != self._bytes:
            answer["Body"].close()
            raise _changed()
        return answer


class _File:
    """A descriptor that threads write by. Closed once none of them is at it, whatever became of who asked for it: a
    number that is used again must not be written to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._lock = runtime.native("_thread", "allocate_lock")()

    def write(self, data: bytes, offset: int) -> None:
        with self._lock:
            if self._descriptor >= 0:
                disk.write_all(self._descriptor, data, offset)

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


def _is_archived(head: dict[str, Any]) -> bool:
    if 'ongoing-request="false"' in head.get("Restore", ""):
        return False
    return head.get("StorageClass") in ARCHIVES or bool(head.get("ArchiveStatus"))


def _may_go_on(error: Exception) -> bool:
    """Whether another request for the rest may succeed: the connection was cut, or S3 asks to come back."""
    if isinstance(error, NommerdError):
        return error.code == "source.incomplete"
    return is_transient(error) or (status_of(error) is None and is_boto(error) and error_code(error) not in _FINAL)


_FINAL = frozenset({"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"})


def _changed() -> InfrastructureError:
    return InfrastructureError("source.changed", "The source changed while it was fetched.",
                               "Submit files once they are complete.")


def _incomplete(done: int, total: int) -> InfrastructureError:
    return InfrastructureError("source.incomplete", f"{done} of the source's {total} bytes came.")
