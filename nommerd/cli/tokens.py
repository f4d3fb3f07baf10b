"""`nommerd tokens`: make, list and revoke the tokens of a feeder's API."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import Any
from urllib.parse import quote

import click

from nommerd.cli.client import Client
from nommerd.cli.options import Duration, Group, client_options, examples, json_option
from nommerd.cli.output import age, moment, print_json, table
from nommerd.errors import InputError, ManyErrors, NommerdError

SCOPES = ("submit", "read", "operate", "admin")
DAY_SECONDS = 86400


@click.group(cls=Group, epilog=examples(
    "nommerd tokens create ci --scope submit --scope read --expires 90d", "nommerd tokens ls",
    "nommerd tokens revoke 3f0c77d1a2b4c5d6e7f8"))
def tokens() -> None:
    """Make, list and revoke tokens of the API.

    A token belongs to one project, and sees that one's jobs, presets and webhooks alone. Its scopes say what it may do there:
    submit (hand in, cancel and retry jobs), read, operate (logs of attempts, webhooks), admin (everything). These commands
    need a token with the scope admin, such as the one in the feeder's token file.
    """


@tokens.command("create", short_help="Make a token.", epilog=examples(
    "nommerd tokens create ci --scope submit --scope read --expires 90d",
    "nommerd tokens create studio --project studio-a --scope admin > studio.token"))
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True,
              help="What it may do. May repeat.")
@click.option("--project", help="Whose it is (default: that of the token this is asked with).")
@click.option("--expires", "expires_seconds", type=Duration(unit_needed=True),
              help="How long it is good for: 12h, 90d (default: for ever).")
@client_options
@json_option
def create(name: str, *, scopes: tuple[str, ...], project: str | None, expires_seconds: float | None, url: str | None,
           token: str | None, as_json: bool) -> None:
    """Make a token and print it, this once: only a hash of it is kept."""
    body: dict[str, Any] = {"name": name, "scopes": list(dict.fromkeys(scopes))}
    if project is not None:
        body["project"] = project
    if expires_seconds is not None:
        body["expires_days"] = expires_seconds / DAY_SECONDS
    made = Client.from_options(url, token).call("POST", "/v1/tokens", body)
    if as_json:
        print_json(made)
        return
    until = f"until {moment(made['expires'])}" if made["expires"] else "until it is revoked"
    print(f"{made['id']}: {', '.join(made['scopes'])} in project {made['project']}, {until}. It is shown only now:",
          file=sys.stderr)
    print(made["token"])


@tokens.command("ls", short_help="List tokens.", epilog=examples("nommerd tokens ls", "nommerd tokens ls --json"))
@client_options
@json_option
def list_tokens(*, url: str | None, token: str | None, as_json: bool) -> None:
    """The tokens of one's project; a token of the project default sees those of all."""
    found = Client.from_options(url, token).call("GET", "/v1/tokens")["tokens"]
    if as_json:
        print_json(found)
    elif found:
        table(["ID", "NAME", "PROJECT", "SCOPES", "CREATED", "EXPIRES"], [_row(one) for one in found],
              shrink=["NAME", "PROJECT"])
    else:
        print("There are no tokens besides the one in the feeder's token file.")


def _row(token: dict[str, Any]) -> list[str]:
    return [token["id"], token["name"], token["project"], ",".join(token["scopes"]), age(token["created"]),
            _until(token["expires"])]


def _until(expires: str | None) -> str:
    if expires is None:
        return "never"
    return "expired" if datetime.fromisoformat(expires).timestamp() <= time.time() else moment(expires)


@tokens.command("revoke", short_help="Revoke tokens.", epilog=examples("nommerd tokens revoke 3f0c77d1a2b4c5d6e7f8"))
@click.argument("token_ids", metavar="ID…", nargs=-1, required=True)
@client_options
@json_option
def revoke(token_ids: tuple[str, ...], *, url: str | None, token: str | None, as_json: bool) -> None:
    """Revoke tokens: at once, at other feeders within five seconds."""
    client = Client.from_options(url, token)
    refused: list[NommerdError] = []
    for token_id in token_ids:
        try:
            client.call("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")
        except InputError as error:
            refused.append(error)
            continue
        if not as_json:
            print(f"{token_id}  revoked")
    if refused:
        raise refused[0] if len(refused) == 1 else ManyErrors(refused)
    if as_json:
        print_json({"revoked": list(token_ids)})
