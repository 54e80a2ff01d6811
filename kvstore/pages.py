"""Memory whose pages are taken from the system before anything is copied there, and beside whatever else runs."""

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvstore.closing import Closing

BITE_BYTES: Final = 4 << 20
"""Taken by one call, in 2 ms: nobody in this process can map or unmap memory, as starting a thread does, while one runs."""

_MADV_DONTNEED: Final = 4
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; the mmap module of Python 3.11 has no name for it

# Not by way of `mmap.madvise`: that keeps the GIL.
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Pages:
    """`num_bytes` of zeros, at least one, that begin at a whole page.

    A page is taken from the system when it is first touched, which stops whoever does; `take` does it before. The memory is
    private to the process, as taking and giving back what is shared costs twice the time, and in small pages unless the
    whole system is set otherwise: making huge ones may take seconds. It is given back when no array shows it any more.
    Raises OSError with ENOMEM where there is not so much.
    """

    def __init__(self, num_bytes: int) -> None:
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes: NDArray[np.uint8] = np.frombuffer(mapping, dtype=np.uint8)
        """All of it; what it is cut into keeps the memory as well."""

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self.bytes.ctypes.data)

    def take(self, begin: int, end: int) -> None:
        """Take the pages of these bytes now; `begin` is at a whole page. Keeps what they hold. Releases the GIL.

        Any thread may call it, while others read and write the same bytes if they `may_be_used_meanwhile`: what there is no
        memory for then is left to who touches it.
        """
        for first in range(begin, end, BITE_BYTES):
            num_bytes = min(BITE_BYTES, end - first)
            if not (populated(self.address + first, num_bytes) or self.may_be_used_meanwhile):
                pages = self.bytes[first : first + num_bytes : mmap.PAGESIZE]
                np.bitwise_or(pages, 0, out=pages)

    @property
    def may_be_used_meanwhile(self) -> bool:
        """Whether the kernel takes pages by itself (Linux 5.14). Else `take` writes to each what it has read there: what others had written
        in between would be lost.
        """
        return populated(self.address, mmap.PAGESIZE)

    def give_back(self, begin: int) -> None:
        """Have the system take the whole pages from this byte on back, where it does that: they are zeros again when touched."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < len(self.bytes):
            _libc.madvise(self.address + first, len(self.bytes) - first, _MADV_DONTNEED)


class Taking(Closing):
    """A thread that takes the first `num_bytes` of memory, until it has them or is closed."""

    def __init__(self, pages: Pages, num_bytes: int) -> None:
        """It begins at once."""
        self._pages, self._end = pages, num_bytes
        self._lock = threading.Lock()
        self._begun_bytes = 0
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._thread = threading.Thread(target=self._run, name="kvtide-taking", daemon=True)
        self._thread.start()

    @property
    def taken_bytes(self) -> int:
        """Taken by now, a bite or two of it maybe not quite."""
        return self._begun_bytes

    @property
    def left_bytes(self) -> int:
        """Still to be taken."""
        return self._end - self._begun_bytes

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Nothing is taken meanwhile save the bite at hand: all cores are others'."""
        self._goes_on.clear()
        try:
            yield
        finally:
            self._goes_on.set()

    def wait(self) -> None:
        """Return when all is taken. It must not be resting for good."""
        self._thread.join()

    def close(self) -> None:
        """End it where it is."""
        with self._lock:
            self._end = self._begun_bytes
        self._goes_on.set()
        self._thread.join()

    def _run(self) -> None:
        while (bite := self._next_bite()) is not None:
            self._pages.take(*bite)
            self._goes_on.wait()

    def _next_bite(self) -> tuple[int, int] | None:
        with self._lock:
            begin, end = self._begun_bytes, min(self._begun_bytes + BITE_BYTES, self._end)
            self._begun_bytes = end
        return (begin, end) if begin < end else None


def populated(address: int, num_bytes: int) -> bool:
    """Take the pages of these bytes, which begin at a page, without the GIL. False where the kernel cannot do that."""
    return not _libc.madvise(address, num_bytes, _MADV_POPULATE_WRITE)
