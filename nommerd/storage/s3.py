"""`s3:` URIs, on AWS and on whatever else speaks S3 (MinIO, R2 …). s3_uri says how they are read and what is allowed.

An output is a multipart upload, however small: nothing is visible before it is completed, and whoever holds its id can
abort it, which makes a late owner's completion fail. Its metadata carry our SHA-256 and the token with a random text, so
that a completion whose answer was lost is told from somebody else's object. A process that dies between opening an upload
and recording it, or gets no answer when it opens one, leaves one that nobody knows: the bucket's lifecycle rule removes it.

Credentials in a URI are sent to the configured endpoint and nowhere else.
"""

from __future__ import annotations

import os
import secrets as random
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from nommerd.aws.clients import error_code, status_of
from nommerd.errors import Fenced, InfrastructureError, InputError, NommerdError, Stop
from nommerd.storage import disk
from nommerd.storage.base import NO_OPTIONS, Fetched, OnBytes, Staging, Storage, UploadOptions
from nommerd.storage.s3_complete import TOKEN_KEY, Completion, Sent, is_aws, is_ours, parted
from nommerd.storage.s3_errors import NO_UPLOAD, UNKNOWN_KEYS, ours, told, unavailable
from nommerd.storage.s3_fetch import Download
from nommerd.storage.s3_parts import backoff_seconds, persistently
from nommerd.storage.s3_upload import Sending
from nommerd.storage.s3_uri import Allowed, Place, parse
from nommerd.storage.s3_verify import SHA256_KEY

if TYPE_CHECKING:
    from nommerd.aws.clients import Clients

CLIENTS_KEPT = 16  # of credentials in URIs
REVOKE_TRIES, REVOKE_CALL_TRIES = 5, 3  # until an upload is gone; and of each call: what cannot be reached is left to others


