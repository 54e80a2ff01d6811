"""What no eviction order can surpass: MIN (Belady, 1966), which knows the future."""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tiering.radix import RadixIndex
from tiering.residency import Ids, Residency

_NEVER = 2**62


def chained(prompts: Sequence[NDArray[np.int32]]) -> list[Ids]:
    """For each prompt a number for each of its blocks, equal where the whole prefix is."""
    index = RadixIndex(1, Residency())
    return [index.insert(prompt) for prompt in prompts]


def minimum(paths: Sequence[Ids], capacity_blocks: int) -> tuple[int, int]:
    """Hits and writes of MIN with bypass over blocks, one tier, from empty: see `chained` for `paths`.

    A block goes, or is not taken in at all, if its next use is the farthest. A parent is used again no later than its
    child, so what is kept stays closed under prefixes by itself; and of the blocks whose next use is in one request,
    those that are there stand in a row: so a request, and where its row ends, is all that has to be kept of them.
    """
    bound = _Rows(len(paths), capacity_blocks)
    for number, (path, later) in enumerate(zip(paths, _next_requests(paths), strict=True)):
        bound.replay(number, len(path), later)
    return bound.hits, bound.writes


def _next_requests(paths: Sequence[Ids]) -> list[NDArray[np.int64]]:
    """For each request, by position, which request uses the block next."""
    most = max((path.max().item() for path in paths if len(path)), default=-1)
    following = np.full(most + 1, _NEVER, dtype=np.int64)
    found = []
    for number in range(len(paths) - 1, -1, -1):
        found.append(following[paths[number]])
        following[paths[number]] = number
    return found[::-1]


class _Rows:
    """What MIN keeps: for each later request, up to which position its blocks are there, and how many of them."""

    def __init__(self, num_requests: int, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._ends, self._counts = [0] * num_requests, [0] * num_requests
        # a heap of requests that have blocks here, negated; may hold empty ones
        self._farthest: list[int] = []
        self._size = self.hits = self.writes = 0

    def replay(self, request: int, num_blocks: int, later: NDArray[np.int64]) -> None:
        """A request of so many blocks, each used next by the request that `later` names."""
        num_hits = self._counts[request]
        assert num_hits in {0, self._ends[request]}, (
            "blocks of a prefix that is there stand in a row from the first"
        )
        self.hits += num_hits
        self._size -= num_hits
        self._counts[request] = 0
        edges = [0, *(np.flatnonzero(np.diff(later)) + 1).tolist(), num_blocks]
        for start, end in pairwise(edges):
            if start == end or (target := later.item(start)) == _NEVER:
                break  # a block that is not used again keeps no place, nor does any that follows it
            there = min(end, num_hits)
            if there > start:
                self._add(target, there, there - start)
            for position in range(max(start, num_hits), end):
                if not self._admit(target, position):
                    return

    def _add(self, target: int, end: int, count: int) -> None:
        if not self._counts[target]:
            heappush(self._farthest, -target)
            self._ends[target] = end
        self._counts[target] += count
        self._ends[target] = max(self._ends[target], end)
        self._size += count

    def _admit(self, target: int, position: int) -> bool:
        """Take in a block that was computed, if there is a place or a block with a farther use. False if not."""
        if self._size >= self._capacity:
            while self._farthest and not self._counts[-self._farthest[0]]:
                heappop(self._farthest)
            farthest = -self._farthest[0]
            if (farthest, self._ends[farthest] - 1) <= (target, position):
                return False
            self._counts[farthest] -= 1
            self._ends[farthest] -= 1
            self._size -= 1
        self._add(target, position + 1, 1)
        self.writes += 1
        return True
