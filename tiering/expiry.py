"""Forgetting what nobody has used for too long."""

import math

import numpy as np
from numpy.typing import NDArray

from kvstore.reasons import MissReason
from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.residency import NO_BLOCK, Ids, Mask

_CHUNK_BLOCKS = 512
"""Looked at in one plan: two milliseconds, so that no step waits long for it."""

ROUNDS = 8
"""Rounds in one TTL at most: a block goes at the latest an eighth of the TTL after it was over."""


class Expiry:
    """What the TTL and the terms of requests say: which blocks are over, that they are not used again, and that they go in
    the background.

    A block is over when nobody has used it for as long as its term says, and no request holds it, nor a user. A use covers
    a path from its first block, and no block has a shorter term than what follows it, so what follows a block is over
    before it: for each term one stamp, the last that is old enough, tells which are. From then on `is_over` keeps them
    from being matched. A round walks them in eviction order, children first, a chunk in each plan; what is in use it
    leaves for a later round.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction, ttl_s: float | None) -> None:
        """`ttl_s`: of what no request has given a time; None for never."""
        self._holdings, self._eviction, self.terms = holdings, eviction, holdings.terms
        self.terms.change(ttl_s)
        self._now_s = -math.inf
        self._over(np.zeros(1, dtype=np.int64), 0)
        self._due_s = -math.inf  # when the next round begins
        self._place: tuple[int, int] | None = None
        """Stamp and block from which the round goes on; None between rounds."""
        self.num_expired = 0
        """Blocks that went, ever."""

    def change(self, ttl_s: float | None) -> None:
        """Another TTL from now on, for what is there as well. What was over, and has not gone, may not be any more."""
        self.terms.change(ttl_s)
        self._over(np.zeros(1, dtype=np.int64), 0)
        self._due_s, self._place = -math.inf, None

    def _over(self, until: NDArray[np.int64], last: int) -> None:
        """By term, the last stamp that is over, and the latest of them."""
        self._until, self._last = until, last
        self.is_any_over = last > 0
        """Whether there may be blocks that are over. Asked by each request: an attribute is read fastest."""

    def came_older(self) -> None:
        """Blocks were entered that were used earlier than others: some may be over, and a round is due at once."""
        self.at(self._now_s)
        self._due_s = -math.inf

    @property
    def off(self) -> bool:
        """Whether there is no time to live."""
        return self.terms.are_endless

    def at(self, now_s: float) -> None:
        """It is `now_s`: what was last used longer ago than its term says is over from here on. To be called where there is a time to live."""
        self._now_s = now_s
        until = [self._holdings.order.last_stamp(now_s - lives_s) for lives_s in self.terms.lives_s]
        self._over(np.array(until, dtype=np.int64), max(until))

    def _is_old(self, ids: Ids) -> Mask:
        """Which were last used too long ago."""
        residency = self._holdings.residency
        if not self.terms.are_used:
            alike: Mask = residency.stamp[ids] <= self._last
            return alike
        mask: Mask = residency.stamp[ids] <= self._until.take(residency.term[ids], mode="clip")
        return mask

    def is_over(self, ids: Ids) -> Mask:
        """Which blocks must not be used any more. Of a path, those from one block on."""
        if not self._last:
            return np.zeros(len(ids), dtype=np.bool_)
        mask = self._is_old(ids)
        mask &= self._holdings.residency.leases[ids] == 0
        return mask & ~self._holdings.holds.are_held(ids) if self._holdings.holds else mask

    def forget_path(self, path: Ids) -> None:
        """A prompt leads to these blocks: those that are over go now, if they can. What branches off there stays.

        Or who computes them anew would find their places taken.
        """
        self._forget(path[self.is_over(path)][::-1])

    def came_shorter(self) -> None:
        """There is a shorter term than before: rounds come more often."""
        self._due_s = min(self._due_s, self._now_s + self.terms.shortest_s / ROUNDS)

    def used(self, path: Ids, term: int) -> Ids:
        """A request with this term uses a path, and touches it next. Answers the blocks whose term is another now."""
        if self.terms.are_used:
            self._due_s = min(self._due_s, self._holdings.order.now_s + self.terms.lives_s[term])
        return self.terms.used(path, term)

    # --- in the background ----------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Let some of what is over go, if a round is due or under way. As for `at`."""
        if self._place is None and self._now_s >= self._due_s:
            self._place = (0, NO_BLOCK)
        if self._place is not None:
            self._place = self._chunk(*self._place)
            if self._place is None:
                self._due_s = max(self._next_s(), self._now_s + self.terms.shortest_s / ROUNDS)

    def _chunk(self, stamp: int, block: int) -> tuple[int, int] | None:
        """One chunk from this place in the log on. Answers the place of the next; None if there is none."""
        found, missing = [np.empty(0, dtype=np.intp)], _CHUNK_BLOCKS + 1
        wanted = self._has_old if self.terms.are_used else None
        for ids in self._holdings.order.upwards(stamp, block, missing, wanted):
            found.append(ids[self._is_old(ids)][:missing])
            missing -= len(found[-1])
            if not missing or self._holdings.residency.stamp.item(ids.item(-1)) > self._last:
                break
        old = np.concatenate(found)
        self._forget(old[:_CHUNK_BLOCKS])
        if missing:
            return None
        following = old.item(-1)
        return self._holdings.residency.stamp.item(following), following

    def _has_old(self, stamps: NDArray[np.int64], deepest: NDArray[np.int64]) -> Mask:
        """Which touches have blocks that are over: of each the deepest is over first."""
        mask: Mask = stamps <= self._until.take(self._holdings.residency.term[deepest], mode="clip")
        return mask

    def _next_s(self) -> float:
        """When the first block will be over; where nobody has asked for a time of their own, a TTL from now if there is none."""
        order = self._holdings.order
        if self.terms.are_used:
            return order.first_over_s(np.array(self.terms.lives_s))
        oldest_s = order.oldest_s()
        return (self._now_s if oldest_s is None else oldest_s) + self.terms.default_s

    def deadline_s(self) -> float | None:
        """When `plan` has something to do; None for never."""
        if self._place is not None:
            return self._now_s
        due = len(self._holdings.radix) and not self.off and self._due_s < math.inf
        return self._due_s if due else None

    # --- both -----------------------------------------------------------------------------------------------------

    def _forget(self, ids: Ids) -> None:
        """Have blocks go that are over, children before parents, but for what is in use and what that follows."""
        if len(ids):
            self.num_expired += self._eviction.remove_idle(ids, MissReason.EXPIRED)

    def check(self) -> None:
        """Raise AssertionError if a block is over and one that follows it is not, or a round comes too late."""
        self.terms.check()
        if not self.off and self._place is None and self._holdings.order.oldest_s() is not None:
            latest_s = max(self._next_s(), self._now_s + self.terms.shortest_s / ROUNDS)
            assert self._due_s <= latest_s, f"a round is due at {self._due_s}, and must be at {latest_s}"
        residency = self._holdings.residency
        live = np.flatnonzero(residency.live)
        over = live[self.is_over(live)]
        below = np.flatnonzero(residency.live & (residency.parent >= 0))
        above = residency.parent[below].astype(np.intp)
        wrong = np.isin(above, over) & ~np.isin(below, over)
        assert not wrong.any(), "a block is over, and one that follows it is not"
