"""Structured events, redacted at the boundary. A line never fails and never waits: see nommerd.outlet.

`get().info("job.finished", seconds=3.2)`: an event is a dotted name with fields, not prose. Lines are key=value on a
terminal and JSON elsewhere, in UTC, each written at once. `bound(job=…)` adds fields to every event of the work inside.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from json import dumps
from textwrap import indent
from typing import Any, ParamSpec, TextIO, TypeVar

from nommerd.outlet import Outlet
from nommerd.secrets import MASK, Secret, split_uri

# structlog would import rich, where it is installed, for a console that is not used here: 4 MB of every daemon.
_absent = "rich" not in sys.modules
if _absent:
    sys.modules["rich"] = None  # type: ignore[assignment]  # importing it fails then, which structlog is ready for
import structlog  # noqa: E402

if _absent:
    del sys.modules["rich"]

P = ParamSpec("P")
T = TypeVar("T")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
SHORTEST_REGISTERED = 6  # characters; shorter texts would blot out words
NESTING_MAX = 6
TEXT_MAX = 32 * 1024  # characters of one field

_registered: set[str] = set()
# Each is linear in the length of a text, which may be a caller's: bounded repetitions, or one start per word.
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}://[^\s\"<>]+")
_PATH_WITH_QUERY = re.compile(r"(?<![^\s\"<>?])([^\s\"<>?]++)\?[^\s\"<>]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_PATTERNS = (
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?basic\s+)[\w+/=-]+"), rf"\1{MASK}"),
    (re.compile(r"\bwhsec_[\w+/=-]+"), MASK),
    (re.compile(r"\bnommerd_[0-9A-Za-z]{36}\b"), MASK),  # API tokens: see nommerd.tokens
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
    if "?" in text:
        text = _PATH_WITH_QUERY.sub(lambda m: f"{m[1]}?{MASK}" if "/" in m[1] else m[0], text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _redact_uri(match: re.Match[str]) -> str:
    """Without credentials and, whatever the scheme, without a query: a log need not know it."""
    scheme, user, rest = split_uri(match[0])
    if "://" in rest and "@" in rest:  # several, run together: whose credentials these are cannot be told
        user, rest = "@", rest.rpartition("@")[2]
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
    text = redact(str(value))
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "…"


def _line(as_json: bool) -> Callable[[Any, str, MutableMapping[str, Any]], str]:
    """The processor that makes a line of an event, whatever is in it."""
    render = _as_json if as_json else _as_text

    def process(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        name = str(event.pop("event", ""))
        stamp = {"time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), "level": method}
        try:
            fields = structlog.processors.format_exc_info(logger, method, event)
            return render(_clean({**stamp, "event": name, **fields}))
        except Exception as error:  # a value that cannot be shown must not break what tells about it
            return render({**stamp, "event": redact(name), "unreadable": type(error).__name__})

    return process


def _as_json(event: dict[str, Any]) -> str:
    return dumps(event, ensure_ascii=False)


def _as_text(event: dict[str, Any]) -> str:
    """`TIME level event key=value …`, and a traceback below, indented: no text in it looks like another event, or speaks to
    the terminal."""
    time, level, name = event.pop("time"), event.pop("level"), event.pop("event")
    trace = event.pop("exception", None)
    fields = " ".join(f"{key}={_quoted(value)}" for key, value in event.items())
    line = f"{time} {level:<7} {name} {fields}".rstrip()
    text = f"{line}\n{indent(str(trace), '  ')}" if trace else line
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else dumps(value, ensure_ascii=False)
    return text if isinstance(value, str) and re.fullmatch(r"[^\s\"=\x00-\x1f]+", text) else dumps(value, ensure_ascii=False)


class RedactingStream:
    """A text stream for what others print (gevent prints tracebacks of greenlets that died)."""

    def __init__(self, stream: Outlet) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


class _Logger:
    """What structlog hands finished lines to."""

    def __init__(self, out: Outlet) -> None:
        self._out = out

    def msg(self, line: str) -> None:
        self._out.write(line + "\n")

    debug = info = warning = error = critical = exception = log = msg


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
    out = Outlet(stream or sys.stderr)
    atexit.register(out.close)
    as_json = json if json is not None else not out.isatty()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _line(as_json)],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *names: _Logger(out),
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
