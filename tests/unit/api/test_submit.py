from __future__ import annotations

import json
from hashlib import sha256
from io import StringIO

import pytest

from nommerd.api.answers import JobAnswer
from nommerd.api.body import BODY_BYTES_MAX
from nommerd.bus.base import BusUnavailable
from nommerd.job import Job, JobState, Key
from nommerd.messages import JobMessage
from nommerd.pipeline.recipe import Recipe
from nommerd.store.base import StoreUnavailable
from tests.unit.api.calls import Api


def record(api: Api, job_id: str) -> Job:
    return api.store.get(Key("default", job_id))


def test_a_submission_is_stored_sent_and_answered_with_the_job(api: Api) -> None:
    answer = api.submit(labels={"show": "news"}, priority="high", params={"width": 320})
    assert answer.status == 201
    job = answer.json
    JobAnswer.model_validate_json(answer.body)
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["event_seq"], job["progress"], job["events"]) == ("PENDING", 0, 0, [])
    assert job["labels"] == {"show": "news"} and job["params"] == {"width": 320} and job["priority"] == "high"
    assert job["created"].endswith("Z") and job["finished"] is None
    stored = record(api, job["id"])
    assert stored.state is JobState.PENDING and stored.message_id is None
    [delivery] = api.bus.jobs.receive(5, 0)
    assert isinstance(delivery.message, JobMessage) and delivery.message.key == stored.key
    assert delivery.message.priority == "high"


def test_the_recipe_is_stored_with_the_params_filled_in(api: Api) -> None:
    job = api.submit(params={"width": 320}).json
    recipe = Recipe.decode(api.store.get_recipe(job["recipe"]))
    assert recipe.pipeline == "copy" and recipe.params["width"] == 320


def test_the_same_recipe_is_resolved_and_stored_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[str] = []
    monkeypatch.setattr(api.store, "put_recipe", lambda hash, document: stored.append(hash))
    for number in range(3):
        assert api.submit(dest=(api.media / f"{number}.mp4").as_uri()).status == 201
    assert api.submit(params={"width": 100}).status == 201
    assert len(stored) == len(set(stored)) == 2


def test_secrets_of_uris_are_encrypted_and_never_shown(api: Api) -> None:
    answer = api.submit(source="https://user:hidden1@cdn.example/in.mov?sig=hidden2", dest="https://up.example/o.mp4?key=hidden3",
                        notify_url="https://hook.example/n?token=hidden4")
    assert answer.status == 201
    assert b"hidden" not in answer.body
    stored = record(api, answer.json["id"])
    assert b"hidden" not in stored.encode()
    assert stored.source == "https://cdn.example/in.mov" and stored.notify_url == "https://hook.example/n"
    assert stored.secrets is not None
    assert api.keyring.decrypt(stored.secrets) == {
        "source": "https://user:hidden1@cdn.example/in.mov?sig=hidden2", "dest": "https://up.example/o.mp4?key=hidden3",
        "notify_url": "https://hook.example/n?token=hidden4"}


def test_nothing_is_encrypted_where_nothing_is_secret(api: Api) -> None:
    assert record(api, api.submit().json["id"]).secrets is None


def test_a_destination_that_exists_is_refused_unless_overwrite_is_asked_for(api: Api) -> None:
    (api.media / "out.mp4").write_bytes(b"there")
    refused = api.submit()
    assert (refused.status, refused.codes, refused.places) == (409, ["dest.exists"], ["body.dest"])
    assert api.submit(overwrite=True).status == 201


def test_a_destination_that_is_the_source_is_refused(api: Api) -> None:
    answer = api.submit(dest=api.source.as_uri(), overwrite=True)
    assert (answer.status, answer.codes) == (422, ["dest.is_source"])
    (api.media / "link.mov").symlink_to(api.source)
    assert api.submit(dest=(api.media / "link.mov").as_uri(), overwrite=True).codes == ["dest.is_source"]


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "file:///nowhere/../etc/passwd", "ftp://host/a", "pipe:0", "data:,x",
                                 "concat:a|b", "http://127.0.0.1/a", "http://[::1]/a", "http://169.254.169.254/latest",
                                 "gibberish"])
def test_sources_that_are_not_allowed_are_refused_with_their_place(api: Api, uri: str) -> None:
    answer = api.submit(source=uri)
    assert answer.status == 422
    assert answer.places == ["body.source"]
    assert answer.codes[0].startswith("source.")


@pytest.mark.parametrize("uri", ['https://user:pa"ss@h.example/', "https://h.example/<a>", "https://h.example/a b",
                                 "https://é.example/"])
def test_an_address_that_is_not_escaped_is_refused_before_anything_reads_it(api: Api, uri: str) -> None:
    answer = api.submit(source=uri)
    assert (answer.status, answer.places, answer.codes) == (422, ["body.source"], ["request.invalid"])
    assert b"ss@" not in answer.body


def test_faults_of_source_and_destination_are_told_together(api: Api) -> None:
    answer = api.submit(source="ftp://a/b", dest="ftp://a/c", notify_url="http://127.0.0.1/x")
    assert answer.status == 422
    assert answer.places == ["body.source", "body.dest", "body.notify_url"]


