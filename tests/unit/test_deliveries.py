from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import gevent
import pytest
import structlog
from gevent.event import Event

from nommerd import lifecycle
from nommerd.deliveries import AT_ONCE, PAGE, RECEIVER_AT_ONCE, Deliveries
from nommerd.job import Job, JobState, Key, Owner, Webhook, new_id, utcnow
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.store.base import StoreUnavailable
from nommerd.store.memory import MemoryStore
from nommerd.webhook import Reply

OWNER = Owner(worker="w1", node="n1", claim="c1")
ACCEPTED = Reply(204)


class Rig:
    """Deliveries to a receiver played by `answer`; `posts` are what it got: url, id, payload."""

    def __init__(self, answer: Callable[[str], Reply] = lambda id: ACCEPTED, max_tries: int = 3) -> None:
        self.store = MemoryStore()
        self.keyring = Keyring([Secret(new_key())])
        self.posts: list[tuple[str, str, Any]] = []
        self.leads = True
        self.answer = answer
        self.deliveries = Deliveries(self.store, self.keyring, self._deliver, max_tries=max_tries, leads=lambda: self.leads)

    def _deliver(self, project: str, url: str, id: str, body: bytes, content_type: str) -> Reply:
        assert content_type == "application/json"
        self.posts.append((url, id, json.loads(body)))
        return self.answer(id)

    def create(self, *states: JobState, **more: Any) -> Key:
        """A claimed job that went through these states."""
        now = utcnow()
        job = Job(pipeline="p", recipe="r", source="file:///s", dest="file:///d", created=now, updated=now, write_id=new_id(),
                  **{"id": new_id(), "notify_url": "https://hook.example/", **more})
        self.store.create(job)
        self.store.update(job.key, lifecycle.claim(OWNER, "m", 30.0, utcnow()))
        for state in states:
            if state is JobState.FINISHED:
                self.store.update(job.key, lifecycle.finish(OWNER, [], [], utcnow()))
            else:
                self.store.update(job.key, lifecycle.advance(OWNER, state, "x", 0.5, utcnow()))
        return job.key

    def run(self, now: datetime | None = None) -> None:
        self.deliveries.run_due(now or utcnow())
        self.settle()

    def settle(self) -> None:
        assert self.deliveries._pool.join(timeout=10)

    def seqs(self) -> list[int]:
        return [int(id.rpartition(".")[2]) for _, id, _ in self.posts]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])
    yield
    structlog.reset_defaults()


def test_events_are_delivered_in_order_each_as_of_its_moment() -> None:
    rig = Rig()
    key = rig.create(JobState.DOWNLOADING, JobState.ENCODING, JobState.FINISHED)
    rig.run()
    assert rig.seqs() == [1, 2, 3]
    for seq, (_, id, payload) in enumerate(rig.posts, 1):
        data = payload["data"]
        assert id == f"{key.id}.{seq}" and data["event_seq"] == seq
        assert payload["type"] == f"job.{data['state'].lower()}"
        assert (data["finished"] is not None) == (data["state"] == "FINISHED")
        assert [event["seq"] for event in data["events"]] == list(range(1, seq + 1))
        assert payload["timestamp"] == data["events"][-1]["at"]
    assert rig.posts[0][2]["data"]["attempts"][0]["ended"] is None
    assert rig.store.get(key).due_events == ()
    rig.run()
    assert len(rig.posts) == 3


def test_a_refused_event_holds_back_the_later_ones_until_its_next_try() -> None:
    rig = Rig(lambda id: Reply(500))
    key = rig.create(JobState.DOWNLOADING, JobState.ENCODING)
    rig.run()
    assert rig.seqs() == [1]
    hook = rig.store.get(key).webhook
    assert hook.tries == 1 and hook.next_at is not None
    rig.run()
    rig.deliveries.kick(key)
    rig.settle()
    assert rig.seqs() == [1]
    rig.answer = lambda id: ACCEPTED
    rig.store.update(key, lifecycle.event_postponed(1, utcnow() - timedelta(seconds=1)))
    rig.run()
    assert rig.seqs() == [1, 1, 2]
    assert rig.store.get(key).webhook.tries == 0


