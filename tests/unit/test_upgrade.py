"""What an earlier version left is read, brought up to date, and backed up: from a data directory of schema version 1."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from nommerd import backups, restoring, sqlite_schema
from nommerd.bus import open_bus
from nommerd.config import Settings, load
from nommerd.errors import ConfigError
from nommerd.job import Job, JobState, Key, Owner, Sweep, utcnow
from nommerd.lifecycle import claim, finish, retry
from nommerd.secrets import Keyring
from nommerd.sqlite import Database
from nommerd.sqlite_schema import MIGRATIONS, connect
from nommerd.store import open_store
from nommerd.store.base import Document, JobQuery, Store, WorkerRecord
from tests.earlier import schema_1
from tests.rig import CANARY

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SHIPPED = (  # of each migration, its words one space apart
    "82ed3718858c646c47412732049ced03cd4a04931181742f94a7f65b1e83e5f4",
    "865e4084b2920c5e5a9b8cb31315ee2c56fe34afb31e16f329b26e76da5a61ba",
    "2c9a381ee2e0e0dc066f35f2cfc8fd8c66707b701407ff38cc53cc2c547829e2",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    return schema_1(data)


@pytest.fixture
def store(ids: dict[str, str], data: Path) -> Iterator[Store]:
    opened = open_store("sqlite:///nommerd.db", data)
    yield opened
    opened.close()


def version(data: Path) -> int:
    with closing(sqlite3.connect(data / "nommerd.db")) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def contents(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir() if "lock" not in path.name}


def tables(path: Path) -> dict[str, str]:
    with closing(sqlite3.connect(path)) as db:
        return {name: " ".join(sql.replace('"', "").split()) for name, sql in db.execute(
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")}


def test_migrations_that_files_were_made_with_never_change() -> None:
    assert tuple(sha256(" ".join(one.split()).encode()).hexdigest() for one in MIGRATIONS) == SHIPPED


@pytest.mark.parametrize("draft", [False, True])
def test_a_file_of_any_version_gets_the_tables_of_a_new_one(draft: bool, ids: dict[str, str], data: Path,
                                                            tmp_path: Path) -> None:
    assert version(data) == 1
    if draft:  # as version 2 was for a while
        with closing(connect(data / "nommerd.db")) as db:
            db.executescript(f"{MIGRATIONS[1]}; ALTER TABLE progress ADD COLUMN speed REAL; PRAGMA user_version = 2")
    Database.open(data / "nommerd.db").close()
    Database.open(tmp_path / "new.db").close()
    assert version(data) == len(MIGRATIONS)
    assert tables(data / "nommerd.db") == tables(tmp_path / "new.db")


def test_jobs_in_every_state_are_as_they_were(store: Store, ids: dict[str, str]) -> None:
    states = {name.split("-")[0] for name in ids}
    assert states == {state.value for state in JobState}
    for name, id in ids.items():
        assert store.get(Key("default", id)).state == name.split("-")[0]
    assert {job.id for job in store.list(JobQuery()).jobs} == set(ids.values())
    assert store.count("default")[JobState.PENDING] == 2
    job = store.get(Key("default", ids["ENCODING"]))
    assert (job.stage, job.owner and job.owner.worker, job.speed) == ("ffmpeg", "w1", None)
    assert 0.2 < job.progress < 0.3  # as was reported beside the record
    done = store.get(Key("default", ids["FINISHED"]))
    assert [output.uri for output in done.outputs] == ["file:///srv/v1/media/finished.mp4"]
    assert len(done.due_events) == done.event_seq > 0


def test_they_are_found_by_labels_codes_and_what_is_due(store: Store, ids: dict[str, str]) -> None:
    def found(query: JobQuery) -> set[str]:
        return {job.id for job in store.list(query).jobs}

    assert found(JobQuery(labels={"show": "one"})) == {ids["FINISHED"], ids["ERROR"]}
    assert found(JobQuery(labels={"show": "one"}, states=frozenset({JobState.ERROR}))) == {ids["ERROR"]}
    assert found(JobQuery(error_code="input.not_media")) == {ids["ERROR"]}
    assert len(found(JobQuery(preset="web-480p"))) == len(ids)
    late = utcnow().timestamp() + 1e9
    claimed = {job.id for job in store.due_for_sweep(Sweep.CLAIMED, late, 100)}
    assert claimed == {ids[name] for name in ("DOWNLOADING", "ENCODING", "UPLOADING")}
    assert [job.id for job in store.webhooks_due(late, 100)] == [ids["FINISHED"]]
    assert {ending.state for ending in store.endings("default", LONG_AGO, 100)} == {
        JobState.FINISHED, JobState.ERROR, JobState.CANCELLED, JobState.ABANDONED}
    assert store.oldest_pending("default") == min(store.get(Key("default", ids[name])).created
                                                  for name in ("PENDING", "PENDING-secret"))


def test_recipes_workers_leader_messages_and_secrets_are_there(store: Store, ids: dict[str, str], data: Path) -> None:
    assert all(store.get_recipe(job.recipe) for job in store.list(JobQuery()).jobs)
    assert [(worker.name, worker.state) for worker in store.workers()] == [("w1", "ACTIVE")]
    assert store.leader().token == 1
    bus = open_bus("sqlite:///nommerd.db", data)
    depth = bus.jobs.depth()
    assert depth.visible + depth.in_flight + depth.delayed == 4  # three wait, and one was in a worker's hands
    bus.close()
    secret = store.get(Key("default", ids["PENDING-secret"]))
    keyring = Keyring.load_or_make(data, (), make=False)
    assert CANARY not in secret.source
    assert secret.secrets is not None
    assert CANARY in keyring.decrypt(secret.secrets)["source"]


def test_they_can_be_changed_and_new_things_are_kept_beside_them(store: Store, ids: dict[str, str]) -> None:
    again = store.update(Key("default", ids["ERROR"]), retry(utcnow()))
    assert again.state is JobState.PENDING
    me = Owner(worker="w2", node="n2", claim="c2")
    mine = store.update(Key("default", ids["PENDING"]), claim(me, "m", 30.0, utcnow()))
    store.report_progress(mine.key, mine.token, 0.5, "ffmpeg", 10.0, 2.5)
    assert store.get(mine.key).speed == 2.5
    assert store.update(mine.key, finish(me, (), (), utcnow())).state is JobState.FINISHED
    store.put_document(Document(kind="preset", scope="default", name="mine", body="{}"), None)
    assert [document.name for document in store.documents("preset", "default")] == ["mine"]
    store.put_worker(WorkerRecord(name="w2", node="n2", state="ACTIVE", slots=1, active=(), version="0.1.0", encoders=(),
                                  reported=utcnow()))
    assert {worker.name for worker in store.workers()} == {"w1", "w2"}


def test_processes_that_open_it_at_once_bring_it_up_to_date_once(ids: dict[str, str], data: Path) -> None:
    script = ("import sys; from pathlib import Path; from nommerd.sqlite import Database; sys.stdin.read(1); "
              "Database.open(Path(sys.argv[1])).close()")
    opening = [subprocess.Popen([sys.executable, "-c", script, str(data / "nommerd.db")], stdin=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = []
    for process in opening:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in opening:
        said.append((process.communicate(timeout=60)[1], process.returncode))
    assert said == [("", 0)] * 4
    assert version(data) == len(MIGRATIONS)


def test_a_process_that_has_it_open_goes_on_while_another_one_brings_it_up_to_date(
        ids: dict[str, str], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old worker of the machine, until it is restarted too; all statements name their columns."""
    store = open_store("sqlite:///nommerd.db", data)
    worker = WorkerRecord(name="w2", node="n2", state="ACTIVE", slots=1, active=(), version="0.1.0", encoders=(),
                          reported=utcnow())
    job = Job(id="new", pipeline="p", recipe="r", source="file:///i", dest="file:///o", labels={"a": "b"}, created=utcnow(),
              updated=utcnow())
    wider = " ".join(f"ALTER TABLE {table} ADD COLUMN more;" for table in (
        "meta", "jobs", "labels", "progress", "recipes", "workers", "leader", "messages", "documents"))
    with closing(connect(data / "nommerd.db")) as other, monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", (*MIGRATIONS, wider))
        sqlite_schema.migrate(other, data / "nommerd.db")
    assert version(data) == len(MIGRATIONS) + 1
    bus = open_bus("sqlite:///nommerd.db", data)  # the same Database
    store.create(job)
    mine = store.update(job.key, claim(Owner(worker="w2", node="n2", claim="c"), "m", 30.0, utcnow()))
    store.report_progress(mine.key, mine.token, 0.5, "ffmpeg", 10.0, 2.5)
    store.put_recipe("r", "{}")
    store.put_worker(worker)
    store.put_document(Document(kind="preset", scope="default", name="mine", body="{}"), None)
    store.swap_leader(store.leader(), store.leader().version)
    store.ping()
    assert store.get(job.key).progress == 0.5
    assert [one.id for one in store.list(JobQuery(labels={"a": "b"})).jobs] == ["new"]
    bus.close()
    store.close()


