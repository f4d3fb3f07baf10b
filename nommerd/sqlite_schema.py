"""The tables of the embedded file, as a list of migrations: version N is the first N of them, applied in order.

A migration that files were made with never changes: what is to be otherwise is one more (tests/unit/test_upgrade.py).
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from nommerd.errors import ConfigError

APPLICATION_ID = 0x6E6F6D64  # "nomd": tells our file from any other SQLite database
BUSY_SECONDS = 5.0  # how long to wait for a lock that a foreign program (a shell, a backup) holds on the file
WAL_KEPT_BYTES = 64 * 1024 * 1024

MIGRATIONS: tuple[str, ...] = (
    # 1. Times of jobs are whole microseconds since the epoch, those of messages and due dates are seconds.
    # The label rows repeat what else is searched for, so that any mix of labels and other filters reads along one index.
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;

    CREATE TABLE jobs (
        project TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, token INTEGER NOT NULL, state TEXT NOT NULL,
        created INTEGER NOT NULL, finished INTEGER, preset TEXT, error_code TEXT, recipe TEXT NOT NULL,
        sweep INTEGER, sweep_at REAL, webhook_at REAL, body TEXT NOT NULL,
        PRIMARY KEY (project, id));
    CREATE INDEX jobs_by_created ON jobs (project, created, id);
    CREATE INDEX jobs_by_state ON jobs (project, state, created, id, preset, error_code);
    CREATE INDEX jobs_by_preset ON jobs (project, preset, created, id);
    CREATE INDEX jobs_by_error ON jobs (project, error_code, created, id) WHERE error_code IS NOT NULL;
    CREATE INDEX jobs_by_recipe ON jobs (recipe);
    CREATE INDEX jobs_by_sweep ON jobs (sweep, sweep_at, project, id) WHERE sweep IS NOT NULL;
    CREATE INDEX jobs_by_webhook ON jobs (webhook_at, project, id) WHERE webhook_at IS NOT NULL;
    CREATE INDEX jobs_by_finished ON jobs (finished) WHERE finished IS NOT NULL;

    CREATE TABLE labels (
        project TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, state TEXT NOT NULL, created INTEGER NOT NULL,
        id TEXT NOT NULL, preset TEXT, error_code TEXT,
        PRIMARY KEY (project, name, value, state, created, id)) WITHOUT ROWID;

    CREATE TABLE progress (
        project TEXT NOT NULL, id TEXT NOT NULL, token INTEGER NOT NULL, progress REAL NOT NULL, stage TEXT, eta_seconds REAL,
        PRIMARY KEY (project, id)) WITHOUT ROWID;

    CREATE TABLE recipes (hash TEXT PRIMARY KEY, document TEXT NOT NULL, stored REAL NOT NULL) WITHOUT ROWID;

    CREATE TABLE workers (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;

    CREATE TABLE leader (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, body TEXT NOT NULL);

    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, id TEXT NOT NULL, priority INTEGER NOT NULL,
        body TEXT NOT NULL, visible_at REAL NOT NULL, received INTEGER NOT NULL DEFAULT 0, receipt TEXT,
        dead INTEGER NOT NULL DEFAULT 0);  -- dead: 0 alive, 1 received too often, 2 cannot be decoded
    CREATE INDEX messages_by_time ON messages (queue, dead, visible_at);
    CREATE INDEX messages_by_turn ON messages (queue, dead, priority, seq, visible_at);
    """,
    # 2. Presets, pipelines, tokens, logs of attempts and the like; how jobs of a project ended, by time.
    """
    CREATE TABLE documents (
        kind TEXT NOT NULL, scope TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, expires REAL,
        body TEXT NOT NULL, PRIMARY KEY (kind, scope, name));
    CREATE INDEX documents_by_expiry ON documents (expires) WHERE expires IS NOT NULL;
    CREATE INDEX jobs_by_ending ON jobs (project, finished, state, error_code) WHERE finished IS NOT NULL;
    """,
    # 3. How fast a running job encodes. Made anew, as for a while version 2 had this column.
    """
    ALTER TABLE progress RENAME TO progress_before;
    CREATE TABLE progress (
        project TEXT NOT NULL, id TEXT NOT NULL, token INTEGER NOT NULL, progress REAL NOT NULL, stage TEXT, eta_seconds REAL,
        speed REAL, PRIMARY KEY (project, id)) WITHOUT ROWID;
    INSERT INTO progress (project, id, token, progress, stage, eta_seconds)
        SELECT project, id, token, progress, stage, eta_seconds FROM progress_before;
    DROP TABLE progress_before;
    """,
)


def connect(path: Path) -> sqlite3.Connection:
    """A connection that commits durably, usable from any one thread at a time; transactions are begun by hand."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to our schema version. Raises ConfigError for another program's file and a newer version's."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    ours = connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    if not ours and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise ConfigError("config.database", f"{path} is another program's database.", "Name another file.")
    if version > len(MIGRATIONS):
        raise ConfigError("config.newer_database",
                          f"{path} has schema version {version}; this nommerd knows {len(MIGRATIONS)}.",
                          "Upgrade nommerd, or restore the backup made before the upgrade.")
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA application_id = {APPLICATION_ID}; "
                                 f"PRAGMA user_version = {number + 1}; COMMIT;")
