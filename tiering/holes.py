"""Blocks that were lost while others that follow them were not."""

from collections.abc import Callable

import numpy as np

from tiering.holdings import Holdings
from tiering.residency import Ids


class Holes:
    """Remembers the holes: blocks that are nowhere, although blocks below them are somewhere.

    What is below a hole cannot be used, until a request computes the hole anew or, after `ttl_s`, all of it is dropped.
    """

    def __init__(self, holdings: Holdings, ttl_s: float) -> None:
        self._holdings, self._ttl_s = holdings, ttl_s
        self.found_s: dict[int, float] = {}
        """When each was found to be one."""

    def prune(self, ids: Ids) -> None:
        """Blocks may have lost their last copy or lease: take those out of the index that have no more use there."""
        for block in self._holdings.prune(ids):
            self.found_s.setdefault(block, self._holdings.order.now_s)

    def expire(self, now_s: float, drop: Callable[[int], bool]) -> None:
        """`drop` what is below holes that were not filled in time; what is in use it leaves, for a later call."""
        for block, found_s in list(self.found_s.items()):
            healed = not self._holdings.residency.live.item(block) or not self._holdings.is_nowhere(block)
            if healed or (now_s - found_s > self._ttl_s and drop(block)):
                del self.found_s[block]

    def check(self) -> None:
        """Raise AssertionError unless the tiers together reach back to the root everywhere but below known holes."""
        residency = self._holdings.residency
        live = np.flatnonzero(residency.live)
        below = live[residency.parent[live] >= 0]
        above = residency.parent[below].astype(np.intp)
        held_above = residency.resident_anywhere(above) | residency.computing[above]
        gap = residency.resident_anywhere(below) & ~held_above
        unexplained = set(above[gap].tolist()) - self.found_s.keys()
        assert not unexplained, f"blocks {unexplained} are nowhere but have descendants that are"
