"""What only the SimpleDB store can meet: values of a kilobyte, text that sorts as text, torn items, faults of the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import gevent
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from nommerd import lifecycle
from nommerd.aws.clients import Clients
from nommerd.config import Aws
from nommerd.errors import ConfigError, InfrastructureError
from nommerd.job import Job, JobState, Key, Owner, Sweep, new_id
from nommerd.secrets import Secret
from nommerd.store import base, open_store
from nommerd.store.base import (
    Conflict,
    Document,
    JobExists,
    JobQuery,
    Leader,
    StoreUnavailable,
    UnknownJob,
    WorkerRecord,
)
from nommerd.store.simpledb import SimpleStore
from nommerd.store.simpledb_domain import domain
from nommerd.store.simpledb_items import PART_BYTES, document, job_attributes, job_item, joined, split
from nommerd.store.simpledb_select import COMPARISONS_MAX, listed, padded, quoted, quoted_name
from nommerd.store.simpledb_texts import GROUP_PARTS
from tests.emulator import ACCESS_KEY, REGION, account
from tests.rig import free_port
from tests.simpledb_select import parse
from tests.simpledb_server import Fault, SimpleDBServer

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
LATER = (NOON + timedelta(days=1)).timestamp()
D = "jobs"
NASTY = ["it's", 'say "so"', "a`b``c", "100%", "%", "\\", "x' or place > '", "é\u2028ü", "日本\U0001f3ac", "~", "=", "",
         " lead", "a/b?c&d"]
S = JobState


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleDBServer]:
    with SimpleDBServer() as started:
        yield started


@pytest.fixture(scope="module")
def client(server: SimpleDBServer) -> Any:
    return Clients(account(server.url))("sdb")


@pytest.fixture(autouse=True)
def _fresh(server: SimpleDBServer, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(base, "BACKOFF_SECONDS", 0.0005)
    server.service.domains.clear()
    server.service.faults.clear()
    client.create_domain(**domain(D))
    yield
    structlog.reset_defaults()


@pytest.fixture
def store(client: Any) -> SimpleStore:
    return SimpleStore(client, D)


def job(**fields: Any) -> Job:
    at = fields.setdefault("created", NOON)
    return Job(**{"id": new_id(), "pipeline": "web", "recipe": "r" * 64, "source": "file:///in.mov", "dest": "file:///out.mp4",
                  "updated": at, "write_id": new_id()} | fields)


def put(store: SimpleStore, **fields: Any) -> Job:
    made = job(**fields)
    store.create(made)
    return made


def ids(jobs: Any) -> list[str]:
    return [one.id for one in jobs]


def calls(server: SimpleDBServer, act: Callable[[], Any]) -> list[str]:
    """What it asked the service for."""
    before = len(server.service.calls)
    act()
    return server.service.calls[before:]


def held(client: Any, item: str) -> dict[str, str]:
    answer = client.get_attributes(DomainName=D, ItemName=item, ConsistentRead=True)
    return {pair["Name"]: pair["Value"] for pair in answer.get("Attributes", [])}


def items(client: Any, like: str = "%") -> list[str]:
    expression = f"select itemName() from {D} where itemName() like {quoted(like)}"
    found = client.select(SelectExpression=expression, ConsistentRead=True)
    return sorted(item["Name"] for item in found.get("Items", []))


class TestText:
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=4000))
    def test_pieces_are_small_whole_characters_and_come_together_again(self, text: str) -> None:
        pieces = split(text)
        assert "".join(pieces) == text
        assert all(len(piece.encode()) <= PART_BYTES for piece in pieces)
        assert all(len(piece.encode()) > PART_BYTES - 4 for piece in pieces[:-1])

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_a_document_comes_back_and_holds_nothing_that_xml_cannot(self, text: str) -> None:
        attributes = document(json.dumps(text, ensure_ascii=False))
        assert json.loads(joined(attributes)) == text
        assert not [mark for value in attributes.values() for mark in value
                    if mark < " " or "\x7f" <= mark <= "\x9f" or ord(mark) & 0xFFFE == 0xFFFE]

    @given(st.integers(-10**17, 10**17), st.integers(-10**17, 10**17))
    def test_numbers_sort_as_text_the_way_they_do(self, one: int, other: int) -> None:
        assert (padded(one) < padded(other)) == (one < other)
        assert len(padded(one)) == 19

    @given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
    def test_any_text_can_be_quoted(self, value: str, name: str) -> None:
        select = parse(f"select * from {quoted_name(name)} where {quoted_name(name)} = {quoted(value)} limit 5")
        assert (select.domain, select.limit) == (name, 5)


class TestRecords:
    @pytest.mark.parametrize("text", [*NASTY, "\x00\x1f\x7f\x85\ufffe\uffff\U0001ffff" * 20, "é" * 1500, "\U0001f3ac" * 700])
    def test_a_record_of_any_text_comes_back_equal(self, store: SimpleStore, text: str) -> None:
        made = put(store, source=f"file:///{text}", params={"text": text})
        assert store.get(made.key) == made
        assert store.list(JobQuery()).jobs == [made]

    def test_parts_of_an_earlier_longer_record_are_not_read(self, store: SimpleStore, client: Any) -> None:
        made = put(store, dest="file:///" + "d" * 5000)
        changed = made.evolve(version=2, write_id="w2", dest="file:///short")
        store.swap(changed, 1)
        assert store.get(made.key) == changed
        assert ids(store.due_for_sweep(Sweep.UNSENT, LATER, 5)) == [made.id]
        left = held(client, job_item(made.key))
        assert (left["parts"], "part005" in left) == ("1", True)

    def test_a_write_is_one_call_and_a_read_is_one(self, server: SimpleDBServer, store: SimpleStore) -> None:
        made = job(dest="file:///" + "d" * 6000, labels={f"l{number}": "x" for number in range(16)})
        assert calls(server, lambda: store.create(made)) == ["PutAttributes"]
        assert calls(server, lambda: store.get(made.key)) == ["GetAttributes"]
        assert calls(server, lambda: store.update(made.key, lifecycle.cancel(NOON))) == ["GetAttributes", "PutAttributes"]
        assert calls(server, lambda: store.report_progress(made.key, 1, 0.5, None, None)) == []

    def test_a_record_with_more_than_simpledb_takes_is_refused_whole(self, store: SimpleStore, client: Any) -> None:
        for fields in ({"labels": {str(number): "" for number in range(300)}}, {"labels": {"x" * 1020: "y"}},
                       {"preset": "p" * 1024}, {"id": "i" * 1100}, {"id": "é" * 300}):
            with pytest.raises(InfrastructureError) as caught:
                store.create(job(**fields))
            assert (caught.value.code, caught.value.retryable) == ("internal.record_too_large", False)
        assert items(client, "job/%") == []

    def test_ids_that_no_job_can_have_are_unknown(self, store: SimpleStore) -> None:
        for id in ("x" * 2000, "é" * 500, "", "a/b", "a'b", "\x00", "\ud800"):
            with pytest.raises(UnknownJob):
                store.get(Key("default", id))

    def test_keys_never_run_together(self, store: SimpleStore) -> None:
        keys = [("a", "b/c"), ("a/b", "c"), ("a%2Fb", "c"), ("a", "b%2Fc")]
        made = [put(store, project=project, id=id, dest=f"file:///{number}") for number, (project, id) in enumerate(keys)]
        assert [store.get(one.key) for one in made] == made
        assert ids(store.list(JobQuery(project="a/b")).jobs) == ["c"]

    @pytest.mark.parametrize("spoil", ["gone", "counted", "json"])
    def test_a_record_that_cannot_be_read_is_logged_and_hides_no_other(self, store: SimpleStore, client: Any,
                                                                       spoil: str) -> None:
        made = [put(store, id=f"job-{number}", created=NOON + timedelta(seconds=number), dest="file:///" + "d" * 3000,
                    notify_url="https://h/x") for number in range(6)]
        for one in made:
            store.update(one.key, lifecycle.cancel(NOON))
        item = job_item(made[4].key)
        if spoil == "gone":
            part = {"Name": "part001", "Value": held(client, item)["part001"]}
            client.delete_attributes(DomainName=D, ItemName=item, Attributes=[part])
        else:
            name, value = {"counted": ("parts", "many"), "json": ("part000", "{")}[spoil]
            client.put_attributes(DomainName=D, ItemName=item, Attributes=[{"Name": name, "Value": value, "Replace": True}])
        with capture_logs() as lines:
            first = store.list(JobQuery(limit=2))
            second = store.list(JobQuery(limit=9, cursor=first.next))
            due = store.webhooks_due(LATER, 10)
        assert ids(first.jobs + second.jobs) == ["job-5", "job-3", "job-2", "job-1", "job-0"]
        assert sorted(ids(due)) == ["job-0", "job-1", "job-2", "job-3", "job-5"]
        assert {"job-4" in line["why"] for line in lines if line["event"] == "record.unreadable"} == {True}
        with pytest.raises(InfrastructureError) as caught:
            store.get(made[4].key)
        assert caught.value.code == "internal.bad_record"


class TestSearches:
    @pytest.mark.parametrize("text", NASTY)
    def test_any_text_can_be_searched_for_and_finds_nothing_else(self, store: SimpleStore, text: str) -> None:
        others = [other for other in NASTY if other != text]
        wanted = put(store, preset=text, labels={text or "none": text}, project="p")
        for other in others:
            put(store, preset=other, labels={text or "none": other, other or "none": text} if other else {}, project="p")
        put(store, preset=None, project="p")
        for query in (JobQuery(project="p", preset=text), JobQuery(project="p", labels={text or "none": text})):
            assert ids(store.list(query).jobs) == [wanted.id]

    @pytest.mark.parametrize("project", NASTY[:-4])
    def test_a_project_of_any_name_keeps_to_itself(self, store: SimpleStore, project: str) -> None:
        mine = put(store, project=project)
        for other in {"default", project + "!", project + "/", project[:-1], "~", ""} - {project}:
            put(store, project=other)
        assert (ids(store.list(JobQuery(project=project)).jobs), store.count(project)) == ([mine.id], {S.PENDING: 1})

    def test_the_largest_query_takes_no_more_comparisons_than_simpledb_does(self, store: SimpleStore) -> None:
        labels = {f"label-{number:02d}": "x" for number in range(16)}
        wanted = put(store, preset="web", labels=labels)
        put(store, preset="web", labels=labels | {"label-15": "y"})  # differs where the expression has no room left
        query = JobQuery(states=frozenset(S), labels=labels, preset="web", since=NOON)
        assert ids(store.list(query).jobs) == [wanted.id]
        with_all = JobQuery(states=frozenset(S), labels=labels, preset="web", error_code="a.b", since=NOON)
        assert parse(f"select * from d where {listed(with_all)}")  # the parser counts them
        assert COMPARISONS_MAX == 20

    def test_what_is_longer_than_any_value_finds_nothing(self, store: SimpleStore) -> None:
        put(store)
        for query in (JobQuery(preset="x" * 3000), JobQuery(labels={"x" * 3000: "y"}), JobQuery(labels={"y": "é" * 600}),
                      JobQuery(project="x" * 3000), JobQuery(error_code="x" * 3000)):
            assert store.list(query).jobs == []

    def test_times_before_1970_sort_and_are_found_too(self, store: SimpleStore) -> None:
        made = [put(store, created=datetime(year, 1, 1, tzinfo=UTC)) for year in (1903, 1969, 1970, 2026, 9000)]
        assert ids(store.list(JobQuery()).jobs) == ids(reversed(made))
        assert ids(store.list(JobQuery(since=datetime(1969, 1, 1, tzinfo=UTC))).jobs) == ids(reversed(made[1:]))
        assert ids(store.due_for_sweep(Sweep.UNSENT, LATER, 9)) == ids(made[:4])

    def test_never_sorts_behind_every_time(self, store: SimpleStore) -> None:
        done = store.update(put(store, notify_url="https://h/x").key, lifecycle.cancel(NOON))
        store.update(done.key, lifecycle.event_postponed(1, None))
        put(store)
        assert store.webhooks_due(1e15, 9) == []
        assert store.delete_finals(NOON, 9) == 0
        assert ids(store.due_for_sweep(Sweep.UNSENT, 1e15, 9)) != [done.id]

    def test_more_than_one_page_of_everything(self, store: SimpleStore) -> None:
        made = [put(store, created=NOON + timedelta(seconds=number), notify_url="https://h/x") for number in range(230)]
        assert ids(store.list(JobQuery(limit=500)).jobs) == ids(reversed(made))
        assert ids(store.due_for_sweep(Sweep.UNSENT, LATER, 205)) == ids(made[:205])
        assert (store.count("default"), store.unfinished(7), store.unfinished(1000)) == ({S.PENDING: 230}, 7, 230)


class TestFaults:
    def test_a_throttled_call_is_made_again_and_then_the_store_is_unavailable(self, server: SimpleDBServer,
                                                                              store: SimpleStore) -> None:
        made = put(store)
        server.service.fail(Fault.UNAVAILABLE, Fault.TIMEOUT)
        assert store.get(made.key) == made
        for fault in (Fault.UNAVAILABLE, Fault.TIMEOUT, Fault.INTERNAL, Fault.CUT):
            server.service.fail(*[fault] * 3)
            with pytest.raises(StoreUnavailable):
                store.get(made.key)
        assert store.get(made.key) == made

    def test_a_create_whose_answer_was_lost_is_recognised(self, server: SimpleDBServer, store: SimpleStore) -> None:
        server.service.fail(Fault.LOST)
        made = put(store)
        assert store.get(made.key) == made
        with pytest.raises(JobExists):
            store.create(made.evolve(write_id="another"))

    def test_an_update_whose_answers_were_lost_is_made_once(self, server: SimpleDBServer, store: SimpleStore) -> None:
        made = put(store)
        server.service.fail(*[Fault.LOST] * 4, action="PutAttributes")
        changed = store.update(made.key, lifecycle.claim(Owner(worker="w", node="n", claim="c"), "m", 30, NOON))
        assert (changed.version, changed.token, changed.attempts_charged) == (2, 1, 1)
        assert store.get(made.key) == changed

    def test_a_leader_whose_answer_was_lost_leads(self, server: SimpleDBServer, store: SimpleStore) -> None:
        for version in (1, 2):
            server.service.fail(Fault.LOST, action="PutAttributes")
            store.swap_leader(Leader(version=version, write_id=f"w{version}"), version - 1)
        with pytest.raises(Conflict):
            store.swap_leader(Leader(version=2, write_id="other"), 1)
        assert store.leader().version == 2

    def test_a_deletion_whose_answer_was_lost_counts(self, server: SimpleDBServer, store: SimpleStore) -> None:
        store.update(put(store).key, lifecycle.cancel(NOON))
        server.service.fail(Fault.LOST, action="DeleteAttributes")
        assert store.delete_finals(NOON + timedelta(days=1), 5) == 1
        assert store.count("default") == {}

    def test_a_fault_between_two_pages_is_no_short_list(self, server: SimpleDBServer, store: SimpleStore) -> None:
        made = [put(store, created=NOON + timedelta(seconds=number)) for number in range(120)]
        server.service.fail(Fault.WELL, Fault.UNAVAILABLE, action="Select")
        assert ids(store.list(JobQuery(limit=120)).jobs) == ids(reversed(made))
        server.service.fail(Fault.WELL, *[Fault.UNAVAILABLE] * 3, action="Select")
        with pytest.raises(StoreUnavailable):
            store.list(JobQuery(limit=120))
        server.service.fail(*[Fault.UNAVAILABLE] * 30, action="Select")
        with pytest.raises(StoreUnavailable):
            store.count("default")

    def test_a_job_that_is_retried_as_finals_are_deleted_stays(self, store: SimpleStore,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
        one, other = (store.update(put(store).key, lifecycle.cancel(NOON)) for _ in range(2))
        delete = store._domain.delete

        def slowly(item: str, **options: Any) -> None:
            if item == job_item(one.key):
                store.update(one.key, lifecycle.retry(NOON))
            delete(item, **options)

        monkeypatch.setattr(store._domain, "delete", slowly)
        assert store.delete_finals(NOON + timedelta(days=1), 5) == 1
        assert store.get(one.key).state is S.PENDING
        with pytest.raises(UnknownJob):
            store.get(other.key)


class TestOperators:
    def test_a_domain_that_is_missing_is_told_at_the_start_and_later(self, client: Any, store: SimpleStore) -> None:
        with pytest.raises(ConfigError) as caught:
            SimpleStore(client, "missing")
        assert (caught.value.code, caught.value.hint) == ("config.store", "Run nommerd aws setup.")
        client.delete_domain(DomainName=D)
        with pytest.raises(ConfigError):
            put(store)

    def test_what_cannot_be_right_later_is_not_called_unavailable(self, server: SimpleDBServer, store: SimpleStore) -> None:
        for fault, kind, code in ((Fault.DENIED, ConfigError, "config.aws_permission"),
                                  (Fault.REFUSED, InfrastructureError, "internal.store_refused"),
                                  (Fault.FULL, StoreUnavailable, "node.store_unavailable")):
            server.service.fail(fault)
            with pytest.raises(kind) as caught:
                put(store)
            assert (type(caught.value), caught.value.code) == (kind, code)
            assert caught.value.retryable is (kind is StoreUnavailable)

    @pytest.mark.parametrize("name", ["", "ab", "a b", "jobs/x", "x" * 256])
    def test_a_name_that_no_domain_can_have_is_a_fault_of_the_configuration(self, client: Any, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            SimpleStore(client, name)
        assert caught.value.code == "config.store"

    def test_credentials_that_are_refused_are_told_without_them(self, server: SimpleDBServer) -> None:
        wrong = Aws(region=REGION, endpoint_url=server.url, access_key_id=Secret(ACCESS_KEY),
                    secret_access_key=Secret("canary-wrong"))
        with pytest.raises(ConfigError) as caught:
            SimpleStore(Clients(wrong)("sdb"), D)
        assert caught.value.code == "config.aws"
        assert "canary" not in str(caught.value)

    def test_a_service_out_of_reach_is_unavailable_and_may_come_back(self) -> None:
        port = free_port()
        unreachable = SimpleStore(Clients(account(f"http://127.0.0.1:{port}"))("sdb", tries=1), D)
        with pytest.raises(StoreUnavailable, match="not every region has SimpleDB"):
            unreachable.ping()
        with SimpleDBServer(port) as server:
            server.service.domains[D] = {}
            unreachable.ping()

    def test_a_url_opens_it(self, server: SimpleDBServer, tmp_path: Any) -> None:
        opened = open_store(f"simpledb://{D}", tmp_path, Clients(account(server.url)))
        made = job()
        opened.create(made)
        opened.close()
        opened.close()
        with pytest.raises(StoreUnavailable):
            opened.get(made.key)


class TestRecipes:
    LARGE = json.dumps({"x": "é\uffff'" * 28_000}, ensure_ascii=False)  # 252 KB as it is stored: three items and a head

    def test_one_of_any_size_comes_back(self, store: SimpleStore, client: Any) -> None:
        for number, text in enumerate(["", "{}", "é" * 20_000, '"\\\x00\n' * 500, self.LARGE]):
            store.put_recipe(f"h{number}", text)
            store.put_recipe(f"h{number}", text)
            assert store.get_recipe(f"h{number}") == text
        assert len(items(client, "recipe/h4/%")) == 3
        assert items(client, "recipe/h2/%") == []
        assert int(held(client, items(client, "recipe/h4/%")[0])["parts"]) == GROUP_PARTS

    @pytest.mark.parametrize("written", [1, 2, 3])
    def test_a_large_one_that_was_torn_is_not_read_and_is_written_again(self, store: SimpleStore, client: Any,
                                                                       monkeypatch: pytest.MonkeyPatch, written: int) -> None:
        put_item, left = store._domain.put, [None] * written

        def stop(*arguments: Any, **options: Any) -> None:
            if not left:
                raise StoreUnavailable("stopped here")
            left.pop()
            put_item(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(store._domain, "put", stop)
            with pytest.raises(StoreUnavailable):
                store.put_recipe("torn", self.LARGE)
        assert len(items(client, "recipe/torn/%")) == written
        with pytest.raises(LookupError):
            store.get_recipe("torn")
        store.put_recipe("torn", self.LARGE)
        assert store.get_recipe("torn") == self.LARGE

    def test_one_that_lost_a_part_is_an_error_not_half_a_recipe(self, store: SimpleStore, client: Any) -> None:
        store.put_recipe("large", self.LARGE)
        client.delete_attributes(DomainName=D, ItemName=items(client, "recipe/large/%")[1])
        with pytest.raises(InfrastructureError) as caught:
            store.get_recipe("large")
        assert caught.value.code == "internal.bad_recipe"

    def test_what_no_job_names_goes_with_all_its_items_and_what_was_torn_too(self, client: Any) -> None:
        store = SimpleStore(client, D, recipe_grace_seconds=0.0)
        store.put_recipe("named", self.LARGE)
        store.put_recipe("unnamed", self.LARGE)
        named = items(client, "recipe/named%")
        client.put_attributes(DomainName=D, ItemName="recipe/named/othergeneration/0000",
                              Attributes=[{"Name": "text_written", "Value": padded(0)}])
        put(store, recipe="named")
        store.delete_finals(NOON, 5)
        assert items(client, "recipe/%") == named
        assert store.get_recipe("named") == self.LARGE

    def test_one_stored_anew_as_it_is_found_stale_stays(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        store = SimpleStore(client, D, recipe_grace_seconds=0.0)
        store.put_recipe("h", "{}")
        delete = store._domain.delete

        def slowly(item: str, **options: Any) -> None:
            store.put_recipe("h", "{}")  # by somebody whose job comes next
            delete(item, **options)

        monkeypatch.setattr(store._domain, "delete", slowly)
        store.delete_finals(NOON, 5)
        assert store.get_recipe("h") == "{}"

    def test_one_deleted_as_it_is_stored_anew_is_written_whole(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        store = SimpleStore(client, D, recipe_grace_seconds=0.0)
        store.put_recipe("h", "{}")
        put_item, seen = store._domain.put, []

        def slowly(item: str, attributes: dict[str, str], **options: Any) -> None:
            if not seen:
                seen.append(item)
                client.delete_attributes(DomainName=D, ItemName=item)
            put_item(item, attributes, **options)

        monkeypatch.setattr(store._domain, "put", slowly)
        store.put_recipe("h", "{}")
        assert store.get_recipe("h") == "{}"

    def test_each_is_looked_at_in_its_turn_however_many_there_are(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nommerd.store.simpledb_texts.CHECKED", 3)
        store = SimpleStore(client, D, recipe_grace_seconds=0.0)
        for number in range(8):
            store.put_recipe(f"h{number}", "{}")
            if number != 7:
                put(store, recipe=f"h{number}")
        for _ in range(3):
            assert "recipe/h7" in items(client, "recipe/%")
            store.delete_finals(NOON, 5)
        assert items(client, "recipe/%") == [f"recipe/h{number}" for number in range(7)]

    def test_a_fresh_one_is_not_written_again(self, server: SimpleDBServer, store: SimpleStore) -> None:
        store.put_recipe("h", "{}")
        assert calls(server, lambda: store.put_recipe("h", "{}")) == ["GetAttributes"]


class TestDocuments:
    LARGE = "\x00" * 40_000  # six times as long as JSON: three items and a head

    def test_items_that_no_document_names_any_longer_go_after_the_grace(self, client: Any) -> None:
        patient, store = SimpleStore(client, D), SimpleStore(client, D, recipe_grace_seconds=0.0)
        kept = Document(kind="log", scope="p/1", name="a", body=self.LARGE, version=2)
        store.put_document(replace(kept, body=self.LARGE[:-1], version=1), 0)
        store.put_document(kept, 1)
        store.put_document(replace(kept, name="b"), 0)
        assert store.delete_document("log", "p/1", "b") is True
        everything = items(client, "document/%")
        patient.delete_finals(NOON, 5)
        assert items(client, "document/%") == everything
        store.delete_finals(NOON, 5)
        assert len(items(client, "document/%")) == 1 + 3 < len(everything)
        assert patient.document("log", "p/1", "a") == kept

    def test_one_that_is_torn_is_an_error_and_hides_no_other(self, store: SimpleStore, client: Any) -> None:
        torn, whole = (Document(kind="log", scope="p", name=name, body=self.LARGE) for name in "ab")
        for one in (torn, whole):
            store.put_document(one, 0)
        client.delete_attributes(DomainName=D, ItemName=items(client, "document/log/p/a/%")[1])
        with capture_logs() as lines:
            assert list(store.documents("log", "p")) == [whole]
        assert [line["event"] for line in lines] == ["record.unreadable"]
        with pytest.raises(InfrastructureError) as caught:
            store.document("log", "p", "a")
        assert caught.value.code == "internal.bad_record"

    def test_a_write_whose_answer_was_lost_is_recognised_and_another_ones_is_not(self, server: SimpleDBServer,
                                                                               store: SimpleStore) -> None:
        for version in range(2):
            kept = Document(kind="preset", scope="p", name="a", body=f"{version}", version=version + 1)
            server.service.fail(Fault.LOST, action="PutAttributes")
            store.put_document(kept, version)
        assert store.document("preset", "p", "a") == kept
        with pytest.raises(Conflict):
            store.put_document(replace(kept, body="another"), 1)

    def test_one_written_anew_as_it_is_deleted_for_its_age_stays(self, store: SimpleStore,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
        kept = Document(kind="log", scope="p", name="a", body="new", version=2)
        store.put_document(replace(kept, version=1, expires=1.0), 0)
        delete = store._domain.delete

        def slowly(item: str, **options: Any) -> None:
            store.put_document(kept, 1)
            delete(item, **options)

        monkeypatch.setattr(store._domain, "delete", slowly)
        store.delete_finals(NOON, 5)
        assert store.document("log", "p", "a") == kept


class TestWorkersAndLeader:
    def test_one_heartbeat_that_cannot_be_read_hides_no_other(self, store: SimpleStore, client: Any) -> None:
        for name in NASTY[:-4]:
            store.put_worker(WorkerRecord(
                name=name, node="n", state="ACTIVE", slots=2, version="1", active=(Key("p" * 64, "a" * 64),) * 40,
                encoders=tuple(f"lib{number}" for number in range(400)), reported=NOON))
        client.put_attributes(DomainName=D, ItemName="worker/bad", Attributes=[{"Name": "worker", "Value": "=bad"}])
        with capture_logs() as lines:
            found = store.workers()
        assert [worker.name for worker in found] == sorted(NASTY[:-4])
        assert [line["why"].split(":")[0] for line in lines] == ["worker/bad"]

    def test_a_launch_of_sixteen_kilobytes_of_any_text_is_kept(self, store: SimpleStore) -> None:
        for version, launch in enumerate(('"' * 16384, "é" * 8192, "\x00" * 16384, ""), 1):
            decided = Leader(version=version, launch=launch)
            store.swap_leader(decided, version - 1)
            assert store.leader() == decided


def test_many_writers_of_many_records_lose_nothing(store: SimpleStore) -> None:
    made = [put(store) for _ in range(5)]

    def write(number: int) -> None:
        for one in made:
            store.update(one.key, lambda found: found.evolve(params=found.params | {str(number): number}), tries=60)

    gevent.joinall([gevent.spawn(write, number) for number in range(6)], timeout=60, raise_error=True)
    assert [store.get(one.key).version for one in made] == [7] * 5
    assert all(store.get(one.key).params == {str(number): number for number in range(6)} for one in made)


def test_every_value_of_the_largest_record_is_within_simpledbs_bounds() -> None:
    largest = job(labels={f"{number}" + "n" * 90: "é" * 50 for number in range(16)}, dest="file:///" + "\x7f" * 1500,
                  preset="p" * 400)
    attributes = job_attributes(largest)
    assert len(attributes) <= 256
    assert all(0 < len(text.encode()) <= 1024 for pair in attributes.items() for text in pair)
    assert Job.decode(joined(attributes)) == largest
