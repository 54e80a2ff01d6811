"""Many runs of new blocks entered into the radix index at once, as far as they meet nothing that is there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiering.loops.states import COUNT, LAST, NEWEST, ROOT
from tiering.nodes import Nodes
from tiering.residency import NO_BLOCK, Ids, Residency
from tiering.watch import Watch


class NewRuns(NamedTuple):
    """Runs of new blocks, in the order in which they are entered."""

    tokens: bytes
    """Of all blocks, run by run."""
    lengths: Sequence[int]
    """Blocks of each run, at most max_node_blocks."""
    tails: Sequence[int]
    """The block that each follows, NO_BLOCK for none, unless it follows the last block of one of these runs ..."""
    after: Sequence[int]
    """... whose number is here, which is -1 for the others."""
    alone: Sequence[bool]
    """Whether no other run that will come follows the same block."""


class Plants:
    """One call of `RadixIndex.plant`."""

    def __init__(self, nodes: Nodes, residency: Residency, max_node_blocks: int, watch: Watch) -> None:
        self._nodes, self._residency, self._watch = nodes, residency, watch
        self._max_node_blocks = max_node_blocks

    def plant(self, runs: NewRuns, seed: NDArray[np.uint64]) -> tuple[Ids, int]:
        """The ids of the first runs' blocks, and how many runs these are."""
        tokens, lengths, tails, after, alone = runs
        assert max(lengths, default=0) <= self._max_node_blocks, "a run is longer than a node may be"
        nodes, residency = self._nodes, self._residency
        # what is compiled reads on
        assert len(tokens) == 4 * nodes.block_tokens * sum(lengths), "runs have other tokens"
        ids = nodes.allocate(residency, sum(lengths))
        prompt, size = np.frombuffer(tokens, dtype="<i4"), nodes.block_tokens
        numbers, stop = list[int](), 0
        for length, tail, run, only in zip(lengths, tails, after, alone, strict=True):
            up = numbers[run] if run >= 0 else self._ending_at(tail)
            if up is None:
                break
            piece = ids[stop : stop + length]
            nodes.lay(piece, prompt[stop * size :])
            number = self._plant_one(up, piece, only=only)
            if number is None:
                break
            stop += length
            numbers.append(number)
        residency.free(ids[stop:])
        ids, num_runs = ids[:stop], len(numbers)
        if num_runs:
            entered = NewRuns(
                tokens, lengths[:num_runs], tails[:num_runs], after[:num_runs], alone[:num_runs]
            )
            self._fill_in(ids, entered, seed)
        return ids, num_runs

    def _ending_at(self, block: int) -> int | None:
        """The node whose last block this is, the root for NO_BLOCK; None if its node goes on."""
        if block == NO_BLOCK:
            return ROOT
        if self._nodes.after.item(block) >= 0:
            return None
        node = self._residency.cells.node[block]
        assert node > ROOT, "the block is not in the index"
        return node

    def _plant_one(self, up: int, ids: Ids, *, only: bool) -> int | None:
        """A run below the last block of a node: in it, if that is a leaf, will stay a run, and has room.

        None, and no change, if what follows that block begins likewise, or there is no memory: `extend` will say so.
        """
        nodes, first = self._nodes, ids.item(0)
        is_leaf = up != ROOT and nodes.cells[up, NEWEST] == ROOT
        if only and is_leaf and nodes.cells[up, COUNT] + len(ids) <= self._max_node_blocks:
            nodes.lengthen(up, ids, self._residency.node)
            self._watch.note(up)
            return up
        if not is_leaf and nodes.like(first, nodes.cells[up, LAST]) != NO_BLOCK:
            return None
        try:
            number = nodes.new(up, first, ids.item(-1), self._residency.node)
        except MemoryError:
            return None
        self._watch.note(number)
        return number

    def _fill_in(self, ids: Ids, runs: NewRuns, seed: NDArray[np.uint64]) -> None:
        """The columns of blocks that were planted."""
        _, lengths, tails, after, _ = runs
        residency = self._residency
        counts, behind = np.array(lengths), np.array(after)
        stops = np.cumsum(counts)
        above: NDArray[np.intp] = np.where(behind >= 0, ids[stops[behind] - 1], np.array(tails))
        residency.parent[ids[1:]] = ids[:-1]
        residency.parent[ids[stops - counts]] = above
        residency.num_children[ids] = 1
        residency.num_children[ids[stops - 1]] = 0
        np.add.at(residency.num_children, above[above != NO_BLOCK], 1)
        self._nodes.name(ids, residency.parent, seed, residency.fingerprint)