def test_each_try_is_on_the_record_without_a_write_of_its_own() -> None:
    rig = Rig(lambda id: Reply(503, why="answered 503 " + "x" * 100))
    key = rig.create(JobState.DOWNLOADING, JobState.ENCODING)
    version = rig.store.get(key).version
    rig.run()
    one, = rig.store.get(key).webhook.deliveries
    assert (one.seq, one.status, one.why) == (1, 503, ("answered 503 " + "x" * 100)[:80])
    assert utcnow() - one.at < timedelta(seconds=10)
    assert rig.store.get(key).version == version + 1
    rig.answer = lambda id: ACCEPTED
    rig.store.update(key, lifecycle.event_postponed(1, utcnow() - timedelta(seconds=1)))
    rig.run()
    later = rig.store.get(key).webhook.deliveries[1:]
    assert [(one.seq, one.status, one.why) for one in later] == [(1, 204, ""), (2, 204, "")]
    assert rig.store.get(key).version == version + 4
    assert all("webhook" not in payload["data"] for _, _, payload in rig.posts), "receivers are not told of themselves"


def test_the_record_keeps_the_last_tries() -> None:
    rig = Rig()
    key = rig.create(*[JobState.DOWNLOADING, JobState.ENCODING] * 6)
    rig.run()
    assert [one.seq for one in rig.store.get(key).webhook.deliveries] == list(range(5, 13))


def test_events_asked_for_again_during_a_delivery_are_sent_from_the_first() -> None:
    entered, go = Event(), Event()

    def answer(id: str) -> Reply:
        if id.endswith(".2") and not go.is_set():
            entered.set()
            assert go.wait(10)
        return ACCEPTED
    rig = Rig(answer)
    key = rig.create(JobState.DOWNLOADING, JobState.ENCODING)
    rig.deliveries.kick(key)
    assert entered.wait(10)
    rig.store.update(key, lifecycle.replay_events(0))
    go.set()
    rig.settle()
    assert rig.seqs() == [1, 2, 1, 2]
    assert rig.store.get(key).due_events == ()


def test_a_receiver_is_given_up_after_so_many_tries() -> None:
    rig = Rig(lambda id: Reply(None, why="no answer"), max_tries=2)
    key = rig.create(JobState.DOWNLOADING)
    rig.run()
    rig.store.update(key, lambda job: job.evolve(webhook=Webhook(tries=1, next_at=utcnow() - timedelta(seconds=1))))
    rig.run()
    assert rig.store.get(key).webhook.disabled
    rig.run()
    assert rig.seqs() == [1, 1]


def test_a_receiver_that_is_gone_is_given_up_at_once() -> None:
    rig = Rig(lambda id: Reply(410, gone=True))
    key = rig.create(JobState.DOWNLOADING, JobState.ENCODING)
    rig.run()
    assert rig.seqs() == [1] and rig.store.get(key).webhook.disabled


def test_only_the_states_a_pipeline_names_are_posted() -> None:
    rig = Rig()
    rig.create(JobState.DOWNLOADING, JobState.ENCODING, JobState.FINISHED, webhook=Webhook(states=(JobState.FINISHED,)))
    rig.run()
    assert rig.seqs() == [3]


def test_the_full_address_comes_from_the_encrypted_part() -> None:
    rig = Rig()
    secret = rig.keyring.encrypt({"notify_url": "https://hook.example/?token=abc"})
    rig.create(JobState.DOWNLOADING, secrets=secret)
    rig.run()
    assert rig.posts[0][0] == "https://hook.example/?token=abc"


def test_a_change_during_a_delivery_is_delivered_after_it() -> None:
    entered, go = Event(), Event()

    def answer(id: str) -> Reply:
        entered.set()
        assert go.wait(10)
        return ACCEPTED
    rig = Rig(answer)
    key = rig.create(JobState.DOWNLOADING)
    rig.deliveries.kick(key)
    assert entered.wait(10)
    rig.store.update(key, lifecycle.advance(OWNER, JobState.ENCODING, "x", 0.5, utcnow()))
    rig.deliveries.kick(key)
    go.set()
    rig.settle()
    assert rig.seqs() == [1, 2]


