"""What the radix index is made of: runs of blocks without a branch."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, cast

import numpy as np

from tiering.residency import NO_BLOCK, Ids

ID_BYTES: Final = 4
"""Ids rest in the nodes as int32."""


class Node:
    """A run of blocks without a branch, and what follows it."""

    __slots__ = ("children", "edge", "hot", "ids", "number", "up")

    edge: bytes  # the tokens of its blocks
    ids: bytes  # the ids of its blocks, int32
    number: int  # what residency.node says of its blocks
    up: "Node | None"
    children: "dict[bytes, Node] | Node | None"  # by first block; an only child stands alone
    hot: "Node"  # the child taken last, NOWHERE if that is gone

    def __init__(self, number: int, up: "Node | None", edge: bytes, ids: bytes) -> None:
        self.number = number
        self.up = up
        self.edge = edge
        self.ids = ids
        self.children = None
        self.hot = NOWHERE

    @property
    def num_blocks(self) -> int:
        return len(self.ids) // ID_BYTES

    @property
    def last(self) -> int:
        """The id of its last block, NO_BLOCK for the root."""
        return int.from_bytes(self.ids[-ID_BYTES:], "little") if self.ids else NO_BLOCK

    def child(self, first_block: bytes) -> "Node | None":
        """The child whose edge starts with these bytes of one block."""
        children = self.children
        if isinstance(children, dict):
            return children.get(first_block)
        if children is not None and children.edge.startswith(first_block):
            return children
        return None

    def each_child(self) -> "Iterator[Node]":
        children = self.children
        if isinstance(children, dict):
            yield from children.values()
        elif children is not None:
            yield children

    def all_children(self) -> "list[Node]":
        """The same, as a list of their own."""
        children = self.children
        if isinstance(children, dict):
            return list(children.values())
        return [] if children is None else [children]

    def link(self, child: "Node", block_bytes: int) -> None:
        """Add a child, or put it in the place of the one with the same first block."""
        children = self.children
        if isinstance(children, dict):
            children[child.edge[:block_bytes]] = child
        elif children is None or children.edge.startswith(child.edge[:block_bytes]):
            self.children = child
        else:
            self.children = {node.edge[:block_bytes]: node for node in (children, child)}
        self.hot = child

    def unlink(self, child: "Node", block_bytes: int) -> None:
        """Remove a child."""
        children = self.children
        if isinstance(children, dict):
            del children[child.edge[:block_bytes]]
            if len(children) == 1:
                (self.children,) = children.values()
        else:
            self.children = None
        if self.hot is child:
            self.hot = NOWHERE
        child.up = None  # no cycle is left for the garbage collector


def _nowhere() -> Node:
    """A child that is never taken: `startswith(())` is False for all bytes."""
    node = object.__new__(Node)
    node.edge = cast("Any", ())
    return node


NOWHERE = _nowhere()


class NodeLists(NamedTuple):
    """Nodes: their numbers and those of the nodes above, NO_NODE for the root; tokens and ids (int32) of their blocks."""

    numbers: list[int]
    ups: list[int]
    edges: list[bytes]
    ids: list[bytes]


def ids_of(parts: list[bytes]) -> Ids:
    """Ids as they travel, from what nodes have of them."""
    return np.frombuffer(b"".join(parts), dtype=np.int32).astype(np.intp)
