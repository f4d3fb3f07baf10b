"""Checks of what others run: the feeder, tokens, webhooks, AWS, the fleet."""

from __future__ import annotations

import errno
import json
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nommerd.cli.checks.finding import FAULT, OK, WARNING, Finding, Patient, failed
from nommerd.cli.client import Client, Missing
from nommerd.cli.credentials import Token, find_token, token_in, token_of_feeder, users_listening
from nommerd.cli.options import printable
from nommerd.errors import ConfigError, InfrastructureError, NommerdError
from nommerd.places import DEFAULT_URL
from nommerd.secrets import Secret

if TYPE_CHECKING:
    from nommerd.aws.clients import Clients
    from nommerd.config import Settings

SKEW_SECONDS = 30.0
CALL_SECONDS = 5.0
AWS_TRIES = 1
REMADE = "delete it, and the feeder makes another."
KEYS_READ = "put a new key (`nommerd config keygen`) on a line above those in it, and restart feeder and workers."


def address(patient: Patient) -> str | None:
    """The feeder's: as told, else the one that the configuration describes."""
    from nommerd.cli.up import api_url

    return patient.url or (api_url(patient.settings) if patient.settings is not None else None)


def token_of(patient: Patient) -> Token:
    """As told, else the configuration's for the feeder of that. ConfigError without any."""
    url = address(patient) or DEFAULT_URL
    here = patient.url is None or users_listening(patient.url) is not None
    if not patient.token and not patient.env.get("NOMMERD_TOKEN") and patient.settings is not None and here:
        with suppress(OSError, UnicodeDecodeError):
            return token_of_feeder(patient.settings.token_file, patient.settings.data_dir)
    return find_token(patient.token, patient.env, url)


# --- the feeder --------------------------------------------------------------------------------------------------------


def feeder(patient: Patient) -> Iterator[Finding]:
    """Whether it answers, is ready, and what time it has."""
    client = Client(address(patient), Token(Secret("none")))
    try:
        status, headers, body = client.exchange("GET", "/readyz", timeout=CALL_SECONDS)
    except InfrastructureError as error:
        yield Finding("feeder", WARNING, error.message, "Start one (`nommerd up`), or name it with --url.")
        return
    finally:
        client.close()
    if status == 200:
        yield Finding("feeder", OK, f"{client.url} is ready.")
    elif status == 503:
        yield Finding("feeder", FAULT, f"{client.url} is not ready: {_detail(body)}", "See its log.")
    else:
        yield Finding("feeder", FAULT, f"{client.url} answers {status}: that is no feeder.", "Check --url.")
    yield from skew("feeder", headers, "the feeder's")


def _detail(body: bytes) -> str:
    """What a problem document says."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return printable(body[:200].decode(errors="replace"))


def skew(check: str, headers: Mapping[str, str], whose: str) -> Iterator[Finding]:
    """How far our clock is from that of an answer's Date, which has whole seconds."""
    try:
        theirs = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return
    ahead = time.time() - theirs
    if abs(ahead) > SKEW_SECONDS:
        yield Finding("clock", WARNING, f"This clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}.",
                      "Keep both right (chrony, systemd-timesyncd): signatures expire by them.")
    else:
        yield Finding("clock", OK, f"Within {SKEW_SECONDS:.0f} s of {whose}.")


def tokens(patient: Patient) -> Iterator[Finding]:
    """Whether the files of token and keys are private, and whether the feeder takes the token."""
    if patient.settings is not None:
        yield from _private("tokens", patient.settings.token_file, "The feeder makes it at its first start.")
        if not patient.settings.secrets.keys:
            yield from _private("tokens", patient.settings.keys_file, "The feeder makes it at its first start.", KEYS_READ)
    told = patient.token or patient.env.get("NOMMERD_TOKEN")
    unread = list(_unread(patient.settings.token_file)) if patient.settings is not None and not told else []
    yield from unread
    try:
        client = Client(address(patient), token_of(patient))
    except ConfigError as error:
        if error.code != "config.no_token":
            raise
        if not unread and patient.settings is not None and patient.settings.token_file.exists():
            yield Finding("tokens", WARNING, f"{patient.settings.token_file} was not tried: {address(patient)} is not this "
                          "machine's address.", "Set NOMMERD_TOKEN to what is in it if that is its feeder all the same.")
        elif not unread:
            yield Finding("tokens", OK, "There is no token here yet, so none was tried.")
        return
    try:
        yield from _accepted(client)
    except ConfigError as error:
        yield Finding("tokens", FAULT, error.message, error.hint)
    except InfrastructureError:
        yield Finding("tokens", OK, "The feeder does not answer, so no token was tried.")
    finally:
        client.close()


