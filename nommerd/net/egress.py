"""The one outbound HTTP client, for sources, destinations and webhooks.

It reaches public addresses and those in `net.allow_networks`, nothing else, in whatever spelling: a name is resolved once,
its address judged, and the connection made to that very address, so that a name that resolves anew changes nothing. It
follows redirects only where asked, each judged like the first, and takes no proxy, cookie or netrc from anywhere.

What is here judges URLs and follows redirects; nommerd.net.session connects.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from nommerd.errors import InputError
from nommerd.net.addresses import LOOPBACK, Policy, literal

if TYPE_CHECKING:
    from nommerd.net.session import Answer, Session

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS_MAX = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_HINT = "To reach a private network, list it in the setting net.allow_networks."


class Egress:
    """Requests to the outside. `family` (source, dest, webhook) names errors.

    InputError `FAMILY.bad_uri`, `.forbidden_address`, `.too_many_redirects`, `.bad_certificate`; InfrastructureError
    `FAMILY.unavailable` when there is no answer. Any status is an answer. User information in the URL becomes basic
    authentication and goes to that origin only; neither it nor a query is ever in a message.
    """

    def __init__(self, allow_networks: Sequence[str] = (), *, connect_seconds: float = CONNECT_SECONDS,
                 read_seconds: float = READ_SECONDS, ca_file: Path | None = None, agent: str = "nommerd") -> None:
        """`agent` is who others are told we are, before the version."""
        self._policy = Policy(allow_networks)
        self._timeouts = (connect_seconds, read_seconds)
        self._ca_file = ca_file
        self._agent = agent

    @cached_property
    def _session(self) -> Session:
        """Made at the first request: see nommerd.net.session."""
        from nommerd.net.session import Session

        return Session(self._policy, *self._timeouts, self._ca_file, self._agent)

    def check(self, url: str, family: str) -> None:
        """Raise InputError for a URL that cannot be right or spells a forbidden address. No network: a name is judged when
        it is resolved, at the request."""
        host = _split(url, family)[0]
        address = literal(host)
        spelled = LOOPBACK if host.rstrip(".") == "localhost" else [address] if address else []
        if spelled and not any(self._policy.permits(a) for a in spelled):
            raise _forbidden(family, host)

    def get(self, url: str, family: str = "source", headers: Mapping[str, str] | None = None, *,
            redirects: int = REDIRECTS_MAX) -> Answer:
        """GET. Follows so many redirects, each judged anew; credentials stay with their origin."""
        return self._follow("GET", url, family, headers, redirects)

    def head(self, url: str, family: str = "dest", headers: Mapping[str, str] | None = None) -> Answer:
        """HEAD, no redirects."""
        return self._send("HEAD", url, family, headers)

    def put(self, url: str, body: bytes | Iterable[bytes], family: str = "dest", headers: Mapping[str, str] | None = None, *,
            read_seconds: float | None = None) -> Answer:
        """PUT, no redirects. A body that is no bytes must have a length (`__len__`): it is sent with Content-Length."""
        return self._send("PUT", url, family, headers, body=body, read_seconds=read_seconds)

    def post(self, url: str, body: bytes, family: str = "webhook", headers: Mapping[str, str] | None = None) -> Answer:
        """POST, no redirects."""
        return self._send("POST", url, family, headers, body=body)

    def _follow(self, method: str, url: str, family: str, headers: Mapping[str, str] | None, redirects: int) -> Answer:
        origin = _origin(url, family)
        carried = dict(headers or {})
        for _ in range(redirects + 1):
            answer = self._send(method, url, family, carried)
            location = answer.headers.get("Location")
            if answer.status not in REDIRECTS or location is None:
                return answer
            answer.close()
            url = _next(url, location)
            if _origin(url, family) != origin:
                carried = {name: value for name, value in carried.items() if name.lower() not in ("authorization", "cookie")}
                origin = _origin(url, family)
        raise InputError(f"{family}.too_many_redirects", f"{_split(url, family)[0]} redirects more than {redirects} times.")

    def _send(self, method: str, url: str, family: str, headers: Mapping[str, str] | None, *,
              body: bytes | Iterable[bytes] | None = None, read_seconds: float | None = None) -> Answer:
        from nommerd.net.session import BadUrl, Forbidden

        host, bare, authorization = _split(url, family)
        sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
        timeouts = (self._timeouts[0], read_seconds or self._timeouts[1])
        try:
            return self._session.send(method, bare, sent, body, timeouts, family)
        except Forbidden:
            raise _forbidden(family, host) from None
        except BadUrl:
            raise _bad_uri(family) from None


def _split(url: str, family: str) -> tuple[str, str, str | None]:
    """Host, the URL without user information and fragment, and the Authorization header for it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as resolving does: an empty label, or one of more than 63 characters, is no name
    except ValueError:
        raise _bad_uri(family) from None
    if _UNSAFE.search(url) or parts.scheme.lower() not in ("http", "https") or not host or port == 0:
        raise _bad_uri(family)
    user, at, netloc = parts.netloc.rpartition("@")
    authorization = None
    if at:
        name, _, password = user.partition(":")
        pair = f"{unquote(name)}:{unquote(password)}".encode()
        authorization = "Basic " + base64.b64encode(pair).decode()
    return host, urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")), authorization


def _origin(url: str, family: str) -> tuple[str, str, int]:
    host = _split(url, family)[0]
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    return scheme, host, parts.port or (443 if scheme == "https" else 80)


def _next(url: str, location: str) -> str:
    """Where a redirect leads. Servers send bytes that are no ASCII as if they were Latin-1."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location.strip())
    except ValueError:
        return location


def _bad_uri(family: str) -> InputError:
    return InputError(f"{family}.bad_uri", "This is not an http or https URL.",
                      "Write https://host/path, special characters escaped.")


def _forbidden(family: str, host: str) -> InputError:
    return InputError(f"{family}.forbidden_address", f"{host} is not on the public internet.", _HINT)
