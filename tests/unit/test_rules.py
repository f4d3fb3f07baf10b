"""How messages meet records: every row of the table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nommerd.job import Job, JobState, Owner, Staged, utcnow
from nommerd.messages import JobMessage
from nommerd.rules import Action, decide, retry_delay

NOW = utcnow()
JOB = Job(id="j", pipeline="p", recipe="r", source="file:///a", dest="file:///b", created=NOW, updated=NOW)
HELD = replace(JOB, owner=Owner(worker="w", node="n", claim="c"), state=JobState.ENCODING, message_id="m1", token=1)
STAGED = (Staged(uri="file:///b", handle="h", bytes=1, sha256="0", token=1),)
MESSAGE = JobMessage(id="j")


@pytest.mark.parametrize(("what", "job", "message", "action"), [
    ("a job that waits is claimed", JOB, MESSAGE, Action.CLAIM),
    ("a job that waits for another attempt is claimed", replace(JOB, token=3, attempts_charged=2), MESSAGE, Action.CLAIM),
    ("a finished job's message is dropped", replace(JOB, state=JobState.FINISHED), MESSAGE, Action.DROP),
    ("a failed job's message is dropped", replace(JOB, state=JobState.ERROR), MESSAGE, Action.DROP),
    ("an abandoned job's message is dropped", replace(JOB, state=JobState.ABANDONED), MESSAGE, Action.DROP),
    ("a cancelled job's message is dropped", replace(JOB, state=JobState.CANCELLED), MESSAGE, Action.DROP),
    ("what a settled job staged is revoked first", replace(JOB, state=JobState.ERROR, staged=STAGED), MESSAGE, Action.REVOKE),
    ("a live lease under the same message is watched", HELD, MESSAGE, Action.WATCH),
    ("a live lease under another message: dropped", replace(HELD, message_id="m2"), MESSAGE, Action.DROP),
    ("a job claimed but not begun is held as well", replace(HELD, state=JobState.PENDING), MESSAGE, Action.WATCH),
    ("a deleted job's message is dropped", None, MESSAGE, Action.DROP),
    ("a parent that waits for its children is left alone", replace(JOB, state=JobState.WAITING), MESSAGE, Action.DROP),
    ("a newer record is left to newer workers", replace(JOB, schema_version=2), MESSAGE, Action.RELEASE),
    ("a newer message is left to newer workers", JOB, replace(MESSAGE, schema_version=2), Action.RELEASE),
    ("a newer message about a job we do not find is left, too", None, replace(MESSAGE, schema_version=2), Action.RELEASE),
    ("a newer record is left even when it is final", replace(JOB, schema_version=2, state=JobState.ERROR), MESSAGE,
     Action.RELEASE),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_message_meets_its_record(what: str, job: Job | None, message: JobMessage, action: Action) -> None:
    assert decide(job, message, "m1") is action, what


def test_retries_come_slower_up_to_a_bound() -> None:
    assert [retry_delay(n) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert retry_delay(50) == 30.0
    assert retry_delay(0) == 1.0