def _unread(file: Path) -> Iterator[Finding]:
    """What is wrong with a token file that is there."""
    try:
        token_in(file)
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.ELOOP):
            yield Finding("tokens", WARNING, f"{file} cannot be read: {error.strerror}.",
                          "Run as the user of the service, or set NOMMERD_TOKEN.")
        else:
            yield Finding("tokens", WARNING, f"{file} was not read: it is empty, no plain text file, or not of its folder's "
                          "owner.", "Put the token back there, or set NOMMERD_TOKEN.")


def _accepted(client: Client) -> Iterator[Finding]:
    try:
        who = client.call("GET", "/v1/token", timeout=CALL_SECONDS)
    except Missing:
        client.call("GET", "/v1/jobs?limit=1", timeout=CALL_SECONDS)
        yield Finding("tokens", OK, "The feeder takes the token.")
        return
    yield Finding("tokens", OK, f"The feeder takes the token: {who['name'] or 'unnamed'}, project {who['project']}, "
                  f"may {', '.join(who['scopes'])}.")


def _private(check: str, path: Path, absent: str, known: str = REMADE) -> Iterator[Finding]:
    """A secret's file is for its owner alone."""
    try:
        about = path.stat()
    except FileNotFoundError:
        yield Finding(check, OK, f"{path} is not there yet. {absent}")
        return
    except OSError as error:
        yield Finding(check, WARNING, f"{path} cannot be read: {error.strerror}.", "Run as the user of the service.")
        return
    mode = stat.S_IMODE(about.st_mode)
    if mode & 0o077:
        yield Finding(check, FAULT, f"{path} can be read by others (mode {mode:04o}).",
                      f"chmod 600 {path}, and take it for known: {known}")
    else:
        yield Finding(check, OK, f"{path} is for its owner alone.")


def webhooks(patient: Patient) -> Iterator[Finding]:
    """The secret they are signed with, and those that do not arrive."""
    settings = patient.known
    if settings.webhooks.secret is not None:
        yield Finding("webhooks", OK, "The secret is in the configuration.")
    else:
        yield from _private("webhooks", settings.webhook_secret_file, "The feeder makes it at its first start.")
    try:
        client = Client(address(patient), token_of(patient))
        told = client.call("GET", "/v1/webhooks", timeout=CALL_SECONDS)
    except NommerdError:
        return  # feeder and tokens say why
    failing, disabled = told["failing"], told["disabled"]
    if not failing and not disabled:
        yield Finding("webhooks", OK, f"None fails; {told['due']} are due.")
    for one in failing[:3]:
        yield Finding("webhooks", WARNING, f"{one['host']} did not take news of job {one['job']}, {one['tries']} times: "
                      f"{one['why'] or one['status']}", f"nommerd webhooks test URL tries it; next try {one['next_at']}.")
    if len(failing) > 3:
        yield Finding("webhooks", WARNING, f"{len(failing)} jobs have news that does not arrive.", "nommerd webhooks ls")
    if disabled:
        yield Finding("webhooks", WARNING, f"Of {len(disabled)} jobs nobody is told any longer ({disabled[0]['host']}).",
                      "Once the receiver works: nommerd webhooks replay ID.")


# --- AWS ---------------------------------------------------------------------------------------------------------------


