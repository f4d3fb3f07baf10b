"""fetch: a copy under a name of our own, whatever the source is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from nommerd.errors import InfrastructureError, InputError
from nommerd.pipeline.stages import fetch
from nommerd.pipeline.stages.fetch import Fetch, plain_name, safe_extension
from nommerd.storage.file import uri_of
from tests import media
from tests.unit.pipeline.scene import Scene, notes


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize(("uri", "name", "extension"), [
    ("file:///a/b/My%20film.MP4", "My film.MP4", ".mp4"),
    ("https://user:secret@host/x/clip.mov?sig=abc/evil.exe", "clip.mov", ".mov"),
    ("file:///a/-rf.mp4", "rf.mp4", ".mp4"),
    ("file:///a/..%2F..%2Fetc%2Fpasswd", "passwd", ""),
    ("file:///a/img%25d.png", "img_d.png", ".png"),
    ("file:///a/line%0Abreak.mp4", "line_break.mp4", ".mp4"),
    ("file:///a/concat:b.mp4", "concat_b.mp4", ".mp4"),
    ("file:///a/noextension", "noextension", ""),
    ("file:///a/x.averylongextension", "x.averylon", ".averylon"),
    ("https://host/", "source", ""),
    ("file:///a/ほげ.mkv", "ほげ.mkv", ".mkv"),
    ("file:///a/Mu%CC%88ller%20%26%20Co%2C%20it's%20%F0%9F%8E%AC.mov", "Mu\u0308ller & Co, it's \U0001f3ac.mov", ".mov"),
    ("file:///a/" + "n" * 300 + ".mp4", "n" * 100 + ".mp4", ".mp4"),
])
def test_a_source_gets_a_harmless_name(uri: str, name: str, extension: str) -> None:
    assert plain_name(uri) == name
    assert safe_extension(uri) == extension


def test_the_source_is_copied_probed_and_keeps_its_name_for_people(scene: Scene) -> None:
    odd = media.copy(scene.source, scene.files / "-i %d:x\n.mp4")
    context = scene.context(source=uri_of(odd))
    Fetch("fetch", None).run(context)
    file = context.files["source"]
    assert file.path == context.workspace / "source.mp4"
    assert file.path.read_bytes() == scene.source.read_bytes()
    assert file.path.stat().st_ino != odd.stat().st_ino
    assert file.probe is not None
    assert file.probe.duration_seconds == pytest.approx(1.0, abs=0.1)
    odd.write_bytes(b"changed meanwhile")
    assert file.path.read_bytes() == scene.source.read_bytes()
    assert context.unpublished == []


def test_inputs_are_fetched_beside_it_by_name_and_number(scene: Scene) -> None:
    for name in ("en.vtt", "de.vtt"):
        (scene.files / name).write_text("WEBVTT\n")
    inputs = {"captions": [{"uri": uri_of(scene.files / name), "language": name[:2]} for name in ("en.vtt", "de.vtt")]}
    context = scene.context(inputs=inputs)
    Fetch("fetch", None).run(context)
    assert [file.path.name for file in context.inputs["captions"]] == ["input-captions-0.vtt", "input-captions-1.vtt"]
    assert [file.leaf for file in context.inputs["captions"]] == ["en.vtt", "de.vtt"]
    assert context.unpublished == []


def test_progress_comes_in_bytes_and_ends_at_one(scene: Scene) -> None:
    context = scene.context()
    told: list[float] = []
    context.on_progress = lambda fraction, eta, speed: told.append(fraction)
    Fetch("fetch", None).run(context)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert notes(context).confirms == 0


def test_more_than_the_disk_holds_is_refused_before_it_is_filled(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: Usage)
    big = scene.files / "big.mp4"
    with big.open("wb") as file:
        file.truncate(900 * 10**6)
    context = scene.context(source=uri_of(big))
    with pytest.raises(InfrastructureError) as caught:
        Fetch("fetch", None).run(context)
    assert caught.value.code == "node.disk_full"
    assert caught.value.retryable
    assert list(context.workspace.iterdir()) == []


@pytest.mark.parametrize(("content", "code"), [(b"plain text, no media", "input.not_media"), (b"", "input.not_media")])
def test_what_is_no_media_is_the_callers_to_mend(scene: Scene, content: bytes, code: str) -> None:
    bad = scene.files / "bad.mp4"
    bad.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Fetch("fetch", None).run(scene.context(source=uri_of(bad)))
    assert caught.value.code in (code, "input.empty")
    assert not caught.value.retryable


def test_a_missing_source_is_the_callers_to_mend(scene: Scene) -> None:
    with pytest.raises(InputError) as caught:
        Fetch("fetch", None).run(scene.context(source=uri_of(scene.files / "none.mp4")))
    assert caught.value.code == "source.not_found"
