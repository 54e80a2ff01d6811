"""What the index has that is most like a prompt which it does not have."""

from itertools import islice
from typing import Final

import numpy as np

from tiering.node import NOWHERE, Node

_MOST_ALIKE: Final = 64
"""Children that are compared with a prompt to find the one that is most like it: those that were added last."""
_MOST_ONWARDS: Final = 64
"""Nodes that `onwards` goes through."""


def onwards(node: Node, at: int, wanted: bytes, same: int, most_bytes: int) -> bytes:
    """The tokens of `RadixIndex.onwards` behind byte `at` of a node's edge."""
    if at < len(node.edge):
        edge = node.edge[at:]
    elif (child := _most_alike(node, wanted, same)) is not None:
        node, edge = child, child.edge
    else:
        return b""
    parts, left = [edge], most_bytes - len(edge)
    for _ in range(_MOST_ONWARDS):
        if left <= 0 or node.children is None:
            break
        node = node.hot if node.hot is not NOWHERE else next(node.each_child())
        parts.append(node.edge)
        left -= len(node.edge)
    if left < 0:
        parts[-1] = parts[-1][:left]
    return b"".join(parts)


def _most_alike(node: Node, wanted: bytes, same: int) -> Node | None:
    """The child of `node` for `onwards`; None if there is none."""
    children = node.children
    if not isinstance(children, dict):
        return children
    some = list(islice(reversed(children.values()), _MOST_ALIKE))
    if node.hot is not NOWHERE:
        some.insert(0, node.hot)
    if not wanted:
        return some[0]
    firsts = b"".join(child.edge[: len(wanted)] for child in some)
    there = np.frombuffer(firsts, dtype="<i4").reshape(len(some), -1)
    differ = there ^ np.frombuffer(wanted, dtype="<i4")
    num_alike = np.logical_and.accumulate((differ & same) == 0, axis=1).sum(axis=1)
    num_alike[(num_alike < there.shape[1]) & (differ & ~same).any(axis=1)] = -1
    return some[int(num_alike.argmax())]
