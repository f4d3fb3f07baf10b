"""`nommerd encode`: one pipeline on one source, here and now. The work is in `encoding`, imported when there is some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nommerd.cli.options import Command, examples, job_options, json_option


@click.command(cls=Command, epilog=examples(
    "nommerd encode holiday.mov small.mp4 -p web-480p",
    "nommerd encode holiday.mov small.mp4 -p web-480p --set video_bitrate=400k --overwrite",
    "nommerd encode talk.mov talk.mp4 --pipeline ./my-pipeline.yaml --json"))
@job_options(pipeline_help="Pipeline instead of a preset: a file, or a name.")
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (default: none).")
@json_option
def encode(source: str, dest: str, *, preset: str | None, pipeline: str | None, **more: Any) -> int:
    """Encode SOURCE to DEST here and now, verified."""
    if (preset is None) == (pipeline is None):
        raise click.UsageError("Name a preset (-p) or a pipeline (--pipeline), one of the two.")
    from nommerd.cli.encoding import run

    return run(source, dest, preset=preset, pipeline=pipeline, **more)
