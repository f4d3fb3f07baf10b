"""`nommerd watch` with a real feeder and a real worker: nothing twice, nothing lost, nothing overwritten."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.media import clip
from tests.rig import Rig, wait_until


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig")) as made:
        made.start_feeder()
        made.start_worker("w1")
        yield made


class Watch:
    """One `nommerd watch` and what it says."""

    def __init__(self, rig: Rig, home: Path, *arguments: str, folder: Path | None = None) -> None:
        self.log = home / "watch.log"
        env = rig.env | {"NOMMERD_URL": f"http://127.0.0.1:{rig.port}", "NOMMERD_TOKEN": rig.token,
                         "XDG_STATE_HOME": str(home / "state")}
        argv = [sys.executable, "-m", "nommerd", "watch", str(folder or home / "in"), "-o", str(home / "out"),
                "--settle", "0.3", "--interval", "0.1", "--json", *arguments]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(argv, stdout=out, stderr=out, env=env, stdin=subprocess.DEVNULL)

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [one for one in found if one["event"] == kind]

    def wait(self, kind: str, count: int = 1, seconds: float = 40) -> list[dict[str, Any]]:
        def there() -> bool:
            assert self.process.poll() is None or len(self.events(kind)) >= count, self.log.read_text()
            return len(self.events(kind)) >= count
        wait_until(there, seconds, lambda: f"{count} {kind}: {self.log.read_text()}")
        return self.events(kind)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def home(rig: Rig, request: pytest.FixtureRequest) -> Path:
    made = rig.media / f"t{abs(hash(request.node.name))}"
    (made / "in").mkdir(parents=True)
    return made


def put(path: Path, seconds: int = 1, container: str = "mov") -> Path:
    """A clip that appears as most programs write it: slowly, under its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip(seconds=seconds, size="64x36", container=container).read_bytes())
    return path


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_appears_is_encoded_once_whatever_is_restarted_and_what_changes_again(rig: Rig, home: Path) -> None:
    first = put(home / "in" / "a.mov")
    put(home / "in" / "a.mp4", container="mp4")  # the same stem
    for name in (".hidden.mov", "b.mov.part", "c.mov~", "notes.txt"):
        (home / "in" / name).write_bytes(first.read_bytes())
    (home / "in" / "link.mov").symlink_to(first)
    with Watch(rig, home, "-p", "web-480p", "--label", "from=watch") as watch:
        watch.wait("finished", 2)
        assert names(home / "out") == ["a.mp4", "a.mp4.mp4"]
        assert {job["labels"]["from"] for job in rig.jobs() if str(home) in job["source"]} == {"watch"}
        assert watch.end() == 0
    state = next((home / "state" / "nommerd" / "watch").glob("*.jsonl"))
    assert oct(state.stat().st_mode & 0o777) == "0o600"
    with state.open("ab") as file:
        file.write(b'{"key": "torn')  # as a power cut leaves it
    with Watch(rig, home, "-p", "web-480p", "--label", "another=one") as watch:
        before = first.stat().st_mtime_ns
        shutil.copyfile(put(home / "longer.mov", seconds=2), first)
        assert first.stat().st_mtime_ns != before
        (again,) = watch.wait("finished")
        assert again["file"] == "a.mov"
        assert len(watch.events("submitted")) == 1
        assert watch.end() == 0
    assert len(names(home / "out")) == 2, "the changed file's output took the place of its old one"


def test_a_second_watch_on_the_folder_is_refused(rig: Rig, home: Path) -> None:
    with Watch(rig, home, "-p", "web-480p") as watch:
        watch.wait("watching")
        (home / "alias").symlink_to(home / "in")
        second = subprocess.run([*watch.process.args], capture_output=True, text=True, timeout=30, env=  # type: ignore[misc]
                                rig.env | {"XDG_STATE_HOME": str(home / "state"), "NOMMERD_TOKEN": "x"})
        assert (second.returncode, json.loads(second.stdout)["errors"][0]["code"]) == (2, "config.in_use")


