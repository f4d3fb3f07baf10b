"""What a client accepts, and on which state of a thing its request depends (RFC 9110, 12.5.1 and 13.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nommerd.api.problems import Refusal, refuse
from nommerd.api.route import Call

_QUALITY = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")
_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_ETAGS = re.compile(rf"\s*(?:{_ETAG.pattern}\s*(?:,\s*|$))+")
HEADER_MAX = 1024


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """The media type to answer with: of those offered the one that the client likes best, the earlier of equals; the first
    where it accepts none or says nothing."""
    if not accept:
        return offered[0]
    wanted = [_media_range(part) for part in accept[:HEADER_MAX].split(",")]
    best = max(offered, key=lambda one: (_quality(one, wanted), -offered.index(one)))
    return best if _quality(best, wanted) > 0 else offered[0]


def _media_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            quality = float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
    return name, quality


def _quality(offered: str, wanted: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that fits."""
    ranges = dict(reversed(wanted))
    for name in (offered, f"{offered.partition('/')[0]}/*", "*/*"):
        if name in ranges:
            return ranges[name]
    return 0.0


def not_modified(call: Call, etag: str) -> bool:
    """Whether If-None-Match says that the client has this state already."""
    names = _names(call, "If-None-Match")
    return names is not None and (etag in names or "*" in names)


def conditional(call: Call) -> bool:
    """Whether the request depends on a state."""
    return call.header("If-Match") is not None or call.header("If-None-Match") is not None


def check_conditions(call: Call, etag: str | None) -> None:
    """Refused with 412 where If-Match or If-None-Match does not hold for this state; None: there is nothing."""
    wanted, unwanted = _names(call, "If-Match"), _names(call, "If-None-Match")
    if wanted is not None and (etag is None or not ("*" in wanted or etag in wanted)):
        raise changed("If-Match", f"It is {etag} now." if etag else "There is nothing here.")
    if unwanted is not None and etag is not None and ("*" in unwanted or etag in unwanted):
        raise changed("If-None-Match", f"It is there: {etag}.")


def changed(header: str, message: str) -> Refusal:
    """412."""
    return refuse(412, f"header.{header}", "request.precondition_failed", message, "Get it anew, and decide again.")


def _names(call: Call, header: str) -> list[str] | None:
    """The entity tags in a header, or `*`; None where it was not sent."""
    text = call.header(header)
    if text is None:
        return None
    if text.strip() == "*":
        return ["*"]
    if len(text) > HEADER_MAX or not _ETAGS.fullmatch(text):
        raise refuse(400, f"header.{header}", "request.bad_header", f'{header} must be * or a list of ETags, such as "1-ab".')
    return _ETAG.findall(text)
