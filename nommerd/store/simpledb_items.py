"""What the items of the SimpleDB store hold: a document cut into values, and beside it what is searched for.

Attributes have one value each, and every write names all that a reader looks at, so that one atomic call replaces the
whole. Only parts of an earlier, longer document stay behind: `parts` says how many are read, and a shorter document
simply has fewer. Names of items are escaped, so that they can be read in a console and never run together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from nommerd.errors import InfrastructureError
from nommerd.job import Job, JobState, Key
from nommerd.store.base import Ending
from nommerd.store.cursor import microseconds
from nommerd.store.simpledb_domain import PAIRS_MAX, VALUE_BYTES, Attributes
from nommerd.store.simpledb_select import (
    CODE,
    ENDED,
    FINISHED,
    LABEL,
    NEVER,
    PLACE,
    PRESET,
    RECIPE,
    STATE,
    STATE_IN,
    SWEEP,
    WEBHOOK,
    ended_at,
    ended_text,
    named,
    padded,
    place,
    state_in,
    sweep_text,
    webhook_text,
)

VERSION, PARTS = "version", "parts"
PART_BYTES = 1000  # below VALUE_BYTES: it is the bytes of one value, whatever its last character needs
LEADER_ITEM, PING_ITEM = "leader", "ping"

# What XML cannot hold comes back from SimpleDB in Base64, without boto3 telling; line ends that XML may turn into others.
_NOT_XML = re.compile("[\x7f-\x9f\u2028\ufdd0-\ufdef\ufffe\uffff"
                      + "".join(f"{chr(plane << 16 | 0xfffe)}{chr(plane << 16 | 0xffff)}" for plane in range(1, 17)) + "]")


class Torn(Exception):
    """Not all parts of the document are there."""


def item_name(kind: str, *names: str) -> str:
    """The name of an item: `job/default/4f2a…`."""
    return "/".join([kind, *(quote(name, safe="", errors="surrogatepass") for name in names)])


def job_item(key: Key) -> str:
    """The name of a job's item."""
    return item_name("job", *key)


def nameable(item: str) -> bool:
    """Whether an item can have this name."""
    return len(item) <= VALUE_BYTES


def document(json_text: str) -> Attributes:
    """Compact JSON as attributes."""
    return parted(split(xml_safe(json_text)))


def parted(pieces: Sequence[str]) -> Attributes:
    """These pieces as attributes that `joined` puts together."""
    return {PARTS: str(len(pieces))} | {_part(number): piece for number, piece in enumerate(pieces)}


def joined(attributes: Mapping[str, str]) -> str:
    """What `parted` took: of a document the same JSON, maybe with escapes. Raises Torn."""
    try:
        return "".join(attributes[_part(number)] for number in range(int(attributes[PARTS])))
    except (KeyError, ValueError):
        raise Torn from None


def job_attributes(job: Job) -> Attributes:
    """All that a job's item holds. Raises InfrastructureError internal.record_too_large."""
    code = None if job.error is None else job.error.code
    attributes = {
        VERSION: str(job.version),
        PLACE: place(job.project, microseconds(job.created), job.id),
        STATE: job.state.value,
        STATE_IN: state_in(job.project, job.state),
        PRESET: named(job.preset),
        CODE: named(code),
        RECIPE: named(job.recipe),
        FINISHED: NEVER if job.finished is None else padded(microseconds(job.finished)),
        ENDED: ended_text(job.project, job.finished),
        SWEEP: sweep_text(job.sweep, job.sweep_at, job.key),
        WEBHOOK: webhook_text(job.webhook_at, job.key),
        **{LABEL + name: named(value) for name, value in job.labels.items()},
        **document(job.encode().decode()),
    }
    if len(attributes) > PAIRS_MAX or any(_too_long(text) for pair in attributes.items() for text in pair):
        raise InfrastructureError("internal.record_too_large",
                                  f"The record of job {job.id} has more labels, or longer names, than SimpleDB takes.",
                                  retryable=False)
    return attributes


def ending(attributes: Mapping[str, str]) -> Ending:
    """How a job ended, of three of its item's attributes."""
    code = attributes[CODE]
    return Ending(ended_at(attributes[ENDED]), JobState(attributes[STATE]), None if code == NEVER else code[1:])


def split(text: str) -> list[str]:
    """The text in pieces of at most PART_BYTES, no character cut in two; at least one piece."""
    encoded = text.encode()
    pieces = []
    start = 0
    while start < len(encoded):
        end = min(start + PART_BYTES, len(encoded))
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        pieces.append(encoded[start:end].decode())
        start = end
    return pieces or [""]


def xml_safe(json_text: str) -> str:
    """The same JSON, with escapes for what XML cannot hold: such characters can only stand in its strings."""
    return _NOT_XML.sub(lambda found: json.dumps(found[0])[1:-1], json_text)


def _part(number: int) -> str:
    return f"part{number:03d}"


def _too_long(text: str) -> bool:
    return len(text) > VALUE_BYTES // 4 and len(text.encode()) > VALUE_BYTES
