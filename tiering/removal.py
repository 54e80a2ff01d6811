"""What leaves a tier, or the index for good, and what is remembered of it."""

import numpy as np

from kvstore.block import KEY_BYTES
from kvstore.reasons import MissReason
from tiering.departed import REASONS, Departed
from tiering.holdings import Holdings
from tiering.holes import Holes
from tiering.kernels import kernels
from tiering.moves import Forget
from tiering.outbox import Outbox
from tiering.residency import DEVICE, DISK, PRESENT, Ids, Tier

_OTHERS = tuple(tuple(other for other in Tier if other is not tier) for tier in Tier)
_EVICTED = REASONS.index(MissReason.EVICTED)
_NOTHING = np.empty(0, dtype=np.intp)


class Removal:
    """Gives up copies. A block's last one goes only together with all that follows it, in every tier."""

    def __init__(self, holdings: Holdings, holes: Holes, outbox: Outbox, *, remembers: bool) -> None:
        """`remembers`: whether anybody may ask what became of blocks that went."""
        self._holdings, self._holes = holdings, holes
        self._outbox = outbox
        self._kernels, self._remembers = kernels(), remembers
        self._counts = np.zeros(3, dtype=np.int64)
        self.departed = Departed()
        """What was given up for good."""
        self.evicted = [0] * len(Tier)
        """Copies that left a tier to make room there, by tier."""
        self.dropped = [0] * len(Tier)
        """Blocks whose last copy was in this tier when it was given up, by tier ..."""
        self.not_admitted = [0] * len(Tier)
        """... and how many of them were not admitted to the one below."""

    # --- copies ---------------------------------------------------------------------------------------------------

    def leave(self, tier: Tier, ids: Ids) -> None:
        """Give up copies of blocks that stay."""
        if num := len(ids):
            holdings = self._holdings
            if holdings.owners.several:
                holdings.shares.evicted(ids)
            holdings.left(tier, ids)
            self.evicted[tier] += num

    def give_up(self, tier: Tier, ids: Ids) -> None:
        """Drop these copies, children before parents; where one is the block's last, the block and all below it.

        What is in use stays. What a block takes with it, or keeps, is looked at one by one; the others go at once.
        """
        if not len(ids) or (len(ids) == 1 and self.give_up_leaf(tier, ids.item())):
            return
        leaving, num_elsewhere, staying = self._sorted(tier, ids)
        going = leaving[num_elsewhere:]
        if self._remembers:
            self._note_evicted(tier, going)
        if tier is DISK:
            self.forget(leaving)
        self.leave(tier, leaving)
        if len(going):
            self.dropped[tier] += len(going)
            self._holdings.take_out(going)
        for block in staying.tolist():
            self._give_up_last(tier, block)

    def _sorted(self, tier: Tier, ids: Ids) -> tuple[Ids, int, Ids]:
        """Of the blocks that a tier has whole, those that another has or expects, how many these are, and behind them the others, as far
        as they are not in use and nothing follows them but what goes before them; and what is left.
        """
        residency, num = self._holdings.residency, len(ids)
        leaving, staying, room = np.empty(num, np.intp), np.empty(num, np.intp), np.empty(num, np.intp)
        self._kernels.sort_leaving(
            residency.ties,
            residency.num_children,
            residency.parent,
            tier,
            ids,
            leaving,
            staying,
            room,
            self._counts,
        )
        num_elsewhere, num_going, num_staying = self._counts.tolist()
        return leaving[: num_elsewhere + num_going], num_elsewhere, staying[:num_staying]

    def _by_ties(self, ids: Ids) -> tuple[Ids, Ids]:
        """Of blocks, children before parents, those not in use that nothing follows but what goes before them; and the others."""
        residency = self._holdings.residency
        going, staying = np.empty(len(ids), dtype=np.intp), np.empty(len(ids), dtype=np.intp)
        num_going = self._kernels.sort_by_ties(
            residency.ties,
            residency.num_children,
            residency.parent,
            ids,
            going,
            staying,
        )
        return going[:num_going], staying[: len(ids) - num_going]

    def give_up_leaf(self, tier: Tier, block: int) -> bool:
        """The same for one block, in a tenth of the time, if it is a leaf that only this tier has and nobody holds.

        Else False, and no change.
        """
        holdings, residency = self._holdings, self._holdings.residency
        if not residency.is_only_in(tier, block) or (
            (holds := holdings.holds).are_any and holds.is_held(block)
        ):
            return False
        if holdings.owners.several:
            one = np.array([block], dtype=np.intp)
            self._note_evicted(tier, one)
            holdings.shares.evicted(one)
        elif self._remembers:
            self.departed.note_one(residency.cells.fingerprint[block], tier, _EVICTED, holdings.order.now_s)
        if tier is DISK:
            self.forget(np.array([block], dtype=np.intp))
        holdings.drop_leaf(tier, block)
        self.evicted[tier] += 1
        self.dropped[tier] += 1
        return True

    def reject(self, tier: Tier, ids: Ids) -> Ids:
        """Give up copies, children before parents, that were not admitted to the tier below. Which of them went.

        A block whose last copy it is stays if something follows it that does not go as well: it is worth what that is.
        """
        if not len(ids):
            return _NOTHING
        leaving, num_elsewhere, _ = self._sorted(tier, ids)
        elsewhere, going = leaving[:num_elsewhere], leaving[num_elsewhere:]
        # who computes a block may end before it is there: then this was the last copy
        upper, lower = _OTHERS[tier]
        residency = self._holdings.residency
        whole = residency.present(upper, elsewhere) | residency.present(lower, elsewhere)
        self.gone(elsewhere[~whole], MissReason.NOT_ADMITTED)
        self._note_evicted(tier, going, MissReason.NOT_ADMITTED)
        self.leave(tier, leaving)
        self.dropped[tier] += len(going)
        self.not_admitted[tier] += len(going)
        self._holdings.take_out(going)
        return leaving

    def _give_up_last(self, tier: Tier, block: int) -> None:
        """Drop a block's last copy, with all that follows it."""
        if self._holdings.residency.cells.state[tier][block] != PRESENT:
            return  # went with an ancestor a moment ago
        if self.drop(block, tier):
            self.evicted[tier] += 1
        elif tier is DEVICE and self._outbox.hangs and not self._holdings.holds.is_held(block):
            # what is below may never be free to go, and somebody needs this place: better a hole than to wait
            one = np.array([block], dtype=np.intp)
            self.gone(one, MissReason.EVICTED)
            self.leave(DEVICE, one)
            self.dropped[DEVICE] += 1
            self._holes.prune(one)

    # --- blocks ---------------------------------------------------------------------------------------------------

    def drop(self, block: int, tier: Tier, reason: MissReason = MissReason.EVICTED) -> bool:
        """`remove` a block whose last copy is, or was, in this tier, and count what is lost."""
        num_removed = self.remove(block, reason)
        self.dropped[tier] += num_removed
        return num_removed > 0

    def remove(self, block: int, reason: MissReason) -> int:
        """Forget a block with all its descendants, in every tier; no change if one of them is in use. How many went."""
        ids = self._holdings.radix.subtree(block)[::-1]
        if self._holdings.in_use(ids).any():
            return 0
        self._vacate(ids, reason)
        self._holdings.take_out(ids)
        return len(ids)

    def remove_idle(self, ids: Ids, reason: MissReason) -> int:
        """Forget blocks in every tier, children before parents, but for those in use and those that others follow which stay.

        How many went.
        """
        ids, _ = self._by_ties(ids)
        if len(ids):
            self._vacate(ids, reason)
            self._holdings.take_out(ids)
        return len(ids)

    def _vacate(self, ids: Ids, reason: MissReason) -> None:
        """Give up all copies of blocks that are not in use."""
        self.gone(ids, reason)
        residency = self._holdings.residency
        self.forget(ids[residency.present(DISK, ids)])
        for tier in Tier:
            self._holdings.left(tier, ids[residency.present(tier, ids)])

    # --- what is known of them afterwards -------------------------------------------------------------------------

    def gone(self, ids: Ids, reason: MissReason) -> None:
        """These blocks are about to lose their last copies: remember that, and where these were."""
        if not self._remembers:
            return
        residency = self._holdings.residency
        tiers = residency.nearest_tier(ids)
        there = tiers < len(Tier)  # of a hole it is known already why it is one
        self.departed.note(
            residency.fingerprint[ids[there]], tiers[there], reason, self._holdings.order.now_s
        )

    def _note_evicted(self, tier: Tier, ids: Ids, why: MissReason = MissReason.EVICTED) -> None:
        """Blocks are about to go that only this tier has, to make room in it, or for another reason."""
        if not self._remembers:
            return
        residency, shares, now_s = self._holdings.residency, self._holdings.shares, self._holdings.order.now_s
        if not shares.on or why is not MissReason.EVICTED:
            self.departed.note(residency.fingerprint[ids], int(tier), why, now_s)
            return
        numbers = residency.owner[ids]
        for number in np.unique(numbers).tolist():
            over = shares.is_over(tier, number)
            reason = MissReason.OVER_QUOTA if over else why
            by_others = over and number != shares.asker
            mine = residency.fingerprint[ids[numbers == number]]
            self.departed.note(mine, int(tier), reason, now_s, by_others=by_others)

    def lost(self, ids: Ids, reason: MissReason) -> None:
        """The disk turned out not to have these blocks: remember it of those that are whole nowhere else."""
        if not self._remembers:
            return
        residency = self._holdings.residency
        ids = ids[(residency.state[:DISK, ids] != PRESENT).all(axis=0)]
        self.departed.note(residency.fingerprint[ids], int(DISK), reason, self._holdings.order.now_s)

    def forget(self, ids: Ids) -> None:
        """Have the records of these blocks deleted. Their residency is the caller's business."""
        if len(ids):
            residency = self._holdings.residency
            keys = np.empty((len(ids), KEY_BYTES), dtype=np.uint8)
            have_keys = self._kernels.take_keys(residency.key, residency.has_key, ids, keys)
            assert have_keys, "a stored block has a key"
            self._outbox.send(Forget(keys))
