"""`nommerd explain`: what a job would run and make. The feeder is asked; nothing is run or stored."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import click

from nommerd.cli.client import Client
from nommerd.cli.joblog import stream_line
from nommerd.cli.options import (
    Command,
    absolute_uri,
    client_options,
    complete_files,
    complete_presets,
    examples,
    input_items,
    json_option,
    pairs,
    scalar,
)
from nommerd.cli.output import print_json, problem_lines


@click.command(cls=Command, epilog=examples(
    "nommerd explain holiday.mov -p web-720p", "nommerd explain holiday.mov --pipeline web-mp4 --set width=640 --json",
    "nommerd explain --job 5f0c9a1e7b42d8836ac1"))
@click.argument("source", required=False, shell_complete=complete_files)
@click.option("-p", "--preset", help="Preset, by name.", shell_complete=complete_presets)
@click.option("--pipeline", help="Pipeline, by name, instead of a preset.")
@click.option("--set", "params", multiple=True, metavar="K=V", help="A param of the pipeline. May repeat.")
@click.option("--input", "inputs", multiple=True, metavar="NAME=URI", help="A further input. May repeat.")
@click.option("--dest", help="Where the output would go: its name may decide on the container.")
@click.option("--on-damage", type=click.Choice(["tolerate", "fail"]), help="What mild damage in the source means.")
@click.option("--job", "job_id", metavar="ID", help="A job that was submitted, instead of all this.")
@client_options
@json_option
def explain(source: str | None, *, job_id: str | None, url: str | None, token: str | None, as_json: bool, **more: Any) -> None:
    """Show the commands that would be run for SOURCE, and what they would make. Paths are made absolute; the feeder looks at
    a file it may read, and assumes a usual film otherwise."""
    answer = Client.from_options(url, token).call("POST", "/v1/explain", _body(source, job_id, **more), timeout=60)
    if as_json:
        print_json(answer)
    else:
        print("\n".join(explained_lines(answer)))


def _body(source: str | None, job_id: str | None, *, preset: str | None, pipeline: str | None, params: tuple[str, ...],
          inputs: tuple[str, ...], dest: str | None, on_damage: str | None) -> dict[str, Any]:
    if job_id is not None:
        if source or preset or pipeline or params or inputs or dest or on_damage:
            raise click.UsageError("--job says it all: leave out the rest.")
        return {"job": job_id}
    if source is None:
        raise click.UsageError("Name a SOURCE, or a job (--job).")
    if (preset is None) == (pipeline is None):
        raise click.UsageError("Name a preset (-p) or a pipeline (--pipeline), one of the two.")
    body = {"source": absolute_uri(source), "dest": absolute_uri(dest) if dest else None, "preset": preset,
            "pipeline": pipeline, "params": {key: scalar(value) for key, value in pairs(params, "--set").items()},
            "inputs": input_items(inputs), "on_damage": on_damage}
    return {key: value for key, value in body.items() if value}


def explained_lines(answer: dict[str, Any]) -> Iterator[str]:
    """The answer, for people: commands to copy, what comes out, what to know."""
    for stage, commands in groupby(answer["commands"], key=lambda command: command["stage"]):
        yield stage
        for command in commands:
            yield f"  $ {shlex.join(command['argv'])}"
    for output in answer["outputs"]:
        yield f"output  {output['name'] or '(name not known yet)'}, {output['container'] or 'container not known yet'}"
        for stream in output["streams"] or ():
            yield f"  {stream_line(stream)}"
    for warning in answer["warnings"]:
        first, *rest = problem_lines(warning)
        yield f"note    {first}"
        yield from (f"      {text}" for text in rest)
