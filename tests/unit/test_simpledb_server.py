"""The small SimpleDB as boto3 sees it: Amazon's documented rules, and the faults it makes on demand."""

from __future__ import annotations

import http.client
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from nommerd.aws.clients import Clients, error_code, status_of
from nommerd.config import Aws
from nommerd.secrets import Secret
from tests.emulator import ACCESS_KEY, REGION, account, emulator
from tests.simpledb_server import Fault, SimpleDBProcess, SimpleDBServer

D = "domain"


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleDBServer]:
    with SimpleDBServer() as started:
        yield started


@pytest.fixture(scope="module")
def connected(server: SimpleDBServer) -> Any:
    return connect(server)


@pytest.fixture
def sdb(server: SimpleDBServer, connected: Any) -> Any:
    """A client that tries once, and an empty domain."""
    server.service.domains.clear()
    connected.create_domain(DomainName=D)
    return connected


def connect(server: SimpleDBServer) -> Any:
    client = Clients(account(server.url))("sdb", tries=1)
    client.create_domain(DomainName=D)
    return client


def put(sdb: Any, item: str, expected: dict[str, Any] | None = None, replace: bool = True, **values: str | list[str]) -> None:
    pairs = [{"Name": name, "Value": value, "Replace": replace} for name, held in values.items()
             for value in ([held] if isinstance(held, str) else held)]
    more = {} if expected is None else {"Expected": expected}
    sdb.put_attributes(DomainName=D, ItemName=item, Attributes=pairs, **more)


