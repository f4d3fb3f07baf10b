"""`nommerd completion`: what a shell needs to complete our commands, options and their choices."""

from __future__ import annotations

import click

from nommerd.cli.options import Command, examples, json_option
from nommerd.cli.output import print_json

VARIABLE = "_NOMMERD_COMPLETE"  # asks `nommerd` itself for completions: click's mechanism


@click.command(cls=Command, short_help="Completion of commands and options for a shell.", epilog=examples(
    'echo \'eval "$(nommerd completion bash)"\' >> ~/.bashrc',
    'echo \'eval "$(nommerd completion zsh)"\' >> ~/.zshrc',
    "nommerd completion fish > ~/.config/fish/completions/nommerd.fish"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that makes SHELL complete nommerd's commands, options and choices with the Tab key."""
    text = script(shell)
    if as_json:
        print_json({"shell": shell, "script": text})
    else:
        print(text)


def script(shell: str) -> str:
    """The script for one of click's shells."""
    from click.shell_completion import get_completion_class

    from nommerd.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, "nommerd", VARIABLE)
    return (made.source_template % made.source_vars()).strip()