def aws(patient: Patient) -> Iterator[Finding]:
    """Credentials, queues, table and bucket, where the configuration names any."""
    settings = patient.known
    store, bus = urlsplit(settings.store), urlsplit(settings.bus)
    if not (store.scheme in ("dynamodb", "simpledb") or bus.scheme == "sqs" or settings.fleet.enabled
            or settings.aws.config_bucket):
        yield Finding("aws", OK, "Nothing in the configuration needs an account.")
        return
    from nommerd.aws.clients import Clients
    from nommerd.aws.faults import told

    clients = Clients(settings.aws)
    with told():
        answer = _client(clients, "sts").get_caller_identity()
    yield Finding("aws", OK, f"Account {answer['Account']}, {clients.region}, as {answer['Arn']}.")
    yield from skew("aws", {name.lower(): text for name, text in answer["ResponseMetadata"]["HTTPHeaders"].items()}, "AWS's")
    if bus.scheme == "sqs":
        yield from _queues(clients, bus.netloc)
    if store.scheme == "dynamodb":
        yield _thing("table", store.netloc, lambda: _table(clients, store.netloc))
    if store.scheme == "simpledb":
        yield _thing("domain", store.netloc, lambda: _client(clients, "sdb").domain_metadata(DomainName=store.netloc))
    if settings.aws.config_bucket:
        bucket = settings.aws.config_bucket
        yield _thing("bucket", bucket, lambda: _client(clients, "s3").head_bucket(Bucket=bucket))


def _client(clients: Clients, service: str) -> Any:
    return clients(service, tries=AWS_TRIES, connect_timeout=CALL_SECONDS, read_timeout=CALL_SECONDS)


def _queues(clients: Clients, prefix: str) -> Iterator[Finding]:
    from nommerd.aws.make_sqs import queue_url
    from nommerd.bus.sqs_queues import change_queue, dead_queue, job_queues

    sqs = _client(clients, "sqs")
    names = [*job_queues(prefix), change_queue(prefix), dead_queue(prefix, "jobs"), dead_queue(prefix, "changes")]
    missing = [name for name in names if queue_url(sqs, name) is None]
    if missing:
        yield Finding("aws", FAULT, f"There are no queues {', '.join(missing)}.", "nommerd aws setup makes them.")
    else:
        yield Finding("aws", OK, f"The {len(names)} queues of {prefix} are there.")


def _table(clients: Clients, name: str) -> None:
    status = _client(clients, "dynamodb").describe_table(TableName=name)["Table"]["TableStatus"]
    if status not in ("ACTIVE", "UPDATING"):
        raise ConfigError("config.store", f"The table {name} is {status}.", "Wait until it is ACTIVE.")


def _thing(kind: str, name: str, look: Any) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError

    from nommerd.aws.clients import explain

    try:
        look()
    except (ClientError, BotoCoreError) as error:
        return Finding("aws", FAULT, f"The {kind} {name} cannot be used: {explain(error)}",
                       "nommerd aws setup makes it; the credentials need the policies that it prints.")
    except NommerdError as error:
        return failed("aws", error)
    return Finding("aws", OK, f"The {kind} {name} is there.")


def fleet(patient: Patient) -> Iterator[Finding]:
    """Whether nodes could be started: what the settings lack is told with the configuration."""
    settings = patient.known
    if not settings.fleet.enabled:
        yield Finding("fleet", OK, "It is off: encoder nodes are not started.")
        return
    from nommerd.aws.clients import Clients

    yield _image(settings, Clients(settings.aws))


def _image(settings: Settings, clients: Clients) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError

    from nommerd.aws.clients import explain

    image = str(settings.fleet.image_id)
    try:
        found = _client(clients, "ec2").describe_images(ImageIds=[image])["Images"]
    except (ClientError, BotoCoreError) as error:
        return Finding("fleet", FAULT, f"The image {image} cannot be looked at: {explain(error)}", "Check fleet.image_id.")
    if not found or found[0]["State"] != "available":
        return Finding("fleet", FAULT, f"The image {image} cannot be used in {clients.region}.", "Check fleet.image_id.")
    dry = ", dry run" if settings.fleet.dry_run else ""
    return Finding("fleet", OK, f"Up to {settings.fleet.max_nodes} nodes of {', '.join(settings.fleet.instance_types)}{dry}.")
