"""The prefix index: a compressed radix tree over whole blocks of tokens.

An edge is the `bytes` of its tokens, so that following it is one memcmp; token ids are compared, never hashed (save
for a child's first block, in a dict that compares exactly), hence no collision can give somebody else's blocks. The
child that was taken last is tried first. An edge holds at most `max_node_blocks` blocks, which bounds what a split,
an extension or a trim copies.

      (root)
        |  edge: 3 blocks, ids 0 1 2
       node -------------.
        | edge, ids 3 4   | edge, ids 7
       node              node

A block's id does not change when its node is split: all state by block is in the `Residency`.
"""

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tiering.descent import Descent, Spans
from tiering.fingerprints import add_fingerprints, fingerprints
from tiering.following import Following
from tiering.kernels import kernels
from tiering.node import ID_BYTES, Node, NodeLists, ids_of, untrack
from tiering.onwards import onwards
from tiering.residency import NO_BLOCK, NO_NODE, Ids, Residency
from tiering.watch import Watch

Tokens = NDArray[np.int32]

_TOKEN = np.dtype("<i4")


class RadixIndex:
    """Finds the blocks of a prompt's longest known prefix, and gives new blocks their place in the tree.

    Owns the columns `parent`, `num_children` and `node` of the residency. Prefix-closed: a block's parent is in the
    index. Not thread-safe: the engine loop is the only caller. Tokens are 1-D little-endian int32 arrays, of which
    only whole blocks count; ids are intp arrays, new on each call.
    """

    def __init__(
        self,
        block_tokens: int,
        residency: Residency,
        max_node_blocks: int = 128,
        spans: Spans | None = None,
        seed: int | None = None,
    ) -> None:
        """An empty index over `residency`, of which it is the only allocator. ValueError for sizes below 1.

        `spans`: when express edges are laid; by default where measurement says that they pay. `seed`: of fingerprints, for
        who must have the same twice; None: one that nobody knows.
        """
        self._root = Node(NO_NODE, None, b"", b"")
        self._nodes: list[Node | None] = []
        untrack(self._nodes)
        if block_tokens < 1 or max_node_blocks < 1:
            raise ValueError(
                f"block_tokens and max_node_blocks must be at least 1, not {block_tokens}, {max_node_blocks}"
            )
        self._residency = residency
        self._chain, self._node_runs = kernels().chain, kernels().node_runs
        self.seed = secrets.randbits(64) if seed is None else seed
        """What the fingerprints of first blocks follow."""
        self._block_tokens = block_tokens
        self._block_bytes = block_tokens * _TOKEN.itemsize
        self._max_node_blocks = max_node_blocks
        self._descent = Descent(self._block_bytes, spans or Spans())
        # What match converts to bytes at first: most prompts are shorter, and many long ones end in it.
        self._head_blocks = 4 * max_node_blocks
        self._free_numbers: list[int] = []
        self.watch = Watch()
        """Told which nodes change."""
        self._num_blocks = 0

    def __del__(self) -> None:
        """Nodes are in cycles, which no collector looks for."""
        for node in self._nodes:
            if node is not None:
                node.forget()
        self._root.forget()

    def __len__(self) -> int:
        """Number of blocks in the index."""
        return self._num_blocks

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
        num_blocks = self._whole_blocks(tokens)
        parts: list[bytes] = []
        data = tokens[: min(num_blocks, self._head_blocks) * self._block_tokens].tobytes()
        node, at = self._descent.walk(data, self._root, 0, parts)
        head_end = self._head_blocks - self._max_node_blocks
        if num_blocks > self._head_blocks and at > head_end * self._block_bytes:
            # The head may have stopped the walk in the middle of an edge.
            data = tokens[: num_blocks * self._block_tokens].tobytes()
            node, at = self._descent.walk(data, node, at, parts)
        child, common = self._descent.enter(data, node, at)
        if child is not None:
            parts.append(child.ids[: common * ID_BYTES])
        return ids_of(parts)

    def match_below(self, block: int, tokens: Tokens) -> Ids:
        """`match` for tokens that follow `block`, NO_BLOCK for the start: takes the same time at any depth."""
        num_blocks = self._whole_blocks(tokens)
        node, end = self._locate(block)
        if not num_blocks or not self._goes_on(node, end, tokens[: self._block_tokens].tobytes()):
            return np.empty(0, dtype=np.intp)
        parts: list[bytes] = []
        self._follow(node, end, tokens[: num_blocks * self._block_tokens].tobytes(), parts)
        return ids_of(parts)

    def _goes_on(self, node: Node, end: int, first_block: bytes) -> bool:
        """Whether this block follows the first `end` blocks of a node."""
        if end < node.num_blocks:
            return node.edge.startswith(first_block, end * self._block_bytes)
        return node.child(first_block) is not None

    def tokens_up(self, block: int, num_blocks: int = 1) -> list[bytes]:
        """The tokens of a block, of its parent and so on, of so many on the way up: block_tokens little-endian int32 each."""
        size, found = self._block_bytes, list[bytes]()
        node, end = self._locate(block)
        while True:
            edge, top = node.edge, max(0, end - num_blocks + len(found))
            found += [edge[stop - size : stop] for stop in range(end * size, top * size, -size)]
            if len(found) == num_blocks:
                return found
            assert node.up is not None, "so many blocks do not lead to this one"
            node = node.up
            end = node.num_blocks

    def path(self, block: int) -> Ids:
        """The ids from the first block of the prefix down to `block`, inclusive; empty for NO_BLOCK."""
        node, end = self._locate(block)
        parts = [node.ids[: end * ID_BYTES]]
        while node.up is not None:
            node = node.up
            parts.append(node.ids)
        return ids_of(parts[::-1])

    def subtree(self, block: int) -> Ids:
        """The ids of `block` and all that follow it, each after its parent; the whole index for NO_BLOCK."""
        node, end = self._locate(block)
        parts = [node.ids[max(end - 1, 0) * ID_BYTES :]]
        stack = [node]
        while stack:
            for child in stack.pop().each_child():
                parts.append(child.ids)
                stack.append(child)
        return ids_of(parts)

    def onwards(self, block: int, wanted: bytes, same: int, most_blocks: int) -> bytes:
        """What follows `block` in the cached prompt that is most like `wanted`, as tokens; empty if nothing does.

        `wanted`: the first block of tokens that would have to follow for a longer match, or less than a block. Alike is
        who has most of its first tokens, looking only at the bits of ids that are set in `same`; but whose other bits
        differ, who has all of them or stands behind those whose do not. Among equals who was
        taken or added last. From there on it is the way that was taken last, for `most_blocks` blocks or some dozens of
        nodes.
        """
        node, end = self._locate(block)
        return onwards(node, end * self._block_bytes, wanted, same, most_blocks * self._block_bytes)

    def following(self, block: int) -> Following:
        """A block and all that follow it, in parts. Changes nothing."""
        return Following(*self._locate(block))

    @property
    def num_numbers(self) -> int:
        """Nodes have smaller numbers; not each of these names one."""
        return len(self._nodes)

    def nodes(self, numbers: Sequence[int]) -> NodeLists:
        """What these numbers name, as far as there is such a node."""
        nodes = self._nodes
        found = [node for number in numbers if (node := nodes[number]) is not None]
        return NodeLists(
            [node.number for node in found],
            [NO_NODE if node.up is None else node.up.number for node in found],
            [node.edge for node in found],
            [node.ids for node in found],
        )

    # ---- changing

    def insert(self, tokens: Tokens) -> Ids:
        """Make sure that all whole blocks of these tokens are there; return their ids, first block first.

        Blocks that were missing are allocated: absent everywhere and never touched. ValueError as in `match`.
        """
        num_blocks = self._whole_blocks(tokens)
        return self._add(self._root, 0, tokens[: num_blocks * self._block_tokens].tobytes())

    def extend(self, parent: int, edge: bytes) -> Ids:
        """Make sure that the blocks of `edge` follow `parent` (NO_BLOCK for the start); return their ids.

        As `insert`, without walking down to the parent: adding to the tail of a leaf takes the same time at any
        depth. `edge` is the tokens of whole blocks as little-endian int32; ValueError if its length says otherwise.
        """
        if len(edge) % self._block_bytes:
            raise ValueError(
                f"an edge holds whole blocks of {self._block_bytes} bytes, not {len(edge)} bytes"
            )
        node, end = self._locate(parent)
        return self._add(node, end, edge)

    def append(self, parent: int, edge: bytes) -> Ids:
        """`extend` where the caller knows that nothing which begins with the first block of `edge` follows `parent`."""
        node, end = self._locate(parent)
        if end < node.num_blocks:
            node = self._split(node, end)
        return self._append(node, edge)

    def remove(self, ids: Ids) -> None:
        """Take blocks out of the index and free their ids.

        Each must have no children at its turn: give the deepest first. Each must be absent from all tiers, unleased
        and unread; tell the policy before, while parents and stamps can still be read.
        """
        residency = self._residency
        if len(ids) == 1:
            self.remove_leaf(ids.item(), residency.cells.parent[ids.item()])
            return
        cells, stop, start = residency.cells, len(ids), 0
        packed = ids[::-1].astype(np.int32).tobytes()  # back to front, as the nodes hold them
        ends: Ids = np.empty(stop, dtype=np.intp)
        num_runs = self._node_runs(residency.node, ids, ends)
        for end in ends[:num_runs].tolist():
            tail = packed[(stop - end) * ID_BYTES : (stop - start) * ID_BYTES]
            last = ids.item(end - 1)
            self._trim(cells.node[last], tail, cells.parent[last])
            start = end
        residency.num_children[ids] = 0  # within a run each had the next one, which went before it
        residency.free(ids)
        self._num_blocks -= stop

    def remove_leaf(self, block: int, parent: int) -> None:
        """`remove` for one block, whose parent is known: evicting one at a time must stay cheap."""
        self._trim(self._residency.cells.node[block], block.to_bytes(ID_BYTES, "little"), parent)
        self._residency.free_one(block)
        self._num_blocks -= 1

    # ---- the walk

    def _whole_blocks(self, tokens: Tokens) -> int:
        if tokens.dtype != _TOKEN or tokens.ndim != 1:
            raise ValueError(
                f"tokens must be a 1-D array of little-endian int32, not {tokens.ndim}-D of {tokens.dtype}"
            )
        return len(tokens) // self._block_tokens

    def _locate(self, block: int) -> tuple[Node, int]:
        """The node of a block, and the number of the node's blocks up to and including it."""
        if block == NO_BLOCK:
            return self._root, 0
        node = self._node(self._residency.cells.node[block])
        if node.last == block:
            return node, node.num_blocks
        return node, node.place(block) + 1

    def _node(self, number: int) -> Node:
        node = self._nodes[number] if number != NO_NODE else None
        assert node is not None, "the block is not in the index"
        return node

    def _follow(self, node: Node, end: int, data: bytes, parts: list[bytes]) -> tuple[Node, int, int]:
        """Go on from the first `end` blocks of `node` as far as data does, adding ids to `parts`.

        Answers where that is: the first so many blocks of which node, and which byte of data.
        """
        at = 0
        if end < node.num_blocks:
            common = self._descent.common(node.edge, end * self._block_bytes, data, 0)
            parts.append(node.ids[end * ID_BYTES : (end + common) * ID_BYTES])
            end, at = end + common, common * self._block_bytes
            if end < node.num_blocks:
                return node, end, at
        node, at = self._descent.walk(data, node, at, parts)
        child, common = self._descent.enter(data, node, at)
        if child is None:
            return node, node.num_blocks, at
        parts.append(child.ids[: common * ID_BYTES])
        return child, common, at + common * self._block_bytes

    # ---- the tree

    def _add(self, node: Node, end: int, data: bytes) -> Ids:
        """Follow data from the first `end` blocks of `node`, and add what is missing of it."""
        parts: list[bytes] = []
        node, end, at = self._follow(node, end, data, parts)
        if at < len(data):
            if end < node.num_blocks:
                node = self._split(node, end)
            parts.append(self._append(node, data[at:]).astype(np.int32).tobytes())
        return ids_of(parts)

    def _append(self, node: Node, edge: bytes) -> Ids:
        """Allocate the blocks of `edge`, which differ from all children of `node`, below it."""
        residency = self._residency
        num_blocks = len(edge) // self._block_bytes
        ids = residency.allocate(num_blocks)
        last = node.last
        self._chain(residency.parent, residency.num_children, last, ids)
        if last != NO_BLOCK:
            residency.cells.num_children[last] += 1
        before = self.seed if last == NO_BLOCK else residency.cells.fingerprint[last]
        residency.fingerprint[ids] = fingerprints(edge, self._block_bytes, before)
        self._num_blocks += num_blocks
        packed = ids.astype(np.int32).tobytes()
        start = 0
        if node.children is None and node is not self._root:  # a leaf grows in place
            start = min(self._max_node_blocks - node.num_blocks, num_blocks)
            node.edge += edge[: start * self._block_bytes]
            node.ids += packed[: start * ID_BYTES]
            residency.node[ids[:start]] = node.number
            node.version += 1
            self.watch.note(node.number)
        while start < num_blocks:
            stop = min(start + self._max_node_blocks, num_blocks)
            piece = edge[start * self._block_bytes : stop * self._block_bytes]
            node = self._new_node(node, piece, packed[start * ID_BYTES : stop * ID_BYTES])
            residency.node[ids[start:stop]] = node.number
            start = stop
        return ids

    def _new_node(self, up: Node, edge: bytes, ids: bytes) -> Node:
        """A node in the place below `up` that its first block names."""
        node = Node(self._next_number, up, edge, ids)
        self._number(node)
        up.link(node, self._block_bytes)
        return node

    @property
    def _next_number(self) -> int:
        """What the next node is called."""
        return self._free_numbers[-1] if self._free_numbers else len(self._nodes)

    def _number(self, node: Node) -> None:
        """A node that is called by the next number is there."""
        if self._free_numbers:
            self._nodes[self._free_numbers.pop()] = node
        else:
            self._nodes.append(node)
        self.watch.note(node.number)

    def _split(self, lower: Node, num_blocks: int) -> Node:
        """Move the first `num_blocks` blocks of a node, fewer than all, into a new one above it; return that."""
        assert lower.up is not None, "the root has no blocks to split"
        at, ids_at = num_blocks * self._block_bytes, num_blocks * ID_BYTES
        upper = self._new_node(lower.up, lower.edge[:at], lower.ids[:ids_at])
        lower.edge = lower.edge[at:]
        lower.ids = lower.ids[ids_at:]
        lower.up = upper
        self.watch.note(lower.number)
        upper.link(lower, self._block_bytes)
        self._residency.node[ids_of([upper.ids])] = upper.number
        return upper

    def _trim(self, number: int, tail: bytes, parent: int) -> None:
        """Take the blocks with these ids, which follow `parent`, off the end of a leaf."""
        node = self._node(number)
        self.watch.note(number)
        ids = node.ids
        assert node.children is None, "a block with children cannot leave the index"
        assert ids.endswith(tail), "a block with children cannot leave the index: give the deepest first"
        if parent != NO_BLOCK:
            self._residency.cells.num_children[parent] -= 1
        node.version += 1
        if len(tail) < len(ids):
            node.ids = ids[: -len(tail)]
            node.edge = node.edge[: -(len(tail) // ID_BYTES) * self._block_bytes]
            return
        assert node.up is not None, "the root has no blocks to trim"
        node.up.unlink(node, self._block_bytes)
        self._nodes[number] = None
        self._free_numbers.append(number)

    # ---- conservation

    def check(self) -> None:
        """Raise AssertionError unless tree and residency agree. Takes time in proportion to the index."""
        residency = self._residency
        self._descent.check()
        num_blocks = num_nodes = 0
        stack = [self._root]
        while stack:
            node = stack.pop()
            node.check(self._block_bytes)
            for child in node.each_child():
                self._check_blocks(node, child)
                num_nodes += 1
                num_blocks += child.num_blocks
                stack.append(child)
        assert num_blocks == len(self), f"{num_blocks} blocks in the tree, {len(self)} counted"
        assert num_nodes + len(self._free_numbers) == len(self._nodes), "a node's number is lost"
        assert all(self._nodes[n] is None for n in set(self._free_numbers)), "a number in use is free"
        assert len(set(self._free_numbers)) == len(self._free_numbers), "a node's number is free twice"
        claimed = np.count_nonzero(residency.node[residency.live] != NO_NODE)
        assert claimed == num_blocks, f"{claimed} blocks name a node, {num_blocks} are in the tree"

    def _check_blocks(self, node: Node, child: Node) -> None:
        assert 0 < child.num_blocks <= self._max_node_blocks, f"a node of {child.num_blocks} blocks"
        assert len(child.edge) == child.num_blocks * self._block_bytes, "edge and ids differ in length"
        assert self._nodes[child.number] is child, "a node's number names another"
        residency, ids = self._residency, ids_of([child.ids])
        assert residency.live[ids].all(), "a dead block is in the index"
        assert (residency.node[ids] == child.number).all(), "a block names another node"
        above = [node.last, *ids[:-1].tolist()]
        assert residency.parent[ids].tolist() == above, "a block knows another parent"
        before = self.seed if node.last == NO_BLOCK else residency.cells.fingerprint[node.last]
        assert np.array_equal(
            residency.fingerprint[ids], fingerprints(child.edge, self._block_bytes, before)
        ), "a block has another's fingerprint"
        counts = residency.num_children[ids]
        assert (counts[:-1] == 1).all(), "a block within a node has its successor for an only child"
        assert counts[-1] == sum(1 for _ in child.each_child()), "a node's last block miscounts its children"

    # ---- many at once

    def plant(
        self,
        tokens: bytes,
        lengths: Sequence[int],
        tails: Sequence[int],
        after: Sequence[int],
        alone: Sequence[bool],
    ) -> tuple[Ids, int]:
        """`extend` for many runs of new blocks, in microseconds each, as far as they meet nothing that is there.

        tokens: of all blocks, run by run.   lengths: blocks of each run, at most max_node_blocks.   tails: the block
        that each follows, NO_BLOCK for none, unless it follows the last block of a run of this call: that run's number
        is in `after`, which is -1 for the others.   alone: whether no other run that will come follows the same block.

        Answers the ids of the first runs' blocks, and how many runs these are: it ends at one whose first block is there
        already, or that follows a block behind which its node goes on. `extend` takes that one.
        """
        assert max(lengths, default=0) <= self._max_node_blocks, "a run is longer than a node may be"
        ids = self._residency.allocate(sum(lengths))
        block_bytes, packed = self._block_bytes, ids.astype(np.int32).tobytes()
        nodes, numbers, stop = list[Node](), list[int](), 0
        for length, tail, run, only in zip(lengths, tails, after, alone, strict=True):
            up = nodes[run] if run >= 0 else self._ending_at(tail)
            if up is None:
                break
            start, stop = stop, stop + length
            edge = tokens[start * block_bytes : stop * block_bytes]
            node = self._plant_one(up, edge, packed[start * ID_BYTES : stop * ID_BYTES], only=only)
            if node is None:
                stop = start
                break
            nodes.append(node)
            numbers.append(node.number)
        self._residency.free(ids[stop:])
        ids, num_runs = ids[:stop], len(nodes)
        self._num_blocks += stop
        if num_runs:
            self._fill_in(ids, tokens, lengths[:num_runs], tails[:num_runs], after[:num_runs], numbers)
        return ids, num_runs

    def _ending_at(self, block: int) -> Node | None:
        """The node whose last block this is, the root for NO_BLOCK; None if its node goes on."""
        if block == NO_BLOCK:
            return self._root
        node = self._node(self._residency.cells.node[block])
        return node if node.last == block else None

    def _plant_one(self, up: Node, edge: bytes, ids: bytes, *, only: bool) -> Node | None:
        """A run below the last block of a node: in it, if that is a leaf, will stay a run, and has room.

        None, and no change, if what follows that block begins likewise.
        """
        if only and up.children is None and up is not self._root:
            most_bytes = self._max_node_blocks * ID_BYTES
            if len(up.ids) + len(ids) <= most_bytes:
                up.edge += edge
                up.ids += ids
                up.version += 1
                self.watch.note(up.number)
                return up
        node = Node(self._next_number, up, edge, ids)
        if not up.adopt(node, edge[: self._block_bytes]):
            return None
        self._number(node)
        return node

    def _fill_in(
        self,
        ids: Ids,
        tokens: bytes,
        lengths: Sequence[int],
        tails: Sequence[int],
        after: Sequence[int],
        numbers: Sequence[int],
    ) -> None:
        """The columns of blocks that were planted."""
        residency = self._residency
        counts, behind = np.array(lengths), np.array(after)
        stops = np.cumsum(counts)
        above = np.where(behind >= 0, ids[stops[behind] - 1], np.array(tails))
        residency.parent[ids[1:]] = ids[:-1]
        residency.parent[ids[stops - counts]] = above
        residency.node[ids] = np.repeat(numbers, counts)
        residency.num_children[ids] = 1
        residency.num_children[ids[stops - 1]] = 0
        np.add.at(residency.num_children, above[above != NO_BLOCK], 1)
        befores = np.where(above == NO_BLOCK, np.uint64(self.seed), residency.fingerprint[above])
        chain: list[int] = []
        ends = stops.tolist()
        for end, length, run, before in zip(ends, lengths, after, befores.tolist(), strict=True):
            if run >= 0:
                before = chain[ends[run] - 1]
            add_fingerprints(tokens, self._block_bytes, end - length, length, before, chain)
        residency.fingerprint[ids] = np.array(chain, dtype=np.uint64)
