"""`nommerd presets` and `nommerd pipelines`: list, show and check them, and keep them at a feeder.

ls and show ask the feeder; where no feeder is told on the command line and none answers, they read this machine's
directories and say so. With --local or -c they always do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from click.core import ParameterSource

from nommerd.cli.client import Client
from nommerd.cli.options import Group, client_options, config_option, examples, json_option, printable
from nommerd.cli.output import print_json, table
from nommerd.errors import ConfigError, InfrastructureError, InputError, ManyErrors, NommerdError

ONE = {"presets": "preset", "pipelines": "pipeline"}
YAML = "application/yaml"


@click.group(cls=Group)
def presets() -> None:
    """List, show and check presets; keep them at a feeder."""


@click.group(cls=Group)
def pipelines() -> None:
    """List, show and check pipelines; keep them at a feeder."""


def where_options(function: Any) -> Any:
    """--local, -c, --url and --token: which catalog is meant."""
    local = click.option("--local", is_flag=True, help="This machine's directories, whatever feeder there is.")
    return local(config_option(client_options(json_option(function))))


def _add_commands(group: click.Group, kind: str) -> None:
    one = ONE[kind]

    @group.command("ls", short_help=f"List {kind}.", epilog=examples(f"nommerd {kind} ls", f"nommerd {kind} ls --local"))
    @where_options
    def ls(**where: Any) -> None:
        _list(kind, **where)

    ls.help = (f"List {kind}: the feeder's and your project's own. Where no feeder is told and none answers, those in this "
               "machine's directories; with --local or -c always those.")

    @group.command("show", short_help=f"One {one}, as it was written.", epilog=examples(
        f"nommerd {kind} show web-{'720p' if kind == 'presets' else 'mp4'}", f"nommerd {kind} show ours > ours.yaml"))
    @click.argument("name")
    @where_options
    def show(name: str, **where: Any) -> None:
        _show(kind, name, **where)

    show.help = f"Print the {one} NAME as YAML, or with --json as JSON. It is looked for where `ls` looks."

    @group.command("check", short_help="Check files, without a feeder.", epilog=examples(
        f"nommerd {kind} check ours.yaml", "nommerd presets check presets/*.yaml pipelines/*.yaml"))
    @click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
    @config_option
    @json_option
    def check(files: tuple[Path, ...], config_file: Path | None, as_json: bool) -> None:
        _check(kind, files, config_file, as_json)

    check.help = ("Check files of presets and pipelines together, as if they lay in this machine's directories; tell each "
                  "fault as file:line:column. Exit 2 if there are any. Needs no feeder.")

    @group.command("push", short_help="Make or change them at a feeder.", epilog=examples(
        f"nommerd {kind} push ours.yaml", f"nommerd {kind} push --dry-run ours.yaml",
        f"nommerd {kind} push ours.yaml --if-match '\"3-0f5cbb7d21d0a9c4\"'"))
    @click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
    @click.option("--dry-run", is_flag=True, help="Have the feeder check them only.")
    @click.option("--create-only", is_flag=True, help="Refuse what is there already.")
    @click.option("--if-match", metavar="ETAG", help="Only if it is still in this state (`ls --json` shows it).")
    @client_options
    @json_option
    def push(files: tuple[Path, ...], **more: Any) -> None:
        _push(kind, files, **more)

    push.help = f"Make or change {kind} of your project at the feeder, from YAML files. Needs a token of scope admin."

    @group.command("rm", short_help="Delete them at a feeder.", epilog=examples(f"nommerd {kind} rm ours"))
    @click.argument("names", metavar="NAME…", nargs=-1, required=True)
    @client_options
    @json_option
    def rm(names: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> None:
        _remove(kind, names, url, token, as_json)

    rm.help = f"Delete {kind} of your project at the feeder. What another one extends or names stays."

    @group.command("schema", short_help="The JSON Schema, for editors.", epilog=examples(
        f"nommerd {kind} schema > {one}.json"))
    def schema() -> None:
        from nommerd.pipeline.schema import schema_of

        print_json(schema_of(kind))

    schema.help = (f"Print the JSON Schema of {one} documents. Editors with a YAML language server complete and check a file "
                   f"that begins with `# yaml-language-server: $schema={one}.json`.")


_add_commands(presets, "presets")
_add_commands(pipelines, "pipelines")


# --- looking -----------------------------------------------------------------------------------------------------


def _list(kind: str, *, as_json: bool, **where: Any) -> None:
    path = f"/v1/{kind}"
    found = _asked(kind, lambda client: client.call("GET", path)[kind], **where)
    if found is None:
        found = _local_list(kind, where["config_file"])
    if as_json:
        print_json(found)
        return
    second = "pipeline" if kind == "presets" else "params"
    rows = [[one["name"], _plain(one[second]), one["origin"], _description(one)] for one in found]
    table(["NAME", second.upper(), "FROM", "DESCRIPTION"], rows, shrink=["DESCRIPTION", second.upper()])


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, dict) else value or ""


def _description(one: dict[str, Any]) -> str:
    if one["errors"]:
        return f"cannot be used: {one['errors'][0]['code']} ({one['errors'][0]['place']})"
    return printable(" ".join(one["description"].split()))


def _show(kind: str, name: str, *, as_json: bool, **where: Any) -> None:
    path, accept = f"/v1/{kind}/{quote(name, safe='')}", "application/json" if as_json else YAML
    found = _asked(kind, lambda client: client.call("GET", path, headers={"Accept": accept}), **where)
    if found is None:
        found = _local(kind, name, where["config_file"], as_json)
    if as_json:
        print_json(found)
    else:
        click.echo(found, nl=not found.endswith("\n"))


def _asked(kind: str, ask: Callable[[Client], Any], *, config_file: Path | None, local: bool, url: str | None,
           token: str | None) -> Any:
    """What the feeder says; None where this machine's directories are meant, or there is nothing else."""
    context = click.get_current_context()
    told = any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ("url", "token"))
    if told and (local or config_file is not None):
        raise click.UsageError("--local and -c mean this machine's directories, --url and --token a feeder.")
    if local or config_file is not None:
        return None
    try:
        return ask(Client.from_options(url, token))
    except (ConfigError, InfrastructureError) as error:
        if told or error.code not in ("config.no_token", "node.no_feeder"):
            raise
        why = "There is no token for a feeder" if error.code == "config.no_token" else "No feeder answers"
        click.echo(f"{why}: these are the {kind} in this machine's directories.", err=True)
        return None


