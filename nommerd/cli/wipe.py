"""`nommerd wipe`: every job and both queues, gone. For an installation that starts anew, or one that only tested."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from nommerd.cli.app import DONE, FAILED
from nommerd.cli.options import Command, config_option, examples, json_option
from nommerd.cli.output import print_json
from nommerd.errors import ConfigError

if TYPE_CHECKING:
    from nommerd.bus.base import Bus
    from nommerd.config import Settings
    from nommerd.store.base import Store


@click.command(cls=Command, epilog=examples("nommerd wipe", "nommerd wipe -c /etc/nommerd/nommerd.yaml --yes --json"))
@config_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def wipe(config_file: Path | None, yes: bool, as_json: bool) -> int:
    """Delete every job record, every recipe and every message, of all projects. Outputs and configuration stay.

    Stop feeders and workers first. On one machine it refuses while a feeder runs; on AWS nothing stops you.
    """
    from nommerd.config import load

    settings = load(config_file, os.environ)
    with ExitStack() as stack:
        store, bus = _opened(settings, stack)
        found = _counted(settings, store, bus)
        if not yes and not _agreed(found, as_json):
            click.echo("Nothing was deleted.", err=True)
            return FAILED
        store.wipe()
        bus.jobs.purge()
        bus.changes.purge()
    if as_json:
        print_json({"deleted": found})
    else:
        click.echo(f"Deleted: {_words(found)}.")
    return DONE


def _opened(settings: Settings, stack: ExitStack) -> tuple[Store, Bus]:
    """Store and bus of the configuration. ConfigError where there are none yet, or a feeder works on the file."""
    from nommerd import sqlite
    from nommerd.aws.clients import Clients
    from nommerd.bus import open_bus
    from nommerd.store import open_store

    for setting, url in (("store", settings.store), ("bus", settings.bus)):
        scheme = urlsplit(url).scheme
        if scheme == "memory":
            raise ConfigError(f"config.{setting}", f"{url} lives and ends with its process: there is nothing to wipe.",
                              place=setting)
        if scheme == "sqlite" and not settings.database_path(url).exists():
            raise ConfigError("config.no_data", f"There is no database {settings.database_path(url)}.",
                              "Is this the configuration of the feeder?", place=setting)
    if urlsplit(settings.store).scheme == "sqlite":
        stack.callback(sqlite.exclusive(settings.database_path(settings.store)).close)
    clients = Clients(settings.aws)
    store = open_store(settings.store, settings.data_dir, clients)
    stack.callback(store.close)
    bus = open_bus(settings.bus, settings.data_dir, clients)
    stack.callback(bus.close)
    return store, bus


def _counted(settings: Settings, store: Store, bus: Bus) -> dict[str, int]:
    """What there is to delete; messages only roughly on SQS."""
    from nommerd.job import DEFAULT_PROJECT

    projects = {DEFAULT_PROJECT, settings.api.original.project}
    jobs = sum(sum(store.count(project).values()) for project in projects)
    jobs_queue, changes_queue = (d.visible + d.in_flight + d.delayed + d.dead for d in (bus.jobs.depth(), bus.changes.depth()))
    return {"jobs": jobs, "job_messages": jobs_queue, "change_messages": changes_queue}


def _agreed(found: dict[str, int], as_json: bool) -> bool:
    if as_json:
        raise click.UsageError("--json asks nobody: add --yes.")
    try:
        return click.confirm(f"Delete {_words(found)}?", err=True)
    except click.Abort:
        raise click.UsageError("Nobody answered: add --yes.") from None


def _words(found: dict[str, int]) -> str:
    return (f"{found['jobs']} jobs with their recipes, {found['job_messages']} messages for workers, "
            f"{found['change_messages']} messages for feeders")
