"""The one outbound HTTP client, for sources, destinations and webhooks.

It reaches public addresses and those in `net.allow_networks`, nothing else, in whatever spelling: a name is resolved once,
its address judged, and the connection made to that very address, so that a name that resolves anew changes nothing. It
follows redirects only where asked, each judged like the first, and takes no proxy, cookie or netrc from anywhere.

requests-hardened gives the session (no redirects, time-outs, user agent) and the way of pinning. Its own address filter
knows a fixed list only, so the adapter here asks ours.
"""

from __future__ import annotations

import base64
import logging
import re
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests_hardened import Config, HTTPSession
from urllib3.util.ssl_match_hostname import CertificateError

from nommerd import __version__
from nommerd.errors import InfrastructureError, InputError, NommerdError
from nommerd.net.addresses import LOOPBACK, Policy, literal, resolve

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS_MAX = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_HINT = "To reach a private network, list it in the setting net.allow_networks."

logging.getLogger("urllib3").setLevel(logging.INFO)  # at DEBUG it logs paths with their queries, which are secrets


class _Forbidden(Exception):
    """No address of this host may be reached."""


class _Unresolved(Exception):
    """The host has no address."""


class Answer:
    """A response whose body is read piece by piece. Close it."""

    def __init__(self, response: requests.Response, family: str) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._family = family

    def read(self, count: int) -> bytes:
        """At most `count` bytes, as soon as there are some, undecoded; none at the end. InfrastructureError
        `FAMILY.unavailable` when the connection breaks, also before Content-Length bytes have come."""
        try:
            data: bytes = self._response.raw.read1(count, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise _unavailable(self._family, self.host, _why(error)) from None
        return data or b""

    @property
    def host(self) -> str:
        return _host(str(self._response.url))

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Egress:
    """Requests to the outside. `family` (source, dest, webhook) names errors.

    InputError `FAMILY.bad_uri`, `.forbidden_address`, `.too_many_redirects`, `.bad_certificate`; InfrastructureError
    `FAMILY.unavailable` when there is no answer. Any status is an answer. User information in the URL becomes basic
    authentication and goes to that origin only; neither it nor a query is ever in a message.
    """

    def __init__(self, allow_networks: Sequence[str] = (), *, connect_seconds: float = CONNECT_SECONDS,
                 read_seconds: float = READ_SECONDS, ca_file: Path | None = None) -> None:
        self._policy = Policy(allow_networks)
        self._timeouts = (connect_seconds, read_seconds)
        config = Config(ip_filter_enable=False, ip_filter_allow_loopback_ips=False, never_redirect=True,
                        default_timeout=self._timeouts, user_agent_override=f"nommerd/{__version__}")
        self._session = _Session(config)
        self._session.trust_env = False
        self._session.verify = str(ca_file) if ca_file else True
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _PinningAdapter(self._policy))

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
        raise InputError(f"{family}.too_many_redirects", f"{_host(url)} redirects more than {redirects} times.")

    def _send(self, method: str, url: str, family: str, headers: Mapping[str, str] | None, *,
              body: bytes | Iterable[bytes] | None = None, read_seconds: float | None = None) -> Answer:
        host, bare, authorization = _split(url, family)
        sent = {**(headers or {}), **({"Authorization": authorization} if authorization else {})}
        try:
            request = self._session.prepare_request(requests.Request(method, bare, headers=sent, data=body))
            response = self._session.send(request, stream=True, timeout=(self._timeouts[0], read_seconds or self._timeouts[1]))
        except _Forbidden:
            raise _forbidden(family, host) from None
        except _Unresolved:
            raise _unavailable(family, host, "the name does not resolve") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema,
                requests.exceptions.InvalidHeader, UnicodeError):
            raise _bad_uri(family) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken(family, host, error) from None
        return Answer(response, family)


class _Session(HTTPSession):  # type: ignore[misc]
    """Leaves redirects to us. By itself requests reads the whole body of one, however long, even if it is not to follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _PinningAdapter(HTTPAdapter):
    """Connects to the address that was judged; certificates and Host still speak of the name."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        super().__init__(max_retries=0)

    def build_connection_pool_key_attributes(self, request: requests.PreparedRequest, verify: Any, cert: Any = None) -> Any:
        """What requests connects to, and how: called once for each request."""
        host_params, pool_kwargs = super().build_connection_pool_key_attributes(request, verify, cert)
        host, port = str(host_params["host"] or ""), host_params["port"]
        shown = f"[{host}]" if ":" in host else host
        request.headers["Host"] = shown if port is None else f"{shown}:{port}"
        if host_params["scheme"] == "https":
            pool_kwargs["assert_hostname"] = host  # type: ignore[typeddict-unknown-key]
            pool_kwargs["server_hostname"] = host  # type: ignore[typeddict-unknown-key]
        host_params["host"] = self._pin(host, port or 0)
        return host_params, pool_kwargs

    def _pin(self, host: str, port: int) -> str:
        try:
            addresses = resolve(host, port)
        except (socket.gaierror, UnicodeError):
            raise _Unresolved from None
        for address in addresses:
            if self._policy.permits(address):
                return f"[{address}]" if address.version == 6 else str(address)
        raise _Forbidden


def _split(url: str, family: str) -> tuple[str, str, str | None]:
    """Host, the URL without user information and fragment, and the Authorization header for it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
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


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "the host"
    except ValueError:
        return "the host"


def _why(error: BaseException) -> str:
    """A few words on what went wrong. Never the exception's own text, which quotes the URL."""
    if isinstance(error, (requests.exceptions.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)):
        return "no connection in time"
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, (requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError)):
        return "the TLS handshake failed"
    if any(isinstance(e, (ConnectionRefusedError, urllib3.exceptions.NewConnectionError)) for e in _chain(error)):
        return "no connection"
    return "the connection broke"


def _chain(error: BaseException) -> Iterable[BaseException]:
    """The error and what it holds: requests and urllib3 wrap one in the other, in their arguments and attributes."""
    waiting, seen = [error], set()
    while waiting:
        e = waiting.pop()
        if id(e) in seen:
            continue
        seen.add(id(e))
        yield e
        inside = (*e.args, getattr(e, "reason", None), e.__cause__, e.__context__)
        waiting += [i for i in inside if isinstance(i, BaseException)]


def _broken(family: str, host: str, error: BaseException) -> NommerdError:
    for inner in _chain(error):
        if isinstance(inner, (ssl.SSLCertVerificationError, CertificateError)):
            return InputError(f"{family}.bad_certificate", f"{host} has no certificate that can be trusted.",
                              "Its certificate is expired, for another name, or from an unknown authority.")
    return _unavailable(family, host, _why(error))


def _unavailable(family: str, host: str, why: str) -> InfrastructureError:
    return InfrastructureError(f"{family}.unavailable", f"{host}: {why}.")


def _bad_uri(family: str) -> InputError:
    return InputError(f"{family}.bad_uri", "This is not an http or https URL.",
                      "Write https://host/path, special characters escaped.")


def _forbidden(family: str, host: str) -> InputError:
    return InputError(f"{family}.forbidden_address", f"{host} is not on the public internet.", _HINT)
