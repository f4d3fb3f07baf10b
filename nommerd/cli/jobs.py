"""`nommerd jobs`: list and show jobs of a feeder; what else is done with them has modules of its own."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

import click

from nommerd.cli.bulk import cancel, retry
from nommerd.cli.client import Client
from nommerd.cli.filters import filter_options, query_of
from nommerd.cli.jobwatch import watch
from nommerd.cli.options import Group, client_options, examples, json_option, printable
from nommerd.cli.output import age, duration, moment, print_each, print_json, problem_lines, size, source_name, table
from nommerd.cli.progress import times


@click.group(cls=Group)
def jobs() -> None:
    """List, show, follow, cancel and retry jobs."""


@jobs.command("ls", short_help="List jobs, the newest first.", epilog=examples(
    "nommerd jobs ls", "nommerd jobs ls --state ERROR --since 2h", "nommerd jobs ls --label album=2026 --all --json"))
@filter_options
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most so many.")
@click.option("--all", "everything", is_flag=True, help="However many there are.")
@client_options
@json_option
def list_jobs(*, states: tuple[str, ...], labels: tuple[str, ...], preset: str | None, code: str | None, since: str | None,
              limit: int, everything: bool, url: str | None, token: str | None, as_json: bool) -> None:
    """List jobs, the newest first."""
    query = query_of(states, labels, preset, code, since)
    client = Client.from_options(url, token)
    if as_json:
        print_each(client.jobs(query, None if everything else limit))
        return
    found = client.jobs(query, None if everything else limit + 1)
    rows = [_row(job) for job in islice(found, None if everything else limit)]
    if rows:
        table(["ID", "STATE", "DONE", "PRESET", "SOURCE", "UPDATED", "ERROR"], rows, shrink=["SOURCE", "ERROR", "PRESET"],
              drop=["UPDATED", "DONE", "PRESET"])
    else:
        print("There are no such jobs.")
    if next(found, None) is not None:
        sys.stdout.flush()
        click.echo(f"There are more than these {limit}: --all lists them, or --limit.", err=True)


def _row(job: dict[str, Any]) -> list[str]:
    done = int(100 * job["progress"]) if job["state"] != "FINISHED" else 100
    return [job["id"], job["state"], f"{done} %", job["preset"] or job["pipeline"] or "", source_name(job),
            age(job["updated"]), (job["error"] or {}).get("code", "")]


@jobs.command("show", short_help="One job, with everything that is known of it.", epilog=examples(
    "nommerd jobs show 6f1c2a9be0d34c57a801", "nommerd jobs show 6f1c2a9be0d34c57a801 --json | jq .outputs"))
@click.argument("job_id", metavar="ID")
@client_options
@json_option
def show(job_id: str, *, url: str | None, token: str | None, as_json: bool) -> None:
    """One job, with its attempts, outputs, warnings, error and webhook deliveries."""
    if not job_id.strip():
        raise click.UsageError("The id is empty. Is a variable empty?")
    job = Client.from_options(url, token).job(job_id)
    if as_json:
        print_json(job)
    else:
        print("\n".join(printable(line) for line in _lines(job)))


def _lines(job: dict[str, Any]) -> list[str]:
    stage = f", {job['stage']}" if job["stage"] else ""
    left = f", {duration(job['eta_seconds'])} left" if job["eta_seconds"] is not None else ""
    left += f", {times(job['speed'])}" if job.get("speed") is not None else ""
    lines = [f"job       {job['id']}", f"state     {job['state']} ({int(100 * job['progress'])} %{stage}{left})",
             f"source    {job['source']}", f"dest      {job['dest']}", f"recipe    {job['preset'] or job['pipeline']}"]
    lines += [f"{kind:<9} {name}={value}" for kind in ("params", "labels") for name, value in job[kind].items()]
    lines += [f"priority  {job['priority']}"] if job["priority"] != "normal" else []
    lines += [f"created   {moment(job['created'])}", f"updated   {moment(job['updated'])}"]
    for attempt in job["attempts"]:
        until = f"{moment(attempt['ended'])}  {attempt['why']}" if attempt["ended"] else "now"
        lines.append(f"attempt   {attempt['worker']} on {attempt['node']}, {moment(attempt['begun'])} to {until}")
    for output in job["outputs"]:
        lines.append(f"output    {output['uri']} ({size(output['bytes'])}, sha256 {output['sha256'][:16]}…)")
    for kind, problems in (("warning", job["warnings"]), ("error", [job["error"]] if job["error"] else [])):
        for problem in problems:
            first, *rest = problem_lines(problem)
            lines += [f"{kind:<9} {first}", *(f"{'':<9} {text}" for text in rest)]
    return lines + _webhook_lines(job)


def _webhook_lines(job: dict[str, Any]) -> list[str]:
    """What became of the news for the receiver."""
    hook = job.get("webhook")
    if not hook:
        return []
    due = job["event_seq"] - hook["accepted_seq"]
    state = "disabled: the receiver wants no more" if hook["disabled"] else f"events up to {hook['accepted_seq']} accepted"
    if due and not hook["disabled"] and hook["tries"]:
        state += f", tried {hook['tries']} times"
        state += f", again at {moment(hook['next_at'])}" if hook["next_at"] else ""
    lines = [f"webhook   {state}"]
    for one in hook.get("deliveries", []):
        said = one["status"] if one["status"] is not None else "no answer"
        lines.append(f"{'':<9} event {one['seq']} at {moment(one['at'])}: {said}{', ' + one['why'] if one['why'] else ''}")
    return lines


@jobs.command("log", short_help="What each attempt at a job ran.", epilog=examples(
    "nommerd jobs log 6f1c2a9be0d34c57a801", "nommerd jobs log 6f1c2a9be0d34c57a801 --json"))
@click.argument("job_id", metavar="ID")
@client_options
@json_option
def log(job_id: str, *, url: str | None, token: str | None, as_json: bool) -> None:
    """The commands of each attempt at a job, ready to be copied, what they said, and what source and outputs are. Needs a
    token with the scope `operate`."""
    from nommerd.cli.joblog import show_log

    show_log(job_id, url=url, token=token, as_json=as_json)


for command in (watch, cancel, retry):
    jobs.add_command(command)
