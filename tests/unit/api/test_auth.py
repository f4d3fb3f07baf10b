from __future__ import annotations

import hmac
from contextlib import suppress

import pytest

from nommerd.api.auth import Gate, Hosts
from nommerd.api.problems import Refusal
from nommerd.secrets import Secret
from tests.unit.api.calls import TOKEN, Api


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
                                    "Bearer \xff\xfe"])
def test_a_missing_or_wrong_token_is_a_401_that_asks_for_one(api: Api, header: str) -> None:
    answer = api.call("GET", "/v1/jobs", token=None, **({"HTTP_AUTHORIZATION": header} if header else {}))
    assert (answer.status, answer.codes) == (401, ["request.unauthorized"])
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert TOKEN.encode() not in answer.body


def test_paths_that_do_not_exist_are_not_told_to_strangers(api: Api) -> None:
    assert api.call("GET", "/v1/nothing", token=None).status == 401
    assert api.call("POST", "/v1/jobs", api.body(), token=None).status == 401
    assert api.bus.jobs.depth().visible == 0


def test_the_scheme_is_read_in_any_case(api: Api) -> None:
    assert api.call("GET", "/v1/jobs", token=None, HTTP_AUTHORIZATION=f"bearer  {TOKEN}").status == 200


def test_many_wrong_tokens_are_slowed_and_the_right_one_still_passes() -> None:
    now = [0.0]
    gate = Gate([Secret("right"), Secret("other")], Hosts("127.0.0.1"), clock=lambda: now[0])

    def ask(token: str, address: str = "192.0.2.1") -> int:
        try:
            gate.check({"PATH_INFO": "/v1/jobs", "HTTP_HOST": "localhost", "REMOTE_ADDR": address,
                        "HTTP_AUTHORIZATION": f"Bearer {token}"})
        except Refusal as refusal:
            assert refusal.faults[0].hint
            return refusal.status
        return 200
    assert [ask("wrong") for _ in range(20)] == [401] * 20
    assert ask("wrong") == 429
    assert ask("right") == ask("other") == 200
    assert ask("wrong", "192.0.2.2") == 401
    now[0] = 61.0
    assert ask("wrong") == 401


def test_every_token_of_the_operator_is_compared_whole_whatever_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: by digests of one length, all of them also after one was right."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)
    real = hmac.compare_digest
    monkeypatch.setattr("nommerd.api.auth.hmac.compare_digest", compare)
    gate = Gate([Secret("right"), Secret("another")], Hosts("127.0.0.1"))
    for token in ("right", "another", "righ", "x" * 5000):
        with suppress(Refusal):
            gate.check({"PATH_INFO": "/v1/jobs", "HTTP_HOST": "localhost", "HTTP_AUTHORIZATION": f"Bearer {token}"})
        assert compared == [(32, 32), (32, 32)]
        compared.clear()


@pytest.mark.parametrize("path", ["/static/../pages.py", "/static/..", "/static//etc/passwd", "/static/../v1/jobs", "/static/",
                                  "/static/..\\index.html", "/static/\x00", "/healthz/../v1/jobs", "//v1/jobs",
                                  "/v1/media/../jobs", "/./v1/jobs"])
def test_no_way_round_leads_past_the_token_or_out_of_the_page(api: Api, path: str) -> None:
    answer = api.call("GET", path, token=None)
    assert answer.status in (401, 404), answer.body
    assert api.call("GET", path).status == 404


@pytest.mark.parametrize("host", ["localhost", "localhost:8001", "LOCALHOST:1", "127.0.0.1:8001", "[::1]:8001", "[::1]",
                                  "localhost.:8001", "media.example:8001", "other.example", "other.example:443"])
def test_names_of_ours_are_served(api: Api, host: str) -> None:
    assert api.call("GET", "/healthz", HTTP_HOST=host).status == 200


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "media.example", "media.example:80", "::1",
                                  "0.0.0.0", "127.0.0.1.evil.example:8001", "localhost:8001:x", "user@localhost",
                                  "localhost:80 80"])
def test_other_names_are_refused_even_with_a_token(api: Api, host: str) -> None:
    for path in ("/", "/healthz", "/v1/jobs"):
        answer = api.call("GET", path, HTTP_HOST=host)
        assert (answer.status, answer.codes) == (403, ["request.forbidden_host"])


def test_a_request_without_a_host_is_refused(api: Api) -> None:
    assert api.call("GET", "/v1/jobs", HTTP_HOST="").status == 403


def test_the_bind_address_is_a_name_of_ours() -> None:
    assert Hosts("192.0.2.7").accepts("192.0.2.7:8001") and Hosts("fd00::7").accepts("[fd00::7]:8001")
    assert not Hosts("127.0.0.1").accepts("192.0.2.7:8001")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000",
                                    "http://localhost:8001.evil.example", ""])
def test_pages_of_other_origins_are_refused(api: Api, origin: str) -> None:
    answer = api.call("POST", "/v1/jobs", api.body(), HTTP_ORIGIN=origin)
    assert (answer.status, answer.codes) == (403, ["request.forbidden_origin"])
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_requests_that_a_browser_calls_foreign_are_refused(api: Api, site: str) -> None:
    assert api.call("GET", "/v1/jobs", HTTP_SEC_FETCH_SITE=site).status == 403


def test_our_own_pages_requests_pass(api: Api) -> None:
    assert api.call("GET", "/v1/jobs", HTTP_ORIGIN="http://localhost:8001", HTTP_SEC_FETCH_SITE="same-origin").status == 200
    assert api.call("GET", "/", HTTP_SEC_FETCH_SITE="none").status == 200


def test_preflights_get_no_permission(api: Api) -> None:
    answer = api.call("OPTIONS", "/v1/jobs", token=None, HTTP_ORIGIN="https://evil.example")
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
