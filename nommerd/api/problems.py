"""Refusals as HTTP: problem+json (RFC 9457), one entry per fault, each naming its place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from nommerd.errors import ConfigError, InputError, ManyErrors, NommerdError

PROBLEM = "application/problem+json"
SAFE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}  # of every answer
PROBLEM_HEADERS = {"Content-Type": PROBLEM, **SAFE_HEADERS}
RETRY_AFTER_SECONDS = 2  # what a client is told when the store or the bus is out of reach
CONFLICTS = frozenset({"dest.exists", "idempotency.conflict", "request.wrong_state", "request.token_limit"})
NOT_FOUND = frozenset({"request.unknown_job", "request.unknown_path", "request.unknown_token",
                       "request.unknown_worker"})
SYNTAX = frozenset({"request.bad_json", "request.bad_body"})
FIELDS = ("params", "inputs", "preset", "pipeline", "source", "dest", "notify_url")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a request. `place` is like `body.params.width`, `query.limit` or `header.Host`."""

    place: str
    code: str
    message: str
    hint: str = ""

    def json(self) -> dict[str, str]:
        return {"place": self.place, "code": self.code, "message": self.message, "hint": self.hint}


def phrase(status: int) -> str:
    """What RFC 9110 calls a status; older Pythons have its older words for two of them."""
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or HTTPStatus(status).phrase


@dataclass(eq=False)
class Refusal(Exception):
    """An answer that is not the one asked for."""

    status: int
    faults: Sequence[Fault]
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """The problem document; its code and detail are the first fault's."""
        first = self.faults[0]
        detail = first.message if len(self.faults) == 1 else f"{len(self.faults)} faults; the first: {first.message}"
        return {"type": "about:blank", "title": phrase(self.status), "status": self.status, "code": first.code,
                "detail": detail, "errors": [fault.json() for fault in self.faults]}

    def body(self) -> bytes:
        return json.dumps(self.json(), ensure_ascii=False).encode("utf-8", "replace")


def refuse(status: int, place: str, code: str, message: str, hint: str = "", **headers: str) -> Refusal:
    """A refusal with one fault. Header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Refusal(status, [Fault(place, code, message, hint)], named)


def busy(message: str) -> Refusal:
    """503: the same request may succeed a little later."""
    return refuse(503, "request", "node.store_unavailable", message, "Send the request again.",
                  Retry_After=str(RETRY_AFTER_SECONDS))


def from_error(error: NommerdError, place: str = "body") -> Refusal:
    """The refusal for an error of ours; a ManyErrors becomes one fault for each."""
    errors = error.errors if isinstance(error, ManyErrors) else [error]
    faults = [Fault(_place(e, place), e.code, e.message, e.hint) for e in errors]
    return Refusal(_status(errors[0]), faults)


def _place(error: NommerdError, default: str) -> str:
    if error.place is None:
        return default
    return f"body.{error.place}" if error.place.split(".")[0].split("[")[0] in FIELDS else error.place


def _status(error: NommerdError) -> int:
    if error.code in CONFLICTS:
        return 409
    if error.code in NOT_FOUND:
        return 404
    if error.code in SYNTAX:
        return 400
    return 422 if isinstance(error, InputError | ConfigError) else 500