def get(sdb: Any, item: str, **options: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in sdb.get_attributes(DomainName=D, ItemName=item, **{"ConsistentRead": True, **options}).get("Attributes", []):
        found.setdefault(pair["Name"], []).append(pair["Value"])
    return {name: sorted(values) for name, values in found.items()}


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[str, int | None]:
    with pytest.raises(Exception) as caught:
        call(*arguments, **options)
    return error_code(caught.value), status_of(caught.value)


class TestWriting:
    def test_values_are_added_unless_they_replace_and_equal_pairs_are_one(self, sdb: Any) -> None:
        put(sdb, "i", a="1", b=["2", "3"])
        put(sdb, "i", replace=False, a=["1", "9"])
        put(sdb, "i", b="4")
        assert get(sdb, "i") == {"a": ["1", "9"], "b": ["4"]}
        put(sdb, "i", b=["5", "6"])
        assert get(sdb, "i") == {"a": ["1", "9"], "b": ["5", "6"]}

    def test_a_deletion_takes_values_attributes_or_the_item_and_may_be_repeated(self, sdb: Any) -> None:
        put(sdb, "i", a=["1", "2"], b="3", c="4")
        for _ in range(2):
            sdb.delete_attributes(DomainName=D, ItemName="i", Attributes=[{"Name": "a", "Value": "1"}])
        assert get(sdb, "i") == {"a": ["2"], "b": ["3"], "c": ["4"]}
        sdb.delete_attributes(DomainName=D, ItemName="i")
        assert get(sdb, "i") == {}
        assert sdb.select(SelectExpression=f"select * from {D}", ConsistentRead=True).get("Items", []) == []

    def test_a_batch_writes_and_deletes_many_items_but_takes_25_and_each_once(self, sdb: Any) -> None:
        def items(count: int) -> list[dict[str, Any]]:
            return [{"Name": f"i{number}", "Attributes": [{"Name": "a", "Value": str(number), "Replace": True}]}
                    for number in range(count)]

        sdb.batch_put_attributes(DomainName=D, Items=items(25))
        assert get(sdb, "i24") == {"a": ["24"]}
        assert refusal(sdb.batch_put_attributes, DomainName=D, Items=items(26)) == ("NumberSubmittedItemsExceeded", 409)
        assert refusal(sdb.batch_put_attributes, DomainName=D, Items=items(1) * 2) == ("DuplicateItemName", 400)
        sdb.batch_delete_attributes(DomainName=D, Items=[{"Name": f"i{number}"} for number in range(24)])
        left = sdb.select(SelectExpression=f"select itemName() from {D}", ConsistentRead=True)["Items"]
        assert [item["Name"] for item in left] == ["i24"]

    @pytest.mark.parametrize(("item", "name", "value", "well"), [
        ("i" * 1024, "n" * 1024, "v" * 1024, True), ("i" * 1025, "n", "v", False), ("i", "n" * 1025, "v", False),
        ("i", "n", "v" * 1025, False), ("i", "n", "é" * 512, True), ("i", "n", "é" * 513, False), ("i", "n", "", True)])
    def test_names_and_values_take_1024_bytes(self, sdb: Any, item: str, name: str, value: str, well: bool) -> None:
        if well:
            put(sdb, item, **{name: value})
            assert get(sdb, item) == {name: [value]}
        else:
            assert refusal(put, sdb, item, **{name: value}) == ("InvalidParameterValue", 400)

    def test_an_item_takes_256_pairs(self, sdb: Any) -> None:
        put(sdb, "i", a=[str(number) for number in range(256)])
        assert refusal(put, sdb, "i", b="1") == ("NumberItemAttributesExceeded", 409)
        assert refusal(put, sdb, "j", a=[str(number) for number in range(257)]) == ("NumberSubmittedAttributesExceeded", 409)

    def test_what_xml_cannot_hold_comes_back_in_base64(self, sdb: Any) -> None:
        put(sdb, "i", a="\x01", b="<&>'\" \t\r\n é\U0001f600 ")
        assert get(sdb, "i") == {"a": ["AQ=="], "b": ["<&>'\" \t\r\n é\U0001f600 "]}


class TestConditions:
    def test_a_value_that_is_expected_must_be_the_one_that_is_there(self, sdb: Any) -> None:
        put(sdb, "i", version="1", state="new")
        put(sdb, "i", {"Name": "version", "Value": "1", "Exists": True}, version="2")
        assert refusal(put, sdb, "i", {"Name": "version", "Value": "1"}, version="3") == ("ConditionalCheckFailed", 409)
        assert refusal(put, sdb, "i", {"Name": "none", "Value": "1"}, version="3") == ("AttributeDoesNotExist", 404)
        assert refusal(put, sdb, "none", {"Name": "version", "Value": "1"}, version="3") == ("AttributeDoesNotExist", 404)
        assert get(sdb, "i") == {"version": ["2"], "state": ["new"]}
        assert get(sdb, "none") == {}

    def test_an_attribute_that_must_not_exist_refuses_any_value(self, sdb: Any) -> None:
        absent = {"Name": "version", "Exists": False}
        put(sdb, "i", absent, version="1")
        assert refusal(put, sdb, "i", absent, version="1") == ("ConditionalCheckFailed", 409)

    def test_several_values_cannot_be_compared(self, sdb: Any) -> None:
        put(sdb, "i", a=["1", "2"])
        assert refusal(put, sdb, "i", {"Name": "a", "Value": "1"}, b="3") == ("MultiValuedAttribute", 409)

    def test_half_a_condition_is_refused(self, sdb: Any) -> None:
        assert refusal(put, sdb, "i", {"Name": "a"}, b="3") == ("IncompleteExpectedExpression", 400)
        assert refusal(put, sdb, "i", {"Name": "a", "Value": "1", "Exists": False}, b="3") == ("ExistsAndExpectedValue", 400)

    def test_deletions_take_conditions_too(self, sdb: Any) -> None:
        put(sdb, "i", version="1")
        expected = {"Name": "version", "Value": "2"}
        assert refusal(sdb.delete_attributes, DomainName=D, ItemName="i", Expected=expected) == ("ConditionalCheckFailed", 409)
        sdb.delete_attributes(DomainName=D, ItemName="i", Expected={"Name": "version", "Value": "1"})
        assert get(sdb, "i") == {}


class TestSelecting:
    def pages(self, sdb: Any, expression: str) -> list[list[str]]:
        """The names on each page, to the last."""
        found: list[list[str]] = []
        more: dict[str, str] = {}
        while True:
            answer = sdb.select(SelectExpression=expression, ConsistentRead=True, **more)
            found.append([item["Name"] for item in answer.get("Items", [])])
            if not answer.get("NextToken"):
                return found
            more = {"NextToken": answer["NextToken"]}

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_follow_one_another_in_order_without_gap_or_repeat(self, order: str) -> None:
        with SimpleDBServer(page_items=4, scan_items=3) as server:
            sdb = connect(server)
            for number, letter in enumerate(string.ascii_lowercase[:20]):
                put(sdb, letter, n=str(number // 5), odd=str(number % 2))
            pages = self.pages(sdb, f"select * from {D} where n is not null and odd = '1' order by n {order} limit 2500")
            names = [name for page in pages for name in page]
            assert max(map(len, pages)) == 3
            assert sorted(names) == list(string.ascii_lowercase[1:20:2])
            groups = [string.ascii_lowercase.index(name) // 5 for name in names]
            assert groups == sorted(groups, reverse=order == "desc")

    def test_a_page_may_be_empty_and_not_the_last(self) -> None:
        with SimpleDBServer(scan_items=2) as server:
            sdb = connect(server)
            for number in range(9):
                put(sdb, str(number), n=str(number))
            pages = self.pages(sdb, f"select * from {D} where n = '3'")
            assert sorted(pages, key=len)[0] == []
            assert [name for page in pages for name in page] == ["3"]

    def test_a_page_has_a_hundred_items_unless_told_and_a_megabyte_at_most(self, sdb: Any) -> None:
        for number in range(120):
            put(sdb, str(number), a=["v" * 1010 + f"{part:03d}" for part in range(10)] if number < 105 else "")
        assert [len(page) for page in self.pages(sdb, f"select itemName() from {D}")] == [100, 20]
        full = self.pages(sdb, f"select * from {D} limit 2500")
        assert (len(full), sum(map(len, full))) == (2, 120)

    def test_counts_come_in_parts(self) -> None:
        with SimpleDBServer(page_items=3) as server:
            sdb = connect(server)
            for number in range(8):
                put(sdb, str(number), n=str(number))
            first = sdb.select(SelectExpression=f"select count(*) from {D} where n < '7'", ConsistentRead=True)
            assert first["Items"][0]["Attributes"] == [{"Name": "Count", "Value": "3"}]
            assert len(self.pages(sdb, f"select count(*) from {D} where n < '7'")) == 3

    def test_a_token_belongs_to_its_expression(self, sdb: Any) -> None:
        for number in range(3):
            put(sdb, str(number), n="1")
        token = sdb.select(SelectExpression=f"select * from {D} limit 1")["NextToken"]
        for wrong in (token, "nonsense"):
            refused = refusal(sdb.select, SelectExpression=f"select * from {D} limit 2", NextToken=wrong)
            assert refused == ("InvalidNextToken", 400)

    def test_faults_of_the_language_have_their_codes(self, sdb: Any) -> None:
        assert refusal(sdb.select, SelectExpression="select") == ("InvalidQueryExpression", 400)
        assert refusal(sdb.select, SelectExpression=f"select * from {D} order by a") == ("InvalidSortExpression", 400)
        assert refusal(sdb.select, SelectExpression="select * from other") == ("NoSuchDomain", 400)

    def test_only_the_attributes_asked_for_come_back(self, sdb: Any) -> None:
        put(sdb, "i", a="1", b=["2", "3"], c="4")
        item, = sdb.select(SelectExpression=f"select b, c from {D}", ConsistentRead=True)["Items"]
        assert sorted((pair["Name"], pair["Value"]) for pair in item["Attributes"]) == [("b", "2"), ("b", "3"), ("c", "4")]
        assert get(sdb, "i", AttributeNames=["a", "c"]) == {"a": ["1"], "c": ["4"]}


class TestDomains:
    def test_they_are_made_listed_described_and_deleted(self, server: SimpleDBServer, sdb: Any) -> None:
        sdb.create_domain(DomainName=D)
        sdb.create_domain(DomainName="another.one")
        put(sdb, "i", a="1")
        listed = sdb.get_paginator("list_domains").paginate(MaxNumberOfDomains=1)
        assert [name for page in listed for name in page["DomainNames"]] == ["another.one", D]
        assert sdb.domain_metadata(DomainName=D)["ItemCount"] == 1
        sdb.delete_domain(DomainName=D)
        assert refusal(get, sdb, "i") == ("NoSuchDomain", 400)

    @pytest.mark.parametrize("name", ["ab", "a/b", "ü" * 5, "x" * 256])
    def test_a_name_that_none_can_have_is_refused(self, sdb: Any, name: str) -> None:
        assert refusal(sdb.create_domain, DomainName=name) == ("InvalidParameterValue", 400)


class TestConsistency:
    def test_only_a_consistent_read_is_sure_to_see_the_last_write(self) -> None:
        with SimpleDBServer(lag_seconds=3600) as server:
            sdb = connect(server)
            put(sdb, "i", a="1")
            assert (get(sdb, "i"), get(sdb, "i", ConsistentRead=False)) == ({"a": ["1"]}, {})
            seen = [len(sdb.select(SelectExpression=f"select * from {D}", ConsistentRead=how).get("Items", []))
                    for how in (True, False)]
            assert seen == [1, 0]
            put(sdb, "i", {"Name": "a", "Value": "1"}, a="2")  # conditions see what is there

    def test_without_lag_any_read_does(self, sdb: Any) -> None:
        for value in ("1", "2", "3"):
            put(sdb, "i", a=value)
            assert get(sdb, "i", ConsistentRead=False) == {"a": [value]}


class TestFaults:
    @pytest.mark.parametrize(("fault", "code", "status"), [
        (Fault.UNAVAILABLE, "ServiceUnavailable", 503), (Fault.TIMEOUT, "RequestTimeout", 408),
        (Fault.INTERNAL, "InternalError", 500)])
    def test_an_error_is_answered_and_nothing_done(self, server: SimpleDBServer, sdb: Any, fault: Fault, code: str,
                                                   status: int) -> None:
        server.service.fail(fault)
        assert refusal(put, sdb, "i", a="1") == (code, status)
        assert get(sdb, "i") == {}

    def test_an_answer_is_lost_after_or_before_the_write(self, server: SimpleDBServer, sdb: Any) -> None:
        server.service.fail(Fault.LOST, Fault.CUT, action="PutAttributes")
        assert refusal(put, sdb, "i", a="1")[1] is None
        assert get(sdb, "i") == {"a": ["1"]}
        assert refusal(put, sdb, "i", a="2")[1] is None
        assert get(sdb, "i") == {"a": ["1"]}


class TestWire:
    def test_a_wrong_secret_or_an_unknown_key_is_refused(self, server: SimpleDBServer) -> None:
        for key_id, code in ((ACCESS_KEY, "SignatureDoesNotMatch"), ("AKIAOTHER", "InvalidClientTokenId")):
            other = Aws(region=REGION, endpoint_url=server.url, access_key_id=Secret(key_id), secret_access_key=Secret("no"))
            assert refusal(Clients(other)("sdb").list_domains) == (code, 403)

    def test_an_unsigned_request_is_refused(self, server: SimpleDBServer) -> None:
        connection = http.client.HTTPConnection(str(urlsplit(server.url).netloc), timeout=10)
        connection.request("POST", "/", "Action=ListDomains&Version=2009-04-15")
        answer = connection.getresponse()
        assert (answer.status, b"<Code>InvalidClientTokenId</Code>" in answer.read()) == (403, True)
        connection.close()

    def test_as_a_process_it_passes_on_what_is_not_its_own(self) -> None:
        process = SimpleDBProcess(upstream=emulator().url, page=2)
        try:
            clients = Clients(account(process.url))
            sdb, s3, sqs = clients("sdb"), clients("s3"), clients("sqs")
            sdb.create_domain(DomainName=D)
            for name in ("a", "b", "c"):
                put(sdb, name, x="1")
            assert len(sdb.select(SelectExpression=f"select * from {D}", ConsistentRead=True)["Items"]) == 2
            s3.create_bucket(Bucket="behind-simpledb")
            s3.put_object(Bucket="behind-simpledb", Key="k é", Body=b"x" * 300_000)
            assert s3.get_object(Bucket="behind-simpledb", Key="k é")["Body"].read() == b"x" * 300_000
            assert s3.head_object(Bucket="behind-simpledb", Key="k é")["ContentLength"] == 300_000
            queue = sqs.create_queue(QueueName="behind-simpledb")["QueueUrl"]
            sqs.send_message(QueueUrl=queue, MessageBody="hello")
            assert sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"] == "hello"
        finally:
            process.stop()
