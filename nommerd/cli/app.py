"""The command group, and what an error looks like. A subcommand's module is imported when it is called."""

from __future__ import annotations

import errno
import json
import signal
import sys
from importlib import import_module

import click
from click.shell_completion import CompletionItem

from nommerd import __version__
from nommerd.cli.options import Group, examples, printable
from nommerd.errors import ConfigError, ManyErrors, NommerdError, WorkStopped

DONE, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

COMMANDS = {  # name -> module of nommerd.cli that has it under that name, and its line in --help
    "demo": ("demo", "The whole system here: one job over HTTP, its result verified."),
    "up": ("up", "Feeder and workers in one terminal."),
    "encode": ("encode", "One pipeline, here and now, without any daemon."),
    "submit": ("submit", "Hand a job to a feeder."),
    "explain": ("explain", "What a job would run and make, without running it."),
    "jobs": ("jobs", "List, show, follow, cancel and retry jobs."),
    "watch": ("watchdir", "Make a job of each file that appears in a folder."),
    "presets": ("catalogs", "List, show and check presets; keep them at a feeder."),
    "pipelines": ("catalogs", "List, show and check pipelines; keep them at a feeder."),
    "config": ("configure", "Check and show the configuration; make a key."),
    "doctor": ("doctor", "Check this machine and installation; say what to do."),
    "feeder": ("daemons", "The daemon that takes jobs over HTTP."),
    "worker": ("daemons", "The daemon that encodes."),
    "workers": ("operate", "List the workers; drain one."),
    "pause": ("operate", "Begin no new work."),
    "resume": ("operate", "Begin work again."),
    "stats": ("operate", "What waits, runs and fails, in numbers."),
    "tokens": ("tokens", "Make, list and revoke tokens of the API."),
    "webhooks": ("webhooks", "Failing receivers; test one, send events again, the secret."),
    "backup": ("backup", "Database and secrets of this machine as one file."),
    "restore": ("backup", "Put such a file back."),
    "wipe": ("wipe", "Delete every job and empty both queues."),
    "aws": ("aws", "Make what an AWS account needs, watch buckets, take it down."),
    "ami": ("ami", "The image of machines on EC2; a feeder's user-data."),
    "completion": ("completion", "Completion of commands and options for a shell."),
}

SECTIONS = {  # what one wants -> the commands for it, in this order; what stands nowhere comes last, under "Operate"
    "Try it": ("demo", "up", "encode"),
    "Jobs": ("submit", "jobs", "watch", "explain", "stats"),
    "Recipes": ("presets", "pipelines"),
    "Run it": ("feeder", "worker", "config", "doctor", "completion"),
    "Operate": ("workers", "pause", "resume", "tokens", "webhooks", "backup", "restore", "wipe", "aws", "ami"),
}


class LazyGroup(Group):
    """Knows its commands by name; imports one when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"nommerd.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table alone: a shell waits for it."""
        named = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, names in sections().items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", COMMANDS[name][1]) for name in names])


def sections() -> dict[str, list[str]]:
    """The commands there are, by what one wants."""
    found = {title: [name for name in names if name in COMMANDS] for title, names in SECTIONS.items()}
    told = {name for names in found.values() for name in names}
    found["Operate"] += [name for name in COMMANDS if name not in told]
    return found


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]},
               epilog=examples("nommerd demo", "nommerd encode holiday.mov small.mp4 -p web-480p",
                               "nommerd submit holiday.mov small.mp4 -p web-720p --wait"))
@click.version_option(__version__, message="nommerd %(version)s")
def cli() -> None:
    """nommerd: a self-hosted media encoder.

    Begin with `nommerd demo`, then `nommerd up`. Client commands take --url and --token (or NOMMERD_URL and
    NOMMERD_TOKEN). Exit codes: 0 done, 1 the job or its input failed, 2 usage or configuration. Each command has its
    own --help, with examples.
    """


def run(arguments: list[str]) -> int:
    """Run a command line; errors meant for people become messages, never tracebacks."""
    as_json = "--json" in arguments
    try:
        result = cli.main(arguments, prog_name="nommerd", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk can still be told
        return result if isinstance(result, int) else DONE
    except click.ClickException as error:
        _show_usage_error(error, as_json)
        return USAGE
    except NommerdError as error:
        show_error(error, as_json)
        return USAGE if isinstance(error, ConfigError) or _all_config(error) else FAILED
    except (KeyboardInterrupt, click.Abort, WorkStopped):
        print("nommerd: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        _drop_output()
        print(f"nommerd: node.disk_full: The output cannot be written: {error.strerror}.", file=sys.stderr)
        return FAILED


def _drop_output() -> None:
    from nommerd.cli.output import drop_output

    drop_output()


def _all_config(error: NommerdError) -> bool:
    return isinstance(error, ManyErrors) and all(isinstance(one, ConfigError) for one in error.errors)


def _show_usage_error(error: click.ClickException, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"errors": [{"place": None, "code": "usage", "message": error.format_message(), "hint": ""}]}))
    else:
        error.show()


def show_error(error: NommerdError, as_json: bool) -> None:
    """Each fault with its place, code and hint: on stderr for people, on stdout as JSON for machines. What somebody else wrote
    may stand in it, and tells a terminal nothing; its further lines are set off from ours."""
    faults = error.errors if isinstance(error, ManyErrors) else [error]
    if as_json:
        shown = [{"place": e.place, "code": e.code, "message": e.message, "hint": e.hint} for e in faults]
        print(json.dumps({"errors": shown}))
        return
    for fault in faults:
        print("nommerd: " + "\n  ".join(map(printable, str(fault).split("\n"))), file=sys.stderr)
