"""Everybody's blocks that lead to some owner's: they stay as long as those do, whoever has to give up room."""

from collections import Counter

import numpy as np

from tiering.owners import NOBODY
from tiering.radix import RadixIndex
from tiering.residency import NO_BLOCK, Ids, Residency


class Stems:
    """Counts, for each of everybody's blocks, the blocks at or below it that an owner's follow directly. Owns the column `stems`."""

    def __init__(self, residency: Residency, radix: RadixIndex) -> None:
        self._residency, self._radix = residency, radix
        self._num_followed: Counter[int] = Counter()
        """By block of everybody's: how many blocks of owners follow it directly."""

    def owned(self, ids: Ids) -> None:
        """These blocks have got an owner, which they had not."""
        for parent in self._parents_of_firsts(ids):
            self._num_followed[parent] += 1
            if self._num_followed[parent] == 1:
                self._residency.stems[self._radix.path(parent)] += 1

    def leaving(self, ids: Ids) -> list[Ids]:
        """These blocks are about to leave the index. The paths to those that lead to no owner's after that."""
        freed = []
        for parent in self._parents_of_firsts(ids):
            self._num_followed[parent] -= 1
            if not self._num_followed[parent]:
                del self._num_followed[parent]
                path = self._radix.path(parent)
                self._residency.stems[path] -= 1
                freed.append(path)
        return freed

    def _parents_of_firsts(self, ids: Ids) -> list[int]:
        """What those follow that are an owner's, and follow a block of everybody's."""
        residency = self._residency
        parents = residency.parent[ids[residency.owner[ids] != NOBODY]]
        parents = parents[parents != NO_BLOCK]
        found: list[int] = parents[residency.owner[parents] == NOBODY].tolist()
        return found

    def check(self) -> None:
        """Raise AssertionError unless each block leads to as many as is counted."""
        residency = self._residency
        live = np.flatnonzero(residency.live)
        assert Counter(self._parents_of_firsts(live)) == self._num_followed, "owners' blocks follow others"
        leading = np.zeros(residency.capacity, dtype=np.int32)
        for block in self._num_followed:
            leading[self._radix.path(block)] += 1
        assert np.array_equal(leading, residency.stems), "a block leads to more or less than is counted"
