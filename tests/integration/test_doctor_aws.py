"""The doctor's look at an account: what is missing, and what cannot be reached, told in time."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

from nommerd.bus.sqs_queues import queues
from nommerd.cli.checks import services
from nommerd.cli.checks.finding import Patient
from nommerd.config import Settings
from tests.emulator import ACCESS_KEY, SECRET_KEY, account, emulator
from tests.rig import free_port


def patient(url: str, name: str) -> Patient:
    return Patient(settings=Settings(store=f"dynamodb://{name}", bus=f"sqs://{name}", aws=account(url)))


def test_what_is_missing_in_the_account_is_a_fault_and_then_it_is_well(tmp_path: Path) -> None:
    name = f"doctor-{uuid4().hex[:8]}"
    found = list(services.aws(patient(emulator().url, name)))
    faults = [one.message for one in found if one.status == "fault"]
    assert len(faults) == 2
    assert f"{name}-jobs-high" in faults[0] and f"The table {name} cannot be used" in faults[1]
    assert any(one.message.startswith("Account 123456789012, us-east-1, as ") for one in found)
    sqs, dynamodb = emulator().client("sqs"), emulator().client("dynamodb")
    for queue in queues(name, "us-east-1", "123456789012"):
        sqs.create_queue(QueueName=queue.name, Attributes=queue.attributes)
    from nommerd.store.dynamodb_table import table

    dynamodb.create_table(**table(name))
    found = list(services.aws(patient(emulator().url, name)))
    assert {one.status for one in found} == {"ok"}, found
    assert all(secret not in one.message + one.hint for one in found for secret in (ACCESS_KEY, SECRET_KEY))


def test_an_account_that_cannot_be_reached_is_told_within_its_time() -> None:
    from nommerd.cli.checks.finding import within

    begun = time.monotonic()
    found = within(45, "aws", services.aws, patient(f"http://127.0.0.1:{free_port()}", "x"))
    assert [one.status for one in found] == ["fault"]
    assert time.monotonic() - begun < 30
