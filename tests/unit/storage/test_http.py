"""HTTP sources and destinations against a server that misbehaves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nommerd.errors import CancelRequested, InfrastructureError, InputError, NommerdError, Stop
from nommerd.net.egress import Egress
from nommerd.storage.base import UploadOptions
from nommerd.storage.http import HttpStorage
from nommerd.storage.http_fetch import Patience
from tests.http_site import Act, Handler, Site, cut_after, drip, endless, etag, repeat, serve, status

BODY = os.urandom(3_000_000)
PATIENCE = Patience(tries=3, backoff_seconds=0.01)
IMPATIENCE = Patience(tries=2, backoff_seconds=0.01, answer_seconds=0.5, stall_seconds=0.4, bytes_a_second=4096)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        site.files["/a.mov"] = BODY
        yield site


@pytest.fixture
def storage() -> HttpStorage:
    return HttpStorage(Egress(["127.0.0.0/8"], read_seconds=10.0), 10_000_000, PATIENCE)


@pytest.fixture
def impatient() -> HttpStorage:
    return HttpStorage(Egress(["127.0.0.0/8"]), 10_000_000, IMPATIENCE)


def fetch(storage: HttpStorage, site: Site, target: Path, name: str = "/a.mov", stop: Stop | None = None) -> bytes:
    storage.fetch(site.url + name, target, lambda done, total: None, stop or Stop())
    return target.read_bytes()


def refused(storage: HttpStorage, site: Site, target: Path, name: str = "/a.mov") -> NommerdError:
    with pytest.raises(NommerdError) as caught:
        fetch(storage, site, target, name)
    assert not target.exists()
    return caught.value


def ranges(site: Site) -> list[str | None]:
    """Of the GETs but the last, which only asks whether the source is unchanged."""
    asked = [request.headers.get("Range") for request in site.asked("GET")]
    assert asked[-1] == "bytes=0-0"
    return asked[:-1]


def test_a_cut_connection_goes_on_where_it_ended(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [cut_after(1_000_000)]
    assert fetch(storage, site, tmp_path / "s") == BODY
    assert ranges(site) == [None, "bytes=1000000-"]
    assert site.seen[1].headers["If-Range"] == etag(BODY)


def test_a_server_that_refuses_ranges_is_asked_for_the_whole(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def whole(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(BODY)), ETag=etag(BODY))
        handler.write(BODY)

    site.script["/a.mov"] = [cut_after(1_000_000), whole]
    assert fetch(storage, site, tmp_path / "s") == BODY


@pytest.mark.parametrize("answer", [
    status(416), status(206), status(206, Content_Range="bytes 7-9/3000000"), status(206, Content_Range="bytes */*")])
def test_a_wrong_answer_to_a_range_leads_to_the_whole(storage: HttpStorage, site: Site, tmp_path: Path, answer: Act) -> None:
    site.script["/a.mov"] = [cut_after(1_000_000), answer]
    assert fetch(storage, site, tmp_path / "s") == BODY
    assert ranges(site) == [None, "bytes=1000000-", None]


@pytest.mark.parametrize("headers", [{"ETag": 'W/"weak"'}, {"ETag": ""}])
def test_without_a_strong_validator_nothing_is_pieced_together(storage: HttpStorage, site: Site, tmp_path: Path,
                                                              headers: dict[str, str]) -> None:
    def whole(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(BODY)), **headers)
        handler.write(BODY)

    site.script["/a.mov"] = [cut_after(1_000_000, **headers), whole, status(404)]
    assert fetch(storage, site, tmp_path / "s") == BODY
    assert site.seen[1].headers.get("Range") is None


def test_a_source_shorter_than_it_said_is_incomplete_and_retryable(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [cut_after(1000, Content_Length="4000000") for _ in range(3)]
    error = refused(storage, site, tmp_path / "s")
    assert (error.code, error.retryable) == ("source.incomplete", True)
    assert len(site.seen) == 3


def test_a_source_cut_each_time_is_given_up_after_some_tries_without_progress(storage: HttpStorage, site: Site,
                                                                            tmp_path: Path) -> None:
    site.script["/a.mov"] = [cut_after(1_500_000, ETag="") for _ in range(50)]
    assert refused(storage, site, tmp_path / "s").code == "source.incomplete"
    assert len(site.seen) <= 5


def test_a_source_that_changed_between_two_pieces_is_never_mixed(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def cut_and_change(handler: Handler) -> None:
        cut_after(1_000_000)(handler)
        site.files["/a.mov"] = os.urandom(len(BODY))

    site.script["/a.mov"] = [cut_and_change]
    error = refused(storage, site, tmp_path / "s")
    assert (error.code, error.retryable) == ("source.changed", True)


def test_a_source_that_changed_under_one_answer_is_noticed_later(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def change_midway(handler: Handler) -> None:
        newer = os.urandom(len(BODY))
        handler.head(200, Content_Length=str(len(BODY)), ETag=etag(BODY))
        handler.write(BODY[:1_000_000])
        site.files["/a.mov"] = newer
        handler.write(newer[1_000_000:])

    site.script["/a.mov"] = [change_midway]
    assert refused(storage, site, tmp_path / "s").code == "source.changed"


def test_servers_of_one_cluster_may_tag_differently(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def tagged(tag: str) -> Act:
        def act(handler: Handler) -> None:
            handler.head(200, Content_Length=str(len(BODY)), ETag=tag, Last_Modified="Mon, 01 Jan 2024 00:00:00 GMT")
            handler.write(BODY)
        return act

    site.script["/a.mov"] = [tagged('"node-1"'), tagged('"node-2"')]
    assert fetch(storage, site, tmp_path / "s") == BODY


def test_a_link_that_is_good_for_one_use_is_enough(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def once(handler: Handler) -> None:
        handler.head(200, Content_Length=str(len(BODY)), ETag=etag(BODY))
        handler.write(BODY)
        del site.files["/a.mov"]

    site.script["/a.mov"] = [once]
    assert fetch(storage, site, tmp_path / "s") == BODY


@pytest.mark.parametrize(("code", "expected", "retryable"), [
    (404, "source.not_found", False), (410, "source.not_found", False), (401, "source.forbidden", False),
    (403, "source.forbidden", False), (400, "source.refused", False), (204, "source.refused", False),
    (500, "source.unavailable", True), (503, "source.unavailable", True), (429, "source.unavailable", True)])
def test_each_status_says_who_must_act(storage: HttpStorage, site: Site, tmp_path: Path, code: int, expected: str,
                                       retryable: bool) -> None:
    site.script["/a.mov"] = [status(code) for _ in range(9)]
    error = refused(storage, site, tmp_path / "s")
    assert (error.code, error.retryable) == (expected, retryable)
    assert len(site.seen) == (PATIENCE.tries if retryable else 1)


def test_a_server_that_recovers_is_waited_for(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [status(503, Retry_After="0"), status(500)]
    assert fetch(storage, site, tmp_path / "s") == BODY


def test_a_short_retry_after_is_waited_out(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [status(429, Retry_After="1")]
    began = time.monotonic()
    assert fetch(storage, site, tmp_path / "s") == BODY
    assert time.monotonic() - began >= 1.0


def test_a_long_retry_after_is_left_to_the_job(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [status(503, Retry_After="3600")]
    assert refused(storage, site, tmp_path / "s").code == "source.unavailable"
    assert len(site.seen) == 1


def test_a_body_without_end_stops_at_the_limit(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [endless(200)]
    assert refused(storage, site, tmp_path / "s").code == "source.too_large"
    assert site.sent < 60_000_000


def test_a_body_that_drips_counts_as_cut(impatient: HttpStorage, site: Site, tmp_path: Path) -> None:
    over = threading.Event()
    site.script["/a.mov"] = [drip(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n", 0.02, over) for _ in range(3)]
    try:
        assert refused(impatient, site, tmp_path / "s").code == "source.stalled"
    finally:
        over.set()


@pytest.mark.parametrize(("begin", "piece"), [
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"Trailer: x\r\n"),
    (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
])
def test_a_server_that_sends_for_ever_without_sending_data_is_left(impatient: HttpStorage, site: Site, tmp_path: Path,
                                                                   begin: bytes, piece: bytes) -> None:
    over = threading.Event()
    site.script["/a.mov"] = [repeat(begin, piece, over) for _ in range(3)]
    try:
        assert refused(impatient, site, tmp_path / "s").code in ("source.stalled", "source.unavailable")
    finally:
        over.set()


def test_a_length_in_absurd_numbers_is_none(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def lie(handler: Handler) -> None:
        handler.head(200, Content_Length="9" * 5000)
        handler.write(BODY)
        handler.hang_up()

    site.script["/a.mov"] = [lie]
    assert fetch(storage, site, tmp_path / "s") == BODY


def test_a_retry_after_in_absurd_numbers_asks_for_nothing(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [status(503, Retry_After=f"Mon, {'9' * 30} Jan 2020 00:00:00 GMT")]
    assert fetch(storage, site, tmp_path / "s") == BODY


def test_a_range_in_absurd_numbers_leads_to_the_whole(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [cut_after(1_500_000), status(206, Content_Range=f"bytes {'9' * 5000}-9/9")]
    assert fetch(storage, site, tmp_path / "s") == BODY


def test_headers_that_drip_are_not_waited_for(impatient: HttpStorage, site: Site, tmp_path: Path) -> None:
    over = threading.Event()
    site.script["/a.mov"] = [drip(b"HTTP/1.1 200 OK\r\nX: ", 0.05, over) for _ in range(3)]
    try:
        assert refused(impatient, site, tmp_path / "s").code == "source.unavailable"
    finally:
        over.set()


def test_a_silent_server_does_not_delay_a_cancel(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    over, stop = threading.Event(), Stop()

    def silent(handler: Handler) -> None:
        handler.head(200, Content_Length="3000000")
        handler.write(BODY[:1000])
        threading.Timer(0.1, stop.set, [CancelRequested()]).start()
        over.wait(20)

    site.script["/a.mov"] = [silent]
    began = time.monotonic()
    with pytest.raises(CancelRequested):
        fetch(storage, site, tmp_path / "s", stop=stop)
    over.set()
    assert time.monotonic() - began < 2.0
    assert not (tmp_path / "s").exists()


def test_a_compressed_answer_is_refused_for_it_was_not_asked_for(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    site.script["/a.mov"] = [status(200, Content_Encoding="gzip")]
    assert refused(storage, site, tmp_path / "s").code == "source.encoded"
    assert site.seen[0].headers["Accept-Encoding"] == "identity"


def test_a_chunked_answer_has_no_length_and_still_must_end(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    def chunked(end: bytes) -> Act:
        def act(handler: Handler) -> None:
            handler.head(200, Transfer_Encoding="chunked")
            handler.write(b"3\r\nabc\r\n" + end)
            handler.hang_up()
        return act

    site.script["/a.mov"] = [chunked(b""), chunked(b"0\r\n\r\n")]
    assert fetch(storage, site, tmp_path / "s") == b"abc"


@pytest.mark.parametrize("code", [404, 500, 403, 416, 302])
def test_neither_credentials_nor_query_are_in_an_error(storage: HttpStorage, site: Site, tmp_path: Path, code: int) -> None:
    path = "/a.mov?signature=canary"
    site.script[path] = [status(code, Location=path) for _ in range(9)]
    host = site.url.removeprefix("http://")
    with pytest.raises(NommerdError) as caught:
        storage.fetch(f"http://user:canary@{host}{path}", tmp_path / "s", lambda done, total: None, Stop())
    assert "canary" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert site.seen[0].headers["Authorization"] == "Basic dXNlcjpjYW5hcnk="
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def put(storage: HttpStorage, site: Site, path: Path, *, overwrite: bool = False, name: str = "/out.mp4") -> None:
    staging = storage.begin(site.url + name, 1, UploadOptions(content_type="video/mp4"))
    storage.upload(staging, path, lambda: None, lambda done, total: None, Stop())
    storage.publish(staging, overwrite)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output.mp4"
    path.write_bytes(BODY)
    return path


def test_a_put_tells_its_length_and_type(storage: HttpStorage, site: Site, output: Path) -> None:
    put(storage, site, output)
    request = site.asked("PUT")[0]
    assert request.headers["Content-Length"] == str(len(BODY))
    assert request.headers["Content-Type"] == "video/mp4"
    assert request.headers["If-None-Match"] == "*"
    assert site.files["/out.mp4"] == BODY


def test_an_overwriting_put_makes_no_condition(storage: HttpStorage, site: Site, output: Path) -> None:
    put(storage, site, output, overwrite=True)
    assert site.asked("PUT")[0].headers["If-None-Match"] is None


def test_somebody_elses_file_that_came_first_stays(storage: HttpStorage, site: Site, output: Path) -> None:
    site.script["/out.mp4"] = [status(404), status(412)]
    with pytest.raises(InputError) as caught:
        put(storage, site, output)
    assert caught.value.code == "dest.exists"


def test_a_put_whose_answer_was_lost_is_recognised(storage: HttpStorage, site: Site, output: Path) -> None:
    def take_and_hang_up(handler: Handler) -> None:
        site.files["/out.mp4"] = site.seen[-1].body
        handler.hang_up()

    site.script["/out.mp4"] = [status(404), take_and_hang_up]
    put(storage, site, output)
    assert [request.method for request in site.seen] == ["HEAD", "PUT", "PUT", "HEAD"]


@pytest.mark.parametrize(("code", "expected", "retryable"), [
    (403, "dest.forbidden", False), (413, "dest.too_large", False), (507, "dest.disk_full", True),
    (409, "dest.conflict", True), (307, "dest.refused", False), (405, "dest.refused", False), (503, "dest.unavailable", True)])
def test_each_refusal_of_a_put_says_who_must_act(storage: HttpStorage, site: Site, output: Path, code: int, expected: str,
                                                 retryable: bool) -> None:
    site.script["/out.mp4"] = [status(code, Location=site.url + "/elsewhere") for _ in range(9)]
    with pytest.raises(NommerdError) as caught:
        put(storage, site, output, overwrite=True)
    assert (caught.value.code, caught.value.retryable) == (expected, retryable)
    assert "/elsewhere" not in site.files


def test_a_put_that_is_never_answered_ends(site: Site, output: Path) -> None:
    over = threading.Event()
    storage = HttpStorage(Egress(["127.0.0.0/8"]), 10**6, Patience(tries=2, backoff_seconds=0.01), answer_seconds=0.5)
    output.write_bytes(b"small")
    site.script["/out.mp4"] = [repeat(b"", b"HTTP/1.1 100 Continue\r\n\r\n", over) for _ in range(2)]
    began = time.monotonic()
    try:
        with pytest.raises(InfrastructureError) as caught:
            put(storage, site, output, overwrite=True)
    finally:
        over.set()
    assert caught.value.code == "dest.unavailable"
    assert time.monotonic() - began < 10


def test_what_is_there_cannot_always_be_told(storage: HttpStorage, site: Site) -> None:
    site.script["/a.mov"] = [status(403), status(500)]
    assert [storage.exists(site.url + "/a.mov") for _ in range(3)] == [None, None, True]


def test_no_server_at_all_is_retryable(storage: HttpStorage, site: Site, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError) as caught:
        storage.fetch("http://127.0.0.1:1/a", tmp_path / "s", lambda done, total: None, Stop())
    assert caught.value.code == "source.unavailable"
