"""A whole nommerd on an AWS emulator: real daemons, real ffmpeg, jobs from S3 to S3, and what faults may not do to them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.aws_proxy import Answer, AwsProxy, Call, Forward, error_answer
from tests.cloud import Cloud, cloud_invariants
from tests.emulator import emulator
from tests.media import clip
from tests.rig import FINAL, Daemon, Receiver, wait_until
from tests.simpledb_server import SimpleDBProcess

RECOVERY_SECONDS = 45.0  # of a job whose worker is gone, from its loss to its next claim
OUTAGE_SECONDS = 25.0  # several leases of six seconds; the whole ten minutes are in the slow test
RESUME_SECONDS = 30.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def proxy() -> Iterator[AwsProxy]:
    with AwsProxy() as proxy:
        yield proxy


def start_workers(cloud: Cloud, *names: str) -> dict[str, Daemon]:
    return {name: cloud.start_worker(name) for name in names}


def owner_of(cloud: Cloud, id: str, workers: dict[str, Daemon]) -> Daemon:
    owner = cloud.job(id)["owner"]
    return workers[owner["worker"] if isinstance(owner, dict) else owner]


def encoding(cloud: Cloud, id: str) -> bool:
    job = cloud.job(id)
    assert job["state"] not in FINAL, job
    return bool(job["state"] == "ENCODING" and cloud.processes("ffmpeg"))


def run_many(cloud: Cloud, count: int, receiver: Receiver) -> None:
    source = cloud.put_source(clip(seconds=2, size="320x180"))
    cloud.start_feeder()
    start_workers(cloud, "w1", "w2")
    ids = [cloud.submit_uris(source, cloud.dest(f"out/{number}.mp4"), pipeline="fast", notify_url=receiver.url)
           for number in range(count)]
    for id in ids:
        assert len(cloud.wait_finished(id, 120)["attempts"]) == 1
    wait_until(lambda: all(len(receiver.ids(id, "FINISHED")) == 1 for id in ids), 20, "a webhook for each")
    cloud_invariants(cloud)


def test_twenty_jobs_from_s3_to_s3_are_done_once_each_and_leave_nothing(tmp_path: Path, receiver: Receiver) -> None:
    with Cloud(tmp_path).set_up() as cloud:
        run_many(cloud, 20, receiver)


def test_the_same_with_records_in_simpledb(tmp_path: Path, receiver: Receiver) -> None:
    server = SimpleDBProcess(upstream=emulator().url)
    try:
        with Cloud(tmp_path, url=server.url, store="simpledb").set_up() as cloud:
            run_many(cloud, 20, receiver)
    finally:
        server.stop()


def test_workers_need_no_feeder_to_finish_and_the_next_one_sends_what_is_due(tmp_path: Path, receiver: Receiver) -> None:
    with Cloud(tmp_path).set_up() as cloud:
        source = cloud.put_source(clip(seconds=4, size="640x360"))
        feeder = cloud.start_feeder()
        start_workers(cloud, "w1")
        ids = [cloud.submit_uris(source, cloud.dest(f"{number}.mp4"), pipeline="slow", notify_url=receiver.url)
               for number in range(3)]
        wait_until(lambda: encoding(cloud, ids[0]), 30, "the first is encoded")
        feeder.kill()
        wait_until(lambda: len(cloud.keys(cloud.outbox)) == 3, 90, "all outputs without a feeder")
        assert not any(receiver.ids(id, "FINISHED") for id in ids)
        cloud.start_feeder()
        for id in ids:
            assert cloud.wait_finished(id, 30)["state"] == "FINISHED"
        wait_until(lambda: all(len(receiver.ids(id, "FINISHED")) == 1 for id in ids), 30, "the webhooks that were due")
        cloud_invariants(cloud)


def test_of_two_feeders_both_answer_and_the_loss_of_the_leader_loses_nothing(tmp_path: Path, receiver: Receiver) -> None:
    with Cloud(tmp_path).set_up() as cloud, ExitStack() as stack:
        source = cloud.put_source(clip(seconds=2, size="320x180"))
        first = cloud.start_feeder()
        other = stack.enter_context(cloud.neighbour())
        other.start_feeder()
        start_workers(other, "w1")
        ids = [feeder.submit_uris(source, cloud.dest(f"{number}.mp4"), pipeline="fast", notify_url=receiver.url)
               for number, feeder in enumerate((cloud, other, cloud, other))]
        assert {job["id"] for job in other.jobs()} == set(ids) == {job["id"] for job in cloud.jobs()}
        first.kill()
        last = other.submit_uris(source, cloud.dest("last.mp4"), pipeline="fast", notify_url=receiver.url)
        for id in (*ids, last):
            other.wait_finished(id, 60)
        wait_until(lambda: all(receiver.ids(id, "FINISHED") for id in (*ids, last)), 60, "the webhooks of the new leader")
        cloud_invariants(other)


@pytest.mark.parametrize("moment", ["encode", "upload"])
def test_a_worker_killed_in_mid_work_is_replaced_within_the_bound(tmp_path: Path, proxy: AwsProxy, moment: str) -> None:
    with Cloud(tmp_path, url=proxy.url, slots=1, lease_seconds=12).set_up() as cloud:
        source = cloud.put_source(clip(seconds=6, size="640x360"))
        if moment == "upload":  # the first part never gets its answer: the upload is open when its worker dies
            proxy.lose_answer("UploadPart", times=3)
        cloud.start_feeder()
        workers = start_workers(cloud, "w1", "w2")
        id = cloud.submit_uris(source, cloud.dest("one.mp4"), pipeline="slow" if moment == "encode" else "fast")
        if moment == "encode":
            wait_until(lambda: encoding(cloud, id), 30, "it is encoded")
        else:
            wait_until(lambda: proxy.count("UploadPart"), 60, "it is uploaded")
            assert cloud.open_uploads() == ["one.mp4"]
        victim = owner_of(cloud, id, workers)
        victim.kill()
        lost = time.monotonic()
        victim_attempts = len(cloud.job(id)["attempts"])
        wait_until(lambda: len(cloud.job(id)["attempts"]) > victim_attempts, RECOVERY_SECONDS, "another worker has it")
        assert time.monotonic() - lost <= RECOVERY_SECONDS
        cloud.wait_finished(id, 60)
        assert cloud.keys(cloud.outbox) == ["one.mp4"]
        cloud_invariants(cloud)


LONG = """\
kind: pipeline
name: long
stages:
  - fetch
  - ffmpeg: {pass: 1, options: [[c:v, libx264], [preset, ultrafast], [vf, realtime], [an, null], [f, mp4]]}
  - upload
  - notify
