"""The DynamoDB table as AWS takes it: the documented rules that the emulator does not hold."""

from __future__ import annotations

from typing import Any

import pytest

from nommerd.store import dynamodb_table as definition
from tests.contracts.lagging import client

HELD = {"created": {"preset", "labels", "code", "recipe"}, "state": {"preset", "labels", "code"}, "sweep": {"age_in"},
        "ended": {"state", "code"}}


@pytest.fixture
def table() -> dict[str, Any]:
    return definition.table("nommerd")


@pytest.mark.parametrize(("operation", "arguments"), [
    ("CreateTable", definition.table("nommerd")), ("UpdateTimeToLive", definition.ttl("nommerd")),
    ("UpdateContinuousBackups", definition.backups("nommerd")), ("UpdateTable", definition.protection("nommerd"))])
def test_the_arguments_fit_the_services_own_model(operation: str, arguments: dict[str, Any]) -> None:
    from botocore.validate import ParamValidator

    shape = client().meta.service_model.operation_model(operation).input_shape
    assert not ParamValidator().validate(arguments, shape).has_errors()


def test_every_attribute_defined_is_a_key_and_every_key_is_defined(table: dict[str, Any]) -> None:
    schemas = [table["KeySchema"], *(index["KeySchema"] for index in table["GlobalSecondaryIndexes"])]
    keys = {part["AttributeName"] for schema in schemas for part in schema}
    defined = [one["AttributeName"] for one in table["AttributeDefinitions"]]
    assert sorted(keys) == defined  # AWS refuses one too many as one too few
    assert all([part["KeyType"] for part in schema] == ["HASH", "RANGE"] for schema in schemas)


def test_indexes_hold_what_their_readers_look_at_and_nothing_that_a_renewal_changes(table: dict[str, Any]) -> None:
    for index in table["GlobalSecondaryIndexes"]:
        held = set(index["Projection"].get("NonKeyAttributes", ()))
        assert held == HELD.get(index["IndexName"], set())
        assert not held & {"body", "version", *(part["AttributeName"] for part in index["KeySchema"])}
        assert index["Projection"]["ProjectionType"] == ("INCLUDE" if held else "KEYS_ONLY")


def test_it_is_billed_by_use_and_encrypted(table: dict[str, Any]) -> None:
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert "ProvisionedThroughput" not in table
    assert table["SSESpecification"] == {"Enabled": True, "SSEType": "KMS"}
