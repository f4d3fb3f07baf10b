from __future__ import annotations

import base64
import time
from datetime import timedelta

import gevent
import pytest

from nommerd import lifecycle
from nommerd.api import waiters
from nommerd.api.access import Scope
from nommerd.errors import InfrastructureError, Problem
from nommerd.job import Job, JobState, Key, Owner, utcnow
from nommerd.messages import JobMessage
from nommerd.store.base import StoreUnavailable
from tests.unit.api.calls import TOKEN, Api

OWNER = Owner(worker="w1", node="n1", claim="c1", pid=77, boot_id="secret-boot")


def submit(api: Api, name: str = "out", **more: object) -> Key:
    answer = api.submit(dest=(api.media / f"{name}.mp4").as_uri(), **more)
    assert answer.status == 201, answer.json
    return Key("default", answer.json["id"])


def claim(api: Api, key: Key) -> Job:
    return api.store.update(key, lifecycle.claim(OWNER, "m", 30.0, utcnow()))


def fail(api: Api, key: Key) -> Job:
    claim(api, key)
    return api.store.update(key, lifecycle.fail(OWNER, Problem(code="input.truncated", message="Too short."), [], 3, utcnow()))


def test_a_job_is_shown_with_its_owner_attempts_and_events(api: Api) -> None:
    key = submit(api)
    claim(api, key)
    api.store.update(key, lifecycle.advance(OWNER, JobState.ENCODING, "ffmpeg", 0.25, utcnow()))
    job = api.call("GET", f"/v1/jobs/{key.id}").json
    assert job["owner"] == {"worker": "w1", "node": "n1"}
    assert (job["state"], job["stage"], job["progress"], job["event_seq"]) == ("ENCODING", "ffmpeg", 0.25, 1)
    assert [set(attempt) for attempt in job["attempts"]] == [{"worker", "node", "begun", "ended", "why"}]
    assert [(event["seq"], event["state"], event["attempt"]) for event in job["events"]] == [(1, "ENCODING", 1)]
    assert job["events"][0]["at"].endswith("Z")
    fail_job = api.store.update(key, lifecycle.fail(OWNER, Problem(code="input.truncated", message="Short."), [], 3, utcnow()))
    shown = api.call("GET", f"/v1/jobs/{fail_job.id}").json
    assert set(shown["error"]) == {"code", "message", "hint", "stage", "attempt", "retryable"}


def test_an_unknown_job_is_a_404_on_every_call(api: Api) -> None:
    for method, path in (("GET", "/v1/jobs/nope"), ("POST", "/v1/jobs/nope/cancel"), ("POST", "/v1/jobs/nope/retry")):
        answer = api.call(method, path)
        assert (answer.status, answer.codes) == (404, ["request.unknown_job"])


def test_everything_else_is_a_problem_document(api: Api) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("PUT", "/v1/jobs", 405), ("DELETE", "/v1/jobs/x", 405),
                                 ("GET", "/v1/jobs/x/cancel", 405), ("GET", "/v1/jobs/../../etc", 404),
                                 ("GET", "/v1/jobs/", 404)):
        answer = api.call(method, path)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json"), path
        assert answer.json["status"] == status
    assert "POST" in api.call("PUT", "/v1/jobs").headers["allow"]


def test_no_answer_to_head_has_a_body(api: Api) -> None:
    for path, token, status in (("/v1/jobs", TOKEN, 200), ("/v1/jobs", None, 401), ("/v1/jobs/x", TOKEN, 404),
                                ("/x", TOKEN, 404)):
        answer = api.call("HEAD", path, token=token)
        assert (answer.status, answer.body) == (status, b""), path
        assert int(answer.headers["content-length"]) > 0


def test_lists_are_newest_first_and_paged_by_cursor(api: Api) -> None:
    keys = [submit(api, str(number)) for number in range(5)]
    seen, query = [], "limit=2"
    while True:
        page = api.call("GET", "/v1/jobs", query=query).json
        assert len(page["jobs"]) <= 2
        seen += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        query = f"limit=2&cursor={page['next']}"
    assert seen == [key.id for key in reversed(keys)]


