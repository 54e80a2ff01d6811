"""One tier in plain Python, to measure an admission by: the last use with the leaf rule, and what is first to go before it.

A trace's request is a chain of block ids; its hits are the leading run that is there when it comes; afterwards all its
blocks are there, of more than the tier holds the first. Only a block that no other follows goes.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from tiering.keeping import Admission, Ended, Hints, Told
from tiering.keeping.admission import NO_HINTS, Fingerprints
from tiering.trace import read_trace

TRACES = Path(__file__).resolve().parent / "traces"
_NOBODY = -1
_FIRST_TO_GO, _USED = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One line of a trace, its block ids renumbered from 0."""

    path: tuple[int, ...]
    full_blocks: int
    """How many of them are whole."""
    output_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests, and of each block the one that it follows."""

    name: str
    requests: tuple[Request, ...]
    parent: tuple[int, ...]


def read(name: str, block_tokens: int) -> Trace:
    """A trace of benchmarks/traces."""
    parent: list[int] = []
    requests = []
    for asked in read_trace(TRACES / f"{name}.jsonl.zst"):
        path = tuple(asked.blocks)
        for above, block in pairwise((_NOBODY, *path)):
            if block == len(parent):  # they are numbered as they come
                parent.append(above)
        full = min(asked.input_tokens // block_tokens, len(path))
        requests.append(Request(path=path, full_blocks=full, output_tokens=asked.output_tokens))
    return Trace(name=name, requests=tuple(requests), parent=tuple(parent))


class LeafOrder:
    """The blocks of one tier in the order in which they go."""

    def __init__(self, parent: Sequence[int], capacity_blocks: int) -> None:
        self._parent, self._capacity = parent, capacity_blocks
        self._touch = [0] * len(parent)
        """The number of the touch that a block's place comes from; 0 for those that are not here."""
        self._rank = [_FIRST_TO_GO] * len(parent)
        self._heap: list[tuple[int, int, int]] = []
        """(rank, touch, deepest block that has its place from it)"""
        self._num_touches = 0
        self._num_blocks = 0

    def hits(self, path: Sequence[int]) -> int:
        """How many of the path's first blocks are here."""
        for num, block in enumerate(path):
            if not self._touch[block]:
                return num
        return len(path)

    def enter(self, path: Sequence[int], num_hits: int, num_used: int) -> list[int]:
        """All blocks of a path are here, those that were and the first `num_used` of all used now, the others first to go.

        Answers the blocks that went for it, children before parents.
        """
        path = path[: self._capacity]
        num_hits = min(num_hits, len(path))
        num_used = max(min(num_used, len(path)), num_hits)
        gone = self._evict(self._num_blocks + len(path) - num_hits - self._capacity, set(path))
        self._num_blocks += len(path) - num_hits
        self._place(_USED, path[:num_used])
        self._place(_FIRST_TO_GO, path[num_used:])
        return gone

    def _place(self, rank: int, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        self._num_touches += 1
        for block in blocks:
            self._touch[block], self._rank[block] = self._num_touches, rank
        heapq.heappush(self._heap, (rank, self._num_touches, blocks[-1]))

    def _evict(self, num_blocks: int, needed: set[int]) -> list[int]:
        gone: list[int] = []
        passed_over = []
        while len(gone) < num_blocks:
            rank, touch, block = heapq.heappop(self._heap)
            while len(gone) < num_blocks and self._has_place(block, touch) and block not in needed:
                self._touch[block] = 0
                gone.append(block)
                block = self._parent[block]
            if self._has_place(block, touch):
                passed_over.append((rank, touch, block))
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        self._num_blocks -= len(gone)
        return gone

    def _has_place(self, block: int, touch: int) -> bool:
        return block != _NOBODY and self._touch[block] == touch

    def check(self) -> None:
        """Raise AssertionError unless it holds what it counts, and no parent goes before its child."""
        here = [block for block, touch in enumerate(self._touch) if touch]
        assert len(here) == self._num_blocks <= self._capacity, "the blocks are miscounted"
        for block in here:
            above = self._parent[block]
            if above != _NOBODY:
                assert self._touch[above], "a block's parent is gone"
                places = [(self._rank[b], self._touch[b]) for b in (above, block)]
                assert places[0] >= places[1], "a parent goes before its child"


def ended(request: Request, hints: Hints = NO_HINTS, salt: int = 0) -> Ended:
    """What an admission is told of it."""
    return Ended(
        fingerprints=fingerprints(request.path, salt),
        told=Told(output_tokens=request.output_tokens, hints=hints),
    )


def fingerprints(blocks: Sequence[int], salt: int = 0) -> Fingerprints:
    """Numbers that stand for these blocks, as good as drawn by chance; others for each `salt`.

    The end of splitmix64 (Steele, Lea, Flood 2014).
    """
    mixed = np.array(blocks, dtype=np.uint64) + np.uint64((salt << 32) + 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return mixed ^ mixed >> np.uint64(31)


def hit_rate(
    trace: Trace,
    capacity_blocks: int,
    admission: Admission,
    hints: Sequence[Hints] | None = None,
    *,
    salt: int = 0,
) -> float:
    """Hits of all blocks asked for, the cold start included. `salt`: see fingerprints."""
    order = LeafOrder(trace.parent, capacity_blocks)
    num_hits = num_blocks = 0
    for number, request in enumerate(trace.requests):
        hits = order.hits(request.path)
        num_hits += hits
        num_blocks += len(request.path)
        num_used = admission.ended(ended(request, NO_HINTS if hints is None else hints[number], salt))
        order.enter(request.path, hits, num_used)
    return num_hits / num_blocks
