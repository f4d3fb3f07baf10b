"""Tickets: short texts that let whoever holds one read one output for some minutes, without a token.

A browser's <video> sends no Authorization, and a token has no place in an address. Nothing is stored: a ticket says what it is
for, under a MAC by a key that is derived from the keyring. It holds at every feeder that has the same keys.
"""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from hashlib import sha256

from nommerd.secrets import Keyring

PURPOSE = "media ticket"
TICKET_SECONDS = 600  # a player that needs longer asks for another
TICKET_MAX = 1024  # characters


@dataclass(frozen=True, slots=True)
class Ticket:
    """What may be read, and until when (epoch seconds)."""

    project: str
    job: str
    output: int
    expires: int


class BadTicket(ValueError):
    """Not one of ours, or expired; the message says which."""


def write(keyring: Keyring, ticket: Ticket) -> str:
    """The ticket as text that needs no escaping in an address."""
    body = json.dumps([ticket.project, ticket.job, ticket.output, ticket.expires], separators=(",", ":")).encode()
    return f"{_text(body)}.{_text(_mac(keyring.derive(PURPOSE)[0], body))}"


def read(keyring: Keyring, text: str, now: float) -> Ticket:
    """What the ticket says. Raises BadTicket."""
    try:
        body, mac = (_bytes(part) for part in text[:TICKET_MAX].split("."))
    except ValueError:
        raise BadTicket("This ticket cannot be read.") from None
    if not any([hmac.compare_digest(_mac(key, body), mac) for key in keyring.derive(PURPOSE)]):
        raise BadTicket("This ticket was not made here.")
    ticket = Ticket(*json.loads(body))
    if now >= ticket.expires:
        raise BadTicket("This ticket has expired.")
    return ticket


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, sha256).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Strictly: each text of bytes has one spelling, so that no two tickets are equal."""
    data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if _text(data) != text:
        raise ValueError("another spelling")
    return data
