"""Blocks that leave a tier before all others, whenever they were used last."""

from collections import deque
from typing import NamedTuple

import numpy as np

from tiering.policies.lru import View, Which
from tiering.residency import Ids, Residency, State, Tier

_ABSENT = State.ABSENT


class _Run(NamedTuple):
    """The end of a path, its last block first, and the stamp of the use that it came with."""

    ids: Ids
    stamp: int


class FirstToGo:
    """A view of the LRU log with some blocks put in front of all, those whose request ended first before the others.

    Only this view's order is another: stamps stay what they are, so other tiers, the time to live and what a restart
    finds go by the true last use. A block that is used again has another stamp, and is no longer in front. What follows
    one of these blocks is in front too, or it would have been used again with it: so children go before parents.

        run of an earlier request     run of a later one     the log, without these
        d1 c1                         f2 e2                  a3 - b3 - ...
    """

    def __init__(
        self,
        tier: Tier,
        residency: Residency,
        view: View,
        eligible: Which,
    ) -> None:
        """`view`: of all of the tier's blocks, with the same `eligible`: see `LRU.view`."""
        self._tier, self._residency, self._view, self._eligible = tier, residency, view, eligible
        self._runs: deque[_Run] = deque()

    def put(self, ids: Ids, stamp: int) -> None:
        """Blocks at the end of a path, in its order, that were used last at `stamp` go first, until they are used again."""
        if len(ids):
            self._runs.append(_Run(ids[::-1].copy(), stamp))

    def peek(self, k: int) -> Ids:
        """See `View.peek`."""
        if k < 1:
            return np.empty(0, dtype=np.intp)
        self._forget()
        found, missing = [], k
        for run in self._runs:
            ids = self._left(run)
            ids = ids[self._eligible(ids)][:missing]
            if len(ids):
                found.append(ids)
                missing -= len(ids)
            if not missing:
                return np.concatenate(found)
        if not found:
            return self._view.peek(k)
        first = np.concatenate(found)
        others = self._view.peek(k)
        return np.concatenate([first, others[~np.isin(others, first)][:missing]])

    def first(self) -> int:
        """See `View.first`."""
        self._forget()
        for run in self._runs:
            left = self._left(run)
            left = left[self._eligible(left)]
            if len(left):
                return left.item(0)
        return self._view.first()

    def rewind(self, ids: Ids) -> None:
        """See `View.rewind`."""
        self._view.rewind(ids)

    def _forget(self) -> None:
        """Drop the first runs, as far as all of their blocks have left or been used again."""
        while self._runs and not len(self._left(self._runs[0])):
            self._runs.popleft()

    def _left(self, run: _Run) -> Ids:
        """Those that are in the tier still, and were not used again."""
        ids = run.ids[self._residency.stamp.take(run.ids) == run.stamp]
        left: Ids = ids[self._residency.state[self._tier].take(ids) != _ABSENT]
        return left

    def check(self) -> None:
        """Raise AssertionError unless what goes first is in order."""
        self._view.check()
        stamps = [run.stamp for run in self._runs]
        assert stamps == sorted(set(stamps)), "who ended first does not go first"
        parent, stamp = self._residency.parent, self._residency.stamp
        for run in self._runs:
            # some of them may be in lower tiers already while what follows those is being copied there
            left = run.ids[stamp[run.ids] == run.stamp]
            assert np.array_equal(parent[left[:-1]], left[1:]), "what goes first is no end of a path"
