"""Putting a backup back (see nommerd.backups): unpacked beside the files that it replaces, checked, then moved into place.

Nothing is changed before everything was found to be as the manifest says. The database comes last: whoever is interrupted
restores again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from nommerd.backups import (
    CHUNK_BYTES,
    DATABASE,
    FORMAT,
    MANIFEST,
    SMALL_BYTES_MAX,
    Entry,
    Manifest,
    checked,
    installation,
)
from nommerd.errors import ConfigError
from nommerd.mounts import is_point
from nommerd.owners import as_owner, hand_over
from nommerd.scratch import beside, sync_folder
from nommerd.sqlite_schema import MIGRATIONS

if TYPE_CHECKING:
    from nommerd.config import Settings
    from nommerd.sqlite import FileLock

_SQLITES = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510  # of SQLite's locks: held shared by whoever has the file open in WAL mode


def restore(settings: Settings, file: Path, *, force: bool) -> Manifest:
    """Put the backup's database and secrets where the settings have them. Without `force`, only where nothing is there that
    would be lost. Root does it as the data directory's owner, who then can open what was put there; a new directory of the
    services becomes theirs. Raises ConfigError, and OSError of a full disk."""
    from nommerd import sqlite  # brings gevent; before root has become somebody who may not be able to read it

    parts = installation(settings)
    settings.make_data_dir()
    hand_over(settings.data_dir)
    with (_readable(file) as raw, as_owner(settings.data_dir), _nobody_else(parts[DATABASE], sqlite.exclusive) as hold,
          ExitStack() as stack):
        if parts[DATABASE].exists() and not force:
            raise _in_the_way([parts[DATABASE]])
        staged = {name: stack.enter_context(_staged(path)) for name, path in parts.items()}
        manifest = _unpack(file, raw, staged)
        _check_database(file, manifest, staged[DATABASE])
        targets = {name: parts[name] for name in sorted(manifest.files, key=lambda name: name == DATABASE)}
        _check_replaceable(targets.values())
        if not force and (taken := [parts[name] for name, wanted in manifest.files.items() if _differs(parts[name], wanted)]):
            raise _in_the_way(taken)
        hold()
        _replace(targets, staged)
    return manifest


def _readable(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise _bad(file, f"it cannot be read ({error.strerror})") from None


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with beside(path) as made:
        yield made


def _in_the_way(paths: list[Path]) -> ConfigError:
    return ConfigError("config.data_exists", f"{', '.join(map(str, paths))} would be replaced.",
                       "Keep a copy (`nommerd backup`) and add --force, or name another paths.data.")


def _check_replaceable(paths: Iterable[Path]) -> None:
    """ConfigError where another file cannot take the place of what is there."""
    for path in paths:
        try:
            regular = stat.S_ISREG(path.lstat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _irreplaceable(path, f"cannot be looked at: {error.strerror}") from None
        if not regular:
            raise _irreplaceable(path, "is no plain file")
        if is_point(path):
            raise _irreplaceable(path, "is a mount of its own")


def _irreplaceable(path: Path, why: str) -> ConfigError:
    return ConfigError("config.unreadable", f"{path} {why}, and cannot be replaced.",
                       "Nothing was changed. Move it away; mount the folder around it, not the file.")


def _replace(targets: dict[str, Path], staged: dict[str, Path]) -> None:
    """Move each into its place. ConfigError that says how far it came."""
    done: list[str] = []
    for name, path in targets.items():
        try:
            staged[name].replace(path)
            done.append(name)
            sync_folder(path.parent)
        except OSError as error:
            cannot = "cannot be replaced" if name not in done else "was replaced, but may not outlive a loss of power"
            raise ConfigError("config.unreadable", f"{path} {cannot}: {error.strerror}. Replaced already: "
                              f"{', '.join(done) or 'nothing'}.", "Mend that, and restore again with --force: that completes "
                              "it.") from None


def _differs(path: Path, wanted: Entry) -> bool:
    return path.exists() and (path.stat().st_size != wanted.bytes or sha256(path.read_bytes()).hexdigest() != wanted.sha256)


# --- who else --------------------------------------------------------------------------------------------------------


@contextmanager
def _nobody_else(database: Path, exclusive: Callable[[Path], FileLock]) -> Iterator[Hold]:
    """Neither feeder nor worker has the database open, nor can open it meanwhile. The hold makes what is there ready to be
    replaced. Raises ConfigError."""
    _check_replaceable([database, *(Path(f"{database}{suffix}") for suffix in _SQLITES)])  # all that is opened from here on
    lock = exclusive(database)
    try:
        descriptor = os.open(f"{database}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        lock.close()
        raise ConfigError("config.database", f"Cannot open {database}.lock: {error.strerror}.") from None
    hold = Hold(database)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever opens the database takes it first
        except BlockingIOError:
            raise _in_use(database) from None
        hold.take()
        yield hold
    finally:
        hold.close()
        os.close(descriptor)
        lock.close()


def _in_use(database: Path) -> ConfigError:
    return ConfigError("config.in_use", f"Another process has {database} open.", "Stop feeder and workers first.")


class Hold:
    """SQLite's own lock on a database file, while there is one."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._descriptor = -1

    def take(self) -> None:
        """Raises ConfigError config.in_use while another process has the database open, whatever state the file is in."""
        self.close()
        with suppress(FileNotFoundError):
            self._descriptor = os.open(self._database, os.O_RDWR)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise _in_use(self._database) from None

    def __call__(self) -> None:
        """Fold the write-ahead log into the file: one that stayed would be taken for the next database's. Where the file is
        damaged there is nothing to fold."""
        self.close()  # SQLite's connection would drop it anyway: such locks belong to the process
        if self._database.exists():
            with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(self._database, timeout=1)) as db:
                db.execute("PRAGMA journal_mode = DELETE")
            self.take()
        for suffix in _SQLITES:
            Path(f"{self._database}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


# --- what is in it ---------------------------------------------------------------------------------------------------


def _unpack(file: Path, raw: BinaryIO, staged: dict[str, Path]) -> Manifest:
    """Write each member to its staged file, its size and checksum as the manifest has them; nothing else may be in it."""
    try:
        with tarfile.open(fileobj=raw, mode="r|gz", tarinfo=_Header) as tar:
            members = _members(file, tar)
            first, content = next(members, (None, None))
            if first is None or content is None or first.name != MANIFEST or first.size > SMALL_BYTES_MAX:
                raise _bad(file, "it does not begin with a manifest")
            manifest = _manifest(file, content.read(SMALL_BYTES_MAX))
            missing = dict(manifest.files)
            for member, content in members:
                wanted = missing.pop(member.name, None)
                if wanted is None:
                    raise _bad(file, f"it holds {member.name[:80]!r}")
                if member.size != wanted.bytes or (member.name != DATABASE and member.size > SMALL_BYTES_MAX):
                    raise _bad(file, f"{member.name} has not the size that the manifest says")
                if _written(content, staged[member.name]) != wanted.sha256:
                    raise _bad(file, f"{member.name} has not the checksum that the manifest says")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise _bad(file, f"it is cut off, or no tar.gz ({error})") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise _bad(file, f"it cannot be read ({error.strerror or error})") from None
    if missing:
        raise _bad(file, f"it lacks {', '.join(missing)}")
    return manifest


class _Header(tarfile.TarInfo):
    """A header as it stands. Those that tell something of the next one may be of any length, and would be read into memory:
    no backup has any, so they are members like others, which are no plain files."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        return self._proc_builtin(tar)  # type: ignore[attr-defined, no-any-return]


def _members(file: Path, tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Its members, each a plain file: no links, no devices. Names are compared, and never used as paths."""
    for member in tar:
        content = tar.extractfile(member) if member.type == tarfile.REGTYPE else None
        if content is None:
            raise _bad(file, f"it holds {member.name[:80]!r}, which is no plain file")
        yield member, content


def _manifest(file: Path, text: bytes) -> Manifest:
    try:
        manifest = Manifest.decode(text)
    except ValueError:
        raise _bad(file, "its manifest cannot be read") from None
    if manifest.format > FORMAT or manifest.schema_version > len(MIGRATIONS):
        raise ConfigError("config.newer_backup", f"{file} is of nommerd {manifest.nommerd!r}, with schema version "
                          f"{manifest.schema_version}; this nommerd knows {len(MIGRATIONS)}.", "Upgrade nommerd first.")
    return manifest


def _written(content: IO[bytes], path: Path) -> str:
    """The SHA-256 of what was written."""
    digest = sha256()
    with path.open("wb") as out:
        while chunk := content.read(CHUNK_BYTES):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _check_database(file: Path, manifest: Manifest, database: Path) -> None:
    schema_version, _ = checked(database, f"in {file}")
    if schema_version != manifest.schema_version:
        raise _bad(file, "its database has another schema version than the manifest says")


def _bad(file: Path, why: str) -> ConfigError:
    return ConfigError("config.bad_backup", f"{file} is no whole backup of nommerd: {why}.", "Nothing was changed.")
