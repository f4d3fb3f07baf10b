"""Who may ask: a token, a Host we go by, and no web page of somebody else's.

A page anywhere on the web can reach 127.0.0.1 through its visitor's browser, by our address or by a name of its own that
it points there. Hence the Host allowlist and the refusal of foreign origins, token or not; there is no CORS.
"""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, NoReturn

from nommerd.api import access
from nommerd.api.access import Access, Scope
from nommerd.api.problems import refuse
from nommerd.api.server import PAUSE
from nommerd.job import DEFAULT_PROJECT
from nommerd.secrets import Secret
from nommerd.tokens import TokenExpired, Tokens

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/v1/media"})  # no token needed; the last takes tickets
OPEN_FOLDER = "/static/"  # the dashboard's own files
ORIGINAL_PATHS = frozenset({"/job/submit", "/job/submit/"})  # none from networks that the operator names
FORWARDED = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP")  # what proxies add
WRONG_TOKENS_MAX = 20  # from one address within WRONG_TOKENS_SECONDS; then 429
WRONG_TOKENS_SECONDS = 60.0
WRONG_TOKEN_PAUSE_SECONDS = 1.0  # before each 429: whoever guesses on, or has a wrong token in a loop, takes no time of others
ADDRESSES_KEPT = 1024
CHALLENGE = 'Bearer realm="nommerd"'


def needs_token(path: str) -> bool:
    """Whether what is there, or would be, is told only to those who have a token."""
    return not (path in OPEN_PATHS or path.startswith(OPEN_FOLDER))


class Hosts:
    """The names this server goes by. An entry with a port stands for that port alone, one without for any."""

    def __init__(self, bind: str, extra: Iterable[str] = ()) -> None:
        plain = f"[{bind}]" if ":" in bind else bind
        self._names = LOOPBACK_NAMES | {plain.lower()} | {name.lower().rstrip(".") for name in extra}

    def accepts(self, header: str) -> bool:
        """Whether a Host header names this server."""
        host = header.strip().lower()
        if host in self._names:
            return True
        name, colon, port = host.rpartition(":")
        if not colon or not port.isdigit():
            return host.rstrip(".") in self._names
        return name.rstrip(".") in self._names


