"""Following a prompt down the radix index, by express edges where many short nodes lie in a chain."""

from collections import deque
from dataclasses import dataclass

from tiering.node import ID_BYTES, Express, Node


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """When an express edge is laid, and how much all of them may take. ValueError for what cannot work.

    One that passes few or long nodes gains nothing; one that is short is soon left again.
    """

    hops: int = 16
    """Nodes that it passes at least ..."""
    span_bytes: int = 8192
    """... so many bytes of tokens at least ..."""
    node_bytes: int = 4096
    """... and of them no more than this by each node."""
    kept_bytes: int = 32 << 20
    """What all of them copy at most: the ways of sixty prompts of 128k tokens, if these have short nodes only."""

    def __post_init__(self) -> None:
        if min(self.hops, self.span_bytes, self.node_bytes) < 1 or self.kept_bytes < 0:
            raise ValueError(
                f"an express edge passes a node at least, and takes no less than nothing: {self}"
            )


class Descent:
    """Goes from node to node as long as their edges are what the tokens go on with.

    The child that was taken last is tried first. Where a walk passed many short nodes, an *express edge* remembers all of
    them as one: their tokens, their ids and the node at the end. That is a cache of what the tree says: its tokens are
    compared like an edge's, and it counts as long as the last node's end is what it was. Nothing above a node that is in
    the tree can leave it, and a split moves no block. Those that were laid first are forgotten when all take too much.
    """

    def __init__(self, block_bytes: int, spans: Spans) -> None:
        self._block_bytes, self._spans = block_bytes, spans
        self._laid: deque[tuple[Node, Express]] = deque()
        self._laid_bytes = 0

    def walk(self, data: bytes, node: Node, at: int, parts: list[bytes]) -> tuple[Node, int]:
        """Follow whole edges from the end of `node` and byte `at` of data, adding their ids to `parts`."""
        hops, span_bytes, node_bytes = self._spans.hops, self._spans.span_bytes, self._spans.node_bytes
        start, start_at, start_part = node, at, len(parts)
        while True:
            express = node.express
            if (
                express is not None
                and express.version == express.target.version
                and data.startswith(express.edge, at)
            ):
                parts.append(express.ids)
                at += len(express.edge)
                node = express.target
                start, start_at, start_part = node, at, len(parts)
                continue
            child = node.hot
            if not data.startswith(child.edge, at):
                children = node.children
                if isinstance(children, dict):
                    children = children.get(data[at : at + self._block_bytes])
                if children is None or not data.startswith(children.edge, at):
                    return node, at
                node.hot = child = children
            parts.append(child.ids)
            at += len(child.edge)
            node = child
            passed, num_nodes = at - start_at, len(parts) - start_part
            if num_nodes >= hops and span_bytes <= passed <= num_nodes * node_bytes:
                self._lay(start, Express(data[start_at:at], b"".join(parts[start_part:]), node))
                start, start_at, start_part = node, at, len(parts)

    def _lay(self, start: Node, express: Express) -> None:
        start.express = express
        self._laid.append((start, express))
        self._laid_bytes += express.num_bytes
        while self._laid_bytes > self._spans.kept_bytes:
            node, oldest = self._laid.popleft()
            self._laid_bytes -= oldest.num_bytes
            if node.express is oldest:
                node.express = None

    def enter(self, data: bytes, node: Node, at: int) -> tuple[Node | None, int]:
        """The child of `node` that shares its first blocks, but not its whole edge, with data; and how many."""
        if at == len(data):
            return None, 0
        child = node.child(data[at : at + self._block_bytes])
        return (None, 0) if child is None else (child, self.common(child.edge, 0, data, at))

    def common(self, edge: bytes, edge_at: int, data: bytes, at: int) -> int:
        """Number of blocks in which edge from `edge_at` and data from `at` agree."""
        block_bytes = self._block_bytes
        low, high = 0, min(len(edge) - edge_at, len(data) - at) // block_bytes
        middle = high  # more often than not one is a prefix of the other
        while low < high:
            start, end = low * block_bytes, middle * block_bytes
            if edge[edge_at + start : edge_at + end] == data[at + start : at + end]:
                low = middle
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return low

    def check(self) -> None:
        """Raise AssertionError unless express edges lead where the tree does, and take what is counted."""
        laid = sum(express.num_bytes for _, express in self._laid)
        assert laid == self._laid_bytes <= self._spans.kept_bytes, (
            f"express edges take {laid} bytes, not counted"
        )
        for node, express in self._laid:
            if node.express is express and express.is_right:
                self._check_express(node, express)

    def _check_express(self, node: Node, express: Express) -> None:
        ids, at = [], 0
        while at < len(express.edge):
            child = node.child(express.edge[at : at + self._block_bytes])
            assert child is not None and express.edge.startswith(child.edge, at), (
                "an express edge leads astray"
            )
            ids.append(child.ids)
            node, at = child, at + len(child.edge)
        assert node is express.target, "an express edge ends elsewhere"
        assert b"".join(ids) == express.ids, "an express edge has other blocks"
        assert len(express.ids) // ID_BYTES == len(express.edge) // self._block_bytes, (
            "its blocks are too few"
        )
