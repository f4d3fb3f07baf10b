"""`nommerd feeder` and `nommerd worker`: the daemons, one process each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nommerd.cli.options import Command, config_option, examples

if TYPE_CHECKING:
    from nommerd.boot import Booted
    from nommerd.config import Settings

F = TypeVar("F", bound=Callable[..., Any])


def daemon_options(function: F) -> F:
    """What both daemons take."""
    style = click.option("--log", "log_style", type=click.Choice(["auto", "text", "json"]), default="auto",
                         help="How log lines look (auto: text on a terminal, else JSON).")
    level = click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
    within = click.option("--ready-within", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
                          help="Exit 1 unless it can work so soon after its start, so that a service manager sees it.")
    parent = click.option("--parent", type=int, hidden=True, help="End when this process, our parent, ends.")
    return config_option(style(level(within(parent(function)))))


def _prepare(log_style: str, log_level: str, parent: int | None) -> None:
    from nommerd import hangup, logs
    from nommerd.cli.parent import die_with

    hangup.hold()
    if parent is not None:
        die_with(parent)
    logs.configure(sys.stderr, json={"auto": None, "text": False, "json": True}[log_style], level=log_level)


def _load(config_file: Path | None) -> Settings:
    from nommerd.config import load

    settings = load(config_file, os.environ)
    _keep_secret(settings)
    return settings


def _keep_secret(settings: Settings) -> None:
    """Nothing of these ever reaches a log."""
    from nommerd import logs

    logs.register(*settings.secrets.keys, *(s for s in (settings.webhooks.secret, settings.aws.secret_access_key) if s))


@click.command(cls=Command, epilog=examples("nommerd feeder", "nommerd feeder -c /etc/nommerd/nommerd.yaml --log json"))
@daemon_options
def feeder(config_file: Path | None, log_style: str, log_level: str, ready_within: float | None, parent: int | None) -> int:
    """Take jobs over HTTP, keep their state, and tell applications when their media is ready.

    SIGTERM stops it; SIGHUP makes it read presets and pipelines on disk again: all of them, or none if one does not hold.
    """
    _prepare(log_style, log_level, parent)
    settings = _load(config_file)
    from nommerd.feeder import main

    return main(settings, ready_within)


@click.command(cls=Command, epilog=examples(
    "nommerd worker --local", "nommerd worker --local --name encoder-2 -c nommerd.yaml --log text"))
@click.option("--local", is_flag=True, help="This is no EC2 node: ask no metadata service, and never end this machine.")
@click.option("--boot", "boot_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Fetch the configuration that this file pins; a node's user-data writes it.")
@click.option("--name", help="What jobs and logs call this worker (default: the EC2 instance, else host and pid).")
@daemon_options
def worker(*, local: bool, boot_file: Path | None, name: str | None, config_file: Path | None, log_style: str, log_level: str,
           ready_within: float | None, parent: int | None) -> int:
    """Take jobs from the queue and run their pipelines. SIGTERM stops it, and gives its work back.

    On an EC2 instance, unless --local: gives its work back when AWS announces the end of the instance, and terminates the
    instance when it has been idle for worker.idle_seconds (worker.terminate_when_idle).
    """
    if boot_file is not None and config_file is not None:
        raise click.UsageError("--boot names a configuration, and so does -c: give one of them.")
    _prepare(log_style, log_level, parent)
    settings = _load(config_file) if boot_file is None else partial(_boot, boot_file)
    from nommerd.worker import main

    return main(settings, name=name, local=local, ready_within=ready_within)


def _boot(file: Path) -> Booted:
    from nommerd import boot

    booted = boot.start(file, os.environ)
    _keep_secret(booted.settings)
    return booted
