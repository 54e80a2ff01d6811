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

from tiering.keeping import Admission, Departing, Ended, Hints, Told, Verdict
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


def ended(request: Request, hints: Hints = NO_HINTS) -> Ended:
    """What an admission is told of it."""
    return Ended(
        fingerprints=fingerprints(request.path), told=Told(output_tokens=request.output_tokens, hints=hints)
    )


def fingerprints(blocks: Sequence[int]) -> Fingerprints:
    """Numbers that stand for these blocks: none is 0."""
    return np.array(blocks, dtype=np.uint64) + np.uint64(1)


def hit_rate(
    trace: Trace, capacity_blocks: int, admission: Admission, hints: Sequence[Hints] | None = None
) -> float:
    """Hits of all blocks asked for, the cold start included."""
    order = LeafOrder(trace.parent, capacity_blocks)
    num_hits = num_blocks = 0
    for number, request in enumerate(trace.requests):
        hits = order.hits(request.path)
        num_hits += hits
        num_blocks += len(request.path)
        num_used = admission.ended(ended(request, NO_HINTS if hints is None else hints[number]))
        order.enter(request.path, hits, num_used)
    return num_hits / num_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTiers:
    """Shares of all blocks asked for."""

    hits: float
    upper_hits: float
    written: float
    """Copied to the lower tier."""


def two_tiers(trace: Trace, upper_blocks: int, lower_blocks: int, admission: Admission) -> TwoTiers:
    """A tier, and one below it that takes what leaves the first and is admitted, and gives up its least recently used.

    What is found below comes up and stays below, so that it need not be written again.
    """
    upper = LeafOrder(trace.parent, upper_blocks)
    lower: dict[int, None] = {}  # the least recently used first
    num_hits = num_upper = num_written = num_blocks = 0
    for request in trace.requests:
        path, hits = request.path, upper.hits(request.path)
        found = next((at for at in range(hits, len(path)) if path[at] not in lower), len(path))
        num_blocks, num_upper, num_hits = num_blocks + len(path), num_upper + hits, num_hits + found
        for block in reversed(path[:found]):
            if block in lower:
                lower[block] = lower.pop(block)
        gone = upper.enter(path, hits, admission.ended(ended(request)))
        leaving = [block for block in gone if block not in lower]
        verdicts = admission.admit(
            Departing(
                tier=1,
                fingerprints=fingerprints(leaving),
                free_blocks=lower_blocks - len(lower),
            )
        )
        for at in np.flatnonzero(verdicts == Verdict.ADMIT).tolist():
            lower[leaving[at]] = None
            num_written += 1
        while len(lower) > lower_blocks:
            del lower[next(iter(lower))]
    return TwoTiers(
        hits=num_hits / num_blocks, upper_hits=num_upper / num_blocks, written=num_written / num_blocks
    )
