"""Which block lives where: arrays over dense block ids.

A block id is an index into the arrays of a `Residency`; ids are given out and taken back here. The radix index, the
eviction policy and the core each own some of the columns and may read all of them:

    column                     shape, dtype             owner    meaning
    live                       [cap] bool               here     the id is given out
    parent                     [cap] int32              radix    id of the block before it, -1 for a first block
    num_children               [cap] int32              radix    blocks of the index that follow it directly
    node                       [cap] int32              radix    number of the radix node that holds it, -1 for none
    fingerprint                [cap] uint64             radix    a hash of all tokens up to the block's end, for this process
    stamp                      [cap] int64              policy   time of the last touch, 0 for never
    owner                      [cap] int32              core     number of whose block it is, 0 for everybody's
    stems                      [cap] int32              stems    of a block of everybody's: those at or below it that owners' follow
    rank                       [cap] int8               ranks    how long it is to be kept, as callers say: a Rank
    term                       [cap] uint16             terms    number of how long it lives after a use, 0 for as the TTL says
    hits                       [cap] int32              core     how often requests found it, and so all above it
    leases                     [cap] int32              core     requests that hold the path through this block
    computing                  [cap] bool               core     a request is going to fill the block on the device
    state                      [tiers, cap] uint8       core     a State
    place                      [tiers, cap] int32       core     slot number, on disk stored bytes; void where ABSENT
    readers                    [tiers, cap] int16       core     copies that are reading the place
    held                       [tiers, cap] uint16      holds    holds that want the block in this tier, or nearer to the model
    told                       [cap] int64              core     stamp of the use that the disk's record tells of, or 0;
                                                                 void unless the disk has the block
    key, has_key               [cap, 32] uint8, bool    core     block key, once somebody has computed it

The arrays are replaced when they grow: never keep one across `allocate`, read it from the Residency each time. The same goes
for the `Cells`, which are the same columns for one block at a time.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES, BlockKey
from kvstore.reports import TierName
from tiering.cells import Cells
from tiering.kernels import kernels
from tiering.pages import GrowingPages

# Ids are intp wherever they travel (numpy gathers by intp twice as fast as by int32) and int32 at rest.
Ids = NDArray[np.intp]
Mask = NDArray[np.bool_]
# for arrays that are made for each request: numpy takes half as long again to find the dtype of a type
ID, FLAG, _TIER = np.dtype(np.intp), np.dtype(np.bool_), np.dtype(np.int8)

NO_BLOCK = NO_NODE = -1
_MAX_BLOCKS = 2**31 - 1


class Tier(IntEnum):
    """A place for blocks; a smaller number is nearer to the model."""

    DEVICE = 0
    HOST = 1
    DISK = 2

    @property
    def label(self) -> TierName:
        """The tier's name as people read it: device, host or disk."""
        return _LABELS[self]


_LABELS: tuple[TierName, ...] = ("device", "host", "disk")


class State(IntEnum):
    """What a tier holds of a block."""

    ABSENT = 0  # nothing
    WRITING = 1  # a place is reserved and being filled; nobody may read it
    PRESENT = 2  # whole and readable


# numpy takes 2 us to compare a small array with an IntEnum, and 0.4 us with an int
ABSENT, WRITING, PRESENT = map(int, State)
DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK

_NOT_IDLE = "a freed block must be live, named once, absent everywhere, unleased, unread and childless"


