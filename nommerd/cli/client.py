"""A feeder's HTTP API for the client commands, on the standard library alone: no gevent, no pydantic, no boto3."""

from __future__ import annotations

import http.client
import json
import os
import select
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from nommerd import __version__
from nommerd.cli.credentials import Token, find_token
from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors, NommerdError
from nommerd.places import DEFAULT_URL

TIMEOUT_SECONDS = 30.0
WAIT_SECONDS = 20.0  # how long one request waits for a change
AWAY_SECONDS = 60.0  # a feeder that is away so long is not waited for any longer
AGAIN_SECONDS = 1.0  # between looks whether it is back
PAGE_MAX = 500  # jobs in one answer
ANSWER_BYTES_MAX = 64 * 2**20
FINAL = frozenset({"FINISHED", "ERROR", "ABANDONED", "CANCELLED"})


class Busy(InfrastructureError):
    """The feeder asks for patience: 429 and 503. `seconds` says how long, as far as it said so."""

    def __init__(self, error: NommerdError, seconds: float | None) -> None:
        super().__init__(error.code, error.message, error.hint, place=error.place)
        self.seconds = seconds


class Conflict(InputError):
    """409: not in this state, or not with this key."""


class Missing(InputError):
    """404: there is no such thing."""


class Patience:
    """As a context: that the feeder does not answer is forgiven, after a pause, for as long as AWAY_SECONDS."""

    def __init__(self) -> None:
        self._away_since: float | None = None

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            self._away_since = None
            return False
        if not isinstance(error, InfrastructureError):
            return False
        now = time.monotonic()
        self._away_since = self._away_since or now
        if isinstance(error, Busy) and error.seconds:
            time.sleep(min(error.seconds, AWAY_SECONDS))
        else:
            time.sleep(AGAIN_SECONDS)
        return now - self._away_since < AWAY_SECONDS


