"""What follows a block of the radix index, gone through in parts while that changes."""

from collections import deque
from collections.abc import Callable

import numpy as np

from tiering.node import Node, ids_of
from tiering.residency import Ids


class Following:
    """A block, the others of its node behind it, and the nodes that follow: to be gone through while the index changes.

    Collected first, a part at a time, and then taken from one end or the other. What has left the index meanwhile is
    passed over; what was made or cut off meanwhile is not among it.
    """

    def __init__(self, node: Node, end: int) -> None:
        """From the last of the first `end` blocks of a node on, all of them for 0."""
        self._first = node
        self._of_first = frozenset(ids_of([self._first.ids])[max(end - 1, 0) :].tolist())
        """Of the first node's blocks those that count: it may become shorter at both ends."""
        self._nodes = deque([self._first])
        self._open = [self._first]

    def collect(self, num_nodes: int) -> bool:
        """Look for what follows so many more of the nodes. Whether there are others still."""
        for _ in range(min(num_nodes, len(self._open))):
            children = self._open.pop().all_children()
            self._nodes += children
            self._open += children
        return bool(self._open)

    def parents_first(self, num_blocks: int) -> Ids:
        """The ids of the next, of about so many blocks; empty when all were taken."""
        return self._take(self._nodes.popleft, num_blocks)

    def children_first(self, num_blocks: int) -> Ids:
        """The same from the other end."""
        return self._take(self._nodes.pop, num_blocks, reverse=True)

    def _take(self, pop: "Callable[[], Node]", num_blocks: int, *, reverse: bool = False) -> Ids:
        parts: list[Ids] = []
        taken = 0
        while self._nodes and taken < num_blocks:
            node = pop()
            if node.up is None:
                continue  # it has left the index
            ids = ids_of([node.ids])
            if node is self._first:
                ids = ids[[block in self._of_first for block in ids.tolist()]]
            parts.append(ids[::-1] if reverse else ids)
            taken += len(ids)
        return np.concatenate([np.empty(0, dtype=np.intp), *parts])
