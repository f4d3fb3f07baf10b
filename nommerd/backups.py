"""A backup of an embedded installation: one tar.gz with the database as of one moment, the secrets that belong to it, and a
manifest that says of each what it must be. `make` works while feeder and workers do; `nommerd.restoring` puts one back.

All files made here are for their owner alone, and appear under their names whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import io
import json
import os
import re
import secrets
import sqlite3
import stat
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, urlsplit

from nommerd import __version__
from nommerd.errors import ConfigError
from nommerd.sqlite_schema import APPLICATION_ID, BUSY_SECONDS

if TYPE_CHECKING:
    from nommerd.config import Settings

FORMAT = 1
MANIFEST, DATABASE, TOKEN, KEYS, WEBHOOK_SECRET = "manifest.json", "nommerd.db", "token", "keys", "webhook-secret"
SMALL_BYTES_MAX = 64 * 1024  # of the manifest and of each secret
CHUNK_BYTES = 1024 * 1024
OWNER_ONLY = 0o600
LEFT_SECONDS = 60.0  # how old what is left must be: a file is made before it is held
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
    made: str  # when, UTC, ending in Z
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
        texts = (self.nommerd, self.cluster, self.made)
        return (all(type(number) is int and number >= 0 for number in numbers)
                and all(isinstance(text, str) and len(text) < 200 for text in texts)
                and all(re.fullmatch("[0-9a-f]{64}", str(entry.sha256)) for entry in self.files.values())
                and DATABASE in self.files and self.files.keys() <= {DATABASE, TOKEN, KEYS, WEBHOOK_SECRET})


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
    _check_target(file, parts, force)
    with beside(file) as copy, beside(file) as archive:
        schema_version, jobs = _snapshot(parts[DATABASE], copy, settings.data_dir)
        with as_owner(settings.data_dir):
            small = {name: _content(path) for name, path in parts.items() if name != DATABASE and path.is_file()}
        manifest = Manifest(nommerd=__version__, schema_version=schema_version, cluster=settings.cluster, jobs=jobs,
                            made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                            files={DATABASE: _entry(copy), **{name: Entry(len(text), sha256(text).hexdigest())
                                                              for name, text in small.items()}})
        _pack(archive, manifest, copy, small)
        _publish(archive, file, force)
    return manifest


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Root works in this folder with its owner's rights: that one may have put links there which lead anywhere. For a process
    of one thread that does nothing else meanwhile."""
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _check_target(file: Path, parts: dict[str, Path], force: bool) -> None:
    own = {path.resolve() for name in parts for path in (parts[name], Path(f"{parts[name]}-wal"), Path(f"{parts[name]}-shm"))}
    if file.resolve() in own:
        raise ConfigError("config.backup_file", f"{file} is a file of the installation itself.", "Name another file.")
    there = _status(file)
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise ConfigError("config.backup_file", f"{file} is no file.", "Name a file to write, such as nommerd.tar.gz.")
    if there is not None and not force:
        raise _exists(file)


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _exists(file: Path) -> ConfigError:
    return ConfigError("config.backup_exists", f"{file} is there already.", "Name another file, or replace it with --force.")


@contextmanager
def beside(file: Path) -> Iterator[Path]:
    """A new empty file in the same folder, for its owner alone; gone afterwards, unless it was moved. What processes that were
    killed left there of this name goes first: it may be large, and secret. Raises ConfigError."""
    begin = f".{file.name[:100]}."
    path = file.with_name(f"{begin}{secrets.token_hex(6)}")
    try:
        _remove_left(file.parent, begin)
        held = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        with suppress(OSError):  # not every file system has such locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield path
    finally:
        for made in (path, Path(f"{path}-journal")):
            made.unlink(missing_ok=True)
        os.close(held)


def _remove_left(folder: Path, begin: str) -> None:
    """Remove such files that no process holds. A new one may be about to be held."""
    for path in folder.glob(f"{glob.escape(begin)}*"):
        if not re.fullmatch("[0-9a-f]{12}", path.name.removeprefix(begin)):
            continue
        with suppress(OSError), path.open("rb") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(left.fileno()).st_mtime > LEFT_SECONDS:
                Path(f"{path}-journal").unlink(missing_ok=True)
                path.unlink()


def unwritable(file: Path, error: OSError) -> Exception:
    """What to raise for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return ConfigError("config.backup_file", f"{file} cannot be written: {error.strerror}.",
                       "Name a file in a folder that is there and can be written.")


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
    one that is damaged or not ours."""
    try:
        with closing(_opened(database, "mode=ro&immutable=1")) as db:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise ConfigError("config.database", f"{name} is another program's database.", "Name another file.")
            found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise damaged(name, found)
            return db.execute("PRAGMA user_version").fetchone()[0], db.execute("SELECT count(*) FROM jobs").fetchone()[0]
    except sqlite3.Error as error:
        raise damaged(name, str(error)) from None


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


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("config.unreadable", f"{path} cannot be read: {error.strerror}.",
                          "The data directory's owner must be able to.") from None


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
    sync_folder(file.parent)


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


def sync_folder(folder: Path) -> None:
    """Make names in it durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
