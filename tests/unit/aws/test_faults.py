"""Whose fault an error of AWS is, in one place for daemons and commands."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError, NoCredentialsError

from nommerd.aws.faults import as_error, credentials_fault
from nommerd.errors import ConfigError, InfrastructureError


def refused(code: str, status: int = 400) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetItem")  # type: ignore[arg-type]


def test_missing_credentials_are_said_to_be_missing_and_wrong_ones_to_be_wrong() -> None:
    missing, wrong = credentials_fault(NoCredentialsError()), credentials_fault(refused("UnrecognizedClientException"))
    assert missing is not None
    assert wrong is not None
    assert missing.message.startswith("No usable AWS credentials were found")
    assert wrong.message.startswith("AWS does not take these credentials")
    assert {missing.code, wrong.code} == {"config.aws"}


@pytest.mark.parametrize("error", [refused("ExpiredToken"), CredentialRetrievalError(provider="iam-role", error_msg="no")])
def test_what_a_role_renews_by_itself_stops_a_command_and_no_daemon(error: Exception) -> None:
    assert credentials_fault(error) is None
    told = credentials_fault(error, lasting=False)
    assert told is not None
    assert told.code == "config.aws"


def test_other_errors_are_not_the_credentials() -> None:
    assert credentials_fault(refused("ThrottlingException"), lasting=False) is None
    assert isinstance(as_error(refused("ThrottlingException")), InfrastructureError)
    denied = as_error(refused("AccessDenied", 403))
    assert isinstance(denied, ConfigError)
    assert denied.code == "config.aws_permission"
