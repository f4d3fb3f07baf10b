"""Tokens that the store keeps: made, listed, revoked, and found again by their hash, which is all that is stored of them.

A token is `nommerd_`, 30 random characters (178 bits) and 6 that check them, so that a guess, a typing slip or another
program's token is refused without asking the store, and scanners of source code recognise one.
"""

from __future__ import annotations

import secrets as random
import string
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated

from gevent.event import AsyncResult
from pydantic import PlainSerializer, TypeAdapter, ValidationError

from nommerd import logs
from nommerd.api.access import Access, Scope
from nommerd.errors import InputError
from nommerd.job import DEFAULT_PROJECT, new_id, utcnow
from nommerd.secrets import Secret
from nommerd.store.base import Document, Store

KIND = "token"
PREFIX = "nommerd_"
DIGITS = string.digits + string.ascii_letters
RANDOM_DIGITS = 30
CHECK_DIGITS = 6  # as many as 32 bits take
FRESH_SECONDS = 4.0  # how long a token that was found need not be looked up again: so long one revoked elsewhere still works
KEPT_MAX = 1024  # tokens found that are kept for so long
MISSES_MAX = 100  # lookups of tokens that do not exist within MISSES_SECONDS, whoever asks; then only known ones are looked up
MISSES_SECONDS = 10.0
PROJECT_TOKENS_MAX = 200
EXPIRED_KEPT_DAYS = 30  # so long an expired one is listed, and told from a wrong one

_Scopes = Annotated[frozenset[Scope], PlainSerializer(sorted)]


class UnknownToken(LookupError):
    """There is no token with this id, or it is another project's."""


class TokenExpired(InputError):
    """It was right until it expired."""

    def __init__(self, at: datetime) -> None:
        super().__init__("request.token_expired", f"This token expired at {at.isoformat(timespec='seconds')}.",
                         "Make another with `nommerd tokens create`.", place="header.Authorization")


