"""Structured events, redacted at the boundary.

`get().info("job.finished", seconds=3.2)`: an event is a dotted name with fields, not prose. Lines are key=value on a
terminal and JSON elsewhere, in UTC, each written at once. `bound(job=…)` adds fields to every event of the work inside.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from json import dumps
from typing import Any, ParamSpec, TextIO, TypeVar

import structlog

from nommerd.secrets import MASK, Secret, split_uri

P = ParamSpec("P")
T = TypeVar("T")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
SHORTEST_REGISTERED = 6  # characters; shorter texts would blot out words
NESTING_MAX = 6

_registered: set[str] = set()
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s\"<>]+")
_PATTERNS = (
    (re.compile(r"(?<![\w:/?])(/[^\s?\"<>]*)\?[^\s\"<>]+"), rf"\1?{MASK}"),  # a request path with its query
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?basic\s+)[\w+/=-]+"), rf"\1{MASK}"),
    (re.compile(r"\bwhsec_[\w+/=-]+"), MASK),
)


def register(*secrets: Secret | str) -> None:
    """Never let these texts into a log line, wherever they turn up."""
    for secret in secrets:
        text = secret.reveal() if isinstance(secret, Secret) else secret
        if len(text) >= SHORTEST_REGISTERED:
            _registered.add(text)


def redact(text: str) -> str:
    """The text without URI credentials, query strings, bearer tokens, webhook secrets and registered secrets."""
    for secret in sorted(_registered, key=len, reverse=True):
        text = text.replace(secret, MASK)
    if "://" in text:
        text = _URI.sub(_redact_uri, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _redact_uri(match: re.Match[str]) -> str:
    """Without credentials and, whatever the scheme, without a query: a log need not know it."""
    scheme, user, rest = split_uri(match[0])
    head, query, _ = rest.partition("?")
    return scheme + (f"{MASK}@" if user else "") + head + (f"?{MASK}" if query else "")


def _clean(value: Any, depth: int = 0) -> Any:
    """Any value as something JSON knows, every string in it redacted."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Secret):
        return MASK
    if depth < NESTING_MAX:
        if isinstance(value, Mapping):
            return {redact(str(key)): _clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_clean(item, depth + 1) for item in value]
    return redact(str(value))


def _redacted(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _clean(value) for key, value in event.items()}


def _stamped(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": now, "level": method, "event": event.pop("event", ""), **event}


def _as_json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    return dumps(event, ensure_ascii=False)


def _as_text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """`TIME level event key=value …`, and a traceback below."""
    time, level, name = event.pop("time"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", None)
    fields = " ".join(f"{key}={_quoted(value)}" for key, value in event.items())
    line = f"{time} {level:<7} {name} {fields}".rstrip()
    return f"{line}\n{trace}" if trace else line


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
    return text if isinstance(value, str) and re.fullmatch(r"[^\s\"=\x00-\x1f]+", text) else dumps(value, ensure_ascii=False)


class RedactingStream:
    """A text stream for what others print (gevent prints tracebacks of greenlets that died)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


class _Bridge(logging.Handler):
    """What libraries log becomes an event of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = record.levelname.lower() if record.levelname.lower() in LEVELS else "error"
            getattr(get(), level)("library", logger=record.name, message=record.getMessage(), exc_info=record.exc_info or None)
        except Exception:  # logging must never break what it tells about
            self.handleError(record)


def configure(stream: TextIO | None = None, json: bool | None = None, level: str = "info") -> None:
    """Send events of this level and above to `stream` (stderr), as JSON unless it is a terminal.

    Libraries' warnings, uncaught exceptions and gevent's tracebacks go the same way, redacted.
    """
    out = stream or sys.stderr
    as_json = json if json is not None else not out.isatty()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info, _stamped, _redacted,
                    _as_json if as_json else _as_text],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Bridge()]
    root.setLevel(logging.WARNING)
    sys.excepthook = _uncaught
    if "gevent" in sys.modules:
        import gevent

        gevent.get_hub().exception_stream = RedactingStream(out)


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    get().error("uncaught", exc_info=(kind, error, trace))


def get(**fields: Any) -> Any:
    """A logger whose events carry these fields."""
    return structlog.get_logger(**fields)


@contextlib.contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Every event of this greenlet carries these fields inside the block. Greenlets and threads begin without them:
    see `carry`."""
    with structlog.contextvars.bound_contextvars(**fields):
        yield


def carry(function: Callable[P, T]) -> Callable[P, T]:
    """The function under the fields bound now, for a greenlet or a thread: `gevent.spawn(carry(work))`."""
    context = contextvars.copy_context()

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return run
