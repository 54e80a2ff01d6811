"""Memory to read files into, past the page cache: in huge pages."""

import mmap
from contextlib import suppress
from typing import Final

import numpy as np

from kvstore.pages import populated

_HUGE_PAGE_BYTES: Final = 2 << 20


def huge_pages(num_bytes: int) -> memoryview:
    """At least so many bytes of zeros, in huge pages where the system has them: requests into these are larger, and fewer."""
    num_bytes = -(-num_bytes // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE_BYTES
    populated(whole.ctypes.data + start, num_bytes)
    return whole[start : start + num_bytes].data