class TooManyTokens(InputError):
    """The project has as many as it may have."""

    def __init__(self) -> None:
        super().__init__("request.token_limit", f"The project has {PROJECT_TOKENS_MAX} tokens already.",
                         "Revoke those that nobody uses: `nommerd tokens ls`.", place="body.project")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token. `expires` None: never."""

    id: str
    name: str
    project: str
    scopes: _Scopes
    created: datetime
    expires: datetime | None = None

    @property
    def access(self) -> Access:
        """What it allows."""
        return Access(project=self.project, scopes=self.scopes, name=self.name)


_TOKEN = TypeAdapter(Token)


class Tokens:
    """The tokens in a store. `own`: projects that are there without any token. All calls may raise StoreUnavailable."""

    def __init__(self, store: Store, own: Iterable[str] = (DEFAULT_PROJECT,), clock: Callable[[], float] = time.monotonic,
                 now: Callable[[], datetime] = utcnow) -> None:
        self._store = store
        self._own = frozenset(own)
        self._clock = clock
        self._now = now
        self._found: OrderedDict[str, tuple[float, Token]] = OrderedDict()  # hash -> read when, and what
        self._misses = (0.0, 0)  # since when, how many
        self._all: Mapping[str, str] = {}  # hash -> project, of all tokens, as of _all_at
        self._all_at: float | None = None
        self._loading: AsyncResult[None] | None = None
        self._making = threading.Lock()  # so that those who make some at once count each other's
        self._writes = 0  # here: what was read before one is not kept after it

    def make(self, name: str, project: str, scopes: Iterable[Scope],
             expires_days: float | None = None) -> tuple[Token, Secret]:
        """A new token, durably stored, and its text, which nothing tells again. Raises TooManyTokens."""
        with self._making:
            kept = self._without_long_expired()
            if sum(token.project == project for _, token in kept) >= PROJECT_TOKENS_MAX:
                raise TooManyTokens
            text, now = new_text(), self._now()
            token = Token(id=new_id(), name=name, project=project, scopes=frozenset(scopes), created=now,
                          expires=None if expires_days is None else now + timedelta(days=expires_days))
            self._store.put_document(Document(kind=KIND, scope="", name=_hash(text), body=_TOKEN.dump_json(token).decode()), 0)
            self._wrote()
        return token, Secret(text)

    def list(self, project: str | None = None) -> Sequence[Token]:
        """The tokens of a project (None: of all), by project and age."""
        return sorted((token for _, token in self._stored() if project in (None, token.project)),
                      key=lambda token: (token.project, token.created, token.id))

    def revoke(self, token_id: str, project: str | None = None) -> Token:
        """It is no token any longer: here from now on, at other feeders within FRESH_SECONDS. Raises UnknownToken, also where
        it is of another `project`."""
        for name, token in self._stored():
            if token.id == token_id and project in (None, token.project):
                self._store.delete_document(KIND, "", name)
                self._wrote()
                self._found.pop(name, None)
                return token
        raise UnknownToken(token_id)

    def find(self, text: str, suspect: bool = False) -> Access | None:
        """What the token allows, None for one that does not exist. Raises TokenExpired. `suspect`: many wrong ones came from
        there, so the store is asked for this one only if it is known to exist."""
        if not well_formed(text):
            return None
        name = _hash(text)
        token = self._fresh(name)
        if token is None and ((suspect or self._many_misses()) and name not in self._known()):
            return None
        token = token or self._read(name)
        if token is not None and token.expires is not None and token.expires <= self._now():
            raise TokenExpired(token.expires)
        return token.access if token is not None else None

    def projects(self) -> Sequence[str]:
        """The projects known here, by name: those that the configuration names, and those that have tokens."""
        return sorted({*self._own, *self._known().values()})

    # --- what is kept in memory ----------------------------------------------------------------------------------

    def _fresh(self, name: str) -> Token | None:
        at, token = self._found.get(name, (0.0, None))
        return token if token is not None and self._clock() - at < FRESH_SECONDS else None

    def _read(self, name: str) -> Token | None:
        at, writes = self._clock(), self._writes
        document = self._store.document(KIND, "", name)
        token = _decoded(document) if document is not None else None
        if token is None:
            self._found.pop(name, None)
            self._misses = (self._misses[0], self._misses[1] + 1)
        elif writes == self._writes:
            self._found[name] = (at, token)
            self._found.move_to_end(name)
            while len(self._found) > KEPT_MAX:
                self._found.popitem(last=False)
        return token

    def _many_misses(self) -> bool:
        since, count = self._misses
        if self._clock() - since > MISSES_SECONDS:
            self._misses = (self._clock(), 0)
            return False
        return count >= MISSES_MAX

    def _known(self) -> Mapping[str, str]:
        """The projects of all tokens, by hash, as they were a few seconds ago; read by one for all who ask at once."""
        if self._all_at is None or self._clock() - self._all_at >= FRESH_SECONDS:
            if self._loading is not None:
                self._loading.get()
            else:
                self._load()
        return self._all

    def _load(self) -> None:
        self._loading = loading = AsyncResult()
        at, writes = self._clock(), self._writes
        try:
            self._all = {name: token.project for name, token in self._stored()}
            self._all_at = at if writes == self._writes else None
            loading.set(None)
        except BaseException as error:
            loading.set_exception(error)
            raise
        finally:
            self._loading = None

    def _wrote(self) -> None:
        self._writes += 1
        self._all_at = None

    # --- the store -----------------------------------------------------------------------------------------------

    def _stored(self) -> Iterable[tuple[str, Token]]:
        """All tokens with their hashes."""
        found = ((document.name, _decoded(document)) for document in self._store.documents(KIND, ""))
        return [(name, token) for name, token in found if token is not None]

    def _without_long_expired(self) -> Iterable[tuple[str, Token]]:
        """All tokens, once those are deleted that expired long ago."""
        before = self._now() - timedelta(days=EXPIRED_KEPT_DAYS)
        kept = []
        for name, token in self._stored():
            if token.expires is not None and token.expires < before:
                self._store.delete_document(KIND, "", name)
            else:
                kept.append((name, token))
        return kept


def new_text() -> str:
    """The text of a new token."""
    body = "".join(random.choice(DIGITS) for _ in range(RANDOM_DIGITS))
    return PREFIX + body + _check(body)


def well_formed(text: str) -> bool:
    """Whether the text could be a token: of one that could not, nobody need ask the store."""
    body, check = text[len(PREFIX):-CHECK_DIGITS], text[-CHECK_DIGITS:]
    return text.startswith(PREFIX) and len(body) == RANDOM_DIGITS and body.isascii() and _check(body) == check


def _check(body: str) -> str:
    """The CRC-32 of prefix and random part, in digits of base 62."""
    number, digits = zlib.crc32((PREFIX + body).encode("ascii")), ""
    for _ in range(CHECK_DIGITS):
        number, digit = divmod(number, len(DIGITS))
        digits = DIGITS[digit] + digits
    return digits


def _hash(text: str) -> str:
    return sha256(text.encode("ascii")).hexdigest()


def _decoded(document: Document) -> Token | None:
    """The token, None (and a line in the log) for one that cannot be read: it opens nothing."""
    try:
        return _TOKEN.validate_json(document.body)
    except ValidationError:
        logs.get().error("tokens.unreadable", hash=document.name[:12])
        return None