class Residency:
    """Arrays by block id, and who has which id. Copies of blocks are changed by tiering.copies.

    Not thread-safe: the engine loop is the only caller. Every method takes ids as a 1-D intp array without
    duplicates; the empty array is fine everywhere and does nothing.
    """

    live: NDArray[np.bool_]
    parent: NDArray[np.int32]
    num_children: NDArray[np.int32]
    node: NDArray[np.int32]
    fingerprint: NDArray[np.uint64]
    stamp: NDArray[np.int64]
    owner: NDArray[np.int32]
    stems: NDArray[np.int32]
    rank: NDArray[np.int8]
    term: NDArray[np.uint16]
    hits: NDArray[np.int32]
    leases: NDArray[np.int32]
    computing: NDArray[np.bool_]
    state: NDArray[np.uint8]
    place: NDArray[np.int32]
    readers: NDArray[np.int16]
    held: NDArray[np.uint16]
    key: NDArray[np.uint8]
    has_key: NDArray[np.bool_]
    told: NDArray[np.int64]
    _free: NDArray[np.int32]
    cells: Cells
    ties: tuple[NDArray[Any], ...]
    """What says who uses a block: the columns state, readers, leases, computing and held."""
    columns: tuple[NDArray[Any], ...]
    """What a change of a copy looks at, or changes: see tiering.loops.copies."""

    def __init__(self, capacity: int = 1024) -> None:
        """Make room for `capacity` blocks; more are made by doubling, which pauses for the copy of the columns by tier, and of the keys."""
        if not 1 <= capacity <= _MAX_BLOCKS:
            raise ValueError(f"capacity must be between 1 and {_MAX_BLOCKS} blocks, not {capacity}")
        self._kernels = kernels()
        self.has_terms = False
        """Whether any block ever had another `term` than 0: else nobody writes there, and it takes no memory."""
        self._pages = {name: GrowingPages(np.dtype(dtype).itemsize) for name, dtype in _COLUMNS.items()}
        self._capacity = 0
        self._num_fresh = 0  # ids from here on were never given out
        self._num_free = 0  # freed ids: _free[:_num_free], a stack
        self._resize(capacity)

    def __len__(self) -> int:
        """Number of ids given out."""
        return self._num_fresh - self._num_free

    @property
    def capacity(self) -> int:
        """Number of ids that fit before the arrays grow."""
        return self._capacity

    # ---- ids

    def allocate(self, n: int) -> Ids:
        """Give out `n` ids, ascending, in a row where possible; their columns are as after `free`."""
        reused = min(n, self._num_free)
        num_free, fresh = self._num_free, self._num_fresh
        if fresh + n - reused > self._capacity:
            self._resize(max(fresh + n - reused, 2 * self._capacity))
        self._num_free, self._num_fresh = num_free - reused, fresh + n - reused
        ids: Ids = np.empty(n, dtype=ID)
        if not self._kernels.give_out(self._free, num_free, fresh, self.live, self.parent, self.node, ids):
            ids[:reused].sort()  # a fresh id is greater than any that was used before
        return ids

    def reserve(self, n: int) -> None:
        """Make room for `n` ids more at once: later, with many there, growing would take long."""
        if self._num_fresh + n > self._capacity:
            self._resize(self._num_fresh + n)

    def free(self, ids: Ids) -> None:
        """Take ids back and reset their columns.

        Each must be absent from all tiers, without leases, readers and children.
        """
        n = len(ids)
        if n == 1:
            self.free_one(ids.item())
            return
        is_free = self._kernels.free_blocks(
            self.live,
            self.leases,
            self.num_children,
            self.state,
            self.readers,
            self.parent,
            self.node,
            self.stamp,
            self.owner,
            self.hits,
            self.has_key,
            self._free,
            self._num_free,
            ids,
        )
        assert is_free, _NOT_IDLE
        if self.has_terms:
            self.term[ids] = 0
        self._num_free += n

    def free_one(self, block: int) -> None:
        """`free` for one id: evicting one block at a time must stay cheap."""
        assert self._is_idle(block), _NOT_IDLE
        cells = self.cells
        cells.live[block] = False
        cells.parent[block] = NO_BLOCK
        cells.node[block] = NO_NODE
        cells.stamp[block] = 0
        cells.owner[block] = 0
        if self.has_terms:
            cells.term[block] = 0
        cells.hits[block] = 0
        cells.has_key[block] = False
        self._free[self._num_free] = block
        self._num_free += 1

    def _is_idle(self, block: int) -> bool:
        cells = self.cells
        (device, host, disk), readers = cells.state, cells.readers
        return not (
            not cells.live[block]
            or cells.leases[block]
            or cells.num_children[block]
            or device[block]
            or host[block]
            or disk[block]
            or readers[0][block]
            or readers[1][block]
            or readers[2][block]
        )

    def _resize(self, capacity: int) -> None:
        if capacity > _MAX_BLOCKS:
            raise ValueError(f"block ids are 32 bits wide: {capacity} blocks do not fit")
        tiers = len(Tier)

        def grown(name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
            # zeros commits no memory until it is written to: neither a generous capacity nor a column without use costs any
            column: NDArray[Any] = np.zeros(shape, dtype=dtype)
            if self._capacity and (old := getattr(self, name)).any():
                column[tuple(slice(0, n) for n in old.shape)] = old
            return column

        copied = {name: grown(name, (tiers, capacity), dtype) for name, dtype in _TIER_COLUMNS.items()}
        copied["key"] = grown("key", (capacity, KEY_BYTES), np.uint8)
        for name in ("ties", "columns", "cells", *_COLUMNS):  # pages are moved while nothing is made of them
            vars(self).pop(name, None)
        try:
            for name, dtype in _COLUMNS.items():
                self._pages[name].grow(capacity * np.dtype(dtype).itemsize)
            vars(self).update(copied)
            self._capacity = capacity
        finally:
            for name, dtype in _COLUMNS.items():  # as long as they were, if there was no memory for all
                setattr(self, name, self._pages[name].array(dtype)[: self._capacity])
            self.ties = self.state, self.readers, self.leases, self.computing, self.held
            self.columns = (self.state, self.place, *self.ties[1:], self.stamp, self.told)
            self.cells = Cells.of(self)

    # ---- copies of a block in the tiers

    # Of thousands of ids state[tier].take(ids) takes less time than state[tier][ids], and a twentieth of that of state[tier, ids].
    # But it gives up Python's lock, and others that read or copy are quick to take it; of up to 500 ids [ids] is as fast, and
    # keeps it. A batch that has come is so few. count_nonzero takes a quarter of the time of all or any.

    def found(self, path: Ids, num_positions: int, hits: NDArray[np.int64]) -> NDArray[np.int8]:
        """One more request has found the path. Where: see `Holdings.found`."""
        tiers = np.empty(num_positions, _TIER)
        self._kernels.count_found(self.hits, self.state, self.computing, path, tiers, hits)
        return tiers

    def present(self, tier: int, ids: Ids) -> Mask:
        """Which of the blocks the tier holds whole."""
        mask: Mask = self.state[tier].take(ids) == PRESENT
        return mask

    def is_only_in(self, tier: int, block: int) -> bool:
        """Whether a block is a leaf that nobody uses, and that this tier has and no other has or expects."""
        cells = self.cells
        device, host, disk = cells.state
        return not (
            cells.num_children[block]
            or cells.leases[block]
            or cells.state[tier][block] != PRESENT
            or cells.readers[tier][block]
            or device[block] + host[block] + disk[block] != PRESENT
        )

    def resident_anywhere(self, ids: Ids) -> Mask:
        """Which of the blocks some tier holds or is being filled with."""
        mask: Mask = (self.state[0].take(ids) | self.state[1].take(ids) | self.state[2].take(ids)) != 0
        return mask

    def present_anywhere(self, ids: Ids) -> Mask:
        """Which of the blocks some tier holds whole."""
        return self.present(0, ids) | self.present(1, ids) | self.present(2, ids)

    def nearest_tier(self, ids: Ids) -> NDArray[np.intp]:
        """The nearest tier that holds each block whole, `len(Tier)` where none does."""
        nearest: NDArray[np.intp] = np.empty(len(ids), dtype=np.intp)
        self._kernels.nearest_tiers(self.state, ids, nearest)
        return nearest

    def _read_anywhere(self, ids: Ids) -> Mask:
        mask: Mask = (self.readers[0].take(ids) | self.readers[1].take(ids) | self.readers[2].take(ids)) != 0
        return mask

    # ---- keys

    def set_keys(self, ids: Ids, keys: NDArray[np.uint8]) -> None:
        """Remember the keys of blocks, [n, KEY_BYTES]."""
        assert keys.shape == (len(ids), KEY_BYTES), "each block has a key"
        self._kernels.put_keys(self.key, self.has_key, ids, keys)

    def key_of(self, block: int) -> BlockKey | None:
        """The key of one block, None if nobody has computed it."""
        return self.key[block].tobytes() if self.cells.has_key[block] else None

    def keys_of(self, ids: Ids) -> list[BlockKey]:
        """The keys of blocks that have one; anything for others."""
        return block_keys(self.key[ids])

    # ---- conservation

    def check(self) -> None:
        """Raise AssertionError unless the columns agree with one another. Takes time in proportion to capacity."""
        free = self._free[: self._num_free]
        live = np.flatnonzero(self.live)
        assert len(live) == len(self), (
            f"{len(live)} ids are live, {self._num_fresh} - {self._num_free} given out"
        )
        assert len(set(free.tolist())) == len(free), "an id is free twice"
        assert not self.live[free].any(), "a free id is live"
        assert (free < self._num_fresh).all(), "a free id was never given out"
        assert (self.leases >= 0).all(), "leases fell below zero"
        assert (self.readers >= 0).all(), "readers fell below zero"
        assert (self.state <= State.PRESENT).all(), "a state that does not exist"
        assert (self.state[self.readers > 0] == State.PRESENT).all(), "a copy is read that is not present"
        self._check_blank(np.flatnonzero(~self.live), free)
        self._check_family(live)

    def _check_blank(self, dead: Ids, free: NDArray[np.int32]) -> None:
        for name in (
            "num_children",
            "stamp",
            "owner",
            "stems",
            "term",
            "hits",
            "leases",
            "computing",
            "has_key",
        ):
            assert not getattr(self, name)[dead].any(), f"a dead id kept its {name}"
        assert not self.resident_anywhere(dead).any(), "a dead id is resident"
        assert not self._read_anywhere(dead).any(), "a dead id is read"
        assert not self.held[:, dead].any(), "a dead id is held"
        assert (self.parent[free] == NO_BLOCK).all(), "a dead id kept its parent"
        assert (self.node[free] == NO_NODE).all(), "a dead id kept its node"

    def _check_family(self, live: Ids) -> None:
        children = live[self.parent[live] >= 0]
        parents = self.parent[children]
        assert self.live[parents].all(), "a live block's parent is dead"
        counted = np.bincount(parents, minlength=self._capacity)
        assert (counted == self.num_children).all(), "num_children differs from the children there are"
        assert (self.leases[parents] >= self.leases[children]).all(), (
            "a block has more leases than its parent"
        )
        assert (self.hits[parents] >= self.hits[children]).all(), (
            "a block was found more often than its parent"
        )
        owners = self.owner[parents]
        assert ((owners == 0) | (owners == self.owner[children])).all(), (
            "what follows an owner's block is another's"
        )
        assert (self.stamp[parents] >= self.stamp[children]).all(), (
            "a block was touched later than its parent"
        )


def block_keys(rows: NDArray[np.uint8]) -> list[BlockKey]:
    """Keys from contiguous rows, [n, KEY_BYTES], far faster than one by one."""
    keys: list[BlockKey] = rows.view(f"V{KEY_BYTES}").ravel().tolist()
    return keys


_COLUMNS: dict[str, type] = {
    "live": np.bool_,
    "parent": np.int32,
    "num_children": np.int32,
    "node": np.int32,
    "fingerprint": np.uint64,
    "stamp": np.int64,
    "owner": np.int32,
    "stems": np.int32,
    "rank": np.int8,
    "term": np.uint16,
    "hits": np.int32,
    "leases": np.int32,
    "computing": np.bool_,
    "has_key": np.bool_,
    "told": np.int64,
    "_free": np.int32,
}
_TIER_COLUMNS: dict[str, type] = {
    "state": np.uint8,
    "place": np.int32,
    "readers": np.int16,
    "held": np.uint16,
}
