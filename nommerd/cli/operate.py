"""`nommerd workers`, `pause`, `resume` and `stats`: the operator's side of a running installation."""

from __future__ import annotations

import sys
import time
from typing import Any
from urllib.parse import quote

import click

from nommerd.cli.client import Client, Conflict
from nommerd.cli.options import Command, Group, client_options, examples, json_option, printable
from nommerd.cli.output import ProgressLine, age, duration, moment, print_json, size, table
from nommerd.errors import InfrastructureError

POLL_SECONDS = 1.0


@click.group(cls=Group, invoke_without_command=True, epilog=examples(
    "nommerd workers", "nommerd workers ls --json", "nommerd workers drain worker-1 --wait"))
@client_options
@json_option
@click.pass_context
def workers(ctx: click.Context, *, url: str | None, token: str | None, as_json: bool) -> None:
    """List the workers, or let one finish its jobs and end. Without a command: ls."""
    if ctx.invoked_subcommand is None:
        _show_workers(Client.from_options(url, token), as_json)


@workers.command("ls", short_help="List the workers.", epilog=examples(
    "nommerd workers ls", "nommerd workers ls --json | jq '.[] | select(.state == \"SILENT\")'"))
@client_options
@json_option
def list_workers(*, url: str | None, token: str | None, as_json: bool) -> None:
    """List the workers by their heartbeats. SILENT: it has missed three; those that ended a day ago are left out."""
    _show_workers(Client.from_options(url, token), as_json)


@workers.command("drain", short_help="Let a worker finish its jobs and end.", epilog=examples(
    "nommerd workers drain worker-1", "nommerd workers drain i-0123456789abcdef0 --wait"))
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return once it has ended, at once if it had.")
@client_options
@json_option
def drain(name: str, *, wait: bool, url: str | None, token: str | None, as_json: bool) -> None:
    """Let a worker finish its jobs, take no more, and end; an EC2 node ends itself then.

    To stop it at once, send it SIGTERM: its jobs go back and are begun again elsewhere.
    """
    client = Client.from_options(url, token)
    try:
        worker: dict[str, Any] = client.call("POST", f"/v1/workers/{quote(name, safe='')}/drain")
    except Conflict:
        ended = [one for one in _workers(client) if (one["name"], one["state"]) == (name, "TERMINATED")]
        if not wait or not ended:
            raise
        worker, = ended
    if wait:
        worker = _wait_for_end(client, worker, quiet=as_json)
    if as_json:
        print_json(worker)
    elif wait:
        print(f"{printable(name)} has ended.")
    else:
        print(f"{printable(name)} is asked to drain; it has {_jobs(worker['busy'])}.")


@click.command(cls=Command, short_help="Begin no new work.", epilog=examples("nommerd pause", "nommerd resume"))
@client_options
@json_option
def pause(*, url: str | None, token: str | None, as_json: bool) -> None:
    """Begin no new work; what runs goes on, jobs are still accepted, and nothing is lost. No nodes are started either."""
    _tell(Client.from_options(url, token).call("POST", "/v1/pause"), as_json)


@click.command(cls=Command, short_help="Begin work again.", epilog=examples("nommerd resume"))
@client_options
@json_option
def resume(*, url: str | None, token: str | None, as_json: bool) -> None:
    """Begin work again after a pause."""
    _tell(Client.from_options(url, token).call("POST", "/v1/resume"), as_json)


@click.command(cls=Command, short_help="What waits, runs and fails, in numbers.", epilog=examples(
    "nommerd stats", "nommerd stats --json | jq .oldest_pending_seconds"))
@client_options
@json_option
def stats(*, url: str | None, token: str | None, as_json: bool) -> None:
    """What waits, runs and fails: the figures of the token's project, and of the installation where it is the operator's."""
    found = Client.from_options(url, token).call("GET", "/v1/stats")
    if as_json:
        print_json(found)
    else:
        print("\n".join(_stats_lines(found)))


