"""What goes wrong between the command line and the account, as errors that say who must act."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nommerd.aws.clients import error_code, explain, is_transient, status_of
from nommerd.errors import ConfigError, InfrastructureError, NommerdError

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError",
                    "AWS.SimpleQueueService.AccessDenied", "403", "Forbidden"})
BAD_KEYS = frozenset({
    "AuthFailure", "IncompleteSignature", "IncompleteSignatureException", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
})
NO_KEYS = frozenset({"NoAuthTokenError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"})
# What a daemon waits for, as a role's credentials are renewed, and a person at a command line must see to.
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
NOT_FETCHED = frozenset({
    "CredentialRetrievalError", "LoginRefreshRequired", "SSOTokenLoadError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
})
MISSING = frozenset({  # AWS's codes for "there is no such thing", of the services used here
    "404", "AWS.SimpleQueueService.NonExistentQueue", "InvalidGroup.NotFound", "InvalidGroupId.NotFound",
    "InvalidInstanceID.NotFound", "InvalidLaunchTemplateId.NotFound", "InvalidLaunchTemplateName.NotFoundException",
    "NoSuchBucket", "NoSuchBucketPolicy", "NoSuchDomain", "NoSuchEntity", "NoSuchLifecycleConfiguration",
    "NoSuchPublicAccessBlockConfiguration", "NoSuchTagSet", "NotFound", "OwnershipControlsNotFoundError",
    "QueueDoesNotExist", "ResourceNotFoundException", "ServerSideEncryptionConfigurationNotFoundError",
})


def is_missing(error: Exception) -> bool:
    """Whether AWS says that there is no such thing."""
    return error_code(error) in MISSING


def credentials_fault(error: Exception, *, lasting: bool = True) -> ConfigError | None:
    """What is wrong with the credentials, None where it is something else. `lasting`: only what does not pass by itself."""
    code = error_code(error)
    if code in NO_KEYS or (code in NOT_FETCHED and not lasting):
        return ConfigError("config.aws", f"No usable AWS credentials were found ({code}).",
                           "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where a role is; or "
                           "set aws.access_key_id and aws.secret_access_key.", place="aws")
    if code in BAD_KEYS or (code in EXPIRED and not lasting):
        return ConfigError("config.aws", f"AWS does not take these credentials: {explain(error)}",
                           "They are wrong, expired, or of another account or partition.", place="aws")
    return None


def as_error(error: Exception) -> NommerdError:
    """Ours for one of botocore's."""
    code = error_code(error)
    fault = credentials_fault(error, lasting=False)
    if fault is not None:
        return fault
    if code in DENIED or status_of(error) == 403:
        action = getattr(error, "operation_name", "do this")
        return ConfigError("config.aws_permission", f"These credentials may not {action}: {explain(error)}",
                           "Allow it for whoever runs this command, or use credentials that may.", place="aws")
    if is_transient(error):
        return InfrastructureError("node.aws_unavailable", f"AWS is out of reach or busy: {explain(error)}",
                                   "Run the command again: it goes on where it was.")
    return ConfigError("config.aws_refused", f"AWS refused: {explain(error)}", "See what it says.", place="aws")


@contextmanager
def told() -> Iterator[None]:
    """Errors of botocore leave this block as errors of ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise as_error(error) from None