class S3Storage(Storage):
    """See the module's docstring. boto3 is imported at the first call that needs the network."""

    options = frozenset(one.name for one in fields(UploadOptions))

    def __init__(self, clients: Clients, read: Sequence[str], write: Sequence[str], max_source_bytes: int, *,
                 endpoint_url: str | None = None, closed_buckets: Sequence[str] = (), md5_etags: bool | None = None) -> None:
        """`endpoint_url`: null for AWS, or what boto3's own configuration says. `closed_buckets` are never read or written, by
        whatever credentials. `md5_etags`: whether ETags are made of MD5s; null: they are on AWS alone. Raises ConfigError for
        entries that are none."""
        self._clients = clients
        self._read, self._write = Allowed(read, "storage.s3_read"), Allowed(write, "storage.s3_write")
        self._max_source_bytes = max_source_bytes
        self._endpoint_url = endpoint_url
        self._closed = frozenset(closed_buckets)
        self._md5_etags = md5_etags
        self._theirs: OrderedDict[tuple[str, str], Any] = OrderedDict()  # clients by credentials
        self._sent: dict[str, Sent] = {}  # by handle

    def check_source(self, uri: str) -> None:
        self._source(uri)

    def check_dest(self, uri: str) -> None:
        self._dest(uri, folder=True)

    def fetch(self, uri: str, target: Path, on_bytes: OnBytes, stop: Stop) -> Fetched:
        place = self._source(uri)
        client = self._client(place)
        with disk.errors("node", "The workspace"), disk.fresh(target) as descriptor:
            md5_etags = is_aws(client) if self._md5_etags is None else self._md5_etags
            done = Download(client, place, descriptor, max_bytes=self._max_source_bytes, md5_etags=md5_etags,
                            on_bytes=on_bytes, stop=stop).run()
        return Fetched(target, done)

    def exists(self, uri: str) -> bool | None:
        """None as well where these credentials may not look. A folder never counts as something that is there."""
        place = self._dest(uri, folder=True)
        if place.is_folder:
            return False
        try:
            self._head(place)
        except NommerdError:
            return None
        except Exception as error:
            return False if status_of(error) == 404 else None
        return True

    def begin(self, uri: str, token: int, options: UploadOptions = NO_OPTIONS) -> Staging:
        """Opens a multipart upload: whatever describes the object is said now."""
        place = self._dest(uri)
        mark = random.token_hex(8)
        request = {"Bucket": place.bucket, "Key": place.key, **_described(options, token, mark)}
        upload = self._call(place, lambda client: persistently(lambda: client.create_multipart_upload(**request), Stop()))
        return Staging(uri=uri, handle=f"{mark}:{upload['UploadId']}", token=token, options=options)

    def upload(self, staging: Staging, path: Path, confirm: Callable[[], None], on_bytes: OnBytes, stop: Stop) -> None:
        place, (_, upload_id) = self._dest(staging.uri), parted(staging.handle)
        try:
            confirm()
            with disk.errors("node", "An output"):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    found = os.fstat(descriptor)
                    if not stat.S_ISREG(found.st_mode):
                        raise InfrastructureError("node.io_error", "An output is no regular file.")
                    size = found.st_size
                    parts = self._call(place, lambda client: Sending(
                        client, place, upload_id, descriptor, size, lambda done: on_bytes(done, size), stop).run())
                finally:
                    os.close(descriptor)
        except BaseException:
            self._drop(staging)
            raise
        self._sent[staging.handle] = Sent(parts, size, stop)

    def publish(self, staging: Staging, overwrite: bool) -> None:
        """Complete the upload. Nothing is left of it where that fails."""
        place, sent = self._dest(staging.uri), self._sent.pop(staging.handle, None)
        if sent is None:
            raise Fenced("This upload was revoked.")
        try:
            Completion(self._client(place), place, staging, sent, lambda: self._head(place)).run(overwrite)
        except BaseException:
            self._drop(staging)
            raise

    def revoke(self, uri: str, handle: str) -> None:
        """Works outside the allowed buckets as well, so that nothing stays behind where the operator narrowed them.

        Parts on their way may arrive after an abort (AWS, AbortMultipartUpload): it is repeated until S3 knows nothing of
        the upload any longer, which also waits for the outcome of a completion under way.
        """
        if not handle:
            return
        place, (_, upload_id) = parse(uri, "dest"), parted(handle)
        self._sent.pop(handle, None)
        where = {"Bucket": place.bucket, "Key": place.key, "UploadId": upload_id}
        client = self._client(place)
        for failures in range(1, REVOKE_TRIES + 1):
            if self._gone(place, lambda: client.abort_multipart_upload(**where)):
                return
            if self._gone(place, lambda: client.list_parts(**where, MaxParts=1), look=True):
                return
            Stop().wait(backoff_seconds(failures))
        raise unavailable("dest", "S3 does not end an earlier upload.")

    def carries(self, uri: str, bytes: int, sha256: str, handle: str) -> bool:
        """By size and metadata. Raises InfrastructureError where S3 cannot be asked: no answer proves nothing."""
        place = parse(uri, "dest")
        try:
            head = self._head(place)
        except Exception as error:
            known = told(error, "dest", place)
            if isinstance(known, InfrastructureError):
                raise known from None
            return False
        return is_ours(head, bytes, sha256, parted(handle)[0] if handle else None)

    def link_output(self, uri: str, seconds: int, disposition: str, content_type: str) -> str:
        """Presigned, by version 4 alone: newer buckets take no other."""
        place = self._dest(uri)
        client = self._client(place)
        signer = self._made(place.credentials, client.meta.config.s3["addressing_style"], signature_version="s3v4")
        what = {"Bucket": place.bucket, "Key": place.key, "ResponseContentDisposition": disposition,
                "ResponseContentType": content_type}
        return str(signer.generate_presigned_url("get_object", Params=what, ExpiresIn=seconds))

    # --- calls ---------------------------------------------------------------------------------------------------

    def _gone(self, place: Place, call: Callable[[], object], look: bool = False) -> bool:
        """Whether S3 says that it knows no such upload (or bucket, or credentials: then nobody can complete it). `look`:
        who may not look takes the abort's word."""
        try:
            persistently(call, Stop(), tries=REVOKE_CALL_TRIES)
        except Exception as error:
            code = error_code(error)
            if code in (NO_UPLOAD, "NoSuchBucket") or (code in UNKNOWN_KEYS and not place.own):
                return True
            if look and status_of(error) in (403, 405, 501):
                return True
            if status_of(error) == 409:
                return False
            raise told(error, "dest", place) from None
        return False

    def _drop(self, staging: Staging) -> None:
        """Leave nothing of it, as far as S3 can be reached; the record names what is left."""
        self._sent.pop(staging.handle, None)
        try:
            self.revoke(staging.uri, staging.handle)
        except NommerdError:
            return

    def _head(self, place: Place) -> dict[str, Any]:
        client = self._client(place)
        head: dict[str, Any] = persistently(lambda: client.head_object(Bucket=place.bucket, Key=place.key), Stop())
        return head

    def _call(self, place: Place, call: Callable[[Any], Any]) -> Any:
        """boto3's errors become ours; an upload that is gone was revoked."""
        try:
            return call(self._client(place))
        except Exception as error:
            if error_code(error) == NO_UPLOAD:
                raise Fenced("S3 knows no such upload: a newer owner revoked it.") from None
            raise ours(error, "dest", place) from None

    def _client(self, place: Place) -> Any:
        """Of the node's account, or of the credentials in the URI."""
        keys = place.credentials
        if keys is not None and keys in self._theirs:
            self._theirs.move_to_end(keys)
            return self._theirs[keys]
        client = self._made(keys, "auto" if self._endpoint_url is None else "path")
        if self._endpoint_url is None and not is_aws(client):
            client = self._made(keys, "path")  # boto3's own configuration names another endpoint
        if keys is not None:
            self._theirs[keys] = client
            if len(self._theirs) > CLIENTS_KEPT:
                self._theirs.popitem(last=False)
        return client

    def _made(self, keys: tuple[str, str] | None, addressing_style: str, **more: str) -> Any:
        s3 = {"addressing_style": addressing_style, "payload_signing_enabled": False}
        # Tries are counted here, where it matters what an earlier one may have done. Checksums that others than AWS may not
        # know are left out everywhere: parts carry an MD5, which is signed.
        return self._clients("s3", endpoint_url=self._endpoint_url, access_key=keys, tries=1, s3=s3,
                             request_checksum_calculation="when_required", response_checksum_validation="when_required",
                             **more)

    # --- places --------------------------------------------------------------------------------------------------

    def _source(self, uri: str) -> Place:
        place = self._open(parse(uri, "source"), "source", self._read)
        if place.is_folder:
            raise InputError("source.bad_uri", "The source names no object.", "Write s3://bucket/key.")
        return place

    def _dest(self, uri: str, folder: bool = False) -> Place:
        place = self._open(parse(uri, "dest"), "dest", self._write)
        if place.is_folder and not (folder and uri.endswith("/")):
            raise InputError("dest.bad_uri", "The destination names no object.", "Write s3://bucket/key.")
        return place

    def _open(self, place: Place, family: str, allowed: Allowed) -> Place:
        if place.bucket in self._closed:
            raise InputError(f"{family}.outside_buckets", f"The bucket {place.bucket} is nommerd's own.",
                             "Choose another one.")
        if place.own:
            allowed.check(place, family)
        return place


def _described(options: UploadOptions, token: int, mark: str) -> dict[str, Any]:
    """CreateMultipartUpload's arguments for these options."""
    given = {"ContentType": options.content_type or "application/octet-stream", "CacheControl": options.cache_control,
             "StorageClass": options.storage_class, "ServerSideEncryption": options.encryption,
             "SSEKMSKeyId": options.kms_key_id, "ACL": options.acl, "Tagging": urlencode(options.tags)}
    metadata = {TOKEN_KEY: f"{token}-{mark}"} | ({SHA256_KEY: options.sha256} if options.sha256 else {})
    return {name: value for name, value in given.items() if value} | {"Metadata": metadata}
