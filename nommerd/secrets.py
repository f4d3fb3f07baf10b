"""The one Secret type, what of a URI is secret, and encryption at rest with keys that can be rotated.

In memory a secret is opaque: no repr, str, JSON or pickle of it shows the value. At rest it is a Fernet token under the
newest key; older keys still decrypt.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import secrets as random
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nommerd.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

MASK = "********"
KEYS_FILE = "keys"
OWNER_ONLY = 0o600

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*)://")
_KEY = re.compile(r"[A-Za-z0-9_-]{43}=")  # 32 bytes, as Fernet's are written
_PORT_ONLY = re.compile(r"^(?:[^:\[]*|\[[^\]]*\])(?::\d*)?$")


class Secret:
    """A text that must not be seen. `reveal` is the one way to it, easy to search for."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself: hand it to what needs it, never to a message."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Models take a text or a Secret, and show the mask."""
        from pydantic_core import core_schema

        made = core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1, strict=True))
        return core_schema.union_schema([core_schema.is_instance_schema(cls), made],
                                        serialization=core_schema.plain_serializer_function_ser_schema(str))


def _userinfo_end(rest: str, ports: bool) -> int:
    """Where the user information of an authority ends (behind its `@`), 0 without any.

    An S3 secret may hold `/`, so an authority that is more than host and port, with an `@` further on, is credentials
    too; a bucket has no port (`ports` False).
    """
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return host.rindex("@") + 1
    if (ports and _PORT_ONLY.match(host)) or ":" not in host:
        return 0
    return rest.find("@") + 1


def split_uri(uri: str) -> tuple[str, str, str]:
    """A URI as `scheme://`, its user information with the `@`, and the rest; the first two empty where it has none."""
    match = _SCHEME.match(uri)
    if match is None:
        return "", "", uri
    rest = uri[match.end():]
    end = _userinfo_end(rest, ports=match[1].lower() != "s3")
    return match[0], rest[:end], rest[end:]


def public_uri(uri: str) -> str:
    """The URI without its credentials and, for http and https, without query and fragment. Otherwise as it was."""
    scheme, _, rest = split_uri(uri)
    if scheme.lower() in ("http://", "https://"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return scheme + rest


def has_secret(uri: str) -> bool:
    """Whether `public_uri` leaves something out."""
    return public_uri(uri) != uri


class Keyring:
    """Encrypts under its first key, decrypts under any: put a new key first and keep the old ones until rotated."""

    def __init__(self, keys: Sequence[Secret]) -> None:
        if not keys or not all(_KEY.fullmatch(key.reveal()) for key in keys):
            raise ConfigError("config.bad_key", "One of secrets.keys is not a key." if keys else "There are no secrets.keys.",
                              "Make one with `nommerd config keygen`.", place="secrets.keys")
        self.keys = tuple(keys)

    @cached_property
    def _fernet(self) -> MultiFernet:
        """Made at first use: cryptography takes 7 MB, and many a worker never meets a secret."""
        from cryptography.fernet import Fernet, MultiFernet

        return MultiFernet([Fernet(key.reveal()) for key in self.keys])

    def encrypt(self, values: dict[str, Any]) -> str:
        """The values as one opaque text."""
        return self._fernet.encrypt(json.dumps(values, separators=(",", ":")).encode()).decode()

    def decrypt(self, text: str) -> dict[str, Any]:
        """What `encrypt` was given. Raises ConfigError when no key fits."""
        from cryptography.fernet import InvalidToken

        try:
            values: dict[str, Any] = json.loads(self._fernet.decrypt(text.encode()))
        except InvalidToken:
            raise ConfigError("config.wrong_keys", "No key decrypts this record's secrets.",
                              "Feeder and workers need the same secrets.keys; keep old keys in the list.") from None
        return values

    def fingerprint(self, text: str) -> str:
        """Recognises the text later without holding it: who has no key cannot even check a guess."""
        return _fingerprint(self.keys[0], text)

    def recognises(self, fingerprint: str, text: str) -> bool:
        """Whether this is the text's fingerprint, under any key."""
        return any([hmac.compare_digest(fingerprint, _fingerprint(key, text)) for key in self.keys])

    def derive(self, purpose: str) -> list[bytes]:
        """Keys for another purpose than encryption, one from each of ours, in their order."""
        return [hmac.new(base64.urlsafe_b64decode(key.reveal()), b"derive\0" + purpose.encode(), sha256).digest()
                for key in self.keys]

    def rotate(self, text: str) -> str:
        """The same values under the first key."""
        return self._fernet.rotate(text.encode()).decode()

    @staticmethod
    def load_or_make(data_dir: Path, configured: Sequence[Secret], make: bool) -> Keyring:
        """The configured keys, else those in DATA/keys, which is made when missing if `make`; else ConfigError."""
        if configured:
            return Keyring(configured)
        text = secret_file(data_dir / KEYS_FILE, make=make, generate=new_key)
        return Keyring([Secret(line.strip()) for line in text.reveal().splitlines() if line.strip()])


def _fingerprint(key: Secret, text: str) -> str:
    return hmac.new(base64.urlsafe_b64decode(key.reveal()), b"fingerprint\0" + text.encode(), sha256).hexdigest()


def new_key() -> str:
    """A key for `secrets.keys`."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def new_token() -> str:
    """An API token."""
    return random.token_urlsafe(32)


def new_webhook_secret() -> str:
    """A webhook signing secret, in the form Standard Webhooks asks for."""
    return "whsec_" + base64.b64encode(os.urandom(32)).decode()


def check_webhook_secret(secret: Secret, place: str) -> None:
    """Raise ConfigError config.webhook_secret for one that has not that form, with 24 to 64 bytes."""
    try:
        size = len(base64.b64decode(secret.reveal().removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not secret.reveal().startswith("whsec_") or not 24 <= size <= 64:
        raise ConfigError("config.webhook_secret", "The webhook secret is none.",
                          "Write whsec_ and the base64 of 24 to 64 random bytes; null makes one.", place=place)


def secret_file(path: Path, *, make: bool, generate: Callable[[], str] = new_token) -> Secret:
    """What is in the file, which is made (readable by its owner alone) when missing, if `make`.

    Two processes that make it at once end up with the same one. ConfigError when it is missing, empty or unreadable.
    """
    try:
        if make and not path.exists():
            _make(path, generate() + "\n")
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigError("config.missing_file", f"{path} is missing.",
                          "`nommerd up` and `nommerd feeder` make it; copy it from the feeder's machine.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("config.unreadable", f"{path} cannot be read: {_why(error)}.",
                          "It must belong to the user that runs nommerd.") from None
    if not text:
        raise ConfigError("config.unreadable", f"{path} is empty.", "Delete it to have it made anew.")
    return Secret(text)


def _make(path: Path, text: str) -> None:
    """Whole or not at all: written beside, then linked, which fails where another process was first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{random.token_hex(6)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(beside, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise InfrastructureError("node.disk", f"{path} cannot be written: {_why(error)}.") from None
    finally:
        beside.unlink(missing_ok=True)


def _why(error: Exception) -> str:
    return (error.strerror or "I/O error") if isinstance(error, OSError) else "not UTF-8 text"
