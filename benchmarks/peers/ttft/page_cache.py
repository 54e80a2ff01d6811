"""Files that the next reader must get from the disk. Linux; needs nothing but Python."""

import ctypes
import mmap
import os
from pathlib import Path

_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)


def drop(directory: Path) -> dict[str, int]:
    """Write the directory's files down and have the system forget their pages. Returns their bytes, and those that it
    kept all the same.

    Pages that this process has mapped are let go first, as the system keeps what is mapped: they come back when they are
    touched.
    """
    paths = [path for path in directory.rglob("*") if path.is_file()]
    _unmap(directory)
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)
    return {
        "files_bytes": sum(path.stat().st_blocks * 512 for path in paths),
        "kept_bytes": sum(map(cached_bytes, paths)),
    }


def cached_bytes(path: Path) -> int:
    """How much of a file the page cache holds."""
    size = path.stat().st_size
    if not size:
        return 0
    with (
        path.open("rb") as file,
        mmap.mmap(
            file.fileno(), size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE
        ) as pages,
    ):
        told = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        start = (ctypes.c_ubyte * size).from_buffer(pages)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), told)
        del start
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        return sum(page & 1 for page in bytes(told)) * mmap.PAGESIZE


def _unmap(directory: Path) -> None:
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, _, _, _, _, *name = line.split(maxsplit=5)
        if name and Path(name[0]).is_relative_to(directory):
            start, end = (int(one, 16) for one in place.split("-"))
            _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)
