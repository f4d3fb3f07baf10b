"""Which region is used, and what boto3's errors are told as."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from nommerd.aws.clients import Clients, explain
from nommerd.config import Aws
from nommerd.errors import ConfigError
from tests.rig import CANARY


def test_the_region_is_the_configured_one_else_the_environments_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConfigError, match="region"):
        _ = Clients(Aws()).region
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert Clients(Aws()).region == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert Clients(Aws()).region == "eu-west-2"
    assert Clients(Aws(region="eu-west-3")).region == "eu-west-3"


def test_headers_that_aws_repeats_of_a_refused_signature_are_not_told() -> None:
    message = ("The request signature we calculated does not match.\n\nThe Canonical String should have been\n"
               f"'POST\n/\n\nhost:x\nx-amz-security-token:{CANARY}\n'")
    said = explain(ClientError({"Error": {"Code": "InvalidSignatureException", "Message": message}}, "PutItem"))
    assert said == "PutItem: InvalidSignatureException: The request signature we calculated does not match."
