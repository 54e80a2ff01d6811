"""How the C library keeps memory that was freed."""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MOST_KEPT_BYTES: Final = 64 << 20
_MOST_FROM_HEAP_BYTES: Final = 32 << 20  # glibc takes no more


def keep_freed_memory() -> None:
    """Have the process keep up to 64 MiB of freed memory at each heap's end, and take pieces of up to 32 MiB from there.

    LMDB allocates each value that it writes, and frees it at the commit. As glibc comes, that memory goes back to the system every
    time and is made of new pages the next time, which costs as much as compressing what is written into it. glibc sets itself so
    as soon as any piece of 32 MiB was freed, as happens in a process that computes; here it need not happen first. For the whole process,
    and for good. Does nothing where there is no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST_FROM_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES)
