"""One download over HTTP: streamed to disk, resumed where it was cut, and checked to be whole and of one version."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nommerd import runtime
from nommerd.errors import InfrastructureError, InputError, NommerdError, Stop
from nommerd.job import utcnow
from nommerd.net.egress import Egress
from nommerd.net.retry_after import retry_after_seconds
from nommerd.net.watched import watched
from nommerd.storage import disk
from nommerd.storage.base import OnBytes

if TYPE_CHECKING:
    from nommerd.net.session import Answer

CHUNK_BYTES = 2**20  # gathered before each visit to the disk
GATHER_SECONDS = 1.0  # and written no later than this after its first byte
PROGRESS_BYTES = 2**20  # so much more than ever before, and the tries are counted anew
RETRY_AFTER_MAX_SECONDS = 30.0  # a longer wait is left to the job's own retry

_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download tries. `answer_seconds` bounds the wait for headers, however slowly they drip;
    fewer than `bytes_a_second` over `stall_seconds` count as a cut connection."""

    tries: int = 5
    backoff_seconds: float = 0.5
    answer_seconds: float = 60.0
    stall_seconds: float = 60.0
    bytes_a_second: int = 1024


@dataclass(frozen=True, slots=True)
class Version:
    """What a server says to tell one version of a file from another."""

    etag: str | None
    modified: str | None
    bytes: int | None

    @staticmethod
    def of(headers: Mapping[str, str], total: int | None) -> Version:
        return Version(headers.get("ETag"), headers.get("Last-Modified"), total)

    @property
    def validator(self) -> str | None:
        """What If-Range may carry (RFC 9110, 13.1.5): a strong tag, else the date."""
        if self.etag:
            return None if self.etag.startswith("W/") else self.etag
        return self.modified

    def differs(self, other: Version) -> bool:
        """Whether these are surely two versions. Equal dates and lengths outweigh tags: servers of one cluster may tag
        differently."""
        if None not in (self.bytes, other.bytes) and self.bytes != other.bytes:
            return True
        if self.modified and other.modified:
            return self.modified != other.modified
        return None not in (self.etag, other.etag) and self.etag != other.etag


class _Cut(Exception):
    """This try failed and another may not. Carries the error to raise when there will be none."""

    def __init__(self, error: NommerdError, wait_seconds: float | None = None) -> None:
        super().__init__(error.code)
        self.error = error
        self.wait_seconds = wait_seconds


