"""Copies of blocks in the tiers: the one place where one begins, is whole, is read, and goes.

A copy's life in a tier, and the slot's that it lies in::

    ABSENT --expect--> WRITING --arrived--> PRESENT --left--> ABSENT
      FREE             IN_FLIGHT            INDEXED           FREE
                          |
                          +----failed--> ABSENT

Disk has bytes instead of slots: `expect` reserves, `arrived` says what was really taken.

What a change is to the columns, to slots, to what is counted and to those who look for blocks that may go is one pass over the
blocks (tiering.loops.copies). docs/adr/0024 says why.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tiering.audience import Audiences
from tiering.kernels import kernels
from tiering.loops.states import DIRTY, DISK_BLOCKS, DISK_BYTES
from tiering.owners import Owners
from tiering.policies.lru import LRU
from tiering.quotas import Shares
from tiering.residency import ABSENT, DEVICE, DISK, HOST, PRESENT, WRITING, Ids, Residency, State, Tier
from tiering.slot_table import SlotState, SlotTable
from tiering.tier_order import TierOrder

_NO_SIZES: Final = np.empty(0, dtype=np.int64)


class Copies:
    """Changes copies, and tells who has to know. Not thread-safe: the core's thread owns it.

    All methods take ids as a residency does. A change that is not allowed is an AssertionError, and has changed nothing.
    """

    def __init__(
        self, residency: Residency, order: LRU, owners: Owners, shares: Shares, *tables: SlotTable
    ) -> None:
        """`tables`: of the device's slots, and of host memory's."""
        self._kernels = kernels()
        self.residency, self.order, self.owners, self.shares = residency, order, owners, shares
        # by tier: an enum takes long to be hashed, as a key of a dict
        self.slots = tables
        self._tables = (*tables, SlotTable(0))
        self._host_counts = tables[HOST].counts
        self._tally: NDArray[np.int64] = np.zeros(3, dtype=np.int64)
        self._tallied: memoryview[int] = self._tally.data
        self.tier_orders: tuple[TierOrder | None, ...] = (None, None, None)
        """The order of a plug-in, where there is one, by tier. The disk has none: what survives a restart is the last use."""
        self._see = Audiences()

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, reservations of writes in flight included."""
        return self._tallied[DISK_BYTES]

    @property
    def num_disk_blocks(self) -> int:
        """Whole copies on disk."""
        return self._tallied[DISK_BLOCKS]

    @property
    def num_dirty_host(self) -> int:
        """Blocks in host memory that have no finished copy on disk."""
        return self._tallied[DIRTY]

    # --- changes --------------------------------------------------------------------------------------------------

    def expect(self, tier: Tier, ids: Ids, places: NDArray[np.int64] | Ids) -> None:
        """A copy is on its way: into slots that were taken IN_FLIGHT, or into that many bytes of disk each."""
        see, order = self._see.begun[tier], self.order
        is_new = self._kernels.copies_begin(
            self.residency.columns,
            order.places.columns,
            see.numbers,
            self._host_counts,
            self._tally,
            tier,
            ids,
            places,
        )
        assert is_new, "a copy can be begun only where there is none, and each has a place"
        if self.owners.several:
            self.shares.change_use(tier, ids, +1)
        if (plug_in := self.tier_orders[tier]) is not None:
            plug_in.begun(ids)
        if order.places.have_parts:
            see.show_parts(ids)

    def arrived(self, tier: Tier, ids: Ids, stored_bytes: NDArray[np.int64] = _NO_SIZES) -> None:
        """The copies are whole. `stored_bytes` is what they take on disk."""
        residency, see, order = self.residency, self._see.whole[tier], self.order
        several = self.owners.several
        has_new_size = several and tier is DISK
        if has_new_size:
            self.shares.change_use(DISK, ids, -1)
        were_begun = self._kernels.copies_arrive(
            residency.columns,
            self._tables[tier].columns,
            order.places.columns,
            see.numbers,
            self._host_counts,
            self._tally,
            tier,
            ids,
            stored_bytes,
        )
        if has_new_size:  # also where nothing has changed: then as before
            self.shares.change_use(DISK, ids, +1)
        assert were_begun, "only a copy that was begun, in a slot that waits for it, can be finished"
        if several:
            self._change_dirty(tier, ids, +1)
        if order.places.have_parts:
            see.show_parts(ids)

    def arrived_to_be_read(self, tier: Tier, ids: Ids) -> None:
        """`arrived` and `read_begins` in one, for what is on its way through: nobody may take the places in between."""
        self.arrived(tier, ids)
        self.read_begins(tier, ids)

    def failed(self, tier: Tier, ids: Ids) -> None:
        """The copies will not come; their places are free again."""
        self._vacate(tier, ids, WRITING)

    def left(self, tier: Tier, ids: Ids) -> None:
        """Give up copies that nobody reads; their places are free again."""
        self._vacate(tier, ids, PRESENT)

    def _vacate(self, tier: Tier, ids: Ids, state: int) -> None:
        residency, see, order = self.residency, self._see.gone[tier], self.order
        could_go = self._kernels.copies_leave(
            residency.columns,
            self._tables[tier].columns,
            order.places.columns,
            see.numbers,
            self._host_counts,
            self._tally,
            tier,
            state,
            ids,
        )
        assert could_go, f"only a copy in state {state} and its slot can be given up, and none with readers"
        if self.owners.several:
            if state == PRESENT:
                self._change_dirty(tier, ids, -1)
            self.shares.change_use(tier, ids, -1)
        if (plug_in := self.tier_orders[tier]) is not None:
            plug_in.left(ids)
        if order.places.have_parts:
            see.show_parts(ids)

    def _change_dirty(self, tier: Tier, ids: Ids, sign: int) -> None:
        """Tell the shares of copies that have become whole (+1), or that were and have gone (-1)."""
        state = self.residency.state
        if tier is HOST:
            self.shares.change_dirty(ids[state[DISK][ids] != PRESENT], sign)
        elif tier is DISK:
            self.shares.change_dirty(ids[state[HOST][ids] == PRESENT], -sign)

    def read_begins(self, tier: Tier, ids: Ids) -> None:
        """A copy out of these places is in flight: they may not be freed."""
        self._read(tier, ids, +1)

    def read_ended(self, tier: Tier, ids: Ids) -> None:
        """That copy is over."""
        self._read(tier, ids, -1)
        if self.order.places.have_parts:
            self._see.unread[tier].show_parts(ids)

    def _read(self, tier: Tier, ids: Ids, change: int) -> None:
        could_be = self._kernels.copies_read(
            self.residency.columns,
            self.order.places.columns,
            self._see.unread[tier].numbers,
            self._host_counts,
            tier,
            change,
            ids,
        )
        assert could_be, "only a whole copy is read, and as often as it is not any more"

    def will_compute(self, ids: Ids) -> None:
        """A request is going to fill these blocks on the device, whether they have a place there already or not."""
        self._await(ids, are=True)
        if self.order.places.have_parts:
            self._see.begun[DEVICE].show_parts(ids)

    def wont_compute(self, ids: Ids) -> None:
        """It will not. Of what has arrived this is known."""
        self._await(ids, are=False)

    def _await(self, ids: Ids, *, are: bool) -> None:
        self._kernels.copies_awaited(
            self.residency.columns,
            self.order.places.columns,
            self._see.begun[DEVICE].numbers,
            self._host_counts,
            are,
            ids,
        )

    # --- conservation ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless columns, slot tables and what is counted agree."""
        residency = self.residency
        residency.check()
        for table in self.slots:
            table.check()
        ids = np.flatnonzero(residency.live)
        for tier in (DEVICE, HOST):
            self._check_slots(tier, ids)
        on_disk = ids[residency.state[DISK][ids] != ABSENT]
        assert self.disk_bytes == residency.place[DISK][on_disk].sum(), "disk bytes do not add up"
        dirty = (residency.state[HOST][ids] == PRESENT) & (residency.state[DISK][ids] != PRESENT)
        assert self.num_dirty_host == dirty.sum(), f"{self.num_dirty_host} dirty counted, {dirty.sum()} found"
        stored = ids[residency.state[DISK][ids] == PRESENT]
        assert self.num_disk_blocks == len(stored), f"{self.num_disk_blocks} counted, {len(stored)} on disk"

    def _check_slots(self, tier: Tier, ids: Ids) -> None:
        state = self.residency.state[tier][ids]
        for block_state, slot_state in (
            (State.PRESENT, SlotState.INDEXED),
            (State.WRITING, SlotState.IN_FLIGHT),
        ):
            places = self.residency.place[tier][ids[state == block_state]]
            table = self.slots[tier]
            found = np.flatnonzero(table.states(np.arange(table.num_slots)) == slot_state)
            assert sorted(places.tolist()) == sorted(found.tolist()), (
                f"{tier.label}: {len(places)} blocks {block_state.name}, {len(found)} slots {slot_state.name}"
            )
