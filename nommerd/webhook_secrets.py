"""What webhooks are signed with: a secret for each project, kept encrypted, which can be replaced without a break.

A replaced secret goes on signing beside the new one for OVERLAP_SECONDS, as Standard Webhooks has it: receivers take either.
"""

from __future__ import annotations

import os
import secrets as random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nommerd import logs
from nommerd.errors import InputError
from nommerd.job import DEFAULT_PROJECT, utcnow
from nommerd.secrets import OWNER_ONLY, Keyring, Secret, new_webhook_secret
from nommerd.store.base import Conflict, Document, Store, StoreUnavailable

KIND = "webhook-secret"
NAME = "current"
OVERLAP_SECONDS = 24 * 3600.0
REPLACED_MAX = 3  # that still sign: each makes a header longer
FRESH_SECONDS = 5.0  # for so long a secret is used without asking the store whether it was replaced elsewhere
PROJECTS_KEPT = 1000
TRIES = 5


class RotationRefused(InputError):
    """This secret cannot be replaced, or not now."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """An earlier secret, and until when it still signs."""

    secret: Secret
    until: datetime


@dataclass(frozen=True, slots=True)
class SigningSecrets:
    """A project's secret, and those it replaced less than OVERLAP_SECONDS ago, the newest first."""

    current: Secret
    replaced: tuple[Replaced, ...] = ()
    made: datetime | None = None  # None: before it was first replaced, or by the operator
    configured: bool = False  # it stands in the configuration

    def at(self, now: datetime) -> tuple[Secret, ...]:
        """Those that sign at this time; the first is the current one."""
        return (self.current, *(one.secret for one in self.replaced if one.until > now))

    def until(self, now: datetime) -> datetime | None:
        """Until when more than the current one signs."""
        return max((one.until for one in self.replaced if one.until > now), default=None)


class WebhookSecrets:
    """The secrets of all projects. That of the project `default` is `own`, from the configuration (`fixed`) or from `file`,
    until it is replaced; each other project's is made when it is first needed."""

    def __init__(self, store: Store, keyring: Keyring, own: Secret, *, fixed: bool = False, file: Path | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._keyring = keyring
        self._own = own
        self._file = file
        self._clock = clock
        self._known: dict[str, tuple[float, SigningSecrets]] = {}
        self.fixed = fixed

    def of(self, project: str) -> SigningSecrets:
        """The project's secrets, made if there are none; at most FRESH_SECONDS behind what another feeder did.

        ConfigError config.wrong_keys where no key decrypts them.
        """
        if self.fixed and project == DEFAULT_PROJECT:
            return SigningSecrets(self._own, configured=True)
        until, known = self._known.get(project, (0.0, None))
        if known is None or self._clock() >= until:
            before, read = known, self._read(project)
            known = self._keep(project, read or self._first(project))
            if read is not None and (before is None or before.current != read.current):
                self._to_file(project, read.current)  # it was replaced elsewhere, or by a process that died of it
        return known

    def rotate(self, project: str, now: datetime | None = None) -> SigningSecrets:
        """The project's secrets with a new one in front. RotationRefused where the configuration holds the secret, or so many
        were replaced lately that another could not go on signing for its time."""
        if self.fixed and project == DEFAULT_PROJECT:
            raise RotationRefused("request.wrong_state", "The secret of this project stands in the configuration.",
                                  "Change webhooks.secret there, or remove it to have the secret kept here.")
        now = now or utcnow()
        for _ in range(TRIES):
            before = self._document(project)
            old = self._decoded(before) if before else SigningSecrets(self._own) if project == DEFAULT_PROJECT else None
            made = SigningSecrets(Secret(new_webhook_secret()), _overlapping(old, now), now)
            with suppress(Conflict):
                self._write(project, made, before.version if before else 0)
                self._to_file(project, made.current)
                return self._keep(project, made)
        raise StoreUnavailable("The webhook secret kept changing.")

    def _first(self, project: str) -> SigningSecrets:
        if project == DEFAULT_PROJECT:
            return SigningSecrets(self._own)
        made = SigningSecrets(Secret(new_webhook_secret()), (), utcnow())
        try:
            self._write(project, made, 0)
        except Conflict:  # another feeder was first
            return self._read(project) or made
        return made

    def _document(self, project: str) -> Document | None:
        return self._store.document(KIND, project, NAME)

    def _read(self, project: str) -> SigningSecrets | None:
        document = self._document(project)
        return None if document is None else self._decoded(document)

    def _write(self, project: str, secrets: SigningSecrets, version: int) -> None:
        made = secrets.made or utcnow()
        body = {"secret": secrets.current.reveal(), "made": made.timestamp(),
                "replaced": [{"secret": one.secret.reveal(), "until": one.until.timestamp()} for one in secrets.replaced]}
        self._store.put_document(Document(kind=KIND, scope=project, name=NAME, body=self._keyring.encrypt(body),
                                          version=version + 1), version)

    def _decoded(self, document: Document) -> SigningSecrets:
        values: dict[str, Any] = self._keyring.decrypt(document.body)
        replaced = tuple(Replaced(Secret(one["secret"]), _moment(one["until"])) for one in values["replaced"])
        return SigningSecrets(Secret(values["secret"]), replaced, _moment(values["made"]))

    def _keep(self, project: str, secrets: SigningSecrets) -> SigningSecrets:
        logs.register(secrets.current, *(one.secret for one in secrets.replaced))
        if len(self._known) >= PROJECTS_KEPT:
            self._known.clear()
        self._known[project] = (self._clock() + FRESH_SECONDS, secrets)
        return secrets

    def _to_file(self, project: str, secret: Secret) -> None:
        """The file goes on saying what signs. It need not be writable: the store knows."""
        if project != DEFAULT_PROJECT or self._file is None:
            return
        with suppress(OSError, UnicodeDecodeError):
            if self._file.read_text(encoding="utf-8").strip() == secret.reveal():
                return
        beside = self._file.with_name(f".{self._file.name}.{random.token_hex(6)}")
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "w", encoding="utf-8") as out:
                out.write(secret.reveal() + "\n")
                out.flush()
                os.fsync(out.fileno())
            beside.replace(self._file)
        except OSError as error:
            logs.get().warning("webhook.secret_file_not_written", file=str(self._file), why=error.strerror)
        finally:
            beside.unlink(missing_ok=True)


def _overlapping(old: SigningSecrets | None, now: datetime) -> tuple[Replaced, ...]:
    """What goes on signing once `old` is replaced. One that nobody can have been told yet goes on, too: it has signed."""
    if old is None:
        return ()
    left = tuple(one for one in old.replaced if one.until > now)
    if len(left) >= REPLACED_MAX:
        raise RotationRefused("request.wrong_state", f"{REPLACED_MAX} secrets were replaced within a day, and still sign.",
                              f"Try again after {min(one.until for one in left):%Y-%m-%dT%H:%M:%SZ}.")
    return (Replaced(old.current, now + timedelta(seconds=OVERLAP_SECONDS)), *left)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
