"""upload: whole, by one owner, listed in the record before the first byte."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest

from nommerd.errors import ConfigError, Fenced, InfrastructureError, InputError, ShuttingDown
from nommerd.pipeline.context import SOURCE, Context, MediaFile
from nommerd.pipeline.destination import complete, join
from nommerd.pipeline.loader import load_yaml
from nommerd.pipeline.recipe import Recipe, build_stages, make_recipe
from nommerd.pipeline.spec import read_pipeline
from nommerd.pipeline.stages import STAGES, upload
from nommerd.pipeline.stages.fetch import Fetch, plain_name
from nommerd.pipeline.stages.upload import Upload, UploadSettings
from nommerd.pipeline.tree import Faults
from nommerd.secrets import public_uri
from nommerd.storage.base import NO_OPTIONS, Staging, StorageRegistry, UploadOptions
from nommerd.storage.file import FileStorage, uri_of
from tests.unit.pipeline.scene import Remake, Scene, notes


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def ready(scene: Scene, *leaves: str | None) -> Context:
    """A context whose outputs wait for the upload."""
    context = scene.context()
    Fetch("fetch", None).run(context)
    Remake("one", leaves or (None,)).run(context)
    return context


def run(context: Context) -> None:
    Upload("upload", None).run(context)


def test_the_output_is_published_with_its_size_checksum_and_probe(scene: Scene) -> None:
    context = ready(scene)
    run(context)
    body = scene.dest.read_bytes()
    (output,) = context.outputs
    assert (output.uri, output.bytes, output.sha256) == (scene.dest_uri, len(body), sha256(body).hexdigest())
    assert output.probe["streams"][0]["codec"] == "h264"
    assert context.unpublished == []


def test_an_output_that_would_replace_its_source_is_refused_and_the_source_stays(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    before = scene.source.read_bytes()
    context = scene.context(overwrite=True, dest=uri_of(scene.files) + "/")
    Fetch("fetch", None).run(context)
    Remake("one", ("in.mp4",)).run(context)
    with pytest.raises(InputError) as caught:
        run(context)
    assert caught.value.code == "dest.is_source"
    assert scene.source.read_bytes() == before
    assert scene.parts == []


def test_the_whole_list_is_in_the_record_before_the_first_byte_and_nothing_shows_before_the_last_confirmation(
        tmp_path: Path) -> None:
    scene = Scene(tmp_path, dest="out/")
    context = ready(scene, "a.mp4", "b.mp4")
    order: list[str] = []

    def on_write(name: str) -> None:
        order.append(f"{name}:{len(scene.parts)}:{len(list(scene.dest.glob('*.mp4')))}")

    notes(context).on_write = on_write
    run(context)
    assert order == ["stage_outputs:0:0", "confirm:1:0", "confirm:2:0", "confirm:2:0", "confirm:1:1"]
    (listed,) = notes(context).staged
    assert [(entry.uri, entry.token) for entry in listed] == [(join(scene.dest_uri, leaf), 1) for leaf in ("a.mp4", "b.mp4")]
    assert len({entry.handle for entry in listed}) == 2
    assert all(entry.probe for entry in listed)


def test_an_owner_that_is_fenced_publishes_nothing_and_leaves_nothing(scene: Scene) -> None:
    for write, count in (("stage_outputs", 1), ("confirm", 1), ("confirm", 2)):
        context = ready(scene)
        seen: list[str] = []

        def on_write(name: str, write: str = write, count: int = count, seen: list[str] = seen) -> None:
            seen.append(name)
            if seen.count(write) == count and name == write:
                raise Fenced("theirs")

        notes(context).on_write = on_write
        with pytest.raises(Fenced):
            run(context)
        assert not scene.dest.exists()
        assert scene.parts == []
        assert context.outputs == []


def test_a_stop_during_the_upload_leaves_nothing(scene: Scene) -> None:
    context = ready(scene)
    notes(context).on_write = lambda name: scene.stop.set(ShuttingDown())
    with pytest.raises(ShuttingDown):
        run(context)
    assert scene.parts == []
    assert not scene.dest.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_something_that_is_there_is_replaced_only_when_asked(scene: Scene, overwrite: bool) -> None:
    scene.dest.write_bytes(b"theirs")
    context = scene.context(overwrite=overwrite)
    Fetch("fetch", None).run(context)
    Remake("one").run(context)
    if overwrite:
        run(context)
        assert scene.dest.read_bytes() == scene.source.read_bytes()
    else:
        with pytest.raises(InputError) as caught:
            run(context)
        assert caught.value.code == "dest.exists"
        assert scene.dest.read_bytes() == b"theirs"
    assert scene.parts == []


def test_a_full_disk_at_the_destination_is_retryable_and_leaves_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from nommerd.storage import disk

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    context = ready(scene)
    monkeypatch.setattr(disk, "_copy_some", full)
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    with pytest.raises(InfrastructureError) as caught:
        run(context)
    assert caught.value.code == "dest.disk_full"
    assert caught.value.retryable
    assert scene.parts == []


def test_several_outputs_need_a_folder_and_names_of_their_own(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        run(ready(scene, "a.mp4", "b.mp4"))
    assert caught.value.code == "dest.not_a_folder"
    (tmp_path / "second").mkdir()
    with pytest.raises(ConfigError) as same:
        run(ready(Scene(tmp_path / "second", dest="out/"), "a.mp4", "a.mp4"))
    assert same.value.code == "recipe.same_names"


def test_a_pipeline_without_an_output_says_so(scene: Scene) -> None:
    context = scene.context()
    Fetch("fetch", None).run(context)
    with pytest.raises(ConfigError) as caught:
        run(context)
    assert caught.value.code == "recipe.no_output"


def test_a_second_upload_lists_what_the_first_published(tmp_path: Path) -> None:
    scene = Scene(tmp_path, dest="out/")
    context = ready(scene, "a.mp4")
    run(context)
    context.add(MediaFile(path=context.files[SOURCE].path, stage_id="later", leaf="b.mp4"))
    run(context)
    assert [len(listed) for listed in notes(context).staged] == [1, 2]
    assert len(context.outputs) == 2


def test_hashing_hears_a_stop_and_progress_ends_at_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "HASH_BYTES", 1000)
    context = ready(scene)
    told: list[float] = []
    context.on_progress = lambda fraction, eta, speed: told.append(fraction)
    run(context)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert len(told) > 10

    again = ready(Scene2(scene))
    again.on_progress = lambda fraction, eta, speed: scene.stop.set(ShuttingDown())
    with pytest.raises(ShuttingDown):
        run(again)
    assert notes(again).staged == []


class Scene2(Scene):
    """The same scene with another destination."""

    def __init__(self, scene: Scene) -> None:
        self.__dict__ |= scene.__dict__
        self.dest = self.files / "second.mp4"
        self.token = 50


@pytest.mark.parametrize(("dest", "leaf", "full"), [
    ("file:///out/", "a b.mp4", "file:///out/a%20b.mp4"),
    ("https://u:p@host/dir/?sig=1/2", "a.mp4", "https://u:p@host/dir/a.mp4?sig=1/2"),
    ("s3://key:se/cret@bucket/dir/", "a.mp4", "s3://key:se/cret@bucket/dir/a.mp4"),
])
def test_credentials_stay_with_storage_and_are_found_again(dest: str, leaf: str, full: str) -> None:
    assert join(dest, leaf) == full
    assert complete(dest, public_uri(full)) == full
    assert complete(full, public_uri(full)) == full


@pytest.mark.parametrize(("uri", "kind"), [
    ("file:///a/b.mp4", "video/mp4"), ("https://h/x.M4A?sig=1", "audio/mp4"), ("file:///a/x.unknown", "video/mp4"),
    ("file:///a/x.mkv", "video/x-matroska")])
def test_the_content_type_goes_by_the_destination_then_by_the_file(scene: Scene, uri: str, kind: str) -> None:
    piece = upload._Piece(MediaFile(path=Path("/w/one.mp4"), stage_id="one"), uri, scene.storage.for_uri("file:///x"), 1)
    assert upload.content_type(piece) == kind


# --- what an output is published with -----------------------------------------------------------------------------------


class Remembering(FileStorage):
    """Files that have a place for everything, and remember what they were given."""

    options = frozenset(one.name for one in fields(UploadOptions))

    def __init__(self, folder: Path) -> None:
        super().__init__([folder], 10**9)
        self.given: list[UploadOptions] = []

    def begin(self, uri: str, token: int, options: UploadOptions = NO_OPTIONS) -> Staging:
        self.given.append(options)
        return super().begin(uri, token, options)


def upload_settings(text: str, **options: Any) -> UploadSettings:
    """The settings as a pipeline's YAML has them."""
    return build_stages(recipe_of(text, **options), STAGES)[-1].settings  # type: ignore[no-any-return]