def _show_workers(client: Client, as_json: bool) -> None:
    found = _workers(client)
    if as_json:
        print_json(found)
    elif found:
        table(["NAME", "STATE", "BUSY", "DISK FREE", "REPORTED", "STARTED", "VERSION", "NODE", "JOBS"],
              [_row(worker) for worker in found], shrink=["JOBS", "NODE"], drop=["VERSION", "STARTED", "NODE"])
    else:
        print("No worker has reported. Start one with `nommerd worker`, or `nommerd up`.")


def _workers(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.call("GET", "/v1/workers")["workers"]
    return found


def _row(worker: dict[str, Any]) -> list[str]:
    disk = worker["disk"]
    free = f"{size(disk['free_bytes'])} ({100 * disk['free_bytes'] // max(1, disk['total_bytes'])} %)" if disk else ""
    return [printable(worker["name"]), worker["state"], f"{worker['busy']}/{worker['slots']}",
            free, age(worker["reported"]), age(worker["started"]) if worker["started"] else "", worker["version"],
            printable(worker["node"]), " ".join(job["id"] for job in worker["jobs"])]


def _wait_for_end(client: Client, asked: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """The worker as it last was. Another life under its name is another worker. Raises InfrastructureError where it fell
    silent."""
    line, last = ProgressLine(sys.stderr), asked
    try:
        while True:
            found = next((one for one in _workers(client) if one["name"] == asked["name"]), None)
            if found is None or found["started"] != asked["started"]:
                return {**last, "state": "TERMINATED", "busy": 0, "jobs": []}
            last = found
            if found["state"] == "TERMINATED":
                return last
            if found["state"] == "SILENT":
                raise InfrastructureError("node.worker_silent", f"The worker {printable(asked['name'])} does not report.",
                                          "If it is gone, its jobs are begun again elsewhere.")
            if not quiet:
                line.show(f"{printable(found['name'])}: {_jobs(found['busy'])}", 1 - found["busy"] / max(1, found["slots"]))
            time.sleep(POLL_SECONDS)
    finally:
        line.clear()


def _jobs(count: int) -> str:
    return f"{count or 'no'} job{'' if count == 1 else 's'}"


def _tell(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    elif answer["paused"] is None:
        print("Work is begun.")
    else:
        since, by = moment(answer["paused"]["since"]), printable(answer["paused"]["by"])
        print(f"Paused since {since} by {by}: no new work is begun.")


def _stats_lines(found: dict[str, Any]) -> list[str]:
    oldest = found["oldest_pending_seconds"]
    states = [f"{count} {state}" for state, count in found["states"].items() if count]
    lines = [f"project   {printable(found['project'])}", f"jobs      {', '.join(states) or 'none'}",
             f"waiting   {'none' if oldest is None else f'the longest for {duration(oldest)}'}"]
    if found["queue"] is not None:
        lines.append(f"queue     {', '.join(f'{count} {priority}' for priority, count in found['queue'].items())}")
    if found["workers"] is not None:
        counts = found["workers"]
        silent = f", {counts['silent']} silent" if counts["silent"] else ""
        lines.append(f"workers   {counts['active']}{silent}; {counts['busy']} of {counts['slots']} slots busy")
    if found["dead_letters"]:
        lines.append(f"dead      {found['dead_letters']} messages that nobody could deal with")
    lines.append(f"webhooks  {found['webhooks']['due']} due, {found['webhooks']['failing']} failing")
    done, failed = (sum(hour[kind] for hour in found["throughput"]) for kind in ("finished", "failed"))
    lines.append(f"24 hours  {done} finished, {failed} failed")
    lines += [f"          {entry['count']} × {entry['code']}" for entry in found["errors"]]
    if found["paused"] is not None:
        lines.append(f"PAUSED    since {moment(found['paused']['since'])} by {printable(found['paused']['by'])}")
    return lines
