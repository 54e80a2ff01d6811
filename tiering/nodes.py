"""What the radix index is made of: runs of blocks without a branch, as numbers in arrays.

    array      shape, dtype                 what
    records    [nodes, 8] int32             of each node what tiering.loops.states names; half a cache line
    tokens     [blocks, tokens] int32       of each block
    after      [blocks] int32               the block that follows in the same node; of a node's last one less than 0: see `taken`
    slots      [a power of two, 2] uint64   a table of the blocks that begin nodes: 32 bits of a hash of the tokens and of the block
                                            above, and the block; the block above

The table only says where to look: a child is one if its tokens are equal, and if it follows that block. Places are tried in a row, and at most half of them are taken.
Where more would be, a table of twice the places takes over, and what the older one has goes there a few places at a time, as nodes are added: no
addition takes long. The other arrays grow by pages that are moved (`tiering.pages`), for the same reason.
The hash follows numbers that nobody knows, so that nobody can choose prompts for which all places are taken.
"""

import operator
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiering.kernels import kernels
from tiering.loops.states import COUNT, FIRST, LAST, LIFE, NEWER, NEWEST, OLDER, ROOT, UP
from tiering.pages import GrowingPages
from tiering.residency import ID, NO_BLOCK, Ids, Residency

_FEW: Final = 16
_RECORD_BYTES: Final = 32
_MOVED_PLACES: Final = 16
"""Of the older table with each new node: all of it long before the other is half full."""
_NO_TABLE: Final[NDArray[np.uint64]] = np.zeros((0, 2), dtype=np.uint64)
_NO_ROOM: Final[Ids] = np.empty(0, dtype=np.intp)
Tokens = NDArray[np.int32]
Links = NDArray[np.int32]
"""A column that names a block, or a node, for each block."""


