"""The prefix index: a compressed radix tree over whole blocks of tokens.

Following an edge compares the tokens of its blocks, many at once where the blocks' ids follow each other; a child is found by a
hash of its first block, and is one if its tokens are equal: hence no collision can give somebody else's blocks. The child
that was taken last is tried first. A node holds at most `max_node_blocks` blocks, which bounds what a split, an extension or
one step of a listing takes.

      (root)
        |  edge: 3 blocks, ids 0 1 2
       node -------------.
        | edge, ids 3 4   | edge, ids 7
       node              node

A block's id does not change when its node is split: all state by block is in the `Residency`, and its tokens in the `Nodes`.
"""

import secrets
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiering.fingerprints import fingerprints
from tiering.following import Following
from tiering.kernels import kernels
from tiering.loops.states import COUNT, FIRST, LAST, NEWEST, ROOT, UP
from tiering.nodes import Nodes
from tiering.onwards import onwards
from tiering.planting import NewRuns, Plants
from tiering.residency import ID, NO_BLOCK, NO_NODE, Ids, Residency
from tiering.watch import Watch

Tokens = NDArray[np.int32]

_TOKEN = np.dtype("<i4")


class NodeLists(NamedTuple):
    """Nodes: their numbers and those of the nodes above, NO_NODE for the root; the tokens of their blocks; the blocks of all, and
    how many each has.
    """

    numbers: list[int]
    ups: list[int]
    edges: list[bytes]
    ids: Ids
    counts: NDArray[np.int64]