class Networks:
    """A set of addresses, as CIDR. The address is the peer's own: nobody's header is believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(text, strict=False) for text in networks]

    def __contains__(self, address: object) -> bool:
        try:
            peer = ip_address(str(address))
        except ValueError:
            return False
        if isinstance(peer, IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self._networks)


NOBODY = Networks(())
LOOPBACK = Networks(("127.0.0.0/8", "::1/128"))
EVERYBODY = Networks(("0.0.0.0/0", "::/0"))


class Gate:
    """Checks every request before anything else sees it. `check` raises Refusal. `tokens` are the operator's own; `stored`
    those that were made. `original`: whence the original system's calls may come without a token. `project`: whose jobs
    those are."""

    def __init__(self, tokens: Iterable[Secret], hosts: Hosts, clock: Callable[[], float] = time.monotonic,
                 original: Networks = NOBODY, project: str = DEFAULT_PROJECT, stored: Tokens | None = None) -> None:
        self._hashes = [_digest(token.reveal()) for token in tokens]
        self._hosts = hosts
        self._clock = clock
        self._stored = stored
        self._original = original
        self._of_original = Access(project=project, scopes=frozenset({Scope.SUBMIT}), name="the original's clients")
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # address -> window's begin, wrong tokens in it

    def check(self, environ: dict[str, Any]) -> Access:
        """Who asks. 403 for a foreign Host or Origin; 401 without a right token where one is needed; 429 after many wrong
        ones. StoreUnavailable where only the store knows, and is out of reach: the operator's own tokens still work then."""
        self._check_origin(environ)
        path = environ["PATH_INFO"]
        if not needs_token(path):
            return access.NOBODY
        if path in ORIGINAL_PATHS and environ.get("REMOTE_ADDR", "") in self._original and not _passed_on(environ):
            return self._of_original
        token = _bearer(environ.get("HTTP_AUTHORIZATION", ""))
        who = access.OPERATOR if self._is_own(token) else self._find(token, _peer(environ))
        if who is None:
            self._refuse_token(environ)
        return who

    def _check_origin(self, environ: dict[str, Any]) -> None:
        host = environ.get("HTTP_HOST", "")
        if not self._hosts.accepts(host):
            raise refuse(403, "header.Host", "request.forbidden_host", "This server does not go by that name.",
                         "Use the address it listens on, or add the name to api.hosts.")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise refuse(403, "header.Origin", "request.forbidden_origin", "Pages of other sites may not use this server.")
        if environ.get("HTTP_SEC_FETCH_SITE", "none").lower() not in ("none", "same-origin"):
            raise refuse(403, "header.Sec-Fetch-Site", "request.forbidden_origin",
                         "Pages of other sites may not use this server.", "Type the address instead of following a link.")

    def _is_own(self, token: str) -> bool:
        given = _digest(token)
        right = False
        for known in self._hashes:  # all of them: time must not tell which one came close
            right |= hmac.compare_digest(known, given)
        return right and token != ""

    def _find(self, token: str, address: str) -> Access | None:
        """What a token that was made allows. From where many wrong ones come, only one that is known to exist is looked up: a
        flood does not reach the store, and shuts nobody out."""
        if self._stored is None:
            return None
        try:
            return self._stored.find(token, suspect=self._wrong_ones(address)[1] >= WRONG_TOKENS_MAX)
        except TokenExpired as error:
            raise refuse(401, "header.Authorization", error.code, error.message, error.hint,
                         WWW_Authenticate=f'{CHALLENGE}, error="invalid_token"') from None

    def _refuse_token(self, environ: dict[str, Any]) -> NoReturn:
        given = environ.get("HTTP_AUTHORIZATION")
        if given is not None and self._too_many(_peer(environ)):
            environ.get(PAUSE, _no_pause)(WRONG_TOKEN_PAUSE_SECONDS)
            raise refuse(429, "header.Authorization", "request.too_many_tokens",
                         "This is not a token of this server, and too many wrong ones came.",
                         "Look at the token: a right one is taken at once. Others are looked at again after a minute.",
                         Retry_After=f"{WRONG_TOKENS_SECONDS:.0f}", WWW_Authenticate=CHALLENGE)
        raise refuse(401, "header.Authorization", "request.unauthorized",
                     "This needs a token." if given is None else "This is not a token of this server.",
                     "Send Authorization: Bearer TOKEN: the one in the feeder's token file, or one made by "
                     "`nommerd tokens create`.",
                     WWW_Authenticate=CHALLENGE if given is None else f'{CHALLENGE}, error="invalid_token"')

    def _wrong_ones(self, address: str) -> tuple[float, int]:
        """Since when wrong tokens of this address are counted, and how many came."""
        now = self._clock()
        begun, count = self._wrong.get(address, (now, 0))
        return (now, 0) if now - begun > WRONG_TOKENS_SECONDS else (begun, count)

    def _too_many(self, address: str) -> bool:
        begun, count = self._wrong_ones(address)
        self._wrong[address] = (begun, count + 1)
        self._wrong.move_to_end(address)
        while len(self._wrong) > ADDRESSES_KEPT:
            self._wrong.popitem(last=False)
        return count >= WRONG_TOKENS_MAX


def _no_pause(seconds: float) -> None:
    """Without a server of ours nobody is made to wait."""


def _bearer(header: str) -> str:
    """The token of an Authorization header, empty without one."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _peer(environ: dict[str, Any]) -> str:
    """Whom wrong tokens are counted for: an IPv4 address, or the /64 that an IPv6 host may choose its addresses from."""
    text = str(environ.get("REMOTE_ADDR", ""))
    if ":" not in text:
        return text
    try:
        address = IPv6Address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else str(ip_network((int(address) >> 64 << 64, 64)))


def _passed_on(environ: dict[str, Any]) -> bool:
    """Whether a proxy on this machine asks for somebody else, who may be anywhere: our own address is open by default, and
    the operator who puts a proxy there means its TLS. (A header can only take trust away here.)"""
    return environ.get("REMOTE_ADDR", "") in LOOPBACK and any(name in environ for name in FORWARDED)


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()
