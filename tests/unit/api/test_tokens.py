from __future__ import annotations

from collections.abc import Callable
from io import StringIO

import pytest

from nommerd.api.access import Scope
from nommerd.api.answers import Caller, JobAnswer, JobList, Problem, TokenList, TokenMade
from nommerd.api.auth import WRONG_TOKENS_MAX
from nommerd.store.base import Document, StoreUnavailable
from nommerd.tokens import new_text
from tests.unit.api.calls import TOKEN, Answer, Api

A_MICROSECOND = 1e-11  # of a day


def make(api: Api, *scopes: str, asking: str = TOKEN, **more: object) -> Answer:
    body = {"name": "ci", "scopes": list(scopes or ["read"]), **more}
    return api.call("POST", "/v1/tokens", {name: value for name, value in body.items() if value is not None}, token=asking)


def text_of(api: Api, *scopes: str, **more: object) -> str:
    answer = make(api, *scopes, **more)
    assert answer.status == 201, answer.json
    return str(answer.json["token"])


def test_a_token_is_told_once_and_works(api: Api, log: StringIO) -> None:
    answer = make(api, "submit", "read", project="studio-a", expires_days=90)
    assert answer.status == 201
    made = TokenMade.model_validate_json(answer.body)
    assert (made.name, made.project, sorted(made.scopes)) == ("ci", "studio-a", ["read", "submit"])
    assert made.expires is not None and (made.expires - made.created).days == 90
    listed = api.call("GET", "/v1/tokens")
    assert [token.id for token in TokenList.model_validate_json(listed.body).tokens] == [made.id]
    assert made.token.encode() not in listed.body and b"token\":" not in listed.body
    assert api.call("GET", "/v1/jobs", token=made.token).status == 200
    asked = api.call("GET", "/v1/token", token=made.token)
    assert Caller.model_validate_json(asked.body).model_dump() == {"name": "ci", "project": "studio-a",
                                                                   "scopes": [Scope.READ, Scope.SUBMIT]}
    assert made.token not in log.getvalue()


def test_a_revoked_token_is_refused_at_once(api: Api) -> None:
    made = make(api).json
    assert api.call("GET", "/v1/jobs", token=made["token"]).status == 200
    revoked = api.call("DELETE", f"/v1/tokens/{made['id']}")
    assert (revoked.status, revoked.body) == (204, b"")
    refused = api.call("GET", "/v1/jobs", token=made["token"])
    assert (refused.status, refused.codes) == (401, ["request.unauthorized"])
    again = api.call("DELETE", f"/v1/tokens/{made['id']}")
    assert (again.status, again.codes, again.places) == (404, ["request.unknown_token"], ["path.id"])


def test_an_expired_token_is_told_so(api: Api) -> None:
    text = text_of(api, expires_days=A_MICROSECOND)
    refused = api.call("GET", "/v1/jobs", token=text)
    assert (refused.status, refused.codes) == (401, ["request.token_expired"])
    assert refused.headers["www-authenticate"].startswith("Bearer ") and text.encode() not in refused.body


def test_a_projects_admin_makes_sees_and_revokes_tokens_of_that_project_alone(api: Api) -> None:
    admin = text_of(api, "admin", project="studio-a")
    other = make(api, project="studio-b").json
    own = make(api, "operate", asking=admin).json
    assert own["project"] == "studio-a"
    refused = make(api, asking=admin, project="studio-b")
    assert (refused.status, refused.codes, refused.places) == (403, ["request.forbidden_project"], ["body.project"])
    assert make(api, asking=admin, project="default").status == 403
    assert {token["project"] for token in api.call("GET", "/v1/tokens", token=admin).json["tokens"]} == {"studio-a"}
    assert api.call("DELETE", f"/v1/tokens/{other['id']}", token=admin).codes == ["request.unknown_token"]
    assert api.call("DELETE", f"/v1/tokens/{own['id']}", token=admin).status == 204
    assert api.call("GET", "/v1/jobs", token=other["token"]).status == 200
    assert {token["project"] for token in api.call("GET", "/v1/tokens").json["tokens"]} == {"studio-a", "studio-b"}


def test_only_admins_deal_in_tokens_and_anybody_may_ask_about_his_own(api: Api) -> None:
    for scope in ("submit", "read", "operate"):
        text = text_of(api, scope)
        for method, path in (("GET", "/v1/tokens"), ("POST", "/v1/tokens"), ("DELETE", "/v1/tokens/x")):
            refused = api.call(method, path, token=text)
            assert (refused.status, refused.codes) == (403, ["request.forbidden_scope"]), (scope, method)
        assert api.call("GET", "/v1/token", token=text).json["scopes"] == [scope]
    assert api.call("GET", "/v1/token", token=None).status == 401
    assert api.call("GET", "/v1/token").json == {"name": "token file", "project": "default",
                                                 "scopes": ["admin", "operate", "read", "submit"]}


