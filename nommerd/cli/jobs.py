"""`nommerd jobs`: list, show, cancel and retry jobs of a feeder."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote, urlsplit

import click

from nommerd.cli.client import Client
from nommerd.cli.options import client_options, json_option
from nommerd.cli.output import age, duration, print_json, problem_lines, size, table


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
        table(["ID", "STATE", "DONE", "PRESET", "SOURCE", "UPDATED", "ERROR"], [_row(job) for job in found])
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
    lines += [f"created   {job['created']}", f"updated   {job['updated']}"]
    for attempt in job["attempts"]:
        until = f"{attempt['ended']}  {attempt['why']}" if attempt["ended"] else "now"
        lines.append(f"attempt   {attempt['worker']} on {attempt['node']}, {attempt['begun']} to {until}")
    for output in job["outputs"]:
        lines.append(f"output    {output['uri']} ({size(output['bytes'])}, sha256 {output['sha256'][:16]}…)")
    for kind, problems in (("warning", job["warnings"]), ("error", [job["error"]] if job["error"] else [])):
        for problem in problems:
            first, *rest = problem_lines(problem)
            lines += [f"{kind:<9} {first}", *(f"{'':<9} {text}" for text in rest)]
    return lines


def _act(verb: str, job_ids: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> None:
    client = Client.from_options(url, token)
    answers = [client.call("POST", f"/v1/jobs/{quote(job_id, safe='')}/{verb}", {}) for job_id in job_ids]
    if as_json:
        print_json(answers)
        return
    for job in answers:
        print(f"{job['id']}  {'cancel requested' if verb == 'cancel' and job['state'] != 'CANCELLED' else job['state']}")


@jobs.command("cancel")
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
@client_options
@json_option
def cancel(job_ids: tuple[str, ...], *, url: str | None, token: str | None, as_json: bool) -> None:
    """Stop jobs: at once where nobody works on them, within seconds where somebody does."""
    _act("cancel", job_ids, url, token, as_json)


@jobs.command("retry")
@click.argument("job_ids", metavar="ID…", nargs=-1, required=True)
@client_options
@json_option
def retry(job_ids: tuple[str, ...], *, url: str | None, token: str | None, as_json: bool) -> None:
    """Run ERROR, ABANDONED or CANCELLED jobs again from the beginning, with the same recipe."""
    _act("retry", job_ids, url, token, as_json)
