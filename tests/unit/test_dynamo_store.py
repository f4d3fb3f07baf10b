"""The DynamoDB store against what the service may do to it: throttle, leave parts undone, lose an answer, not be there."""

from __future__ import annotations

import http.client
import json
import math
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gevent import spawn_later
from gevent.event import Event
from structlog.testing import capture_logs

from nommerd import lifecycle
from nommerd.errors import ConfigError, InfrastructureError, InputError
from nommerd.job import Job, JobState, Key, Owner, Sweep, new_id, utcnow
from nommerd.store import base, dynamodb_calls
from nommerd.store.base import Document, JobExists, JobPage, JobQuery, Leader, StoreUnavailable, UnknownJob, WorkerRecord
from nommerd.store.cursor import Cursor
from nommerd.store.dynamodb import DynamoStore
from nommerd.store.dynamodb_items import recipe_key, recipe_place, shard_of
from nommerd.store.dynamodb_recipes import RECIPE_BYTES_MAX
from nommerd.store.dynamodb_table import TTL_ATTRIBUTE
from tests.contracts.lagging import LaggingClient, client, new_table
from tests.emulator import ACCESS_KEY, REGION, SECRET_KEY, emulator
from tests.rig import CANARY

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ME = Owner(worker="w", node="n", claim="c")
Answer = tuple[int, dict[str, Any]] | None  # of the service; None: let the call through


@pytest.fixture(autouse=True)
def _quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(dynamodb_calls, "BATCH_BACKOFF_SECONDS", 0.001)


def job(**fields: Any) -> Job:
    return Job(**{"id": new_id(), "pipeline": "web", "recipe": "r" * 64, "source": "file:///i", "dest": "file:///o",
                  "created": NOON, "updated": NOON, "write_id": new_id()} | fields)


def put(store: DynamoStore, **fields: Any) -> Job:
    made = job(**fields)
    store.create(made)
    return made


class Line:
    """A client of its own whose calls `answer(operation, request)` may answer in the service's stead; it counts them."""

    def __init__(self, answer: Callable[[str, Any], Answer] = lambda operation, request: None, tries: int = 1) -> None:
        self.client = emulator().clients()("dynamodb", tries=tries)
        self.calls: Counter[str] = Counter()
        self.answer = answer
        self.client.meta.events.register("before-send.dynamodb", self._before_send)

    def _before_send(self, request: Any, event_name: str, **_: Any) -> Any:
        from botocore.awsrequest import AWSResponse

        operation = event_name.rpartition(".")[2]
        self.calls[operation] += 1
        answer = self.answer(operation, request)
        return answer and AWSResponse(request.url, answer[0], {}, Raw(json.dumps(answer[1]).encode()))


