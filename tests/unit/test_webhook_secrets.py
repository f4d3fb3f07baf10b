"""What signs webhooks: one secret for each project, encrypted, replaced without a break."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from nommerd.errors import ConfigError
from nommerd.job import DEFAULT_PROJECT
from nommerd.secrets import Keyring, Secret, check_webhook_secret, new_key, new_webhook_secret
from nommerd.store.base import Document
from nommerd.store.memory import MemoryStore
from nommerd.webhook import sign
from nommerd.webhook_secrets import FRESH_SECONDS, KIND, REPLACED_MAX, RotationRefused, WebhookSecrets

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
OWN = Secret(new_webhook_secret())
BODY = b'{"type":"job.finished"}'


class Scene:
    """A store, keys, and as many feeders as a test wants."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.keyring = Keyring([Secret(new_key())])
        self.time = 100.0

    def feeder(self, *, fixed: bool = False, file: Path | None = None) -> WebhookSecrets:
        return WebhookSecrets(self.store, self.keyring, OWN, fixed=fixed, file=file, clock=lambda: self.time)


def verifies(secret: Secret, signing: tuple[Secret, ...]) -> bool:
    try:
        Webhook(secret.reveal()).verify(BODY, sign(signing, "j.1", BODY, datetime.now(UTC)))
    except WebhookVerificationError:
        return False
    return True


def test_each_project_has_a_secret_of_its_own_from_when_it_is_first_needed() -> None:
    scene = Scene()
    one, other = scene.feeder(), scene.feeder()
    assert one.of(DEFAULT_PROJECT).at(NOW) == (OWN,)
    secret = one.of("a").current
    check_webhook_secret(secret, "a")
    assert secret != one.of("b").current != OWN
    assert other.of("a").current == secret, "the store keeps it"


def test_secrets_are_kept_encrypted() -> None:
    scene = Scene()
    secret = scene.feeder().of("a").current.reveal()
    document, = scene.store.documents(KIND, "a")
    assert secret not in document.body and secret.removeprefix("whsec_") not in document.body
    assert scene.keyring.decrypt(document.body)["secret"] == secret
    scene.keyring = Keyring([Secret(new_key())])
    with pytest.raises(ConfigError) as caught:
        scene.feeder().of("a")
    assert caught.value.code == "config.wrong_keys"


def test_two_feeders_that_make_the_first_one_at_once_use_the_same() -> None:
    scene = Scene()

    class Racing(MemoryStore):
        """Another feeder is quicker, between the look and the write."""

        looked = False

        def document(self, kind: str, scope: str, name: str) -> Document | None:
            if not self.looked:
                self.looked = True
                secrets.append(other.of("a").current)
                return None
            return super().document(kind, scope, name)

    secrets: list[Secret] = []
    scene.store = Racing()
    other, late = scene.feeder(), scene.feeder()
    assert [late.of("a").current] == secrets


@pytest.mark.parametrize("project", [DEFAULT_PROJECT, "a"])
def test_a_replaced_secret_signs_for_a_day_beside_the_new_one(project: str) -> None:
    scene = Scene()
    secrets = scene.feeder()
    old = secrets.of(project).current
    new = secrets.rotate(project, NOW)
    assert new.current != old and new.until(NOW) == NOW + DAY
    assert secrets.of(project) == new == scene.feeder().of(project)
    both = new.at(NOW + DAY - timedelta(seconds=1))
    assert verifies(old, both) and verifies(new.current, both)
    alone = new.at(NOW + DAY)
    assert verifies(new.current, alone) and not verifies(old, alone)
    assert new.until(NOW + DAY) is None


def test_another_feeder_knows_of_a_new_secret_within_seconds_and_asks_no_more_often() -> None:
    scene = Scene()
    one, other = scene.feeder(), scene.feeder()
    before = other.of("a")
    new = one.rotate("a", NOW)
    scene.time += FRESH_SECONDS / 2
    assert other.of("a") == before
    scene.time += FRESH_SECONDS
    assert other.of("a") == new


def test_the_file_says_what_signs_after_a_replacement(tmp_path: Path) -> None:
    file = tmp_path / "webhook-secret"
    file.write_text(OWN.reveal())
    secrets = Scene().feeder(file=file)
    secrets.rotate("a", NOW)
    assert file.read_text() == OWN.reveal()
    new = secrets.rotate(DEFAULT_PROJECT, NOW)
    assert file.read_text().strip() == new.current.reveal()
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_hinders_nothing(tmp_path: Path) -> None:
    secrets = Scene().feeder(file=tmp_path / "missing" / "webhook-secret")
    new = secrets.rotate(DEFAULT_PROJECT, NOW)
    assert secrets.of(DEFAULT_PROJECT) == new


def test_a_secret_in_the_configuration_is_replaced_there() -> None:
    secrets = Scene().feeder(fixed=True)
    with pytest.raises(RotationRefused, match="configuration"):
        secrets.rotate(DEFAULT_PROJECT)
    assert secrets.of(DEFAULT_PROJECT).current == OWN and secrets.of(DEFAULT_PROJECT).configured
    assert secrets.rotate("a").current != OWN, "other projects have their own"


def test_no_secret_stops_signing_before_its_day_is_over_however_often_it_is_replaced() -> None:
    secrets = Scene().feeder()
    known = [secrets.of("a").current]
    for hour in range(REPLACED_MAX):
        known.append(secrets.rotate("a", NOW + timedelta(hours=hour)).current)
    late = NOW + timedelta(hours=REPLACED_MAX)
    with pytest.raises(RotationRefused):
        secrets.rotate("a", late)
    assert all(verifies(secret, secrets.of("a").at(late)) for secret in known)
    again = secrets.rotate("a", NOW + DAY)
    assert len(again.at(NOW + DAY)) == REPLACED_MAX + 1


def test_what_is_shown_of_secrets_in_messages_is_a_mask() -> None:
    secrets = Scene().feeder()
    made = secrets.rotate("a", NOW)
    assert made.current.reveal() not in json.dumps([repr(made), str(made), repr(secrets)])


def test_the_file_says_what_signs_also_where_another_feeder_replaced_it(tmp_path: Path) -> None:
    scene, file = Scene(), tmp_path / "webhook-secret"
    file.write_text(OWN.reveal())
    one, other = scene.feeder(), scene.feeder(file=file)
    assert other.of(DEFAULT_PROJECT).current == OWN
    made = one.rotate(DEFAULT_PROJECT)
    scene.time += FRESH_SECONDS
    assert other.of(DEFAULT_PROJECT).current == made.current
    assert file.read_text().strip() == made.current.reveal() and file.stat().st_mode & 0o777 == 0o600
