"""The calls on webhooks: each for the caller's project alone, with a real receiver on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from pydantic import BaseModel
from standardwebhooks import Webhook

from nommerd import lifecycle
from nommerd.api.access import Scope
from nommerd.api.answers import JobAnswer
from nommerd.api.app import create_app
from nommerd.api.auth import Gate, Hosts
from nommerd.api.webhooks import TESTS_MAX, Budget, Webhooks, WebhooksAnswer, WebhookSecretMade, WebhookTested, webhook_routes
from nommerd.deliveries import Deliveries
from nommerd.job import DEFAULT_PROJECT, Delivery, Job, JobState, Key, new_id, utcnow
from nommerd.net.egress import Egress
from nommerd.secrets import Secret, new_webhook_secret
from nommerd.store.base import Store
from nommerd.tokens import Tokens
from nommerd.webhook import Reply, deliver
from nommerd.webhook_secrets import WebhookSecrets
from tests.http_site import Site, serve, status
from tests.unit.api.calls import TOKEN, Answer, Api

OWN = Secret(new_webhook_secret())


class Desk:
    """The calls, over real parts in memory. `kicked` are the jobs whose deliveries were hurried."""

    def __init__(self, api: Api, *networks: str, fixed: bool = False) -> None:
        self.api = api
        self.time = 0.0
        self.store: Store = api.store
        self.secrets = WebhookSecrets(api.store, api.keyring, OWN, fixed=fixed)
        self.kicked: list[Key] = []
        egress = Egress(networks)

        def send(project: str, url: str, id: str, body: bytes, kind: str) -> Reply:
            return deliver(egress, url, self.secrets.of(project).at(utcnow()), id, body, utcnow(), content_type=kind)

        self.send = send
        webhooks = Webhooks(store=api.store, secrets=self.secrets, check=lambda url: egress.check(url, "webhook"), send=send,
                            kick=self.kicked.append, budget=Budget(TESTS_MAX, 60.0, lambda: self.time))
        self.tokens = Tokens(api.store)
        gate = Gate([Secret(TOKEN)], Hosts("127.0.0.1", []), stored=self.tokens)
        api.app = create_app(webhook_routes(webhooks), gate)

    def token(self, project: str, *scopes: Scope) -> str:
        return self.tokens.make("t", project, scopes)[1].reveal()

    def call(self, method: str, path: str, body: object = None, token: str = TOKEN, *,
             shape: type[BaseModel] | None = None) -> Answer:
        answer = self.api.call(method, path, body, token=token)
        if shape is not None and answer.status < 300:
            shape.model_validate_json(answer.body)
        return answer

    def job(self, *states: JobState, project: str = DEFAULT_PROJECT, notify_url: str | None = "https://hook.example/x") -> Job:
        """A job that went through these states."""
        now = utcnow()
        job = Job(id=new_id(), project=project, pipeline="p", recipe="r", source="file:///s", dest="file:///d", created=now,
                  updated=now, write_id=new_id(), notify_url=notify_url)
        self.store.create(job)
        for state in states:
            job = self.store.update(job.key, lambda job, state=state: job.move(state, utcnow()))
        return job

    def refused(self, job: Job, why: str = "answered 500", give_up: bool = False) -> None:
        tried = Delivery(seq=1, at=utcnow(), status=500, why=why)
        at = None if give_up else utcnow() + timedelta(hours=1)
        self.store.update(job.key, lifecycle.event_postponed(1, at, tried))


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture
def desk(api: Api) -> Desk:
    return Desk(api, "127.0.0.0/8")


S = JobState


def test_a_receiver_gets_one_signed_event_and_it_is_told_what_it_answered(desk: Desk, site: Site) -> None:
    answer = desk.call("POST", "/v1/webhooks/test", {"url": site.url + "/hook"}, shape=WebhookTested)
    assert answer.status == 200
    assert (answer.json["accepted"], answer.json["status"], answer.json["why"]) == (True, 204, "")
    request, = site.seen
    event = Webhook(OWN.reveal()).verify(request.body, dict(request.headers.items()))
    assert event["type"] == "webhook.test"
    assert datetime.fromisoformat(event["timestamp"]).tzinfo is not None


def test_a_receiver_that_refuses_is_no_error_of_the_call(desk: Desk, site: Site) -> None:
    site.script["/hook"] = [status(302, Location=site.url + "/elsewhere")]
    answer = desk.call("POST", "/v1/webhooks/test", {"url": site.url + "/hook"}, shape=WebhookTested)
    assert answer.status == 200
    assert (answer.json["accepted"], answer.json["status"], answer.json["why"]) == (False, 302, "answered 302")
    assert [request.path for request in site.seen] == ["/hook"]


def test_no_test_reaches_a_private_network(api: Api, site: Site) -> None:
    desk = Desk(api)
    answer = desk.call("POST", "/v1/webhooks/test", {"url": site.url + "/hook"})
    assert (answer.status, answer.codes, answer.places) == (422, ["webhook.forbidden_address"], ["body.url"])
    named = desk.call("POST", "/v1/webhooks/test", {"url": site.url.replace("127.0.0.1", "localtest.invalid")})
    assert named.status == 200 and not named.json["accepted"]
    assert site.seen == []


@pytest.mark.parametrize(("body", "code"), [
    ({}, "request.missing_field"), ({"url": 1}, "request.invalid"), ({"url": "https://h/ x"}, "request.invalid"),
    ({"url": "ftp://h/"}, "webhook.bad_uri"), ({"url": "https://h/", "x": 1}, "request.unknown_field"),
    ({"url": "file:///etc/passwd"}, "webhook.bad_uri")])
def test_what_is_no_receiver_is_refused(desk: Desk, body: object, code: str) -> None:
    answer = desk.call("POST", "/v1/webhooks/test", body)
    assert (answer.status, answer.codes) == (422, [code])


def test_credentials_in_a_tested_address_are_shown_nowhere(desk: Desk, site: Site, log: StringIO) -> None:
    url = site.url.replace("://", "://me:canary1@") + "/hook?key=canary2"
    answer = desk.call("POST", "/v1/webhooks/test", {"url": url})
    assert answer.json["accepted"]
    assert "webhook.tested" in log.getvalue()
    assert "canary" not in log.getvalue() + answer.body.decode()


def test_tests_are_few_in_a_minute_for_each_project(desk: Desk, site: Site) -> None:
    other = desk.token("b", Scope.OPERATE)
    body = {"url": site.url + "/hook"}
    assert [desk.call("POST", "/v1/webhooks/test", body).status for _ in range(TESTS_MAX)] == [200] * TESTS_MAX
    refused = desk.call("POST", "/v1/webhooks/test", body)
    assert (refused.status, refused.codes) == (429, ["request.too_many_webhook_tests"])
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert desk.call("POST", "/v1/webhooks/test", body, other).status == 200
    desk.time += 60
    assert desk.call("POST", "/v1/webhooks/test", body).status == 200
    assert len(site.seen) == TESTS_MAX + 2


def test_events_are_sent_again_in_order_under_the_ids_they_had(desk: Desk, site: Site) -> None:
    job = desk.job(S.DOWNLOADING, S.ENCODING, S.ERROR, notify_url=site.url + "/hook")
    deliveries = Deliveries(desk.store, desk.api.keyring, desk.send, max_tries=3, leads=lambda: True)

    def run() -> list[str]:
        del site.seen[:]
        deliveries.run_due(utcnow())
        assert deliveries._pool.join(timeout=10)
        return [request.headers["webhook-id"] for request in site.seen]

    assert run() == [f"{job.id}.{seq}" for seq in (1, 2, 3)]
    answer = desk.call("POST", f"/v1/jobs/{job.id}/webhooks/replay", {"after": 1}, shape=JobAnswer)
    assert answer.status == 202 and answer.json["webhook"]["accepted_seq"] == 1
    assert desk.kicked == [job.key]
    assert run() == [f"{job.id}.{seq}" for seq in (2, 3)]
    assert desk.call("POST", f"/v1/jobs/{job.id}/webhooks/replay").status == 202
    assert run() == [f"{job.id}.{seq}" for seq in (1, 2, 3)]
    assert run() == []
    assert [one.seq for one in desk.store.get(job.key).webhook.deliveries] == [1, 2, 3, 2, 3, 1, 2, 3]


def test_a_receiver_that_was_given_up_is_asked_again(desk: Desk) -> None:
    job = desk.job(S.DOWNLOADING)
    desk.refused(job, give_up=True)
    assert desk.store.get(job.key).webhook_at is None
    answer = desk.call("POST", f"/v1/jobs/{job.id}/webhooks/replay", {})
    hook = answer.json["webhook"]
    assert (hook["disabled"], hook["tries"], hook["next_at"]) == (False, 0, None)
    assert desk.store.get(job.key).webhook_at == 0


def test_events_that_are_due_anyway_are_never_skipped_by_a_replay(desk: Desk) -> None:
    job = desk.job(S.DOWNLOADING, S.ENCODING)
    desk.call("POST", f"/v1/jobs/{job.id}/webhooks/replay", {"after": 2})
    assert [event.seq for event in desk.store.get(job.key).due_events] == [1, 2]


def test_a_replay_that_makes_no_sense_is_refused(desk: Desk) -> None:
    silent = desk.job(S.DOWNLOADING, notify_url=None)
    answer = desk.call("POST", f"/v1/jobs/{silent.id}/webhooks/replay")
    assert (answer.status, answer.codes) == (409, ["request.wrong_state"])
    assert desk.call("POST", "/v1/jobs/nothing/webhooks/replay").codes == ["request.unknown_job"]
    for wrong in (-1, "1", True, 2**60):
        assert desk.call("POST", f"/v1/jobs/{silent.id}/webhooks/replay", {"after": wrong}).status == 422


def test_the_overview_tells_who_is_behind_and_why(desk: Desk) -> None:
    late = desk.job(S.DOWNLOADING)
    failing = desk.job(S.DOWNLOADING, notify_url="https://down.example:8443/hook")
    gone = desk.job(S.DOWNLOADING)
    desk.job(S.DOWNLOADING, notify_url=None)
    desk.refused(failing)
    desk.refused(gone, "answered 410", give_up=True)
    answer = desk.call("GET", "/v1/webhooks", shape=WebhooksAnswer).json
    assert answer["due"] == 2
    one, = answer["failing"]
    assert (one["job"], one["host"], one["tries"], one["status"], one["why"]) == (
        failing.id, "down.example:8443", 1, 500, "answered 500")
    assert datetime.fromisoformat(one["next_at"]) > datetime.now(UTC)
    assert [(one["job"], one["why"]) for one in answer["disabled"]] == [(gone.id, "answered 410")]
    assert late.id not in json.dumps(answer)
    assert answer["secret"] == {"made": None, "previous_until": None, "configured": False}


def test_one_projects_webhooks_are_not_anothers(desk: Desk) -> None:
    mine = desk.job(S.DOWNLOADING, project="b")
    desk.refused(mine)
    gone = desk.job(S.DOWNLOADING, project="b")
    desk.refused(gone, give_up=True)
    theirs, ours = desk.token("a", Scope.ADMIN), desk.token("b", Scope.ADMIN)
    for token in (theirs, TOKEN):
        answer = desk.call("GET", "/v1/webhooks", token=token).json
        assert (answer["due"], answer["failing"], answer["disabled"]) == (0, [], [])
        assert desk.call("POST", f"/v1/jobs/{mine.id}/webhooks/replay", token=token).status == 404
    answer = desk.call("GET", "/v1/webhooks", token=ours).json
    assert (answer["due"], len(answer["failing"]), len(answer["disabled"])) == (1, 1, 1)


def test_a_new_secret_is_shown_once_and_signs_beside_the_old_one(desk: Desk, site: Site) -> None:
    token = desk.token("b", Scope.ADMIN)
    first = desk.secrets.of("b").current
    answer = desk.call("POST", "/v1/webhooks/secret", token=token, shape=WebhookSecretMade)
    secret = answer.json["secret"]
    until = datetime.fromisoformat(answer.json["previous_until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)
    desk.call("POST", "/v1/webhooks/test", {"url": site.url + "/hook"}, token)
    request, = site.seen
    for known in (first.reveal(), secret):
        assert Webhook(known).verify(request.body, dict(request.headers.items()))["data"]["project"] == "b"
    state = desk.call("GET", "/v1/webhooks", token=token).json["secret"]
    assert state["previous_until"] == answer.json["previous_until"] and state["made"]
    assert secret not in desk.call("GET", "/v1/webhooks", token=token).body.decode()


def test_a_secret_in_the_configuration_is_not_replaced_by_a_call(api: Api) -> None:
    desk = Desk(api, fixed=True)
    answer = desk.call("POST", "/v1/webhooks/secret")
    assert (answer.status, answer.codes) == (409, ["request.wrong_state"])
    assert "webhooks.secret" in answer.json["errors"][0]["hint"]
    assert desk.call("GET", "/v1/webhooks").json["secret"]["configured"]


def test_each_call_needs_its_scope(desk: Desk) -> None:
    reader, operator = desk.token("b", Scope.READ, Scope.SUBMIT), desk.token("b", Scope.OPERATE)
    job = desk.job(S.DOWNLOADING, project="b")
    for method, path in (("GET", "/v1/webhooks"), ("POST", "/v1/webhooks/test"), ("POST", "/v1/webhooks/secret"),
                         ("POST", f"/v1/jobs/{job.id}/webhooks/replay")):
        assert desk.call(method, path, {}, reader).status == 403, path
    assert desk.call("GET", "/v1/webhooks", token=operator).status == 200
    assert desk.call("POST", "/v1/webhooks/secret", {}, operator).status == 403
