"""Local files: what a URI names, what is allowed, and what becomes of outputs when something goes wrong midway."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nommerd.errors import Fenced, InfrastructureError, InputError, NommerdError, Stop
from nommerd.storage import disk, same_place
from nommerd.storage.base import Staging
from nommerd.storage.file import FileStorage, path_of, uri_of

SIZE_MAX = 50_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def storage(root: Path) -> FileStorage:
    return FileStorage([root], SIZE_MAX)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output.mp4"
    path.write_bytes(os.urandom(1_000_000))
    return path


def fetch(storage: FileStorage, uri: str, target: Path) -> None:
    storage.fetch(uri, target, lambda done, total: None, Stop())


def upload(storage: FileStorage, dest: Path, path: Path) -> Staging:
    staging = storage.begin(uri_of(dest), 7)
    storage.upload(staging, path, lambda: None, lambda done, total: None, Stop())
    return staging


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def code(error: pytest.ExceptionInfo[NommerdError]) -> str:
    return error.value.code


@pytest.mark.parametrize(("uri", "path"), [
    ("file:///a/b.mov", b"/a/b.mov"), ("file:/a/b.mov", b"/a/b.mov"), ("FILE://localhost/a", b"/a"),
    ("file:////a//b", b"/a/b"),
    ("file:///100%25.mov", b"/100%.mov"), ("file:///a%20b", b"/a b"), ("file:///a b", b"/a b"),
    ("file:///a%3Fb%23c", b"/a?b#c"),
    ("file:///a%0Ab", b"/a\nb"), ("file:///-i", b"/-i"), ("file:///%FF", b"/\xff"), ("file:///é", "/é".encode()),
    ("file:///%C3%A9", "/é".encode()), ("file:///a+b", b"/a+b"), ("file:///a%252e", b"/a%2e")])
def test_a_uri_names_a_path(uri: str, path: bytes) -> None:
    assert os.fsencode(path_of(uri)) == path
    assert path_of(uri_of(path_of(uri))) == path_of(uri)


@pytest.mark.parametrize("uri", [
    "file:a.mov", "file:./a.mov", "file:", "file://", "file:///a?b", "file:///a#b",
    "file:///100%.mov", "file:///%zz", "file:///%00",
    "file:///a\nb",
    "file://host/a", "file://user:canary@host/a", "file:///\ud800", "/a/b", "http://h/a", ""])
def test_another_text_is_refused_with_what_to_write(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        path_of(uri, "dest")
    assert code(caught) == "dest.bad_uri"
    assert caught.value.hint
    assert "canary" not in str(caught.value)


NAMES = st.binary(min_size=1).filter(lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b".."))


@given(st.lists(NAMES, min_size=1))
def test_every_path_has_a_uri_that_names_it(parts: list[bytes]) -> None:
    path = Path(os.fsdecode(b"/" + b"/".join(parts)))
    assert path_of(uri_of(path)) == path
    assert uri_of(path).isascii()


@given(st.one_of(st.text(), st.text().map("file:///".__add__), st.text().map("file:".__add__)))
def test_every_other_text_is_refused_or_absolute(uri: str) -> None:
    with suppress(InputError):
        assert path_of(uri).is_absolute()


def test_without_roots_nothing_is_allowed_and_the_setting_is_named(tmp_path: Path) -> None:
    storage = FileStorage([], SIZE_MAX)
    for check in (storage.check_source, storage.check_dest):
        with pytest.raises(InputError, match="outside_roots") as caught:
            check(uri_of(tmp_path / "a.mov"))
        assert "storage.file_roots" in caught.value.hint


@pytest.mark.parametrize("way", ["../secret.mov", "x/../../secret.mov", "%2e%2e/secret.mov", "..%2Fsecret.mov", "link.mov",
                                 "up/secret.mov", "chain.mov"])
def test_no_way_leads_out_of_a_root(storage: FileStorage, root: Path, tmp_path: Path, way: str) -> None:
    (tmp_path / "secret.mov").write_bytes(b"secret")
    (root / "link.mov").symlink_to(tmp_path / "secret.mov")
    (root / "chain.mov").symlink_to("link.mov")
    (root / "up").symlink_to("..")
    with pytest.raises(InputError) as caught:
        fetch(storage, uri_of(root) + "/" + way, tmp_path / "target")
    assert code(caught) == "source.outside_roots"
    assert not (tmp_path / "target").exists()


def test_whether_a_file_outside_exists_cannot_be_found_out(storage: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    said = []
    for name in ("there", "gone!"):
        with pytest.raises(InputError) as caught:
            fetch(storage, uri_of(tmp_path / name), tmp_path / "target")
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize("way", ["data/keys", "data/work/job/out.mp4", "data", "link/keys", "./x/../data/keys", "token"])
def test_our_own_files_stay_closed_below_a_root(tmp_path: Path, root: Path, output: Path, way: str) -> None:
    (root / "data").mkdir()
    for own in (root / "data" / "keys", root / "token"):
        own.write_bytes(b"ours")
    (root / "link").symlink_to("data")
    storage = FileStorage([root, "/"], SIZE_MAX, closed=[root / "data", root / "token"])
    for check in (storage.check_source, storage.check_dest):
        with pytest.raises(InputError, match="outside_roots"):
            check(uri_of(root / way))
    with pytest.raises(InputError, match="outside_roots"):
        storage.exists(uri_of(root / way))
    storage.check_dest(uri_of(root / "database.mp4"))
    storage.check_dest(uri_of(root / "token.mp4"))


def test_a_root_that_is_a_link_may_be_led_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nommerd.storage.file.ROOTS_SECONDS", 0.0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "root").symlink_to("one")
    storage = FileStorage([tmp_path / "root"], SIZE_MAX)
    storage.check_source(uri_of(tmp_path / "root" / "a.mov"))
    (tmp_path / "root").unlink()
    (tmp_path / "root").symlink_to("two")
    storage.check_source(uri_of(tmp_path / "root" / "a.mov"))
    storage.check_source(uri_of(tmp_path / "two" / "a.mov"))
    with pytest.raises(InputError, match="outside_roots"):
        storage.check_source(uri_of(tmp_path / "one" / "a.mov"))


def test_a_sibling_with_the_same_beginning_is_outside(storage: FileStorage, root: Path) -> None:
    with pytest.raises(InputError, match="outside_roots"):
        storage.check_source(uri_of(root.with_name("root-2") / "a.mov"))


def test_a_link_within_a_root_is_followed_to_the_file(storage: FileStorage, root: Path, tmp_path: Path) -> None:
    (root / "a.mov").write_bytes(b"media")
    (root / "link.mov").symlink_to("a.mov")
    fetch(storage, uri_of(root / "link.mov"), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"media"
    assert not (tmp_path / "target").is_symlink()


def test_a_root_may_be_one_file_there_or_yet_to_come(tmp_path: Path, output: Path) -> None:
    source, dest = tmp_path / "in.mov", tmp_path / "out.mp4"
    source.write_bytes(b"media")
    storage = FileStorage([source, dest], SIZE_MAX)
    fetch(storage, uri_of(source), tmp_path / "target")
    storage.publish(upload(storage, dest, output), False)
    assert dest.read_bytes() == output.read_bytes()
    with pytest.raises(InputError, match="outside_roots"):
        storage.check_dest(uri_of(tmp_path / "other.mp4"))


@pytest.mark.parametrize("kind", ["fifo", "socket", "folder", "device"])
def test_only_regular_files_are_sources_or_replaced(root: Path, tmp_path: Path, output: Path, kind: str) -> None:
    thing = root / "thing"
    listener = socket.socket(socket.AF_UNIX)
    if kind == "fifo":
        os.mkfifo(thing)
    elif kind == "socket":
        folder = os.open(root, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/thing")
        os.close(folder)
    elif kind == "folder":
        thing.mkdir()
    else:
        thing = Path("/dev/zero")
    storage = FileStorage([root, "/dev"], SIZE_MAX)
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        fetch(storage, uri_of(thing), tmp_path / "target")
    assert code(caught) == "source.not_a_file"
    with pytest.raises(InputError) as caught:
        storage.begin(uri_of(thing), 1)
    assert code(caught) == "dest.not_a_file"
    assert time.monotonic() - began < 5
    assert not (tmp_path / "target").exists()
    listener.close()


def test_a_folder_that_takes_the_name_meanwhile_is_not_replaced(storage: FileStorage, root: Path, output: Path) -> None:
    staging = upload(storage, root / "a", output)
    (root / "a").mkdir()
    with pytest.raises(InputError, match="not_a_file"):
        storage.publish(staging, True)
    assert listing(root) == ["a"]


def test_a_source_that_grows_while_it_is_copied_is_retried_later(storage: FileStorage, root: Path, tmp_path: Path) -> None:
    source = root / "a.mov"
    source.write_bytes(bytes(20_000_000))

    def grow(done: int, total: int | None) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(InfrastructureError) as caught:
        storage.fetch(uri_of(source), tmp_path / "target", grow, Stop())
    assert (code(caught), caught.value.retryable) == ("source.changed", True)
    assert not (tmp_path / "target").exists()


def test_a_source_cut_short_while_it_is_copied_is_retried_later(storage: FileStorage, root: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    source = root / "a.mov"
    source.write_bytes(bytes(20_000_000))
    with pytest.raises(InfrastructureError, match="changed"):
        storage.fetch(uri_of(source), tmp_path / "target", lambda done, total: os.truncate(source, 10), Stop())
    assert not (tmp_path / "target").exists()


def test_a_copy_is_no_second_name_of_the_source(storage: FileStorage, root: Path, tmp_path: Path) -> None:
    (root / "a.mov").write_bytes(b"before")
    fetch(storage, uri_of(root / "a.mov"), tmp_path / "target")
    (root / "a.mov").write_bytes(b"after!")
    assert (tmp_path / "target").read_bytes() == b"before"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, 0])
def test_copying_works_where_the_kernel_does_not_help(storage: FileStorage, root: Path, tmp_path: Path, number: int,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def helpless(source: int, target: int, count: int) -> int:
        if number:
            raise OSError(number, "no")
        return 0  # what some filesystems answer to every call

    monkeypatch.setattr(os, "copy_file_range", helpless)
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    body = os.urandom(3_000_000)
    (root / "a.mov").write_bytes(body)
    fetch(storage, uri_of(root / "a.mov"), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == body


@pytest.fixture(params=[errno.ENOSPC, errno.EDQUOT])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: int, target: int, count: int) -> int:
        os.write(target, b"a little")
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    monkeypatch.setattr(disk, "_copy_some", full)


def test_a_full_disk_is_retryable_and_leaves_nothing(storage: FileStorage, root: Path, tmp_path: Path, output: Path,
                                                    full_disk: None) -> None:
    (root / "a.mov").write_bytes(b"media")
    with pytest.raises(InfrastructureError) as caught:
        fetch(storage, uri_of(root / "a.mov"), tmp_path / "target")
    assert (code(caught), caught.value.retryable) == ("node.disk_full", True)
    with pytest.raises(InfrastructureError) as caught:
        upload(storage, root / "b.mp4", output)
    assert (code(caught), caught.value.retryable) == ("dest.disk_full", True)
    assert listing(root) == ["a.mov"]
    assert not (tmp_path / "target").exists()


def test_what_may_not_be_read_or_written_is_the_callers_to_mend(root: Path) -> None:
    error = disk.explain(PermissionError(errno.EACCES, "no"), "dest", "/x")
    assert (type(error), error.code) == (InputError, "dest.forbidden")
    error = disk.explain(OSError(errno.EROFS, "no"), "source", "/x")
    assert (type(error), error.code) == (InputError, "source.forbidden")
    assert disk.explain(OSError(errno.EACCES, "no"), "node", "The workspace").retryable


def test_missing_folders_below_a_root_are_made(storage: FileStorage, root: Path, output: Path) -> None:
    storage.publish(upload(storage, root / "2024" / "may" / "a.mp4", output), False)
    assert (root / "2024" / "may" / "a.mp4").read_bytes() == output.read_bytes()
    assert listing(root / "2024" / "may") == ["a.mp4"]


def test_a_file_where_a_folder_should_be_is_a_bad_destination(storage: FileStorage, root: Path, output: Path) -> None:
    (root / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"dest\.bad_uri"):
        upload(storage, root / "file" / "a.mp4", output)


def test_what_cannot_become_a_destination_is_said_before_anything_is_encoded(storage: FileStorage, root: Path) -> None:
    (root / "folder").mkdir()
    (root / "file").write_bytes(b"")
    os.mkfifo(root / "pipe")
    for name, code in (("folder", "dest.not_a_file"), ("pipe", "dest.not_a_file"), ("file/a.mp4", "dest.bad_uri")):
        with pytest.raises(InputError, match=code.replace(".", r"\.")):
            storage.exists(uri_of(root / name))


def test_a_link_at_the_destination_is_replaced_and_its_target_kept(storage: FileStorage, root: Path, tmp_path: Path,
                                                                  output: Path) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    (root / "a.mp4").symlink_to(tmp_path / "victim")
    staging = upload(storage, root / "a.mp4", output)
    with pytest.raises(InputError, match="exists"):
        storage.publish(staging, False)
    storage.publish(upload(storage, root / "a.mp4", output), True)
    assert (tmp_path / "victim").read_bytes() == b"kept"
    assert not (root / "a.mp4").is_symlink()


def test_a_destination_needs_a_name_except_for_several_outputs(storage: FileStorage, root: Path) -> None:
    storage.check_dest(uri_of(root / "new") + "/")
    assert storage.exists(uri_of(root) + "/") is False
    for end in ("/", "/x/", "/..", "/x/..", "/.", "/x/.", "/x/%2E", "/x%2F", "/" + "n" * 256):
        with pytest.raises(InputError):
            storage.begin(uri_of(root) + end, 1)


@pytest.mark.parametrize("name", ["n" * 251 + ".mp4", "é" * 127, os.fsdecode(b"\xff\xfe.mp4"), "a\nb.mp4", ".mp4"])
def test_any_name_can_be_staged_and_its_handle_kept_as_json(storage: FileStorage, root: Path, output: Path, name: str) -> None:
    staging = upload(storage, root / name, output)
    assert len(os.fsencode(staging.handle)) <= 255
    staging.handle.encode("utf-8")
    assert staging.handle.startswith(".")
    assert ".7-" in staging.handle
    storage.publish(staging, False)
    assert listing(root) == [name]


def test_a_worker_killed_between_link_and_unlink_has_published(storage: FileStorage, root: Path, output: Path) -> None:
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    staging = upload(storage, root / "a.mp4", output)
    os.link(root / staging.handle, root / "a.mp4")  # and then it died
    storage.revoke(staging.uri, staging.handle)
    assert storage.carries(staging.uri, output.stat().st_size, digest, staging.handle)
    assert listing(root) == ["a.mp4"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_publishing_again_after_the_link_succeeds(storage: FileStorage, root: Path, output: Path, overwrite: bool) -> None:
    staging = upload(storage, root / "a.mp4", output)
    os.link(root / staging.handle, root / "a.mp4")
    storage.publish(staging, overwrite)
    assert listing(root) == ["a.mp4"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_removed_under_an_upload_is_fenced_not_an_accident(storage: FileStorage, root: Path, output: Path,
                                                                  overwrite: bool) -> None:
    staging = upload(storage, root / "f" / "a.mp4", output)
    storage.revoke(staging.uri, staging.handle)
    (root / "f").rmdir()
    with pytest.raises(Fenced):
        storage.publish(staging, overwrite)
    storage.revoke(staging.uri, staging.handle)


@pytest.mark.parametrize("renameat2", [True, False])
def test_filesystems_without_hard_links_still_replace_nothing(storage: FileStorage, root: Path, output: Path, renameat2: bool,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    def unable_too(*args: object) -> None:
        raise OSError(errno.EINVAL, "nor this")

    monkeypatch.setattr(os, "link", unable)
    if not renameat2:
        monkeypatch.setattr(disk, "_rename_new", unable_too)
    storage.publish(upload(storage, root / "a.mp4", output), False)
    assert (root / "a.mp4").read_bytes() == output.read_bytes()
    (root / "b.mp4").write_bytes(b"old")
    with pytest.raises(InputError, match="exists"):
        storage.publish(upload(storage, root / "b.mp4", output), False)
    revoked = upload(storage, root / "c.mp4", output)
    storage.revoke(revoked.uri, revoked.handle)
    with pytest.raises(Fenced):
        storage.publish(revoked, False)
    assert listing(root) == ["a.mp4", "b.mp4"]
    assert (root / "b.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("handle", ["../a.part", "a.mp4", ".", "..", ".a\0.part", "/etc/.x.part"])
def test_a_handle_that_is_none_of_ours_removes_nothing(storage: FileStorage, root: Path, handle: str) -> None:
    (root / "a.mp4").write_bytes(b"kept")
    with pytest.raises(NommerdError):
        storage.revoke(uri_of(root / "a.mp4"), handle)
    assert (root / "a.mp4").read_bytes() == b"kept"


def test_one_place_is_recognised_in_any_spelling(root: Path) -> None:
    source = root / "a b.mov"
    source.write_bytes(b"media")
    (root / "link").symlink_to("a b.mov")
    os.link(source, root / "second")
    for other in (uri_of(source), f"file:{root}/a b.mov", f"file://localhost{root}/x/../a%20b.mov", uri_of(root / "link"),
                  uri_of(root / "second")):
        assert same_place(uri_of(source), other), other
    assert not same_place(uri_of(source), uri_of(root / "c.mov"))
    assert not same_place(uri_of(root / "gone.mov"), uri_of(root / "c.mov"))
    assert same_place("https://u:p@Host/a?x=1", "https://host:443/a")
    assert same_place("https://host/%61%20b", "https://host/a%20b")
    assert not same_place("https://host/a", "http://host/a")
    assert not same_place("https://host/a", "https://host/b")
    assert not same_place("http://[bad", "http://[bad")
