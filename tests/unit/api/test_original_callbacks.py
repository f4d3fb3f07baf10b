"""What the original system's receivers are told, and that their calls go through the same deliveries as webhooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from standardwebhooks import Webhook as Verifier

from nommerd import lifecycle
from nommerd.api.view import webhook_form
from nommerd.deliveries import Deliveries
from nommerd.errors import Problem
from nommerd.job import Event, Job, JobState, Owner, Webhook, new_id, utcnow
from nommerd.net.egress import Egress
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.store.memory import MemoryStore
from nommerd.webhook import FORM, Reply, deliver
from tests.http_site import Site, serve

OWNER = Owner(worker="w1", node="n1", claim="c1")
SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
BAD = Problem(code="input.truncated", message="a.mov déclares 10 s & ends", hint="Send it again.")
ALL = ("DOWNLOADING", "ENCODING", "UPLOADING")


def fields(body: bytes) -> dict[str, str]:
    found = parse_qs(body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
    assert all(len(values) == 1 for values in found.values())
    return {name: values[0] for name, values in found.items()}


def job(**more: Any) -> Job:
    now = utcnow()
    given = {"id": new_id(), "notify_url": "https://app.example/", "webhook": Webhook(form=True), **more}
    return Job(pipeline="original", recipe="r", source="file:///s", dest="file:///d", created=now, updated=now,
               write_id=new_id(), **given)


def told(state: JobState, error: Problem | None = None) -> dict[str, str]:
    one = job(state=JobState.ENCODING, id="j1").evolve(error=error)
    event = Event(seq=1, state=state, at=utcnow(), attempt=1)
    return fields(webhook_form(one.evolve(state=state, event_seq=1, events=(event,)), event))


@pytest.mark.parametrize("state", JobState)
def test_a_call_has_the_three_fields_and_no_state_that_receivers_never_knew_but_cancelled(state: JobState) -> None:
    shown = "ENCODING" if state is JobState.WAITING else state.value
    assert told(state) == {"unique_id": "j1", "job_state": shown, "job_state_details": ""}


def test_details_are_the_error() -> None:
    assert told(JobState.ERROR, BAD)["job_state_details"] == "input.truncated: a.mov déclares 10 s & ends Send it again."


def test_of_long_details_the_last_thousand_characters_are_told() -> None:
    details = told(JobState.ERROR, Problem(code="encoder.failed", message="x" * 3000 + "the end"))["job_state_details"]
    assert len(details) == 1000 and details.endswith("xthe end")


def test_half_a_surrogate_pair_does_not_stop_a_call() -> None:
    assert told(JobState.ERROR, Problem(code="input.x", message="\ud800"))["job_state_details"] == "input.x: ?"


class Rig:
    """Deliveries to a receiver played by `answer`; `posts` are what it got: url, id, body."""

    def __init__(self, answer: Callable[[], Reply] = lambda: Reply(200)) -> None:
        self.store = MemoryStore()
        self.keyring = Keyring([Secret(new_key())])
        self.posts: list[tuple[str, str, bytes]] = []
        self.answer = answer
        self.deliveries = Deliveries(self.store, self.keyring, self._deliver, max_tries=3, leads=lambda: True)

    def _deliver(self, project: str, url: str, id: str, body: bytes, content_type: str) -> Reply:
        assert content_type == FORM
        self.posts.append((url, id, body))
        return self.answer()

    def create(self, **more: Any) -> Job:
        """A job that was encoded."""
        one = job(**more)
        self.store.create(one)
        self.store.update(one.key, lifecycle.claim(OWNER, "m", 30.0, utcnow()))
        for state in ALL:
            self.store.update(one.key, lifecycle.advance(OWNER, JobState(state), "x", 0.5, utcnow()))
        return self.store.update(one.key, lifecycle.finish(OWNER, [], [], utcnow()))

    def run(self) -> None:
        self.deliveries.run_due(utcnow())
        assert self.deliveries._pool.join(timeout=10)

    @property
    def states(self) -> list[str]:
        return [fields(body)["job_state"] for _, _, body in self.posts]


def test_every_change_but_the_first_pending_is_told_in_order() -> None:
    rig = Rig()
    one = rig.create()
    rig.run()
    assert rig.states == [*ALL, "FINISHED"]
    assert [id for _, id, _ in rig.posts] == [f"{one.id}.{seq}" for seq in (1, 2, 3, 4)]
    assert rig.store.get(one.key).due_events == ()


def test_a_call_that_failed_is_tried_again_before_later_ones() -> None:
    rig = Rig(lambda: Reply(500))
    one = rig.create()
    rig.run()
    rig.run()
    assert rig.states == ["DOWNLOADING"]
    rig.answer = lambda: Reply(200)
    rig.store.update(one.key, lifecycle.event_postponed(1, utcnow() - timedelta(seconds=1)))
    rig.run()
    assert rig.states == ["DOWNLOADING", *ALL, "FINISHED"] and rig.posts[0] == rig.posts[1]


def test_the_whole_address_is_called_though_the_record_hides_its_secrets() -> None:
    rig = Rig()
    rig.create(secrets=rig.keyring.encrypt({"notify_url": "https://u:p@app.example/?k=v"}))
    rig.run()
    assert {url for url, _, _ in rig.posts} == {"https://u:p@app.example/?k=v"}


def test_without_an_address_nobody_is_called() -> None:
    rig = Rig()
    rig.create(notify_url=None)
    rig.run()
    assert rig.posts == []


def test_a_record_remembers_its_kind_of_call_and_an_older_one_has_none() -> None:
    one = job()
    assert Job.decode(one.encode()).webhook.form is True
    older = one.encode().replace(b',"form":true', b"")
    assert b'"form"' not in older and Job.decode(older).webhook.form is False


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


def test_a_call_is_a_signed_form_of_the_feeders(site: Site) -> None:
    egress = Egress(["127.0.0.0/8"], agent="nommerd-feeder")
    body = webhook_form(job(id="j1"), Event(seq=1, state=JobState.ENCODING, at=utcnow(), attempt=1))
    assert deliver(egress, site.url + "/hook", [SECRET], "j1.1", body, utcnow(), content_type=FORM).accepted
    [seen] = site.seen
    assert seen.body == body and seen.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert seen.headers["User-Agent"].startswith("nommerd-feeder/")
    Verifier(SECRET.reveal()).verify(seen.body, dict(seen.headers.items()), json_parse=False)
