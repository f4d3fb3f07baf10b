"""The SQL of a listing: newest first, a page at a time, each combination of filters along an index.

One index cannot give jobs of several states in order of time, so each state is read by itself, at most a page of it, and
the parts are merged.
"""

from __future__ import annotations

from typing import Any

from nommerd.job import JobState
from nommerd.store.base import JobQuery
from nommerd.store.cursor import Cursor, microseconds

COLUMNS = "j.body, p.token, p.progress, p.stage, p.eta_seconds, p.speed"
WITH_PROGRESS = "LEFT JOIN progress p ON p.project = j.project AND p.id = j.id"


def select(query: JobQuery) -> tuple[str, list[Any]]:
    """The statement and its arguments; it gives one job more than the page holds where there are more."""
    states: list[JobState | None] = sorted(query.states) or (list(JobState) if query.labels else [None])  # type: ignore[assignment]
    parts = [_part(query, state) for state in states]
    union = " UNION ALL ".join(f"SELECT * FROM ({sql})" for sql, _ in parts)
    arguments = [value for _, values in parts for value in values]
    return (f"SELECT {COLUMNS} FROM (SELECT * FROM ({union}) ORDER BY created DESC, id DESC LIMIT ?) page "
            f"CROSS JOIN jobs j ON j.project = ? AND j.id = page.id {WITH_PROGRESS} ORDER BY page.created DESC, page.id DESC",
            [*arguments, query.limit + 1, query.project])


def _part(query: JobQuery, state: JobState | None) -> tuple[str, list[Any]]:
    source, where, arguments = _labelled(query) if query.labels else _plain(query, state)
    for column, value in (("state", state), ("preset", query.preset), ("error_code", query.error_code)):
        if value is not None:
            where.append(f"k.{column} = ?")
            arguments.append(value)
    if query.since is not None:
        where.append("k.created >= ?")
        arguments.append(microseconds(query.since))
    if query.cursor is not None:
        where.append("(k.created, k.id) < (?, ?)")
        arguments.extend(Cursor.decode(query.cursor))
    return (f"SELECT k.created AS created, k.id AS id FROM {source} WHERE {' AND '.join(where)} "
            "ORDER BY k.created DESC, k.id DESC LIMIT ?", [*arguments, query.limit + 1])


def _plain(query: JobQuery, state: JobState | None) -> tuple[str, list[str], list[Any]]:
    if state is not None:
        index = "jobs_by_state"
    elif query.error_code is not None:
        index = "jobs_by_error"
    else:
        index = "jobs_by_created" if query.preset is None else "jobs_by_preset"
    return f"jobs k INDEXED BY {index}", ["k.project = ?"], [query.project]


def _labelled(query: JobQuery) -> tuple[str, list[str], list[Any]]:
    (name, value), *others = sorted(query.labels.items())
    where = ["k.project = ? AND k.name = ? AND k.value = ?"]
    arguments: list[Any] = [query.project, name, value]
    for pair in others:
        where.append("EXISTS (SELECT 1 FROM labels m WHERE m.project = k.project AND m.name = ? AND m.value = ? "
                     "AND m.state = k.state AND m.created = k.created AND m.id = k.id)")
        arguments.extend(pair)
    return "labels k", where, arguments
