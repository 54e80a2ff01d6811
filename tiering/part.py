"""The blocks of a tier that one owner may have to give, or of one rank: asked by loops, as rules are."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiering.eligible import Eligible
from tiering.kernels import kernels
from tiering.residency import Ids, Mask
from tiering.rules import ANY_RANK, EVERYBODY


class Ends(Protocol):
    """Who knows when a high rank ends."""

    until: int
    """What has this stamp or an older one is high no more."""


class Part:
    """Of the blocks that meet a rule those of one owner, of one rank, or both. Of what is everybody's only what leads to no owner's.

    Changes nothing.
    """

    def __init__(self, rule: Eligible, ends: Ends, owner: int = EVERYBODY, rank: int = ANY_RANK) -> None:
        """`owner`: the number; `rank`: a Rank."""
        self._rule, self._ends = rule, ends
        self.owner, self.rank = owner, rank
        self._kernels = kernels()

    def __call__(self, ids: Ids) -> Mask:
        """Which blocks are in it, and meet the rule."""
        mask: Mask = np.empty(len(ids), dtype=np.bool_)
        self._kernels.are_in_part(*self._whose(), ids, mask)
        mask &= self._rule(ids)
        return mask

    def find(
        self, log: tuple[NDArray[np.int64], NDArray[np.int64], int, int], head: int, cursor: int, k: int
    ) -> Ids:
        """The first `k` in eviction order, from a place on: see LRU.find. `log`: its columns of stamps and deepest blocks, how many
        entries it has, and the first that has blocks.
        """
        found: Ids = np.empty(k, dtype=np.intp)
        parent = self._rule.residency.parent
        num = self._kernels.walk_part(
            *log, head, cursor, parent, *self._whose(), *self._rule.arguments(), found
        )
        return found[:num]

    def oldest(self, ids: Ids, head: int) -> int:
        """Of those of these blocks the stamp of the oldest, if that is `head` or older; else 0."""
        return self._kernels.oldest_in_part(head, *self._whose(), *self._rule.arguments(), ids)

    def _whose(self) -> tuple[Any, ...]:
        residency = self._rule.residency
        return (
            self.owner,
            self.rank,
            self._ends.until,
            residency.owner,
            residency.stems,
            residency.rank,
            residency.stamp,
        )
