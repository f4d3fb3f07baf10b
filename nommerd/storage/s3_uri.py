"""`s3:` URIs: what they say, and which of them the node's own credentials may be used for.

    s3://BUCKET/KEY                      on the node's credentials, within storage.s3_read and storage.s3_write
    s3://KEY:SECRET@BUCKET/KEY           on these: they are the caller's own, so that no list applies

The key is taken literally, as AWS's own command line and the other tools of the field do: `%20` is three characters, and
`?`, `#`, `@` and spaces are characters like others. (`file:` URIs are different: there escapes are bytes of the name.) Only
the credentials may hold escapes, for an endpoint whose secrets are made of more than AWS's: an `@` is %40 there. They are
told from the rest as nommerd.secrets does it, so that what is used as a secret is what is hidden as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from nommerd.errors import ConfigError, InputError
from nommerd.secrets import split_uri

KEY_BYTES_MAX = 1024  # S3's own limit, in UTF-8
HINT = "Write s3://bucket/key, or s3://KEY:SECRET@bucket/key."

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEY_ID = re.compile(r"[!-~]+")
_IP = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Place:
    """An object, or with a key that ends in `/` (or is empty) a folder for several."""

    bucket: str
    key: str
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def is_folder(self) -> bool:
        return self.key.endswith("/") or not self.key

    @property
    def own(self) -> bool:
        """Whether the node's own credentials are to be used."""
        return self.credentials is None


def uri_of(bucket: str, key: str) -> str:
    """The URI of an object, on the node's credentials."""
    return f"s3://{bucket}/{key}"


def entry_of(uri: str) -> str:
    """The entry that opens this URI alone (a folder: with what is below it). InputError source.bad_uri."""
    place = parse(uri)
    return f"{place.bucket}/{place.key}" if place.key else place.bucket


def parse(uri: str, family: str = "source") -> Place:
    """What the URI names. InputError `FAMILY.bad_uri` for what S3 would refuse or mistake; it quotes nothing of the URI."""
    scheme, user, rest = split_uri(uri)
    if scheme.lower() != "s3://":
        raise _bad(family, "This is not an s3: URI.")
    bucket, _, key = rest.partition("/")
    if not is_bucket(bucket):
        raise _bad(family, "The bucket's name is none.", "3 to 63 lower-case letters, digits, dots and dashes. " + HINT)
    return Place(bucket, _checked_key(key, family), _credentials(user, family) if user else None)


def is_bucket(name: str) -> bool:
    """Whether a bucket can be called so (AWS, bucket naming rules)."""
    return bool(_BUCKET.fullmatch(name)) and not _IP.fullmatch(name) and not any(two in name for two in ("..", ".-", "-."))


def _checked_key(key: str, family: str) -> str:
    if _CONTROL.search(key):
        raise _bad(family, "The object's key holds a control character.", "Rename the object.")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise _bad(family, "The object's key is no valid text.") from None
    if size > KEY_BYTES_MAX:
        raise _bad(family, f"The object's key has {size} bytes; S3 takes {KEY_BYTES_MAX}.", "Shorten it.")
    if any(part in (".", "..") for part in key.split("/")):
        # S3 itself takes them literally. Gateways and proxies before others like it do not, and would leave the prefix.
        raise _bad(family, "The object's key has a part `.` or `..`.", "Some servers would resolve it: rename the object.")
    return key


def _credentials(user: str, family: str) -> tuple[str, str]:
    key, _, secret = user.removesuffix("@").partition(":")
    if not (key and secret):
        raise _bad(family, "The credentials in the URI are incomplete.")
    key, secret = unquote(key), unquote(secret)
    if not _KEY_ID.fullmatch(key) or _CONTROL.search(secret):  # the id stands in a header of each request
        raise _bad(family, "The credentials in the URI hold characters that none can have.")
    return key, secret


def _bad(family: str, message: str, hint: str = HINT) -> InputError:
    return InputError(f"{family}.bad_uri", message, hint)


class Allowed:
    """What the operator opened: `BUCKET`, `BUCKET/PREFIX` (the object of that key, and all below `PREFIX/`) or
    `BUCKET/PREFIX/` (what is below it alone). Prefixes end with a whole part of a path: `media/in` does not open
    `media/inbox`."""

    def __init__(self, entries: Sequence[str], setting: str) -> None:
        """Raises ConfigError config.bad_value for an entry that can never match."""
        self._setting = setting
        self._entries = [_entry(entry, setting) for entry in entries]

    def check(self, place: Place, family: str) -> None:
        """Raise InputError `FAMILY.outside_buckets` unless this place is open."""
        if any(bucket == place.bucket and _below(place.key, prefix) for bucket, prefix in self._entries):
            return
        hint = (f"List bucket or prefix in the setting {self._setting}, " if self._entries
                else f"The setting {self._setting} is empty: list the buckets there, ")
        raise InputError(f"{family}.outside_buckets", f"{uri_of(place.bucket, place.key)} is outside what this node's "
                         "credentials may be used for.", hint + "or give credentials in the URI.")


def _entry(entry: str, setting: str) -> tuple[str, str]:
    bucket, _, prefix = entry.partition("/")
    if not is_bucket(bucket) or "*" in prefix:
        raise ConfigError("config.bad_value", f"{entry!r} is no bucket, and no bucket with a prefix.",
                          "Write BUCKET or BUCKET/PREFIX, without s3:// and wildcards.", place=setting)
    return bucket, prefix


def _below(key: str, prefix: str) -> bool:
    return not prefix or key == prefix or key.startswith(prefix if prefix.endswith("/") else prefix + "/")
