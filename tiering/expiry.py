"""Forgetting what nobody has used for too long."""

import math

import numpy as np

from kvstore.reasons import MissReason
from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.residency import NO_BLOCK, Ids, Mask

_CHUNK_BLOCKS = 512
"""Looked at in one plan: two milliseconds, so that no step waits long for it."""

ROUNDS = 8
"""Rounds in one TTL at most: a block goes at the latest an eighth of the TTL after it was over."""


class Expiry:
    """What the TTL says: which blocks are over, that they are not used again, and that they go in the background.

    A block is over when nobody has used it for the TTL, and no request holds it. A use covers a path from its first
    block, so what follows a block is over before it: one stamp, the last that is old enough, tells which are. From
    then on `is_over` keeps them from being matched. A round walks them in eviction order, children first, a chunk in
    each plan; what is in use it leaves for a later round.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction, ttl_s: float | None) -> None:
        """`ttl_s`: None for never."""
        self._holdings, self._eviction = holdings, eviction
        self._ttl_s = math.inf if ttl_s is None else ttl_s
        self._now_s = -math.inf
        self._until = 0  # the last stamp that is over
        self._due_s = -math.inf  # when the next round begins
        self._place: tuple[int, int] | None = None
        """Stamp and block from which the round goes on; None between rounds."""
        self.num_expired = 0
        """Blocks that went, ever."""

    def change(self, ttl_s: float | None) -> None:
        """Another TTL from now on, for what is there as well. What was over, and has not gone, may not be any more."""
        self._ttl_s = math.inf if ttl_s is None else ttl_s
        self._until, self._due_s, self._place = 0, -math.inf, None

    def came_older(self) -> None:
        """Blocks were entered that were used earlier than others: some may be over, and a round is due at once."""
        self.at(self._now_s)
        self._due_s = -math.inf

    @property
    def off(self) -> bool:
        """Whether there is no TTL."""
        return self._ttl_s == math.inf

    def at(self, now_s: float) -> None:
        """It is `now_s`: what was last used a TTL ago is over from here on."""
        if self.off:
            return
        self._now_s = now_s
        self._until = self._holdings.order.last_stamp(now_s - self._ttl_s)

    @property
    def is_any_over(self) -> bool:
        """Whether there may be blocks that are over."""
        return self._until > 0

    def is_over(self, ids: Ids) -> Mask:
        """Which blocks must not be used any more. Of a path, those from one block on."""
        if not self._until:
            return np.zeros(len(ids), dtype=np.bool_)
        mask: Mask = self._holdings.residency.stamp[ids] <= self._until
        mask &= self._holdings.residency.leases[ids] == 0
        return mask

    def forget_path(self, path: Ids) -> None:
        """A prompt leads to these blocks: those that are over go now, if they can. What branches off there stays.

        Or who computes them anew would find their places taken.
        """
        self._forget(path[self.is_over(path)][::-1])

    # --- in the background ----------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Let some of what is over go, if a round is due or under way."""
        if self.off:
            return
        if self._place is None and self._now_s >= self._due_s:
            self._place = (0, NO_BLOCK)
        if self._place is not None:
            self._place = self._chunk(*self._place)
            if self._place is None:
                self._due_s = max(self._next_s(), self._now_s + self._ttl_s / ROUNDS)

    def _chunk(self, stamp: int, block: int) -> tuple[int, int] | None:
        """One chunk from this place in the log on. Answers the place of the next; None if there is none."""
        for ids in self._holdings.order.upwards(stamp, block, _CHUNK_BLOCKS + 1):
            old = ids[self._holdings.residency.stamp[ids] <= self._until]
            self._forget(old[:_CHUNK_BLOCKS])
            if len(old) > _CHUNK_BLOCKS:
                following = old.item(-1)
                return self._holdings.residency.stamp.item(following), following
            break
        return None

    def _next_s(self) -> float:
        """When the first block will be over, of those that were used; a TTL from now if there are none."""
        oldest_s = self._holdings.order.oldest_s()
        return (self._now_s if oldest_s is None else oldest_s) + self._ttl_s

    def deadline_s(self) -> float | None:
        """When `plan` has something to do; None for never."""
        if self._place is not None:
            return self._now_s
        return self._due_s if len(self._holdings.radix) and not self.off else None

    # --- both -----------------------------------------------------------------------------------------------------

    def _forget(self, ids: Ids) -> None:
        """Have blocks go that are over, children before parents, but for what is in use and what that follows."""
        if len(ids):
            self.num_expired += self._eviction.remove_idle(ids, MissReason.EXPIRED)

    def check(self) -> None:
        """Raise AssertionError if a block is over and one that follows it is not, or a round comes too late."""
        if not self.off and self._place is None and (oldest_s := self._holdings.order.oldest_s()) is not None:
            latest_s = max(oldest_s + self._ttl_s, self._now_s + self._ttl_s / ROUNDS)
            assert self._due_s <= latest_s, f"a round is due at {self._due_s}, and must be at {latest_s}"
        residency = self._holdings.residency
        live = np.flatnonzero(residency.live)
        over = live[self.is_over(live)]
        below = np.flatnonzero(residency.live & (residency.parent >= 0))
        above = residency.parent[below].astype(np.intp)
        wrong = np.isin(above, over) & ~np.isin(below, over)
        assert not wrong.any(), "a block is over, and one that follows it is not"
