"""How a node gets the operator's configuration: the feeder puts it into a bucket, the node fetches exactly that version.

It travels as one JSON document of files: `nommerd.yaml` with the settings in effect, and the pipelines and presets of the
operator's directories. Its name is the SHA-256 of its bytes, which are the same for the same content; the node knows that
sum from its user-data and believes nothing else. The keys that decrypt records are in it, for nodes cannot work without:
so the bucket is as secret as they are. Credentials of the account, tokens and the webhook secret stay with the feeder.
"""

from __future__ import annotations

import json
import os
import re
import secrets as random
import shutil
from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nommerd import logs
from nommerd.aws.clients import Clients, error_code, explain, is_transient, status_of
from nommerd.config import Settings
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.runtime import in_pool
from nommerd.secrets import Keyring

BYTES_MAX = 8 * 2**20  # of a whole configuration
SCHEMA_VERSION = 1
CONFIG_NAME = "nommerd.yaml"
UNVERSIONED = "null"  # S3's name for the version of an object in a bucket that keeps none
_NAME = re.compile(r"(pipelines|presets)/[0-9]{1,3}/[^/.\x00-\x1f][^/\x00-\x1f]{0,200}\.ya?ml")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# What is no node's business. Paths are replaced by those in the bundle, the keys by those in use.
_LEFT_OUT: Any = {"api": True, "webhooks": True, "fleet": True, "secrets": True, "paths": True,
                  "aws": {"access_key_id": True, "secret_access_key": True}}
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "404"})
_OURS_ALREADY = frozenset({"BucketAlreadyOwnedByYou"})


@dataclass(frozen=True, slots=True)
class Pin:
    """One object, exactly: where it is, its version there, and the SHA-256 (hexadecimal) of its bytes."""

    uri: str
    version: str
    sha256: str


# --- the feeder's side -------------------------------------------------------------------------------------------


def publish(settings: Settings, clients: Clients, keyring: Keyring) -> Pin | None:
    """Put the configuration of nodes into aws.config_bucket, which is made if missing; None without such a bucket.

    Nothing is uploaded where it is there already. Raises ConfigError for a bucket that is not ours or cannot be used,
    InfrastructureError where a later try may succeed.
    """
    bucket = settings.aws.config_bucket
    if bucket is None:
        return None
    body = in_pool(bundle, settings, keyring, clients.region)
    digest = sha256(body).hexdigest()
    key = f"nommerd/{settings.cluster}/{digest}.json"
    if urlsplit(settings.store).scheme in ("sqlite", "memory"):
        logs.get().warning("config.not_shared", store=settings.store, why="nodes cannot reach this machine's disk")
    try:
        s3, owner = clients("s3"), _owner(settings, clients)
        version = _published(s3, bucket, key, owner, digest)
        if version is None:
            version = _upload(s3, bucket, key, owner, body)
            logs.get().info("config.published", bucket=bucket, key=key, version=version)
    except Exception as error:
        raise _explained(error, f"The configuration cannot be put into the bucket {bucket}", _FEEDER_HINT) from error
    return Pin(f"s3://{bucket}/{key}", version, digest)


def bundle(settings: Settings, keyring: Keyring, region: str) -> bytes:
    """What a node needs, as bytes that depend on nothing else. Blocking. Raises ConfigError."""
    files = {**_documents("pipelines", settings.paths.pipelines), **_documents("presets", settings.paths.presets)}
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude=_LEFT_OUT)
    values["paths"] = {kind: _folders(kind, files) for kind in ("pipelines", "presets")}
    values["aws"] = {**values.get("aws", {}), "region": region}
    values["worker"] = {**values.get("worker", {}), "slots": settings.fleet.jobs_per_node}
    values["secrets"] = {"keys": [key.reveal() for key in keyring.keys]}
    files[CONFIG_NAME] = _json(values, indent=1)  # JSON is YAML
    body = _json({"schema": SCHEMA_VERSION, "files": files}).encode()
    if len(body) > BYTES_MAX:
        raise ConfigError("config.bad_bundle", f"Settings, pipelines and presets take more than {BYTES_MAX >> 20} MiB.",
                          place="paths")
    return body


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=indent)


def _folders(kind: str, files: Iterable[str]) -> list[str]:
    """The folders that files of this kind are in, in the order in which they are searched."""
    numbers = {int(name.split("/")[1]) for name in files if name.startswith(f"{kind}/")}
    return [f"{kind}/{number}" for number in sorted(numbers)]


