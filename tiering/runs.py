"""The runs of blocks that a walk over the index has seen: as arrays, in which whole lists are chosen and sorted at once."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore.block import TOKEN_ID_BYTES
from kvstore.reports import PrefixOrder, PrefixQuery
from tiering.radix import Tokens
from tiering.residency import NO_NODE, Tier
from tiering.walk import Nodes

NO_RUN: Final = -1

Numbers = NDArray[np.int64]


class Hashed(NamedTuple):
    """Every block of a list by its key's first 8 bytes, ascending: its node, and where it ends in the node's tokens."""

    words: NDArray[np.uint64]
    nodes: NDArray[np.int64]
    ends: NDArray[np.int64]


class Runs:
    """All runs, by number: nodes that follow each other without a branch are one. Never changed, once it is made.

    `starts`, `ends`: token positions; `blocks`, `held` (a row a tier), `below`: counts of blocks; `hits`, `leases`,
    `touched_s`, `kept`: of the first block; `private`, `own_s`, `by_default`: of the last; `children`, `parents`: runs, NO_RUN for none.
    """

    def __init__(self, parts: list[Nodes], block_tokens: int) -> None:
        """Any thread may do this: it takes milliseconds, for many runs tens of them."""
        self._block_bytes = block_tokens * TOKEN_ID_BYTES
        seen = _Columns(parts)
        self._edges, self._up = seen.edges, seen.ups
        self.hashed: Hashed | None = None
        """All keys, once somebody has searched for one that was not handed out of late."""
        self._arrange(seen, block_tokens)

    def _arrange(self, seen: "_Columns", block_tokens: int) -> None:
        up, num_nodes = self._up, len(self._up)
        self._by_up = np.argsort(up, kind="stable")
        sorted_up = up[self._by_up]
        self._first = np.searchsorted(sorted_up, np.arange(-1, num_nodes), side="left")
        num_children = np.bincount(up + 1, minlength=num_nodes + 1)  # the first is the root's
        levels = self._levels()
        self._order = np.concatenate([*levels, np.empty(0, np.int64)])
        only = (up >= 0) & (num_children[up + 1] == 1)
        ends, head, below = seen.blocks.copy(), np.arange(num_nodes), np.zeros(num_nodes, np.int64)
        for level in levels[1:]:
            ends[level] += ends[up[level]]
            head[level] = np.where(only[level], head[up[level]], level)
        for level in reversed(levels[1:]):
            np.add.at(below, up[level], seen.blocks[level] + below[level])
        heads = np.flatnonzero(head == np.arange(num_nodes))
        run_of_head = np.full(num_nodes, NO_RUN)
        run_of_head[heads] = np.arange(len(heads))
        self._run_of = run_of_head[head]
        self._tail = np.empty(len(heads), np.int64)
        last = np.flatnonzero(num_children[1:] != 1)
        self._tail[self._run_of[last]] = last
        self._head = heads
        self.parents = np.where(up[heads] < 0, NO_RUN, self._run_of[up[heads]])
        self.starts = (ends[heads] - seen.blocks[heads]) * block_tokens
        self.ends = ends[self._tail] * block_tokens
        self.blocks = (self.ends - self.starts) // block_tokens
        self.held = np.zeros((len(Tier), len(heads)), np.int64)
        for tier in Tier:
            np.add.at(self.held[tier], self._run_of, seen.held[tier])
        self.below, self.children = below[self._tail], num_children[1:][self._tail]
        self.hits, self.leases = seen.hits[heads], seen.leases[heads]
        self.touched_s, self.private = seen.touched_s[heads], seen.private[self._tail]
        self.own_s, self.by_default = seen.own_s[self._tail], seen.by_default[self._tail]
        self.kept = seen.kept[heads]
        self._levels_of_runs = levels

    def __len__(self) -> int:
        return len(self.starts)

    def _children_of(self, node: int) -> Numbers:
        """The nodes that follow one, or begin prompts for NO_NODE."""
        nodes: Numbers = self._by_up[slice(*self._span(node))]
        return nodes

    def _span(self, node: int) -> tuple[int, int]:
        first = self._first.item(node + 1)
        return first, self._first.item(node + 2) if node + 2 < len(self._first) else len(self._by_up)

    def _levels(self) -> list[Numbers]:
        """The nodes by how many lead to them."""
        ends = np.append(self._first[1:], len(self._by_up))
        level = self._children_of(NO_NODE)
        levels = []
        while len(level):
            levels.append(level)
            starts, counts = self._first[level + 1], ends[level + 1] - self._first[level + 1]
            before = np.cumsum(counts) - counts
            level = self._by_up[np.repeat(starts - before, counts) + np.arange(counts.sum())]
        return levels

    # --- choosing -------------------------------------------------------------------------------------------------

    def chosen(self, under: int, query: PrefixQuery) -> Numbers:
        """The runs that a query meets, `under` one or NO_RUN for all."""
        mask = self._below(under) if query.flat else self.parents == under
        if query.tier is not None:
            mask = mask & (self.held[Tier[query.tier.upper()]] > 0)
        if query.private is not None:
            mask = mask & (self.private == query.private)
        mask = mask & (self.hits >= query.min_hits) & (self.blocks >= query.min_blocks)
        runs: Numbers = np.flatnonzero(mask)
        return runs

    def _below(self, under: int) -> NDArray[np.bool_]:
        """All that follow a run, at any depth."""
        if under == NO_RUN:
            return np.ones(len(self), dtype=np.bool_)
        inside = np.zeros(len(self._up), dtype=np.bool_)
        inside[self._run_of == under] = True
        for level in self._levels_of_runs[1:]:
            inside[level] |= inside[self._up[level]]
        inside[self._run_of == under] = False
        mask: NDArray[np.bool_] = inside[self._head]
        return mask

    def ordered(self, runs: Numbers, order: PrefixOrder) -> Numbers:
        """These runs, the first first; those that are alike by number, so that pages of one list fit together."""
        if order in ("recent", "oldest"):
            touched_s = np.nan_to_num(self.touched_s[runs], nan=-np.inf)
            by = -touched_s if order == "recent" else touched_s
        elif order == "size":
            by = -(self.blocks[runs] + self.below[runs])
        else:
            by = -(self.hits if order == "hits" else self.blocks)[runs]
        return runs[np.argsort(by, kind="stable")]

    # --- paths ----------------------------------------------------------------------------------------------------

    def above(self, run: int) -> list[int]:
        """The runs that lead to one, from the beginning on."""
        found = []
        while (run := self.parents.item(run)) != NO_RUN:
            found.append(run)
        return found[::-1]

    def edges(self, run: int) -> list[bytes]:
        """The tokens of what leads to the end of a run, node by node from the beginning."""
        found = []
        node = self._tail.item(run)
        while node != NO_NODE:
            found.append(self._edges[node])
            node = self._up.item(node)
        return found[::-1]

    def tokens(self, run: int, most: int) -> Tokens:
        """The run's first tokens."""
        data = b"".join(self.edges(run))
        start = self.starts.item(run) * TOKEN_ID_BYTES
        return np.frombuffer(data[start : start + most * TOKEN_ID_BYTES], dtype="<i4")

    def holding(self, path: bytes) -> int:
        """The run that holds the block with which this path of whole blocks ends; NO_RUN if it is not there."""
        at, node = 0, NO_NODE
        while at < len(path):
            first = path[at : at + self._block_bytes]
            children = self._children_of(node).tolist()
            following = [child for child in children if self._edges[child].startswith(first)]
            if not following:
                return NO_RUN
            node = following[0]
            edge = self._edges[node]
            if not (path.startswith(edge, at) or edge.startswith(path[at:])):
                return NO_RUN
            at += len(edge)
        return self._run_of.item(node) if path else NO_RUN

    def nodes(self) -> list[tuple[int, int, bytes]]:
        """Each node with the one above it and its edge, what leads to it first."""
        order = self._order.tolist()
        return [(node, self._up.item(node), self._edges[node]) for node in order]

    def edge_bytes(self, node: int) -> int:
        """How long a node's tokens are."""
        return len(self._edges[node])

    def path_to(self, node: int) -> bytes:
        """The tokens from the first on up to the end of a node."""
        found = []
        while node != NO_NODE:
            found.append(self._edges[node])
            node = self._up.item(node)
        return b"".join(found[::-1])


