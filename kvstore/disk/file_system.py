"""Which file system a directory is on. LMDB needs one whose memory maps and locks are this machine's own."""

import os
from pathlib import Path
from typing import Final

NETWORK: Final = frozenset(
    {
        "9p",  # also the drives of Windows under WSL 2
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.mountpoint-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "smb3",
        "smbfs",
    }
)
"""Types, as the system names them, of file systems that another machine has as well, or that go through one."""


def file_system(folder: str | os.PathLike[str]) -> str | None:
    """The type of the file system that a directory is on; None where the system does not say.

    Asks for the mount of the opened directory and not of its path: symbolic links, and mounts that lie over others, are
    the system's to resolve.
    """
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fdinfo = Path(f"/proc/self/fdinfo/{opened}").read_text("utf-8")
        finally:
            os.close(opened)
        return type_of_mount(mount_id(fdinfo), Path("/proc/self/mountinfo").read_text("utf-8", "replace"))
    except OSError:
        return None


def mount_id(fdinfo: str) -> str | None:
    """What /proc/self/fdinfo says of an open file: the number of its mount."""
    for line in fdinfo.split("\n"):
        name, _, value = line.partition(":")
        if name == "mnt_id":
            return value.strip()
    return None


def type_of_mount(number: str | None, mountinfo: str) -> str | None:
    r"""The type of the file system of a mount, by /proc/self/mountinfo: see proc(5). None if it is not listed.

    26 20 0:31 /exported /mnt/a\040b rw,relatime shared:7 - nfs4 server:/exported rw,vers=4.2
    number, parent, device, root, mount point, options, any number of tags, a dash, type, source, options: blanks in any of
    them are written as \040.
    """
    for line in mountinfo.split("\n"):
        mount, dash, source = line.partition(" - ")
        if dash and mount.split(" ", 1)[0] == number:
            return source.split(" ", 1)[0]
    return None
