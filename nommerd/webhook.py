"""Webhooks: sign one, deliver it, decide when to try again. Who is due is the feeder's to find.

Signed as Standard Webhooks says: webhook-id is `JOBID.SEQ` and stays over all tries, so that a receiver can drop doubles.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from standardwebhooks import Webhook

from nommerd import logs
from nommerd.errors import NommerdError
from nommerd.job import utcnow
from nommerd.net.egress import Egress
from nommerd.net.retry_after import retry_after_seconds
from nommerd.net.watched import watched
from nommerd.secrets import Secret, check_webhook_secret, new_webhook_secret, secret_file

if TYPE_CHECKING:
    from nommerd.net.session import Answer

JSON, FORM = "application/json", "application/x-www-form-urlencoded"  # what a body is
TOTAL_SECONDS = 15.0
REPLY_BYTES_MAX = 64 * 1024
GONE = 410
RETRY_AFTER_MAX_SECONDS = 86400.0
SCHEDULE_SECONDS = (5.0, 30.0, 120.0, 600.0, 3600.0, 3 * 3600.0, 8 * 3600.0, 16 * 3600.0, 86400.0)  # two days for ten tries
JITTER = 0.2  # a wait is up to so much longer: receivers that were down are not asked all at once


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a delivery. `status` is None without an answer; `why` is a few words for the log, without secrets."""

    status: int | None
    retry_after_seconds: float | None = None
    gone: bool = False  # the receiver wants no more of these: disable it
    why: str = ""

    @property
    def accepted(self) -> bool:
        """A 2xx. A redirect is a failure like any other status: it is never followed."""
        return self.status is not None and 200 <= self.status < 300


def message_id(job_id: str, seq: int) -> str:
    """The id of an event's message."""
    return f"{job_id}.{seq}"


def sign(secrets: Sequence[Secret], message_id: str, body: bytes, at: datetime) -> dict[str, str]:
    """The three headers that prove a body is ours and fresh, with a signature under each secret: a receiver takes the one it
    knows. `at` is timezone-aware."""
    at = at.astimezone(UTC)  # the library takes any time for UTC
    text = body.decode("utf-8")
    signatures = " ".join(Webhook(secret.reveal()).sign(message_id, at, text) for secret in secrets)
    return {"webhook-id": message_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signatures}


def deliver(egress: Egress, url: str, secrets: Sequence[Secret], message_id: str, body: bytes, at: datetime, *,
            content_type: str = JSON, total_seconds: float = TOTAL_SECONDS) -> Reply:
    """POST the event once, within `total_seconds`, reading at most REPLY_BYTES_MAX of the reply. Never raises for what
    a receiver or the network does."""
    headers = {**sign(secrets, message_id, body, at), "Content-Type": content_type}
    try:
        with watched(lambda: egress.post(url, body, "webhook", headers), None, total_seconds) as answer:
            _drain(answer)
            retry_after = retry_after_seconds(answer.headers.get("Retry-After"), utcnow())
            why = "" if 200 <= answer.status < 300 else f"answered {answer.status}"
            return Reply(answer.status, retry_after, answer.status == GONE, why)
    except TimeoutError:
        return Reply(None, why=f"no answer within {total_seconds:g} s")
    except NommerdError as error:
        return Reply(None, why=f"{error.code}: {error.message}")
    except Exception:  # a receiver must not be asked again and again at once because of a fault of ours
        logs.get().exception("webhook.broken", message=message_id)
        return Reply(None, why="the delivery failed for a reason of our own")


def _drain(answer: Answer) -> None:
    """Read a short reply, so that its connection can be used again. What a long, slow or broken one says does not matter:
    the status is known."""
    def read() -> None:
        left = REPLY_BYTES_MAX
        while left > 0 and (piece := answer.read(left)):
            left -= len(piece)

    with suppress(NommerdError, TimeoutError):
        watched(read, None, 2.0)


def next_try(tries: int, max_tries: int, retry_after_seconds: float | None, now: datetime,
             luck: Callable[[], float] = random.random) -> datetime | None:
    """When to deliver again after `tries` failures (1 or more), None once there were `max_tries`.

    What the receiver asks for by Retry-After is honoured up to a day, but never hastens. `luck` is in [0, 1).
    """
    if tries >= max_tries:
        return None
    wait = SCHEDULE_SECONDS[min(max(tries, 1), len(SCHEDULE_SECONDS)) - 1]
    wait = max(wait, min(retry_after_seconds or 0.0, RETRY_AFTER_MAX_SECONDS))
    return now + timedelta(seconds=wait * (1 + JITTER * luck()))


def load_or_make_secret(path: Path, configured: Secret | None, make: bool) -> Secret:
    """The configured secret, else the file's, which is made (for its owner alone) when missing, if `make`.

    ConfigError config.webhook_secret for one that cannot sign, config.missing_file without any.
    """
    secret = configured or secret_file(path, make=make, generate=new_webhook_secret)
    check_webhook_secret(secret, "webhooks.secret" if configured else str(path))
    return secret
