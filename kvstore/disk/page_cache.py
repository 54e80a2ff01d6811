"""What the system keeps of files in memory."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

import numpy as np

# keeps the GIL: a call takes less than giving it up, and waiting for it behind other readers
_libc: Final = ctypes.PyDLL(None)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def pages_absent(address: int, num_bytes: int) -> int:
    """How many of the pages with these bytes, which a file is mapped at, are not in memory.

    0 also where the system does not tell, as it does not for a file that the process may not write.
    """
    begin = address - address % mmap.PAGESIZE
    num_pages = -(-(address + num_bytes - begin) // mmap.PAGESIZE)
    pages = bytearray(num_pages)
    if _libc.mincore(begin, num_pages * mmap.PAGESIZE, (ctypes.c_ubyte * num_pages).from_buffer(pages)):
        return 0
    return pages.count(0)  # of each only the lowest bit means something, and no kernel sets another


def share_absent(path: Path) -> float:
    """How much of a file is not in memory, from 0 to 1; 0 for an empty one."""
    with path.open("rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if not num_bytes:
            return 0.0
        with mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ) as mapping:
            view = np.frombuffer(mapping, np.uint8)
            absent = pages_absent(view.ctypes.data, num_bytes)
            del view  # or the mapping could not be closed
    return absent / -(-num_bytes // mmap.PAGESIZE)


def drop(path: Path) -> None:
    """Have what is in memory of a file written, and let go of it, save what is mapped and has been touched."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