@pytest.mark.parametrize(("change", "place"), [
    ({"name": ""}, "body.name"), ({"name": "a\nb"}, "body.name"), ({"name": None}, "body.name"), ({"name": 5}, "body.name"),
    ({"scopes": []}, "body.scopes"), ({"scopes": ["root"]}, "body.scopes.0"), ({"scopes": "read"}, "body.scopes"),
    ({"scopes": None}, "body.scopes"), ({"project": "a/b"}, "body.project"), ({"project": "../x"}, "body.project"),
    ({"project": "a" * 64}, "body.project"), ({"project": ""}, "body.project"), ({"expires_days": 0}, "body.expires_days"),
    ({"expires_days": -1}, "body.expires_days"), ({"expires_days": True}, "body.expires_days"),
    ({"expires_days": 1e6}, "body.expires_days"), ({"expires_days": "90"}, "body.expires_days"),
    ({"scope": "read"}, "body.scope"),
])
def test_what_is_wrong_with_a_wanted_token_is_told_with_its_place(api: Api, change: dict[str, object], place: str) -> None:
    answer = make(api, **change) if "scopes" not in change else api.call("POST", "/v1/tokens", {
        key: value for key, value in {"name": "ci", **change}.items() if value is not None})
    assert (answer.status, answer.places) == (422, [place])
    Problem.model_validate_json(answer.body)
    assert api.tokens.list() == []


def test_a_flood_of_wrong_tokens_shuts_out_no_right_one(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    used, unused = text_of(api), text_of(api)
    assert api.call("GET", "/v1/jobs", token=used).status == 200
    statuses = [api.call("GET", "/v1/jobs", token=new_text()).status for _ in range(WRONG_TOKENS_MAX + 30)]
    assert statuses == [401] * WRONG_TOKENS_MAX + [429] * 30
    asked: list[str] = []
    document = api.store.document
    monkeypatch.setattr(api.store, "document", lambda *key: asked.append(key[2]) or document(*key))  # type: ignore[func-returns-value]
    assert api.call("GET", "/v1/jobs", token=new_text()).status == 429
    assert asked == []
    for text in (used, unused, TOKEN):
        assert api.call("GET", "/v1/jobs", token=text).status == 200
    assert api.call("GET", "/v1/jobs", token=new_text(), REMOTE_ADDR="192.0.2.1").status == 401


def test_one_network_of_ipv6_is_one_guesser(api: Api) -> None:
    statuses = [api.call("GET", "/v1/jobs", token="x", REMOTE_ADDR=f"2001:db8:0:1::{number:x}").status for number in range(30)]
    assert statuses == [401] * WRONG_TOKENS_MAX + [429] * 10
    assert api.call("GET", "/v1/jobs", token="x", REMOTE_ADDR="2001:db8:0:2::1").status == 401
    assert api.call("GET", "/v1/jobs", token="x", REMOTE_ADDR="::ffff:192.0.2.1").status == 401


def test_an_expired_token_is_no_guess(api: Api) -> None:
    text = text_of(api, expires_days=A_MICROSECOND)
    codes = [api.call("GET", "/v1/jobs", token=text).codes for _ in range(WRONG_TOKENS_MAX + 5)]
    assert codes == [["request.token_expired"]] * len(codes)
    assert api.call("GET", "/v1/jobs", token="wrong").status == 401


def test_without_the_store_the_token_file_still_works(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    text = text_of(api)

    def fail(*key: str) -> Document | None:
        raise StoreUnavailable("gone")
    monkeypatch.setattr(api.store, "document", fail)
    refused = api.call("GET", "/v1/token", token=text)
    assert (refused.status, refused.codes) == (503, ["node.store_unavailable"]) and int(refused.headers["retry-after"]) > 0
    assert api.call("GET", "/v1/token").status == 200
    assert api.call("GET", "/v1/token", token="wrong").status == 401


def test_answers_about_jobs_have_exactly_the_shape_that_is_described(api: Api) -> None:
    submitted = api.submit(labels={"a": "b"}, params={"width": 320}, inputs=None)
    assert submitted.status == 201
    JobAnswer.model_validate_json(submitted.body)
    JobList.model_validate_json(api.call("GET", "/v1/jobs").body)
    JobAnswer.model_validate_json(api.call("POST", f"/v1/jobs/{submitted.json['id']}/cancel").body)
    for answer in (api.call("GET", "/v1/jobs/x"), api.call("GET", "/v1/nothing"), api.call("PATCH", "/v1/jobs"),
                   api.call("GET", "/v1/jobs", query="limit=0"), api.call("GET", "/v1/jobs", token=None),
                   api.call("POST", "/v1/jobs", b"{")):
        assert answer.headers["content-type"] == "application/problem+json"
        assert Problem.model_validate_json(answer.body).status == answer.status


def test_projects_keep_their_jobs_apart(api: Api) -> None:
    first, second = (text_of(api, "submit", "read", project=name) for name in ("studio-a", "studio-b"))
    made = api.call("POST", "/v1/jobs", api.body(), token=first, HTTP_IDEMPOTENCY_KEY="k").json
    calls: tuple[Callable[[], Answer], ...] = (
        lambda: api.call("GET", f"/v1/jobs/{made['id']}", token=second),
        lambda: api.call("POST", f"/v1/jobs/{made['id']}/cancel", token=second),
        lambda: api.call("POST", f"/v1/jobs/{made['id']}/retry", token=second))
    assert [call().status for call in calls] == [404, 404, 404]
    assert api.call("GET", "/v1/jobs", token=second).json == {"jobs": [], "next": None}
    other = api.call("POST", "/v1/jobs", api.body(), token=second, HTTP_IDEMPOTENCY_KEY="k")
    assert other.status == 201 and other.json["id"] != made["id"]
