"""A feeder's HTTP API for the client commands, on the standard library alone: no gevent, no pydantic, no boto3."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from nommerd import __version__
from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors, NommerdError
from nommerd.places import DEFAULT_URL, TOKEN_NAME, default_data_dir
from nommerd.secrets import Secret

TIMEOUT_SECONDS = 30.0
WAIT_SECONDS = 20.0  # how long one request waits for a change
ANSWER_BYTES_MAX = 64 * 2**20
FINAL = frozenset({"FINISHED", "ERROR", "ABANDONED", "CANCELLED"})


def find_token(explicit: str | None, env: Mapping[str, str]) -> Secret:
    """--token, else NOMMERD_TOKEN, else the token file that `nommerd up` makes. ConfigError without any."""
    text = explicit or env.get("NOMMERD_TOKEN")
    if text:
        return Secret(text.strip())
    path = default_data_dir(env) / TOKEN_NAME
    try:
        return Secret(path.read_text(encoding="ascii").strip())
    except (OSError, UnicodeDecodeError):
        raise ConfigError("config.no_token", f"There is no API token: {path} cannot be read.",
                          "Start `nommerd up`, which makes it, or set NOMMERD_TOKEN to what is in the feeder's token file: "
                          "`token` in its data directory.") from None


class Client:
    """One feeder. Each call is a request of its own; errors are ours, with the feeder's places and hints."""

    def __init__(self, url: str | None, token: Secret) -> None:
        self.url = (url or DEFAULT_URL).rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("config.bad_url", "The feeder's URL must look like http://127.0.0.1:8001.",
                              "It comes from --url or NOMMERD_URL.")
        self._parts = parts
        self._token = token

    @staticmethod
    def from_options(url: str | None, token: str | None) -> Client:
        return Client(url, find_token(token, os.environ))

    def call(self, method: str, path: str, body: object = None, *, timeout: float = TIMEOUT_SECONDS,
             headers: Mapping[str, str] | None = None) -> Any:
        """The decoded answer. InputError for what the feeder refuses, InfrastructureError where it cannot be reached."""
        connection = self._connection(timeout)
        sent = {"Authorization": f"Bearer {self._token.reveal()}", "User-Agent": f"nommerd/{__version__}",
                "Accept": "application/json", **(headers or {})}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, self._parts.path + path, payload, sent)
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise InfrastructureError("node.no_feeder", f"No feeder answers at {self.url}: {_why(error)}.",
                                      "Start one with `nommerd up`, or give its address with --url.") from None
        finally:
            connection.close()
        return _decoded(response.status, text)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=timeout)

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

    def jobs(self, query: list[tuple[str, str]], limit: int) -> list[dict[str, Any]]:
        """Up to `limit` jobs, newest first, over as many pages as it takes."""
        found: list[dict[str, Any]] = []
        cursor: list[tuple[str, str]] = []
        while len(found) < limit:
            page = self.call("GET", "/v1/jobs?" + urlencode([*query, ("limit", str(min(500, limit - len(found)))), *cursor]))
            found += page["jobs"]
            if not page["next"]:
                break
            cursor = [("cursor", page["next"])]
        return found

    def changes(self, job: dict[str, Any], poll_seconds: float) -> Iterator[dict[str, Any]]:
        """The job again and again until it is final: at each change of state, and every `poll_seconds` for its progress.

        Its `events` since the last time are all there, so no state is missed however quick it was.
        """
        yield job
        while job["state"] not in FINAL:
            job = self.job(job["id"], after=job["event_seq"], wait_seconds=poll_seconds)
            yield job


def _decoded(status: int, text: bytes) -> Any:
    try:
        answer = json.loads(text) if text else None
    except ValueError:
        raise InfrastructureError("node.no_feeder", f"The answer ({status}) is not JSON.",
                                  "Is this the feeder's address? Check --url.") from None
    if status < 400:
        return answer
    raise _refusal(status, answer if isinstance(answer, dict) else {})


def _refusal(status: int, problem: dict[str, Any]) -> NommerdError:
    """A problem+json answer as an error of ours."""
    kind: type[NommerdError] = InputError if status < 500 else InfrastructureError
    if status == 401:
        return ConfigError(problem.get("code") or "request.unauthorized", "The feeder does not accept this token.",
                           "Set NOMMERD_TOKEN to what is in the feeder's token file.")
    entries = [entry for entry in problem.get("errors") or [] if isinstance(entry, dict)]
    faults: list[NommerdError] = [
        kind(str(entry.get("code", "request.refused")), str(entry.get("message", "")), str(entry.get("hint") or ""),
             place=entry.get("place")) for entry in entries]
    if not faults:
        said = problem.get("detail") or f"The feeder answered {status}."
        return kind(str(problem.get("code", "request.refused")), str(said))
    return faults[0] if len(faults) == 1 else ManyErrors(faults)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
