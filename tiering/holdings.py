"""What each tier holds, whose it is, who may go, and how a block leaves for good."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiering.audience import Audience, Audiences
from tiering.copies import Copies
from tiering.eligible import Eligible
from tiering.fair_order import FairOrder
from tiering.fingerprints import fingerprints
from tiering.first_to_go import FirstToGo
from tiering.holds import Hold, Holds
from tiering.loops.states import DIRTY, DISK_BLOCKS, DISK_BYTES
from tiering.owners import NOBODY, Owners, Ownership
from tiering.policies.lru import LRU
from tiering.policies.policy import Policy
from tiering.quotas import Quotas, Shares
from tiering.radix import RadixIndex
from tiering.ranks import Rank, Ranks
from tiering.residency import (
    ABSENT,
    DEVICE,
    DISK,
    HOST,
    ID,
    NO_BLOCK,
    PRESENT,
    WRITING,
    Ids,
    Mask,
    Residency,
    Tier,
)
from tiering.rules import (
    DEVICE_VICTIM,
    DISK_VICTIM,
    EVERYBODY,
    HOST_CLEAN,
    HOST_DIRTY,
    HOST_STORED,
    HOST_VICTIM,
)
from tiering.slot_table import SlotState, SlotTable
from tiering.stems import Stems
from tiering.terms import Terms
from tiering.tier_order import ROOT, TierOrder, Victims

_INDEXED = SlotState.INDEXED  # members of an enum take longer to look up


class Holdings(Copies):
    """Residency, radix index, eviction order and slot tables, kept in step with each other.

    Not thread-safe: the core's thread owns it.
    """

    def __init__(
        self,
        *,
        block_tokens: int,
        device_slots: int,
        host_slots: int,
        later_host_slots: int = 0,
        disk_bytes: int,
        policy: type[Policy] | None = None,
        chooses: bool = False,
        quotas: Quotas | None = None,
        high_s: float = 600.0,
        seed: int | None = None,
    ) -> None:
        """Sizes of the tiers. `later_host_slots`: of the host slots, those that the table is to be grown by later.

        `policy`: which order device and host memory give up their blocks in, where that is not the last use.
        `chooses`: whether blocks may be told to go first from the device, which a policy knows nothing of. `quotas`: see Shares;
        `high_s`: see Ranks; `seed`: see RadixIndex.
        """
        residency, owners = Residency(device_slots + host_slots), Owners()
        shares = Shares(residency, owners, quotas, capacity=self._capacity_of)
        tables = SlotTable(device_slots), SlotTable(host_slots - later_host_slots)
        super().__init__(residency, LRU(residency), owners, shares, *tables)
        self.radix = RadixIndex(block_tokens, residency, seed=seed)
        self.ranks = Ranks(residency, self.order, high_s)
        self._stems = Stems(residency, self.radix)
        self.holds = Holds(residency)
        self.terms = Terms(residency)
        self.host_target = host_slots
        """How many host slots may be in service, of those that are there and those that are to come."""
        self.disk_capacity_bytes = disk_bytes
        device_victim, host_victim = self._eligible(DEVICE_VICTIM), self._eligible(HOST_VICTIM)
        plain_device: Victims = self.order.view(device_victim)
        plain_host: Victims = self.order.view(host_victim)
        self.host_stored = self.order.view(self._eligible(HOST_STORED))
        self._first_to_go: FirstToGo | None = None
        if chooses and policy is None:
            view = self.order.view(device_victim)
            plain_device = self._first_to_go = FirstToGo(DEVICE, self.residency, view, device_victim)
        if policy is not None:
            plain_device = device_order = TierOrder(
                DEVICE, self.residency, policy(device_slots), device_victim, device_victim.of
            )
            plain_host = host_order = TierOrder(HOST, self.residency, policy(max(1, host_slots)), host_victim)
            self.tier_orders = (device_order, host_order, None)
        self.device_victims = self._fair(DEVICE, plain_device, device_victim)
        self.host_victims = self._fair(HOST, plain_host, host_victim)
        self.host_clean = self._fair_view(HOST, self._eligible(HOST_CLEAN))
        self.host_dirty = self._fair_view(HOST, self._eligible(HOST_DIRTY))
        self.disk_victims = self._fair_view(DISK, self._eligible(DISK_VICTIM))
        self._fair_orders = (
            self.device_victims,
            self.host_victims,
            self.host_clean,
            self.host_dirty,
            self.disk_victims,
        )
        self._see = Audiences.of(
            device_victims=self.device_victims,
            host_victims=self.host_victims,
            host_clean=self.host_clean,
            host_stored=self.host_stored,
            host_dirty=self.host_dirty,
            disk_victims=self.disk_victims,
            has_host=host_slots > 0,
            has_disk=disk_bytes > 0,
        )
        self._see_fair = Audience(self._fair_orders)

    def _eligible(self, rule: int) -> Eligible:
        return Eligible(rule, self.residency, self.slots[HOST])

    def _fair_view(self, tier: Tier, eligible: Eligible) -> FairOrder:
        return self._fair(tier, self.order.view(eligible), eligible)

    def _fair(self, tier: Tier, plain: Victims, eligible: Eligible) -> FairOrder:
        size = self._mean_record if tier is DISK else lambda: 1.0
        return FairOrder(tier, self.order, self.residency, self.shares, self.ranks, plain, eligible, size)

    def _mean_record(self) -> float:
        return max(1.0, self.disk_bytes / max(1, self.num_disk_blocks))

    def _capacity_of(self, tier: Tier) -> int:
        """What a tier can hold: see Shares."""
        if tier is DISK:
            return self.disk_capacity_bytes
        return self.slots[DEVICE].num_slots if tier is DEVICE else self.num_host_slots

    @property
    def num_host_slots(self) -> int:
        """Host slots that are there and are to stay."""
        return min(self.slots[HOST].num_usable, self.host_target)

    @property
    def num_host_slots_too_many(self) -> int:
        """Host slots in service that are to be retired.

        One beside those of preempted requests is left to loads, which requests that run may be waiting for.
        """
        table = self.slots[HOST]
        if table.num_usable <= self.host_target:
            return 0
        needed = table.count(SlotState.PRIVATE) + min(1, self.host_target)
        return max(0, table.num_usable - max(self.host_target, needed))

    @property
    def disk_is_over(self) -> bool:
        """Whether there is more on disk than may be."""
        return self._tallied[DISK_BYTES] > self.disk_capacity_bytes

    # --- whose it is ----------------------------------------------------------------------------------------------

    def belongs(self, ids: Ids, first_position: int, ownership: Ownership) -> None:
        """Blocks at consecutive positions of a path from `first_position` on are whose this says."""
        if self.owners.are_many:
            self._forget_owners()
        number = self.owners.number(ownership.owner)
        if number != NOBODY:
            self.have_owners(ids[max(0, ownership.first_block - first_position) :], number)

    def _forget_owners(self) -> None:
        """Who has nothing in the index any more counts as new when it comes again."""
        idle = self.shares.idle()
        self.shares.forget(idle)
        for order in self._fair_orders:
            order.forget(idle)
        self.owners.give_back(idle)

    def have_owners(self, ids: Ids, numbers: NDArray[np.int32] | int) -> None:
        """Blocks are those owners' who have these numbers. What is somebody's already is the same owner's."""
        fresh = self.residency.owner.take(ids) == NOBODY
        self.residency.owner[ids] = numbers
        self._stems.owned(ids[fresh])

    def owner_of(self, block: int) -> bytes:
        """Whose a block is."""
        return self.owners.owner(self.residency.cells.owner[block])

    def blocks_of(self, owner: bytes) -> Ids:
        """All that is the owner's."""
        number = self.owners.known(owner)
        mine = self.residency.live & (self.residency.owner == number)
        return np.flatnonzero(mine) if number else np.empty(0, dtype=np.intp)

    def tops_of(self, owner: bytes) -> Ids:
        """The owner's blocks that follow no other of the same owner's: with all below, they are what the owner has."""
        residency = self.residency
        ids = self.blocks_of(owner)
        parents = residency.parent[ids]
        tops: Ids = ids[(parents == NO_BLOCK) | (residency.owner[parents] == NOBODY)]
        return tops

    # --- who may go -----------------------------------------------------------------------------------------------

    def is_host_dirty(self, ids: Ids) -> Mask:
        """A host copy of a block that the disk has not, and is not getting."""
        state = self.residency.state
        mask: Mask = (state[HOST][ids] == PRESENT) & (state[DISK][ids] == ABSENT)
        mask &= self.residency.readers[HOST][ids] == 0
        return mask

    def may_leave(self, tier: Tier, ids: Ids) -> Mask:
        """Of device or host copies of blocks that have others, those that nobody holds there, or would miss there."""
        mask = ~self.holds.are_held_in(tier, ids)
        if tier is DEVICE:
            mask &= ~self.holds.are_held_in(HOST, ids) | (self.residency.state[HOST][ids] == PRESENT)
        return mask

    def would_be_missed(self, ids: Ids) -> Mask:
        """Which blocks somebody holds who would miss their device copies: there, or none is where it would have to be."""
        holds = self.holds
        mask = holds.are_held(ids) & ~self.residency.present(HOST, ids)
        mask &= ~self.residency.present(DISK, ids) | holds.are_held_in(HOST, ids)
        return mask | holds.are_held_in(DEVICE, ids)

    def hold(self, path: Ids, tier: Tier) -> Hold:
        """Keep a path from the root in a tier at least; that is a use of it."""
        self.ranks.used(path, Rank.NORMAL)  # or what was high would be so again, and what leads to it not
        self.order.touch(path)
        return self.holds.hold(path, tier)

    def let_go(self, hold: Hold) -> None:
        """Undo `hold`."""
        self.holds.release(hold)
        self._see.all.show(hold.ids)

    def show_held(self) -> None:
        """There may be host memory where there was none: what is held may leave the device."""
        for hold in self.holds:
            self._see.on_device.show(hold.ids)

    # --- for plug-ins ---------------------------------------------------------------------------------------------

    def found(self, path: Ids, max_blocks: int, hits: NDArray[np.int64]) -> NDArray[np.int8]:
        """A request has found a path. The nearest tier that has each of its blocks whole, `len(Tier)` for one on its way to the device,
        and NOT_CACHED behind them, for so many positions in all. `hits`: where blocks are counted by these tiers.
        """
        tiers = self.residency.found(path, max_blocks, hits)
        if self.tier_orders[DEVICE] is not None:
            for tier, order in zip(Tier, self.tier_orders, strict=True):
                if order is not None:
                    order.used(path[tiers[: len(path)] == tier])
        return tiers

    def comes(self, matched: Ids, absent: Ids, own: NDArray[np.int32]) -> None:
        """Places on the device are about to be asked for: for those of a path at positions `absent`, and what follows it.

        `own`: the tokens of that, of whole blocks.
        """
        order = self.tier_orders[DEVICE]
        if order is None:
            return
        root = self.radix.seed
        chain = [root, *self.residency.fingerprint[matched].tolist()]
        chain += fingerprints(own, self.radix.block_tokens, chain[-1]).tolist()
        positions = [*absent.tolist(), *range(len(matched), len(chain) - 1)]
        above = [chain[at] if at else ROOT for at in positions]
        order.coming([chain[at + 1] for at in positions], above, positions)

    def at(self, now_s: float) -> None:
        """It is `now_s`: what was of a high rank may not be any more."""
        self.ranks.at(now_s, self._became_normal)

    def _became_normal(self, stamp: int) -> None:
        for order in self._fair_orders:
            order.became_normal(stamp)

    # --- leases and removal ---------------------------------------------------------------------------------------

    def lease(self, path: Ids, rank: Rank = Rank.NORMAL) -> None:
        """Protect a path from the root, and count it as used now, by a request of this rank."""
        if not len(path):
            return
        self.ranks.used(path, rank)
        self.order.touch(path, leases=+1)

    def lease_further(self, path: Ids, num_leased: int, rank: Rank = Rank.NORMAL) -> None:
        """Have the lease on the first `num_leased` blocks of a path protect the others too. That is a use of all, if there are any."""
        if num_leased == len(path):
            return
        self.ranks.used(path, rank)
        self.order.touch(path, leases=+1, first=num_leased)

    def recalled(
        self, ids: Ids, uses: NDArray[np.int64], untouched: Mask, ranks: NDArray[np.int8] | None
    ) -> None:
        """Blocks were used before a restart, and some by nobody since: see `LRU.recalled`, `Ranks.recalled`."""
        self.order.recalled(ids[untouched], uses[untouched])
        self._see_fair.show(self.ranks.recalled(ids, uses, untouched, ranks))

    def release(self, path: Ids, rank: Rank = Rank.NORMAL) -> None:
        """Undo `lease`. The end of a use is a use."""
        self.ranks.used(path, rank)
        self.order.touch(path, leases=-1)

    def go_first(self, ids: Ids) -> None:
        """These blocks, at the end of the path that was just released, leave the device before others, until they are used again.

        Blocks that something outside the path follows do not: they are worth what that is worth. Nothing, where the order
        is a policy's, which knows nothing of it.
        """
        if self._first_to_go is None or not len(ids):
            return
        below = self.residency.num_children[ids]
        below[:-1] -= 1  # the next one of the path
        (followed,) = below.nonzero()
        self._first_to_go.put(ids[followed[-1] + 1 :] if len(followed) else ids, self.order.now)

    def is_nowhere(self, block: int) -> bool:
        """Whether no tier holds the block or expects it."""
        device, host, disk = self.residency.cells.state
        return not (device[block] or host[block] or disk[block])

    def prune(self, ids: Ids) -> list[int]:
        """Take blocks out of the index that are nowhere, unleased and childless, and then their parents likewise.

        `ids` in any order. Answers the holes: blocks that are nowhere but still have children or a lease.
        """
        cells, holes = self.residency.cells, []
        for block in self._nowhere(ids).tolist():
            while block >= 0 and cells.live[block] and self.is_nowhere(block):
                if cells.num_children[block] or cells.leases[block] or self.holds.is_held(block):
                    holes.append(block)
                    break
                parent = cells.parent[block]
                self.remove(np.array([block], dtype=np.intp))
                block = parent
        return [block for block in holes if cells.live[block]]

    def drop_leaf(self, tier: Tier, block: int) -> None:
        """`left` and `take_out` for a block that `is_only_in` this tier: what one eviction mostly is."""
        cells = self.residency.cells
        place, parent = cells.place[tier][block], cells.parent[block]
        cells.state[tier][block] = ABSENT
        if (order := self.tier_orders[tier]) is not None:
            order.left(np.array([block], dtype=np.intp))
        if tier is DISK:
            self._tallied[DISK_BYTES] -= place
            self._tallied[DISK_BLOCKS] -= 1
        else:
            self.slots[tier].free_one(place, _INDEXED)
            self._tallied[DIRTY] -= tier is HOST
        several = self.owners.several
        if several or self.ranks.in_use:
            one = np.array([block], dtype=np.intp)
            if several:
                self.shares.change_use(tier, one, -1)
                if tier is HOST:
                    self.shares.change_dirty(one, -1)
            self._forget_whose(one)
        self.order.removed_leaf(cells.stamp[block], parent)
        self.radix.remove_leaf(block)
        if parent != NO_BLOCK and not cells.num_children[parent] and self.is_nowhere(parent):
            self.prune(np.array([parent], dtype=np.intp))

    def take_out(self, ids: Ids) -> None:
        """`remove` these, and parents of theirs that are left as holes with nothing below."""
        above = self.residency.parent[ids].astype(np.intp)
        self.remove(ids)
        self.prune(above)

    def _nowhere(self, ids: Ids) -> Ids:
        """Those of these blocks, or of NO_BLOCK, that are in the index and in no tier."""
        found: Ids = np.empty(len(ids), dtype=ID)
        num = self._kernels.find_nowhere(self.residency.live, self.residency.state, ids, found)
        return found[:num]

    def remove(self, ids: Ids) -> None:
        """Take blocks out of the index that are nowhere and unleased, children before parents; none may stay below one."""
        self._forget_whose(ids)
        self.order.removed(ids)
        self.radix.remove(ids)

    def _forget_whose(self, ids: Ids) -> None:
        """Blocks are about to be taken out."""
        if self.ranks.in_use:
            self.residency.rank[ids] = Rank.NORMAL
        if self.owners.several:
            for path in self._stems.leaving(ids):
                self._see_fair.show(path)

    def in_use(self, ids: Ids) -> Mask:
        """Which of the blocks a request or a user holds, or have a copy in flight."""
        residency = self.residency
        ties = residency.leases[ids]
        for state, readers in zip(residency.state, residency.readers, strict=True):
            ties |= readers[ids]
            ties |= state[ids] & WRITING
        mask: Mask = ties != 0
        if self.holds:
            mask |= self.holds.are_held(ids)
        return mask

    # --- figures --------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, Any]]:
        """A snapshot by the tier's label: device and host slots by state, blocks and bytes on disk."""
        figures: dict[str, dict[str, Any]] = {}
        for tier, table in zip(Tier, self.slots, strict=False):
            counts = {state.name.lower(): table.count(state) for state in SlotState}
            figures[tier.label] = {"slots": table.num_slots, **counts}
        figures[DISK.label] = {
            "blocks": self.num_disk_blocks,
            "bytes": self.disk_bytes,
            "capacity_bytes": self.disk_capacity_bytes,
        }
        return figures

    def check(self) -> None:
        """Raise AssertionError unless arrays, index, order, slot tables and counters agree."""
        super().check()
        self.radix.check()
        self.order.check()
        self._check_owners()
        self.ranks.check()
        self._stems.check()
        self.holds.check()
        for view in self._see.orders:
            view.check()
        residency = self.residency
        stored = np.flatnonzero(residency.live & (residency.state[DISK] == PRESENT))
        assert residency.has_key[stored].all(), "a stored block has no key"

    def _check_owners(self) -> None:
        self.owners.check()
        self.shares.check()
        numbers = {number for _, number in self.owners.all()}
        assert numbers.issuperset(self.residency.owner.tolist()), "a block has a number that nobody has"
        for order in self._fair_orders:
            assert order.parts.keys() <= numbers | {EVERYBODY}, "a part is left of who was forgotten"
