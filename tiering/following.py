"""What follows a block of the radix index, gone through in parts while that changes."""

from collections import deque
from collections.abc import Callable

import numpy as np

from tiering.loops.states import FIRST, ROOT
from tiering.nodes import Nodes
from tiering.residency import Ids


class Following:
    """A block, the others of its node behind it, and the nodes that follow: to be gone through while the index changes.

    Collected first, a part at a time, and then taken from one end or the other. What has left the index meanwhile is
    passed over; what was made or cut off meanwhile is not among it.
    """

    def __init__(self, nodes: Nodes, node: int, block: int) -> None:
        """From a block of a node on; the root and NO_BLOCK for all blocks."""
        self._nodes = nodes
        self._first = node
        self._of_first = frozenset(nodes.run(block).tolist())
        """Of the first node's blocks those that count: it may become shorter at both ends."""
        self._found = deque([(node, nodes.life(node))])
        self._open = [(node, nodes.life(node))]

    def collect(self, num_nodes: int) -> bool:
        """Look for what follows so many more of the nodes. Whether there are others still."""
        for _ in range(min(num_nodes, len(self._open))):
            node, life = self._open.pop()
            if self._nodes.life(node) == life:
                children = [(child, self._nodes.life(child)) for child in self._nodes.children(node)]
                self._found += children
                self._open += children
        return bool(self._open)

    def parents_first(self, num_blocks: int) -> Ids:
        """The ids of the next, of about so many blocks; empty when all were taken."""
        return self._take(self._found.popleft, num_blocks)

    def children_first(self, num_blocks: int) -> Ids:
        """The same from the other end."""
        return self._take(self._found.pop, num_blocks, reverse=True)

    def _take(self, pop: Callable[[], tuple[int, int]], num_blocks: int, *, reverse: bool = False) -> Ids:
        parts: list[Ids] = []
        taken = 0
        while self._found and taken < num_blocks:
            node, life = pop()
            if node == ROOT or self._nodes.life(node) != life:
                continue  # it has no blocks, or has left the index
            ids = self._nodes.run(self._nodes.cells[node, FIRST])
            if node == self._first:
                ids = ids[[block in self._of_first for block in ids.tolist()]]
            parts.append(ids[::-1] if reverse else ids)
            taken += len(ids)
        return np.concatenate([np.empty(0, dtype=np.intp), *parts])
