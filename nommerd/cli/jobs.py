"""`nommerd jobs`: list, show, cancel and retry jobs of a feeder."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote, urlsplit

import click

from nommerd.cli.client import Client
from nommerd.cli.options import client_options, json_option
from nommerd.cli.output import age, duration, moment, print_json, problem_lines, size, table
from nommerd.errors import InputError, ManyErrors, NommerdError


@click.group()
def jobs() -> None:
    """List, show, cancel and retry jobs."""


@jobs.command("ls")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only in this state. May repeat.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only with this label. May repeat.")
@click.option("--preset", help="Only with this preset.")
@click.option("--code", help="Only with this error code.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@client_options
@json_option
def list_jobs(*, states: tuple[str, ...], labels: tuple[str, ...], preset: str | None, code: str | None, limit: int,
              url: str | None, token: str | None, as_json: bool) -> None:
    """The newest jobs first."""
    query = [("state", state.upper()) for state in states] + [("label", label) for label in labels]
    query += [(name, value) for name, value in (("preset", preset), ("error_code", code)) if value]
    found = Client.from_options(url, token).jobs(query, limit)
    if as_json:
        print_json(found)
    elif found:
        table(["ID", "STATE", "DONE", "PRESET", "SOURCE", "UPDATED", "ERROR"], [_row(job) for job in found],
              shrink=["SOURCE", "ERROR", "PRESET"])
    else:
        print("There are no such jobs.")


def _row(job: dict[str, Any]) -> list[str]:
    name = unquote(urlsplit(job["source"]).path.rstrip("/").rpartition("/")[2])
    return [job["id"], job["state"], f"{100 * job['progress']:.0f} %", job["preset"] or job["pipeline"] or "", name,
            age(job["updated"]), (job["error"] or {}).get("code", "")]


@jobs.command("show")
@click.argument("job_id", metavar="ID")
@client_options
@json_option
def show(job_id: str, *, url: str | None, token: str | None, as_json: bool) -> None:
    """One job, with its attempts, outputs, warnings and error."""
    job = Client.from_options(url, token).job(job_id)
    if as_json:
        print_json(job)
        return
    print("\n".join(_lines(job)))


def _lines(job: dict[str, Any]) -> list[str]:
    stage = f", {job['stage']}" if job["stage"] else ""
    left = f", {duration(job['eta_seconds'])} left" if job["eta_seconds"] is not None else ""
    lines = [f"job       {job['id']}", f"state     {job['state']} ({100 * job['progress']:.0f} %{stage}{left})",
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
    return lines


def _act(verb: str, job_ids: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> None:
    """Every job gets its turn, whatever the feeder says of the others. Raises what it refused, at the end."""
    client = Client.from_options(url, token)
    answers: list[dict[str, Any]] = []
    refused: list[NommerdError] = []
    for job_id in job_ids:
        try:
            job = client.call("POST", f"/v1/jobs/{quote(job_id, safe='')}/{verb}", {})
        except InputError as error:
            refused.append(error)
            continue
        answers.append(job)
        if not as_json:
            print(f"{job['id']}  {'cancel requested' if verb == 'cancel' and job['state'] != 'CANCELLED' else job['state']}")
    if refused:
        raise refused[0] if len(refused) == 1 else ManyErrors(refused)
    if as_json:
        print_json(answers)


@jobs.command("cancel", short_help="Stop jobs.")
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
@client_options
@json_option
def cancel(job_ids: tuple[str, ...], *, url: str | None, token: str | None, as_json: bool) -> None:
    """Stop jobs: at once where nobody works on them, within seconds where somebody does."""
    _act("cancel", job_ids, url, token, as_json)


@jobs.command("retry", short_help="Run failed or cancelled jobs again.")
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
@client_options
@json_option
def retry(job_ids: tuple[str, ...], *, url: str | None, token: str | None, as_json: bool) -> None:
    """Run ERROR, ABANDONED or CANCELLED jobs again from the beginning, with the same recipe."""
    _act("retry", job_ids, url, token, as_json)


@jobs.command("log", short_help="What each attempt at a job ran.")
@click.argument("job_id", metavar="ID")
@client_options
@json_option
def log(job_id: str, *, url: str | None, token: str | None, as_json: bool) -> None:
    """The commands of each attempt at a job, ready to be copied, what they said, and what source and outputs are. Needs a
    token with the scope `operate`."""
    from nommerd.cli.joblog import show_log

    show_log(job_id, url=url, token=token, as_json=as_json)