def recipe_of(text: str, origin: Literal["disk", "api"] = "disk") -> Recipe:
    faults = Faults()
    document = f"kind: pipeline\nname: p\nstages:\n  - fetch\n  - ffmpeg: {{audio: {{codec: aac}}}}\n  - upload: {text}\n"
    found = read_pipeline(load_yaml(document, "p.yaml"), STAGES, origin, faults)
    faults.check()
    assert found is not None
    return make_recipe(found, {}, STAGES)


def test_what_the_pipeline_says_of_the_upload_reaches_the_backend_with_the_checksum(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.storage = StorageRegistry({"file": (backend := Remembering(scene.files))})
    settings = upload_settings("{cache_control: no-store, storage_class: STANDARD_IA, encryption: 'aws:kms', "
                               "kms_key_id: alias/a, acl: bucket-owner-full-control, tags: {team: 'é-1 + 2', cost: ''}}")
    context = ready(scene)
    Upload("upload", settings).run(context)
    assert backend.given == [UploadOptions(
        content_type="video/mp4", sha256=sha256(scene.dest.read_bytes()).hexdigest(), cache_control="no-store",
        storage_class="STANDARD_IA", encryption="aws:kms", kms_key_id="alias/a", acl="bucket-owner-full-control",
        tags={"team": "é-1 + 2", "cost": ""})]
    assert context.warnings == []
    context = ready(scene, "second.mp4")
    context.task = replace(context.task, overwrite=True)
    Upload("upload", upload_settings("{content_type: 'video/mp4; codecs=avc1'}")).run(context)
    assert backend.given[-1].content_type == "video/mp4; codecs=avc1"


@pytest.mark.parametrize("text", [
    "{acl: public}", "{storage_class: standard}", "{storage_class: EXPRESS_ONEZONE}", "{encryption: kms}",
    "{kms_key_id: alias/a}", "{encryption: AES256, kms_key_id: alias/a}", "{content_type: mp4}",
    "{content_type: \"video/mp4\\r\\nX-Evil: 1\"}",
    "{cache_control: \"a\\nb\"}", "{tags: {'a&b': x}}", "{tags: {a: 'x<y'}}", "{tags: {'aws:a': x}}", "{tags: {AWS:a: x}}",
    "{tags: {'': x}}", f"{{tags: {{{'a' * 129}: x}}}}", f"{{tags: {{a: {'x' * 257}}}}}", "{tags: {a: 1}}",
    "{tags: {" + ", ".join(f"t{n}: x" for n in range(11)) + "}}", "{bucket: x}"])
def test_what_s3_would_refuse_is_refused_when_the_pipeline_is_read(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_of(text)
    assert caught.value.code.startswith("recipe.")
    assert "p.yaml:6" in str(caught.value)


def test_a_destination_without_a_place_for_them_is_told_once_and_encryption_is_never_left_out(scene: Scene) -> None:
    context = ready(scene)
    Upload("upload", upload_settings("{acl: private, cache_control: no-store, tags: {a: b}}")).run(context)
    assert [(warning.code, warning.message) for warning in context.warnings] == [
        ("dest.options_ignored", "The destination has no place for acl, cache_control, tags.")]
    assert scene.dest.exists()
    context = ready(Scene2(scene))
    with pytest.raises(InputError) as caught:
        Upload("upload", upload_settings("{encryption: AES256}")).run(context)
    assert caught.value.code == "dest.not_supported"
    assert not (scene.files / "second.mp4").exists()
    assert notes(context).staged == []


@pytest.mark.parametrize("text", ["{acl: public-read}", "{tags: {a: b}}", "{encryption: AES256}", "{storage_class: STANDARD}",
                                  "{encryption: 'aws:kms', kms_key_id: alias/a}"])
def test_who_may_see_an_output_and_what_it_costs_is_for_the_operators_pipelines(text: str) -> None:
    recipe_of(text)
    with pytest.raises(InputError) as caught:
        recipe_of(text, "api")
    assert caught.value.code == "recipe.forbidden_option"
    stored = recipe_of(text)
    forged = replace(stored, stages=tuple(replace(stage, origin="api") for stage in stored.stages))
    with pytest.raises(InputError):
        build_stages(forged, STAGES)
    assert upload_settings("{content_type: video/mp4, cache_control: no-store}", origin="api").cache_control == "no-store"


def test_the_name_of_an_object_gives_its_content_type_whatever_its_key_holds(scene: Scene) -> None:
    for uri, kind in (("s3://k:s/e@media/a#1?.webm", "video/webm"), ("s3://media/dir.mp4/a.mpd", "application/dash+xml")):
        piece = upload._Piece(MediaFile(path=Path("/w/one.mp4"), stage_id="one"), uri, scene.storage.for_uri("file:///x"), 1)
        assert upload.content_type(piece) == kind
    assert plain_name("s3://media/take #2 100%25.mov") == "take _2 100_25.mov"
    assert join("s3://media/dir/", "a b%.mp4") == "s3://media/dir/a b%.mp4"
    assert complete("s3://k:s/e@media/dir/", "s3://media/dir/a b%.mp4") == "s3://k:s/e@media/dir/a b%.mp4"
