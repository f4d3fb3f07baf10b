"""The original system, row by row: what media-nommer had, in today's form, on the real daemons and an AWS emulator.

Each test is named by the rows of that system's inventory that it holds (its fleet's are in test_original_fleet.py);
`test_no_row_is_without_a_test` counts them. What a row asks in detail has its own tests in unit/ and integration/; here it
is seen to work in the whole.
"""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import pytest

from nommerd.bus import open_bus
from nommerd.job import Job, JobState, Key, Owner, Webhook, new_id, utcnow
from nommerd.lifecycle import NotClaimable, claim, give_back
from nommerd.store import open_store
from nommerd.store.base import Store
from tests.cloud import Cloud, cloud_invariants
from tests.emulator import ACCESS_KEY, SECRET_KEY, emulator
from tests.http_site import serve
from tests.media import clip
from tests.rig import FINAL, wait_until

ROWS = frozenset({*range(1, 31), 32, 33, 34, *range(37, 58), 59, 60, 61, 62, *range(64, 77), *range(82, 92), 93, 94,
                  *range(96, 110), 112, 113, 114, 116, 117, 118, 119, *range(120, 124)})
FORM = "application/x-www-form-urlencoded"
FFMPEG = "media_nommer.ec2nommerd.nommers.ffmpeg.FFmpegNommer"
MP4 = [["vcodec", "libx264"], ["preset", "ultrafast"], ["acodec", "aac"], ["f", "mp4"]]


def test_no_row_is_without_a_test() -> None:
    """`test_rows_1_2_…` holds rows 1 and 2, `test_rows_65_to_69_…` all between."""
    held: set[int] = set()
    pages = "".join(page.read_text() for page in Path(__file__).parent.glob("test_original*.py"))
    for name in re.findall(r"^def (test_rows?_\w+)", pages, re.MULTILINE):
        for first, last, one in re.findall(r"_(\d+)_to_(\d+)|_(\d+)(?=_)", name.partition("__")[0] + "_"):
            held |= {int(one)} if one else set(range(int(first), int(last) + 1))
    assert held == ROWS


# --- the system under test ----------------------------------------------------------------------------------------


