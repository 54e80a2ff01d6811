"""What a caller says of how long its blocks are to be kept: low, normal or high."""

from collections.abc import Callable
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiering.policies.lru import LRU
from tiering.residency import NO_BLOCK, Ids, Mask, Residency

ROUNDS: Final = 8
"""Within the time after which a high rank is lost: it is looked so often whose is."""


class Rank(IntEnum):
    """Of two blocks of one owner the lower goes first; of one rank, the one used less recently."""

    LOW = -1
    NORMAL = 0
    HIGH = 1


class Ranks:
    """The rank of each block. Owns the column `rank`, which nobody writes to as long as nobody asks for a rank.

    A path that is used has at least the rank of that use, so a parent is never below its child. What is high and was not
    used for `high_s` is normal from then on: by the last use, which a parent's is never before its child's. So a use that is
    not high then begins anew from normal.
    """

    def __init__(self, residency: Residency, order: LRU, high_s: float) -> None:
        self._residency, self._order, self._high_s = residency, order, high_s
        self.until = 0
        """What has this stamp or an older one is high no more."""
        self._due_s = -np.inf
        self.in_use = False
        """Whether anybody has ever asked for a rank."""
        self.changed: Callable[[Ids], None] = lambda _: None
        """Told of blocks whose rank is another now, by a use."""

    def at(self, now_s: float, became_normal: Callable[[int], None]) -> None:
        """It is `now_s`. `became_normal`: told of a stamp from which on blocks may be normal that were high. To be called where ranks are in use."""
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._high_s / ROUNDS
        until = self._order.last_stamp(now_s - self._high_s)
        if until > self.until:
            before, self.until = self.until, until
            became_normal(before + 1)

    def used(self, path: Ids, rank: Rank) -> None:
        """A path is about to be used by a request of this rank."""
        if not self.in_use:
            if rank is Rank.NORMAL:
                return
            self.in_use = True
        ranks = self.of(path)
        is_new = self._residency.stamp.take(path) == 0
        before = self._residency.rank.take(path)
        after = np.where(is_new, rank, np.maximum(ranks, rank)).astype(np.int8)
        self._residency.rank[path] = after
        if np.count_nonzero(differs := before != after):
            self.changed(path[differs])

    def recalled(
        self, ids: Ids, uses: NDArray[np.int64], untouched: Mask, told: NDArray[np.int8] | None
    ) -> Ids:
        """Blocks had these ranks before a restart, None for all normal, when they were used last; some were used since.

        `uses`: see `LRU.recalled`, which was told of them. What leads to a block is raised to its rank. Answers what was
        lower.
        """
        if told is None:
            told = np.zeros(len(ids), dtype=np.int8)
        self.in_use |= bool(told.any())
        if not self.in_use:
            return ids[:0]
        cells = self._residency.cells
        rank_of, parent_of = cells.rank, cells.parent
        over = self._order.last_stamp(self._order.now_s - self._high_s)
        told = np.where(uses + 1 <= over, np.minimum(told, Rank.NORMAL), told)
        self._residency.rank[ids[untouched]] = told[untouched]
        raised: list[int] = []
        for block, rank in zip(ids.tolist(), told.tolist(), strict=True):
            at = block
            while at != NO_BLOCK and (rank_of[at] < rank or at == block):
                if rank_of[at] < rank:
                    rank_of[at] = rank
                    raised.append(at)
                at = parent_of[at]
        return np.array(raised, dtype=np.intp)

    def of(self, ids: Ids) -> NDArray[np.int8]:
        """The rank of each block now."""
        ranks = self._residency.rank.take(ids)
        ranks[(ranks > 0) & (self._residency.stamp.take(ids) <= self.until)] = Rank.NORMAL
        return ranks

    def check(self) -> None:
        """Raise AssertionError if a block outranks the one that it follows."""
        residency = self._residency
        assert self.in_use or not residency.rank.any(), "nobody asked for a rank"
        touched = np.flatnonzero(residency.live & (residency.parent != NO_BLOCK) & (residency.stamp > 0))
        parents = residency.parent[touched].astype(np.intp)
        assert (self.of(parents) >= self.of(touched)).all(), "a block outranks the one that it follows"
