"""What boto3's errors are told as."""

from __future__ import annotations

from botocore.exceptions import ClientError

from nommerd.aws.clients import explain
from tests.rig import CANARY


def test_headers_that_aws_repeats_of_a_refused_signature_are_not_told() -> None:
    message = ("The request signature we calculated does not match.\n\nThe Canonical String should have been\n"
               f"'POST\n/\n\nhost:x\nx-amz-security-token:{CANARY}\n'")
    said = explain(ClientError({"Error": {"Code": "InvalidSignatureException", "Message": message}}, "PutItem"))
    assert said == "PutItem: InvalidSignatureException: The request signature we calculated does not match."
