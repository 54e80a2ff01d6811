"""Which file system a directory is on, by what the system says, and what is refused."""

from pathlib import Path

import pytest

from kvstore import StoreFailed
from kvstore.disk import directory
from kvstore.disk.file_system import NETWORK, file_system, mount_id, type_of_mount

MOUNTINFO = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 27 0:40 / /srv rw,relatime shared:5 - nfs4 server:/srv rw,vers=4.2,addr=10.0.0.1
32 31 254:16 / /srv/kv rw,relatime shared:6 master:2 - xfs /dev/vdb rw
33 32 0:41 / /srv/kv/a\040-\040b rw - cifs //server/share\040of\040mine rw
34 27 0:42 / /var/lib/docker/overlay2/x/merged rw - overlay overlay rw,lowerdir=/l,upperdir=/u
35 27 0:40 /models /home/me/models rw,relatime - nfs4 server:/srv rw
36 27 254:0 /data /bind rw,relatime - ext4 /dev/vda rw
37 27 0:43 / /home/me/far rw,nosuid,nodev - fuse.sshfs me@far:/ rw,user_id=0
38 31 0:44 / /srv rw - tmpfs over-the-nfs rw
3 27 0:45 / /tmp rw - btrfs /dev/vdc rw,subvol=/@tmp
"""


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("27", "ext4"),
        ("31", "nfs4"),
        ("32", "xfs"),  # on a mount point inside of NFS
        ("33", "cifs"),
        ("34", "overlay"),
        ("35", "nfs4"),  # a bind mount of a part of it
        ("36", "ext4"),
        ("37", "fuse.sshfs"),
        ("38", "tmpfs"),  # over the NFS, at the same place
        ("3", "btrfs"),
        ("99", None),
        ("2", None),
        (None, None),
        ("", None),
    ],
)
def test_a_mount_is_found_by_its_number(number, kind):
    assert type_of_mount(number, MOUNTINFO) == kind


@pytest.mark.parametrize("mountinfo", ["", "\n", "27", "27 1 254:0 / / rw", " - ext4 /dev/vda rw", "- - - -"])
def test_what_is_no_list_of_mounts_says_nothing(mountinfo):
    assert type_of_mount("27", mountinfo) is None


def test_the_number_of_a_mount_is_read_from_what_is_said_of_an_open_file():
    assert mount_id("pos:\t0\nflags:\t02300000\nmnt_id:\t27\nino:\t131\n") == "27"
    assert mount_id("pos:\t0\nflags:\t02300000\n") is None


def test_the_file_system_of_a_directory_that_is_there():
    """As far as this machine says; through a symbolic link as well."""
    assert file_system("/proc") in ("proc", None)
    assert file_system("/proc/self/cwd") == file_system(Path.cwd())


def test_what_cannot_be_opened_and_a_system_without_proc_say_nothing(tmp_path, monkeypatch):
    assert file_system(tmp_path / "not there") is None

    def no_proc(path, encoding):
        raise FileNotFoundError(path)

    descriptors = set(Path("/dev/fd").iterdir())
    monkeypatch.setattr(Path, "read_text", no_proc)
    assert file_system(tmp_path) is None
    assert set(Path("/dev/fd").iterdir()) == descriptors


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_a_network_file_system_is_refused_and_nothing_is_left_there(open_lmdb, tmp_path, monkeypatch, kind):
    asked = []
    monkeypatch.setattr(directory, "file_system", lambda folder: asked.append(folder) or kind)
    with pytest.raises(
        StoreFailed, match=f"is on {kind}, a network file system, .* choose a local"
    ) as caught:
        open_lmdb()
    assert not caught.value.temporary
    assert asked == [tmp_path / "v1"]
    assert list((tmp_path / "v1").iterdir()) == []


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.of-tomorrow", None]
)
def test_others_are_used_those_that_nobody_knows_as_well(open_lmdb, monkeypatch, kind):
    monkeypatch.setattr(directory, "file_system", lambda folder: kind)
    assert kind not in NETWORK
    open_lmdb().check()
