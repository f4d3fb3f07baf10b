"""`nommerd doctor`: look at this machine and this installation, and say what to do. Changes nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nommerd.cli.options import Command, client_options, config_option, examples, json_option, printable

if TYPE_CHECKING:
    from nommerd.cli.checks.finding import Finding, Patient

COLOURS = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command(cls=Command, short_help="Check this machine and installation; say what to do.", epilog=examples(
    "nommerd doctor", "nommerd doctor -c /etc/nommerd/nommerd.yaml",
    "nommerd doctor --json | jq '.[] | select(.status != \"ok\")'"))
@config_option
@client_options
@json_option
def doctor(config_file: Path | None, url: str | None, token: str | None, as_json: bool) -> int:
    """Check configuration, ffmpeg (with a real encode of one second), clock, disk, database, limits, feeder, tokens, webhooks
    and AWS, and say what to do. Changes nothing. Exit 1 if anything is a fault; warnings are none."""
    from nommerd.cli.checks.finding import FAULT, Patient
    from nommerd.cli.output import print_json

    patient = Patient(config_file=config_file, url=url, token=token, env=dict(os.environ))
    found: list[Finding] = []
    for one in _findings(patient):
        found.append(one)
        if not as_json:
            _show(one)
    faults = sum(one.status == FAULT for one in found)
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        warnings = sum(one.status == "warning" for one in found)
        print(f"\n{len(found)} looked at: {_count(faults, 'fault')}, {_count(warnings, 'warning')}.")
    return 1 if faults else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _findings(patient: Patient) -> Iterator[Finding]:
    """What each check says, in an order in which one explains the next."""
    from nommerd.cli.checks import database, encoding, machine, services
    from nommerd.cli.checks.finding import within

    yield from _configuration(patient)
    yield from encoding.programs(patient)  # on this thread: it starts programs, which has its own time-outs
    everywhere = {"encode": (encoding.encode, 130), "limits": (machine.limits, 5), "sandbox": (machine.sandbox, 5),
                  "clock": (machine.clock, 5)}
    settled = {"disk": (machine.disk, 15), "database": (database.database, 40), "workspaces": (machine.workspaces, 15),
               "feeder": (services.feeder, 15), "tokens": (services.tokens, 15), "webhooks": (services.webhooks, 15),
               "aws": (services.aws, 45), "fleet": (services.fleet, 15)}
    for name, (check, seconds) in (everywhere | (settled if patient.settings is not None else {})).items():
        yield from within(seconds, name, check, patient)


def _configuration(patient: Patient) -> Iterator[Finding]:
    from nommerd.cli.checks.finding import FAULT, OK, Finding
    from nommerd.cli.configure import load_all
    from nommerd.config import find_file
    from nommerd.errors import ManyErrors, NommerdError

    def told(error: NommerdError) -> Iterator[Finding]:
        for one in error.errors if isinstance(error, ManyErrors) else [error]:
            place = f"{one.place}: " if one.place else ""
            yield Finding("configuration", FAULT, f"{place}{one.code}: {one.message}", one.hint)

    try:
        file = find_file(patient.config_file, patient.env)
        patient.settings, patient.catalog, faults = load_all(patient.config_file)
    except NommerdError as error:
        yield from told(error)
        return
    for fault in faults:
        yield from told(fault)
    names = patient.catalog.names()
    yield Finding("configuration", OK, f"{file or 'No file, defaults'}: {len(names['presets'])} presets, "
                  f"{len(names['pipelines'])} pipelines.")


def _show(one: Finding) -> None:
    """A line, and what to do about it on another."""
    status = f"{one.status:<8}"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        status = click.style(status, fg=COLOURS[one.status])
    print(f"{status}  {one.check:<13}  {printable(one.message)}", flush=True)
    if one.hint:
        print(f"{'':<8}  {'':<13}  {printable(one.hint)}", flush=True)
