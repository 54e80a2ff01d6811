"""The host tier's memory: one run of pages, cut into slots."""

import math
import mmap

import numpy as np
from numpy.typing import NDArray

from kvstore.closing import Closing
from kvstore.pages import Pages

PIECE_BYTES = 256 << 20
"""A few tenths of a second of taking pages from the system and page-locking them: what a start waits for."""


class HostSlab(Closing):
    """`num_slots` blocks of `block_bytes` bytes in one run of pages, made ready and page-locked piece by piece.

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
        self._pages: Pages | None = Pages(max(1, self.num_bytes))
        self._slots = self._pages.bytes[: self.num_bytes].reshape(num_slots, block_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots together."""
        return self.num_slots * self.block_bytes

    @property
    def address(self) -> int:
        """Where the first slot begins."""
        return self._open().address

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
        self._open()
        view: NDArray[np.uint8] = self._slots[slot]
        return view

    def prefault(self, number: int) -> None:
        """Take every page of a piece from the system now, so that no later copy stops for one. Keeps what slots hold.

        Any thread may call it; it releases the GIL.
        """
        first, end = self.piece(number)
        self._open().take(first * self.block_bytes, end * self.block_bytes)

    def close(self) -> None:
        """Give the memory back, or what a view still shows, when that view goes. Safe to call twice."""
        self._pages, self._slots = None, self._slots[:0].copy()

    def _open(self) -> Pages:
        assert self._pages is not None, "the host slab was used after close()"
        return self._pages
