"""boto3 clients, made once and shared by all greenlets, and what their errors mean.

boto3 must be imported after patching (before it, the first TLS client ends in a RecursionError), so nothing here
imports it at module level.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from nommerd import __version__
from nommerd.errors import ConfigError
from nommerd.secrets import Secret

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0  # a poll of SQS is open for 20
POOL = 64  # connections kept per client: at least as many as greenlets use it at once
TRIES = 3  # of one call, by botocore, on its own short back-off; loops of ours have a longer one

TRANSIENT = frozenset({  # AWS's codes for "try again later", as far as their status alone does not say so
    "BandwidthLimitExceeded", "EC2ThrottledException", "KMS.ThrottlingException", "KmsThrottled", "LimitExceededException",
    "OperationAborted", "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded",
    "RequestThrottled", "RequestThrottledByKMS", "RequestThrottledException", "RequestTimeout", "RequestTimeoutException",
    "SlowDown", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
    "TransactionInProgressException",
})


class Account(Protocol):
    """The settings that say which account: `aws` of nommerd.config.Settings."""

    @property
    def region(self) -> str | None: ...
    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def access_key_id(self) -> Secret | None: ...
    @property
    def secret_access_key(self) -> Secret | None: ...


class Clients:
    """Clients of one account by service name. Keys: the configured ones, else boto3's own chain (profile, environment,
    instance role)."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._made: dict[tuple[object, ...], Any] = {}
        self._session: Any = None

    def __call__(self, service: str, *, endpoint_url: str | None = None, access_key: tuple[str, str] | None = None,
                 tries: int = TRIES, **config: Any) -> Any:
        """The client of a service, the same one each time. `endpoint_url` goes before aws.endpoint_url, `access_key` (id,
        secret) before the account's keys; clients with keys of their own are not kept. `config` goes to botocore's Config.

        Raises ConfigError config.aws where no region is known.
        """
        key = (service, endpoint_url, tries, repr(sorted(config.items())))
        if access_key is None and key in self._made:
            return self._made[key]
        client = self._make(service, endpoint_url, access_key, tries, config)
        if access_key is None:
            self._made[key] = client
        return client

    @property
    def region(self) -> str:
        """The region in use. Raises ConfigError config.aws where none is known."""
        region = self._account.region or os.environ.get("AWS_REGION") or self._boto().region_name  # boto3 lacks the second
        if not region:
            raise ConfigError("config.aws", "No AWS region is set.",
                              "Set aws.region or AWS_REGION, to eu-central-1 for example.", place="aws.region")
        return str(region)

    def _boto(self) -> Any:
        import boto3

        if self._session is None:
            self._session = boto3.session.Session()
        return self._session

    def _make(self, service: str, endpoint_url: str | None, access_key: tuple[str, str] | None, tries: int,
              config: dict[str, Any]) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        ours = self._account
        key_id = ours.access_key_id and ours.access_key_id.reveal()
        secret = ours.secret_access_key and ours.secret_access_key.reveal()
        key_id, secret = access_key or (key_id, secret)
        options: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "tcp_keepalive": True,
            "max_pool_connections": POOL, "user_agent_extra": f"nommerd/{__version__}",
            "retries": {"mode": "standard", "total_max_attempts": tries}, **config}
        try:
            return self._boto().client(service, region_name=self.region, endpoint_url=endpoint_url or ours.endpoint_url,
                                       aws_access_key_id=key_id, aws_secret_access_key=secret, config=Config(**options))
        except (BotoCoreError, ValueError) as error:
            raise ConfigError("config.aws", f"No client for {service} can be made: {error}", "See the aws section of the "
                              "configuration, and AWS's own environment variables.", place="aws") from None


def error_code(error: Exception) -> str:
    """AWS's code of an error (ThrottlingException), or the name of what went wrong on the way (EndpointConnectionError)."""
    answer = getattr(error, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return str(code or type(error).__name__)


def status_of(error: Exception) -> int | None:
    """The HTTP status of an error that AWS answered, else None."""
    answer = getattr(error, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return int(status) if status is not None else None


def is_transient(error: Exception) -> bool:
    """Whether the same call may succeed a little later: throttled, a fault of the service, or no answer at all."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, ClientError):
        return error_code(error) in TRANSIENT or (status_of(error) or 0) >= 500
    return isinstance(error, (ConnectionError, HTTPClientError))


def explain(error: Exception) -> str:
    """One line for people: the operation, AWS's code and message; or what went wrong on the way. Holds no credentials: of a
    refused signature AWS repeats, in further lines, the headers that were signed, a role's session token among them."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        operation = getattr(error, "operation_name", "the call")
        message = str(answer.get("Error", {}).get("Message", "")).strip().partition("\n")[0][:300]
        return f"{operation}: {error_code(error)}: {message}".rstrip(": ")
    return f"{type(error).__name__}: {str(error)[:300]}"
