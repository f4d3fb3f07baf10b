"""The connections behind `nommerd.net.egress`, and what their failures mean. Apart, because requests takes 8 MB: a process
that never asks the network goes without.

requests-hardened gives the session (no redirects, time-outs, user agent) and the way of pinning. Its own address filter
knows a fixed list only, so the adapter here asks ours.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests_hardened import Config, HTTPSession
from urllib3.util.ssl_match_hostname import CertificateError

from nommerd import __version__
from nommerd.errors import InfrastructureError, InputError, NommerdError
from nommerd.net.addresses import Policy, resolve

logging.getLogger("urllib3").setLevel(logging.INFO)  # at DEBUG it logs paths with their queries, which are secrets


class Forbidden(Exception):
    """No address of this host may be reached."""


class BadUrl(Exception):
    """requests cannot make a request of it."""


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
        return host_of(str(self._response.url))

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Session:
    """One pool of connections to addresses that the policy permits."""

    def __init__(self, policy: Policy, connect_seconds: float, read_seconds: float, ca_file: Path | None,
                 agent: str = "nommerd") -> None:
        config = Config(ip_filter_enable=False, ip_filter_allow_loopback_ips=False, never_redirect=True,
                        default_timeout=(connect_seconds, read_seconds), user_agent_override=f"{agent}/{__version__}")
        self._session = _Session(config)
        self._session.trust_env = False
        self._session.verify = str(ca_file) if ca_file else True
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _PinningAdapter(policy))

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None,
             timeouts: tuple[float, float], family: str) -> Answer:
        """The answer, once its headers are there. Raises Forbidden, BadUrl, and what Egress says of failing."""
        try:
            request = self._session.prepare_request(requests.Request(method, url, headers=headers, data=body))
            response = self._session.send(request, stream=True, timeout=timeouts)
        except _Unresolved:
            raise _unavailable(family, host_of(url), "the name does not resolve") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema,
                requests.exceptions.InvalidHeader, UnicodeError):
            raise BadUrl from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _broken(family, host_of(url), error) from None
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
        raise Forbidden


def host_of(url: str) -> str:
    """The host, for a message."""
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