class Nodes:
    """Nodes by number, the root first; the tokens of their blocks; and who is whose child.

    Not thread-safe. Arrays are replaced when they grow: who keeps one meanwhile has what was, and has all of it copied.
    Methods take numbers of nodes that are there.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._kernels = kernels()
        self._keys = np.frombuffer(secrets.token_bytes(8 * (block_tokens + 2)), dtype=np.uint64)
        self._slots = np.zeros((_FEW, 2), dtype=np.uint64)
        self._older, self._num_moved = _NO_TABLE, 0
        """The table that had become too small, and how many of its places were moved to the other."""
        self._pages_of_records = GrowingPages(_FEW * _RECORD_BYTES)
        self._pages_of_tokens, self._pages_of_after = GrowingPages(4 * block_tokens), GrowingPages(4)
        self._lay_out_records()
        self._lay_out_blocks()
        self._records[ROOT, [FIRST, LAST]] = NO_BLOCK
        self._free: list[int] = []
        self.num_numbers = 1
        """Nodes have smaller numbers; not each of these names one."""
        self._top = np.full(1, NO_BLOCK, dtype=np.int32)
        self._tie()

    def __len__(self) -> int:
        """Number of nodes, without the root."""
        return self.num_numbers - 1 - len(self._free)

    # ---- the blocks

    def allocate(self, residency: Residency, num_blocks: int) -> Ids:
        """Ids for new blocks, and room here for as many as the residency has: both, or MemoryError and neither."""
        ids = residency.allocate(num_blocks)
        try:
            self.grow(residency.capacity)
        except MemoryError:
            residency.free(ids)
            raise
        return ids

    def grow(self, num_blocks: int) -> None:
        """Have room for as many blocks as the residency has."""
        if num_blocks > len(self.after):
            # pages can be moved while there is no array over them
            del self.tokens, self.after, self._edges, self._walked
            try:
                self._pages_of_tokens.grow(4 * self.block_tokens * num_blocks)
                self._pages_of_after.grow(4 * num_blocks)
            finally:
                self._lay_out_blocks()
                self._tie()

    def _lay_out_blocks(self) -> None:
        self._edges: Links = self._pages_of_tokens.array(np.int32)
        self.tokens: Tokens = self._edges.reshape(-1, self.block_tokens)
        self.after: Links = self._pages_of_after.array(np.int32)

    def lay(self, ids: Ids, tokens: Tokens) -> None:
        """These blocks are in one node, in this order, and have these tokens."""
        self._kernels.lay(self._edges, self.after, self.block_tokens, tokens, ids)

    def name(
        self, ids: Ids, parent: Links, seed: NDArray[np.uint64], fingerprint: NDArray[np.uint64]
    ) -> None:
        """Write down the fingerprints of blocks that were laid, each after its parent: see tiering.fingerprints."""
        self._kernels.name_blocks(self._edges, self.block_tokens, parent, seed, fingerprint, ids)

    def edge(self, ids: Ids) -> bytes:
        """The tokens of blocks, block_tokens little-endian int32 each."""
        return self.tokens.take(ids, axis=0).tobytes()

    def run(self, block: int) -> Ids:
        """A block and those behind it in the same node; empty for NO_BLOCK."""
        return self.along(self.after, block)

    def along(self, links: Links, block: int, most: int | None = None) -> Ids:
        """A block, the one that `links` names for it, and so on, until there is none or they are so many."""
        num = self._kernels.along(links, block, _NO_ROOM) if most is None else most
        ids: Ids = np.empty(num, dtype=ID)
        return ids[: self._kernels.along(links, block, ids)] if num else ids

    # ---- the way down

    def descend(self, prompt: Tokens, num_blocks: int, above: int, path: Ids) -> int:
        """Write down the blocks that a prompt goes on with behind a block, NO_BLOCK for the root. How many."""
        return self._kernels.descend(prompt, num_blocks, self.block_tokens, self._walked, above, path)

    def like(self, block: int, above: int) -> int:
        """The first block of a node that follows the last one of another, and has the same tokens as `block`; NO_BLOCK if there is none."""
        return self._kernels.find_child(
            self._edges,
            block * self.block_tokens,
            self.block_tokens,
            self._edges,
            self._slots,
            self._older,
            self._keys,
            above,
        )

    def taken(self, node: int) -> int:
        """The first block of the child that was taken or added last, NO_BLOCK if that is gone."""
        follows = self._top.item() if node == ROOT else self.after.item(self.cells[node, LAST])
        return max(NO_BLOCK, -2 - follows)

    def children(self, node: int) -> Iterator[int]:
        """The children, those first that were added last."""
        cells, child = self.cells, self.cells[node, NEWEST]
        while child != ROOT:
            yield child
            child = cells[child, OLDER]

    def blocks_of(self, numbers: Sequence[int]) -> tuple[Ids, NDArray[np.int64]]:
        """The blocks of nodes, one node after the other, and how many each has."""
        rows = np.array(numbers, dtype=np.intp)
        counts = self._records[rows, COUNT].astype(np.int64)
        ids: Ids = np.empty(counts.sum(), dtype=np.intp)
        self._kernels.gather(self._records, self.after, rows, ids)
        return ids, counts

    # ---- changes

    # `node`: the column that names the node of each block.

    def new(self, up: int, first: int, last: int, node: Links) -> int:
        """A node of blocks that were laid, below one that has no child which begins likewise. Its number. Or MemoryError, and no change."""
        self.make_room(1)
        if len(self._older):
            self._move_places()
        if self._free:
            number = self._free.pop()
        else:
            number, self.num_numbers = self.num_numbers, self.num_numbers + 1
        self._kernels.plant(self.block_tokens, self._records, self._walked, node, number, up, first, last)
        return number

    def make_room(self, num_nodes: int) -> None:
        """For so many nodes more, which then can be added. Or MemoryError, and no change."""
        num_places = 2 * (len(self) + num_nodes)
        if num_places > len(self._slots):
            while len(self._older):
                self._move_places()
            larger = np.zeros((1 << (num_places - 1).bit_length(), 2), dtype=np.uint64)
            self._older, self._num_moved, self._slots = self._slots, 0, larger
            self._tie()
        num_numbers = self.num_numbers + num_nodes - len(self._free)
        if num_numbers > len(self._records):
            del self._records, self.cells
            try:
                self._pages_of_records.grow(2 * num_numbers * _RECORD_BYTES)
            finally:
                self._lay_out_records()

    def _move_places(self) -> None:
        end = min(self._num_moved + _MOVED_PLACES, len(self._older))
        self._kernels.move_places(self._older, self._slots, self._num_moved, end)
        self._num_moved = end
        if end == len(self._older):
            self._older, self._num_moved = _NO_TABLE, 0
            self._tie()

    def _lay_out_records(self) -> None:
        self._records: NDArray[np.int32] = self._pages_of_records.array(np.int32).reshape(-1, 8)
        self.cells: memoryview[Any] = self._records.data
        """The records for one node at a time: `cells[number, UP]`."""

    def lengthen(self, leaf: int, ids: Ids, node: Links) -> None:
        """Blocks that were laid follow the last one of a leaf, in it."""
        cells, first = self.cells, ids.item(0)
        self.after[cells[leaf, LAST]] = first
        cells[leaf, LAST] = ids.item(-1)
        cells[leaf, COUNT] += self._kernels.name_run(node, self.after, first, leaf)

    def take_off(self, residency: Residency, ids: Ids, numbers: Ids) -> int:
        """Take blocks off the ends of nodes, each without children at its turn. How many runs of blocks of one node they are.

        `numbers`: room for whose they are, below 0 for a node that has none left. That number may be another's later.
        """
        num = self._kernels.take_off(
            self.block_tokens,
            self._records,
            self._walked,
            residency.node,
            residency.parent,
            residency.num_children,
            ids,
            numbers,
        )
        if num == -2:
            raise IndexError(f"there are no such blocks as all of {ids.tolist()}")
        assert num >= 0, "a block with children cannot leave the index: give the deepest first"
        return num

    def let_go(self, number: int) -> None:
        """A node has no blocks left."""
        self._free.append(number)  # the number given back last is given out next

    def split(self, lower: int, block: int, node: Links) -> int:
        """Move the blocks of a node up to this one, not its last, into a new one above it; return that. Or MemoryError, and no change."""
        self.make_room(1)
        up, first, below = self.cells[lower, UP], self.cells[lower, FIRST], self.after.item(block)
        was_there = self._kernels.unlink(self.block_tokens, self._records, self._walked, lower)
        assert was_there, "the table of children lacks one"
        self.after[block] = NO_BLOCK
        upper = self.new(up, first, block, node)
        cells = self.cells
        cells[lower, UP], cells[lower, FIRST] = upper, below
        cells[lower, COUNT] -= cells[upper, COUNT]
        self._kernels.link(self.block_tokens, self._records, self._walked, lower)
        return upper

    def _tie(self) -> None:
        """Put together what is walked, anew whenever one of the arrays was replaced."""
        self._walked = self._columns()

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self._edges, self.after, self._top, self._slots, self._older, self._keys

    # ---- who is who

    def is_there(self, number: int) -> bool:
        """Whether a number names a node, the root not."""
        return number != ROOT and self.cells[number, COUNT] > 0

    def life(self, number: int) -> int:
        """Another for each node that has had the number, of any that followed one another for days."""
        life: int = self.cells[number, LIFE]
        return life

    # ---- conservation

    def check(self) -> None:
        """Raise AssertionError unless each node is its parent's child once, and is found by its first block."""
        cells = self.cells
        there = [number for number in range(1, self.num_numbers) if self.is_there(number)]
        assert len(set(self._free)) == len(self._free), "a node's number is free twice"
        assert sorted([*there, *self._free]) == list(range(1, self.num_numbers)), "a node's number is lost"
        self._check_tables(sorted(cells[node, FIRST] for node in there))
        met = []
        for node in (ROOT, *there):
            newer, firsts = ROOT, [NO_BLOCK]
            for child in self.children(node):
                firsts.append(cells[child, FIRST])
                assert cells[child, UP] == node, "a child knows another parent"
                assert cells[child, NEWER] == newer, "a child knows another sibling"
                assert self.like(firsts[-1], cells[node, LAST]) == firsts[-1], "a child is not found"
                newer = child
                met.append(child)
            assert self.taken(node) in firsts, "the child taken last is gone"
        assert sorted(met) == there, "a node is nobody's child"
        assert all(map(operator.is_, self._walked, self._columns())), "an array is walked that was replaced"

    def _check_tables(self, firsts: list[int]) -> None:
        """Both together have these blocks; what was moved is in the newer one, and the rest is not."""
        newer, moved, left = (
            (table[:, 0] & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1
            for table in (self._slots, self._older[: self._num_moved], self._older[self._num_moved :])
        )
        newer, moved, left = newer[newer >= 0], moved[moved >= 0], left[left >= 0]
        assert sorted([*newer.tolist(), *left.tolist()]) == firsts, "the table has other children"
        assert np.isin(moved, newer).all(), "a child is only where nobody will look"
        assert 2 * len(newer) <= len(self._slots), "the table is too full"
