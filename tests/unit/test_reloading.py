"""What a reload changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from nommerd.aws.clients import Clients
from nommerd.catalog import Catalog
from nommerd.catalog.projects import Catalogs
from nommerd.config import load
from nommerd.fleet import userdata
from nommerd.fleet.distribution import Pin
from nommerd.fleet.userdata import UserData
from nommerd.reloading import Reloading, changes
from nommerd.secrets import Keyring, Secret, new_key
from nommerd.store.base import Document
from nommerd.store.memory import MemoryStore
from tests import logged

PIPELINE = "kind: pipeline\nname: own\nparams: {width: {type: integer, default: 320}}\nstages: [fetch, {ffmpeg: " \
           "{video: {codec: h264, width: $width}, output: {container: mp4}}}, upload, notify]\n"


class Scene:
    def __init__(self, root: Path) -> None:
        self.pipeline = root / "pipelines/own.yaml"
        self.pipeline.parent.mkdir()
        self.pipeline.write_text(PIPELINE)
        config = root / "nommerd.yaml"
        config.write_text(f"paths: {{data: '{root}/data', pipelines: [pipelines]}}\n"
                          "api: {original: {enabled: true, nommers: {'an.old.Nommer': own}}}\n")
        settings = load(config, {})
        keyring = Keyring([Secret(new_key())])
        self.store = MemoryStore()
        self.catalogs = Catalogs(self.store, Catalog(settings.paths.pipelines, settings.paths.presets))
        self.user_data = UserData(settings, Clients(settings.aws), keyring)
        self.reloading = Reloading(settings, self.catalogs, self.user_data)

    def width(self, preset: str) -> object:
        return self.catalogs.of("p").resolve(preset=preset).params["width"]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_projects_keep_is_linked_to_the_pipelines_that_were_read(scene: Scene) -> None:
    scene.store.put_document(Document(kind="preset", scope="p", name="mine", version=1,
                                      body="kind: preset\nname: mine\npipeline: own\n"), None)
    assert scene.width("mine") == 320
    scene.pipeline.write_text(PIPELINE.replace("320", "480"))
    assert scene.width("mine") == 320, "nobody has asked yet"
    assert scene.reloading.reload()
    assert scene.width("mine") == 480


def test_a_pipeline_that_the_original_api_needs_does_not_go_away(scene: Scene) -> None:
    before = scene.catalogs.disk
    scene.pipeline.unlink()
    with logged.captured() as log:
        assert not scene.reloading.reload()
    assert "api.original.nommers.an.old.Nommer" in log.getvalue()
    assert scene.catalogs.disk is before
    assert "own" in scene.catalogs.of("p").pipelines


def test_one_that_is_asked_for_meanwhile_comes_next_and_one_that_fails_is_not_the_last(
        scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    reloads: list[int] = []
    last = Event()

    def reload() -> None:
        reloads.append(len(reloads))
        if len(reloads) == 4:
            last.set()
            return
        scene.reloading.ask()
        if len(reloads) < 3:
            raise OSError("a fault of its own")

    monkeypatch.setattr(scene.reloading, "reload", reload)
    scene.reloading.ask()
    with logged.captured() as log:
        running = gevent.spawn(scene.reloading.run)
        try:
            assert last.wait(10)
        finally:
            running.kill()
    assert log.getvalue().count("a fault of its own") >= 2


def test_stages_of_the_operators_own_stay_known(scene: Scene) -> None:
    scene.catalogs.disk.stages = dict(scene.catalogs.disk.stages)
    stages = scene.catalogs.disk.stages
    assert scene.reloading.reload()
    assert scene.catalogs.disk.stages is stages


def test_changes_are_what_was_added_changed_or_removed(tmp_path: Path) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    for name in ("kept", "changed", "removed"):
        (folder / f"{name}.yaml").write_text(PIPELINE.replace("own", name))
    old = Catalog([folder], [])
    (folder / "changed.yaml").write_text(PIPELINE.replace("own", "changed").replace("320", "480"))
    (folder / "removed.yaml").unlink()
    (folder / "added.yaml").write_text(PIPELINE.replace("own", "added"))
    assert changes(old, Catalog([folder], [])) == ["pipelines/added", "pipelines/changed", "pipelines/removed"]


def test_a_reload_in_the_midst_of_publishing_is_published_next(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []

    def publish(*_: object) -> Pin:
        if not published:
            assert scene.reloading.reload()
        published.append("once more")
        return Pin(f"s3://bucket/{len(published)}", None, "0" * 64)

    monkeypatch.setattr(userdata, "publish", publish)
    for _ in range(4):
        scene.user_data.publish()
    assert len(published) == 2