class Client:
    """One feeder, over one connection that is kept. Not for several threads at once. Errors are ours, with the feeder's
    places and hints."""

    def __init__(self, url: str | None, token: Token) -> None:
        self.url = (url or DEFAULT_URL).rstrip("/")
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError("config.bad_url", "The feeder's URL must look like http://127.0.0.1:8001.",
                              "It comes from --url or NOMMERD_URL.")
        self._parts = parts
        self._token = token
        self._kept: http.client.HTTPConnection | None = None

    @staticmethod
    def from_options(url: str | None, token: str | None) -> Client:
        return Client(url, find_token(token, os.environ, url or DEFAULT_URL))

    def close(self) -> None:
        """Let go of the connection; the next call makes another."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def call(self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS,
             headers: Mapping[str, str] | None = None) -> Any:
        """The decoded answer. InputError for what the feeder refuses (Missing, Conflict), InfrastructureError where it cannot
        be reached (Busy: it asks for patience), ConfigError for a token that is wrong or may not do this."""
        return self.answer(method, path, body, timeout=timeout, headers=headers)[1]

    def answer(self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS,
               headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """As `call`, with the status; YAML as its text."""
        status, got, text = self.exchange(method, path, body, timeout=timeout, headers=headers)
        if status < 400 and got.get("content-type", "json").partition(";")[0].endswith("/yaml"):
            return status, text.decode("utf-8", "replace")
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            raise InfrastructureError("node.no_feeder", f"The answer ({status}) is not JSON.",
                                      "Is this the feeder's address? Check --url.") from None
        if status < 400:
            return status, answer
        raise _refusal(status, answer if isinstance(answer, dict) else {}, got.get("retry-after"))

    def exchange(self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS,
                 headers: Mapping[str, str] | None = None) -> tuple[int, Mapping[str, str], bytes]:
        """One request as it goes over the wire: status, headers by their names in small letters, body. InfrastructureError
        where nobody answers."""
        sent = {"Authorization": f"Bearer {self._token.secret.reveal()}", "User-Agent": f"nommerd/{__version__}",
                "Accept": "application/json", **(headers or {})}
        payload = None
        if body is not None:
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        repeatable = method == "GET" or "Idempotency-Key" in sent
        while True:
            connection, kept = self._connection(timeout)
            try:
                if not kept:
                    connection.connect()
                    self._token.confirm(connection.sock)
                connection.request(method, self._parts.path + path, payload, sent)
                response = connection.getresponse()
                text = response.read(ANSWER_BYTES_MAX)
                if not response.isclosed():
                    self.close()
                return response.status, {name.lower(): value for name, value in response.getheaders()}, text
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if kept and repeatable and isinstance(error, ConnectionError):
                    continue  # the feeder closed it while we sent
                raise InfrastructureError("node.no_feeder", f"No feeder answers at {self.url}: {_why(error)}.",
                                          "Start one with `nommerd up`, or give its address with --url.") from None
            except BaseException:
                self.close()  # interrupted: an answer may be on its way
                raise

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was used before."""
        kept = self._kept
        if kept is not None and kept.sock is not None:
            if not select.select([kept.sock], [], [], 0)[0]:  # readable without a request: the other side closed it
                kept.sock.settimeout(timeout)
                return kept, True
            self.close()
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            self._kept = http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        else:
            self._kept = http.client.HTTPConnection(host, port, timeout=timeout)
        return self._kept, False

    def submit(self, body: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        """The new job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        job: dict[str, Any] = self.call("POST", "/v1/jobs", body, headers=headers)
        return job

    def job(self, job_id: str, *, after: int | None = None, wait_seconds: float = 0.0) -> dict[str, Any]:
        """The job; with `after` and `wait_seconds`, once its event_seq is above `after` or the time is up."""
        query = urlencode({"wait": f"{wait_seconds:g}", "after": after}) if after is not None and wait_seconds else ""
        path = f"/v1/jobs/{quote(job_id, safe='')}" + (f"?{query}" if query else "")
        job: dict[str, Any] = self.call("GET", path, timeout=TIMEOUT_SECONDS + wait_seconds)
        return job

    def jobs(self, query: list[tuple[str, str]], limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Jobs, newest first, over as many pages as it takes; all of them without a limit."""
        found = 0
        cursor: list[tuple[str, str]] = []
        while limit is None or found < limit:
            size = PAGE_MAX if limit is None else min(PAGE_MAX, limit - found)
            page = self.call("GET", "/v1/jobs?" + urlencode([*query, ("limit", str(size)), *cursor]))
            yield from page["jobs"]
            found += len(page["jobs"])
            if not page["next"]:
                return
            cursor = [("cursor", page["next"])]

    def changes(self, job: dict[str, Any], poll_seconds: float) -> Iterator[dict[str, Any]]:
        """The job again and again until it is final: at each change of state, and every `poll_seconds` for its progress.

        Its `events` since the last time are all there, so no state is missed however quick it was. A feeder that is away is
        waited for, for a while.
        """
        patience = Patience()
        yield job
        while job["state"] not in FINAL:
            with patience:
                job = self.job(job["id"], after=job["event_seq"], wait_seconds=poll_seconds)
                yield job


def _refusal(status: int, problem: dict[str, Any], retry_after: str | None = None) -> NommerdError:
    """A problem+json answer as an error of ours."""
    if status == 401:
        return ConfigError(problem.get("code") or "request.unauthorized", "The feeder does not accept this token.",
                           "Set NOMMERD_TOKEN to what is in the feeder's token file.")
    kind: type[NommerdError] = _KINDS.get(status, InputError if status < 500 else InfrastructureError)
    entries = [entry for entry in problem.get("errors") or [] if isinstance(entry, dict)]
    faults: list[NommerdError] = [
        kind(str(entry.get("code", "request.refused")), str(entry.get("message", "")), str(entry.get("hint") or ""),
             place=entry.get("place")) for entry in entries]
    if not faults:
        said = problem.get("detail") or f"The feeder answered {status}."
        faults = [kind(str(problem.get("code", "request.refused")), str(said))]
    if status in (429, 503):
        return Busy(faults[0], float(retry_after) if retry_after and retry_after.isdecimal() else None)
    return faults[0] if len(faults) == 1 else ManyErrors(faults)


_KINDS: dict[int, type[NommerdError]] = {403: ConfigError, 404: Missing, 409: Conflict, 429: InfrastructureError}


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
