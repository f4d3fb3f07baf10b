"""`nommerd webhooks`: what receivers are behind, a test of one, events sent again, the secret."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

import click

from nommerd.cli.client import Client
from nommerd.cli.options import Group, client_options, examples, json_option
from nommerd.cli.output import moment, print_json, table

NOT_ACCEPTED = 1


@click.group(cls=Group, epilog=examples(
    "nommerd webhooks ls", "nommerd webhooks test https://app.example/hooks/nommerd",
    "nommerd webhooks replay 3f0c77d1a2b4c5d6e7f8", "nommerd webhooks secret --rotate"))
def webhooks() -> None:
    """See which receivers fail, test one, send events again, replace the secret."""


@webhooks.command("ls", short_help="List receivers that fail or were given up.", epilog=examples(
    "nommerd webhooks ls", "nommerd webhooks ls --json"))
@client_options
@json_option
def overview(*, url: str | None, token: str | None, as_json: bool) -> None:
    """Jobs whose receiver does not accept events, and those whose receiver was given up."""
    found = Client.from_options(url, token).call("GET", "/v1/webhooks")
    if as_json:
        print_json(found)
        return
    jobs = "1 job has" if found["due"] == 1 else f"{found['due']} jobs have"
    print(f"{jobs} events that are due, {len(found['failing'])} of them after a failure.")
    rows = [_row(one, "given up" if kind == "disabled" else "") for kind in ("failing", "disabled") for one in found[kind]]
    if rows:
        table(["JOB", "RECEIVER", "TRIES", "NEXT TRY", "LAST ANSWER"], rows, shrink=["LAST ANSWER", "RECEIVER"])


def _row(one: dict[str, Any], no_next: str) -> list[str]:
    return [one["job"], one["host"], str(one["tries"]), moment(one["next_at"]) if one["next_at"] else no_next or "now",
            one["why"] or str(one["status"] or "")]


@webhooks.command("test", short_help="Send one signed test event to a URL.", epilog=examples(
    "nommerd webhooks test https://app.example/hooks/nommerd"))
@click.argument("receiver", metavar="URL")
@client_options
@json_option
def test(receiver: str, *, url: str | None, token: str | None, as_json: bool) -> int:
    """Have the feeder send one signed `webhook.test` event to URL. Exit code 1 where it is not accepted."""
    answer = Client.from_options(url, token).call("POST", "/v1/webhooks/test", {"url": receiver})
    if as_json:
        print_json(answer)
    elif answer["accepted"]:
        print(f"Accepted with {answer['status']} in {answer['seconds']:.2f} s.")
    else:
        print(f"nommerd: not accepted: {answer['why'].rstrip('.')} ({answer['seconds']:.2f} s).", file=sys.stderr)
    return 0 if answer["accepted"] else NOT_ACCEPTED


@webhooks.command("replay", short_help="Send the events of a job again.", epilog=examples(
    "nommerd webhooks replay 3f0c77d1a2b4c5d6e7f8", "nommerd webhooks replay 3f0c77d1a2b4c5d6e7f8 --after 2"))
@click.argument("job_id", metavar="JOB")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Only the events behind this number.")
@client_options
@json_option
def replay(job_id: str, *, after: int, url: str | None, token: str | None, as_json: bool) -> None:
    """Send the events of JOB again, under the webhook-ids they had; also where its receiver was given up."""
    job = Client.from_options(url, token).call("POST", f"/v1/jobs/{quote(job_id, safe='')}/webhooks/replay", {"after": after})
    if as_json:
        print_json(job)
        return
    behind = job["webhook"]["accepted_seq"]
    print(f"{job['id']}  events behind {behind} are due" if behind < job["event_seq"] else
          f"{job['id']}  there is no event behind {behind} so far: none is due")


@webhooks.command("secret", short_help="How old the signing secret is; replace it.", epilog=examples(
    "nommerd webhooks secret", "nommerd webhooks secret --rotate"))
@click.option("--rotate", is_flag=True, help="Replace it, and print the new one. The one before signs for a day more.")
@client_options
@json_option
def secret(*, rotate: bool, url: str | None, token: str | None, as_json: bool) -> None:
    """How old the signing secret is; with --rotate, a new one, which is shown this once."""
    client = Client.from_options(url, token)
    answer = client.call("POST", "/v1/webhooks/secret", {}) if rotate else client.call("GET", "/v1/webhooks")["secret"]
    if as_json:
        print_json(answer)
        return
    if rotate:
        print(answer["secret"])
    elif answer["configured"]:
        print("The secret stands in the feeder's configuration: webhooks.secret.")
    else:
        print(f"made {moment(answer['made'])}" if answer["made"] else "never replaced")
    if answer["previous_until"]:
        print(f"The one before signs as well until {moment(answer['previous_until'])}.", file=sys.stderr)
