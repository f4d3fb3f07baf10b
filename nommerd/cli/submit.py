"""`nommerd submit`: hand a job to a feeder, and wait for it if asked."""

from __future__ import annotations

from typing import Any

import click

from nommerd.cli.client import Client
from nommerd.cli.options import (
    Command,
    absolute_uri,
    client_options,
    examples,
    input_items,
    job_options,
    json_option,
    pairs,
    scalar,
)
from nommerd.cli.output import ProgressLine, print_json, problem_lines


@click.command(cls=Command, epilog=examples(
    "nommerd submit holiday.mov small.mp4 -p web-720p --wait",
    "nommerd submit s3://incoming/talk.mov s3://media/talk.mp4 -p web-720p --priority high --label album=2026",
    "nommerd submit holiday.mov small.mp4 -p web-480p --set video_bitrate=400k --idempotency-key holiday-1"))
@job_options(pipeline_help="Pipeline, by name, instead of a preset.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Which jobs go first.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label to find it by. May repeat.")
@click.option("--notify-url", help="Where webhooks go.")
@click.option("--idempotency-key", help="The same key and job again makes no second job.")
@click.option("--wait", is_flag=True, help="Show its progress; exit 1 if it fails.")
@client_options
@json_option
def submit(source: str, dest: str, *, preset: str | None, pipeline: str | None, inputs: tuple[str, ...],
           idempotency_key: str | None, wait: bool, url: str | None, token: str | None, as_json: bool, **more: Any) -> int:
    """Encode SOURCE to DEST on the feeder's workers. Paths are made absolute; URIs go as they are."""
    if (preset is None) == (pipeline is None):
        raise click.UsageError("Name a preset (-p) or a pipeline (--pipeline), one of the two.")
    body = {"source": absolute_uri(source), "dest": absolute_uri(dest), "preset": preset, "pipeline": pipeline,
            "inputs": input_items(inputs), **_options(**more)}
    client = Client.from_options(url, token)
    job = client.submit({key: value for key, value in body.items() if value}, idempotency_key)
    if wait:
        return _wait(client, job, as_json)
    if as_json:
        print_json(job)
    else:
        print(job["id"])
    return 0


def _options(params: tuple[str, ...], labels: tuple[str, ...], **plain: Any) -> dict[str, Any]:
    return {"params": {key: scalar(value) for key, value in pairs(params, "--set").items()},
            "labels": pairs(labels, "--label"), **plain}


def _wait(client: Client, job: dict[str, Any], as_json: bool) -> int:
    from nommerd.cli.follow import follow

    line = ProgressLine()
    line.say(f"job {job['id']}")
    try:
        job, _ = follow(client, job, line)
    except KeyboardInterrupt:
        line.say(f"The job goes on: nommerd jobs watch {job['id']}")
        raise
    if as_json:
        print_json(job)
    elif job["state"] == "FINISHED":
        for output in job["outputs"]:
            print(output["uri"])
    else:
        line.say("\n".join(problem_lines(job["error"])) if job["error"] else f"The job is {job['state']}.")
    return 0 if job["state"] == "FINISHED" else 1
