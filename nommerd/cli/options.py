"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from nommerd.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    TextType = click.ParamType[str]
    NumberType = click.ParamType[float]
else:
    TextType = NumberType = click.ParamType  # no generic before click 8.5

STATES = ("PENDING", "DOWNLOADING", "ENCODING", "UPLOADING", "WAITING", "FINISHED", "ERROR", "ABANDONED", "CANCELLED")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
GENERAL = frozenset({"config_file", "url", "token", "as_json"})  # options that say nothing about the work itself


def examples(*lines: str) -> str:
    """The epilog of a command: command lines to copy, one a line. `click.command(epilog=examples(...))`."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


class _Epilog(click.Command):
    """Its examples stand in a section of their own, like everything else in its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write("\n" + self.epilog.removeprefix("\b\n") + "\n")


class Command(_Epilog):
    """A command whose help tells the options of its work apart from those that most commands have."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        general: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                (general if param.name in GENERAL or "--help" in param.opts else own).append(record)
        for title, records in (("Options", own), ("General options" if own else "Options", general)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(_Epilog, click.Group):
    """A group of such commands. What is no command of it is told with what may have been meant."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """As they were added: what is used most stands first."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(unknown_command(args[0], self.list_commands(ctx)) if args else error.message, ctx) from None


Group.group_class = Group


def unknown_command(given: str, known: list[str]) -> str:
    """What to say of a name that is no command."""
    from difflib import get_close_matches

    near = get_close_matches(given, known, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"No such command '{printable(given)}'. {meant}There are: {', '.join(known)}."


def printable(text: str) -> str:
    """The text without what a terminal would take for a command: control characters and broken encodings as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class Since(TextType):
    """A time: so long ago (90s, 15m, 2h, 3d, 1w), or a date or time as ISO 8601 has it; without a zone it is local time.
    Becomes ISO 8601 in UTC, ending in Z."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        try:
            at = datetime.now(UTC) - timedelta(seconds=seconds(text)) if text[-1:] in UNITS else datetime.fromisoformat(text)
            return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is no time. Write how long ago (90s, 15m, 2h, 3d, 1w) or 2026-01-31T09:00.", param, ctx)


class Duration(NumberType):
    """A length of time, as seconds: 2, 2s, 1.5m, 1h. Where days are usual, a bare number is not taken for seconds."""

    name = "duration"

    def __init__(self, *, unit_needed: bool = False) -> None:
        self.unit_needed = unit_needed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if self.unit_needed and str(value)[-1:] not in UNITS:
            self.fail(f"{value!r} is no duration with a unit. Write 12h or 90d.", param, ctx)
        try:
            return seconds(str(value)) if not isinstance(value, int | float) else float(value)
        except ValueError:
            self.fail(f"{value!r} is no duration. Write {'12h or 90d' if self.unit_needed else '2s, 1.5m or 1h'}.", param, ctx)


def seconds(text: str) -> float:
    """`90s`, `1.5h` or plain seconds. ValueError for anything else, and below zero."""
    unit = UNITS.get(text[-1:], 0)
    number = float(text[:-1] if unit else text)
    if not 0 <= number * (unit or 1) < 1e11:
        raise ValueError(text)
    return number * (unit or 1)


def complete_presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the shipped presets, for shells: quick, and without a feeder."""
    from nommerd.places import shipped_conf

    names = sorted(path.stem for path in (shipped_conf() / "presets").glob("*.yaml"))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may be a URI as well is a file where a shell can complete it."""
    return [CompletionItem(incomplete, type="file")]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
config_option = click.option("-c", "--config", "config_file", type=click.Path(path_type=Path, readable=False),
                             help="Configuration file (default: NOMMERD_CONFIG, then /etc/nommerd/nommerd.yaml).")


def client_options(function: F) -> F:
    """--url and --token, for commands that talk to a feeder."""
    url = click.option("--url", envvar="NOMMERD_URL", help="The feeder (NOMMERD_URL; default http://127.0.0.1:8001).")
    token = click.option("--token", envvar="NOMMERD_TOKEN", help="API token (better in NOMMERD_TOKEN; else the token file).")
    return url(token(function))


def job_options(pipeline_help: str) -> Callable[[F], F]:
    """What describes a job, for `encode` and `submit` alike."""
    described = (
        click.argument("source", shell_complete=complete_files), click.argument("dest", shell_complete=complete_files),
        click.option("-p", "--preset", help="Preset, by name.", shell_complete=complete_presets),
        click.option("--pipeline", help=pipeline_help, shell_complete=complete_files),
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
