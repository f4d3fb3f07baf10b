"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from nommerd.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
config_option = click.option("-c", "--config", "config_file", type=click.Path(path_type=Path),
                             help="Configuration file (default: NOMMERD_CONFIG, then /etc/nommerd/nommerd.yaml).")


def client_options(function: F) -> F:
    """--url and --token, for commands that talk to a feeder."""
    url = click.option("--url", envvar="NOMMERD_URL", help="The feeder (NOMMERD_URL; default http://127.0.0.1:8001).")
    token = click.option("--token", envvar="NOMMERD_TOKEN", help="API token (better in NOMMERD_TOKEN; else the token file).")
    return url(token(function))


def job_options(pipeline_help: str) -> Callable[[F], F]:
    """What describes a job, for `encode` and `submit` alike."""
    described = (
        click.argument("source"), click.argument("dest"), click.option("-p", "--preset", help="Preset, by name."),
        click.option("--pipeline", help=pipeline_help),
        click.option("--set", "params", multiple=True, metavar="K=V", help="A param of the pipeline. May repeat."),
        click.option("--input", "inputs", multiple=True, metavar="NAME=URI", help="A further input. May repeat."),
        click.option("--overwrite", is_flag=True, help="Replace what is at DEST."),
        click.option("--on-damage", type=click.Choice(["tolerate", "fail"]), help="What mild damage in the source means."))

    def decorate(function: F) -> F:
        for option in reversed(described):
            function = option(function)
        return function

    return decorate


def pairs(items: tuple[str, ...], option: str) -> dict[str, str]:
    """`K=V` items as a dict."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise click.UsageError(f"{option} takes NAME=VALUE, not {item!r}.")
        found[key] = value
    return found


def input_items(items: tuple[str, ...]) -> dict[str, list[dict[str, str]]]:
    """`--input NAME=URI` as a job's inputs; a name may come again."""
    found: dict[str, list[dict[str, str]]] = {}
    for item in items:
        for name, uri in pairs((item,), "--input").items():
            found.setdefault(name, []).append({"uri": absolute_uri(uri)})
    return found


def scalar(text: str) -> object:
    """A value from the command line as a pipeline's param takes it: true, false and numbers are no texts."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if text.lower().strip("+-0123456789.e") == "" else text
    return text


def absolute_uri(text: str) -> str:
    """A path as an absolute file: URI, relative ones against the current folder; other URIs as they are."""
    if "://" in text:
        return text
    if text.startswith("file:"):
        text = text.removeprefix("file:")
    if not text:
        raise InputError("source.bad_uri", "An empty path.", "Write a path or a URI.")
    uri = (Path.cwd() / text).as_uri()
    return uri + "/" if text.endswith("/") and not uri.endswith("/") else uri
