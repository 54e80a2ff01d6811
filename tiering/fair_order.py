"""Which block of a tier goes first where owners have quotas or requests have ranks; elsewhere what it is made around."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from tiering.eligible import Eligible
from tiering.first_to_go import FirstToGo
from tiering.part import Part
from tiering.policies.lru import LRU
from tiering.policies.view import View
from tiering.quotas import Amounts, Shares, split
from tiering.ranks import Rank, Ranks
from tiering.residency import NO_BLOCK, Ids, Mask, Residency, Tier
from tiering.rules import ANY_RANK, EVERYBODY
from tiering.tier_order import TierOrder, Victims


class FairOrder:
    """First whose, then which. Whose: of who stands furthest above its part; see `quotas.split`.

    Which: of a part, one owner's blocks of one rank, the least recently used leaf, the lowest rank first. Each part is a view
    of the one order of uses, which passes over what others used last, and is made when it is first needed; where some blocks are
    told to go first, those of the part do. Everybody's blocks that lead to an owner's are in no owner's part: they go when nothing
    else does, as do all that parts do not offer, in the order that this was made around. So whatever that would give up can be had
    here too.
    """

    def __init__(
        self,
        tier: Tier,
        order: LRU,
        residency: Residency,
        shares: Shares,
        ranks: Ranks,
        plain: Victims,
        eligible: Eligible,
        block_size: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`plain`: the order of all blocks, with the same `eligible`: see `LRU.view`. `block_size`: of a mean block, as `shares` counts."""
        self._tier, self._order, self._residency = tier, order, residency
        self._shares, self._ranks, self.plain = shares, ranks, plain
        self._eligible, self._block_size = eligible, block_size
        self.parts: dict[int, dict[Rank | None, View | FirstToGo]] = {}
        """Those that there are, to be told as well: by owner, and by rank."""

    def peek(self, k: int) -> Ids:
        """See `View.peek`; of several owners the blocks of who stands furthest above its part come first."""
        if not (self._shares.on or self._ranks.in_use):
            return self.plain.peek(k)
        return self._peek(k, only_over=False)

    def peek_over(self, k: int) -> Ids:
        """Likewise, but of no owner more than it has above its part; nothing of who has the tier alone."""
        return self._peek(k, only_over=True)

    def first(self) -> int:
        """The only block of `peek(1)`, NO_BLOCK if there is none."""
        if not (self._shares.on or self._ranks.in_use):
            return self.plain.first()
        found = self.peek(1)
        return found.item() if len(found) else NO_BLOCK

    @property
    def view(self) -> View | None:
        """The view of all blocks alike, where it goes by a rule; None where a policy orders them."""
        plain = self.plain.view if isinstance(self.plain, FirstToGo) else self.plain
        return plain if isinstance(plain, View) else None

    def rewind_parts(self, ids: Ids) -> None:
        """See `View.rewind`: of the parts; of what these are made of the Audience tells."""
        for owner in self.parts.keys() & {EVERYBODY, *self._residency.owner[ids].tolist()}:
            for part in self.parts[owner].values():
                part.rewind(ids)

    def became_normal(self, stamp: int) -> None:
        """Blocks that were used at this stamp or later may be normal that were high."""
        for parts in self.parts.values():
            if Rank.NORMAL in parts:
                parts[Rank.NORMAL].look_from(stamp)

    def forget(self, owners: Iterable[int]) -> None:
        """Nothing is these owners' any more, and their numbers may become others'."""
        for owner in owners:
            for part in self.parts.pop(owner, {}).values():
                part.end()
            if isinstance(self.plain, FirstToGo):
                self.plain.forget(owner)

    # --- whose ----------------------------------------------------------------------------------------------------

    def _peek(self, k: int, *, only_over: bool) -> Ids:
        if k < 1:
            return np.empty(0, dtype=np.intp)
        if not self._shares.shared(self._tier):
            if only_over:
                return np.empty(0, dtype=np.intp)
            if not self._ranks.in_use or isinstance(self.plain, TierOrder):
                return self.plain.peek(k)
            return self._with_others([self._of(EVERYBODY, k)], k)
        used, entitled = self._shares.standing(self._tier)
        size = self._block_size()
        used, entitled = used / size, entitled / size
        if only_over:
            used = np.maximum(0.0, np.floor(used - entitled))
        if isinstance(self.plain, TierOrder):
            return self._of_plugin(self.plain, split(used, entitled, k), k, only_over=only_over)
        found = self._of_parts(used, entitled, k)
        if only_over:
            return np.concatenate(found) if found else np.empty(0, dtype=np.intp)
        return self._with_others(found, k)

    def _of_parts(self, used: Amounts, entitled: Amounts, k: int) -> list[Ids]:
        """Up to `k` blocks, those of one owner together, from who stands furthest above its part on."""
        given: dict[int, Ids] = {}
        standing = used / entitled
        while True:
            missing = k - sum(map(len, given.values()))
            counts = split(used, entitled, missing)
            exhausted = False
            for owner in np.flatnonzero(counts).tolist():
                before = len(given.get(owner, ()))
                given[owner] = self._of(owner, before + counts.item(owner))
                if len(given[owner]) < before + counts.item(owner):
                    used[owner], exhausted = 0.0, True
                else:
                    used[owner] -= counts.item(owner)
            if not exhausted:
                break
        return [given[owner] for owner in sorted(given, key=lambda each: -standing.item(each))]

    def _with_others(self, found: list[Ids], k: int) -> Ids:
        """These, and where they are too few what the plain order has beside them."""
        ids = np.concatenate(found) if found else np.empty(0, dtype=np.intp)
        if len(ids) < k:
            others = self.plain.peek(k)
            ids = np.concatenate([ids, others[~np.isin(others, ids)][: k - len(ids)]])
        return ids

    def _of_plugin(self, order: TierOrder, counts: NDArray[np.int64], k: int, *, only_over: bool) -> Ids:
        """A policy's choice for each, among one owner's blocks; among all where it finds none, save with `only_over`."""
        givers = np.repeat(np.arange(len(counts)), counts)
        return order.peek(len(givers) if only_over else k, givers.tolist())

    # --- which ----------------------------------------------------------------------------------------------------

    def of(self, owner: int, k: int) -> Ids:
        """Up to `k` blocks of one owner, of the lowest rank first."""
        return self._of(owner, k) if k > 0 else np.empty(0, dtype=np.intp)

    def _of(self, owner: int, k: int) -> Ids:
        if not self._ranks.in_use:
            return self._part(owner, None).peek(k)
        found: list[Ids] = []
        for rank in Rank:
            found.append(self._part(owner, rank).peek(k))
            k -= len(found[-1])
            if not k:
                break
        return np.concatenate(found)

    def _part(self, owner: int, rank: Rank | None) -> View | FirstToGo:
        parts = self.parts.setdefault(owner, {})
        if rank not in parts:
            parts[rank] = self._made(owner, rank)
        return parts[rank]

    def _made(self, owner: int, rank: Rank | None) -> View | FirstToGo:
        part = Part(self._eligible, self._ranks, owner, ANY_RANK if rank is None else rank)
        view = self._order.view(part)
        if not isinstance(self.plain, FirstToGo):
            return view

        def may_be_in(ids: Ids) -> Mask:
            """What is high now may be normal later: both parts have to know of it."""
            mask = np.ones(len(ids), dtype=np.bool_)
            if owner != EVERYBODY:
                mask = self._residency.owner.take(ids) == owner
            if rank is not None:
                ranks = self._ranks.of(ids)
                mask &= (ranks == rank) | ((ranks == Rank.HIGH) & (rank is Rank.NORMAL))
            return mask

        return self.plain.part(None if owner == EVERYBODY else owner, view, part, may_be_in)

    def check(self) -> None:
        """Raise AssertionError if a block is missing from its part."""
        self.plain.check()
        for parts in self.parts.values():
            for view in parts.values():
                view.check()