class TestBackups:
    @pytest.fixture
    def settings(self, ids: dict[str, str], tmp_path: Path) -> Settings:
        file = tmp_path / "nommerd.yaml"
        file.write_text("paths: {data: data}\n", encoding="utf-8")
        return load(file, {})

    def test_the_one_to_make_before_an_upgrade_keeps_the_old_version_and_is_the_way_back(
            self, settings: Settings, data: Path, tmp_path: Path) -> None:
        before = contents(data)
        file = tmp_path / "before.tar.gz"
        manifest = backups.make(settings, file, force=False)
        assert (manifest.schema_version, manifest.jobs, version(data)) == (1, 10, 1)
        open_store("sqlite:///nommerd.db", data).close()
        assert version(data) == len(MIGRATIONS)
        assert restoring.restore(settings, file, force=True).schema_version == 1
        assert version(data) == 1  # as an older nommerd opens it
        after = contents(data)
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} <= {"nommerd.db"}

    def test_an_older_one_is_put_back_by_a_newer_nommerd_and_opens(self, settings: Settings, data: Path, tmp_path: Path,
                                                                   ids: dict[str, str]) -> None:
        file = tmp_path / "old.tar.gz"
        backups.make(settings, file, force=False)
        for path in data.iterdir():
            path.unlink()
        restoring.restore(settings, file, force=False)
        store = open_store("sqlite:///nommerd.db", data)
        assert {job.id for job in store.list(JobQuery()).jobs} == set(ids.values())
        assert store.endings("default", LONG_AGO, 100)
        store.close()

    def test_an_older_nommerd_refuses_what_a_newer_one_has_opened_and_says_what_to_do(
            self, settings: Settings, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Database.open(data / "nommerd.db").close()
        newer = tmp_path / "newer.tar.gz"
        backups.make(settings, newer, force=False)
        for module in (sqlite_schema, restoring):
            monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS[:1])
        with pytest.raises(ConfigError, match="restore the backup made before the upgrade") as caught:
            Database.open(data / "nommerd.db")
        assert caught.value.code == "config.newer_database"
        with pytest.raises(ConfigError) as caught:
            restoring.restore(settings, newer, force=True)
        assert caught.value.code == "config.newer_backup"
        assert version(data) == len(MIGRATIONS)
