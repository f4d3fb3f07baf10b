"""`nommerd config`: check and show the configuration, make a key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nommerd.cli.options import Group, config_option, examples, json_option
from nommerd.cli.output import print_json
from nommerd.errors import ManyErrors, NommerdError

if TYPE_CHECKING:
    from nommerd.catalog import Catalog
    from nommerd.config import Settings


@click.group(cls=Group)
def config() -> None:
    """Check and show the configuration; make a key."""


def load_all(config_file: Path | None, env: Mapping[str, str] = os.environ) -> tuple[Settings, Catalog, list[NommerdError]]:
    """The settings, the catalog they describe, and every fault in pipelines, presets and stages. Raises for the settings."""
    from nommerd.api.original import check_nommers
    from nommerd.catalog import Catalog, load_stages
    from nommerd.config import load
    from nommerd.pipeline.stages import STAGES

    settings = load(config_file, env)
    faults: list[NommerdError] = []
    stages = dict(STAGES)
    try:
        stages = load_stages(settings.stages)
    except NommerdError as error:
        faults += error.errors if isinstance(error, ManyErrors) else [error]
    catalog = Catalog(settings.paths.pipelines, settings.paths.presets, stages)
    try:
        check_nommers(settings.api.original.nommers, catalog.pipelines)
    except NommerdError as error:
        faults.append(error)
    return settings, catalog, [*faults, *catalog.errors]


def refuse(faults: list[NommerdError]) -> None:
    """Raise them, if there are any."""
    if faults:
        raise faults[0] if len(faults) == 1 else ManyErrors(faults)


@config.command(short_help="Read everything and tell each fault with its place.",
                epilog=examples("nommerd config check", "nommerd config check -c nommerd.yaml --json"))
@config_option
@json_option
def check(config_file: Path | None, as_json: bool) -> None:
    """Read the configuration and every pipeline and preset; tell each fault as file:line:column. Exit 2 if there are any."""
    from nommerd.config import find_file

    file = find_file(config_file, os.environ)
    _, catalog, faults = load_all(config_file)
    refuse(faults)
    names = catalog.names()
    if as_json:
        print_json({"file": str(file) if file else None, **names})
    else:
        print(f"ok: {file or 'no file, defaults'}, {len(names['pipelines'])} pipelines, {len(names['presets'])} presets")


@config.command(epilog=examples("nommerd config show", "nommerd config show -c nommerd.yaml --json"))
@config_option
@json_option
def show(config_file: Path | None, as_json: bool) -> None:
    """The settings in effect, from file, environment and defaults. Secrets are masked."""
    from nommerd.config import load

    values = _public(load(config_file, os.environ).model_dump(mode="json"))
    if as_json:
        print_json(values)
    else:
        print("\n".join(_yaml(values)))


def _public(value: Any) -> Any:
    """The values without credentials in addresses."""
    from nommerd.secrets import public_uri

    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return public_uri(value) if isinstance(value, str) else value


def _yaml(values: dict[str, Any], indent: str = "") -> list[str]:
    """Maps as indented lines, everything in them as JSON, which is YAML."""
    from json import dumps

    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}:", *_yaml(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {dumps(value, ensure_ascii=False)}")
    return lines


@config.command(epilog=examples("nommerd config keygen"))
@json_option
def keygen(as_json: bool) -> None:
    """A new key for secrets.keys. Put it first and keep the old ones, so that what they encrypted can still be read."""
    from nommerd.secrets import new_key

    key = new_key()
    if as_json:
        print_json({"key": key})
    else:
        print(key)
