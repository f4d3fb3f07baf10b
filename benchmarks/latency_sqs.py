"""From the API's answer to the claim committed by an idle worker over SQS and DynamoDB, and what an idle worker asks for.

The account is an emulator's on this machine, so the network's part is missing. The baseline is one send and receive of a
message, and one write of a record, by boto3 alone on the same emulator.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.report import median, report
from nommerd import runtime

JOBS = 40
IDLE_SECONDS = 60.0  # counted from when all queues are waited on


def main() -> None:
    runtime.patch()
    from nommerd.job import Key
    from nommerd.store import open_store
    from tests.aws_proxy import AwsProxy
    from tests.cloud import Cloud
    from tests.media import clip
    from tests.rig import wait_until

    with tempfile.TemporaryDirectory() as folder, Cloud(Path(folder), slots=1).set_up() as cloud:
        source = cloud.put_source(clip(seconds=1, size="160x120"))
        cloud.start_feeder()
        cloud.start_worker("w1")
        store = open_store(cloud.store, cloud.data, cloud.clients)
        alone, claims, execs = [], [], []
        for number in range(JOBS):
            alone.append(round_trip(cloud))
            job_id = cloud.submit_uris(source, cloud.dest(f"{number}.m4a"), preset="audio-aac")
            begun = time.perf_counter()
            while not store.get(Key("default", job_id)).attempts:
                assert time.perf_counter() - begun < 5, "not claimed within 5 s"
            claims.append(time.perf_counter() - begun)
            wait_until(lambda: cloud.processes("ffmpeg") or cloud.job(job_id)["state"] == "FINISHED", 10, "ffmpeg")  # noqa: B023
            execs.append(time.perf_counter() - begun)
            cloud.wait_finished(job_id, 30)
    report("answer -> claim committed over SQS, median", median(claims) * 1000, "ms", at_most=60,
           baseline=f"boto3's send, receive and write alone: {median(alone) * 1000:.1f} ms")
    print(f"  answer -> ffmpeg seen running, median: {median(execs) * 1000:.0f} ms")

    with AwsProxy() as proxy, tempfile.TemporaryDirectory() as folder, Cloud(Path(folder), url=proxy.url).set_up() as cloud:
        cloud.start_feeder()
        cloud.start_worker("w1")
        wait_until(lambda: len({call.resource for call in proxy.asked("ReceiveMessage") if call.json["WaitTimeSeconds"]}) == 4,
                   20, "a long poll of each queue")
        before = len(proxy.calls)
        time.sleep(IDLE_SECONDS)
        asked = Counter((call.service, call.action, call.resource) for call in proxy.calls[before:])
    polls = {queue: count for (_, action, queue), count in asked.items() if action == "ReceiveMessage" and "dead" not in queue}
    report("idle: polls a minute of a queue, at most", max(polls.values()) * 60 / IDLE_SECONDS, "", at_most=4,
           baseline=f"{len(polls)} queues; a wait of 20 s is the longest SQS has")
    services = Counter(call for (call, _, _), count in asked.items() for _ in range(count))
    print(f"  all requests of an idle feeder and worker in {IDLE_SECONDS:.0f} s: {dict(services)}")


def round_trip(cloud: object) -> float:
    """Seconds for what no queue and store can do without."""
    sqs, dynamo = cloud.clients("sqs"), cloud.clients("dynamodb")  # type: ignore[attr-defined]
    name = f"{cloud.cluster}-probe"  # type: ignore[attr-defined]
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    begun = time.perf_counter()
    sqs.send_message(QueueUrl=url, MessageBody="x" * 200)
    sqs.receive_message(QueueUrl=url)
    dynamo.put_item(TableName=cloud.cluster, Item={"pk": {"S": "probe"}, "sk": {"S": "probe"},  # type: ignore[attr-defined]
                                                   "body": {"S": "x" * 1500}})
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
