"""Memory for arrays that grow without being copied."""

import mmap
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE_FROM_BYTES: Final = 4 << 20
"""From here on in huge pages, if the system has them: as numpy asks for its own arrays."""


class GrowingPages:
    """Zeros, which take memory once they are written to, and of which more can be had at any time: the system moves pages, in a
    hundredth of the time that a copy takes, and all of it on the one thread that nobody may keep waiting.

    Not thread-safe.
    """

    def __init__(self, num_bytes: int) -> None:
        """So many bytes, one at least."""
        self._map = _zeros(num_bytes)

    def __len__(self) -> int:
        return len(self._map)

    def array(self, dtype: DTypeLike) -> NDArray[Any]:
        """All of it, as one row."""
        return np.frombuffer(self._map, dtype=dtype)

    def grow(self, num_bytes: int) -> None:
        """Have so many. Whoever has an array over these pages keeps it: then, and where the system moves no pages, all is copied.

        Raises MemoryError, and nothing has changed.
        """
        try:
            self._map.resize(num_bytes)
        except (BufferError, SystemError, OSError):
            larger = _zeros(num_bytes)
            larger[: len(self._map)] = self._map
            self._map = larger
        else:
            _prefer_huge(self._map)


def _zeros(num_bytes: int) -> mmap.mmap:
    try:
        zeros = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {num_bytes} bytes: {error}") from error
    _prefer_huge(zeros)
    return zeros


def _prefer_huge(pages: mmap.mmap) -> None:
    if len(pages) >= _HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            pages.madvise(mmap.MADV_HUGEPAGE)