class RadixIndex:
    """Finds the blocks of a prompt's longest known prefix, and gives new blocks their place in the tree.

    Owns the columns `parent`, `num_children`, `node` and `fingerprint` of the residency. Prefix-closed: a block's parent is in the
    index. Not thread-safe: the engine loop is the only caller. Tokens are 1-D little-endian int32 arrays, of which
    only whole blocks count; ids are intp arrays, new on each call.
    """

    def __init__(
        self, block_tokens: int, residency: Residency, max_node_blocks: int = 128, seed: int | None = None
    ) -> None:
        """An empty index over `residency`, of which it is the only allocator. ValueError for sizes below 1.

        `seed`: of fingerprints, for who must have the same twice; None: one that nobody knows.
        """
        if block_tokens < 1 or max_node_blocks < 1:
            raise ValueError(
                f"block_tokens and max_node_blocks must be at least 1, not {block_tokens}, {max_node_blocks}"
            )
        self._residency = residency
        self._nodes = Nodes(block_tokens)
        self._kernels = kernels()
        self._seed = np.array([secrets.randbits(64) if seed is None else seed], dtype=np.uint64)
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * _TOKEN.itemsize
        self._max_node_blocks = max_node_blocks
        self.watch = Watch()
        """Told which nodes change."""
        self._num_blocks = 0
        one: Ids = np.zeros(1, dtype=ID)
        self._one: tuple[memoryview[Any], Ids, Ids] = one.data, one, np.zeros(1, dtype=ID)

    def __len__(self) -> int:
        """Number of blocks in the index."""
        return self._num_blocks

    @property
    def seed(self) -> int:
        """What the fingerprints of first blocks follow."""
        return self._seed.item()

    @property
    def block_tokens(self) -> int:
        """Tokens in one block."""
        return self._block_tokens

    # ---- reading

    def match(self, tokens: Tokens) -> Ids:
        """The ids of the longest path of whole blocks that these tokens start with, first block first.

        Says nothing of where the blocks are, and is no use of them: the caller touches what it uses. ValueError
        unless tokens is a 1-D little-endian int32 array.
        """
        return self.match_below(NO_BLOCK, tokens)

    def match_below(self, block: int, tokens: Tokens) -> Ids:
        """`match` for tokens that follow `block`, NO_BLOCK for the start: takes the same time at any depth."""
        path, num = self._descend(block, self._whole_blocks(tokens))
        return path if num == len(path) else path[:num].copy()

    def tokens_up(self, block: int, num_blocks: int = 1) -> list[bytes]:
        """The tokens of a block, of its parent and so on, of so many on the way up: block_tokens little-endian int32 each."""
        self._node_of(block)
        ids = self._nodes.along(self._residency.parent, block, num_blocks)
        assert len(ids) == num_blocks, "so many blocks do not lead to this one"
        edge, size = self._nodes.edge(ids), self._block_bytes
        return [edge[at : at + size] for at in range(0, len(edge), size)]

    def path(self, block: int) -> Ids:
        """The ids from the first block of the prefix down to `block`, inclusive; empty for NO_BLOCK."""
        self._node_of(block)
        return self._nodes.along(self._residency.parent, block)[::-1].copy()

    def subtree(self, block: int) -> Ids:
        """The ids of `block` and all that follow it, each after its parent; the whole index for NO_BLOCK."""
        nodes, stack = self._nodes, [self._node_of(block)]
        parts = [nodes.run(block)]
        while stack:
            for child in nodes.children(stack.pop()):
                parts.append(nodes.run(nodes.cells[child, FIRST]))
                stack.append(child)
        return np.concatenate(parts)

    def onwards(self, block: int, wanted: bytes, same: int, most_blocks: int) -> bytes:
        """What follows `block` in the cached prompt that is most like `wanted`, as tokens; empty if nothing does.

        `wanted`: the first block of tokens that would have to follow for a longer match, or less than a block. Alike is
        who has most of its first tokens, looking only at the bits of ids that are set in `same`; but whose other bits
        differ, who has all of them or stands behind those whose do not. Among equals who was taken or added last. From there
        on it is the way that was taken last, for `most_blocks` blocks or some dozens of nodes.
        """
        return onwards(
            self._nodes,
            self._residency.node,
            self._node_of(block),
            self._next(block),
            wanted,
            same,
            most_blocks,
        )

    def following(self, block: int) -> Following:
        """A block and all that follow it, in parts. Changes nothing."""
        return Following(self._nodes, self._node_of(block), block)

    @property
    def num_numbers(self) -> int:
        """Nodes have smaller numbers; not each of these names one."""
        return self._nodes.num_numbers

    def nodes(self, numbers: Sequence[int]) -> NodeLists:
        """What these numbers name, as far as there is such a node."""
        nodes, cells = self._nodes, self._nodes.cells
        found = [number for number in numbers if nodes.is_there(number)]
        ids, counts = nodes.blocks_of(found)
        ups = [cells[number, UP] for number in found]
        data = nodes.tokens.take(ids, axis=0).ravel().data.cast("B")
        ends = (np.cumsum(counts) * self._block_bytes).tolist()
        edges = [bytes(data[start:end]) for start, end in pairwise([0, *ends])]
        return NodeLists(found, [NO_NODE if up == ROOT else up for up in ups], edges, ids, counts)

    # ---- changing

    def insert(self, tokens: Tokens) -> Ids:
        """Make sure that all whole blocks of these tokens are there; return their ids, first block first.

        Blocks that were missing are allocated: absent everywhere and never touched. ValueError as in `match`.
        """
        return self._add(NO_BLOCK, self._whole_blocks(tokens))

    def extend(self, parent: int, edge: bytes) -> Ids:
        """Make sure that the blocks of `edge` follow `parent` (NO_BLOCK for the start); return their ids.

        As `insert`, without walking down to the parent: adding to the tail of a leaf takes the same time at any
        depth. `edge` is the tokens of whole blocks as little-endian int32; ValueError if its length says otherwise.
        """
        if len(edge) % self._block_bytes:
            raise ValueError(
                f"an edge holds whole blocks of {self._block_bytes} bytes, not {len(edge)} bytes"
            )
        return self._add(parent, np.frombuffer(edge, dtype=_TOKEN))

    def append(self, parent: int, tokens: Tokens) -> Ids:
        """`extend` by whole blocks where the caller knows that nothing which begins with the first of them, of which there are some,
        follows.
        """
        return self._append(parent, self._whole_blocks(tokens))

    def plant(self, runs: NewRuns) -> tuple[Ids, int]:
        """`extend` for many runs of new blocks, in microseconds each, as far as they meet nothing that is there.

        Answers the ids of the first runs' blocks, and how many runs these are: it ends at one whose first block is there
        already, or that follows a block behind which its node goes on. `extend` takes that one.
        """
        plants = Plants(self._nodes, self._residency, self._max_node_blocks, self.watch)
        ids, num_runs = plants.plant(runs, self._seed)
        self._num_blocks += len(ids)
        return ids, num_runs

    def remove(self, ids: Ids) -> None:
        """Take blocks out of the index and free their ids.

        Each must have no children at its turn: give the deepest first. Each must be absent from all tiers, unleased
        and unread; tell the policy before, while parents and stamps can still be read.
        """
        numbers: Ids = np.empty(len(ids), dtype=ID)
        num = self._nodes.take_off(self._residency, ids, numbers)
        for number in numbers[:num].tolist():
            self._taken_off(number)
        self._residency.free(ids)
        self._num_blocks -= len(ids)

    def remove_leaf(self, block: int) -> None:
        """`remove` for one block: evicting one at a time must stay cheap."""
        cells, one, number = self._one
        cells[0] = block
        self._nodes.take_off(self._residency, one, number)
        self._taken_off(number.item())
        self._residency.free_one(block)
        self._num_blocks -= 1

    def _taken_off(self, number: int) -> None:
        """Blocks of a node are gone; of one that is less than 0, all."""
        if number < 0:
            self._nodes.let_go(-number)
        self.watch.note(abs(number))

    # ---- the tree

    def _whole_blocks(self, tokens: Tokens) -> Tokens:
        if (tokens.dtype is not _TOKEN and tokens.dtype != _TOKEN) or tokens.ndim != 1:
            raise ValueError(
                f"tokens must be a 1-D array of little-endian int32, not {tokens.ndim}-D of {tokens.dtype}"
            )
        if left := len(tokens) % self._block_tokens:
            tokens = tokens[:-left]
        return np.ascontiguousarray(tokens)

    def _node_of(self, block: int) -> int:
        """The number of a block's node, the root's for NO_BLOCK. Asked before what is compiled begins at a block: it would read anywhere."""
        if block == NO_BLOCK:
            return ROOT
        node = self._residency.cells.node[block]
        # an id that was never given out has a 0 there
        assert block >= 0 and node > ROOT, "the block is not in the index"
        return node

    def _next(self, block: int) -> int:
        """The block that follows in the same node, less than 0 if there is none."""
        return NO_BLOCK if block == NO_BLOCK else self._nodes.after.item(block)

    def _descend(self, block: int, prompt: Tokens) -> tuple[Ids, int]:
        """Room for a prompt's blocks behind this one, and how many of the first are known and in it."""
        if block != NO_BLOCK:
            self._node_of(block)
        path: Ids = np.empty(len(prompt) // self._block_tokens, dtype=ID)
        return path, self._nodes.descend(prompt, len(path), block, path)

    def _add(self, parent: int, prompt: Tokens) -> Ids:
        """Follow a prompt from a block on, and add what is missing of it."""
        path, num = self._descend(parent, prompt)
        if num < len(path):
            last = path.item(num - 1) if num else parent
            path[num:] = self._append(last, prompt[num * self._block_tokens :])
        return path

    def _append(self, last: int, prompt: Tokens) -> Ids:
        """Allocate blocks for a prompt, which differ from all that follows `last`, below that. Or MemoryError, and no block more."""
        residency, nodes, most = self._residency, self._nodes, self._max_node_blocks
        node, num_blocks = self._node_of(last), len(prompt) // self._block_tokens
        nodes.make_room(1 - (-num_blocks // most))  # a split, and what a node each holds
        ids = nodes.allocate(residency, num_blocks)
        if self._next(last) >= 0:
            node = self._split(node, last)
        self._kernels.follow(residency.parent, residency.num_children, last, ids)
        self._num_blocks += num_blocks
        start, count = 0, nodes.cells[node, COUNT]
        if node != ROOT and nodes.cells[node, NEWEST] == ROOT and count < most:  # a leaf grows in place
            start = min(most - count, num_blocks)
            nodes.lay(ids[:start], prompt[: start * self._block_tokens])
            nodes.lengthen(node, ids[:start], residency.node)
            self.watch.note(node)
        while start < num_blocks:
            piece = ids[start : start + most]
            nodes.lay(piece, prompt[start * self._block_tokens :])
            node = nodes.new(node, piece.item(0), piece.item(-1), residency.node)
            self.watch.note(node)
            start += most
        nodes.name(ids, residency.parent, self._seed, residency.fingerprint)
        return ids

    def _split(self, lower: int, block: int) -> int:
        """Move the blocks of a node up to this one, not its last, into a new one above it; return that."""
        upper = self._nodes.split(lower, block, self._residency.node)
        self.watch.note(upper)
        self.watch.note(lower)
        return upper

    # ---- conservation

    def check(self) -> None:
        """Raise AssertionError unless tree and residency agree. Takes time in proportion to the index."""
        residency, nodes = self._residency, self._nodes
        nodes.check()
        num_blocks = 0
        for number in range(1, nodes.num_numbers):
            if nodes.is_there(number):
                self._check_blocks(number)
                num_blocks += nodes.cells[number, COUNT]
        assert num_blocks == len(self), f"{num_blocks} blocks in the tree, {len(self)} counted"
        claimed = np.count_nonzero(residency.node[residency.live] != NO_NODE)
        assert claimed == num_blocks, f"{claimed} blocks name a node, {num_blocks} are in the tree"

    def _check_blocks(self, number: int) -> None:
        residency, nodes, cells = self._residency, self._nodes, self._nodes.cells
        ids = nodes.along(nodes.after, cells[number, FIRST], self._max_node_blocks + 1)
        assert len(ids) == cells[number, COUNT] <= self._max_node_blocks, f"a node of {len(ids)} blocks"
        assert ids[-1] == cells[number, LAST], "a node ends with another block"
        assert residency.live[ids].all(), "a dead block is in the index"
        assert (residency.node[ids] == number).all(), "a block names another node"
        above = cells[cells[number, UP], LAST]
        assert residency.parent[ids].tolist() == [above, *ids[:-1].tolist()], "a block knows another parent"
        before = self.seed if above == NO_BLOCK else residency.cells.fingerprint[above]
        assert np.array_equal(
            residency.fingerprint[ids],
            fingerprints(nodes.tokens.take(ids, axis=0).ravel(), self._block_tokens, before),
        ), "a block has another's fingerprint"
        counts = residency.num_children[ids]
        assert (counts[:-1] == 1).all(), "a block within a node has its successor for an only child"
        assert counts[-1] == len([*nodes.children(number)]), "a node's last block miscounts its children"
