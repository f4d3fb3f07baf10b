"""The last step of an upload: completed once, and recognised as ours where an answer was lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from nommerd.aws.clients import error_code, is_transient, status_of
from nommerd.errors import Fenced, InfrastructureError, InputError, Stop
from nommerd.net.watched import watched
from nommerd.storage.base import Staging
from nommerd.storage.s3_errors import NO_UPLOAD, ours, unavailable
from nommerd.storage.s3_parts import TRIES, backoff_seconds
from nommerd.storage.s3_uri import Place
from nommerd.storage.s3_verify import SHA256_KEY

TOKEN_KEY = "nommerd-token"  # in the metadata of our outputs: the token, and the mark of the upload
AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".amazonaws.eu")

_HANDLE = re.compile(r"([0-9a-f]{16}):(.+)")


@dataclass(frozen=True, slots=True)
class Sent:
    """What `upload` leaves for `publish`."""

    parts: list[dict[str, Any]]
    bytes: int
    stop: Stop


class Completion:
    """One completion. `head` looks at what is at the destination, and raises what boto3 raises."""

    def __init__(self, client: Any, place: Place, staging: Staging, sent: Sent, head: Callable[[], dict[str, Any]]) -> None:
        self._client, self._place, self._staging, self._sent, self._head = client, place, staging, sent, head
        self._before: Exception | None = None  # how an earlier try ended, which may have been carried out all the same

    def run(self, overwrite: bool) -> None:
        """Until S3 gives a verdict. InputError dest.exists, Fenced, or what the storage contract says of failures."""
        request = {"Bucket": self._place.bucket, "Key": self._place.key, "UploadId": parted(self._staging.handle)[1],
                   "MultipartUpload": {"Parts": self._sent.parts}}
        condition = {} if overwrite else {"IfNoneMatch": "*"}
        if not overwrite and not is_aws(self._client) and self._something_is_there():
            raise _exists()  # not all that speak S3 know the condition
        for failures in range(1, TRIES + 1):
            try:
                watched(partial(self._client.complete_multipart_upload, **request, **condition), self._sent.stop)
                return
            except Exception as error:
                status = status_of(error)
                if error_code(error) == NO_UPLOAD or status == 412:
                    self._judge(error)
                    return
                if status == 501 and condition and failures < TRIES:
                    condition = {}
                elif failures == TRIES or not (is_transient(error) or status == 409):
                    raise ours(error, "dest", self._place) from None
                self._before = error
            self._sent.stop.wait(backoff_seconds(failures))

    def _judge(self, error: Exception) -> None:
        """S3 knows no such upload, or something is there: return where that is what an earlier try of ours made."""
        try:
            head = self._head()
        except Exception as unknown:
            if self._before is not None and status_of(unknown) != 404:
                raise unavailable("dest", "S3 does not say whether the output was published.") from None
            head = {}
        if is_ours(head, self._sent.bytes, self._staging.options.sha256, parted(self._staging.handle)[0]):
            return
        if status_of(error) == 412:
            raise _exists()
        if self._before is not None and status_of(self._before) == 409:  # S3 ends an upload that met another one
            raise ours(self._before, "dest", self._place) from None
        raise Fenced("S3 knows no such upload: a newer owner revoked it.")

    def _something_is_there(self) -> bool:
        try:
            self._head()
        except Exception:  # it will be seen
            return False
        return True


def is_aws(client: Any) -> bool:
    """Whether it speaks to AWS itself."""
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host.endswith(AWS_HOSTS)


def is_ours(head: dict[str, Any], size: int, sha256: str | None, mark: str | None) -> bool:
    """Whether an object is this output; `mark`: of this very upload."""
    metadata = head.get("Metadata", {})
    return (head.get("ContentLength") == size and (sha256 is None or metadata.get(SHA256_KEY) == sha256)
            and (mark is None or str(metadata.get(TOKEN_KEY, "")).endswith(f"-{mark}")))


def parted(handle: str) -> tuple[str, str]:
    """Mark and upload id."""
    match = _HANDLE.fullmatch(handle)
    if match is None:
        raise InfrastructureError("internal.bad_handle", "A staging handle is none of ours.", retryable=False)
    return match[1], match[2]


def _exists() -> InputError:
    return InputError("dest.exists", "Something is at the destination already.", "Ask for overwrite to replace it.")
