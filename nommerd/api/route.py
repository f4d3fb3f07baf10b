"""What a call of the API is: a Route says who may call it, what it takes and answers, and what handles it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from nommerd.api.access import Access, Scope
from nommerd.api.body import read_body

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Call:
    """One request: the WSGI environment, who asks, and the parts of the path by name."""

    environ: dict[str, Any]
    access: Access
    path: Mapping[str, str]

    @property
    def query(self) -> str:
        """The raw query string."""
        return str(self.environ.get("QUERY_STRING", ""))

    def header(self, name: str) -> str | None:
        """A request header by its HTTP name, None where it was not sent."""
        key = name.upper().replace("-", "_")
        return self.environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}")

    def body(self) -> bytes:
        """The raw body, within the limits of nommerd.api.body."""
        return read_body(self.environ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`value` as JSON; or a `body` of another type, whole or as it comes (then it is closed when the client goes)."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterable[bytes] | None = None
    content_type: str = JSON

    def encoded(self) -> bytes | Iterable[bytes]:
        """What is sent."""
        if self.body is not None:
            return self.body
        return json.dumps(self.value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A call. Its path is written as OpenAPI has it: `/v1/jobs/{id}`. `scope` None: no token is needed.

    The rest describes it for OpenAPI: `summary` in one line; `answers` by status, each a model, or None for a body that is no
    JSON object of ours; `request` the model of the body; `query` the model of the query string.
    """

    method: str
    path: str
    scope: Scope | None
    handle: Callable[[Call], Answer]
    summary: str
    installation: bool = False  # concerns all projects: for tokens of the project `default` alone
    answers: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    request: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # request headers that it heeds, and what they say
    consumes: tuple[str, ...] = (JSON,)  # media types of the body
    produces: tuple[str, ...] = (JSON,)  # media types of what it answers with success
