"""What is made beside a file's final name, in folders where others make things too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nommerd import scratch
from tests.media import missing


def test_what_others_gave_such_names_is_neither_waited_for_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    pipe, link, foreign = (tmp_path / f".b.{letter * 12}" for letter in "abc")
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "theirs")
    foreign.write_text("x")
    if os.geteuid() == 0:
        os.chown(foreign, 65534, 65534)
    for path in (tmp_path / "theirs", pipe, foreign):
        os.utime(path, (1, 1))
    with scratch.beside(tmp_path / "b"):
        assert os.path.lexists(pipe)
        assert os.path.lexists(link)
        assert foreign.exists() == (os.geteuid() == 0)


def test_the_folder_that_a_killed_backup_left_goes_with_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / ".b.0123456789ab"
    left.mkdir()
    (left / "nommerd.db").write_text("secret")
    os.utime(left, (1, 1))
    with scratch.beside(tmp_path / "b", folder=True) as held:
        os.utime(held, (1, 1))
        with scratch.beside(tmp_path / "b"):
            assert held.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_is_not_taken_for_left_however_long_it_takes(tmp_path: Path) -> None:
    with scratch.beside(tmp_path / "b") as first:
        os.utime(first, (1, 1))
        with scratch.beside(tmp_path / "b") as second:
            assert first.exists()
            assert second.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fault", "is_told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_disk_that_fails_is_told_and_a_file_system_that_cannot_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                       fault: int, is_told: bool) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", fsync)
    if is_told:
        with pytest.raises(OSError, match="error"):
            scratch.sync_folder(tmp_path)
    else:
        scratch.sync_folder(tmp_path)
    assert synced == [tmp_path]


def test_a_folder_that_may_not_be_listed_is_left_to_itself(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("root's rights")
    tmp_path.chmod(0o300)
    os.seteuid(65534)
    try:
        scratch.sync_folder(tmp_path)
    finally:
        os.seteuid(0)
