"""Which jobs are meant: the filters of `jobs ls`, `cancel` and `retry`."""

from __future__ import annotations

from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from nommerd.cli.options import STATES, F, Since, complete_presets, pairs

Query = list[tuple[str, str]]


def filter_options(function: F) -> F:
    """--state, --label, --preset, --code and --since."""
    for option in (
            click.option("--since", type=Since(), help="Only submitted since: 15m, 2h, 3d ago, or 2026-01-31T09:00."),
            click.option("--code", help="Only with this error code: input.truncated."),
            click.option("--preset", help="Only with this preset.", shell_complete=complete_presets),
            click.option("--label", "labels", multiple=True, metavar="K=V", help="Only with this label. May repeat."),
            click.option("--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False),
                         metavar="STATE", shell_complete=_complete_states,
                         help="Only in this state: PENDING, ENCODING, ERROR … May repeat.")):
        function = option(function)
    return function


def _complete_states(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(state) for state in STATES if state.startswith(incomplete.upper())]


def query_of(states: Sequence[str], labels: tuple[str, ...], preset: str | None, code: str | None,
             since: str | None) -> Query:
    """The API's query. A filter without a value is refused: it would let through everything."""
    for option, value in (("--preset", preset), ("--code", code)):
        if value is not None and not value.strip():
            raise click.UsageError(f"{option} has no value. Is a variable empty?")
    query = [("state", state.upper()) for state in states] + [("label", f"{k}={v}") for k, v in _labels(labels)]
    return query + [(name, value) for name, value in (("preset", preset), ("error_code", code), ("since", since)) if value]


def _labels(labels: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, value) for label in labels for name, value in pairs((label,), "--label").items()]
