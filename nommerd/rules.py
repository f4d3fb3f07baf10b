"""How a message meets a record: one pure decision (the message is a hint, the record is the truth)."""

from __future__ import annotations

from enum import Enum

from nommerd import job as records
from nommerd import messages
from nommerd.job import Job, JobState
from nommerd.messages import Message

RETRY_FIRST_SECONDS = 1.0
RETRY_MAX_SECONDS = 30.0
RELEASE_SECONDS = 30.0  # before a message that cannot be dealt with here is shown again


class Action(Enum):
    """What to do with a message that was received."""

    CLAIM = "claim"
    DROP = "drop"  # there is nothing to do for it
    REVOKE = "revoke"  # as DROP, once what the settled job staged is revoked
    WATCH = "watch"  # its owner may be gone: keep it hidden, and look
    RELEASE = "release"  # for somebody who knows more than this version does


def decide(job: Job | None, message: Message, message_id: str) -> Action:
    """What a worker does with this message, `job` being the record it names (None: there is none)."""
    if message.schema_version > messages.SCHEMA_VERSION:
        return Action.RELEASE
    if job is None:
        return Action.DROP
    if job.schema_version > records.SCHEMA_VERSION:
        return Action.RELEASE
    if job.state.final:
        return Action.REVOKE if job.revocable else Action.DROP
    if job.claimed:
        return Action.WATCH if job.message_id == message_id else Action.DROP
    # A parent waits for its children, not for a worker: the last child sends another message.
    return Action.CLAIM if job.state is JobState.PENDING else Action.DROP


def retry_delay(attempts_charged: int) -> float:
    """Seconds before a job that failed so often is tried again."""
    return float(min(RETRY_FIRST_SECONDS * 2 ** max(0, attempts_charged - 1), RETRY_MAX_SECONDS))
