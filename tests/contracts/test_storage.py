"""The contract of nommerd.storage.base, on every backend."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from nommerd.errors import CancelRequested, Fenced, InputError, Stop
from nommerd.storage.base import Staging, UploadOptions
from tests.contracts.storage_backends import FENCED, MAX_SOURCE_BYTES, PLACES, Place

ODD_NAMES = ["100%.mp4", "a b.mp4", "what?.mp4", "take #2.mp4", "two\nlines.mp4", "-i.mp4", "%2e%2e.mp4",
             "%d.mp4", "é漢.mp4", "a:b.mp4", "'\"$(x).mp4", "n" * 250 + ".mp4"]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with PLACES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture(params=FENCED)
def fenced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with PLACES[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output.mp4"
    path.write_bytes(os.urandom(9_000_000))
    return path


def fetch(place: Place, name: str, target: Path, stop: Stop | None = None) -> list[tuple[int, int | None]]:
    told: list[tuple[int, int | None]] = []
    fetched = place.storage.fetch(place.uri(name), target, lambda done, total: told.append((done, total)), stop or Stop())
    assert fetched.path == target
    assert fetched.bytes == target.stat().st_size
    return told


def send(place: Place, staging: Staging, path: Path, *, overwrite: bool = False, stop: Stop | None = None) -> None:
    place.storage.upload(staging, path, lambda: None, lambda done, total: None, stop or Stop())
    place.storage.publish(staging, overwrite)


def test_a_source_arrives_as_it_was_and_tells_its_progress(place: Place, tmp_path: Path) -> None:
    body = os.urandom(10_000_000)
    place.put("a.mov", body)
    told = fetch(place, "a.mov", tmp_path / "source")
    assert (tmp_path / "source").read_bytes() == body
    assert told[-1] == (len(body), len(body))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_survives_the_way_out_and_back_whatever_it_holds(place: Place, tmp_path: Path, name: str) -> None:
    small = tmp_path / "small"
    small.write_bytes(name.encode())
    if not place.takes(name):
        with pytest.raises(InputError):
            place.storage.begin(place.uri(name), 1)
        return
    send(place, place.storage.begin(place.uri(name), 1), small)
    assert place.everything() == {name: name.encode()}
    fetch(place, name, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == name.encode()


def test_an_empty_source_and_an_empty_output_are_files_too(place: Place, tmp_path: Path) -> None:
    place.put("a.mov", b"")
    fetch(place, "a.mov", tmp_path / "empty")
    send(place, place.storage.begin(place.uri("b.mp4"), 1), tmp_path / "empty")
    assert place.get("b.mp4") == b""


def test_a_missing_source_is_the_callers_to_mend(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch(place, "none.mov", tmp_path / "source")
    assert caught.value.code == "source.not_found"
    assert not (tmp_path / "source").exists()


def test_a_source_over_the_limit_is_refused_and_nothing_of_it_stays(place: Place, tmp_path: Path) -> None:
    place.put("big.mov", bytes(MAX_SOURCE_BYTES + 1))
    with pytest.raises(InputError) as caught:
        fetch(place, "big.mov", tmp_path / "source")
    assert caught.value.code == "source.too_large"
    assert "storage.max_source_bytes" in caught.value.hint
    assert not (tmp_path / "source").exists()


def test_a_fetch_ends_with_the_reason_it_was_stopped_for(place: Place, tmp_path: Path) -> None:
    place.put("a.mov", bytes(10_000_000))
    stop = Stop()
    with pytest.raises(CancelRequested):
        place.storage.fetch(place.uri("a.mov"), tmp_path / "source", lambda done, total: stop.set(CancelRequested()), stop)
    assert not (tmp_path / "source").exists()


def test_an_output_is_not_visible_before_it_is_published_and_whole_after(place: Place, output: Path) -> None:
    staging = place.storage.begin(place.uri("a.mp4"), 1)
    assert place.storage.exists(place.uri("a.mp4")) is False
    confirmed: list[bool] = []
    place.storage.upload(staging, output, lambda: confirmed.append(True), lambda done, total: None, Stop())
    assert confirmed
    assert place.get("a.mp4") is None
    place.storage.publish(staging, False)
    assert place.everything() == {"a.mp4": output.read_bytes()}
    assert place.storage.exists(place.uri("a.mp4")) is True


def test_an_output_does_not_replace_what_is_there_unless_told_to(place: Place, output: Path) -> None:
    place.put("a.mp4", b"old")
    with pytest.raises(InputError) as caught:
        send(place, place.storage.begin(place.uri("a.mp4"), 1), output)
    assert caught.value.code == "dest.exists"
    assert place.everything() == {"a.mp4": b"old"}
    send(place, place.storage.begin(place.uri("a.mp4"), 2), output, overwrite=True)
    assert place.everything() == {"a.mp4": output.read_bytes()}


def test_an_owner_whose_record_moved_on_leaves_nothing(place: Place, output: Path) -> None:
    def moved_on() -> NoReturn:
        raise Fenced

    with pytest.raises(Fenced):
        place.storage.upload(place.storage.begin(place.uri("a.mp4"), 1), output, moved_on, lambda done, total: None, Stop())
    assert place.everything() == {}


def test_nothing_is_sent_before_the_record_is_confirmed(place: Place, output: Path) -> None:
    seen: list[dict[str, bytes]] = []
    staging = place.storage.begin(place.uri("a.mp4"), 1)
    place.storage.upload(staging, output, lambda: seen.append(place.everything()), lambda done, total: None, Stop())
    assert all(not body for found in seen for body in found.values())


def test_an_upload_that_is_stopped_leaves_nothing(place: Place, output: Path) -> None:
    stop = Stop()
    staging = place.storage.begin(place.uri("a.mp4"), 1)
    with pytest.raises(CancelRequested):
        place.storage.upload(staging, output, lambda: None, lambda done, total: stop.set(CancelRequested()), stop)
        place.storage.publish(staging, False)
    assert place.everything() == {}


def test_outputs_of_two_jobs_at_one_destination_never_mix(place: Place, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"a" * 1000)
    b.write_bytes(b"b" * 1000)
    one, two = place.storage.begin(place.uri("x.mp4"), 1), place.storage.begin(place.uri("x.mp4"), 1)
    place.storage.upload(one, a, lambda: None, lambda done, total: None, Stop())
    place.storage.upload(two, b, lambda: None, lambda done, total: None, Stop())
    place.storage.publish(one, False)
    assert place.get("x.mp4") == a.read_bytes()
    with pytest.raises(InputError):
        place.storage.publish(two, False)
    assert place.everything() == {"x.mp4": a.read_bytes()}


def test_a_revoked_upload_is_never_published(place: Place, output: Path) -> None:
    staging = place.storage.begin(place.uri("a.mp4"), 1)
    place.storage.upload(staging, output, lambda: None, lambda done, total: None, Stop())
    place.storage.revoke(staging.uri, staging.handle)
    for overwrite in (False, True):
        with pytest.raises(Fenced):
            place.storage.publish(staging, overwrite)
    assert place.everything() == {}


def test_revoking_what_is_gone_or_never_began_does_nothing(place: Place, output: Path) -> None:
    staging = place.storage.begin(place.uri("a.mp4"), 1)
    send(place, staging, output)
    never = place.storage.begin(place.uri("a.mp4"), 2)
    for handle in (staging.handle, never.handle, never.handle, ""):
        place.storage.revoke(staging.uri, handle)
    assert place.everything() == {"a.mp4": output.read_bytes()}


def test_a_new_owner_takes_over_from_one_that_still_uploads(fenced: Place, output: Path, tmp_path: Path) -> None:
    old, new = fenced.storage.begin(fenced.uri("a.mp4"), 1), fenced.storage.begin(fenced.uri("a.mp4"), 2)
    better = tmp_path / "better"
    better.write_bytes(b"better")
    taken_over: list[bool] = []

    def take_over(done: int, total: int | None) -> None:
        if not taken_over:
            taken_over.append(True)
            fenced.storage.revoke(old.uri, old.handle)
            send(fenced, new, better)

    with pytest.raises(Fenced):
        fenced.storage.upload(old, output, lambda: None, take_over, Stop())
        fenced.storage.publish(old, True)
    assert fenced.everything() == {"a.mp4": b"better"}


def test_a_new_owner_recognises_an_output_that_was_published(fenced: Place, output: Path) -> None:
    digest, size = hashlib.sha256(output.read_bytes()).hexdigest(), output.stat().st_size
    staging = fenced.storage.begin(fenced.uri("a.mp4"), 1, UploadOptions(sha256=digest))
    assert not fenced.storage.carries(staging.uri, size, digest, staging.handle)
    send(fenced, staging, output)
    assert fenced.storage.carries(staging.uri, size, digest, staging.handle)
    assert not fenced.storage.carries(staging.uri, size - 1, digest, staging.handle)
    assert not fenced.storage.carries(staging.uri, size, "0" * 64, staging.handle)
