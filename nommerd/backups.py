"""A backup of an embedded installation: one tar.gz with the database as of one moment, the secrets that belong to it, and a
manifest that says of each what it must be. `make` works while feeder and workers do; `nommerd.restoring` puts one back.

All files made here are for their owner alone, and appear under their names whole or not at all.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sqlite3
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, urlsplit

from nommerd import __version__
from nommerd.errors import ConfigError
from nommerd.owners import as_owner, changeable
from nommerd.scratch import OWNER_ONLY, beside, sync_folder, unwritable
from nommerd.sqlite_schema import APPLICATION_ID, BUSY_SECONDS

if TYPE_CHECKING:
    from nommerd.config import Settings

FORMAT = 1
MANIFEST, DATABASE, TOKEN, KEYS, WEBHOOK_SECRET = "manifest.json", "nommerd.db", "token", "keys", "webhook-secret"
SMALL_BYTES_MAX = 64 * 1024  # of the manifest and of each secret
CHUNK_BYTES = 1024 * 1024
CHECK_SECONDS = 15 * 60.0  # of a database: gigabytes on a slow disk take minutes, a hostile one has no end
CHECK_STEPS = 100_000  # of SQLite's machine, some milliseconds, between two looks at the clock
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_INSTEAD = {
    "dynamodb": "DynamoDB keeps its own backups: `nommerd aws setup` switches on point-in-time recovery over 35 days; "
                "`aws dynamodb restore-table-to-point-in-time` makes a new table to name in `store`.",
    "simpledb": "SimpleDB has no backups. AWS keeps each item several times over; move to dynamodb:// for recovery to a point "
                "in time.",
    "memory": "A memory:// store ends with its process: there is nothing to keep.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the backup as it must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup says of itself."""

    format: int = FORMAT
    nommerd: str  # the version that made it
    schema_version: int  # of the database
    cluster: str
    made: str  # when: UTC, as _TIME has it
    jobs: int
    files: dict[str, Entry]

    def encode(self) -> bytes:
        return json.dumps({"kind": "nommerd-backup", **asdict(self)}, indent=2).encode()

    @staticmethod
    def decode(text: bytes) -> Manifest:
        """Raises ValueError for what no version of ours wrote."""
        try:
            read = json.loads(text)
            if read.pop("kind") != "nommerd-backup":
                raise ValueError
            read["files"] = {name: Entry(**entry) for name, entry in read["files"].items()}
            manifest = Manifest(**{name: read[name] for name in Manifest.__dataclass_fields__})
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        if not manifest._sound():
            raise ValueError
        return manifest

    def _sound(self) -> bool:
        numbers = (self.format, self.schema_version, self.jobs, *(entry.bytes for entry in self.files.values()))
        texts = (self.nommerd, self.cluster)
        return (all(type(number) is int and number >= 0 for number in numbers)
                and all(isinstance(text, str) and len(text) < 200 and text.isprintable() for text in texts)
                and isinstance(self.made, str) and _is_time(self.made)
                and all(re.fullmatch("[0-9a-f]{64}", str(entry.sha256)) for entry in self.files.values())
                and DATABASE in self.files and self.files.keys() <= {DATABASE, TOKEN, KEYS, WEBHOOK_SECRET})


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).strftime(_TIME) == text
    except ValueError:
        return False


def installation(settings: Settings) -> dict[str, Path]:
    """Where each file of a backup belongs. ConfigError config.backup_store where the records are in no file."""
    scheme = urlsplit(settings.store).scheme
    if scheme != "sqlite":
        raise ConfigError("config.backup_store", f"The store is {scheme}://: backup and restore are for the embedded one.",
                          _INSTEAD.get(scheme, ""), place="store")
    parts = {DATABASE: settings.database_path(settings.store), TOKEN: settings.token_file, KEYS: settings.keys_file,
             WEBHOOK_SECRET: settings.webhook_secret_file}
    return {name: path.absolute().resolve() for name, path in parts.items()}


def make(settings: Settings, file: Path, *, force: bool) -> Manifest:
    """Write a backup to `file`, which must not be there unless `force`. Raises ConfigError, and OSError of a full disk."""
    parts = installation(settings)
    if not settings.data_dir.is_dir() or not parts[DATABASE].exists():
        raise ConfigError("config.no_data", f"There is no database {parts[DATABASE]}.",
                          "Is this the configuration of the feeder?", place="store")
    file = Path(os.path.realpath(file.parent), file.name)  # whoever may change a link on the way changes nothing any more
    _check_target(file, parts, force)
    with beside(file, folder=True) as folder, beside(file) as archive:
        copy = folder / DATABASE
        schema_version, jobs = _snapshot(parts[DATABASE], copy, settings.data_dir)
        with as_owner(settings.data_dir):
            read = {name: _content(path) for name, path in parts.items() if name != DATABASE}
        small = {name: text for name, text in read.items() if text is not None}
        manifest = Manifest(nommerd=__version__, schema_version=schema_version, cluster=settings.cluster, jobs=jobs,
                            made=datetime.now(UTC).strftime(_TIME),
                            files={DATABASE: _entry(copy), **{name: Entry(len(text), sha256(text).hexdigest())
                                                              for name, text in small.items()}})
        _pack(archive, manifest, copy, small)
        _publish(archive, file, force)
    return manifest


def _check_target(file: Path, parts: dict[str, Path], force: bool) -> None:
    own = {path.resolve() for name in parts for path in (parts[name], Path(f"{parts[name]}-wal"), Path(f"{parts[name]}-shm"))}
    if file.resolve() in own:
        raise ConfigError("config.backup_file", f"{file} is a file of the installation itself.", "Name another file.")
    there = _status(file)
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise ConfigError("config.backup_file", f"{file} is no file.", "Name a file to write, such as nommerd.tar.gz.")
    if there is not None and not force:
        raise _exists(file)
    if os.geteuid() == 0:
        _check_folder(file)


