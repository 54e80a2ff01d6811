"""Memory to read files into, past the page cache: in huge pages, and used again."""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np

from kvstore.pages import populated

_HUGE_PAGE_BYTES: Final = 2 << 20


class Buffers:
    """Lends memory, which it keeps when it comes back. Any thread may call it.

    To take huge pages from the system takes milliseconds, where it has to make them first: as long as reading what they are for.
    """

    def __init__(
        self, least_bytes: int, most_bytes: int, is_awaited: Callable[[int, int], bool] = lambda *_: False
    ) -> None:
        """`least_bytes`: of each buffer. No more than `most_bytes` are kept in all. `is_awaited`: whether something is still to be read to
        so many bytes at an address.
        """
        self._least_bytes, self._most_bytes, self._is_awaited = least_bytes, most_bytes, is_awaited
        self._lock = threading.Lock()  # two callers would be given the same
        self._free: list[memoryview] = []
        self._left: list[memoryview] = []
        """Never lent again: something may still be read to these."""

    def make(self, number: int) -> None:
        """Have so many lie ready, none of which is lent yet."""
        self._free = [huge_pages(self._least_bytes) for _ in range(number)]

    @contextmanager
    def lent(self, num_bytes: int) -> Iterator[memoryview]:
        """So many bytes of anything, until the body of the `with` ends. Nothing may be on its way to them then: only where it is interrupted
        (KeyboardInterrupt), and may not have come to see to that, are they asked about.
        """
        with self._lock:
            whole = self._free.pop() if self._free else None
        if whole is None or len(whole) < num_bytes:
            whole = huge_pages(max(num_bytes, self._least_bytes))
        is_awaited = False
        try:
            yield whole[:num_bytes]
        except KeyboardInterrupt:
            is_awaited = self._is_awaited(np.frombuffer(whole, np.uint8).ctypes.data, len(whole))
            raise
        finally:
            with self._lock:
                if is_awaited:
                    self._left.append(whole)
                elif sum(map(len, self._free)) + len(whole) <= self._most_bytes:
                    self._free.append(whole)


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
