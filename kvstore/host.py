"""The host tier's memory: one anonymous mapping, cut into slots."""

import contextlib
import math
import mmap

import numpy as np
from numpy.typing import NDArray

from kvstore.closing import Closing

PIECE_BYTES = 256 << 20
"""A few tenths of a second of taking pages from the system and page-locking them: what a start waits for."""

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module of Python 3.11 has no name for it


class HostSlab(Closing):
    """`num_slots` blocks of `block_bytes` bytes in one mapping, made ready and page-locked piece by piece.

    Pages are taken from the system when they are first touched; `prefault` takes those of one piece. Pieces begin at
    whole pages, as page-locking wants it. Slots start as zeros. `num_slots` may be 0: a tier that is switched off.
    """

    def __init__(self, num_slots: int, block_bytes: int, piece_bytes: int = PIECE_BYTES) -> None:
        """`piece_bytes`: about how large a piece is; it has the fewest slots above that which end at a whole page."""
        if num_slots < 0 or block_bytes < 1:
            raise ValueError(f"need num_slots >= 0 and block_bytes >= 1, not {num_slots} and {block_bytes}")
        whole_pages = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, block_bytes)
        self.piece_slots = max(1, -(-piece_bytes // (block_bytes * whole_pages))) * whole_pages
        self.num_slots = num_slots
        self.block_bytes = block_bytes
        self._mapping = mmap.mmap(-1, max(1, self.num_bytes))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._advise(mmap.MADV_HUGEPAGE)  # fewer page faults and TLB misses; only ever a hint
        self._slots: NDArray[np.uint8] | None = np.frombuffer(
            self._mapping, dtype=np.uint8, count=self.num_bytes
        ).reshape(num_slots, block_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.num_slots * self.block_bytes

    @property
    def address(self) -> int:
        """Where the first slot begins."""
        return int(self._open().ctypes.data)

    @property
    def num_pieces(self) -> int:
        """Pieces of `piece_slots` slots each, the last one maybe fewer."""
        return -(-self.num_slots // self.piece_slots)

    def piece(self, number: int) -> tuple[int, int]:
        """The first slot of a piece and the one behind its last."""
        first = number * self.piece_slots
        return first, min(first + self.piece_slots, self.num_slots)

    def view(self, slot: int) -> NDArray[np.uint8]:
        """The slot's bytes: see `SlotMemory.view`."""
        if not 0 <= slot < self.num_slots:
            raise IndexError(f"slot {slot} is outside 0 .. {self.num_slots - 1}")
        view: NDArray[np.uint8] = self._open()[slot]
        return view

    def prefault(self, number: int) -> None:
        """Take every page of a piece from the system now, so that no later copy stops for one. Keeps what slots hold.

        Any thread may call it; it releases the GIL.
        """
        first, end = self.piece(number)
        begin, num_bytes = first * self.block_bytes, (end - first) * self.block_bytes
        if self._advise(_MADV_POPULATE_WRITE, begin, num_bytes):
            return
        pages = self._open().reshape(-1)[begin : begin + num_bytes : mmap.PAGESIZE]
        np.bitwise_or(pages, 0, out=pages)

    def close(self) -> None:
        """Give the memory back, or what a view still shows, when that view goes. Safe to call twice."""
        self._slots = None
        # Unmapping under a living view would turn its next use into a segmentation fault: mmap refuses to.
        with contextlib.suppress(BufferError):
            self._mapping.close()

    def _open(self) -> NDArray[np.uint8]:
        assert self._slots is not None, "the host slab was used after close()"
        return self._slots

    def _advise(self, advice: int, *of: int) -> bool:
        """`of`: begin and length in bytes; without them the whole mapping."""
        try:
            self._mapping.madvise(advice, *of)
        except OSError:
            return False
        return True
