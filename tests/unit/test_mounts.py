"""Which mount a path lies on, by texts of the kernel's; SQLite is refused where it may be on another machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nommerd import mounts, sqlite
from nommerd.errors import ConfigError
from nommerd.mounts import Mount, mount_of, parse
from tests.unit.cli.scripted import here

TEXT = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:40 / /srv rw,relatime shared:20 master:3 - nfs4 files:/export rw,vers=4.2
41 40 8:1 / /srv/local\040disk rw - xfs /dev/sda1 rw
42 27 0:42 / /mnt/share rw - cifs //files/share rw
43 27 0:43 / /mnt/twice rw - ext4 /dev/sdb1 rw
44 27 0:44 / /mnt/twice rw - fuse.sshfs me@host: rw
45 27 0:45 / /mnt/c rw - 9p C:\134 rw
46 27 0:46 / /mnt/usb rw - fuseblk /dev/sdc1 rw
47 27 0:47 / /var/lib/containers rw - fuse.fuse-overlayfs fuse-overlayfs rw
48 27 0:48 / /mnt/mosaic rw - ceph 10.0.0.1:/ rw
49 27 0:49 / /mnt/fast rw - lustre 10.0.0.1@tcp:/fs rw
nonsense
50 27 - short
"""


@pytest.mark.parametrize(("path", "point", "network"), [
    ("/", "/", False), ("/home/me/.local", "/", False), ("/srv", "/srv", True), ("/srv/data/nommerd.db", "/srv", True),
    ("/srvx/data", "/", False), ("/srv/local disk/nommerd.db", "/srv/local disk", False), ("/mnt/share/x", "/mnt/share", True),
    ("/mnt/twice/x", "/mnt/twice", True), ("/mnt/c/Users", "/mnt/c", True), ("/mnt/usb/x", "/mnt/usb", False),
    ("/var/lib/containers/x", "/var/lib/containers", False), ("/mnt/mosaic/x", "/mnt/mosaic", True),
    ("/mnt/fast/x", "/mnt/fast", True)])
def test_a_path_lies_on_the_deepest_and_latest_mount(path: str, point: str, network: bool) -> None:
    found = mount_of(path, parse(TEXT))
    assert found is not None
    assert (found.point, found.is_network) == (point, network)


def test_lines_of_another_form_are_left_out() -> None:
    assert len(parse(TEXT)) == 12
    assert mount_of("/x", []) is None
    assert Mount("/", "fuse", "x").is_network


def test_this_machines_own_mounts_are_read() -> None:
    found = mounts.find(Path("/proc/self"))
    assert found is not None
    assert found.type == "proc"
    assert mounts.find(Path("/no/such/folder")) == mounts.find(Path("/"))


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of which the kernel is said to have it mounted from elsewhere."""
    share = tmp_path / "share"
    share.mkdir()
    info = tmp_path / "mountinfo"
    info.write_text(f"27 1 254:0 / / rw - ext4 /dev/vda rw\n40 27 0:40 / {os.path.realpath(share)} rw - nfs4 files:/x rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", info)
    return share


def test_no_database_is_opened_or_locked_there(network: Path) -> None:
    for open_it in (sqlite.Database.open, sqlite.exclusive):
        with pytest.raises(ConfigError) as caught:
            open_it(network / "nommerd.db")
        assert caught.value.code == "config.network_database"
    assert list(network.iterdir()) == []


def test_up_and_the_doctor_refuse_it(network: Path, tmp_path: Path) -> None:
    config = tmp_path / "nommerd.yaml"
    config.write_text(f"paths: {{data: {network}/data}}\napi: {{port: 0}}\n")
    ended = here(None, "up", "-c", str(config))
    assert ended.returncode == 2
    assert "config.network_database" in ended.stderr and "a network file system (nfs4)" in ended.stderr
    assert list(network.iterdir()) == []
