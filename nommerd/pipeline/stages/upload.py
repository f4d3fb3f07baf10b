"""`upload`: publishes every output that no later stage consumed, whole and by one owner (see nommerd.storage.base)."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from nommerd.errors import ConfigError, InputError, NommerdError
from nommerd.job import JobState, Output, Staged
from nommerd.media.probe import probe
from nommerd.pipeline.context import Context, MediaFile
from nommerd.pipeline.destination import is_folder, join
from nommerd.pipeline.stage import Stage, StageSettings
from nommerd.runtime import in_pool
from nommerd.secrets import public_uri
from nommerd.storage import same_place
from nommerd.storage.base import Staging, Storage, UploadOptions, name_of

HASH_BYTES = 4 << 20  # hashed in one go: some 5 ms in a thread
HASH_SHARE = 0.2  # of the stage's progress

CONTENT_TYPES = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska", ".webm": "video/webm",
    ".ts": "video/mp2t", ".mpg": "video/mpeg", ".avi": "video/x-msvideo", ".mxf": "application/mxf", ".ogv": "video/ogg",
    ".m4a": "audio/mp4", ".aac": "audio/aac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".opus": "audio/ogg",
    ".flac": "audio/flac", ".wav": "audio/wav", ".m3u8": "application/vnd.apple.mpegurl", ".mpd": "application/dash+xml",
    ".m4s": "video/iso.segment", ".vtt": "text/vtt", ".srt": "application/x-subrip", ".jpg": "image/jpeg", ".png": "image/png",
    ".webp": "image/webp", ".gif": "image/gif",
}


TAGS_MAX, TAG_NAME_MAX, TAG_VALUE_MAX = 10, 128, 256  # S3's limits
_TAG = re.compile(r"[\w +\-=.:/@]*")  # letters and digits of any script, and these (AWS, object tags)
_MEDIA_TYPE = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*(; ?[A-Za-z0-9_-]+=[\x21\x23-\x7e]+)?$"


def _tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in tags.items():
        if not 1 <= len(name) <= TAG_NAME_MAX or len(value) > TAG_VALUE_MAX:
            raise ValueError(f"a tag has a name of 1 to {TAG_NAME_MAX} characters, and a value of at most {TAG_VALUE_MAX}")
        if not _TAG.fullmatch(name) or not _TAG.fullmatch(value):
            raise ValueError("tags are made of letters, digits, spaces and + - = . _ : / @")
        if name.lower().startswith("aws:"):
            raise ValueError("names of tags that begin with aws: are AWS's own")
    return tags


class UploadSettings(StageSettings):
    """How outputs are published. `content_type` goes by the name unless it is set; it and `cache_control` are for s3: and
    http:, the rest for s3: alone, by AWS's names and values."""

    content_type: Annotated[str, Field(pattern=_MEDIA_TYPE, max_length=255)] | None = Field(
        None, description="A media type, for s3: and http:. Unless set, by the name's extension.")
    cache_control: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$", max_length=255)] | None = Field(
        None, description="The Cache-Control header, for s3: and http:.")
    storage_class: Literal["STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR",
                           "GLACIER", "DEEP_ARCHIVE"] | None = Field(
        None, description="S3's storage class.")
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        None, description="How S3 encrypts it; unless set, as the bucket says.")
    kms_key_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$", max_length=2048)] | None = Field(
        None, description="A key of your own, with `aws:kms` or `aws:kms:dsse`.")
    acl: Literal["private", "public-read", "public-read-write", "authenticated-read", "aws-exec-read", "bucket-owner-read",
                 "bucket-owner-full-control"] | None = Field(
        None, description="S3's canned ACL; most buckets take none today.")
    tags: Annotated[dict[str, str], Field(max_length=TAGS_MAX), AfterValidator(_tags)] = Field(
        default_factory=dict, description="S3's object tags.")

    @model_validator(mode="after")
    def _key_needs_kms(self) -> UploadSettings:
        if self.kms_key_id and not (self.encryption or "").startswith("aws:kms"):
            raise ValueError("kms_key_id goes with encryption aws:kms or aws:kms:dsse")
        return self


@dataclass(slots=True)
class _Piece:
    """One file on its way."""

    file: MediaFile
    uri: str
    backend: Storage
    bytes: int
    sha256: str = ""
    staging: Staging | None = None
    entry: Staged | None = None


