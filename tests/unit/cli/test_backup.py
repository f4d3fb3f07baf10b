"""`nommerd backup` on files alone: what it holds, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import stat
import tarfile
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from nommerd import backups, owners, restoring
from nommerd.backups import DATABASE, KEYS, MANIFEST, TOKEN, WEBHOOK_SECRET
from nommerd.cli import app
from nommerd.cli.backup import backup, restore
from nommerd.config import Settings
from nommerd.errors import ConfigError, ManyErrors
from nommerd.job import Job, utcnow
from nommerd.secrets import new_key
from nommerd.sqlite_schema import MIGRATIONS
from tests.rig import CANARY
from tests.unit.cli.installation import open_store, settings_of, state


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


def test_of_a_backup_that_a_failing_disk_may_lose_it_is_said_that_it_is_there(settings: Settings, tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(backups, "sync_folder", fails)
    with pytest.raises(ConfigError, match="was written, but may not outlive a loss of power: Input/output error"):
        backups.make(settings, tmp_path / "b.tar.gz", force=False)
    assert (tmp_path / "b.tar.gz").exists()


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