@pytest.mark.parametrize("url", ["http://127.0.0.1/hook", "http://localhost/hook", "http://10.0.0.1/", "http://[::1]/",
                                 "http://169.254.169.254/", "ftp://host/x", "file:///etc/passwd", "javascript:alert(1)"])
def test_a_receiver_that_may_not_be_reached_is_refused_at_submit(api: Api, url: str) -> None:
    answer = api.submit(notify_url=url)
    assert (answer.status, answer.places) == (422, ["body.notify_url"])


def test_a_notify_url_needs_a_pipeline_that_notifies(api: Api) -> None:
    answer = api.submit(pipeline="silent", notify_url="https://hook.example/")
    assert (answer.status, answer.codes) == (422, ["request.no_notify"])


def test_unknown_names_and_params_are_named_with_what_there_is(api: Api) -> None:
    unknown = api.submit(pipeline="copi")
    assert (unknown.status, unknown.codes, unknown.places) == (422, ["recipe.unknown_pipeline"], ["body.pipeline"])
    assert unknown.json["title"] == "Unprocessable Content"  # whatever this Python calls it
    param = api.submit(params={"widht": 3})
    assert (param.status, param.codes, param.places) == (422, ["recipe.unknown_param"], ["body.params.widht"])
    assert api.submit(params={"width": True}).places == ["body.params.width"]
    assert api.submit(params={"width": 4}).places == ["body.params.width"]


def test_each_fault_of_a_body_is_told_with_its_place(api: Api) -> None:
    answer = api.call("POST", "/v1/jobs", {"source": 5, "dest": "", "pipeline": "copy", "overwrite": 1, "priority": "urgent",
                                           "labels": {"a": 1}, "params": {"p": [1]}, "desst": "x", "on_damage": "ignore"})
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.places) == {"body.source", "body.dest", "body.overwrite", "body.priority", "body.labels.a",
                                  "body.params.p", "body.desst", "body.on_damage"}
    assert len(answer.places) == 8
    hints = {error["place"]: error["hint"] for error in answer.json["errors"]}
    assert "dest" in hints["body.desst"]


def test_missing_fields_are_named(api: Api) -> None:
    answer = api.call("POST", "/v1/jobs", {})
    assert set(answer.places) == {"body.source", "body.dest"}
    assert api.submit(pipeline=None).codes == ["request.invalid"]
    assert api.submit(preset="web-720p").places == ["body.preset"]


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_values_are_not_coerced(api: Api, value: object) -> None:
    assert api.submit(source=value).status == 422
    assert api.submit(overwrite="true").places == ["body.overwrite"]


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\u202eb", "a\x7fb", "\ud800"])
def test_control_characters_are_refused_in_names_labels_and_params(api: Api, text: str) -> None:
    for more in ({"labels": {"name": text}}, {"labels": {text: "x"}}, {"preset": text, "pipeline": None},
                 {"params": {"p": text}}, {"params": {text: 1}}, {"source": f"file:///{text}"}, {"notify_url": f"https://h.example/{text}"}):
        answer = api.submit(**more)
        assert answer.status == 422, more
        assert len(answer.codes) == 1
        answer.body.decode()


@pytest.mark.parametrize(("body", "says"), [
    (b"", "empty"), (b"{", "mid-JSON"), (b'{"a": "b', "mid-JSON"), (b'{"a": 1,}', "not JSON"), (b'{"a": NaN}', "NaN"),
    (b'{"a": -Infinity}', "Infinity"), (b'{"a": 1e999}', "out of range"), (b'{"a": 1, "a": 2}', "twice"),
    (b'{"o": {"x\\u0000": 1, "x\\u0000": 2}}', "twice"), (b"[" * 100_000, "deep"), (b'{"a":' * 50_000, "deep"),
    (b'{"a": "\xff"}', "UTF-8"), (b'{"a": ' + b"9" * 5000 + b"}", "too long"), (b"nonsense", "not JSON"),
])
def test_what_is_not_plain_json_is_refused_with_the_reason(api: Api, body: bytes, says: str) -> None:
    answer = api.call("POST", "/v1/jobs", body)
    assert answer.status == 400
    assert says in answer.json["detail"]


@pytest.mark.parametrize("depth", [33, 300, *range(960, 995)])
def test_a_body_nested_as_deep_as_can_just_be_read_is_refused_like_a_deeper_one(api: Api, depth: int) -> None:
    for body in (b'{"a":' + b"[" * depth + b"]" * depth + b"}", b'{"a":' * depth + b"1" + b"}" * depth):
        answer = api.call("POST", "/v1/jobs", body, HTTP_IDEMPOTENCY_KEY=f"key-{depth}")
        assert (answer.status, answer.codes) == (400, ["request.bad_json"])
        assert "deep" in answer.json["detail"]


@pytest.mark.parametrize("body", [
    {f"field-{number}": 1 for number in range(12_000)}, {"labels": {f"label-{number}": 1 for number in range(12_000)}},
    {"inputs": {"captions": [[]] * 12_000}}])
