"""The embedded file: batches, savepoints, unavailable moments, waking, opening, and the feeder's lock."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from nommerd import news, sqlite, sqlite_schema, wakeup
from nommerd.bus import open_bus
from nommerd.bus.base import BusUnavailable
from nommerd.bus.sqlite import SqliteQueue
from nommerd.errors import ConfigError
from nommerd.job import Job, JobState, utcnow
from nommerd.messages import JobMessage
from nommerd.sqlite import Database, DatabaseUnavailable, FileLock, database_path, exclusive
from nommerd.store import listing, open_store
from nommerd.store.base import JobQuery, StoreUnavailable

PATIENCE_SECONDS = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nommerd.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database.open(path)
    yield opened
    opened.close()


@pytest.fixture
def other(database: Database) -> Iterator[Database]:
    """The same file as another process has it: with a writer, a lock and a socket of its own."""
    opened = Database(database.path)
    opened._references = 1
    yield opened
    Database._opened[database.path] = database  # closing the second one takes the path's entry away
    opened.close()
    Database._opened[database.path] = database


def put(name: str, value: Any = 1) -> Callable[[sqlite3.Connection], None]:
    def run(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO meta VALUES (?, ?)", (name, value))

    return run


def names(database: Database) -> list[str]:
    return database.read(lambda db: [name for name, in db.execute("SELECT name FROM meta ORDER BY name")])


class TestWriting:
    def test_a_write_gives_its_value_and_is_seen_by_the_next_read(self, database: Database) -> None:
        assert database.write(lambda db: db.execute("INSERT INTO meta VALUES ('a', 1)").rowcount) == 1
        assert names(database) == ["a"]

    def test_an_operation_that_raises_undoes_itself_alone(self, database: Database) -> None:
        def half(db: sqlite3.Connection) -> None:
            put("half")(db)
            raise LookupError("of its own")

        greenlets = [gevent.spawn(database.write, run) for run in (put("a"), half, put("b"), put("a"), put("c"))]
        gevent.joinall(greenlets, timeout=PATIENCE_SECONDS)
        assert [type(one.exception) for one in greenlets] == [type(None), LookupError, type(None), sqlite3.IntegrityError,
                                                              type(None)]
        assert names(database) == ["a", "b", "c"]

    def test_what_waits_together_is_committed_together(self, database: Database) -> None:
        begun: list[sqlite3.Connection] = []
        database.write(lambda db: db.set_trace_callback(lambda sql: begun.append(db) if sql == "COMMIT" else None))
        greenlets = [gevent.spawn(database.write, put(str(number))) for number in range(100)]
        gevent.joinall(greenlets, timeout=PATIENCE_SECONDS, raise_error=True)
        assert len(names(database)) == 100
        assert len(begun) <= 10

    def test_the_writer_syncs_at_every_commit(self, database: Database) -> None:
        settings = "journal_mode", "synchronous"
        modes = database.write(lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in settings])
        assert modes == ["wal", 2]  # 2: FULL

    def test_a_full_disk_fails_the_whole_batch_as_unavailable_and_later_writes_succeed(self, database: Database) -> None:
        database.write(put("before"))
        pages = database.write(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        greenlets = [gevent.spawn(database.write, run) for run in (put("small"), put("large", "x" * 1_000_000))]
        gevent.joinall(greenlets, timeout=PATIENCE_SECONDS)
        assert [type(one.exception) for one in greenlets] == [DatabaseUnavailable, DatabaseUnavailable]
        database.write(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchall())
        database.write(put("after"))
        assert names(database) == ["after", "before"]

    def test_a_foreign_lock_makes_the_store_unavailable_without_stopping_the_hub(
            self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_schema, "BUSY_SECONDS", 0.5)
        store, bus = open_store("sqlite:///nommerd.db", tmp_path), open_bus("sqlite:///nommerd.db", tmp_path)
        shell = sqlite3.connect(tmp_path / "nommerd.db", isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        ticks: list[float] = []

        def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                gevent.sleep(0.01)

        ticking = gevent.spawn(tick)
        with pytest.raises(StoreUnavailable, match="locked"):
            store.ping()
        ticking.kill()
        assert len(ticks) > 15, "the hub stood still"
        with pytest.raises(BusUnavailable):
            bus.jobs.send(JobMessage(id="a"))
        shell.execute("ROLLBACK")
        store.ping()
        store.close()
        bus.close()
        shell.close()

    def test_a_stopped_holder_of_the_lock_file_makes_it_unavailable_and_what_was_given_up_is_not_written_later(
            self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "WRITE_SECONDS", 0.3)
        holder = os.open(f"{database.path}.lock", os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        for name in ("first", "second"):
            with pytest.raises(DatabaseUnavailable):
                database.write(put(name))
        os.close(holder)
        monkeypatch.undo()
        database.write(put("third"))
        assert "second" not in names(database)

    def test_writers_of_two_processes_take_turns(self, database: Database, other: Database) -> None:
        greenlets = [gevent.spawn(one.write, put(f"{number}{'ab'[one is other]}"))
                     for number in range(50) for one in (database, other)]
        gevent.joinall(greenlets, timeout=PATIENCE_SECONDS, raise_error=True)
        assert len(names(database)) == 100


class TestWaking:
    def wait_for(self, database: Database, write: Callable[[], None], seconds: float) -> float:
        """How long a listener waits for a write."""
        with database.listen("jobs") as heard:
            waiting = gevent.spawn(heard.wait, seconds)
            gevent.spawn(lambda: None).join()  # the wait has begun
            begun = time.monotonic()
            write()
            waiting.join()
            return time.monotonic() - begun

    def test_a_datagram_wakes_another_process(self, database: Database, other: Database,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(news, "POLL_SECONDS", PATIENCE_SECONDS * 2)
        self.wait_for(database, lambda: None, 0.01)  # the poller has had its first look
        assert self.wait_for(database, lambda: other.write(put("a"), wake="jobs"), PATIENCE_SECONDS) < PATIENCE_SECONDS / 4
        if database._desk._poller is not None:
            database._desk._poller.kill()  # it sleeps for long

    def test_a_commit_is_seen_without_any_datagram(self, database: Database, other: Database) -> None:
        assert self.wait_for(database, lambda: other.write(put("a")), PATIENCE_SECONDS) < PATIENCE_SECONDS / 4

    def test_a_tmp_that_belongs_to_another_is_not_used_and_waking_works_all_the_same(
            self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wakeup, "ROOT", tmp_path)
        (tmp_path / f"nommerd-{os.getuid()}").mkdir(mode=0o777)
        (tmp_path / f"nommerd-{os.getuid()}").chmod(0o777)
        bus = open_bus("sqlite:///nommerd.db", tmp_path)
        assert isinstance(bus.jobs, SqliteQueue)
        assert bus.jobs._database._desk.wakeup.fileno() is None
        waiting = gevent.spawn(bus.jobs.receive, 1, PATIENCE_SECONDS)
        assert bus.jobs.receive(1, 0.05) == []
        bus.jobs.send(JobMessage(id="a"))
        assert waiting.get(timeout=PATIENCE_SECONDS)[0].message.id == "a"
        bus.close()

    def test_sockets_of_killed_processes_are_removed_and_ours_goes_when_we_close(self, path: Path) -> None:
        script = ("import sys, os; from pathlib import Path; from nommerd.wakeup import Wakeup; "
                  "w = Wakeup(Path(sys.argv[1])); print(w._path, flush=True); os.kill(os.getpid(), 9)")
        killed = subprocess.run([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        dead = Path(killed.stdout.strip())
        assert dead.is_socket()
        ours = wakeup.Wakeup(path)
        assert not dead.exists()
        assert ours._path.is_socket()
        ours.close()
        assert not ours._path.parent.exists()

    def test_a_neighbour_that_never_reads_blocks_nobody(self, path: Path) -> None:
        deaf, ours = wakeup.Wakeup(path), wakeup.Wakeup(path)
        begun = time.monotonic()
        for _ in range(2000):
            ours.send(b"jobs")
        assert time.monotonic() - begun < PATIENCE_SECONDS / 2
        assert deaf.receive() == {b"jobs"}
        deaf.close()
        ours.close()


class TestOpening:
    def test_store_and_bus_of_one_file_share_one_database_until_both_are_closed(self, tmp_path: Path) -> None:
        store, bus = open_store("sqlite:///a.db", tmp_path), open_bus(f"sqlite:///{tmp_path}/a.db", tmp_path / "elsewhere")
        assert isinstance(bus.jobs, SqliteQueue)
        database = bus.jobs._database
        assert Database._opened == {tmp_path / "a.db": database}
        store.close()
        bus.jobs.send(JobMessage(id="a"))
        bus.close()
        assert Database._opened == {}
        with pytest.raises(StoreUnavailable):
            store.ping()
        with pytest.raises(BusUnavailable):
            bus.jobs.send(JobMessage(id="a"))

    def test_what_was_stored_is_there_after_reopening_and_only_its_owner_can_read_the_file(self, path: Path) -> None:
        first = Database.open(path)
        first.write(put("kept"))
        first.close()
        second = Database.open(path)
        assert names(second) == ["kept"]
        second.close()
        assert path.stat().st_mode & 0o777 == 0o600

    def test_closing_leaves_no_descriptor_open_and_nothing_is_inherited_by_children(self, path: Path) -> None:
        def descriptors() -> set[str]:
            return {f"{link.name} {link.readlink()}" for link in list(Path("/proc/self/fd").iterdir()) if link.is_symlink()}

        Database.open(path).close()  # what gevent itself keeps is open now
        before = descriptors()
        database = Database.open(path)
        database.write(put("a"))
        names(database)
        with database.listen("jobs") as heard:
            heard.wait(0.05)
        lock = exclusive(path)
        seen = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, text=True, close_fds=False).stdout
        assert "nommerd.db" not in seen
        lock.close()
        database.close()
        assert {one for one in descriptors() - before if "nommerd" in one or "socket" in one} == set()

    def test_a_newer_schema_is_refused(self, path: Path) -> None:
        Database.open(path).close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {len(sqlite_schema.MIGRATIONS) + 1}")
        with pytest.raises(ConfigError) as caught:
            Database.open(path)
        assert caught.value.code == "config.newer_database"
        assert Database._opened == {}

    def test_an_older_schema_is_brought_up_to_date_once(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = Database.open(path)
        first.write(put("kept"))
        first.close()
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, "ALTER TABLE meta ADD COLUMN extra; "
                                                          "INSERT INTO meta VALUES ('migrated', 1, 2);"))
        for _ in range(2):
            database = Database.open(path)
            assert names(database) == ["kept", "migrated"]
            database.close()

    def test_a_migration_that_fails_changes_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Database.open(path).close()
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, "CREATE TABLE extra (a); SELECT nonsense;"))
            with pytest.raises(ConfigError):
                Database.open(path)
        database = Database.open(path)
        assert database.read(lambda db: db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'extra'").fetchall()) == []
        database.close()

    @pytest.mark.parametrize("make", ["foreign", "text", "folder", "nowhere"])
    def test_what_is_no_database_of_ours_is_a_configuration_error(self, path: Path, make: str) -> None:
        if make == "foreign":
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE theirs (a)")
        elif make == "text":
            path.write_text("not a database " * 100)
        elif make == "folder":
            path.mkdir()
        else:
            path = path / "missing" / "nommerd.db"
        with pytest.raises(ConfigError) as caught:
            Database.open(path)
        assert caught.value.code == "config.database"

    def test_urls_name_files_in_the_data_directory_or_absolute_ones(self) -> None:
        data = Path("/data")
        assert database_path("sqlite:///nommerd.db", data) == Path("/data/nommerd.db")
        assert database_path("sqlite:////var/x.db", data) == Path("/var/x.db")

    @pytest.mark.parametrize("url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x.db", "sqlite:///x.db?mode=ro",
                                     "dynamodb://table", "simpledb://domain", "sqs://prefix", "redis://h", "", "nonsense"])
    def test_other_urls_are_configuration_errors(self, tmp_path: Path, url: str) -> None:
        for opener, code in ((open_store, "config.store"), (open_bus, "config.bus")):
            with pytest.raises(ConfigError) as caught:
                opener(url, tmp_path)
            assert caught.value.code == code

    def test_memory_urls_share_one_backend_for_each_name(self, tmp_path: Path) -> None:
        for opener in (open_store, open_bus):
            assert opener("memory://one", tmp_path) is opener("memory://one", tmp_path)
            assert opener("memory://one", tmp_path) is not opener("memory://two", tmp_path)


class TestFeederLock:
    SCRIPT = ("import sys, time; from pathlib import Path; from nommerd.sqlite import exclusive; "
              "lock = exclusive(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)")

    def test_a_second_feeder_is_refused_until_the_first_ends_however_it_ends(self, path: Path) -> None:
        first = subprocess.Popen([sys.executable, "-c", self.SCRIPT, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=str(first.pid)) as caught:
                exclusive(path)
            assert caught.value.code == "config.feeder_running"
        finally:
            first.kill()
            first.wait()
        lock = exclusive(path)
        assert isinstance(lock, FileLock)
        lock.close()
        lock.close()

    def test_another_name_of_the_same_file_is_the_same_file(self, path: Path) -> None:
        path.touch()
        link = path.with_name("link.db")
        link.symlink_to(path)
        lock = exclusive(path)
        with pytest.raises(ConfigError):
            exclusive(link)
        lock.close()


class TestSearches:
    """At a hundred thousand jobs a search that reads them all takes too long: each must follow an index, unsorted."""

    ERRORS = frozenset({JobState.ERROR})
    QUERIES = (JobQuery(), JobQuery(cursor="WzEsMSwiYSJd", since=utcnow()), JobQuery(preset="a"), JobQuery(error_code="a.b"),
               JobQuery(states=ERRORS), JobQuery(states=ERRORS | {JobState.FINISHED}, preset="a", error_code="a.b"),
               JobQuery(labels={"a": "b"}), JobQuery(labels={"a": "b", "c": "d"}, states=ERRORS, preset="a"))

    @pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
    def test_every_listing_reads_its_parts_in_order_from_an_index(self, database: Database, query: JobQuery) -> None:
        sql, arguments = listing._part(query, next(iter(query.states), JobState.PENDING if query.labels else None))
        plan = database.read(lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", arguments)])
        assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), plan
        whole, arguments = listing.select(query)
        plan = database.read(lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {whole}", arguments)])
        assert not any(step.startswith(("SCAN jobs", "SCAN k", "SCAN j ", "SCAN m")) for step in plan), plan

    def test_a_receive_and_its_look_ahead_follow_an_index(self, database: Database) -> None:
        from nommerd.bus import sqlite as bus

        for sql, arguments in ((bus._NEXT, ("jobs", 0)), (bus._TAKE, (1.0, 1, "r", "jobs", 0, 1.0, 1))):
            plan = database.write(lambda db: [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", arguments)])  # noqa: B023
            assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in plan), plan


def test_a_store_gives_records_back_while_a_writer_is_busy(tmp_path: Path) -> None:
    store = open_store("sqlite:///nommerd.db", tmp_path)
    job = Job(id="a", pipeline="p", recipe="r", source="s", dest="d", created=utcnow(), updated=utcnow(), write_id="w")
    store.create(job)
    writer = sqlite3.connect(tmp_path / "nommerd.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.get(job.key) == job
    assert store.list(JobQuery()).jobs == [job]
    writer.execute("ROLLBACK")
    writer.close()
    store.close()
