"""Resident memory of a feeder with 10,000 jobs in DynamoDB and of an idle worker on SQS, against a Python with gevent and
pydantic alone. The account is an emulator's."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.memory import bare_mb, resident_mb
from benchmarks.report import report
from nommerd import runtime

JOBS = 10_000  # the emulator looks at every item in each query: more of them stop it, and nothing in a feeder grows with them
BATCH = 25


def main() -> None:
    runtime.patch()
    from tests.cloud import Cloud
    from tests.media import clip

    bare = bare_mb()
    with tempfile.TemporaryDirectory() as folder, Cloud(Path(folder)).set_up() as cloud:
        fill(cloud.clients("dynamodb"), cloud.cluster, JOBS)
        feeder = cloud.start_feeder(60)
        worker = cloud.start_worker("w1")
        source = cloud.put_source(clip(seconds=1, size="160x120"))
        for number in range(5):
            cloud.wait_finished(cloud.submit_uris(source, cloud.dest(f"{number}.m4a"), preset="audio-aac"), 120)
        cloud.call("GET", "/v1/jobs?limit=500", timeout=120)
        feeder_mb, worker_mb = resident_mb(feeder.pid), resident_mb(worker.pid)
    alone = f"gevent, bottle and pydantic alone: {bare:.0f} MB"
    report("feeder at 10,000 jobs on AWS, resident", feeder_mb, "MB", at_most=130, baseline=alone)
    report("idle worker after 5 jobs on AWS, resident", worker_mb, "MB", at_most=90, baseline=alone)


def fill(client: object, table: str, count: int) -> None:
    """Final jobs as the store writes them, 25 at a time."""
    from nommerd.job import Job, JobState, new_id, utcnow
    from nommerd.store.dynamodb_items import job_item

    def finished(number: int) -> Job:
        now = utcnow()
        return Job(id=new_id(), preset="web-720p", pipeline="web-mp4", recipe="0" * 64, created=now, updated=now,
                   source=f"s3://media/in/{number}.mov", dest=f"s3://media/out/{number}.mp4").move(JobState.FINISHED, now)

    for start in range(0, count, BATCH):
        puts = [{"PutRequest": {"Item": job_item(finished(number), 3600.0)}} for number in range(start, start + BATCH)]
        client.batch_write_item(RequestItems={table: puts})  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