class Raw:
    """The body of an answer, as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self._body


def fault(code: str, status: int = 400, message: str = "no") -> Answer:
    return status, {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}


def applied(request: Any) -> None:
    """Let the service have the request, and keep its answer from whoever asked."""
    where = urlsplit(request.url)
    line = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=10)
    line.request(request.method, where.path, request.body, {name: _text(value) for name, value in request.headers.items()})
    assert line.getresponse().status < 500
    line.close()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def test_a_job_that_moves_while_unfinished_ones_are_counted_is_counted_once() -> None:
    writer = DynamoStore(client(), new_table())
    made, moved = put(writer), Event()

    def answer(operation: str, request: Any) -> Answer:
        """The queries about sent jobs wait until the one about this job, unsent, is answered and it was sent."""
        if operation == "Query" and b'"SENT#' in request.body:
            moved.wait(5)
        elif operation == "Query" and f'"UNSENT#{shard_of(made.key)}"'.encode() in request.body:
            spawn_later(0.2, lambda: (writer.update(made.key, lifecycle.sent("m", NOON)), moved.set()))
        return None

    reader = DynamoStore(Line(answer).client, writer._table.name)
    assert reader.unfinished(10) == 1
    assert moved.is_set()


class TestFaults:
    def test_throttled_half_the_time_it_is_slower_and_loses_nothing(self) -> None:
        chance = random.Random(5)
        code = "ProvisionedThroughputExceededException"
        line = Line(lambda operation, request: fault(code) if chance.random() < 0.5 else None)
        store = DynamoStore(line.client, new_table())
        made = None
        while made is None:
            try:
                made = put(store)
            except StoreUnavailable:
                continue
        store.update(made.key, lifecycle.claim(ME, "m", 30, NOON), tries=99)
        done = store.update(made.key, lifecycle.finish(ME, [], [], NOON), tries=99)
        assert (done.version, done.state, [event.seq for event in done.events]) == (3, JobState.FINISHED, [1])

    @pytest.mark.parametrize(("code", "status"), [
        ("ProvisionedThroughputExceededException", 400), ("ThrottlingException", 400), ("RequestLimitExceeded", 400),
        ("InternalServerError", 500), ("ServiceUnavailable", 503), ("ExpiredTokenException", 400)])
    def test_what_may_pass_is_unavailable(self, code: str, status: int) -> None:
        store = DynamoStore(Line(lambda operation, request: fault(code, status)).client, "some-table")  # does not raise
        with pytest.raises(StoreUnavailable):
            store.get(Key("default", "x"))

    def test_no_answer_at_all_is_unavailable(self) -> None:
        store = DynamoStore(emulator().clients("http://127.0.0.1:9")("dynamodb", tries=1), "some-table")
        with pytest.raises(StoreUnavailable):
            store.ping()

    def test_a_write_that_botocore_repeats_because_its_answer_was_lost_succeeds(self) -> None:
        lose = [False]

        def answer(operation: str, request: Any) -> Answer:
            if not (lose[0] and operation == "PutItem"):
                return None
            lose[0] = False
            applied(request)
            return fault("InternalServerError", 500)

        line = Line(answer, tries=2)
        store = DynamoStore(line.client, new_table())
        made = job()
        leader = Leader(owner=ME, token=1, version=1, write_id="a")
        lose[0] = True
        store.create(made)
        lose[0] = True
        store.swap(made.evolve(version=2, write_id="w2"), 1)
        lose[0] = True
        store.swap_leader(leader, 0)
        kept = Document(kind="preset", scope="default", name="web", body="{}", expires=4e9)
        for version in range(2):
            kept = replace(kept, version=version + 1)
            lose[0] = True
            store.put_document(kept, version)
        assert (store.get(made.key).version, store.leader(), lose) == (2, leader, [False])
        assert store.document("preset", "default", "web") == kept
        assert line.calls["PutItem"] == 1 + 2 * 5  # a ping, and each write twice

    def test_what_a_batch_leaves_undone_is_asked_for_again(self) -> None:
        table = new_table()
        store = DynamoStore(Stingy(client()), table)
        made = [put(store, created=NOON + timedelta(seconds=number)) for number in range(30)]
        assert [one.id for one in store.list(JobQuery(limit=50)).jobs] == [one.id for one in reversed(made)]
        store.wipe()
        assert (store.list(JobQuery()).jobs, store.count("default")) == ([], {})

    def test_a_batch_that_is_never_done_is_unavailable(self) -> None:
        table = new_table()
        put(DynamoStore(client(), table))
        with pytest.raises(StoreUnavailable, match="undone"):
            DynamoStore(Stingy(client(), does=0), table).list(JobQuery())


class Stingy:
    """A client that does no more than a few parts of any batch."""

    def __init__(self, client: Any, does: int = 4) -> None:
        self._client, self._does = client, does

    def __getattr__(self, operation: str) -> Any:
        return getattr(self._client, operation)

    def batch_get_item(self, RequestItems: dict[str, Any]) -> Any:
        (table, how), = RequestItems.items()
        assert len(how["Keys"]) <= 100
        now, later = how["Keys"][:self._does], how["Keys"][self._does:]
        answer: dict[str, Any] = {"Responses": {}}
        if now:
            answer = self._client.batch_get_item(RequestItems={table: {**how, "Keys": now}})
        return answer | ({"UnprocessedKeys": {table: {**how, "Keys": later}}} if later else {})

    def batch_write_item(self, RequestItems: dict[str, Any]) -> Any:
        (table, wanted), = RequestItems.items()
        assert len(wanted) <= 25
        now, later = wanted[:self._does], wanted[self._does:]
        answer = self._client.batch_write_item(RequestItems={table: now})
        return answer | {"UnprocessedItems": {table: later} if later else {}}


class TestWhatTheOperatorMustDo:
    def test_a_missing_table_is_told_at_once_with_what_makes_it(self) -> None:
        with pytest.raises(ConfigError, match="no-such-table") as caught:
            DynamoStore(client(), "no-such-table")
        assert (caught.value.code, "nommerd aws setup" in caught.value.hint) == ("config.store", True)

    def test_a_table_of_another_make_is_told_at_once(self) -> None:
        name = f"other-{new_id()}"
        client().create_table(TableName=name, BillingMode="PAY_PER_REQUEST",
                              AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
                              KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}])
        with pytest.raises(ConfigError, match=name):
            DynamoStore(client(), name)

    def test_a_permission_that_is_missing_is_named(self) -> None:
        line = Line(lambda operation, request: fault("AccessDeniedException", message="not authorized"))
        with pytest.raises(ConfigError, match="dynamodb:PutItem") as caught:
            DynamoStore(line.client, "some-table")
        assert caught.value.code == "config.aws_permission"

    def test_credentials_that_aws_does_not_know_are_told(self) -> None:
        line = Line(lambda operation, request: fault("UnrecognizedClientException", message="invalid token"))
        with pytest.raises(ConfigError) as caught:
            DynamoStore(line.client, "some-table")
        assert (caught.value.code, CANARY in str(caught.value)) == ("config.aws", False)

    @pytest.mark.parametrize("name", ["", "ab", "a/b", "a" * 256])
    def test_a_name_that_no_table_can_have_is_refused_before_any_call(self, name: str) -> None:
        line = Line()
        with pytest.raises(ConfigError):
            DynamoStore(line.client, name)
        assert not line.calls

    @pytest.mark.parametrize("daemon", ["feeder", "worker"])
    def test_a_daemon_without_its_table_exits_2(self, tmp_path: Path, daemon: str) -> None:
        data = tmp_path / "data"
        data.mkdir()
        (tmp_path / "c.yaml").write_text(
            "store: dynamodb://no-such-table\nbus: memory://\npaths: {data: data}\napi: {port: 0}\n"
            "worker: {health_port: null}\n"
            f"aws: {{region: {REGION}, endpoint_url: '{emulator().url}', access_key_id: {ACCESS_KEY}, "
            f"secret_access_key: '{SECRET_KEY}'}}\n", encoding="utf-8")
        ran = subprocess.run([sys.executable, "-m", "nommerd", daemon, "-c", str(tmp_path / "c.yaml"),
                              *(["--local"] if daemon == "worker" else [])],
                             capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
        assert (ran.returncode, "nommerd aws setup" in ran.stderr) == (2, True), ran.stderr
        assert CANARY not in ran.stdout + ran.stderr


class TestItems:
    def raw(self, table: str, key: Key) -> dict[str, Any]:
        where = {"pk": {"S": f"job#{key.project}#{key.id}"}, "sk": {"S": "job"}}
        found: dict[str, Any] = client().get_item(TableName=table, Key=where)["Item"]
        return found

    def test_finals_expire_after_the_configured_days_until_they_are_retried(self) -> None:
        table = new_table()
        store = DynamoStore(client(), table, keep_finished_days=2)
        made = put(store)
        ended = store.update(made.key, lifecycle.cancel(NOON))
        assert self.raw(table, made.key)[TTL_ATTRIBUTE] == {"N": str(int(NOON.timestamp() + 2 * 86400))}
        assert store.list(JobQuery()).jobs == [ended]  # AWS deletes late, and until then it is there
        store.update(made.key, lifecycle.retry(NOON))
        assert TTL_ATTRIBUTE not in self.raw(table, made.key)

    def test_a_heartbeat_that_nobody_renews_expires_too(self) -> None:
        table = new_table()
        DynamoStore(client(), table, keep_finished_days=1).put_worker(WorkerRecord(
            name="w", node="n", state="ACTIVE", slots=1, active=(), version="1", encoders=(), reported=NOON))
        found = client().get_item(TableName=table, Key={"pk": {"S": "workers"}, "sk": {"S": "w"}})["Item"]
        assert abs(int(found[TTL_ATTRIBUTE]["N"]) - time.time() - 86400) < 60

    def test_a_document_that_expires_is_left_to_aws_for_two_days(self) -> None:
        table, now = new_table(), time.time()
        store = DynamoStore(client(), table)
        for name, age in (("old", 3), ("new", 1)):
            store.put_document(Document(kind="log", scope="p/1", name=name, body="x", expires=now - age * 86400 + 0.5), 0)
        store.delete_finals(NOON, 10)
        left, = client().query(TableName=table, KeyConditionExpression="pk = :pk",
                               ExpressionAttributeValues={":pk": {"S": "doc#log#p/1"}})["Items"]
        assert (left["sk"], left[TTL_ATTRIBUTE]) == ({"S": "new"}, {"N": str(math.ceil(now - 86400 + 0.5))})

    def test_a_record_that_cannot_be_read_hides_no_other(self) -> None:
        table = new_table()
        store = DynamoStore(client(), table)
        bad, good = put(store), put(store)
        spoiled = self.raw(table, bad.key)
        spoiled["body"]["S"] = spoiled["body"]["S"].replace('"project":"default"', '"project":{}')
        client().put_item(TableName=table, Item=spoiled)
        with capture_logs() as lines:
            assert store.due_for_sweep(Sweep.UNSENT, NOON.timestamp() + 3600, 10) == [good]
            assert store.list(JobQuery()).jobs == [good]
        assert [line["event"] for line in lines] == ["record.unreadable"] * 2
        with pytest.raises(InfrastructureError):
            store.get(bad.key)

    def test_a_record_with_every_field_at_its_bound_is_stored(self) -> None:
        store = DynamoStore(client(), new_table())
        labels = {f"label-{number}": "v" * 200 for number in range(16)}
        made = put(store, labels=labels, preset="p" * 60, params={"x": "é" * 1500})
        assert store.list(JobQuery(labels=made.labels)).jobs == [made]

    def test_a_recipe_too_large_for_an_item_is_refused_with_its_reason(self) -> None:
        store = DynamoStore(client(), new_table())
        store.put_recipe("fits", "x" * RECIPE_BYTES_MAX)
        assert len(store.get_recipe("fits")) == RECIPE_BYTES_MAX
        with pytest.raises(InputError) as caught:
            store.put_recipe("not", "é" * RECIPE_BYTES_MAX)
        assert caught.value.code == "recipe.too_large"

    @pytest.mark.parametrize("id", ["x" * 3000, "\ud800", ""])
    def test_an_id_no_job_can_have_is_unknown(self, id: str) -> None:
        with pytest.raises(UnknownJob):
            DynamoStore(client(), new_table()).get(Key("default", id))

    def test_a_recipe_that_is_used_again_is_as_good_as_new(self) -> None:
        table = new_table()
        store = DynamoStore(client(), table, 3600.0)
        for name in ("used", "unused"):
            store.put_recipe(name, "{}")
            found = client().get_item(TableName=table, Key=recipe_key(name))["Item"]
            long_ago = time.time() - 3000
            found |= {"stored": {"N": f"{long_ago:.6f}"}, "age_at": {"S": recipe_place(name, long_ago).at}}
            client().put_item(TableName=table, Item=found)
        store.put_recipe("used", "{}")  # a submission, its job not created yet
        DynamoStore(client(), table, 1800.0).delete_finals(NOON, 10)
        assert store.get_recipe("used") == "{}"
        with pytest.raises(LookupError):
            store.get_recipe("unused")

    def test_a_listing_that_ends_before_it_begins_asks_for_nothing(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        made = put(store)
        cursor = Cursor.of(made).encode()
        later = NOON + timedelta(seconds=1)
        assert store.list(JobQuery(cursor=cursor, since=later)) == JobPage([], None)
        assert store.due_for_sweep(Sweep.UNSENT, NOON.timestamp() - 60, 10, made) == []
        assert not line.calls["Query"]  # AWS refuses bounds that are crossed; the emulator does not


class TestLaggingIndexes:
    def store(self) -> tuple[DynamoStore, LaggingClient]:
        """One whose indexes stand still until they are let go."""
        table = new_table()
        behind = LaggingClient(table, lag_seconds=(3600.0, 3600.0))
        return DynamoStore(behind, table), behind

    def test_an_entry_whose_job_has_moved_on_is_dropped(self) -> None:
        store, behind = self.store()
        made = put(store, notify_url="https://h/x")
        behind.let_go()
        after = NOON.timestamp() + 3600
        assert store.due_for_sweep(Sweep.UNSENT, after, 10) == [made]
        store.update(made.key, lifecycle.cancel(NOON))  # no index knows
        assert store.due_for_sweep(Sweep.UNSENT, after, 10) == []
        assert store.list(JobQuery(states=frozenset({JobState.PENDING}))).jobs == []
        assert store.list(JobQuery()).jobs == [store.get(made.key)]
        behind.let_go()
        assert store.webhooks_due(after, 10) == [store.get(made.key)]
        store.update(made.key, lifecycle.events_accepted(1))
        assert store.webhooks_due(after, 10) == []

    def test_a_page_is_full_however_many_entries_before_it_are_stale(self) -> None:
        store, behind = self.store()
        made = [put(store, created=NOON + timedelta(seconds=number)) for number in range(12)]
        behind.let_go()
        for one in made[:8]:
            store.update(one.key, lifecycle.cancel(NOON))
        after = NOON.timestamp() + 3600
        assert [one.id for one in store.due_for_sweep(Sweep.UNSENT, after, 3)] == [one.id for one in made[8:11]]
        page = store.list(JobQuery(states=frozenset({JobState.PENDING}), limit=2))
        rest = store.list(JobQuery(states=frozenset({JobState.PENDING}), limit=2, cursor=page.next))
        assert [one.id for one in page.jobs + rest.jobs] == [one.id for one in reversed(made[8:])]

    def test_a_job_that_two_states_show_is_listed_once(self) -> None:
        store, behind = self.store()
        made = put(store)
        behind.let_go()
        moved = lifecycle.claim(ME, "m", 30, NOON)(made).move(JobState.ENCODING, NOON)
        store.swap(moved.evolve(version=2), 1)
        behind.torn = lambda partition: "#PENDING#" not in partition  # each partition of an index lags by itself
        both = frozenset({JobState.PENDING, JobState.ENCODING})
        assert store.list(JobQuery(states=both)).jobs == [store.get(made.key)]
        assert store.list(JobQuery(states=both, limit=1)).next is None

    def test_a_job_that_was_retried_unseen_is_not_deleted(self) -> None:
        store, behind = self.store()
        made = put(store)
        store.update(made.key, lifecycle.cancel(NOON))
        behind.let_go()
        again = store.update(made.key, lifecycle.retry(NOON))
        assert store.delete_finals(NOON + timedelta(days=1), 10) == 0
        assert store.get(made.key) == again

    def test_a_recipe_whose_job_the_index_does_not_show_yet_is_kept_by_its_grace(self) -> None:
        store, behind = self.store()
        store.put_recipe("fresh", "{}")
        behind.let_go()
        put(store, recipe="fresh")
        store.delete_finals(utcnow(), 10)
        assert store.get_recipe("fresh") == "{}"


class TestCost:
    def test_a_feeder_with_nothing_to_do_makes_sixteen_queries_a_look_and_reads_no_record(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        ended = put(store)
        store.update(ended.key, lifecycle.cancel(NOON))
        line.calls.clear()
        for kind in Sweep:
            store.due_for_sweep(kind, utcnow().timestamp(), 200)
        store.webhooks_due(utcnow().timestamp(), 200)
        assert line.calls == {"Query": 16}

    def test_an_update_is_one_read_and_one_write(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        made = put(store)
        line.calls.clear()
        store.update(made.key, lifecycle.claim(ME, "m", 30, NOON))
        store.report_progress(made.key, 1, 0.5, "encode", 1.0)
        assert line.calls == {"GetItem": 1, "PutItem": 1}

    def test_a_rare_label_is_found_without_reading_the_records_of_others(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        wanted = put(store, labels={"team": "rare"}, created=NOON - timedelta(days=1))
        for number in range(60):
            put(store, labels={"team": "news"}, created=NOON + timedelta(seconds=number))
        line.calls.clear()
        assert store.list(JobQuery(labels={"team": "rare"}, limit=5)).jobs == [wanted]
        assert line.calls["BatchGetItem"] == 1

    def test_endings_are_told_by_the_index_alone_however_many_jobs_other_projects_have(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        for number in range(30):
            ended = put(store, project="default" if number == 7 else "other")
            store.update(ended.key, lifecycle.cancel(NOON))
        line.calls.clear()
        assert [one.state for one in store.endings("default", NOON, 100)] == [JobState.CANCELLED]
        assert line.calls == {"Query": 4}

    def test_the_oldest_pending_job_is_found_by_its_first_entries_and_one_record(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        made = [put(store, created=NOON + timedelta(seconds=number)) for number in range(12)]
        line.calls.clear()
        assert store.oldest_pending("default") == made[0].created
        assert line.calls == {"Query": 4, "BatchGetItem": 1}

    def test_creating_a_taken_key_reads_nothing_more(self) -> None:
        line = Line()
        store = DynamoStore(line.client, new_table())
        made = put(store)
        line.calls.clear()
        with pytest.raises(JobExists) as caught:
            store.create(job(id=made.id))
        assert (caught.value.job, line.calls) == (made, {"PutItem": 1})
