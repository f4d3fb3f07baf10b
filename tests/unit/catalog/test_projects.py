"""A project's catalog: how old it may be, what it costs the store, what it is worth without one."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import gevent
import pytest

from nommerd.api.models import submission
from nommerd.api.recipes import Recipes
from nommerd.catalog import Catalog
from nommerd.catalog.overlay import ProjectCatalog
from nommerd.catalog.projects import FRESH_SECONDS, PROJECTS_KEPT, RETRY_SECONDS, Catalogs
from nommerd.errors import InputError
from nommerd.store.base import Document, StoreUnavailable
from nommerd.store.memory import MemoryStore
from tests.rig import wait_until

DISK = Catalog([], [])


def preset(name: str, width: int = 320, base: str = "pipeline: web-mp4", **more: Any) -> Document:
    body = f"kind: preset\nname: {name}\n{base}\nparams: {{width: {width}}}\n"
    return Document(**{"kind": "preset", "scope": "p", "name": name, "body": body, **more})


class Counting(MemoryStore):
    """Counts how often its documents are read; out of reach when told so; waits at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        if kind == "preset":
            self.looks += 1
        found = super().documents(kind, scope)
        self.gate.wait(10)
        if self.away:
            raise StoreUnavailable("away")
        return found


class Scene:
    def __init__(self) -> None:
        self.now = 100.0
        self.store = Counting()
        self.catalogs = Catalogs(self.store, DISK, clock=lambda: self.now)
        self.recipes = Recipes(self.store, self.catalogs.of, self.catalogs.look, clock=lambda: self.now)

    def width(self, name: str, project: str = "p") -> object:
        wanted = submission({"source": "file:///a", "dest": "file:///b", "preset": name})
        return self.recipes.get(project, wanted).params["width"]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_many_submissions_read_the_store_once_in_a_while(scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    assert {scene.width("a") for _ in range(1000)} == {320}
    assert scene.store.looks == 1
    catalog = scene.catalogs.of("p")
    scene.now += FRESH_SECONDS
    assert scene.catalogs.of("p") is catalog, "nothing changed: what was resolved stays of use"
    assert scene.store.looks == 2


def test_a_change_elsewhere_is_seen_after_a_moment_and_one_made_here_at_once(scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    assert scene.width("a") == 320
    scene.store.put_document(preset("a", 640, version=2), 1)
    assert scene.width("a") == 320
    scene.now += FRESH_SECONDS
    assert scene.width("a") == 640
    scene.store.put_document(preset("a", 1280, version=3), 2)
    scene.catalogs.changed("p")
    assert scene.width("a") == 1280


def test_an_unknown_name_is_looked_for_once_more(scene: Scene) -> None:
    assert scene.width("web-720p") == 1280
    scene.store.put_document(preset("new"), 0)
    assert scene.width("new") == 320
    looks = scene.store.looks
    with pytest.raises(InputError, match="no preset called 'none'"):
        scene.width("none")
    assert scene.store.looks == looks + 1


def test_a_change_while_the_store_is_being_read_is_not_overlooked(scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    scene.store.gate.clear()
    reading = gevent.spawn(scene.catalogs.of, "p")
    wait_until(lambda: scene.store.looks == 1, 5, "the store is asked")
    scene.store.put_document(preset("a", 640, version=2), 1)
    scene.catalogs.changed("p")
    scene.store.gate.set()
    reading.get(timeout=5)
    assert scene.width("a") == 640


def test_who_comes_while_the_store_is_slow_gets_what_is_known(scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    assert scene.width("a") == 320
    scene.now += FRESH_SECONDS
    scene.store.gate.clear()
    reading = gevent.spawn(scene.catalogs.of, "p")
    wait_until(lambda: scene.store.looks == 2, 5, "the store is asked again")
    assert scene.width("a") == 320
    assert scene.store.looks == 2
    scene.store.gate.set()
    reading.get(timeout=5)


def test_without_the_store_the_last_known_documents_and_the_disks_work_and_others_are_not_said_to_be_missing(
        scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    assert scene.width("a") == 320
    scene.store.away = True
    scene.now += FRESH_SECONDS
    assert scene.width("a") == 320
    assert scene.width("web-480p", "q") == 854
    with pytest.raises(StoreUnavailable):
        scene.width("a", "q")
    with pytest.raises(StoreUnavailable):
        scene.catalogs.look("p")
    looks = scene.store.looks
    assert scene.width("web-480p", "q") == 854
    assert scene.store.looks == looks, "a store that is away is not asked with every submission"
    scene.store.away = False
    scene.store.put_document(preset("a", 64, scope="q"), 0)
    scene.now += RETRY_SECONDS
    assert scene.width("a", "q") == 64


def test_documents_of_one_project_are_not_anothers(scene: Scene) -> None:
    scene.store.put_document(preset("a"), 0)
    scene.store.put_document(preset("a", 64, scope="q"), 0)
    assert [scene.width("a", project) for project in "pqp"] == [320, 64, 320]


def test_old_catalogs_are_let_go(scene: Scene) -> None:
    known: list[weakref.ref[ProjectCatalog]] = []
    for version in range(1, 9):
        scene.store.put_document(preset("a", 16 * version, version=version), version - 1)
        scene.catalogs.changed("p")
        assert scene.width("a") == 16 * version
        known.append(weakref.ref(scene.catalogs.of("p")))
    gc.collect()
    assert [one() is not None for one in known] == [False] * 7 + [True]
    for number in range(PROJECTS_KEPT):
        scene.catalogs.of(f"other-{number}")
        scene.width("web-480p", f"other-{number}")
    gc.collect()
    assert known[-1]() is None


def test_what_did_not_change_is_not_read_again(scene: Scene) -> None:
    for name in ("a", "b", "c"):
        scene.store.put_document(preset(name, base="extends: web-480p" if name == "a" else "extends: a"), 0)
    first = scene.catalogs.of("p")
    scene.store.put_document(preset("b", 64, base="extends: a", version=2), 1)
    second = scene.catalogs.look("p")
    assert [second.presets[name] is first.presets[name] for name in ("a", "b", "c")] == [True, False, True]
    scene.store.put_document(preset("a", 48, base="extends: web-480p", version=2), 1)
    third = scene.catalogs.look("p")
    assert third.presets["c"] is not second.presets["c"]


def test_the_names_of_the_disk_come_first_and_their_documents_are_left_alone(scene: Scene) -> None:
    scene.store.put_document(preset("web-480p", 16), 0)
    assert scene.width("web-480p") == 854
    assert "web-480p" in DISK.presets
    scene.store.put_document(preset("a"), 0)
    scene.catalogs.look("p")
    assert "a" not in DISK.presets


class Between(MemoryStore):
    """Another feeder puts a pipeline, and then a preset that needs it, between the two reads of a look."""

    def documents(self, kind: str, scope: str) -> Sequence[Document]:
        found = super().documents(kind, scope)
        if not self.document("preset", "p", "late"):
            text = "kind: pipeline\nname: new\nstages:\n  - fetch\n  - ffmpeg: {audio: {codec: aac}}\n  - upload\n"
            self.put_document(Document(kind="pipeline", scope="p", name="new", body=text), 0)
            text = "kind: preset\nname: late\npipeline: new\n"
            self.put_document(Document(kind="preset", scope="p", name="late", body=text), 0)
        return found


def test_what_is_put_while_the_store_is_read_is_not_half_seen() -> None:
    seen = Catalogs(Between(), DISK).look("p")
    assert seen.broken == {}, "not the preset without its pipeline"
