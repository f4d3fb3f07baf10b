"""`nommerd backup` and `restore` on files alone: what they refuse, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import io
import json
import os
import pwd
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nommerd import backups, mounts, owners, restoring, sqlite
from nommerd.backups import DATABASE, KEYS, MANIFEST, TOKEN, WEBHOOK_SECRET
from nommerd.cli import app
from nommerd.cli.backup import backup, restore
from nommerd.config import Settings, load
from nommerd.errors import ConfigError, ManyErrors
from nommerd.job import Job, utcnow
from nommerd.secrets import Keyring, new_key, secret_file
from nommerd.sqlite import Database
from nommerd.sqlite_schema import MIGRATIONS
from nommerd.store.sqlite import SqliteStore
from tests.rig import CANARY

Members = list[tuple[tarfile.TarInfo, bytes]]


def open_store(settings: Settings) -> SqliteStore:
    return SqliteStore(Database.open(settings.database_path(settings.store)))


def settings_of(root: Path, more: str = "") -> Settings:
    file = root / "nommerd.yaml"
    file.write_text(f"paths: {{data: data}}\n{more}", encoding="utf-8")
    return load(file, {})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An installation with two jobs and secrets."""
    made = settings_of(tmp_path)
    made.make_data_dir()
    secret_file(made.token_file, make=True, generate=lambda: f"{CANARY}-token")
    secret_file(made.webhook_secret_file, make=True, generate=lambda: f"whsec_{CANARY}")
    Keyring.load_or_make(made.data_dir, (), make=True)
    store = open_store(made)
    for id in ("one", "two"):
        store.create(Job(id=id, pipeline="web", recipe="r" * 64, source="file:///i", dest="file:///o", created=utcnow(),
                         updated=utcnow()))
    store.close()
    return made


@pytest.fixture
def good(settings: Settings, tmp_path: Path) -> Path:
    """A backup of it."""
    file = tmp_path / "good.tar.gz"
    backups.make(settings, file, force=False)
    return file


def state(settings: Settings) -> dict[str, bytes]:
    """Every file of the data directory, but locks."""
    return {path.name: path.read_bytes() for path in settings.data_dir.iterdir() if not path.name.endswith(".lock")}


def refused(settings: Settings, file: Path, *, force: bool = True) -> ConfigError:
    """The error of a restore that has changed nothing."""
    before = state(settings)
    with pytest.raises(ConfigError) as caught:
        restoring.restore(settings, file, force=force)
    assert state(settings) == before
    return caught.value