def test_a_body_of_very_many_values_is_refused_before_each_is_looked_at(api: Api, body: dict[str, object]) -> None:
    answer = api.call("POST", "/v1/jobs", body)
    assert (answer.status, answer.codes, answer.places) == (413, ["request.too_large"], ["body"])


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_a_body_that_is_no_object_is_refused(api: Api, body: bytes) -> None:
    assert api.call("POST", "/v1/jobs", body).codes == ["request.bad_body"]


def test_a_body_over_the_limit_is_refused_unread(api: Api) -> None:
    answer = api.call("POST", "/v1/jobs", b" " * (BODY_BYTES_MAX + 1))
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    undeclared = api.call("POST", "/v1/jobs", b" " * (BODY_BYTES_MAX + 1), CONTENT_LENGTH="")
    assert undeclared.status == 413
    assert api.call("POST", "/v1/jobs", b" " * BODY_BYTES_MAX).status == 400


def test_sizes_of_fields_are_bounded(api: Api) -> None:
    for more in ({"source": "https://h.example/" + "a" * 2048}, {"labels": {str(i): "x" for i in range(17)}},
                 {"labels": {"n": "x" * 101}}, {"params": {"p": "x" * 2000}}, {"pipeline": "x" * 101},
                 {"inputs": {"a": []}}, {"inputs": {"a": [{"uri": "https://h.example/" + str(i)} for i in range(17)]}}):
        assert api.submit(**more).status == 422, more


def test_a_record_that_would_grow_too_large_is_refused(api: Api) -> None:
    long = "https://h.example/" + "a" * 2000
    answer = api.submit(source=long + "1?s=1", dest=long + "2?s=2", notify_url=long + "3?s=3")
    assert (answer.status, answer.codes) == (422, ["request.too_large"])


def test_the_same_key_and_body_give_the_same_job(api: Api) -> None:
    first, second = api.submit("key-1"), api.submit("key-1")
    assert (first.status, second.status) == (201, 200)
    assert first.json["id"] == second.json["id"]
    assert len(api.bus.jobs.receive(5, 0)) == 1
    reordered = json.dumps(dict(reversed(api.body().items())), indent=3).encode()
    assert api.call("POST", "/v1/jobs", reordered, HTTP_IDEMPOTENCY_KEY="key-1").json["id"] == first.json["id"]
    assert api.submit("key-2").json["id"] != first.json["id"]


def test_the_same_key_with_another_body_is_a_conflict(api: Api) -> None:
    api.submit("key-1")
    answer = api.submit("key-1", overwrite=True)
    assert (answer.status, answer.codes) == (409, ["idempotency.conflict"])


def test_a_weak_password_in_an_address_cannot_be_guessed_from_the_record(api: Api) -> None:
    wanted = api.body(source="https://user:1234@media.example/in.mov")
    job_id = api.call("POST", "/v1/jobs", wanted, HTTP_IDEMPOTENCY_KEY="key-1").json["id"]
    kept = record(api, job_id).request_hash
    assert kept is not None
    guesses = (json.dumps(wanted, sort_keys=True, separators=(",", ":")), json.dumps(wanted))
    assert kept not in {sha256(guess.encode()).hexdigest() for guess in guesses}
    assert api.keyring.recognises(kept, guesses[0])


def test_a_repeated_key_is_answered_even_when_the_destination_exists_by_now(api: Api) -> None:
    first = api.submit("key-1")
    (api.media / "out.mp4").write_bytes(b"done")
    assert (api.submit("key-1").status, api.submit("key-1").json["id"]) == (200, first.json["id"])


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(api: Api, key: str) -> None:
    answer = api.call("POST", "/v1/jobs", api.body(), HTTP_IDEMPOTENCY_KEY=key)
    assert (answer.status, answer.places) == (422, ["header.Idempotency-Key"])


def test_a_store_out_of_reach_is_a_503_that_says_when_to_come_back(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: Job) -> None:
        raise StoreUnavailable("The disk is full.")
    monkeypatch.setattr(api.store, "create", refuse)
    answer = api.submit()
    assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
    assert api.bus.jobs.depth().visible == 0


def test_a_job_is_accepted_though_the_bus_is_out_of_reach(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(message: object, delay_seconds: float = 0.0) -> str:
        raise BusUnavailable("reset")
    monkeypatch.setattr(api.bus.jobs, "send", refuse)
    answer = api.submit()
    assert answer.status == 201
    assert record(api, answer.json["id"]).message_id is None
    assert not api.sending.is_out(record(api, answer.json["id"]))


def test_an_unexpected_fault_is_logged_and_shows_nothing_of_itself(
        api: Api, log: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("internal-detail")
    monkeypatch.setattr(api.store, "create", fail)
    answer = api.submit()
    assert (answer.status, answer.codes) == (500, ["internal.error"])
    assert b"internal-detail" not in answer.body and b"Traceback" not in answer.body
    assert "internal-detail" in log.getvalue() and "Traceback" in log.getvalue()
