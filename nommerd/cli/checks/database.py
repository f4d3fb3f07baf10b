"""Checks of the embedded database: read only, and without leaving files beside it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

from nommerd.cli.checks.finding import FAULT, OK, WARNING, Finding, Patient
from nommerd.cli.output import size
from nommerd.errors import ConfigError

CHECK_SECONDS = 20.0  # for quick_check, which reads the whole file
INSTRUCTIONS = 100_000  # of SQLite's machine between looks at the clock


def database(patient: Patient) -> Iterator[Finding]:
    """The file of store and bus: where it lies, whether it opens, its version, and whether it is whole."""
    from nommerd.mounts import refuse_network

    settings = patient.known
    urls = [url for url in dict.fromkeys((settings.store, settings.bus)) if urlsplit(url).scheme == "sqlite"]
    if not urls:
        yield Finding("database", OK, f"There is none here: store is {settings.store}, bus is {settings.bus}.")
    for url in urls:
        path = settings.database_path(url)
        try:
            refuse_network(path)
        except ConfigError as error:
            yield Finding("database", FAULT, error.message, error.hint)
            continue
        if not path.exists():
            yield Finding("database", OK, f"{path} is not there yet: the feeder makes it.")
            continue
        try:
            yield from _file(path)
        except sqlite3.Error as error:
            yield Finding("database", FAULT, f"{path} cannot be read as a database: {error}.",
                          "Run as the user of the service. If it is damaged, restore a backup: see docs/operations.md.")


def _file(path: Path) -> Iterator[Finding]:
    from nommerd.sqlite_schema import APPLICATION_ID, MIGRATIONS

    connection = _opened(path)
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            yield Finding("database", FAULT, f"{path} is another program's database.", "Name another file in store and bus.")
            return
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            yield Finding("database", FAULT, f"{path} has schema version {version}; this nommerd knows {len(MIGRATIONS)}.",
                          "Upgrade nommerd, or restore the backup made before the upgrade.")
            return
        newer = f", brought to {len(MIGRATIONS)} when the feeder starts" if version < len(MIGRATIONS) else ""
        yield Finding("database", OK, f"{path} opens: {size(path.stat().st_size)}, schema version {version}{newer}.")
        yield _checked(connection, path)
    finally:
        connection.close()


def _opened(path: Path) -> sqlite3.Connection:
    """Read only. Where no process has it open, as a file that does not change, for SQLite would make files beside it."""
    beside = path.with_name(path.name + "-shm").exists()
    mode = "mode=ro" if beside else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=5)


def _checked(connection: sqlite3.Connection, path: Path) -> Finding:
    deadline = time.monotonic() + CHECK_SECONDS
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), INSTRUCTIONS)
    try:
        rows = connection.execute("PRAGMA quick_check(5)").fetchall()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return Finding("database", WARNING, f"{path} is too large to be checked within {CHECK_SECONDS:.0f} s.",
                       "Check a backup of it: sqlite3 FILE 'PRAGMA quick_check'.")
    faults = [str(row[0]) for row in rows if row[0] != "ok"]
    if faults:
        return Finding("database", FAULT, f"{path} is damaged: {'; '.join(faults)}.",
                       "Stop the daemons and restore a backup: see docs/operations.md.")
    return Finding("database", OK, f"{path} is whole (quick_check).")