def test_a_slow_receiver_does_not_hold_up_other_jobs() -> None:
    go = Event()
    rig = Rig()
    slow, quick = rig.create(JobState.DOWNLOADING), rig.create(JobState.DOWNLOADING)
    rig.answer = lambda id: ACCEPTED if id.startswith(quick.id) or go.wait(10) else Reply(500)
    rig.deliveries.run_due(utcnow())
    with gevent.Timeout(10):
        while rig.store.get(quick).due_events:
            gevent.sleep(0.01)
    assert rig.store.get(slow).due_events
    go.set()
    rig.settle()
    assert not rig.store.get(slow).due_events


def test_receivers_that_cannot_be_known_do_not_keep_others_waiting() -> None:
    rig = Rig(max_tries=10)
    wrong = Keyring([Secret(new_key())]).encrypt({"notify_url": "https://hook.example/?token=abc"})
    stuck = [rig.create(JobState.DOWNLOADING, secrets=wrong, id=f"a{number:03}") for number in range(AT_ONCE + 1)]
    good = rig.create(JobState.DOWNLOADING, id="z")
    for _ in range(3):
        rig.run()
    assert [id for _, id, _ in rig.posts] == [f"{good.id}.1"]
    hook = rig.store.get(stuck[0]).webhook
    assert hook.tries == 1 and not hook.disabled


def test_a_fault_of_ours_in_one_delivery_does_not_repeat_it_for_ever() -> None:
    def broken(id: str) -> Reply:
        raise ZeroDivisionError
    rig = Rig(broken)
    key = rig.create(JobState.DOWNLOADING)
    rig.run()
    rig.run()
    assert rig.seqs() == [1]
    assert rig.store.get(key).webhook.tries == 1


def test_secrets_out_of_reach_are_no_failure_of_the_receiver() -> None:
    def unreachable(id: str) -> Reply:
        raise StoreUnavailable("out of reach")
    rig = Rig(unreachable, max_tries=1)
    key = rig.create(JobState.DOWNLOADING)
    rig.run()
    assert rig.store.get(key).webhook == Webhook()
    rig.answer = lambda id: ACCEPTED
    rig.run()
    assert rig.store.get(key).webhook.accepted_seq == 1


def test_a_receiver_that_hangs_leaves_hands_for_others_however_many_jobs_it_has() -> None:
    go = Event()
    rig = Rig()
    stuck = [rig.create(JobState.DOWNLOADING, id=f"a{number:03}", notify_url="https://hangs.example/")
             for number in range(PAGE + AT_ONCE)]
    late = rig.create(JobState.DOWNLOADING, id="z1")
    soon = rig.create(JobState.DOWNLOADING, id="z2")
    rig.answer = lambda id: ACCEPTED if id.startswith("z") or go.wait(10) else Reply(500)
    for key in stuck:
        rig.deliveries.kick(key)
    rig.deliveries.kick(soon)
    with gevent.Timeout(10):
        while rig.store.get(soon).due_events or rig.store.get(late).due_events:
            rig.deliveries.run_due(utcnow())
            gevent.sleep(0.01)
    assert len(rig.posts) == RECEIVER_AT_ONCE + 2
    go.set()
    with gevent.Timeout(10):
        while any(rig.store.get(key).due_events for key in stuck):
            rig.run()


def test_one_who_does_not_lead_delivers_nothing() -> None:
    rig = Rig()
    key = rig.create(JobState.DOWNLOADING)
    rig.leads = False
    rig.run()
    rig.deliveries.kick(key)
    rig.settle()
    assert rig.posts == []


def test_a_job_without_a_receiver_has_nothing_to_deliver() -> None:
    rig = Rig()
    key = rig.create(JobState.DOWNLOADING, notify_url=None)
    rig.run()
    rig.deliveries.kick(key)
    rig.deliveries.kick(Key("default", "gone"))
    rig.settle()
    assert rig.posts == []
