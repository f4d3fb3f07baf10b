"""http and https: sources by GET, resumed where they were cut; destinations by PUT.

A PUT cannot be fenced. Whatever a server makes of it happens in `publish`: a worker that lost its job stops sending (a
server may keep what came, or not), but one whose last byte is out cannot take it back, and a newer owner encodes again.
Without `overwrite` the request says `If-None-Match: *`; a server that ignores it is only asked beforehand whether something
is there. Use S3 or files where two workers must never both write.
"""

from __future__ import annotations

import os
import secrets as random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nommerd import runtime
from nommerd.errors import Fenced, InfrastructureError, InputError, NommerdError, Stop
from nommerd.job import utcnow
from nommerd.net.egress import Egress
from nommerd.net.retry_after import retry_after_seconds
from nommerd.net.watched import watched
from nommerd.storage import disk
from nommerd.storage.base import NO_OPTIONS, Fetched, OnBytes, Staging, Storage, UploadOptions
from nommerd.storage.http_fetch import RETRY_AFTER_MAX_SECONDS, Download, Patience

if TYPE_CHECKING:
    from nommerd.net.session import Answer

BODY_BYTES = 256 * 2**10  # per send
SLOWEST_BYTES_A_SECOND = 25_000  # slower counts as stalled, over a send (by the socket's time-out) and over the whole
ANSWER_SECONDS = 120.0  # what a server may take after the last byte
HEAD_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Upload:
    """What `upload` was given and `publish` sends."""

    path: Path
    confirm: Callable[[], None]
    on_bytes: OnBytes
    stop: Stop
    options: UploadOptions


class HttpStorage(Storage):
    """See the module's docstring for what destinations cannot promise."""

    options = frozenset({"content_type", "cache_control"})

    def __init__(self, egress: Egress, max_source_bytes: int, patience: Patience | None = None,
                 answer_seconds: float = ANSWER_SECONDS) -> None:
        self._egress = egress
        self._max_source_bytes = max_source_bytes
        self._patience = patience or Patience()
        self._answer_seconds = answer_seconds
        self._uploads: dict[str, _Upload] = {}  # by handle

    def check_source(self, uri: str) -> None:
        self._egress.check(uri, "source")

    def check_dest(self, uri: str) -> None:
        self._egress.check(uri, "dest")

    def fetch(self, uri: str, target: Path, on_bytes: OnBytes, stop: Stop) -> Fetched:
        self.check_source(uri)
        with disk.errors("node", "The workspace"), disk.fresh(target) as descriptor:
            done = Download(self._egress, uri, descriptor, max_bytes=self._max_source_bytes, on_bytes=on_bytes, stop=stop,
                            patience=self._patience).run()
        return Fetched(target, done)

    def exists(self, uri: str) -> bool | None:
        """By HEAD, so None as well for a presigned URL that is good for PUT alone."""
        self.check_dest(uri)
        status, _ = self._head(uri, None)
        return {200: True, 204: True, 404: False, 410: False}.get(status)

    def begin(self, uri: str, token: int, options: UploadOptions = NO_OPTIONS) -> Staging:
        """There is no staging place: the handle only tells uploads of this process apart."""
        self.check_dest(uri)
        return Staging(uri=uri, handle=random.token_hex(8), token=token, options=options)

    def upload(self, staging: Staging, path: Path, confirm: Callable[[], None], on_bytes: OnBytes, stop: Stop) -> None:
        """Only notes what `publish` will send: a PUT is visible at once, and only `publish` knows whether it may overwrite."""
        confirm()
        self._uploads[staging.handle] = _Upload(path, confirm, on_bytes, stop, staging.options)

    def publish(self, staging: Staging, overwrite: bool) -> None:
        """Send it. The file must still be where `upload` was told."""
        upload = self._uploads.pop(staging.handle, None)
        if upload is None:
            raise Fenced("This upload was revoked.")
        if not overwrite and self._head(staging.uri, upload.stop)[0] in (200, 204):
            raise _exists()
        upload.confirm()
        with disk.errors("node", "The workspace"):
            self._put(staging.uri, upload, overwrite)

    def revoke(self, uri: str, handle: str) -> None:
        """Stops only what this process has not begun to send."""
        self._uploads.pop(handle, None)

    def carries(self, uri: str, bytes: int, sha256: str, handle: str) -> bool:
        """Cannot be known without fetching it."""
        return False

    def _put(self, uri: str, upload: _Upload, overwrite: bool) -> None:
        size = upload.path.stat().st_size
        headers = {"Content-Type": upload.options.content_type or "application/octet-stream"}
        if upload.options.cache_control:
            headers["Cache-Control"] = upload.options.cache_control
        if not overwrite:
            headers["If-None-Match"] = "*"
        unsure = False  # whether an earlier try may have arrived although its answer did not
        for attempt in range(1, self._patience.tries + 1):
            wait, error = self._try_put(uri, upload, size, headers, unsure)
            if error is None:
                return
            if attempt == self._patience.tries or wait > RETRY_AFTER_MAX_SECONDS:
                raise error
            unsure = True
            upload.stop.wait(wait or self._patience.backoff_seconds * 2**attempt)

    def _try_put(self, uri: str, upload: _Upload, size: int, headers: dict[str, str],
                 unsure: bool) -> tuple[float, NommerdError | None]:
        """How long to wait (0: as we like) and why, or no error. Raises what no other try would mend."""
        body = _Body(upload, size)
        seconds = self._answer_seconds + size / SLOWEST_BYTES_A_SECOND  # also for one that drips for ever
        try:
            with watched(lambda: self._egress.put(uri, body if size else b"", "dest", headers,
                                                  read_seconds=self._answer_seconds),
                         upload.stop, seconds) as answer:
                if answer.status in (408, 425, 429, 500, 502, 503, 504):
                    wait = retry_after_seconds(answer.headers.get("Retry-After"), utcnow())
                    return wait or 0.0, InfrastructureError("dest.unavailable",
                                                           f"{answer.host} answered {answer.status} to PUT.")
                if answer.status == 412 and unsure and self._head(uri, upload.stop) == (200, str(size)):
                    return 0.0, None  # it is ours: the earlier try did arrive
                if not 200 <= answer.status < 300:
                    raise _refusal(answer)
                return 0.0, None
        except TimeoutError:
            return 0.0, InfrastructureError("dest.unavailable", "The destination's server takes too long.")
        except InfrastructureError as error:
            if not error.code.startswith("dest.unavailable"):
                raise
            return 0.0, error

    def _head(self, uri: str, stop: Stop | None) -> tuple[int, str | None]:
        """Status and Content-Length; 0 without an answer."""
        try:
            with watched(lambda: self._egress.head(uri, "dest"), stop, HEAD_SECONDS) as answer:
                return answer.status, answer.headers.get("Content-Length")
        except (NommerdError, TimeoutError):
            return 0, None