class _Columns:
    """The nodes that were there at last, by number: what is above each, as a place in these columns, and the rest."""

    def __init__(self, parts: list[Nodes]) -> None:
        parts = [_NONE, *parts]
        sizes = [len(part.numbers) for part in parts]
        firsts = np.cumsum([0, *sizes])
        numbers, places = [], []
        for part, first, size in zip(parts, firsts.tolist(), sizes, strict=False):
            numbers += [part.numbers, np.array(part.gone, dtype=np.int64)]
            places += [np.arange(first, first + size), np.full(len(part.gone), NO_NODE)]
        # of a number that comes again the last counts
        known, latest = np.unique(np.concatenate(numbers)[::-1], return_index=True)
        rows = np.concatenate(places)[::-1][latest]
        there = np.flatnonzero(rows != NO_NODE)
        rows = rows[there]
        edges = [edge for part in parts for edge in part.edges]
        self.edges = [edges[row] for row in rows.tolist()]
        self.ups = _places(known[there], np.concatenate([part.ups for part in parts])[rows])
        self.blocks = np.concatenate([part.blocks for part in parts])[rows]
        self.held = np.concatenate([part.held for part in parts], axis=1)[:, rows]
        self.hits = np.concatenate([part.hits for part in parts])[rows]
        self.leases = np.concatenate([part.leases for part in parts])[rows]
        self.private = np.concatenate([part.private for part in parts])[rows]
        self.touched_s = np.concatenate([part.touched_s for part in parts])[rows]
        self.own_s = np.concatenate([part.own_s for part in parts])[rows]
        self.by_default = np.concatenate([part.by_default for part in parts])[rows]
        self.kept = np.concatenate([part.kept for part in parts])[rows]


def _places(numbers: Numbers, ups: Numbers) -> Numbers:
    """Where each of `ups` is in `numbers`, which ascend and hold all of them but NO_NODE."""
    places = np.searchsorted(numbers, ups)
    known = np.append(numbers, NO_NODE)[places] == ups
    assert (known | (ups == NO_NODE)).all(), "what is above a node was not seen"
    return np.where(ups == NO_NODE, NO_NODE, places)


_EMPTY = np.empty(0, np.int64)
_NONE = Nodes(
    numbers=_EMPTY,
    ups=_EMPTY,
    edges=[],
    blocks=_EMPTY,
    held=np.empty((len(Tier), 0), np.int64),
    hits=np.empty(0, np.int32),
    leases=np.empty(0, np.int32),
    private=np.empty(0, np.bool_),
    touched_s=np.empty(0, np.float64),
    own_s=np.empty(0, np.float64),
    by_default=np.empty(0, np.bool_),
    kept=np.empty(0, np.bool_),
    gone=[],
)
