"""`nommerd backup` and `nommerd restore`: an embedded installation as one file, and back."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nommerd.cli.app import DONE
from nommerd.cli.options import Command, config_option, examples, json_option
from nommerd.cli.output import print_json, size

if TYPE_CHECKING:
    from nommerd.backups import Manifest
    from nommerd.config import Settings

FILE = click.argument("file", type=click.Path(path_type=Path))


@click.command(cls=Command, epilog=examples(
    "nommerd backup nommerd.tar.gz", 'nommerd backup "/backups/nommerd-$(date +%F).tar.gz" -c /etc/nommerd/nommerd.yaml'))
@FILE
@click.option("--force", is_flag=True, help="Replace FILE where it is there already.")
@config_option
@json_option
def backup(file: Path, force: bool, config_file: Path | None, as_json: bool) -> int:
    """Write the database, keys, token and webhook secret to FILE (a tar.gz), as of one moment.

    Feeder and workers go on meanwhile. FILE holds secrets: it is readable by its owner alone. The configuration, your
    own presets and pipelines on disk, and media are not in it. With the store on AWS, AWS makes the backups.
    """
    from nommerd.backups import make

    settings = _settings(config_file)
    manifest = make(settings, file, force=force)
    if as_json:
        print_json({"file": str(file.absolute()), "bytes": file.stat().st_size, **_told(manifest)})
    else:
        click.echo(f"{file}: {manifest.jobs} jobs, {', '.join(manifest.files)} ({size(file.stat().st_size)})")
        if settings.secrets.keys:
            click.echo("Secrets are encrypted with secrets.keys of the configuration: keep that as well.", err=True)
    return DONE


@click.command(cls=Command, epilog=examples("nommerd restore nommerd.tar.gz", "nommerd restore nommerd.tar.gz --force --json"))
@FILE
@click.option("--force", is_flag=True, help="Replace the database and the secrets that are there.")
@config_option
@json_option
def restore(file: Path, force: bool, config_file: Path | None, as_json: bool) -> int:
    """Put back what `nommerd backup` wrote, where the configuration has it.

    Stop feeder and workers first. Everything in FILE is checked before anything is changed. At the next start, jobs that
    were running then begin anew, and webhooks that were sent since then are sent again.
    """
    from nommerd.backups import KEYS
    from nommerd.owners import is_roots
    from nommerd.restoring import restore as put_back

    settings = _settings(config_file)
    manifest = put_back(settings, file, force=force)
    if as_json:
        print_json({"data": str(settings.data_dir), **_told(manifest)})
    else:
        click.echo(f"Restored {manifest.jobs} jobs as of {manifest.made} and {', '.join(manifest.files)} "
                   f"into {settings.data_dir}.")
        if settings.secrets.keys:
            click.echo("secrets.keys of the configuration must be those of then.", err=True)
        elif KEYS not in manifest.files:
            click.echo("It holds no keys: set secrets.keys to those of then, or jobs with credentials cannot run.", err=True)
    if is_roots(settings.data_dir):
        click.echo("The files are root's, and nobody else's daemons can open them: "
                   f"`chown -R USER: {shlex.quote(str(settings.data_dir))}` gives them away.", err=True)
    return DONE


def _settings(config_file: Path | None) -> Settings:
    from nommerd.config import load

    return load(config_file, os.environ)


def _told(manifest: Manifest) -> dict[str, object]:
    return {"made": manifest.made, "nommerd": manifest.nommerd, "schema_version": manifest.schema_version,
            "cluster": manifest.cluster, "jobs": manifest.jobs, "files": list(manifest.files)}

