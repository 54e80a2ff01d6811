"""A disk tier that is open, and of whose files the page cache has nothing: its next reads come from the disk."""

import ctypes
import tempfile
from pathlib import Path
from typing import Final

from kvstore.disk.page_cache import drop, share_absent

_MADV_DONTNEED: Final = 4
_LEAST_ABSENT: Final = 0.9
_libc: Final = ctypes.CDLL(None, use_errno=True)


def can_drop(folder: Path | str) -> bool:
    """Whether the system forgets files there: it does not where they are in memory alone."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        probe = Path(scratch, "probe")
        probe.write_bytes(bytes(1 << 16))
        drop(probe)
        return share_absent(probe) == 1


def drop_disk_tier(disk_path: Path | str) -> None:
    """Have the system forget the blocks of the tier there, which nobody reads or writes meanwhile.

    Raises RuntimeError if it keeps a tenth of the file or more.
    """
    path = Path(disk_path, "v1", "payload", "data.mdb")
    _let_go(path)
    drop(path)
    if (absent := share_absent(path)) < _LEAST_ABSENT:
        raise RuntimeError(f"{1 - absent:.0%} of {path} stay in memory")


def _let_go(path: Path) -> None:
    """Of what this process has mapped of a file and touched, which the system would keep: it comes back when it is touched."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, _, _, _, _, *name = line.split(maxsplit=5)
        if name == [str(path)]:
            begin, end = (int(one, 16) for one in place.split("-"))
            _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)