def test_lists_are_filtered(api: Api) -> None:
    plain, labelled, failed = submit(api, "a"), submit(api, "b", labels={"show": "a=b"}), submit(api, "c")
    fail(api, failed)

    def ids(query: str) -> set[str]:
        return {job["id"] for job in api.call("GET", "/v1/jobs", query=query).json["jobs"]}
    assert ids("state=ERROR") == ids("error_code=input.truncated") == {failed.id}
    assert ids("state=PENDING,ERROR") == ids("state=pending&state=error") == {plain.id, labelled.id, failed.id}
    assert ids("label=show%3Da%3Db") == {labelled.id}
    assert ids("label=show%3Da%3Db&state=ERROR") == set()
    assert ids("preset=web-720p") == set()
    later = (utcnow() + timedelta(minutes=1)).isoformat().replace("+00:00", "Z")
    assert ids(f"since={later}") == set()
    assert len(ids("since=2020-01-01T00:00:00%2B02:00")) == 3


HALF_A_PAIR = base64.urlsafe_b64encode(b'[1,1,"\\ud800"]').decode().rstrip("=")  # what no database takes


@pytest.mark.parametrize(("query", "place"), [
    ("limit=0", "query.limit"), ("limit=501", "query.limit"), ("limit=1e9", "query.limit"), ("limit=-1", "query.limit"),
    ("limit=9999999999999999999999", "query.limit"), ("limit=", "query.limit"), ("limit=5&limit=6", "query.limit"),
    ("state=DONE", "query.state"), ("since=yesterday", "query.since"), ("since=2026-01-01T00:00:00", "query.since"),
    ("since=9999-99-99", "query.since"), ("label=x", "query.label"), ("label=%3Dx", "query.label"),
    ("colour=red", "query.colour"),
    ("cursor=zzz", "query.cursor"), ("cursor=" + "A" * 600, "query.cursor"), ("preset=%00", "query.preset"),
    ("cursor=%F0%9F%92%A9", "query.cursor"), (f"cursor={HALF_A_PAIR}", "query.cursor"),
    ("&".join(f"label=l{number}%3Dx" for number in range(17)), "query.label"),
])
def test_absurd_queries_are_refused_by_name(api: Api, query: str, place: str) -> None:
    answer = api.call("GET", "/v1/jobs", query=query)
    assert answer.status in (400, 422), answer.json
    assert answer.places == [place]


def test_an_unclaimed_job_is_cancelled_at_once_and_cancelling_again_changes_nothing(api: Api) -> None:
    key = submit(api)
    first = api.call("POST", f"/v1/jobs/{key.id}/cancel")
    assert (first.status, first.json["state"]) == (202, "CANCELLED")
    assert [job.state for job in api.changed] == [JobState.CANCELLED]
    assert api.call("POST", f"/v1/jobs/{key.id}/cancel").status == 200
    assert len(api.changed) == 1


def test_a_running_job_is_asked_to_stop(api: Api) -> None:
    key = submit(api)
    claim(api, key)
    answer = api.call("POST", f"/v1/jobs/{key.id}/cancel")
    assert (answer.status, answer.json["state"]) == (202, "PENDING")
    assert api.store.get(key).cancel_requested
    assert api.call("POST", f"/v1/jobs/{key.id}/cancel").status == 202
    assert api.changed == []


def test_another_final_state_cannot_be_cancelled(api: Api) -> None:
    key = submit(api)
    fail(api, key)
    answer = api.call("POST", f"/v1/jobs/{key.id}/cancel")
    assert (answer.status, answer.codes) == (409, ["request.wrong_state"])


def test_a_failed_job_is_retried_under_its_id_and_sent_again(api: Api) -> None:
    key = submit(api)
    fail(api, key)
    [delivery] = api.bus.jobs.receive(5, 0)
    delivery.ack()
    answer = api.call("POST", f"/v1/jobs/{key.id}/retry")
    assert (answer.status, answer.json["state"], answer.json["error"]) == (202, "PENDING", None)
    [again] = api.bus.jobs.receive(5, 0)
    assert isinstance(again.message, JobMessage) and again.message.key == key
    assert [job.state for job in api.changed] == [JobState.PENDING]


def test_a_job_that_is_not_final_cannot_be_retried(api: Api) -> None:
    assert api.call("POST", f"/v1/jobs/{submit(api).id}/retry").status == 409


