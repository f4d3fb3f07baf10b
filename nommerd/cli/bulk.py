"""`nommerd jobs cancel` and `retry`: by id, or all that filters find, each with a line of its own."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click

from nommerd.cli.client import Busy, Client, Conflict, Missing
from nommerd.cli.filters import Query, filter_options, query_of
from nommerd.cli.options import Command, F, client_options, examples, json_option
from nommerd.cli.output import print_json
from nommerd.errors import InfrastructureError, InputError, ManyErrors, NommerdError

TRIES = 6  # of one call, while the feeder cannot be reached or asks for patience
PAUSE_SECONDS = 0.5  # doubled with each try
PAUSE_MAX_SECONDS = 20.0
SHOWN = 10  # jobs that a question lists


@dataclass(frozen=True, slots=True)
class Verb:
    """What is done, the states in which it can be, and what to say of it."""

    name: str
    states: tuple[str, ...]
    done: str


CANCEL = Verb("cancel", ("PENDING", "DOWNLOADING", "ENCODING", "UPLOADING", "WAITING"), "cancelled")
RETRY = Verb("retry", ("ERROR", "ABANDONED", "CANCELLED"), "retried")


def _by_id_or_filter(function: F) -> F:
    """What says which jobs are meant."""
    for option in reversed((
            click.argument("job_ids", metavar="[ID]…", nargs=-1), filter_options,
            click.option("--dry-run", is_flag=True, help="With filters: only tell which jobs are meant."),
            click.option("--yes", is_flag=True, help="With filters: do not ask."), client_options, json_option)):
        function = option(function)
    return function


@click.command("cancel", cls=Command, short_help="Stop jobs.", epilog=examples(
    "nommerd jobs cancel 6f1c2a9be0d34c57a801", "nommerd jobs cancel --label album=2026 --dry-run",
    "nommerd jobs cancel --state PENDING --since 2h --yes"))
@_by_id_or_filter
def cancel(job_ids: tuple[str, ...], **more: Any) -> int:
    """Stop jobs: at once where nobody works on them, within seconds where somebody does. Name them, or give filters: then
    all that fit all of them and have not ended."""
    return _act(CANCEL, job_ids, **more)


@click.command("retry", cls=Command, short_help="Run failed or cancelled jobs again.", epilog=examples(
    "nommerd jobs retry 6f1c2a9be0d34c57a801", "nommerd jobs retry --state ERROR --code node.disk_full --since 2h --dry-run",
    "nommerd jobs retry --state ERROR --preset web-720p --yes"))
@_by_id_or_filter
def retry(job_ids: tuple[str, ...], **more: Any) -> int:
    """Run ERROR, ABANDONED or CANCELLED jobs again from the beginning, with the same recipe. Name them, or give filters: then
    all that fit all of them (CANCELLED ones only with --state CANCELLED)."""
    return _act(RETRY, job_ids, **more)


def _act(verb: Verb, job_ids: tuple[str, ...], *, states: tuple[str, ...], labels: tuple[str, ...], preset: str | None,
         code: str | None, since: str | None, dry_run: bool, yes: bool, url: str | None, token: str | None,
         as_json: bool) -> int:
    query = query_of(states, labels, preset, code, since)
    if bool(job_ids) == bool(query):
        raise click.UsageError(f"Name the jobs to {verb.name}, or give filters (--state, --label, --preset, --code, --since): "
                               "one of the two.")
    if any(not job_id.strip() for job_id in job_ids):
        raise click.UsageError("An id is empty. Is a variable empty?")
    client = Client.from_options(url, token)
    if job_ids:
        if dry_run:
            raise click.UsageError("--dry-run is for filters.")
        return _named(verb, client, job_ids, as_json)
    return _found(verb, client, _only_possible(verb, states, query), as_json=as_json, dry_run=dry_run, yes=yes)


# --- by id -------------------------------------------------------------------------------------------------------------


def _named(verb: Verb, client: Client, job_ids: tuple[str, ...], as_json: bool) -> int:
    """Every job gets its turn, whatever the feeder says of the others. Raises what it refused, at the end."""
    answers: list[dict[str, Any]] = []
    refused: list[NommerdError] = []
    for job_id in job_ids:
        try:
            job = _post(client, verb, job_id)
        except InputError as error:
            refused.append(error)
            continue
        answers.append(job)
        if not as_json:
            print(f"{job['id']}  {_told(verb, job)}", flush=True)
    if refused:
        raise refused[0] if len(refused) == 1 else ManyErrors(refused)
    if as_json:
        print_json(answers)
    return 0


def _post(client: Client, verb: Verb, job_id: str) -> dict[str, Any]:
    """One call; again after a while where the feeder asks for patience."""
    for number in range(TRIES):
        try:
            job: dict[str, Any] = client.call("POST", f"/v1/jobs/{quote(job_id, safe='')}/{verb.name}", {})
            return job
        except Busy as error:
            if number == TRIES - 1:
                raise
            time.sleep(min(PAUSE_MAX_SECONDS, error.seconds or PAUSE_SECONDS * 2 ** number))
    raise AssertionError("unreachable")


def _told(verb: Verb, job: dict[str, Any]) -> str:
    return "cancel requested" if verb is CANCEL and job["state"] != "CANCELLED" else str(job["state"])


# --- by filters --------------------------------------------------------------------------------------------------------


def _only_possible(verb: Verb, states: tuple[str, ...], query: Query) -> Query:
    """The query with the states in which this can be done, where none was named; refused for another one."""
    wrong = [state.upper() for state in states if state.upper() not in verb.states]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)} jobs cannot be {verb.done}: {', '.join(verb.states)} ones can.")
    usual = [state for state in verb.states if verb is CANCEL or state != "CANCELLED"]
    return query if states else [*(("state", state) for state in usual), *query]


def _found(verb: Verb, client: Client, query: Query, *, as_json: bool, dry_run: bool, yes: bool) -> int:
    """All that were there when it began: what is submitted meanwhile stays as it is."""
    jobs = list(client.jobs(query))
    if dry_run:
        return _only_told(verb, jobs, as_json)
    if jobs and not yes:
        _ask(verb, jobs, as_json)
    results = [_one(verb, client, job["id"], as_json) for job in jobs]
    counts = Counter(result["outcome"] for result in results)
    if as_json:
        print_json({"matched": len(jobs), **{name: counts[name] for name in ("done", "skipped", "failed")}, "jobs": results})
    else:
        said = [f"{counts['done']} of {len(jobs)} {verb.done}"]
        said += [f"{counts[name]} {name}" for name in ("skipped", "failed") if counts[name]]
        print(", ".join(said) + "." if jobs else "There are no such jobs.")
    return 1 if counts["failed"] else 0


def _only_told(verb: Verb, jobs: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print_json({"matched": len(jobs), "dry_run": True, "jobs": [{"id": job["id"], "state": job["state"]} for job in jobs]})
        return 0
    for job in jobs:
        print(_line(job))
    print(f"{len(jobs)} would be {verb.done}; nothing was done.")
    return 0


def _line(job: dict[str, Any]) -> str:
    code = (job["error"] or {}).get("code", "")
    return f"{job['id']}  {job['state']}  {job['preset'] or job['pipeline']}  {code}".rstrip()


def _ask(verb: Verb, jobs: list[dict[str, Any]], as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise click.UsageError(f"{len(jobs)} jobs would be {verb.done}. Nobody can be asked here: give --yes, or --dry-run.")
    for job in jobs[:SHOWN]:
        click.echo(f"  {_line(job)}", err=True)
    if len(jobs) > SHOWN:
        click.echo(f"  … and {len(jobs) - SHOWN} more", err=True)
    click.confirm(f"{verb.name.capitalize()} {'these ' if len(jobs) > 1 else 'this job? '}"
                  f"{f'{len(jobs)} jobs?' if len(jobs) > 1 else ''}".strip(), abort=True, err=True)


def _one(verb: Verb, client: Client, job_id: str, as_json: bool) -> dict[str, Any]:
    """What became of one job; those that went another way meanwhile are skipped. ConfigError ends it all."""
    try:
        job = _post_again(client, verb, job_id)
        result = {"id": job_id, "outcome": "done", "state": job["state"]}
        said = _told(verb, job)
    except (Conflict, Missing, InputError, InfrastructureError) as error:
        outcome = "skipped" if isinstance(error, Conflict | Missing) else "failed"
        result = {"id": job_id, "outcome": outcome, "code": error.code, "message": error.message}
        said = f"{outcome}: {error.message}"
    if not as_json:
        print(f"{job_id}  {said}", flush=True)
    return result


def _post_again(client: Client, verb: Verb, job_id: str) -> dict[str, Any]:
    """As `_post`, and again where nobody answers: a feeder that is restarted. A retry that was carried out, its answer lost,
    is then answered with 409, and skipped."""
    for number in range(TRIES - 1):
        try:
            return _post(client, verb, job_id)
        except Busy:
            raise
        except InfrastructureError:
            time.sleep(min(PAUSE_MAX_SECONDS, PAUSE_SECONDS * 2 ** number))
    return _post(client, verb, job_id)
