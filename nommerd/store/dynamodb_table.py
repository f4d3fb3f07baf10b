"""The DynamoDB table: its keys and indexes as the arguments of the calls that make it. See nommerd.store.dynamodb for why.

Pure: `nommerd aws setup`, the CloudFormation template, the IAM policies and the tests are all made from this.
"""

from __future__ import annotations

from typing import Any

CREATED = "created"  # jobs of a project, by the time they were made
STATE = "state"  # jobs of a project in one state, by the time they were made
SWEEP = "sweep"  # jobs of all projects the sweeper must look at, by when
WEBHOOK = "webhook"  # jobs of all projects with an event for their receiver, by when it is due
AGE = "age"  # of all projects: finals by when they ended, documents by when they expire; recipes by when they were stored
ENDED = "ended"  # finals of a project, by when they ended
TTL_ATTRIBUTE = "expires"  # of finals, heartbeats and some documents: epoch seconds from which on AWS may delete them

INDEXES: dict[str, tuple[str, str, tuple[str, ...]]] = {  # name -> partition key, sort key, what else the entry holds
    CREATED: ("created_in", "created_at", ("preset", "labels", "code", "recipe")),
    STATE: ("state_in", "created_at", ("preset", "labels", "code")),
    SWEEP: ("sweep_in", "sweep_at", ("age_in",)),
    WEBHOOK: ("webhook_in", "webhook_at", ()),
    AGE: ("age_in", "age_at", ()),
    ENDED: ("ended_in", "age_at", ("state", "code")),
}


def table(name: str) -> dict[str, Any]:
    """What create_table takes: on-demand billing, encrypted under the account's own KMS key for DynamoDB (aws/dynamodb).

    CloudFormation takes the same but `SSESpecification`, where it says `SSEEnabled` for `Enabled`, and wants
    TimeToLiveSpecification (see `ttl`) beside it. Tags are the caller's.
    """
    attributes = sorted({"pk", "sk"} | {key for hash_key, range_key, _ in INDEXES.values() for key in (hash_key, range_key)})
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": attribute, "AttributeType": "S"} for attribute in attributes],
        "KeySchema": _keys("pk", "sk"),
        "GlobalSecondaryIndexes": [
            {"IndexName": index, "KeySchema": _keys(hash_key, range_key), "Projection": _projection(more)}
            for index, (hash_key, range_key, more) in INDEXES.items()],
        "SSESpecification": {"Enabled": True, "SSEType": "KMS"},
    }


def ttl(name: str) -> dict[str, Any]:
    """What update_time_to_live takes, once the table is ACTIVE. AWS refuses it (ValidationException) where it is on already:
    ask describe_time_to_live first."""
    return {"TableName": name, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": TTL_ATTRIBUTE}}


def backups(name: str) -> dict[str, Any]:
    """What update_continuous_backups takes: point-in-time recovery over the last 35 days. Setup should switch it on: the
    records are the truth about every job, and at 2 KB each they cost next to nothing to back up."""
    return {"TableName": name, "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True}}


def protection(name: str, enabled: bool = True) -> dict[str, Any]:
    """What update_table takes so that nobody deletes the table by a slip. Setup should switch it on; teardown must switch it
    off before delete_table."""
    return {"TableName": name, "DeletionProtectionEnabled": enabled}


def _keys(hash_key: str, range_key: str) -> list[dict[str, str]]:
    return [{"AttributeName": hash_key, "KeyType": "HASH"}, {"AttributeName": range_key, "KeyType": "RANGE"}]


def _projection(more: tuple[str, ...]) -> dict[str, Any]:
    if not more:
        return {"ProjectionType": "KEYS_ONLY"}
    return {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(more)}
