"""What the index has that is most like a prompt which it does not have."""

from itertools import islice
from typing import Final

import numpy as np

from tiering.loops.states import FIRST, NEWEST, ROOT
from tiering.nodes import Links, Nodes
from tiering.residency import NO_BLOCK

_MOST_ALIKE: Final = 64
"""Children that are compared with a prompt to find the one that is most like it: those that were added last."""
_MOST_ONWARDS: Final = 64
"""Nodes that `onwards` goes through."""


def onwards(
    nodes: Nodes, node_of: Links, node: int, below: int, wanted: bytes, same: int, most_blocks: int
) -> bytes:
    """The tokens of `RadixIndex.onwards`: from the block `below` of a node on, or behind the node if that is less than 0."""
    parts: list[bytes] = []
    if below < 0:
        below = _most_alike(nodes, node, wanted, same)
    for _ in range(_MOST_ONWARDS + 1):
        if below < 0 or most_blocks <= 0:
            break
        ids = nodes.along(nodes.after, below, most_blocks)
        parts.append(nodes.edge(ids))
        most_blocks -= len(ids)
        node = node_of.item(below)
        below = nodes.taken(node)
        if below < 0 and (newest := nodes.cells[node, NEWEST]) != ROOT:
            below = nodes.cells[newest, FIRST]
    return b"".join(parts)


def _most_alike(nodes: Nodes, node: int, wanted: bytes, same: int) -> int:
    """The first block of the child of a node for `onwards`, NO_BLOCK if there is none."""
    some: list[int] = [nodes.cells[child, FIRST] for child in islice(nodes.children(node), _MOST_ALIKE)]
    if (taken := nodes.taken(node)) != NO_BLOCK:
        some.insert(0, taken)
    if len(some) < 2 or not wanted:
        return some[0] if some else NO_BLOCK
    firsts = nodes.tokens[some]
    there = firsts[:, : len(wanted) // firsts.itemsize]
    differ = there ^ np.frombuffer(wanted, dtype="<i4")
    num_alike = np.logical_and.accumulate((differ & same) == 0, axis=1).sum(axis=1)
    num_alike[(num_alike < there.shape[1]) & (differ & ~same).any(axis=1)] = -1
    return some[int(num_alike.argmax())]
