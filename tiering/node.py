"""What the radix index is made of: runs of blocks without a branch.

The garbage collector is told to leave nodes alone. They are in cycles, up and down, but whatever leaves the tree is
unlinked, and so is a whole index that is dropped: reference counts suffice. A full collection would look at each of them,
fifty milliseconds for a hundred thousand (docs/adr/0009).
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, cast

import numpy as np

from tiering.residency import NO_BLOCK, Ids

ID_BYTES: Final = 4
"""Ids rest in the nodes as int32."""

if sys.implementation.name == "cpython":
    untrack: Callable[[object], None] = ctypes.PYFUNCTYPE(None, ctypes.py_object)(
        ("PyObject_GC_UnTrack", ctypes.pythonapi)
    )
    """Have the garbage collector leave an object alone: what it is part of may not become a cycle that nobody unlinks."""
else:

    def untrack(_: object) -> None:
        """Other interpreters have other collectors."""


class Node:
    """A run of blocks without a branch, and what follows it."""

    __slots__ = ("children", "edge", "express", "hot", "ids", "number", "up", "version")

    edge: bytes  # the tokens of its blocks
    ids: bytes  # the ids of its blocks, int32
    number: int  # what residency.node says of its blocks
    up: "Node | None"
    children: "dict[bytes, Node] | Node | None"  # by first block; an only child stands alone
    hot: "Node"  # the child taken last, NOWHERE if that is gone
    express: "Express | None"  # a way to a node far below
    version: int  # grows when its last block is another

    def __init__(self, number: int, up: "Node | None", edge: bytes, ids: bytes) -> None:
        self.number = number
        self.up = up
        self.edge = edge
        self.ids = ids
        self.children = None
        self.hot = NOWHERE
        self.express = None
        self.version = 0
        untrack(self)

    @property
    def num_blocks(self) -> int:
        return len(self.ids) // ID_BYTES

    @property
    def last(self) -> int:
        """The id of its last block, NO_BLOCK for the root."""
        return int.from_bytes(self.ids[-ID_BYTES:], "little") if self.ids else NO_BLOCK

    def place(self, block: int) -> int:
        """How many of its blocks come before this one, which is one of them."""
        ids, name = self.ids, block.to_bytes(ID_BYTES, "little")
        at = ids.find(name)
        while at > 0 and at % ID_BYTES:  # the end of one id and the beginning of the next may look like it
            at = ids.find(name, at + 1)
        assert at >= 0, "a block is not where the index says"
        return at // ID_BYTES

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

    def adopt(self, child: "Node", first_block: bytes) -> bool:
        """Add a child that begins with this block; False, and no change, if there is one that does."""
        children = self.children
        if children is None:
            self.children = child
        elif isinstance(children, dict):
            if first_block in children:
                return False
            children[first_block] = child
            untrack(children)  # whoever writes to it has it tracked again
        elif children.edge.startswith(first_block):
            return False
        else:
            self.children = {children.edge[: len(first_block)]: children, first_block: child}
            untrack(self.children)
        self.hot = child
        return True

    def link(self, child: "Node", block_bytes: int) -> None:
        """Add a child, or put it in the place of the one with the same first block."""
        first_block = child.edge[:block_bytes]
        if self.adopt(child, first_block):
            return
        if isinstance(self.children, dict):
            self.children[first_block] = child
            untrack(self.children)
        else:
            self.children = child
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
        child.up = child.express = None  # no cycle is left for the garbage collector
        child.edge = child.ids = b""  # express edges may keep the node for a while

    def check(self, block_bytes: int) -> None:
        """Raise AssertionError unless its children are where they belong."""
        children = self.all_children()
        if isinstance(self.children, dict):
            assert len(children) > 1, "an only child stands alone"
            firsts = [child.edge[:block_bytes] for child in children]
            assert firsts == list(self.children), "a child is filed under another's first block"
        assert self.hot is NOWHERE or self.hot in children, "the hot child is gone"
        assert all(child.up is self for child in children), "a child knows another parent"

    def forget(self) -> None:
        """The whole index is dropped: leave no cycle."""
        self.up = self.children = self.express = None
        self.hot = NOWHERE


class Express:
    """Many short nodes that lie in a chain, as one edge: their tokens and ids, and the last of them."""

    __slots__ = ("edge", "ids", "target", "version")

    def __init__(self, edge: bytes, ids: bytes, target: Node) -> None:
        self.edge, self.ids, self.target = edge, ids, target
        self.version = target.version
        untrack(self)

    @property
    def num_bytes(self) -> int:
        return len(self.edge) + len(self.ids)

    @property
    def is_right(self) -> bool:
        """Whether it still leads to the end of its last node."""
        return self.target.version == self.version


def _nowhere() -> Node:
    """A child that is never taken: `startswith(())` is False for all bytes."""
    node = object.__new__(Node)
    node.edge = cast("Any", ())
    untrack(node)
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