def repacked(good: Path, change: Callable[[Members], Members | None]) -> Path:
    """The backup with other members; the manifest's checksums are made to fit them."""
    with tarfile.open(good) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    members = change(members) or members
    bad = good.with_name("bad.tar.gz")
    with tarfile.open(bad, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return bad


def with_manifest(members: Members, **fields: Any) -> Members:
    """The members with a manifest that fits them, but for these fields."""
    (head, text), *rest = members
    files = {member.name: {"bytes": len(content), "sha256": sha256(content).hexdigest()} for member, content in rest}
    return [(head, json.dumps({**json.loads(text), "files": files, **fields}).encode()), *rest]


class TestBackup:
    def test_it_holds_the_database_and_secrets_with_a_manifest_and_is_its_owners_alone(self, settings: Settings,
                                                                                     good: Path) -> None:
        assert stat.S_IMODE(good.stat().st_mode) == 0o600
        with tarfile.open(good, "r:gz") as tar:
            assert tar.getnames() == [MANIFEST, DATABASE, TOKEN, KEYS, WEBHOOK_SECRET]
            assert {member.mode for member in tar} == {0o600}
            manifest = json.load(tar.extractfile(MANIFEST))  # type: ignore[arg-type]
            token = tar.extractfile(TOKEN).read()  # type: ignore[union-attr]
        assert token == settings.token_file.read_bytes()
        assert (manifest["jobs"], manifest["schema_version"], manifest["cluster"]) == (2, len(MIGRATIONS), "default")
        assert manifest["files"][TOKEN] == {"bytes": len(token), "sha256": sha256(token).hexdigest()}

    def test_it_replaces_nothing_unless_forced_and_leaves_no_scratch(self, settings: Settings, good: Path) -> None:
        good.write_bytes(b"something else")
        with pytest.raises(ConfigError) as caught:
            backups.make(settings, good, force=False)
        assert (caught.value.code, good.read_bytes()) == ("config.backup_exists", b"something else")
        backups.make(settings, good, force=True)
        assert restoring.restore(settings, good, force=True).jobs == 2
        assert [path for path in good.parent.iterdir() if path.name.startswith(".")] == []

    def test_what_was_just_written_is_in_it_though_no_checkpoint_has_been(self, settings: Settings, tmp_path: Path) -> None:
        store = open_store(settings)  # stays open: its log is not folded into the file
        store.create(Job(id="three", pipeline="web", recipe="r", source="file:///i", dest="file:///o", created=utcnow(),
                         updated=utcnow()))
        assert Path(f"{settings.database_path(settings.store)}-wal").stat().st_size > 0
        assert backups.make(settings, tmp_path / "b.tar.gz", force=False).jobs == 3
        store.close()

    @pytest.mark.parametrize("where", ["data/nommerd.db", "data/keys", "data", "nowhere/b.gz", "n" * 300, "/proc/b.gz"])
    def test_a_file_it_must_not_or_cannot_write_is_refused(self, settings: Settings, tmp_path: Path, where: str) -> None:
        before = state(settings)
        with pytest.raises(ConfigError) as caught:
            backups.make(settings, tmp_path / where, force=True)
        assert (caught.value.code, state(settings)) == ("config.backup_file", before)

    @pytest.mark.parametrize(("store", "word"), [("dynamodb://jobs", "point-in-time"), ("simpledb://jobs", "no backups"),
                                                 ("memory://", "ends with its process")])
    def test_with_another_store_it_says_what_to_use(self, tmp_path: Path, store: str, word: str) -> None:
        settings = settings_of(tmp_path, f"store: {store}\n")
        for run in (lambda: backups.make(settings, tmp_path / "b", force=False),
                    lambda: restoring.restore(settings, tmp_path / "b", force=False)):
            with pytest.raises(ConfigError, match=word) as caught:
                run()
            assert caught.value.code == "config.backup_store"

    def test_a_damaged_database_is_not_backed_up(self, settings: Settings, tmp_path: Path) -> None:
        database = settings.database_path(settings.store)
        content = bytearray(database.read_bytes())
        content[5000:9000] = b"\xff" * 4000
        database.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            backups.make(settings, tmp_path / "b.tar.gz", force=False)
        assert (caught.value.code, "damaged" in caught.value.message) == ("config.database", True)
        assert not (tmp_path / "b.tar.gz").exists()

    def test_where_there_is_no_database_it_says_so_and_makes_none(self, tmp_path: Path) -> None:
        settings = settings_of(tmp_path)
        with pytest.raises(ConfigError) as caught:
            backups.make(settings, tmp_path / "b.tar.gz", force=False)
        assert (caught.value.code, settings.data_dir.exists()) == ("config.no_data", False)

    def test_the_commands_tell_as_json_and_never_a_secret(self, settings: Settings, tmp_path: Path) -> None:
        config, file = str(tmp_path / "nommerd.yaml"), str(tmp_path / "b.tar.gz")
        done = CliRunner().invoke(backup, [file, "-c", config, "--json"], standalone_mode=False)
        assert (done.return_value, json.loads(done.stdout)["jobs"]) == (0, 2)
        shutil.rmtree(settings.data_dir)
        back = CliRunner().invoke(restore, [file, "-c", config, "--json"], standalone_mode=False)
        assert (back.return_value, json.loads(back.stdout)["files"]) == (0, [DATABASE, TOKEN, KEYS, WEBHOOK_SECRET])
        assert CANARY not in done.output + back.output


    def test_keys_of_the_configuration_are_asked_to_be_kept_and_never_shown(self, settings: Settings, tmp_path: Path) -> None:
        key, file = new_key(), str(tmp_path / "b.tar.gz")
        settings.keys_file.unlink()
        configured, bare = tmp_path / "c.yaml", tmp_path / "nommerd.yaml"
        configured.write_text(f"paths: {{data: data}}\nsecrets: {{keys: ['{key}']}}\n")
        done = CliRunner().invoke(backup, [file, "-c", str(configured)], standalone_mode=False)
        back = CliRunner().invoke(restore, [file, "--force", "-c", str(bare)], standalone_mode=False)
        assert (done.return_value, "keep that as well" in done.stderr) == (0, True)
        assert (back.return_value, "holds no keys" in back.stderr) == (0, True)
        assert key not in done.output + back.output


    def test_a_secret_that_no_restore_would_take_is_refused_and_a_pipe_not_waited_for(self, settings: Settings,
                                                                                     tmp_path: Path) -> None:
        def too_large(path: Path) -> None:
            with path.open("wb") as file:
                file.truncate(backups.SMALL_BYTES_MAX + 1)

        for secret in (settings.token_file, settings.keys_file, settings.webhook_secret_file):
            kept = secret.read_bytes()
            for put, why in ((too_large, "larger"), (os.mkfifo, "no plain file"), (os.mkdir, "cannot be read"),
                             (lambda path: path.symlink_to("/dev/zero"), "no plain file")):
                secret.unlink()
                put(secret)
                with pytest.raises(ConfigError, match=why) as caught:
                    backups.make(settings, tmp_path / "b.tar.gz", force=False)
                assert caught.value.code == "config.unreadable"
                secret.rmdir() if secret.is_dir() else secret.unlink()
                secret.write_bytes(kept)
        settings.token_file.write_bytes(b"x" * backups.SMALL_BYTES_MAX)
        backups.make(settings, tmp_path / "b.tar.gz", force=False)
        assert restoring.restore(settings, tmp_path / "b.tar.gz", force=True).files[TOKEN].bytes == backups.SMALL_BYTES_MAX

    @pytest.mark.parametrize("suffix", ["-wal", "-journal"])
    def test_a_pipe_beside_the_database_is_not_waited_for(self, settings: Settings, tmp_path: Path, suffix: str) -> None:
        os.mkfifo(f"{settings.database_path(settings.store)}{suffix}")
        with pytest.raises(ConfigError, match="no plain file"):
            backups.make(settings, tmp_path / "b.tar.gz", force=False)

    def test_the_copy_is_made_in_a_folder_where_nobody_can_put_a_journal_beside_it(
            self, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checked, seen = backups.checked, []

        def look(copy: Path, name: str) -> tuple[int, int]:
            folder = copy.parent
            seen.append((folder.parent, stat.S_IMODE(folder.stat().st_mode), [path.name for path in folder.iterdir()]))
            return checked(copy, name)

        monkeypatch.setattr(backups, "checked", look)
        backups.make(settings, tmp_path / "b.tar.gz", force=False)
        assert seen == [(tmp_path, 0o700, [DATABASE])]
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def let_in(folder: Path) -> None:
    """Let other users through to this folder of the test's."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for one in (folder, *folder.parents):
        if one.stat().st_uid == 0 and not one.stat().st_mode & 0o001:
            one.chmod(one.stat().st_mode | 0o011)


class TestRootsFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A folder two levels below one of root's."""
        if os.geteuid() != 0:
            pytest.skip("only root is refused")
        made = tmp_path / "on" / "the way"
        made.mkdir(parents=True)
        return made

    @pytest.mark.parametrize("where", [".", ".."])
    @pytest.mark.parametrize(("owner", "mode"), [(65534, 0o755), (0, 0o777), (0, 0o775), (65534, 0o1777)])
    def test_root_writes_nothing_where_somebody_else_could_put_a_link(self, settings: Settings, folder: Path, where: str,
                                                                      owner: int, mode: int) -> None:
        theirs = (folder / where).resolve()
        os.chown(theirs, owner, 0)
        theirs.chmod(mode)
        (folder.parent.parent / "link").symlink_to(folder)
        for named in (folder, folder.parent.parent / "link"):
            with pytest.raises(ConfigError) as caught:
                backups.make(settings, named / "b.tar.gz", force=False)
            assert (caught.value.code, str(theirs) in caught.value.message) == ("config.backup_file", True)
            assert "/var/backups" in caught.value.hint
        assert list(folder.iterdir()) == []

    def test_a_folder_of_roots_with_the_sticky_bit_will_do(self, settings: Settings, folder: Path) -> None:
        folder.chmod(0o1777)
        assert backups.make(settings, folder / "b.tar.gz", force=False).jobs == 2

    def test_others_write_where_they_may(self, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.chmod(0o777)
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
        assert backups.make(settings, folder / "b.tar.gz", force=False).jobs == 2

    def test_a_link_on_the_way_that_is_changed_meanwhile_leads_nowhere(self, settings: Settings, folder: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
        link, other, snapshot = folder.parent / "link", folder.parent / "other", backups._snapshot
        link.symlink_to(folder)
        other.mkdir()

        def change(*arguments: Path) -> tuple[int, int]:
            link.unlink()
            link.symlink_to(other)
            return snapshot(*arguments)

        monkeypatch.setattr(backups, "_snapshot", change)
        backups.make(settings, link / "b.tar.gz", force=False)
        assert ([path.name for path in folder.iterdir()], list(other.iterdir())) == (["b.tar.gz"], [])


class TestChecked:
    """A database of whoever took over the daemons' user."""

    @pytest.fixture
    def forged(self, settings: Settings) -> Path:
        path = settings.database_path(settings.store)
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE jobs")
            db.execute("CREATE VIEW jobs AS WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT x FROM n")
            db.commit()
        return path

    def test_a_view_in_the_place_of_the_jobs_is_not_counted(self, settings: Settings, forged: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="damaged: it has no table of jobs") as caught:
            backups.make(settings, tmp_path / "b.tar.gz", force=False)
        assert caught.value.code == "config.database"

    def test_a_check_without_end_is_ended(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backups, "CHECK_SECONDS", 0.0)
        monkeypatch.setattr(backups, "CHECK_STEPS", 1)
        with pytest.raises(ConfigError, match="does not end within") as caught:
            backups.checked(settings.database_path(settings.store), "it")
        assert caught.value.code == "config.database"

    def test_an_interrupt_of_the_check_is_no_fault_of_the_database(self, forged: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
        def endless(db: sqlite3.Connection, name: str) -> tuple[int, int]:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            return db.execute("SELECT count(*) FROM jobs").fetchone()[0], 0

        monkeypatch.setattr(backups, "_counted", endless)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                backups.checked(forged, "it")
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_functions_of_a_schema_are_not_trusted(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backups, "_counted", lambda db, _: db.execute("PRAGMA trusted_schema").fetchone())
        assert backups.checked(settings.database_path(settings.store), "it") == (0,)


def test_an_error_tells_a_terminal_nothing_whatever_it_quotes(settings: Settings, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect(settings.database_path(settings.store))) as db:
        db.execute("CREATE TABLE t (x)")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET name = 'a\x1b]0;owned\x07\x9bm', sql = 'CREATE TABLE ,' WHERE name = 't'")
        db.commit()
    assert app.run(["backup", str(tmp_path / "b.tar.gz"), "-c", str(tmp_path / "nommerd.yaml")]) == 2
    told = capsys.readouterr().err
    assert (r"\x1b]0;owned\x07\x9bm" in told, told.rstrip("\n").isprintable()) == (True, True)
    fault = ConfigError("config.database", "one\ntwo\r\x1b[31m", "a \u202e hint", place="\x00place")
    for error in (fault, ManyErrors([fault])):
        app.show_error(error, as_json=False)
        assert capsys.readouterr().err == ("nommerd: \\x00place: config.database: one\n  two\\r\\x1b[31m a \\u202e hint\n")


@pytest.fixture
def theirs(settings: Settings, good: Path) -> Settings:
    """An installation whose data directory is another user's, who can get there."""
    let_in(settings.data_dir.parent)
    for path in (settings.data_dir, *settings.data_dir.iterdir()):
        os.chown(path, 54321, 54322)
    return settings


def test_a_link_in_somebodys_data_directory_does_not_get_roots_file_into_a_backup(theirs: Settings, tmp_path: Path) -> None:
    (tmp_path / "roots").write_text("root's own")
    (tmp_path / "roots").chmod(0o600)
    theirs.token_file.unlink()
    theirs.token_file.symlink_to(tmp_path / "roots")
    with pytest.raises(ConfigError, match="cannot be read"):
        backups.make(theirs, tmp_path / "b.tar.gz", force=False)
    assert not (tmp_path / "b.tar.gz").exists()


def test_root_keeps_nothing_of_its_own_meanwhile_and_has_all_again_then(theirs: Settings) -> None:
    def me() -> tuple[int, int, list[int]]:
        return os.geteuid(), os.getegid(), os.getgroups()

    before = me()
    with pytest.raises(ZeroDivisionError), owners.as_owner(theirs.data_dir):
        assert me() == (54321, 54322, [54322])
        raise ZeroDivisionError
    assert me() == before


class TestRestore:
    @pytest.mark.parametrize("name", [TOKEN, f"{DATABASE}.lock", f"{DATABASE}.feeder.lock"])
    def test_links_in_somebodys_data_directory_lead_root_nowhere(self, theirs: Settings, good: Path, name: str) -> None:
        """Their owner would like to have root's files written."""
        roots = good.with_name("root")
        roots.mkdir()
        (roots / "there").write_text("root's own")
        for target in ("there", "new"):
            (theirs.data_dir / name).unlink(missing_ok=True)
            (theirs.data_dir / name).symlink_to(roots / target)
            with contextlib.suppress(ConfigError):
                restoring.restore(theirs, good, force=True)
        assert {path.name: path.read_text() for path in roots.iterdir()} == {"there": "root's own"}
        assert os.geteuid() == 0

    @pytest.mark.parametrize("empty", [True, False])
    def test_what_root_puts_back_is_the_data_directorys_owners(self, theirs: Settings, good: Path, empty: bool) -> None:
        """The operator is root, the daemons are not."""
        settings = theirs
        if empty:
            shutil.rmtree(settings.data_dir)
            settings.data_dir.mkdir()
            os.chown(settings.data_dir, 54321, 54322)
        restoring.restore(settings, good, force=True)
        found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in settings.data_dir.iterdir()}
        assert found.keys() >= {DATABASE, TOKEN, KEYS, WEBHOOK_SECRET, f"{DATABASE}.lock", f"{DATABASE}.feeder.lock"}
        assert set(found.values()) == {(54321, 54322)}

    def test_everything_comes_back_as_it_was_and_for_its_owner_alone(self, settings: Settings, good: Path) -> None:
        before = state(settings)
        shutil.rmtree(settings.data_dir)
        manifest = restoring.restore(settings, good, force=False)
        assert manifest.jobs == 2
        after = state(settings)
        assert after.keys() == before.keys()
        assert all(after[name] == before[name] for name in (TOKEN, KEYS, WEBHOOK_SECRET))
        assert {stat.S_IMODE((settings.data_dir / name).stat().st_mode) for name in after} == {0o600}
        store = open_store(settings)
        assert sum(store.count("default").values()) == 2
        store.close()

    def test_what_is_there_is_not_replaced_unless_forced(self, settings: Settings, good: Path) -> None:
        assert refused(settings, good, force=False).code == "config.data_exists"
        settings.token_file.write_text("another\n")
        settings.database_path(settings.store).unlink()
        error = refused(settings, good, force=False)
        assert (error.code, "token" in error.message, "keys" in error.message) == ("config.data_exists", True, False)
        restoring.restore(settings, good, force=True)
        assert CANARY in settings.token_file.read_text()

    def test_the_log_of_a_replaced_database_is_not_taken_for_that_of_the_next(self, settings: Settings, good: Path) -> None:
        database = settings.database_path(settings.store)
        with closing(sqlite3.connect(database)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("DELETE FROM jobs")
            db.commit()
            left = Path(f"{database}-wal").read_bytes()  # as a crash leaves it
        Path(f"{database}-wal").write_bytes(left)
        restoring.restore(settings, good, force=True)
        assert not Path(f"{database}-wal").exists()
        assert backups.checked(database, "it") == (len(MIGRATIONS), 2)

    def test_a_damaged_database_can_be_replaced(self, settings: Settings, good: Path) -> None:
        settings.database_path(settings.store).write_bytes(b"rubbish" * 1000)
        restoring.restore(settings, good, force=True)
        assert backups.checked(settings.database_path(settings.store), "it") == (len(MIGRATIONS), 2)

    def test_it_refuses_while_a_feeder_runs(self, settings: Settings, good: Path) -> None:
        lock = sqlite.exclusive(settings.database_path(settings.store))
        try:
            assert refused(settings, good).code == "config.feeder_running"
        finally:
            lock.close()

    def test_it_refuses_while_any_program_has_the_database_open(self, settings: Settings, good: Path) -> None:
        code = ("import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT count(*) FROM jobs'); "
                "print('open', flush=True); input()")
        database = str(settings.database_path(settings.store))
        with subprocess.Popen([sys.executable, "-c", code, database], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(ConfigError) as caught:
                restoring.restore(settings, good, force=True)
            other.communicate(b"\n")
        assert caught.value.code == "config.in_use"

    def test_nobody_can_open_it_meanwhile_and_it_comes_last(self, settings: Settings, good: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
        """Cut off after the first file, it still is the one of before."""
        database = settings.database_path(settings.store)
        settings.token_file.write_text("another\n")

        def cut_off(_: Path) -> None:
            with Path(f"{database}.lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            raise ZeroDivisionError

        store = open_store(settings)
        store.create(Job(id="three", pipeline="web", recipe="r" * 64, source="file:///i", dest="file:///o", created=utcnow(),
                         updated=utcnow()))
        store.close()
        monkeypatch.setattr(restoring, "sync_folder", cut_off)
        with pytest.raises(ZeroDivisionError):
            restoring.restore(settings, good, force=True)
        assert CANARY in settings.token_file.read_text()
        assert backups.checked(database, "it")[1] == 3, "nothing of the backup's yet"

    @pytest.mark.parametrize("name", [DATABASE, TOKEN, KEYS, f"{DATABASE}-wal", f"{DATABASE}-journal"])
    @pytest.mark.parametrize("put", [os.mkdir, os.mkfifo])
    def test_where_one_file_cannot_be_replaced_none_is(self, settings: Settings, good: Path, name: str,
                                                       put: Callable[[Path], None]) -> None:
        path = settings.data_dir / name
        path.unlink(missing_ok=True)
        others = {other for other in (settings.token_file, settings.webhook_secret_file) if other != path}
        for other in others:
            other.write_text("another")
        put(path)
        with pytest.raises(ConfigError, match=f"{name} is no plain file") as caught:
            restoring.restore(settings, good, force=True)
        assert (caught.value.code, "Nothing was changed" in caught.value.hint) == ("config.unreadable", True)
        assert {other.read_text() for other in others} == {"another"}

    def test_what_is_mounted_by_itself_is_not_replaced(self, settings: Settings, good: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
        """As a database is in a container."""
        database = settings.database_path(settings.store)
        table = tmp_path / "mountinfo"
        table.write_text(f"27 1 8:1 / / rw - ext4 /dev/sda rw\n28 27 8:1 /host.db {database} rw - ext4 /dev/sda rw\n")
        monkeypatch.setattr(mounts, "MOUNTINFO", table)
        settings.token_file.write_text("another")
        error = refused(settings, good)
        assert (error.code, f"{database} is a mount" in error.message) == ("config.unreadable", True)

    def test_cut_off_by_the_disk_it_says_what_was_replaced_and_completes_it_another_time(
            self, settings: Settings, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        database, replace = settings.database_path(settings.store), Path.replace

        def fail(path: Path, target: Path) -> Path:
            if target == database:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return replace(path, target)

        settings.token_file.write_text("another")
        with monkeypatch.context() as patch, pytest.raises(ConfigError) as caught:
            patch.setattr(Path, "replace", fail)
            restoring.restore(settings, good, force=True)
        assert f"{database} cannot be replaced" in caught.value.message
        assert all(name in caught.value.message.partition("already: ")[2] for name in (TOKEN, KEYS, WEBHOOK_SECRET))
        assert "--force" in caught.value.hint
        assert restoring.restore(settings, good, force=True).jobs == 2

    def test_a_backup_of_a_newer_version_is_refused_with_what_to_do(self, settings: Settings, good: Path) -> None:
        bad = repacked(good, lambda members: with_manifest(members, schema_version=len(MIGRATIONS) + 1, nommerd="9.1"))
        error = refused(settings, bad)
        assert (error.code, "9.1" in error.message, "Upgrade" in error.hint) == ("config.newer_backup", True, True)

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "data/../../evil", "nommerd.db-wal", "work/x", "n" * 300,
                                      "\x1b[31mred"])
    def test_a_member_of_any_other_name_is_refused_and_written_nowhere(self, settings: Settings, good: Path, name: str,
                                                                      tmp_path: Path) -> None:
        bad = repacked(good, lambda members: [*members, (tarfile.TarInfo(name), b"x")])
        everything = {path for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
        error = refused(settings, bad)
        assert (error.code, "\x1b" in error.message) == ("config.bad_backup", False)
        assert {path for path in tmp_path.rglob("*") if not path.name.endswith(".lock")} == everything

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
    def test_links_and_devices_are_refused(self, settings: Settings, good: Path, kind: bytes) -> None:
        def change(members: Members) -> None:
            member, _ = members[2]
            member.type, member.linkname = kind, "/etc/passwd"
            members[2] = member, b""

        assert refused(settings, repacked(good, change)).code == "config.bad_backup"

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_a_header_of_any_length_is_not_read_into_memory(self, settings: Settings, good: Path, kind: bytes) -> None:
        """It says that a gigabyte follows: whoever believed it would find the file cut off."""
        header = tarfile.TarInfo("long")
        header.type, header.size = kind, 2**30
        bad = good.with_name("bad.tar.gz")
        bad.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(tarfile.BLOCKSIZE)))
        assert "no plain file" in refused(settings, bad).message

    @pytest.mark.parametrize(("change", "why"), [
        (lambda members: members[1:], "manifest"),
        (lambda members: [*members[1:], members[0]], "manifest"),
        (lambda members: members[:-1], "lacks webhook-secret"),
        (lambda members: [*members, members[-1]], "holds 'webhook-secret'"),
        (lambda members: [(members[0][0], b"{}"), *members[1:]], "manifest cannot be read"),
        (lambda members: [(members[0][0], b"[" * 60_000), *members[1:]], "manifest cannot be read"),
        (lambda members: [(members[0][0], members[0][1].replace(b'"bytes"', b'"size"')), *members[1:]], "manifest cannot"),
        *((lambda members, field=field, text=text: with_manifest(members, **{field: text}), "manifest cannot be read")
          for field, text in (("made", "\x1b[2J"), ("made", "yesterday"), ("made", 5), ("made", "2026-01-31T09:00:00+00:00"),
                              ("made", "2026-02-30T09:00:00Z"), ("made", "2026-01-31"), ("cluster", "\x1b[2J"),
                              ("nommerd", "1\n2"), ("cluster", "\x9b"))),
        (lambda members: [*members[:2], (members[2][0], b"x" * len(members[2][1])), *members[3:]], "checksum"),
        (lambda members: [*members[:2], (members[2][0], b"x" * 99_000), *members[3:]], "size"),
        (lambda members: with_manifest([*members[:2], (members[2][0], b"x" * 99_000), *members[3:]]), "size"),
        (lambda members: with_manifest([members[0], *members[2:]]), "manifest cannot be read"),
        (lambda members: with_manifest(members, schema_version=0), "another schema version")])
    def test_what_is_not_as_its_manifest_says_is_refused(self, settings: Settings, good: Path,
                                                         change: Callable[[Members], Members], why: str) -> None:
        error = refused(settings, repacked(good, change))
        assert (error.code, why in error.message) == ("config.bad_backup", True), error

    def test_a_database_that_is_another_programs_or_damaged_is_refused(self, settings: Settings, good: Path,
                                                                      tmp_path: Path) -> None:
        foreign = tmp_path / "foreign.db"
        with closing(sqlite3.connect(foreign)) as db:
            db.execute("CREATE TABLE jobs (x)")
        for content in (foreign.read_bytes(), b"rubbish" * 1000, b""):
            bad = repacked(good, lambda members, content=content: with_manifest(  # type: ignore[misc]
                [members[0], (members[1][0], content), *members[2:]]))
            assert refused(settings, bad).code == "config.database"

    def test_a_file_that_is_cut_off_or_none_of_ours_is_refused(self, settings: Settings, good: Path, tmp_path: Path) -> None:
        whole = good.read_bytes()
        bad = tmp_path / "bad"
        for content in (whole[:len(whole) // 2], whole[:100], b"", b"rubbish", gzip.compress(b"rubbish" * 5000),
                        whole[:200] + bytes(100) + whole[300:]):
            bad.write_bytes(content)
            assert refused(settings, bad).code in ("config.bad_backup", "config.database")
        for nothing in (tmp_path / "missing", tmp_path):
            assert refused(settings, nothing).code == "config.bad_backup"


def test_what_a_killed_backup_or_restore_left_goes_with_the_next_one_unless_somebody_holds_it(
        settings: Settings, good: Path, tmp_path: Path) -> None:
    left = [settings.data_dir / ".keys.0123456789ab", settings.data_dir / ".nommerd.db.0123456789ab",
            settings.data_dir / ".nommerd.db.0123456789ab-journal", tmp_path / ".good.tar.gz.0123456789ab"]
    kept = [settings.data_dir / ".nommerd.db.fresh0123456", settings.data_dir / ".keys.ba9876543210",
            settings.data_dir / ".token.0123456789ab"]
    for path in (*left, *kept):
        path.write_text(CANARY)
        os.utime(path, (1, 1))
    os.utime(kept[1])  # just made
    with kept[2].open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        restoring.restore(settings, good, force=True)
        backups.make(settings, good, force=True)
    assert [path for path in left if path.exists()] == []
    assert all(path.exists() for path in kept)


class TestNewDisk:
    """The data directory of the services is lost, and root restores it: `nobody` stands for their user."""

    @pytest.fixture
    def lost(self, settings: Settings, good: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
        let_in(settings.data_dir.parent)
        shutil.rmtree(settings.data_dir)
        monkeypatch.setattr(owners, "SYSTEM_DATA", settings.data_dir)
        monkeypatch.setattr(owners, "SYSTEM_USER", "nobody")
        return settings

    def restored(self, settings: Settings, good: Path) -> tuple[set[int], str]:
        """Whose directory and files are then, and what was said on stderr."""
        config = str(good.with_name("nommerd.yaml"))
        done = CliRunner().invoke(restore, [str(good), "-c", config, "--json"], standalone_mode=False)
        assert (done.return_value, json.loads(done.stdout)["jobs"]) == (0, 2), done.exception
        data = settings.data_dir
        assert stat.S_IMODE(data.stat().st_mode) in (0o700, 0o755)
        return {path.stat().st_uid for path in (data, *data.iterdir()) if path.name != "lost+found"}, done.stderr

    @pytest.mark.parametrize("holds", [None, [], ["lost+found"]])
    def test_the_directory_becomes_the_services_users_where_it_is_missing_or_an_empty_disk(
            self, lost: Settings, good: Path, holds: list[str] | None) -> None:
        for name in holds or ():
            (lost.data_dir / name).mkdir(parents=True)
        if holds is not None:
            lost.data_dir.mkdir(exist_ok=True)
        user = pwd.getpwnam("nobody")
        assert self.restored(lost, good) == ({user.pw_uid}, "")
        assert (lost.data_dir.stat().st_gid, stat.S_IMODE(lost.data_dir.stat().st_mode)) == (user.pw_gid, 0o700)

    def test_what_holds_anything_of_roots_stays_roots_and_so_does_any_other(self, lost: Settings, good: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
        lost.data_dir.mkdir()
        (lost.data_dir / "roots").write_text("x")
        owned, told = self.restored(lost, good)
        assert (owned, f"chown -R USER: {lost.data_dir}" in told) == ({0}, True)
        for name, value in (("SYSTEM_USER", "no-such-user"), ("SYSTEM_DATA", Path("/var/lib/nommerd"))):
            shutil.rmtree(lost.data_dir)
            monkeypatch.setattr(owners, name, value)
            owned, told = self.restored(lost, good)
            assert (owned, f"chown -R USER: {lost.data_dir}" in told) == ({0}, True)
            monkeypatch.setattr(owners, "SYSTEM_USER", "nobody")

    def test_a_directory_that_others_could_exchange_is_not_given_away(self, lost: Settings, good: Path) -> None:
        lost.data_dir.parent.chmod(0o777)
        assert self.restored(lost, good)[0] == {0}