def _local_list(kind: Any, config_file: Path | None) -> list[dict[str, Any]]:
    from nommerd.api.catalog_models import shown
    from nommerd.cli.configure import load_all

    _, catalog, _ = load_all(config_file)
    names = sorted(name for one, name in catalog.sources if one == kind)
    return [{**shown(catalog, kind, name), "file": str(catalog.sources[kind, name].file)} for name in names]


def _local(kind: Any, name: str, config_file: Path | None, as_json: bool) -> Any:
    from nommerd.catalog.checking import read_file
    from nommerd.cli.configure import load_all
    from nommerd.pipeline.params import known_hint

    _, catalog, _ = load_all(config_file)
    source = catalog.sources.get((kind, name))
    if source is None or source.file is None:
        known = [found for one, found in catalog.sources if one == kind]
        raise InputError(f"recipe.unknown_{ONE[kind]}", f"There is no {ONE[kind]} called {printable(name)!r}.",
                         known_hint(name, known, f"{kind.capitalize()} here"))
    return read_file(source.file).plain() if as_json else source.text


# --- checking and keeping ----------------------------------------------------------------------------------------


def _check(kind: Any, files: tuple[Path, ...], config_file: Path | None, as_json: bool) -> None:
    from nommerd.catalog.checking import CheckedFiles
    from nommerd.cli.configure import load_all

    checked = CheckedFiles(load_all(config_file)[1], files, kind)
    _raise(list(checked.errors))
    for file, name in checked.misnamed:
        click.echo(printable(f"note: {file} is to be called {name}.yaml where the feeder reads it from disk"), err=True)
    names = {one: sorted(name for found, name in checked.held if found == one) for one in ("pipelines", "presets")}
    if as_json:
        print_json(names)
    else:
        print("ok: " + ", ".join(f"{ONE[one]} {name}" for one, found in names.items() for name in found))


def _push(kind: str, files: tuple[Path, ...], *, dry_run: bool, create_only: bool, if_match: str | None, url: str | None,
          token: str | None, as_json: bool) -> None:
    if if_match is not None and len(files) > 1:
        raise click.UsageError("--if-match goes with one file.")
    named = _named(kind, files)
    client = Client.from_options(url, token)
    headers = {"Content-Type": YAML, "If-None-Match": "*" if create_only else "", "If-Match": if_match or ""}
    headers = {name: value for name, value in headers.items() if value}
    answers: list[dict[str, Any]] = []
    refused: list[NommerdError] = []
    for file, name, text in named:
        path = f"/v1/{kind}/{quote(name, safe='')}" + ("?dry_run=true" if dry_run else "")
        try:
            status, answer = client.answer("PUT", path, text, headers=headers)
        except (InputError, ManyErrors) as error:
            refused += [_of_file(one, file) for one in (error.errors if isinstance(error, ManyErrors) else [error])]
            continue
        answers.append(answer)
        if not as_json:
            print(f"{name}  {'ok' if dry_run else 'made' if status == 201 else 'version ' + str(answer['version'])}")
    _raise(refused)
    if as_json:
        print_json(answers)


def _named(kind: Any, files: tuple[Path, ...]) -> list[tuple[Path, str, bytes]]:
    """Each file with its document's name and its text. Faults of all of them are told before anything is sent."""
    from nommerd.catalog.checking import kind_of, read_file

    found: list[tuple[Path, str, bytes]] = []
    faults: list[NommerdError] = []
    for file in files:
        try:
            node = read_file(file)
        except NommerdError as error:
            faults += error.errors if isinstance(error, ManyErrors) else [error]
            continue
        at, other = node.get("name"), kind_of(node, kind)
        if other != kind:
            faults.append(ConfigError("recipe.bad_setting", f"This is a {ONE[other]}.", f"Use `nommerd {other} push`.",
                                      place=f"{file}:1:1"))
        elif at is None or not isinstance(at.value, str):
            faults.append(ConfigError("recipe.missing_key", "name: missing.", "Give it a name.", place=node.place))
        else:
            found.append((file, at.value, file.read_bytes()))
    _raise(faults)
    return found


def _of_file(error: NommerdError, file: Path) -> NommerdError:
    """A fault in the body that was sent, as one in the file."""
    if error.place is not None and (error.place == "body" or error.place.startswith("body:")):
        error.place = f"{file}{error.place.removeprefix('body')}"
    return error


def _remove(kind: str, names: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> None:
    client = Client.from_options(url, token)
    refused: list[NommerdError] = []
    removed: list[str] = []
    for name in names:
        try:
            client.call("DELETE", f"/v1/{kind}/{quote(name, safe='')}")
        except (InputError, ManyErrors) as error:
            refused += error.errors if isinstance(error, ManyErrors) else [error]
            continue
        removed.append(name)
        if not as_json:
            print(f"{name}  deleted")
    _raise(refused)
    if as_json:
        print_json({"deleted": removed})


def _raise(errors: list[NommerdError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else ManyErrors(errors)