def test_a_wait_answers_at_the_next_change(api: Api) -> None:
    key = submit(api)
    claim(api, key)
    waiting = gevent.spawn(api.call, "GET", f"/v1/jobs/{key.id}", query="wait=20&after=0")
    gevent.sleep(0)
    api.store.update(key, lifecycle.advance(OWNER, JobState.ENCODING, "ffmpeg", 0.0, utcnow()))
    begun = time.monotonic()
    api.waiters.wake(key)
    assert waiting.get(timeout=10).json["event_seq"] == 1
    assert time.monotonic() - begun < 5


def test_a_wait_notices_a_change_whose_hint_was_lost(api: Api) -> None:
    key = submit(api)
    claim(api, key)
    waiting = gevent.spawn(api.call, "GET", f"/v1/jobs/{key.id}", query="wait=20")
    gevent.sleep(0)
    api.store.update(key, lifecycle.advance(OWNER, JobState.ENCODING, "ffmpeg", 0.0, utcnow()))
    begun = time.monotonic()
    assert waiting.get(timeout=10).json["state"] == "ENCODING"
    assert time.monotonic() - begun < 5


def test_a_wait_for_a_change_that_was_long_ago_answers_at_once(api: Api) -> None:
    key = submit(api)
    fail(api, key)
    begun = time.monotonic()
    assert api.call("GET", f"/v1/jobs/{key.id}", query="wait=20&after=0").json["state"] == "ERROR"
    assert time.monotonic() - begun < 5


def test_a_wait_without_a_change_answers_when_its_time_is_over(api: Api) -> None:
    key = submit(api)
    begun = time.monotonic()
    assert api.call("GET", f"/v1/jobs/{key.id}", query="wait=0.2&after=0").json["event_seq"] == 0
    assert 0.2 <= time.monotonic() - begun < 5
    assert api.waiters._events == {}


def test_waits_end_when_the_server_stops(api: Api) -> None:
    key = submit(api)
    waiting = gevent.spawn(api.call, "GET", f"/v1/jobs/{key.id}", query="wait=60")
    gevent.sleep(0)
    api.waiters.close()
    assert waiting.get(timeout=10).status == 200


def test_no_project_takes_all_the_waits(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "WAITERS_OF_PROJECT_MAX", 3)
    monkeypatch.setattr(waiters, "WAITERS_MAX", 5)
    tokens = [api.tokens.make("t", name, [Scope.SUBMIT, Scope.READ])[1].reveal() for name in ("a", "b")]

    def wait(project: int, number: int) -> gevent.Greenlet[..., object]:
        body = api.body(dest=(api.media / f"{project}-{number}.mp4").as_uri())
        made = api.call("POST", "/v1/jobs", body, token=tokens[project]).json
        waiting = gevent.spawn(api.call, "GET", f"/v1/jobs/{made['id']}", query="wait=60", token=tokens[project])
        gevent.sleep(0)
        return waiting
    first, second = [wait(0, number) for number in range(4)], [wait(1, number) for number in range(3)]
    assert [waiting.dead for waiting in first + second] == [False, False, False, True, False, False, True]
    api.waiters.close()
    gevent.joinall(first + second, timeout=10, raise_error=True)
    assert api.waiters._waiting == {}


@pytest.mark.parametrize("query", ["wait=61", "wait=-1", "wait=x", "after=-1", "after=1.5.2", "wait=nan", "before=3"])
def test_waits_out_of_range_are_refused(api: Api, query: str) -> None:
    assert api.call("GET", f"/v1/jobs/{submit(api).id}", query=query).status == 422


def test_reading_from_a_store_out_of_reach_is_a_503(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(key: Key) -> Job:
        raise StoreUnavailable("busy")
    monkeypatch.setattr(api.store, "get", refuse)
    answer = api.call("GET", "/v1/jobs/x")
    assert answer.status == 503 and "retry-after" in answer.headers


def test_health_needs_no_token_and_readiness_tells_the_truth(api: Api) -> None:
    assert api.call("GET", "/healthz", token=None).json == {"status": "ok"}
    assert api.call("GET", "/readyz", token=None).status == 200
    api.not_ready = InfrastructureError("node.stopping", "canary-detail")
    answer = api.call("GET", "/readyz", token=None)
    assert answer.status == 503 and b"canary-detail" not in answer.body


def test_markup_in_names_stays_text(api: Api) -> None:
    key = submit(api, labels={"n": "<script>alert(1)</script>"})
    answer = api.call("GET", f"/v1/jobs/{key.id}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json["labels"]["n"] == "<script>alert(1)</script>"
