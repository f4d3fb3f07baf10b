"""`nommerd presets ls` and `nommerd pipelines ls`: what jobs can name here."""

from __future__ import annotations

from pathlib import Path

import click

from nommerd.cli.options import config_option, json_option
from nommerd.cli.output import print_json, table


@click.group()
def presets() -> None:
    """The presets known here."""


@click.group()
def pipelines() -> None:
    """The pipelines known here."""


@presets.command("ls")
@config_option
@json_option
def list_presets(config_file: Path | None, as_json: bool) -> None:
    """Presets by name, from this machine's directories."""
    from nommerd.cli.configure import load_all

    _, catalog, _ = load_all(config_file)
    found = [{"name": name, "pipeline": preset.pipeline.name, "description": preset.document.description,
              "file": str(preset.file)} for name, preset in sorted(catalog.presets.items())]
    _show(found, ["name", "pipeline", "description"], as_json)


@pipelines.command("ls")
@config_option
@json_option
def list_pipelines(config_file: Path | None, as_json: bool) -> None:
    """Pipelines by name, from this machine's directories."""
    from nommerd.cli.configure import load_all

    _, catalog, _ = load_all(config_file)
    found = [{"name": name, "params": ", ".join(pipeline.params), "description": pipeline.document.description}
             for name, pipeline in sorted(catalog.pipelines.items())]
    _show(found, ["name", "params", "description"], as_json)


def _show(found: list[dict[str, str]], columns: list[str], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        table([column.upper() for column in columns], [[row[column] for column in columns] for row in found],
              shrink=["DESCRIPTION", columns[1].upper()])