class Callbacks:
    """What an application of the original's time listens with: forms by POST."""

    def __init__(self) -> None:
        self.forms: list[tuple[dict[str, str], dict[str, str]]] = []
        seen = self.forms

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                form = {name: values[0] for name, values in parse_qs(body, keep_blank_values=True).items()}
                seen.append((form, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/done"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def states(self, job_id: str) -> list[str]:
        return [form["job_state"] for form, _ in self.forms if form["unique_id"] == job_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def callbacks() -> Iterator[Callbacks]:
    callbacks = Callbacks()
    yield callbacks
    callbacks.close()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    root = tmp_path_factory.mktemp("original")
    with Cloud(root, env={"NOMMERD_API__ORIGINAL__NOMMERS": '{"acme.nommers.Fast": "fast"}',
                          "NOMMERD_WORKER__HEARTBEAT_SECONDS": "1", "NOMMERD_JOBS__ABANDON_AFTER_SECONDS": "20",
                          "NOMMERD_STORAGE__FILE_ROOTS": json.dumps([str(root / "media")])}) as cloud:
        cloud.set_up()
        cloud.put_source(clip(seconds=2, size="320x180"))
        cloud.start_feeder()
        for name in ("w1", "w2"):
            cloud.start_worker(name)
        yield cloud


@pytest.fixture
def store(cloud: Cloud) -> Iterator[Store]:
    store = open_store(cloud.store, cloud.data, cloud.clients)
    yield store
    store.close()


def post(cloud: Cloud, body: object, path: str = "/job/submit", content_type: str = FORM) -> tuple[int, dict[str, Any], str]:
    """As the original's client calls: raw JSON under a form's content type, and no token."""
    connection = http.client.HTTPConnection("127.0.0.1", cloud.port, timeout=30)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), {"Content-Type": content_type})
        response = connection.getresponse()
        text = response.read().decode()
        cloud.answers.append(text)
        return response.status, json.loads(text), response.headers["Content-Type"]
    finally:
        connection.close()


def run(cloud: Cloud, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One command to its end, with a configuration only where it is among the arguments."""
    return subprocess.run([*cloud.command(), *arguments], env=env or cloud.env, capture_output=True, text=True, timeout=60)


def request(cloud: Cloud, key: str, *, passes: list[dict[str, Any]] | None = None, nommer: str = FFMPEG,
            **more: Any) -> dict[str, Any]:
    passes = [{"outfile_options": MP4}] if passes is None else passes
    return {"source_path": f"s3://{cloud.inbox}/in.mp4", "dest_path": cloud.dest(key),
            "job_options": {"nommer": nommer, "options": passes}, **more}


def submit(cloud: Cloud, key: str, **more: Any) -> str:
    status, answer, _ = post(cloud, request(cloud, key, **more))
    assert (status, answer.get("success")) == (200, True), answer
    return str(answer["job_id"])


def refusal(cloud: Cloud, body: object) -> dict[str, Any]:
    status, answer, _ = post(cloud, body)
    assert (status, answer["success"]) == (200, False), answer
    assert answer["error_code"] and answer["message"]
    return answer


def probe(cloud: Cloud, key: str) -> dict[str, Any]:
    path = cloud.root / "probe.mp4"
    path.write_bytes(cloud.body(cloud.dest(key)))
    done = subprocess.run(["ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", path], check=True,
                          capture_output=True)
    return dict(json.loads(done.stdout))


# --- settings -----------------------------------------------------------------------------------------------------


def test_rows_1_2__keys_may_be_in_the_configuration_and_are_shown_nowhere(cloud: Cloud, tmp_path: Path) -> None:
    config = tmp_path / "keys.yaml"
    config.write_text(cloud.config.read_text().replace(
        "aws: {", f'aws: {{access_key_id: "{ACCESS_KEY}", secret_access_key: "{SECRET_KEY}", '))
    env = {name: value for name, value in cloud.env.items() if not name.startswith("AWS_")}
    for command in (["config", "show"], ["aws", "setup"], ["aws", "setup", "--dry-run"]):
        done = run(cloud, *command, "-c", str(config), env=env)
        assert done.returncode == 0, done.stderr
        assert ACCESS_KEY not in done.stdout + done.stderr
        assert SECRET_KEY not in done.stdout + done.stderr


def test_rows_4_to_7__queues_and_records_are_where_their_settings_say(cloud: Cloud, store: Store) -> None:
    id = submit(cloud, "row4.mp4")
    assert store.get(Key("default", id)).id == id
    names = {url.rpartition("/")[2] for url in cloud.clients("sqs").list_queues(QueueNamePrefix=cloud.cluster)["QueueUrls"]}
    assert {f"{cloud.cluster}-jobs-normal", f"{cloud.cluster}-changes"} <= names
    assert {worker.name for worker in store.workers()} == {"w1", "w2"}
    cloud.wait_finished(id)


def test_rows_12_22_23_101_102__a_worker_takes_as_many_jobs_as_it_has_slots_within_a_moment(
        cloud: Cloud, store: Store) -> None:
    cloud.put_source(clip(seconds=4, size="640x360"), "slots.mp4")
    ids = [cloud.submit_uris(f"s3://{cloud.inbox}/slots.mp4", cloud.dest(f"slot{n}.mp4"), pipeline="slow") for n in range(5)]
    # not once a minute
    wait_until(lambda: sum(cloud.job(id)["state"] == "PENDING" for id in ids) == 1, 10, "four of five are taken")
    wait_until(lambda: max(len(worker.active) for worker in store.workers()) == 2, 10, "heartbeats say so")
    assert all(worker.slots == 2 for worker in store.workers())
    for id in ids:
        cloud.wait_finished(id, 90)


def test_rows_15_16_66_to_69__changes_are_noticed_at_once_and_final_ones_are_told(cloud: Cloud, callbacks: Callbacks) -> None:
    id = submit(cloud, "row15.mp4", notify_url=callbacks.url)
    finished = cloud.wait_finished(id)["finished"]
    wait_until(lambda: "FINISHED" in callbacks.states(id), 5, "the callback")
    assert datetime.fromisoformat(finished) <= utcnow()
    bad = submit(cloud, "row66.mp4", source_path=f"s3://{cloud.inbox}/missing.mp4")
    cloud.wait_state(bad, {"ERROR"}, 30)
    settled = wait_until(lambda: [event for name in ("w1", "w2") for event in cloud.events(name, "job.settled")
                                  if event["job"] == bad], 10, "a line of the log, which comes after the record")
    assert settled[-1]["code"] == "source.not_found"


def test_rows_18_70_71__a_job_begun_and_silent_for_long_is_abandoned_told_and_stays_so(
        cloud: Cloud, store: Store, callbacks: Callbacks) -> None:
    long_ago = utcnow() - timedelta(hours=10)
    waiting = Job(id=new_id(), pipeline="fast", recipe="0" * 64, source="s3://b/k", dest="s3://b/l", created=long_ago,
                  updated=long_ago, write_id=new_id(), notify_url=callbacks.url,
               webhook=Webhook(form=True))
    lost = Job(id=new_id(), pipeline="fast", recipe="0" * 64, source="s3://b/k", dest="s3://b/l", created=long_ago,
               updated=long_ago, write_id=new_id(), notify_url=callbacks.url,
               webhook=Webhook(form=True))
    me = Owner(worker="gone", node="gone", claim=new_id())
    store.create(lost)
    store.update(lost.key, claim(me, "m", 30, long_ago))
    store.update(lost.key, give_back(me, "shutting down", long_ago))
    wait_until(lambda: cloud.job(lost.id)["state"] in FINAL, 30, "abandoned")
    assert cloud.job(lost.id)["state"] == "ABANDONED"
    wait_until(lambda: callbacks.states(lost.id)[-1:] == ["ABANDONED"], 20, lambda: str(callbacks.states(lost.id)))
    with pytest.raises(NotClaimable):
        store.update(lost.key, claim(me, "m2", 30, utcnow()))
    assert cloud.job(lost.id)["state"] == "ABANDONED"
    store.create(waiting)  # never begun: it waits in the queue however long, and here has no recipe to run
    assert store.get(waiting.key).state is not JobState.ABANDONED
    wait_until(lambda: cloud.job(waiting.id)["state"] in FINAL, 60, "it is taken")
    assert cloud.job(waiting.id)["state"] == "ERROR"


def test_rows_24_118_119__the_index_comes_first_and_a_file_that_has_it_so_stays_as_it_is(cloud: Cloud) -> None:
    id = submit(cloud, "row24.mp4", passes=[{"outfile_options": MP4, "move_atom_to_front": True}])
    cloud.wait_finished(id)
    body = cloud.body(cloud.dest("row24.mp4"))
    assert 0 < body.find(b"moov") < body.find(b"mdat")
    already = submit(cloud, "row119.mp4", passes=[
        {"outfile_options": [*MP4, ["movflags", "+faststart"]], "move_atom_to_front": True}])
    cloud.wait_finished(already)
    body = cloud.body(cloud.dest("row119.mp4"))
    assert 0 < body.find(b"moov") < body.find(b"mdat")


def test_rows_25_120_121_123__storage_is_by_scheme_and_an_unknown_one_is_refused_at_submit(cloud: Cloud) -> None:
    (cloud.media / "a b.mp4").write_bytes(clip(seconds=2, size="320x180").read_bytes())
    out = cloud.media / "ö%41.mp4"
    id = submit(cloud, "", source_path=(cloud.media / "a b.mp4").as_uri(), dest_path=out.as_uri())
    cloud.wait_finished(id)
    assert out.stat().st_size > 1000
    assert "unknown_scheme" in refusal(cloud, request(cloud, "x", source_path="gopher://host/in.mp4"))["message"]
    assert refusal(cloud, request(cloud, "x", source_path="file:in.mp4"))["error_code"] == "BADINPUT"
    gone = submit(cloud, "gone.mp4", source_path=(cloud.media / "missing.mp4").as_uri())
    assert cloud.wait_state(gone, {"ERROR"}, 30)["error"]["code"] == "source.not_found"


def test_row_121__credentials_may_be_in_the_uri_whatever_they_hold(cloud: Cloud) -> None:
    cloud.s3.put_object(Bucket=cloud.inbox, Key="at@home.mp4", Body=clip(seconds=2, size="320x180").read_bytes())
    keys = f"{ACCESS_KEY}:{SECRET_KEY}@"
    assert "/" in SECRET_KEY and "+" in SECRET_KEY
    id = submit(cloud, "", source_path=f"s3://{keys}{cloud.inbox}/at@home.mp4", dest_path=f"s3://{keys}{cloud.outbox}/keyed.mp4")
    job = cloud.wait_finished(id)
    assert (job["source"], job["dest"]) == (f"s3://{cloud.inbox}/at@home.mp4", cloud.dest("keyed.mp4"))
    plain = submit(cloud, "plain.mp4", source_path=f"s3://{cloud.inbox}/at@home.mp4")
    cloud.wait_finished(plain)


def test_row_122__http_sources_are_fetched_and_outputs_put(cloud: Cloud) -> None:
    with serve() as site:
        site.files["/in.mp4"] = clip(seconds=2, size="320x180").read_bytes()
        id = submit(cloud, "", source_path=f"{site.url}/in.mp4", dest_path=f"{site.url}/out.mp4")
        job = cloud.wait_finished(id)
        assert len(site.files["/out.mp4"]) == job["outputs"][0]["bytes"]


# --- daemons ------------------------------------------------------------------------------------------------------


def test_rows_26_27_28_34__unknown_names_and_missing_files_are_errors_that_name_them(cloud: Cloud, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("worker: {slotz: 3}\n")
    for command, config, words in (("feeder", wrong, ("slotz", "wrong.yaml:1")), ("worker", wrong, ("slotz", "slots")),
                                   ("feeder", tmp_path / "none.yaml", ("none.yaml", "-c"))):
        done = run(cloud, command, "-c", str(config))
        assert done.returncode == 2
        assert all(word in done.stderr for word in words), done.stderr
        assert "Traceback" not in done.stderr
    done = run(cloud, "worker", "--boot", str(tmp_path / "none.yaml"))
    assert (done.returncode, "none.yaml" in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_rows_29_30__daemons_take_a_configuration_and_ports_and_a_local_worker_is_local_dev(
        cloud: Cloud, store: Store) -> None:
    shown = json.loads(cloud.nommerd("config", "show", "--json").stdout)
    bare = {"PATH": cloud.env["PATH"], "HOME": str(cloud.root)}
    defaults = json.loads(run(cloud, "config", "show", "--json", env=bare).stdout)
    assert (defaults["api"]["port"], defaults["worker"]["health_port"]) == (8001, 8002)
    assert shown["api"]["port"] == cloud.port
    assert {worker.node for worker in store.workers()} == {"local-dev"}


def test_rows_64_65_32__a_feeder_that_starts_knows_every_unfinished_job_before_it_listens(cloud: Cloud) -> None:
    with Cloud(cloud.root / "row32").set_up() as other:
        source = other.put_source(clip(seconds=2, size="320x180"))
        feeder = other.start_feeder()
        ids = {other.submit_uris(source, other.dest(f"{n}.mp4"), pipeline="fast") for n in range(3)}
        feeder.kill()
        other.clients("sqs").purge_queue(QueueUrl=other.clients("sqs").get_queue_url(
            QueueName=f"{other.cluster}-jobs-normal")["QueueUrl"])
        other.start_feeder()
        assert {job["id"] for job in other.jobs() if job["state"] == "PENDING"} == ids
        other.start_worker("w1")
        for id in ids:  # their messages are gone: the first sweep, or a later one, sends them again
            other.wait_finished(id, 90)
        cloud_invariants(other)


# --- the API ------------------------------------------------------------------------------------------------------


def test_row_37__both_spellings_of_the_path_are_taken(cloud: Cloud) -> None:
    for path in ("/job/submit", "/job/submit/"):
        assert post(cloud, {}, path)[0] == 200


def test_rows_38_39_40__what_is_missing_or_nothing_is_told_in_the_originals_words_under_status_200(cloud: Cloud) -> None:
    whole = request(cloud, "never.mp4")
    for key in ("source_path", "dest_path", "job_options"):
        for body in ({name: value for name, value in whole.items() if name != key}, {**whole, key: None}, {**whole, key: ""}):
            answer = refusal(cloud, body)
            assert (answer["error_code"], answer["message"]) == ("BADINPUT", f"Missing/invalid required key+val: ['{key}']")
    for key in ("options", "nommer"):
        answer = refusal(cloud, {**whole, "job_options": {**whole["job_options"], key: None}})
        assert answer["message"] == f"Missing/invalid required key+val: ['job_options'][{key}]"


def test_rows_41_42_46__a_job_is_recorded_queued_and_answered_as_json_whatever_the_content_type(
        cloud: Cloud, store: Store) -> None:
    for number, content_type in enumerate((FORM, "application/json", "text/plain")):
        status, answer, answered_type = post(cloud, request(cloud, f"row41-{number}.mp4"), content_type=content_type)
        assert (status, answer["success"], sorted(answer)) == (200, True, ["job_id", "success"])
        assert answered_type.startswith("application/json")
        recorded = store.get(Key("default", answer["job_id"]))
        assert (recorded.source, recorded.dest) == (f"s3://{cloud.inbox}/in.mp4", cloud.dest(f"row41-{number}.mp4"))
        cloud.wait_finished(answer["job_id"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"nul", b"[" * 5000])
def test_rows_43_44__what_is_no_request_is_refused_and_never_an_error_of_the_server(cloud: Cloud, body: bytes) -> None:
    refusal(cloud, body)


def test_row_44__an_unknown_nommer_is_refused_and_a_mapped_one_is_its_pipeline(cloud: Cloud) -> None:
    assert "acme.nommers.Slow" in refusal(cloud, request(cloud, "x.mp4", nommer="acme.nommers.Slow"))["message"]
    status, answer, _ = post(cloud, {**request(cloud, "row44.mp4"), "job_options": {
        "nommer": "acme.nommers.Fast", "options": [{}]}})
    assert answer["success"], (status, answer)
    assert cloud.wait_finished(answer["job_id"])["pipeline"] == "fast"


def test_rows_45_73_to_76__callbacks_are_forms_on_every_change_but_the_first_and_only_where_asked_for(
        cloud: Cloud, callbacks: Callbacks) -> None:
    silent = submit(cloud, "row45.mp4", notify_url=None)
    id = submit(cloud, "row73.mp4", notify_url=callbacks.url)
    bad = submit(cloud, "row74.mp4", notify_url=callbacks.url, source_path=f"s3://{cloud.inbox}/missing.mp4")
    cloud.wait_finished(silent)
    cloud.wait_finished(id)
    wait_until(lambda: "FINISHED" in callbacks.states(id) and "ERROR" in callbacks.states(bad), 20, "the callbacks")
    assert callbacks.states(id) == ["DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED"]
    assert callbacks.states(silent) == []
    form, headers = next(one for one in callbacks.forms if one[0]["unique_id"] == id)
    assert sorted(form) == ["job_state", "job_state_details", "unique_id"]
    assert form["job_state_details"] == ""
    assert (headers["content-type"], "nommerd" in headers["user-agent"]) == (FORM, True)
    assert headers["webhook-signature"].startswith("v1,")
    told = next(form for form, _ in callbacks.forms if form["unique_id"] == bad and form["job_state"] == "ERROR")
    assert "missing.mp4" in told["job_state_details"]


def test_row_47__the_state_of_a_job_can_be_asked_for(cloud: Cloud) -> None:
    id = submit(cloud, "row47.mp4")
    status, job = cloud.call("GET", f"/v1/jobs/{id}?wait=30&after=1")
    assert (status, job["id"]) == (200, id)
    assert cloud.wait_finished(id)["state"] == "FINISHED"


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_rows_48_to_53__a_job_has_the_originals_states_and_fields_with_proper_times_and_an_opaque_id(cloud: Cloud) -> None:
    assert {"PENDING", "DOWNLOADING", "ENCODING", "UPLOADING", "FINISHED", "ERROR", "ABANDONED"} <= set(JobState)
    assert {state for state in JobState if state.final} == {"FINISHED", "ERROR", "ABANDONED", "CANCELLED"}
    cloud.put_source(clip(seconds=2, size="320x180"), "ünïcode.mp4")
    id = submit(cloud, "row53-ü.mp4", source_path=f"s3://{cloud.inbox}/ünïcode.mp4")
    job = cloud.wait_finished(id)
    assert re.fullmatch(r"[0-9a-f]{20}", id)
    for name in ("created", "updated", "finished"):
        assert job[name].endswith("Z")
        assert datetime.fromisoformat(job[name]).utcoffset() == timedelta(0)
    assert (job["source"], job["params"]["nommer"]) == (f"s3://{cloud.inbox}/ünïcode.mp4", FFMPEG)


def test_rows_54_to_57__details_keep_their_end_and_an_invalid_state_is_an_error(cloud: Cloud, callbacks: Callbacks) -> None:
    with pytest.raises(ValueError, match="NOMMING"):
        JobState("NOMMING")
    id = submit(cloud, "row56.mp4", notify_url=callbacks.url,
                passes=[{"outfile_options": [["vcodec", "libx264"], ["b", "400k"], ["s", "1x1"], ["f", "mp4"]]}])
    error = cloud.wait_state(id, {"ERROR"}, 60)["error"]
    wait_until(lambda: "ERROR" in callbacks.states(id), 20, "the callback")
    told = next(form for form, _ in callbacks.forms if form["unique_id"] == id and form["job_state"] == "ERROR")
    assert 0 < len(told["job_state_details"]) <= 1000
    assert error["message"][-60:] in told["job_state_details"]


def test_rows_59_60__an_unknown_id_is_an_error_of_its_own_and_nothing_is_stored_as_the_text_none(
        cloud: Cloud, store: Store) -> None:
    status, problem = cloud.call("GET", "/v1/jobs/0000000000000000dead")
    assert (status, problem["errors"][0]["code"]) == (404, "request.unknown_job")
    id = submit(cloud, "row60.mp4", notify_url=None)
    assert cloud.job(id).get("notify_url") is None
    assert store.get(Key("default", id)).notify_url is None
    cloud.wait_finished(id)
    wait_until(lambda: store.unfinished(10) == 0, 60, "none is unfinished")


def test_rows_61_62__nothing_is_deleted_before_it_is_done_and_wiping_clears_jobs_and_queues(tmp_path: Path) -> None:
    with Cloud(tmp_path).set_up() as other:
        source = other.put_source(clip(seconds=2, size="320x180"))
        feeder = other.start_feeder()
        for number in range(3):
            other.submit_uris(source, other.dest(f"{number}.mp4"), pipeline="fast")
        bus = open_bus(other.bus, other.data, other.clients)
        try:
            (delivery,) = bus.jobs.receive(1, 5)
            assert other.queued() == 3  # received, and still there
            delivery.release()
        finally:
            bus.close()
        feeder.stop()
        done = other.nommerd("wipe", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["deleted"]["jobs"] == 3
        assert other.queued() == 0
        other.start_feeder()
        assert other.jobs() == []


# --- workers -----------------------------------------------------------------------------------------------------


def test_rows_103_104__heartbeats_say_who_works_on_what(cloud: Cloud, store: Store) -> None:
    before = {worker.name: worker.reported for worker in store.workers()}
    wait_until(lambda: all(worker.reported > before[worker.name] for worker in store.workers()), 15, "newer heartbeats")
    assert {worker.state for worker in store.workers()} == {"ACTIVE"}
    assert all("libx264" in worker.encoders for worker in store.workers())


# --- encoding -----------------------------------------------------------------------------------------------------


def test_row_109__the_workspace_goes_whatever_happens_and_the_reason_stays(cloud: Cloud) -> None:
    cloud.s3.put_object(Bucket=cloud.inbox, Key="noise.mp4", Body=bytes(range(256)) * 400)
    id = submit(cloud, "row109.mp4", source_path=f"s3://{cloud.inbox}/noise.mp4")
    error = cloud.wait_state(id, {"ERROR"}, 60)["error"]
    assert (error["code"], bool(error["message"])) == ("input.not_media", True)
    wait_until(lambda: not list((cloud.data / "work").glob(f"*{id}*")), 10, "no workspace")


def test_rows_112_113__options_are_ordered_pairs_that_may_repeat_and_null_is_a_bare_flag(cloud: Cloud) -> None:
    id = submit(cloud, "row112.mp4", passes=[{"infile_options": [["ss", "0"], ["t", "1"]], "outfile_options": [
        ["vcodec", "libx264"], ["preset", "ultrafast"], ["metadata", "title=a"], ["metadata", "comment=b"], ["an", None],
        ["bf", 0], ["f", "mp4"]]}])
    cloud.wait_finished(id)
    found = probe(cloud, "row112.mp4")
    assert [stream["codec_name"] for stream in found["streams"]] == ["h264"]
    assert found["streams"][0]["has_b_frames"] == 0
    assert [found["format"]["tags"][name] for name in ("title", "comment")] == ["a", "b"]
    assert 0.8 < float(found["format"]["duration"]) < 1.3
    refusal(cloud, request(cloud, "x.mp4", passes=[{"outfile_options": [["an", False], ["f", "mp4"]]}]))


def test_rows_114_116__two_passes_and_more_share_measurements_and_none_is_refused(cloud: Cloud) -> None:
    for count in (2, 3):
        passes = [{"outfile_options": [["vcodec", "libx264"], ["b", "300k"], ["pass", str(min(number, 3))], ["an", None],
                                       ["f", "mp4"]]} for number in range(1, count + 1)]
        id = submit(cloud, f"row114-{count}.mp4", passes=passes)
        cloud.wait_finished(id)
        assert [stream["codec_name"] for stream in probe(cloud, f"row114-{count}.mp4")["streams"]] == ["h264"]
    assert refusal(cloud, request(cloud, "x.mp4", passes=[]))["error_code"] == "BADINPUT"


def test_row_117__when_ffmpeg_fails_the_job_says_why_and_nothing_is_uploaded(cloud: Cloud) -> None:
    id = submit(cloud, "row117.mp4", passes=[{"outfile_options": [["vcodec", "libx264"], ["s", "1x1"], ["f", "mp4"]]}])
    error = cloud.wait_state(id, {"ERROR"}, 60)["error"]
    assert error["code"].startswith("encoder.") and len(error["message"]) > 20
    assert "row117.mp4" not in cloud.keys(cloud.outbox)


def test_row_38__the_originals_own_example_makes_a_fast_start_mp4(cloud: Cloud) -> None:
    (cloud.media / "in.mp4").write_bytes(clip(seconds=3, size="640x360").read_bytes())
    out = cloud.media / "example.mp4"
    shared = [["vcodec", "libx264"], ["b", "400k"], ["vf", "yadif,scale='640:trunc(ow/a/2)*2'"]]
    status, answer, _ = post(cloud, {
        "source_path": (cloud.media / "in.mp4").as_uri(), "dest_path": out.as_uri(), "notify_url": None,
        "job_options": {"nommer": FFMPEG, "options": [
            {"outfile_options": [*shared, ["pass", "1"], ["f", "mp4"], ["an", None]]},
            {"outfile_options": [*shared, ["pass", "2"], ["acodec", "libfaac"], ["async", "480"], ["f", "mp4"]],
             "move_atom_to_front": True}]}})
    assert (status, answer["success"]) == (200, True), answer
    job = cloud.wait_finished(answer["job_id"])
    assert "recipe.old_encoder" in {warning["code"] for warning in job["warnings"]}
    body = out.read_bytes()
    assert 0 < body.find(b"moov") < body.find(b"mdat")


def test_rows_61_116__after_all_that_nothing_is_left_behind_and_no_secret_was_seen(cloud: Cloud) -> None:
    cloud_invariants(cloud)
    assert emulator().client("s3").list_multipart_uploads(Bucket=cloud.outbox).get("Uploads", []) == []