"""


def sqs_is_down(call: Call, forward: Forward) -> Answer | None:
    """Faults, throttling and closed connections by turns."""
    if call.service != "sqs":
        return forward(call)
    turn = int(call.at * 10) % 3
    if turn == 0:
        return None
    return error_answer(call, 503, "ServiceUnavailable", "") if turn == 1 else error_answer(call, 400, "RequestThrottled", "")


def outage(tmp_path: Path, proxy: AwsProxy, seconds: float, lease_seconds: float) -> None:
    """SQS goes away while a job runs, and another is submitted: the first goes on, uncharged; the second starts soon after."""
    with Cloud(tmp_path, url=proxy.url, lease_seconds=lease_seconds) as cloud:
        (tmp_path / "pipelines" / "long.yaml").write_text(LONG)
        cloud.set_up()
        source = cloud.put_source(clip(seconds=int(seconds) + 10, size="160x90", rate=5), "long.mp4")
        cloud.start_feeder()
        start_workers(cloud, "w1")
        running = cloud.submit_uris(source, cloud.dest("running.mp4"), pipeline="long")
        wait_until(lambda: encoding(cloud, running), 30, "the first is encoded")
        proxy.rules.append(sqs_is_down)
        gone = time.monotonic()
        waiting = cloud.submit_uris(source, cloud.dest("waiting.mp4"), pipeline="fast")
        wait_until(lambda: time.monotonic() - gone > seconds, seconds + 5, "the outage to pass")
        assert (cloud.job(running)["state"], cloud.job(waiting)["state"]) == ("ENCODING", "PENDING")
        proxy.rules.remove(sqs_is_down)
        wait_until(lambda: cloud.job(waiting)["attempts"], RESUME_SECONDS, "work goes on by itself")
        for id in (running, waiting):
            assert len(cloud.wait_finished(id, 60)["attempts"]) == 1
        cloud_invariants(cloud)


def test_without_sqs_encodes_go_on_uncharged_and_work_resumes_by_itself(tmp_path: Path, proxy: AwsProxy) -> None:
    outage(tmp_path, proxy, OUTAGE_SECONDS, lease_seconds=6)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_ten_minutes_without_sqs(tmp_path: Path, proxy: AwsProxy) -> None:
    outage(tmp_path, proxy, 600, lease_seconds=30)