class _Body:
    """A file as the body of a request: its length is known, it is read off the hub, progress is told, and a stop ends it."""

    def __init__(self, upload: _Upload, size: int) -> None:
        self._upload = upload
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        descriptor = os.open(self._upload.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < self._size:
                data = runtime.in_pool(os.pread, descriptor, min(BODY_BYTES, self._size - done), done)
                if not data:
                    raise InfrastructureError("node.io_error", "An output shrank while it was sent.")
                done += len(data)
                yield data
                self._upload.on_bytes(done, self._size)
                self._upload.stop.check()
        finally:
            os.close(descriptor)


def _exists() -> InputError:
    return InputError("dest.exists", "Something is at the destination already.", "Ask for overwrite to replace it.")


def _refusal(answer: Answer) -> NommerdError:
    """What a status means that no other try would change now."""
    status, host = answer.status, answer.host
    if status == 412:
        return _exists()
    if status in (401, 403, 407):
        return InputError("dest.forbidden", f"{host} refuses the destination ({status}).",
                          "Give credentials in the URL (https://user:password@host/…), or a presigned URL for PUT.")
    if status == 413:
        return InputError("dest.too_large", f"{host} does not take files of this size (413).")
    if status == 507:
        return InfrastructureError("dest.disk_full", f"{host} has no space left (507).")
    if status == 409:
        return InfrastructureError("dest.conflict", f"{host} answered 409 to PUT.", "Its folder may be missing, or somebody "
                                   "else writes there.")
    return InputError("dest.refused", f"{host} answered {status} to PUT.",
                      "The server must take PUT at this URL, without redirects.")
