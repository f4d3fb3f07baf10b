"""A job's outputs over HTTP: bytes, ranges, tickets, and what is refused."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from nommerd.api import media as module
from nommerd.api import tickets
from nommerd.api.problems import Refusal
from nommerd.job import JobState, Key, Output, utcnow
from nommerd.storage.base import StorageRegistry, UploadOptions
from tests.s3_scene import Scene, publish, s3_scene
from tests.unit.api.calls import Answer, Api

BODY = bytes(range(256)) * 4096  # 1 MiB: several pieces


def finished(api: Api, name: str = "out.mp4", body: bytes = BODY, uri: str | None = None) -> str:
    """A job whose one output is that file."""
    job_id: str = api.submit(dest=(api.media / "other.mp4").as_uri()).json["id"]
    path = api.media / name
    if uri is None:
        path.write_bytes(body)
    output = Output(uri=uri or path.as_uri(), bytes=len(body), sha256=sha256(body).hexdigest())
    api.store.update(Key("default", job_id), lambda job: job.move(JobState.FINISHED, utcnow(), outputs=(output,)))
    return job_id


def fetch(api: Api, job_id: str, number: object = 0, **headers: str) -> Answer:
    return api.call("GET", f"/v1/jobs/{job_id}/outputs/{number}", **headers)


def linked(api: Api, job_id: str) -> str:
    answer = api.call("POST", f"/v1/jobs/{job_id}/outputs/0/link")
    assert answer.status == 200
    url: str = answer.json["url"]
    return url.partition("?")[2]


def test_an_output_is_sent_whole_confined_and_under_its_name(api: Api) -> None:
    answer = fetch(api, finished(api, "täter \"x\".mp4"))
    assert (answer.status, answer.body) == (200, BODY)
    assert answer.headers["content-length"] == str(len(BODY)) and answer.headers["content-type"] == "video/mp4"
    assert answer.headers["content-disposition"] == "inline; filename=\"t_ter _x_.mp4\"; filename*=UTF-8''t%C3%A4ter%20_x_.mp4"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{sha256(BODY).hexdigest()}"'


@pytest.mark.parametrize(("asked", "start", "end"), [
    ("bytes=0-0", 0, 1), ("bytes=5-", 5, len(BODY)), ("bytes=-7", len(BODY) - 7, len(BODY)),
    ("bytes=300000-999999999", 300000, len(BODY)),
    (f"bytes=-{len(BODY) * 2}", 0, len(BODY)), ("Bytes=262143-262145", 262143, 262146)])
def test_one_range_is_sent_as_it_was_asked_for(api: Api, asked: str, start: int, end: int) -> None:
    answer = fetch(api, finished(api), HTTP_RANGE=asked)
    assert (answer.status, answer.body) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(BODY)}"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "items=0-1", "bytes=9-3", "bytes=-", "bytes=a-b", "bytes", "bytes=0-1 x"])
def test_what_is_no_single_range_of_bytes_gets_the_whole(api: Api, asked: str) -> None:
    answer = fetch(api, finished(api), HTTP_RANGE=asked)
    assert (answer.status, len(answer.body)) == (200, len(BODY))


@pytest.mark.parametrize("asked", [f"bytes={len(BODY)}-", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(api: Api, asked: str) -> None:
    answer = fetch(api, finished(api), HTTP_RANGE=asked)
    assert (answer.status, answer.codes) == (416, ["request.bad_range"])
    assert answer.headers["content-range"] == f"bytes */{len(BODY)}"


def test_a_range_of_another_version_gets_the_whole_and_one_of_this_version_its_part(api: Api) -> None:
    job_id = finished(api)
    etag = fetch(api, job_id).headers["etag"]
    assert fetch(api, job_id, HTTP_RANGE="bytes=0-9", HTTP_IF_RANGE='"another"').status == 200
    assert fetch(api, job_id, HTTP_RANGE="bytes=0-9", HTTP_IF_RANGE=etag).status == 206
    assert fetch(api, job_id, HTTP_IF_NONE_MATCH=f'"another", {etag}').status == 304


def test_head_tells_the_size_and_sends_nothing(api: Api) -> None:
    answer = api.call("HEAD", f"/v1/jobs/{finished(api)}/outputs/0")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str(len(BODY)))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_answer_keeps_the_file_open(api: Api) -> None:
    job_id = finished(api)
    before = open_files()
    etag = fetch(api, job_id).headers["etag"]
    headers: dict[str, str]
    for headers in ({}, {"HTTP_RANGE": "bytes=5-6"}, {"HTTP_RANGE": "bytes=-0"}, {"HTTP_IF_NONE_MATCH": etag}):
        fetch(api, job_id, **headers)
    api.call("HEAD", f"/v1/jobs/{job_id}/outputs/0")
    (api.media / "out.mp4").write_bytes(b"other")
    fetch(api, job_id)
    assert open_files() == before


@pytest.mark.parametrize("name", ["evil.html", "evil.svg", "evil.xhtml", "evil.js", "evil.xml", "noending", "evil.mp4.html"])
def test_what_a_browser_might_run_is_a_download_of_no_type(api: Api, name: str) -> None:
    answer = fetch(api, finished(api, name, b"<script>alert(1)</script>"))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment; ")


@pytest.mark.parametrize("number", ["1", "-1", "x", "0x0", "99999999999", "Â²"])
def test_an_output_that_the_job_has_not_is_not_found(api: Api, number: str) -> None:
    answer = fetch(api, finished(api), number)
    assert (answer.status, answer.codes) == (404, ["request.unknown_output"])


@pytest.mark.parametrize(("limit", "status"), [("SENT_OF_PROJECT_MAX", 429), ("SENT_MAX", 503)])
def test_so_many_outputs_are_sent_at_once(api: Api, monkeypatch: pytest.MonkeyPatch, limit: str, status: int) -> None:
    monkeypatch.setattr(module, limit, 1)
    job_id = finished(api)
    for asked in ({}, {"HTTP_RANGE": "bytes=0-0"}, {"HTTP_RANGE": f"bytes={len(BODY)}-"}, {"HTTP_IF_NONE_MATCH": "*"}):
        fetch(api, job_id, **asked)  # over when it was answered
    sending = module.Sending()
    end = sending.begin("default")
    with pytest.raises(Refusal) as caught:
        sending.begin("default")
    assert (caught.value.status, [fault.code for fault in caught.value.faults]) == (status, ["request.too_many_downloads"])
    end()
    sending.begin("default")
    assert fetch(api, job_id).status == 200
    monkeypatch.setattr(module, limit, 0)
    assert (fetch(api, job_id).status, api.call("GET", "/v1/media", query=linked(api, job_id)).status) == (status, status)


def test_a_job_that_is_not_finished_has_no_output(api: Api) -> None:
    assert fetch(api, api.submit().json["id"]).codes == ["request.unknown_output"]


def test_an_output_that_was_deleted_or_replaced_is_not_sent(api: Api) -> None:
    job_id = finished(api)
    (api.media / "out.mp4").write_bytes(b"something else")
    assert (fetch(api, job_id).status, fetch(api, job_id).codes) == (409, ["dest.changed"])
    (api.media / "out.mp4").unlink()
    assert (fetch(api, job_id).status, fetch(api, job_id).codes) == (404, ["dest.gone"])


@pytest.mark.parametrize("make", ["link", "fifo", "folder", "outside"])
def test_what_is_no_file_within_the_roots_is_never_read(api: Api, make: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(BODY)
    job_id = finished(api, uri=secret.as_uri() if make == "outside" else None)
    out = api.media / "out.mp4"
    out.unlink(missing_ok=True)
    makers: dict[str, Any] = {"link": lambda: out.symlink_to(secret), "fifo": lambda: os.mkfifo(out), "folder": out.mkdir}
    makers.get(make, lambda: None)()
    answer = fetch(api, job_id)
    assert answer.status == 409
    assert answer.codes == ["dest.outside_roots" if make == "outside" else "dest.not_a_file"]


def test_an_output_elsewhere_is_told_and_not_fetched(api: Api) -> None:
    answer = fetch(api, finished(api, uri="https://cdn.example/out.mp4"))
    assert (answer.status, answer.codes) == (409, ["dest.elsewhere"])
    assert "https://cdn.example/out.mp4" in answer.json["detail"]


# --- in a bucket --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[Scene]:
    with s3_scene() as scene:
        yield scene.anew()


def stored(api: Api, bucket: Scene, path: Path, key: str) -> str:
    """A job whose output was published there."""
    path.write_bytes(BODY)
    storage = bucket.storage()
    api.jobs.storage = StorageRegistry({"s3": storage, "file": api.jobs.storage.for_uri("file:///x")})
    publish(storage, bucket.uri(key), path, UploadOptions(sha256=sha256(BODY).hexdigest()))
    return finished(api, uri=bucket.uri(key))


def test_an_output_in_a_bucket_is_got_from_there(api: Api, bucket: Scene, tmp_path: Path) -> None:
    job_id = stored(api, bucket, tmp_path / "made", "a/out.mp4")
    by_token = fetch(api, job_id)
    by_ticket = api.call("GET", "/v1/media", token=None, query=linked(api, job_id))
    for answer in (by_token, by_ticket):
        assert (answer.status, answer.body) == (307, b"")
        with urllib.request.urlopen(answer.headers["location"], timeout=10) as got:
            assert got.read() == BODY
            assert got.headers["Content-Disposition"].startswith("inline; filename=\"out.mp4\"")


def test_no_address_is_given_for_what_replaced_an_output_in_a_bucket(api: Api, bucket: Scene, tmp_path: Path) -> None:
    job_id = stored(api, bucket, tmp_path / "made", "b/out.mp4")
    bucket.put("b/out.mp4", BODY[::-1])
    assert (fetch(api, job_id).status, fetch(api, job_id).codes) == (409, ["dest.changed"])


# --- tickets -----------------------------------------------------------------------------------------------------


def test_a_ticket_plays_the_output_without_a_token(api: Api) -> None:
    query = linked(api, finished(api))
    answer = api.call("GET", "/v1/media", token=None, query=query, HTTP_RANGE="bytes=1-3")
    assert (answer.status, answer.body) == (206, BODY[1:4])


def test_every_change_of_a_ticket_makes_it_void(api: Api) -> None:
    query = linked(api, finished(api))
    for at in range(len("ticket="), len(query)):
        changed = query[:at] + ("A" if query[at] != "A" else "B") + query[at + 1:]
        answer = api.call("GET", "/v1/media", token=None, query=changed)
        assert (answer.status, answer.codes) == (403, ["request.bad_ticket"]), at
    for wrong in ("", "ticket=", "ticket=..", query + "A", query + "%3D", query.split(".")[0]):
        assert api.call("GET", "/v1/media", token=None, query=wrong).status == 403, wrong


def test_a_ticket_ends_and_is_for_its_own_job_and_output_alone(api: Api) -> None:
    job_id = finished(api)
    for ticket in (tickets.Ticket("default", job_id, 0, 1_000), tickets.Ticket("default", job_id, 1, 2**40),
                   tickets.Ticket("other", job_id, 0, 2**40)):
        text = tickets.write(api.keyring, ticket)
        assert api.call("GET", "/v1/media", token=None, query=f"ticket={text}").status in (403, 404)
    assert tickets.read(api.keyring, tickets.write(api.keyring, ticket), 0.0) == ticket


def test_a_link_is_made_for_those_alone_who_may_read_the_job(api: Api) -> None:
    job_id = finished(api)
    assert api.call("POST", f"/v1/jobs/{job_id}/outputs/0/link", token=None).status == 401
    assert api.call("POST", f"/v1/jobs/{job_id}/outputs/7/link").codes == ["request.unknown_output"]
    assert api.call("POST", "/v1/jobs/nothere/outputs/0/link").codes == ["request.unknown_job"]