class Download:
    """Brings `uri` into an open file. `run` returns the number of bytes, or raises what DESIGN's source.* errors say."""

    def __init__(self, egress: Egress, uri: str, descriptor: int, *, max_bytes: int, on_bytes: OnBytes, stop: Stop,
                 patience: Patience) -> None:
        self._egress = egress
        self._uri = uri
        self._file = descriptor
        self._max_bytes = max_bytes
        self._on_bytes = on_bytes
        self._stop = stop
        self._patience = patience
        self._offset = 0
        self._version: Version | None = None
        self._resumable = True  # until the server shows otherwise

    def run(self) -> int:
        failures, best = 0, 0
        while True:
            try:
                self._once()
                break
            except _Cut as cut:
                failures = 1 if self._offset >= best + PROGRESS_BYTES else failures + 1
                best = max(best, self._offset)
                wait = self._wait_seconds(cut, failures)
                if failures >= self._patience.tries or wait > RETRY_AFTER_MAX_SECONDS:
                    raise cut.error from None
                self._stop.wait(wait)
        self._check_unchanged()
        return self._offset

    def _wait_seconds(self, cut: _Cut, failures: int) -> float:
        if cut.wait_seconds is not None:
            return cut.wait_seconds
        return self._patience.backoff_seconds * float(2 ** (failures - 1)) * random.uniform(0.5, 1.5)

    def _once(self) -> None:
        """From where we are to the end."""
        validator = self._version.validator if self._version and self._resumable else None
        headers = {"Accept-Encoding": "identity"}
        if self._offset and validator:
            headers |= {"Range": f"bytes={self._offset}-", "If-Range": validator}
        with self._get(headers) as answer:
            self._begin(answer, "Range" in headers)
            self._stream(answer)
        assert self._version is not None
        if self._version.bytes is not None and self._offset != self._version.bytes:
            raise _Cut(_incomplete(self._offset, self._version.bytes))

    def _get(self, headers: Mapping[str, str]) -> Answer:
        try:
            return watched(lambda: self._egress.get(self._uri, "source", headers), self._stop, self._patience.answer_seconds)
        except TimeoutError:
            raise _Cut(InfrastructureError("source.unavailable", "The source's server answered too slowly.")) from None
        except InfrastructureError as error:
            raise _Cut(error) from None

    def _begin(self, answer: Answer, ranged: bool) -> None:
        """Take the headers in, and stand where the body begins."""
        start, total = 0, _content_length(answer.headers)
        if ranged and answer.status == 206:
            match = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            start, total = (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)
        elif ranged and answer.status == 416:
            start = -1
        elif answer.status != 200:
            raise _refusal(answer, self._patience)
        version = Version.of(answer.headers, total)
        if self._version is not None and start >= 0 and self._version.differs(version):
            raise _changed()
        if start not in (0, self._offset):  # not what was asked for: from the start, without ranges
            self._resumable = False
            self._rewind()
            raise _Cut(InfrastructureError("source.incomplete", "The source's server sent another range than was asked for."))
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise InputError("source.encoded", "The source's server sends it compressed though it was asked not to.",
                             "Serve media files without Content-Encoding.")
        if start == 0:
            self._rewind()
            self._version = version
        self._check_size(total)

    def _stream(self, answer: Answer) -> None:
        assert self._version is not None
        began, before = time.monotonic(), self._offset
        while True:
            data, error = self._some(answer)
            if data:
                runtime.in_pool(disk.write_all, self._file, data, self._offset)
                self._offset += len(data)
                self._check_size(self._offset)
                self._on_bytes(self._offset, self._version.bytes)
            if error is not None:
                raise _Cut(error if self._version.bytes is None else _incomplete(self._offset, self._version.bytes))
            if not data:
                return
            if time.monotonic() - began >= self._patience.stall_seconds:
                if self._offset - before < self._patience.bytes_a_second * self._patience.stall_seconds:
                    raise _Cut(_stalled())
                began, before = time.monotonic(), self._offset

    def _some(self, answer: Answer) -> tuple[bytes, NommerdError | None]:
        """What `_gather` brings, unless it brings nothing for too long: a server can send and send without sending data."""
        try:
            return watched(lambda: self._gather(answer), self._stop, self._patience.stall_seconds + GATHER_SECONDS)
        except TimeoutError:
            return b"", _stalled()

    @staticmethod
    def _gather(answer: Answer) -> tuple[bytes, NommerdError | None]:
        """Bytes until there are enough or a second is over, and the error that ended them."""
        pieces: list[bytes] = []
        count, until = 0, time.monotonic() + GATHER_SECONDS
        while count < CHUNK_BYTES and (time.monotonic() < until or not pieces):
            try:
                piece = answer.read(CHUNK_BYTES - count)
            except NommerdError as error:
                return b"".join(pieces), error
            if not piece:
                break
            pieces.append(piece)
            count += len(piece)
        return b"".join(pieces), None

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._max_bytes:
            raise InputError("source.too_large", f"The source has more than {self._max_bytes} bytes.",
                             "The setting is storage.max_source_bytes.")

    def _check_unchanged(self) -> None:
        """Ask for one byte more, and see whether it still is of the version that we have: a server that reads a file while
        somebody writes it sends a mixture. No answer proves nothing (a link may be good for one use)."""
        assert self._version is not None
        if not (self._version.etag or self._version.modified):
            return
        try:
            headers = {"Accept-Encoding": "identity", "Range": "bytes=0-0"}
            answer = watched(lambda: self._egress.get(self._uri, "source", headers), self._stop, self._patience.answer_seconds)
        except (NommerdError, TimeoutError):
            return
        with answer:
            match = _CONTENT_RANGE.match(answer.headers.get("Content-Range", ""))
            total = _content_length(answer.headers) if answer.status == 200 else (
                int(match[2]) if match and match[2] != "*" else None)
            if answer.status in (200, 206) and self._version.differs(Version.of(answer.headers, total)):
                raise _changed()

    def _rewind(self) -> None:
        if self._offset:
            os.ftruncate(self._file, 0)
        self._offset = 0


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if "Transfer-Encoding" not in headers and _LENGTH.fullmatch(text) else None


def _refusal(answer: Answer, patience: Patience) -> NommerdError | _Cut:
    """What a status that brings no body of ours means."""
    status, host = answer.status, answer.host
    if status in (408, 425, 429) or status >= 500:
        return _Cut(InfrastructureError("source.unavailable", f"{host} answered {status} to the fetch of the source."),
                    retry_after_seconds(answer.headers.get("Retry-After"), utcnow()))
    if status in (404, 410):
        return InputError("source.not_found", f"{host} has no such source ({status}).")
    if status in (401, 403, 407):
        return InputError("source.forbidden", f"{host} refuses the source ({status}).",
                          "Give credentials in the URL (https://user:password@host/…), or a presigned URL in time.")
    return InputError("source.refused", f"{host} answered {status} to the fetch of the source.")


def _changed() -> InfrastructureError:
    return InfrastructureError("source.changed", "The source changed while it was fetched.",
                               "Submit files once they are complete.")


def _stalled() -> InfrastructureError:
    return InfrastructureError("source.stalled", "The source's server sends next to nothing.")


def _incomplete(done: int, total: int) -> InfrastructureError:
    return InfrastructureError("source.incomplete", f"{done} of the source's {total} bytes came.")
