"""The queues of an SQS bus as definitions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nommerd.bus.base import MAX_RECEIVES, RECEIVE_VISIBILITY_SECONDS
from nommerd.bus.sqs_queues import QueueSpec, queues
from nommerd.errors import ConfigError
from tests.emulator import emulator
from tests.sqs import new_prefix

NAMES = ["n-jobs-dead", "n-changes-dead", "n-jobs-high", "n-jobs-normal", "n-jobs-low", "n-changes"]
ARN = "arn:aws:sqs:eu-west-1:111122223333:"


def by_name() -> dict[str, QueueSpec]:
    return {queue.name: queue for queue in queues("n", "eu-west-1", "111122223333")}


def policy(queue: QueueSpec, name: str) -> Any:
    return json.loads(queue.attributes[name])


def test_dead_letter_queues_come_before_the_queues_that_name_them() -> None:
    assert list(by_name()) == NAMES


@pytest.mark.parametrize("name", NAMES[2:])
def test_what_is_received_too_often_goes_to_the_dead_letter_queue_of_its_kind(name: str) -> None:
    dead = "n-changes-dead" if name == "n-changes" else "n-jobs-dead"
    assert policy(by_name()[name], "RedrivePolicy") == {"deadLetterTargetArn": ARN + dead, "maxReceiveCount": MAX_RECEIVES}
    allowed = policy(by_name()[dead], "RedriveAllowPolicy")
    assert allowed["redrivePermission"] == "byQueue" and ARN + name in allowed["sourceQueueArns"]


def test_every_queue_is_encrypted_polled_long_and_hides_what_it_gave_briefly() -> None:
    for queue in by_name().values():
        assert queue.attributes["SqsManagedSseEnabled"] == "true"
        assert queue.attributes["ReceiveMessageWaitTimeSeconds"] == "20"
        assert int(queue.attributes["VisibilityTimeout"]) == RECEIVE_VISIBILITY_SECONDS


def test_dead_letters_are_kept_longer_than_their_age_when_they_died() -> None:
    kept = {name: int(queue.attributes["MessageRetentionPeriod"]) for name, queue in by_name().items()}
    assert min(seconds for name, seconds in kept.items() if "dead" in name) > max(
        seconds for name, seconds in kept.items() if "dead" not in name)
    assert max(kept.values()) <= 14 * 86400, "SQS's limit"


def test_the_longest_prefix_still_makes_names_that_sqs_takes() -> None:
    assert max(len(queue.name) for queue in queues("p" * 67, "r", "a")) <= 80


@pytest.mark.parametrize("prefix", ["", "a b", "a.b", "p" * 68, "ü"])
def test_a_prefix_that_sqs_would_refuse_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.bus"):
        queues(prefix, "r", "a")


def test_placeholders_of_a_template_stay_in_the_names() -> None:
    spec = queues("n", "${AWS::Region}", "${AWS::AccountId}", "${AWS::Partition}")[-1]
    assert policy(spec, "RedrivePolicy")["deadLetterTargetArn"] == (
        "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:n-changes-dead")


def test_made_queues_have_the_attributes_that_were_defined() -> None:
    client, prefix = emulator().client("sqs"), new_prefix()
    for spec in queues(prefix, "us-east-1", "123456789012"):
        url = client.get_queue_url(QueueName=spec.name)["QueueUrl"]
        made = client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        for name in ("MessageRetentionPeriod", "VisibilityTimeout", "ReceiveMessageWaitTimeSeconds"):
            assert made[name] == spec.attributes[name], (spec.name, name)
        assert json.loads(made.get("RedrivePolicy", "null")) == json.loads(spec.attributes.get("RedrivePolicy", "null"))
