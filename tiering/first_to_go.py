"""Blocks that leave a tier before all others, whenever they were used last."""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from tiering.policies.view import View, Which
from tiering.residency import Ids, Mask, Residency, State, Tier

_ABSENT = State.ABSENT
_LEAST_RUNS: Final = 64
"""Fewer are not looked through for those that are over."""


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

    Where blocks are chosen among one owner's, or those of one rank, each such part has its own: what goes first among all goes
    first there too.
    """

    def __init__(
        self,
        tier: Tier,
        residency: Residency,
        view: View,
        eligible: Which,
    ) -> None:
        """`view`: of the tier's blocks, all or those of a part, with the same `eligible`."""
        self._tier, self._residency, self.view, self._eligible = tier, residency, view, eligible
        self._runs: deque[_Run] = deque()
        self._look_through_at = _LEAST_RUNS
        self._parts: dict[int | None, list[tuple[FirstToGo, Callable[[Ids], Mask]]]] = {}
        """Those of one owner's blocks, by its number, and None: those of everybody's; each with what says which are in it."""

    def put(self, ids: Ids, stamp: int) -> None:
        """Blocks at the end of a path, in its order, that were used last at `stamp` go first, until they are used again."""
        if len(ids):
            run = _Run(ids[::-1].copy(), stamp)
            self._append(run)
            if self._parts:
                for owner in (None, *np.unique(self._residency.owner.take(ids)).tolist()):
                    for part, is_in in self._parts.get(owner, ()):
                        part.put_of(run, is_in)

    def part(
        self, owner: int | None, view: View, eligible: Which, is_in: Callable[[Ids], Mask]
    ) -> "FirstToGo":
        """One of its own for some blocks: `is_in`, all one owner's if not None. `view`: of these, with the same `eligible`."""
        part = FirstToGo(self._tier, self._residency, view, eligible)
        for run in self._runs:
            part.put_of(run, is_in)
        self._parts.setdefault(owner, []).append((part, is_in))
        return part

    def forget(self, owner: int) -> None:
        """Nothing is this owner's any more: its parts are not told of anything."""
        self._parts.pop(owner, None)

    def end(self) -> None:
        """See `View.end`."""
        self.view.end()

    def put_of(self, run: _Run, is_in: Callable[[Ids], Mask]) -> None:
        """`put`, for what is in this part of a run."""
        ids = run.ids[is_in(run.ids)]
        if len(ids):
            self._append(_Run(ids, run.stamp))

    def _append(self, run: _Run) -> None:
        """Who is not asked, as others give, must not remember for ever."""
        self._runs.append(run)
        if len(self._runs) >= self._look_through_at:
            self._runs = deque(run for run in self._runs if len(self._left(run)))
            self._look_through_at = max(_LEAST_RUNS, 2 * len(self._runs))

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
            return self.view.peek(k)
        first = np.concatenate(found)
        others = self.view.peek(k)
        return np.concatenate([first, others[~np.isin(others, first)][:missing]])

    def first(self) -> int:
        """See `View.first`."""
        self._forget()
        for run in self._runs:
            left = self._left(run)
            left = left[self._eligible(left)]
            if len(left):
                return left.item(0)
        return self.view.first()

    def rewind(self, ids: Ids) -> None:
        """See `View.rewind`."""
        self.view.rewind(ids)

    def look_from(self, stamp: int) -> None:
        """See `View.look_from`."""
        self.view.look_from(stamp)

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
        self.view.check()
        stamps = [run.stamp for run in self._runs]
        assert stamps == sorted(set(stamps)), "who ended first does not go first"
        parent, stamp = self._residency.parent, self._residency.stamp
        for run in self._runs:
            # some of them may be in lower tiers already while what follows those is being copied there
            left = run.ids[stamp[run.ids] == run.stamp]
            assert np.array_equal(parent[left[:-1]], left[1:]), "what goes first is no end of a path"
