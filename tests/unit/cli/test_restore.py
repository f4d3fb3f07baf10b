"""`nommerd restore` on files alone: what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import os
import pwd
import shutil
import sqlite3
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from nommerd import backups, mounts, owners, restoring, sqlite
from nommerd.backups import DATABASE, KEYS, TOKEN, WEBHOOK_SECRET
from nommerd.cli.backup import restore
from nommerd.config import Settings
from nommerd.errors import ConfigError
from nommerd.job import Job, utcnow
from nommerd.sqlite_schema import MIGRATIONS
from tests.rig import CANARY
from tests.unit.cli.installation import Members, let_in, open_store, refused, repacked, state, with_manifest


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