def _documents(kind: str, directories: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, directory in enumerate(directories):
        try:
            for file in sorted(directory.iterdir()):
                name = f"{kind}/{number}/{file.name}"
                if _NAME.fullmatch(name):
                    found[name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError("config.unreadable", f"{directory} cannot be read: {why}.", place=f"paths.{kind}") from None
    return found


def _owner(settings: Settings, clients: Clients) -> dict[str, str]:
    """The account that must own the bucket: whoever made one of that name first would else be given our keys. Emulators and
    other makes need not know accounts."""
    try:
        return {"ExpectedBucketOwner": str(clients("sts").get_caller_identity()["Account"])}
    except Exception:
        if settings.aws.endpoint_url is None:
            raise
        return {}


def _published(s3: Any, bucket: str, key: str, owner: dict[str, str], digest: str) -> str | None:
    """The version that holds exactly this already, None where it must be uploaded. Makes the bucket."""
    try:
        found = s3.get_object(Bucket=bucket, Key=key, **owner)
    except Exception as error:
        if error_code(error) == "NoSuchBucket":
            _make_bucket(s3, bucket)
        elif error_code(error) not in _MISSING:
            raise
        return None
    same = sha256(found["Body"].read(BYTES_MAX + 1)).hexdigest() == digest
    return str(found.get("VersionId") or UNVERSIONED) if same else None


def _upload(s3: Any, bucket: str, key: str, owner: dict[str, str], body: bytes) -> str:
    done = s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json", ServerSideEncryption="AES256",
                         ChecksumSHA256=b64encode(sha256(body).digest()).decode(), **owner)
    return str(done.get("VersionId") or UNVERSIONED)


def _make_bucket(s3: Any, bucket: str) -> None:
    """A private, encrypted, versioned bucket in the region of the account's settings."""
    region = s3.meta.region_name
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.create_bucket(Bucket=bucket, **place)
    except Exception as error:
        if error_code(error) not in _OURS_ALREADY:  # else another feeder was quicker
            raise
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(
        ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True))
    s3.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={
        "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]})
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    logs.get().info("config.bucket_made", bucket=bucket, region=region)


# --- the node's side ---------------------------------------------------------------------------------------------


def fetch(pin: Pin, clients: Clients, folder: Path) -> Path:
    """Fetch the configuration of `pin`, check it, and unpack it below `folder`; returns its nommerd.yaml.

    Readable by its owner alone. Raises ConfigError for one that is not there, not allowed or not what the pin says,
    InfrastructureError where a later try may succeed.
    """
    parts = urlsplit(pin.uri)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or not parts.path.strip("/"):
        raise _refused("its uri is no s3://BUCKET/KEY")
    if not _DIGEST.fullmatch(pin.sha256):
        raise _refused("its sha256 is none")
    version = {} if pin.version == UNVERSIONED else {"VersionId": pin.version}
    try:
        answer = clients("s3").get_object(Bucket=parts.netloc, Key=parts.path.removeprefix("/"), **version)
        body = answer["Body"].read(BYTES_MAX + 1)
    except Exception as error:
        raise _explained(error, f"The configuration {pin.uri} cannot be fetched", _NODE_HINT) from error
    if len(body) > BYTES_MAX:
        raise _refused(f"it is larger than {BYTES_MAX >> 20} MiB")
    if sha256(body).hexdigest() != pin.sha256:
        raise _refused("its bytes have another SHA-256")
    return in_pool(_unpack, _files(body), folder, pin.sha256)


def _files(body: bytes) -> dict[str, str]:
    """The files in a bundle that passed its check: only the names we write."""
    try:
        document = json.loads(body)
        schema, files = document["schema"], dict(document["files"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _refused("it is no bundle") from None
    if schema != SCHEMA_VERSION:
        raise _refused("another version of nommerd wrote it")
    if CONFIG_NAME not in files or not all(isinstance(text, str) for text in files.values()):
        raise _refused("it is no bundle")
    strange = [name for name in files if name != CONFIG_NAME and not _NAME.fullmatch(name)]
    if strange:
        raise _refused(f"it holds a file that does not belong there: {strange[0][:80]!r}")
    return files


def _unpack(files: dict[str, str], folder: Path, digest: str) -> Path:
    """The files below FOLDER/DIGEST, whole or not at all. Blocking."""
    target, beside = folder / digest, folder / f".{digest[:16]}.{random.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for kind in ("pipelines", "presets"):
            (beside / kind).mkdir(mode=0o700, parents=True)
        beside.chmod(0o700)
        for name, text in files.items():
            path = beside / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
    except (OSError, UnicodeEncodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "a text that is none"
        raise InfrastructureError("node.disk", f"The configuration cannot be written to {folder}: {why}.") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target / CONFIG_NAME


_FEEDER_HINT = ("`nommerd aws setup` makes one. One of your own must belong to this account, and let the feeder use"
                " s3:GetObject, s3:PutObject and s3:ListBucket.")
_NODE_HINT = "Is it there, and may the node's role read it? `nommerd aws setup` makes the role."


def _refused(why: str) -> ConfigError:
    return ConfigError("config.bad_bundle", f"The configuration of this node is refused: {why}.",
                       "It was changed since the feeder published it, or the boot file is wrong.")


def _explained(error: Exception, what: str, hint: str) -> Exception:
    """What an error of AWS means here; other errors stay what they are."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    if not isinstance(error, (BotoCoreError, ClientError, OSError)):
        return error
    message = f"{what}: {explain(error)}"
    lasting = isinstance(error, ClientError) and not is_transient(error) and (status_of(error) or 400) < 500
    if lasting or isinstance(error, NoCredentialsError):
        return ConfigError("config.bucket", message, hint, place="aws.config_bucket")
    return InfrastructureError("node.config_unavailable", message, "It is tried again.")