def _check_folder(file: Path) -> None:
    """Root writes only where nobody else can put a link in the place of what it has just made."""
    try:
        folder = changeable(file.parent)
    except OSError as error:
        raise unwritable(file, error) from None
    if folder is not None:
        raise ConfigError("config.backup_file", f"{file} cannot be written safely: others than root may change {folder}.",
                          "Name a file in a folder that is root's alone all the way, such as /root or /var/backups.")


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _exists(file: Path) -> ConfigError:
    return ConfigError("config.backup_exists", f"{file} is there already.", "Name another file, or replace it with --force.")


def _snapshot(database: Path, copy: Path, data: Path) -> tuple[int, int]:
    """Copy the database in one read transaction, which holds up nobody; its schema version and number of jobs."""
    try:
        with _reading(database, data) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        return checked(copy, str(database))
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise damaged(str(database), str(error)) from None
    except sqlite3.Error as error:
        raise damaged(str(database), str(error)) from None


@contextmanager
def _reading(database: Path, data: Path) -> Iterator[sqlite3.Connection]:
    """The database in a read transaction: all files that belong to it are open, and closed, as its owner."""
    with as_owner(data):
        for path in (Path(f"{database}{suffix}") for suffix in ("", "-wal", "-journal")):
            if path.exists() and not path.is_file():  # SQLite would wait for somebody to write into a pipe
                raise damaged(str(database), f"{path.name} is no plain file")
        source = _opened(database, "mode=rw")
    try:
        with as_owner(data):
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield source
    finally:
        with as_owner(data):
            source.close()


def checked(database: Path, name: str) -> tuple[int, int]:
    """The schema version of a database that nobody else has open, and its number of jobs. ConfigError, calling it `name`, for
    one that is damaged or not ours, or whose check has no end."""
    ends = time.monotonic() + CHECK_SECONDS
    try:
        with closing(_opened(database, "mode=ro&immutable=1")) as db:
            db.set_progress_handler(lambda: time.monotonic() > ends, CHECK_STEPS)
            db.execute("PRAGMA trusted_schema = OFF")
            return _counted(db, name)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_INTERRUPT:
            raise damaged(name, str(error)) from None
        if time.monotonic() <= ends:
            raise KeyboardInterrupt from None  # it came while the handler ran, and sqlite3 swallowed it
        raise damaged(name, f"its check does not end within {CHECK_SECONDS / 60:g} minutes") from None


def _counted(db: sqlite3.Connection, name: str) -> tuple[int, int]:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise ConfigError("config.database", f"{name} is another program's database.", "Name another file.")
    found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise damaged(name, found)
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs' AND type = 'table' AND rootpage > 0").fetchone():
        raise damaged(name, "it has no table of jobs")  # a view may never end, a virtual table may do anything
    return db.execute("PRAGMA user_version").fetchone()[0], db.execute("SELECT count(*) FROM jobs").fetchone()[0]


def _opened(database: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(database.absolute()))}?{how}", uri=True, timeout=BUSY_SECONDS)


def damaged(name: str, why: str) -> ConfigError:
    """The error of a database that SQLite finds fault with."""
    return ConfigError("config.database", f"The database {name} is damaged: {why}.",
                       "Restore the last good backup with `nommerd restore`.")


def _entry(path: Path) -> Entry:
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return Entry(path.stat().st_size, digest.hexdigest())


def _content(path: Path) -> bytes | None:
    """None where there is no such file. ConfigError for what cannot be read, or could not be restored."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(SMALL_BYTES_MAX + 1) if regular else b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError("config.unreadable", f"{path} cannot be read: {error.strerror}.",
                          "The data directory's owner must be able to.") from None
    if not regular or len(content) > SMALL_BYTES_MAX:
        raise ConfigError("config.unreadable", f"{path} is {'larger than any secret' if regular else 'no plain file'}.",
                          "Put the file that nommerd made back in its place.")
    return content


def _pack(archive: Path, manifest: Manifest, database: Path, small: dict[str, bytes]) -> None:
    """The manifest first, so that a reader knows what must come."""
    with archive.open("wb") as raw:
        with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=6) as tar:
            text = manifest.encode()
            _add(tar, MANIFEST, len(text), io.BytesIO(text), manifest)
            with database.open("rb") as file:
                _add(tar, DATABASE, manifest.files[DATABASE].bytes, file, manifest)
            for name, content in small.items():
                _add(tar, name, len(content), io.BytesIO(content), manifest)
        raw.flush()
        os.fsync(raw.fileno())


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO, manifest: Manifest) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, OWNER_ONLY, int(datetime.fromisoformat(manifest.made).timestamp())
    tar.addfile(member, content)


def _publish(made: Path, file: Path, force: bool) -> None:
    try:
        if force:
            made.replace(file)
        else:
            _link(made, file)
    except FileExistsError:
        raise _exists(file) from None
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        sync_folder(file.parent)
    except OSError as error:
        raise ConfigError("config.backup_file", f"{file} was written, but may not outlive a loss of power: {error.strerror}.",
                          "Look after that disk, and copy the file elsewhere.") from None


def _link(made: Path, file: Path) -> None:
    """Give it its name, unless somebody has it: FileExistsError."""
    try:
        os.link(made, file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if _status(file) is not None:
            raise FileExistsError from None
        made.replace(file)  # a file system without links
