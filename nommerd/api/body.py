"""A request body as JSON, strictly: what other parsers let pass, or read differently, is refused by name."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

import gevent

from nommerd.api.problems import Refusal, refuse

BODY_BYTES_MAX = 256 * 1024  # far more than a record holds: a thousand clients may send at once
NESTING_MAX = 32
VALUES_MAX = 10_000  # in one body: looking at them must not take long enough for others to notice
BODY_SECONDS = 20.0  # within which a client must have sent its body


def read_body(environ: dict[str, Any]) -> bytes:
    """The raw body, whatever content type it is sent under. Refused with 413 over BODY_BYTES_MAX, with 408 when slow."""
    try:
        declared = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        raise refuse(400, "header.Content-Length", "request.bad_header", "Content-Length is not a number.") from None
    if declared > BODY_BYTES_MAX:
        raise _too_large()
    try:
        with gevent.Timeout(BODY_SECONDS, TimeoutError):
            body: bytes = environ["wsgi.input"].read(BODY_BYTES_MAX + 1)
    except TimeoutError:
        raise refuse(408, "body", "request.too_slow", f"The body did not arrive within {BODY_SECONDS:.0f} s.",
                     Connection="close") from None
    except OSError:
        raise refuse(400, "body", "request.bad_body", "The body broke off, or its chunks cannot be read.",
                     Connection="close") from None
    if len(body) > BODY_BYTES_MAX:
        raise _too_large()
    return body


def _too_large() -> Refusal:
    return refuse(413, "body", "request.too_large", f"The body is larger than {BODY_BYTES_MAX} bytes.", Connection="close")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Refused: anything else, duplicate keys, NaN, Infinity, numbers out of range, deep
    nesting, more than VALUES_MAX values, bytes that are not UTF-8."""
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad(f"The body is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise _bad(_sentence(error, body)) from None
    except RecursionError:
        raise _bad(_TOO_DEEP) from None
    except _Refused as error:
        raise _bad(str(error)) from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise _bad("A number in the body is too long.") from None
    if not isinstance(value, dict):
        raise refuse(400, "body", "request.bad_body", "The body must be a JSON object.", 'Write {"source": …, "dest": …}.')
    _check_extent(value)
    return value


_TOO_DEEP = f"The body is nested more than {NESTING_MAX} deep."


def _check_extent(value: Any) -> None:
    """Without recursion: what could be read may be too deep to be written, or looked at, further down the stack."""
    level, count = [value], 0
    for _ in range(NESTING_MAX):
        whole = [one for one in level if isinstance(one, dict | list)]
        count += sum(map(len, whole))
        if count > VALUES_MAX:
            raise refuse(413, "body", "request.too_large", f"The body holds more than {VALUES_MAX} values.")
        level = [part for one in whole for part in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return
    raise _bad(_TOO_DEEP)


class _Refused(Exception):
    """JSON that Python would take and that we do not."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Refused(f"The key {shown(twice)} stands twice in one object.")
    return made


def _constant(text: str) -> NoReturn:
    raise _Refused(f"{text} is no JSON number.")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Refused("A number in the body is out of range.")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_number)


def _sentence(error: json.JSONDecodeError, body: bytes) -> str:
    if not body.strip():
        return "The body is empty: a JSON object is expected."
    ended = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
    where = f"line {error.lineno}, column {error.colno}"
    return f"The body ends in mid-JSON ({where})." if ended else f"The body is not JSON: {error.msg} ({where})."


def _bad(message: str) -> Refusal:
    return refuse(400, "body", "request.bad_json", message, "Send one JSON object, UTF-8.")


_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def control_characters(text: str) -> bool:
    """Whether the text holds control characters, line or direction marks, or halves of a surrogate pair."""
    return _UNSEEN.search(text) is not None


def shown(text: str, longest: int = 60) -> str:
    """A text of the caller's as it may be quoted back: cut short, its control characters escaped."""
    clean = _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return repr(clean[:longest] + "…" if len(clean) > longest else clean)