@pytest.mark.slow
def test_once_with_markers_takes_what_is_marked_and_moves_it_away(rig: Rig, home: Path) -> None:
    put(home / "in" / "sub" / "a.mov")
    put(home / "in" / "b.mov")
    (home / "in" / "sub" / "a.mov.done").touch()
    with Watch(rig, home, "-p", "web-480p", "--once", "--recursive", "--done-marker", ".done", "--settle", "1h",
               "--on-finished", "move", "--move-to", str(home / "gone")) as watch:
        assert watch.process.wait(60) == 0, watch.log.read_text()
    assert (names(home / "out"), names(home / "gone"), names(home / "in")) == (["sub/a.mp4"], ["sub/a.mov"], ["b.mov"])
    put(home / "in" / "sub" / "a.mov", seconds=2)  # another film by the name of one that is done
    (home / "in" / "sub" / "a.mov.done").touch()
    with Watch(rig, home, "-p", "web-480p", "--once", "--recursive", "--done-marker", ".done",
               "--on-finished", "delete") as watch:
        assert watch.process.wait(60) == 0, watch.log.read_text()
    assert (names(home / "out"), names(home / "in")) == (["sub/a.mov.mp4", "sub/a.mp4"], ["b.mov"])


def test_once_ends_with_1_when_a_job_fails_or_a_file_is_refused(rig: Rig, home: Path) -> None:
    (home / "in" / "bad.mov").write_bytes(os.urandom(5000))
    with Watch(rig, home, "-p", "web-480p", "--once") as watch:
        assert watch.process.wait(60) == 1
        assert watch.wait("error")[0]["error"]["code"].startswith("input.")
    assert names(home / "in") == ["bad.mov"]
    with Watch(rig, home, "-p", "nonsense", "--once") as watch:
        assert watch.process.wait(30) == 1
        assert json.loads(watch.log.read_text().splitlines()[-1])["errors"][0]["code"] == "recipe.unknown_preset"


@pytest.mark.slow
def test_while_the_feeder_is_away_nothing_is_lost(rig: Rig, home: Path) -> None:
    assert rig.token and rig.feeder is not None
    rig.feeder.stop()
    put(home / "in" / "a.mov")
    with Watch(rig, home, "-p", "web-480p") as watch:
        watch.wait("waiting")
        rig.start_feeder()
        (submitted,) = watch.wait("submitted")
        watch.wait("back")
        watch.process.kill()  # it cannot say goodbye, nor hear how the job ended
    rig.wait_finished(submitted["job"])
    with Watch(rig, home, "-p", "web-480p") as watch:
        (finished,) = watch.wait("finished")
        assert (finished["job"], watch.events("submitted")) == (submitted["job"], [])
        assert watch.end() == 0
    assert names(home / "out") == ["a.mp4"]


# --- jobs --------------------------------------------------------------------------------------------------------------


def run(rig: Rig, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = rig.env | {"NOMMERD_URL": f"http://127.0.0.1:{rig.port}", "NOMMERD_TOKEN": rig.token}
    return subprocess.run([sys.executable, "-m", "nommerd", *arguments], capture_output=True, text=True, timeout=60, env=env,
                          stdin=subprocess.DEVNULL)


def test_jobs_are_cancelled_and_retried_by_label_and_followed_to_their_end(rig: Rig, home: Path) -> None:
    source = put(home / "a.mov")
    worker = next(daemon for daemon in rig.daemons if daemon.name == "w1")
    worker.signal(signal.SIGSTOP)
    mine = [rig.submit(source, home / f"{n}.mp4", preset="web-480p", labels={"set": "one"}) for n in range(3)]
    other = rig.submit(source, home / "other.mp4", preset="web-480p", labels={"set": "two"})
    ended = run(rig, "jobs", "cancel", "--label", "set=one", "--since", "1h", "--yes", "--json")
    assert (ended.returncode, json.loads(ended.stdout)["done"]) == (0, 3), ended.stderr
    assert rig.job(other)["state"] == "PENDING"
    assert run(rig, "jobs", "retry", "--label", "set=one", "--yes").stdout == "There are no such jobs.\n"
    ended = run(rig, "jobs", "retry", "--state", "cancelled", "--label", "set=one", "--yes")
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "3 of 3 retried.")
    worker.signal(signal.SIGCONT)
    ended = run(rig, "jobs", "watch", *mine, other)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("FINISHED") == 4
    ended = run(rig, "jobs", "ls", "--label", "set=one", "--all", "--json")
    assert {one["id"] for one in json.loads(ended.stdout)} == set(mine)


def test_the_doctor_finds_this_installation_well(rig: Rig) -> None:
    from nommerd.cli.checks import database, machine, services
    from nommerd.cli.checks.finding import Patient
    from nommerd.config import load

    patient = Patient(config_file=rig.config, env={}, settings=load(rig.config, {}))
    found = [one for check in (services.feeder, services.tokens, services.webhooks, database.database, machine.workspaces)
             for one in check(patient)]
    assert {one.status for one in found} == {"ok"}, found
    assert any("may " in one.message for one in found), "the feeder told of the token"
    assert all(rig.token not in one.message + one.hint for one in found)
