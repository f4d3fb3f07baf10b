"""What S3's errors mean for a job: who must act. AWS's own messages stay out of them: they name users and addresses."""

from __future__ import annotations

from nommerd.aws.clients import error_code, is_transient, status_of
from nommerd.errors import ConfigError, InfrastructureError, InputError, NommerdError
from nommerd.storage.s3_uri import Place

UNKNOWN_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationQueryParametersError"})
NO_KEYS = frozenset({"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"})
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed",
                     "CredentialRetrievalError", "MetadataRetrievalError"})
FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "StorageLimitExceeded"})
DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
                     "IncompleteBody"})  # a body did not arrive as it was sent
NO_UPLOAD = "NoSuchUpload"


def told(error: Exception, family: str, place: Place) -> NommerdError:
    """The error that says who must act on one of boto3's, at a call for this place. Ours stay as they are."""
    if isinstance(error, NommerdError):
        return error
    code, status = error_code(error), status_of(error)
    if code in NO_KEYS | UNKNOWN_KEYS:
        return _refused_keys(code, family, place)
    if code in EXPIRED | FULL | DAMAGED or is_transient(error) or (status is None and not _is_ours(error)):
        return _passing(code, status, family)
    return _final(code, status, family, place)


def _passing(code: str, status: int | None, family: str) -> NommerdError:
    """What another try may mend."""
    if code in DAMAGED:
        return InfrastructureError(f"{family}.corrupted", f"What S3 received was not what was sent ({code}).")
    if code in FULL or status == 507:
        return InfrastructureError(f"{family}.disk_full", f"S3 has no space left ({code}).", "Free some, or raise the quota.")
    return InfrastructureError(f"{family}.unavailable", f"S3 could not be used: {code}.",
                               "Set this machine's clock." if code == "RequestTimeTooSkewed" else "")


def _final(code: str, status: int | None, family: str, place: Place) -> NommerdError:
    """What no other try would change now."""
    if status == 404:
        what = f"bucket {place.bucket}" if code == "NoSuchBucket" else f"object {place.key!r} in the bucket {place.bucket}"
        return InputError(f"{family}.not_found", f"There is no {what}.")
    if code == "InvalidObjectState":
        return archived(place)
    if status in (401, 403):
        return forbidden(family, place)
    if code == "EntityTooLarge" or status == 413:
        return InputError(f"{family}.too_large", "S3 does not take objects of this size.")
    if status == 409:
        return InfrastructureError(f"{family}.conflict", f"S3 answered {code}.", "Somebody else writes there.")
    return InputError(f"{family}.refused", f"S3 answered {code}.", _HINTS.get(code, "See AWS's list of S3 error codes."))


_HINTS = {
    "AccessControlListNotSupported": "The bucket takes no ACLs: leave out `acl` in the upload stage.",
    "PermanentRedirect": "The bucket is in another region: set aws.region.",
    "AuthorizationHeaderMalformed": "The bucket is in another region: set aws.region.",
    "InvalidTag": "See `tags` in the upload stage.",
    "InvalidStorageClass": "See `storage_class` in the upload stage.",
    "KMS.NotFoundException": "See `kms_key_id` in the upload stage.",
    "KMS.DisabledException": "The key of `kms_key_id` in the upload stage is disabled.",
}


def _is_ours(error: Exception) -> bool:
    """Whether this is a mistake of our code (a parameter that boto3 refuses), which no other try would mend."""
    return error_code(error) == "ParamValidationError"


def _refused_keys(code: str, family: str, place: Place) -> NommerdError:
    if code in NO_KEYS:
        return ConfigError("config.aws", "This node has no AWS credentials.", "Give it a role or a profile, or set "
                           "aws.access_key_id and aws.secret_access_key; or give credentials in the URI.", place="aws")
    if place.own:
        return ConfigError("config.aws", f"S3 does not accept this node's AWS credentials ({code}).",
                           "See the aws section of the configuration, and AWS's own environment variables.", place="aws")
    return InputError(f"{family}.forbidden", f"S3 does not accept the credentials in the URI ({code}).",
                      "Write s3://KEY:SECRET@bucket/key.")


def forbidden(family: str, place: Place) -> InputError:
    """No permission; AWS also answers so for what is not there, to who may not list the bucket."""
    whose = "This node's role or user" if place.own else "The owner of the credentials in the URI"
    need = "s3:GetObject" if family == "source" else "s3:PutObject"
    return InputError(f"{family}.forbidden", f"S3 refuses {place.key!r} in the bucket {place.bucket}.",
                      f"{whose} needs {need} there; without s3:ListBucket, AWS says the same of objects that are missing.")


def archived(place: Place) -> InputError:
    """It must be brought back from an archive first."""
    return InputError("source.archived", f"{place.key!r} in the bucket {place.bucket} is archived.",
                      "Restore it (aws s3api restore-object), and submit again.")


def is_boto(error: Exception) -> bool:
    """Whether boto3, or the connection below it, raised this; and not a stop, or we ourselves."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    return isinstance(error, (BotoCoreError, ClientError, HTTPError, OSError))


def ours(error: Exception, family: str, place: Place) -> Exception:
    """One of boto3's as `told` has it; any other as it is."""
    return told(error, family, place) if is_boto(error) else error


def unavailable(family: str, message: str) -> InfrastructureError:
    """For what may be mended by trying again."""
    return InfrastructureError(f"{family}.unavailable", message)
