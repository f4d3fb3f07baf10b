"""The SQS queues of one bus, as definitions only: what `nommerd aws setup`, the CloudFormation template and tests make.

SQS has no priorities, so jobs have a queue for each. They are standard queues: twice or out of order does no harm, since the
record decides.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from nommerd.bus.base import MAX_RECEIVES, RECEIVE_VISIBILITY_SECONDS
from nommerd.errors import ConfigError
from nommerd.job import Priority

POLL_SECONDS = 20  # the longest wait SQS has
RETENTION_SECONDS = 4 * 86400
DEAD_RETENTION_SECONDS = 14 * 86400  # counted from the first send, not from the burial: so longer than the source's
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,67}")  # a queue's name has at most 80 characters


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue: its name and the attributes of CreateQueue."""

    name: str
    attributes: dict[str, str]


def queues(prefix: str, region: str, account: str, partition: str = "aws") -> list[QueueSpec]:
    """Every queue of the bus `sqs://PREFIX`, dead-letter queues first: their sources name them by ARN.

    Pure; the arguments are put into the ARNs as they are (a template may give `${AWS::Region}` and substitute later).
    Raises ConfigError for a prefix that SQS would refuse.
    """
    arn = f"arn:{partition}:sqs:{region}:{account}:"
    dead: list[QueueSpec] = []
    sources: list[QueueSpec] = []
    for kind, names in (("jobs", job_queues(prefix)), ("changes", [change_queue(prefix)])):
        buried = dead_queue(prefix, kind)
        dead.append(QueueSpec(buried, _common(DEAD_RETENTION_SECONDS) | {
            "RedriveAllowPolicy": _json({"redrivePermission": "byQueue", "sourceQueueArns": [arn + name for name in names]})}))
        sources.extend(QueueSpec(name, _common(RETENTION_SECONDS) | {
            "RedrivePolicy": _json({"deadLetterTargetArn": arn + buried, "maxReceiveCount": MAX_RECEIVES})}) for name in names)
    return dead + sources


def job_queues(prefix: str) -> list[str]:
    """The names of the job queues, highest priority first."""
    return [f"{checked(prefix)}-jobs-{priority}" for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)]


def change_queue(prefix: str) -> str:
    """The name of the queue that carries hints about state changes."""
    return f"{checked(prefix)}-changes"


def dead_queue(prefix: str, kind: str) -> str:
    """The name of the dead-letter queue of `jobs` or `changes`."""
    return f"{checked(prefix)}-{kind}-dead"


def checked(prefix: str) -> str:
    """The prefix, if SQS takes it. Raises ConfigError."""
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError("config.bus", f"{prefix or '(nothing)'} is no prefix for SQS queues.",
                          "Use 1 to 67 letters, digits, hyphens and underscores: sqs://nommerd.", place="bus")
    return prefix


def _common(retention_seconds: int) -> dict[str, str]:
    return {"MessageRetentionPeriod": str(retention_seconds), "VisibilityTimeout": str(int(RECEIVE_VISIBILITY_SECONDS)),
            "ReceiveMessageWaitTimeSeconds": str(POLL_SECONDS), "SqsManagedSseEnabled": "true"}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