class Upload(Stage):
    """All outputs are staged and on their way before the first becomes visible; the record lists them from before the
    first byte. After a failure nothing staged is left."""

    name = "upload"
    Settings = UploadSettings
    state = JobState.UPLOADING
    weight = 0.1

    def run(self, context: Context) -> None:
        pieces = _pieces(context)
        self._check(context, pieces)
        total = sum(piece.bytes for piece in pieces) or 1
        done = 0
        for piece in pieces:
            piece.sha256 = _sha256(piece, context, _share(context, 0.0, HASH_SHARE, done, total))
            done += piece.bytes
        try:
            self._begin(context, pieces)
            done = 0
            for piece in pieces:
                assert piece.staging is not None
                on_bytes = _on_bytes(_share(context, HASH_SHARE, 1 - HASH_SHARE, done, total))
                piece.backend.upload(piece.staging, piece.file.path, context.recorder.confirm, on_bytes, context.stop)
                done += piece.bytes
            for piece in pieces:
                self._publish(context, piece)
        finally:
            _revoke(pieces)

    def _begin(self, context: Context, pieces: Sequence[_Piece]) -> None:
        coming: list[Staged] = []
        for piece in pieces:
            staging = piece.staging = piece.backend.begin(piece.uri, context.task.token, self._options(piece))
            piece.entry = Staged(uri=public_uri(piece.uri), handle=staging.handle, bytes=piece.bytes, sha256=piece.sha256,
                                 token=context.task.token, probe=_summary(context, piece.file))
            coming.append(piece.entry)
        context.recorder.stage_outputs((*context.published, *coming), context.warnings)

    def _check(self, context: Context, pieces: Sequence[_Piece]) -> None:
        """Say what the destination has no place for. Without the encryption that was asked for, nothing is published."""
        asked = self.settings.model_fields_set - {"id"} if self.settings else set()
        unused = sorted(name for name in asked if getattr(self.settings, name)
                        and not all(name in piece.backend.options for piece in pieces))
        if not unused:
            return
        what = f"The destination has no place for {', '.join(unused)}."
        if "encryption" in unused:
            raise InputError("dest.not_supported", what, "Publish to s3:, or leave them out of the upload stage.")
        context.warn("dest.options_ignored", what, "They are for s3: destinations.")

    def _options(self, piece: _Piece) -> UploadOptions:
        wanted: UploadSettings = self.settings or UploadSettings()
        return UploadOptions(
            content_type=wanted.content_type or content_type(piece), sha256=piece.sha256, cache_control=wanted.cache_control,
            storage_class=wanted.storage_class, encryption=wanted.encryption, kms_key_id=wanted.kms_key_id, acl=wanted.acl,
            tags=wanted.tags)

    def _publish(self, context: Context, piece: _Piece) -> None:
        """Make it visible, having just asked the record whether the job is still ours."""
        entry, staging = piece.entry, piece.staging
        assert entry is not None and staging is not None
        ours = any(earlier.uri == entry.uri for earlier in context.published)
        context.recorder.confirm()
        piece.backend.publish(staging, context.task.overwrite or ours)
        piece.file.published = True
        context.published = [earlier for earlier in context.published if earlier.uri != entry.uri] + [entry]
        context.outputs.append(Output(uri=entry.uri, bytes=entry.bytes, sha256=entry.sha256, probe=entry.probe))


def content_type(piece: _Piece) -> str | None:
    """By the extension of the destination, else of the file."""
    for name in (name_of(piece.uri), piece.file.path.name):
        found = CONTENT_TYPES.get(PurePosixPath(name).suffix.lower())
        if found:
            return found
    return None


def _pieces(context: Context) -> list[_Piece]:
    files, dest = context.unpublished, context.task.dest
    if not files:
        raise ConfigError("recipe.no_output", "The pipeline makes no output that could be uploaded.",
                          "Put a media stage before `upload`.")
    if not is_folder(dest):
        if len(files) > 1:
            raise InputError("dest.not_a_folder", f"The pipeline makes {len(files)} outputs, the destination names one file.",
                             "Give a destination that ends in `/`.", place="dest")
        uris = [dest]
    else:
        leaves = [file.leaf or file.path.name for file in files]
        if len(set(leaves)) < len(leaves):
            raise ConfigError("recipe.same_names", f"Several outputs are called {', '.join(sorted(set(leaves)))}.",
                              "Give each its own `output: {file: …}`.")
        uris = [join(dest, leaf) for leaf in leaves]
    sources = [context.task.source, *(item["uri"] for items in context.task.inputs.values() for item in items)]
    if any(same_place(uri, source) for uri in uris for source in sources):
        raise InputError("dest.is_source", "An output has the name of the source, in its folder.",
                         "Give another destination, or the output another name.", place="dest")
    return [_Piece(file, uri, context.storage.for_uri(uri, "dest"), file.path.stat().st_size)
            for file, uri in zip(files, uris, strict=True)]


def _summary(context: Context, file: MediaFile) -> dict[str, object]:
    if file.probe is None:
        file.probe = probe(context.binaries, file.path, stop=context.stop)
    return file.probe.summary()


def _sha256(piece: _Piece, context: Context, on_progress: Callable[[int], None]) -> str:
    """Off the hub, in bites, so that a stop is heard."""
    digest = hashlib.sha256()
    with piece.file.path.open("rb") as stream:
        while True:
            context.stop.check()
            count = in_pool(_bite, stream, digest)
            if not count:
                return digest.hexdigest()
            on_progress(stream.tell())


def _bite(stream: object, digest: object) -> int:
    data: bytes = stream.read(HASH_BYTES)  # type: ignore[attr-defined]
    digest.update(data)  # type: ignore[attr-defined]
    return len(data)


def _share(context: Context, begin: float, share: float, before: int, total: int) -> Callable[[int], None]:
    return lambda done: context.progress(begin + share * min(1.0, (before + done) / total))


def _on_bytes(tell: Callable[[int], None]) -> Callable[[int, int | None], None]:
    return lambda done, total: tell(done)


def _revoke(pieces: Sequence[_Piece]) -> None:
    """Leave nothing of what did not become visible. What cannot be reached now is revoked by the record's list."""
    for piece in pieces:
        if piece.staging is not None and not piece.file.published:
            with contextlib.suppress(NommerdError, OSError):
                piece.backend.revoke(piece.uri, piece.staging.handle)
