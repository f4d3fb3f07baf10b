"""Webhooks: signed so that a receiver can check them, delivered within bounds, tried again on a schedule."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from nommerd.config import Settings
from nommerd.errors import ConfigError
from nommerd.net.egress import Egress
from nommerd.secrets import Secret
from nommerd.webhook import Reply, deliver, load_or_make_secret, message_id, next_try, sign
from tests.http_site import Handler, Site, drip, endless, serve, status

SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
BODY = json.dumps({"type": "job.finished", "data": {"id": "j", "é": 1}}).encode()
NOW = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


def send(site: Site, path: str = "/hook", **options: float) -> Reply:
    egress = Egress(["127.0.0.0/8"], read_seconds=2.0)
    return deliver(egress, site.url + path, [SECRET], "j.3", BODY, datetime.now(UTC), **options)


def test_a_receiver_can_verify_what_it_gets(site: Site) -> None:
    reply = send(site)
    assert reply == Reply(204)
    assert reply.accepted
    request = site.seen[0]
    assert request.body == BODY
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["webhook-id"] == "j.3" == message_id("j", 3)
    headers = dict(request.headers.items())
    assert Webhook(SECRET.reveal()).verify(request.body, headers) == json.loads(BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET.reveal()).verify(request.body + b" ", headers)


def test_a_signature_matches_the_standards_own_example() -> None:
    headers = sign([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', datetime.fromtimestamp(1614265330, UTC))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_time_of_another_zone_signs_the_same() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=9)))
    assert sign([SECRET], "j.1", BODY, there) == sign([SECRET], "j.1", BODY, NOW)


@pytest.mark.parametrize(("code", "accepted", "gone"), [
    (200, True, False), (204, True, False), (301, False, False), (307, False, False), (400, False, False), (404, False, False),
    (410, False, True), (429, False, False), (500, False, False)])
def test_only_a_2xx_accepts_and_only_410_ends(site: Site, code: int, accepted: bool, gone: bool) -> None:
    site.script["/hook"] = [status(code, Location=site.url + "/elsewhere")]
    reply = send(site)
    assert (reply.status, reply.accepted, reply.gone) == (code, accepted, gone)
    assert [request.path for request in site.seen] == ["/hook"]


def test_a_receiver_says_when_to_come_again(site: Site) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    site.script["/hook"] = [status(429, Retry_After="90"), status(503, Retry_After=at)]
    assert send(site).retry_after_seconds == 90
    assert 290 < (send(site).retry_after_seconds or 0) <= 300


def test_a_reply_without_end_is_left_after_64_kb(site: Site) -> None:
    site.script["/hook"] = [endless(200)]
    assert send(site).accepted
    assert site.sent < 20_000_000  # what socket buffers take, not what it would send


def test_a_reply_that_drips_does_not_hold_the_next_one_up(site: Site) -> None:
    over = threading.Event()
    site.script["/hook"] = [drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", 0.05, over)]
    began = time.monotonic()
    assert send(site).accepted
    over.set()
    assert time.monotonic() - began < 8


def test_a_receiver_that_drips_its_headers_is_left_in_time(site: Site) -> None:
    over = threading.Event()
    site.script["/hook"] = [drip(b"HTTP/1.1 200 OK\r\nX: ", 0.05, over)]
    began = time.monotonic()
    reply = send(site, total_seconds=0.5)
    over.set()
    assert reply.status is None
    assert not reply.accepted
    assert "0.5 s" in reply.why
    assert time.monotonic() - began < 8


def test_a_receiver_that_is_not_there_or_not_allowed_is_a_failure_like_others(site: Site) -> None:
    def hang_up(handler: Handler) -> None:
        handler.hang_up()

    site.script["/hook?key=canary"] = [hang_up]
    assert send(site, "/hook?key=canary").why.startswith("webhook.unavailable")
    forbidden = deliver(Egress(), site.url + "/hook?key=canary", [SECRET], "j.1", BODY, NOW)
    assert (forbidden.status, forbidden.accepted) == (None, False)
    assert forbidden.why.startswith("webhook.forbidden_address")
    assert "canary" not in forbidden.why
    assert deliver(Egress(), "ftp://h/", [SECRET], "j.1", BODY, NOW).why.startswith("webhook.bad_uri")


def test_absurd_numbers_in_a_reply_do_not_make_a_delivery_fail_otherwise(site: Site) -> None:
    site.script["/hook"] = [status(503, Retry_After=f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT"),
                            status(200, Content_Length="9" * 5000)]
    assert send(site) == Reply(503, why="answered 503")
    assert send(site).accepted


def test_a_fault_of_our_own_is_a_failed_try_like_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.webhook.retry_after_seconds", lambda *args: 1 / 0)
    reply = send(site)
    assert not reply.accepted
    assert reply.status is None


def test_tries_spread_over_days_and_end() -> None:
    most = Settings().webhooks.max_tries
    waits = []
    for tries in range(1, most):
        at = next_try(tries, most, None, NOW, luck=lambda: 0.0)
        assert at is not None
        waits.append((at - NOW).total_seconds())
    assert waits == sorted(waits)
    assert waits[0] == 5
    assert 2 * 86400 < sum(waits) < 3 * 86400
    assert next_try(most, most, None, NOW) is None
    assert next_try(99, most, 3.0, NOW) is None
    assert next_try(most, most + 1, None, NOW, luck=lambda: 0.0) == NOW + timedelta(days=1)
    assert next_try(1, 1, None, NOW) is None


def test_receivers_that_failed_together_are_not_asked_together() -> None:
    assert len({next_try(3, 10, None, NOW) for _ in range(20)}) > 1
    late = next_try(3, 10, None, NOW, luck=lambda: 0.999)
    assert late is not None
    assert late - NOW <= timedelta(seconds=120 * 1.2)


@pytest.mark.parametrize(("asked", "least"), [(1.0, 5.0), (3600.0, 3600.0), (1e12, 86400.0), (None, 5.0)])
def test_retry_after_delays_up_to_a_day_and_never_hastens(asked: float | None, least: float) -> None:
    at = next_try(1, 10, asked, NOW, luck=lambda: 0.0)
    assert at == NOW + timedelta(seconds=least)


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "webhook-secret"
    secret = load_or_make_secret(path, None, True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_make_secret(path, None, False).reveal() == secret.reveal()
    sign([secret], "j.1", BODY, NOW)
    assert load_or_make_secret(tmp_path / "unused", SECRET, True) is SECRET
    assert not (tmp_path / "unused").exists()


def test_a_missing_secret_is_not_made_where_that_is_not_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_or_make_secret(tmp_path / "webhook-secret", None, False)


@pytest.mark.parametrize("text", ["canary", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!canary!!!",
                                  "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "A" * 200])
def test_a_secret_that_cannot_sign_is_the_operators_to_mend(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_or_make_secret(tmp_path / "x", Secret(text), True)
    assert caught.value.code == "config.webhook_secret"
    assert "canary" not in str(caught.value)
