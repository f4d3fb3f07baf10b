"""`nommerd watch`: make a job of each file that appears in a folder. The work is in `watcher`."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from nommerd.cli.options import (
    Command,
    Duration,
    absolute_uri,
    client_options,
    complete_files,
    complete_presets,
    examples,
    json_option,
    pairs,
    scalar,
)

PRIORITIES = click.Choice(["high", "normal", "low"])


@click.command(cls=Command, short_help="Make a job of each file that appears in a folder.", epilog=examples(
    "nommerd watch incoming -p web-720p -o encoded", "nommerd watch incoming -p web-720p -o encoded --once",
    "nommerd watch /srv/in -p audio-aac -o s3://media/sound/ --pattern '*.wav' --pattern '*.aiff' --recursive",
    "nommerd watch /srv/in -p web-720p -o /srv/out --done-marker .done --on-finished move --move-to /srv/done"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("-p", "--preset", help="Preset, by name.", shell_complete=complete_presets)
@click.option("--pipeline", help="Pipeline, by name, instead of a preset.")
@click.option("-o", "--output", "out", required=True, metavar="OUT", shell_complete=complete_files,
              help="Where outputs go: a folder, or a URI.")
@click.option("--pattern", "patterns", multiple=True, metavar="GLOB",
              help="Only such names. May repeat. (Default: the usual extensions of media files.)")
@click.option("--recursive", is_flag=True, help="Also what is in folders below DIR; outputs keep their folders.")
@click.option("--set", "params", multiple=True, metavar="K=V", help="A param of the pipeline. May repeat.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label for the jobs. May repeat.")
@click.option("--priority", type=PRIORITIES, help="Which jobs go first.")
@click.option("--on-damage", type=click.Choice(["tolerate", "fail"]), help="What mild damage in the source means.")
@click.option("--overwrite", is_flag=True, help="Replace what is at a destination, also where no job of this watch made it.")
@click.option("--settle", "settle_seconds", type=Duration(), default=5.0, metavar="TIME",
              help="A file is complete when it stood still for so long. (Default: 5s.)")
@click.option("--done-marker", "marker", metavar="SUFFIX",
              help="A file is complete when NAME + SUFFIX is there: with .done, a.mov waits for a.mov.done.")
@click.option("--interval", "interval_seconds", type=Duration(), default=2.0, metavar="TIME",
              help="Between looks. (Default: 2s.)")
@click.option("--once", is_flag=True, help="Do what is there now, wait for the jobs, and end: 1 if one failed.")
@click.option("--on-finished", type=click.Choice(["keep", "delete", "move"]), default="keep", show_default=True,
              help="What becomes of a source when its job is FINISHED.")
@click.option("--move-to", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="For --on-finished move: where to.")
@client_options
@json_option
def watch(folder: Path, *, out: str, url: str | None, token: str | None, as_json: bool, **more: Any) -> int:
    """Submit each file that appears in DIR to a feeder, and tell how its job ends, until Ctrl-C.

    What it has submitted it remembers, so that it can be stopped and started at any time; a file that changes is encoded
    again. The feeder must be able to read DIR under the same path (storage.file_roots).
    """
    from nommerd.cli.client import Client
    from nommerd.cli.watcher import Tell, Watcher
    from nommerd.cli.watchscan import PATTERNS, Scanner
    from nommerd.cli.watchstate import opened
    from nommerd.places import state_dir

    plan = _plan(folder, out, **{name: value for name, value in more.items() if name not in ("patterns", "settle_seconds")})
    client = Client.from_options(url, token)
    scanner = Scanner(plan.folder, patterns=more["patterns"] or PATTERNS, recursive=plan.recursive,
                      settle_seconds=more["settle_seconds"], marker=plan.marker)
    with opened(state_dir(os.environ), plan.folder) as state:
        watcher = Watcher(plan=plan, client=client, state=state, scanner=scanner, tell=Tell(as_json))
        _heed_signals(watcher.stop)
        watcher.tell("watching", text=f" {plan.folder}, outputs to {plan.out}", folder=str(plan.folder), out=plan.out)
        return watcher.run()


def _plan(folder: Path, out: str, *, preset: str | None, pipeline: str | None, params: tuple[str, ...],
          labels: tuple[str, ...], priority: str | None, on_damage: str | None, move_to: Path | None, on_finished: str,
          **plain: Any) -> Any:
    from nommerd.cli.watcher import Plan
    from nommerd.secrets import has_secret

    if (preset is None) == (pipeline is None):
        raise click.UsageError("Name a preset (-p) or a pipeline (--pipeline), one of the two.")
    if (on_finished == "move") != (move_to is not None):
        raise click.UsageError("--on-finished move and --move-to DIR go together.")
    if plain["marker"] is not None and not plain["marker"].strip("/"):
        raise click.UsageError("--done-marker has no value.")
    if has_secret(out):
        raise click.UsageError("-o holds credentials, which a watch would have to remember: the feeder must have them.")
    given = {"preset": preset, "pipeline": pipeline, "priority": priority, "on_damage": on_damage,
             "labels": pairs(labels, "--label"),
             "params": {key: scalar(value) for key, value in pairs(params, "--set").items()}}
    plan = Plan(folder=folder.resolve(), out=absolute_uri(out.rstrip("/") + "/"), on_finished=on_finished,
                move_to=move_to and move_to.resolve(), recipe={name: value for name, value in given.items() if value}, **plain)
    _check_places(plan)
    return plan


def _check_places(plan: Any) -> None:
    """What we make must never be found again as a source."""
    from nommerd.cli.watchnames import path_of

    places = {"-o": path_of(plan.out).resolve() if plan.out.startswith("file:") else None, "--move-to": plan.move_to}
    for option, place in places.items():
        if place is not None and (place == plan.folder or plan.holds(place / "x")):
            below = "" if place == plan.folder else " Without --recursive it may lie below."
            raise click.UsageError(f"{option} lies in the watched folder: what is put there would be encoded again.{below}")


def _heed_signals(stop: threading.Event) -> None:
    """The first one ends the watch after what it is just doing; a second Ctrl-C at once."""
    def heed(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, heed)
