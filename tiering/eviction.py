"""Making room: what leaves a tier, by which way, when another block needs its place.

Least recently used leaves go first. A block that a lower tier has as well is dropped without a copy; another is
copied down before its place is free; where the lower tier has no place either it is dropped for good, together with
every copy of its descendants, so that what the tiers hold together always reaches back to the root.
"""

from collections.abc import Callable
from enum import Enum, auto

import numpy as np

from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER
from tiering.entry import Entry
from tiering.holdings import Holdings
from tiering.holes import Holes
from tiering.keeping.admission import Verdict, Verdicts
from tiering.moves import Demote, Promote
from tiering.outbox import Outbox
from tiering.owners import NOBODY
from tiering.removal import Removal
from tiering.residency import ABSENT, DEVICE, DISK, HOST, NO_BLOCK, PRESENT, Ids, Mask, Tier
from tiering.slot_table import SlotState

_ANY_STAMP = 1 << 62  # no block has so late a one
_DISK_BATCH = 64  # the most victims that are looked at in one go


class Room(Enum):
    """Whether there is room on the device."""

    NOW = auto()
    SOON = auto()
    """When copies that are in flight have ended; as many as are needed were begun."""
    NO = auto()
    """Not before a request gives up what it holds."""


_IN_FLIGHT = SlotState.IN_FLIGHT
_NOW, _SOON = Room.NOW, Room.SOON  # members of an enum take longer to look up


class Eviction(Removal):
    """Frees places in each tier, all or nothing where the caller needs all. Never waits: answers what is free now."""

    def __init__(
        self, holdings: Holdings, holes: Holes, outbox: Outbox, entry: Entry, *, remembers: bool
    ) -> None:
        super().__init__(holdings, holes, outbox, remembers=remembers)
        self._entry = entry
        self.num_leaving = 0
        """Device slots that will be free when the copies out of them have ended."""

    # --- device ---------------------------------------------------------------------------------------------------

    def device_room(self, num_slots: int, owner: bytes = NO_OWNER) -> Room:
        """Whether so many device slots are free; if not, start freeing them, if that is possible at all. `owner`: who asks."""
        table = self._holdings.slots[DEVICE]
        short = num_slots - table.num_free - self.num_leaving
        if short > 0 and not self._free_device(short, num_slots, owner):
            return Room.SOON if self._is_device_moving() else Room.NO
        return _NOW if table.num_free >= num_slots else _SOON

    def _free_device(self, short: int, num_slots: int, owner: bytes) -> bool:
        """Have so many leave the device, for an owner that is going to have `num_slots` more; False if they cannot."""
        shares = self._holdings.shares
        if several := self._holdings.owners.several:
            shares.asks(DEVICE, self._holdings.owners.number(owner), num_slots)
        try:
            done = short == 1 and self._evict_leaf()
            if not done:
                victims = self._holdings.device_victims.peek(short)
                done = len(victims) == short
                if done:
                    self.evict_device(victims)
                    done = not self._holdings.holds.are_any or self._free_device_beside_held(num_slots)
        finally:  # a policy may break its contract
            if several:
                shares.asked(DEVICE)
        return done

    def _free_device_beside_held(self, num_slots: int) -> bool:
        """What is held may have found no place below, and stays: others go in its place. False if there are too few."""
        holdings, table = self._holdings, self._holdings.slots[DEVICE]
        short = num_slots - table.num_free - self.num_leaving
        if short <= 0:
            return True
        num_looked_at = 0
        while True:
            num_looked_at = 4 * num_looked_at + 2 * short
            victims = holdings.device_victims.peek(num_looked_at)
            others = victims[~holdings.would_be_missed(victims)]
            if len(others) >= short or len(victims) < num_looked_at:
                break
        if len(others) < short:
            return False
        self.evict_device(others[:short])
        return table.num_free + self.num_leaving >= num_slots

    def _is_device_moving(self) -> bool:
        """Whether a copy is in flight to or from a block on the device that no request holds: it may go afterwards."""
        leases = self._holdings.residency.leases
        moving = [move.ids for move in self._outbox.moves(Demote)]
        moving += [move.ids for move in self._outbox.moves(Promote)]
        return any(np.count_nonzero(leases.take(ids)) < len(ids) for ids in moving)

    def _evict_leaf(self) -> bool:
        """`evict_device` for a single victim that is dropped: what replies ask for that grow, if there is no host tier."""
        if self._holdings.slots[HOST].num_usable:
            return False
        block = self._holdings.device_victims.first()
        return block != NO_BLOCK and self.give_up_leaf(DEVICE, block)

    def evict_device(self, victims: Ids) -> None:
        """Give up device copies, in this order; those that no lower tier has go to host memory if it has room."""
        if not self._holdings.slots[HOST].num_usable:
            self.give_up(DEVICE, victims)
            return
        if self._holdings.holds.are_any:
            elsewhere = self._holdings.residency.state[HOST][victims] != ABSENT
            victims = victims[~elsewhere | self._holdings.may_leave(DEVICE, victims)]
        # on its way to host memory is as good as there: only a read brings a copy beside an idle one on the device,
        # and what it reads from stays
        num_indexed = len(self._holdings.radix)
        elsewhere, alone, stored = self._by_way_down(victims)
        self.leave(DEVICE, elsewhere)
        if self._entry.asks(HOST):
            down = victims[~np.isin(victims, elsewhere)] if len(elsewhere) else victims
            # what has to wait is rejected: somebody needs its place now
            down = self._without(DEVICE, down, self._verdicts(HOST, down) != Verdict.ADMIT)
            num_indexed = len(self._holdings.radix)
            _, alone, stored = self._by_way_down(down)
        self._move_down(alone, self.host_slots, num_indexed)
        # a block that only the disk has would load slowly: it may have a free host slot, but nobody's place
        if len(stored):
            self._move_down(stored, self._take_host, num_indexed)

    def _by_way_down(self, victims: Ids) -> tuple[Ids, Ids, Ids]:
        """Those that host memory has or expects; of the others, those that should be there, and those that the disk has as well."""
        residency = self._holdings.residency
        num = len(victims)
        found = np.empty(3 * num, dtype=np.intp)
        self._kernels.sort_by_way_down(residency.state, residency.held, victims, found, self._counts)
        num_elsewhere, num_alone, num_stored = self._counts.tolist()
        return found[:num_elsewhere], found[num : num + num_alone], found[2 * num : 2 * num + num_stored]

    def admitted_to_disk(self, ids: Ids) -> Ids:
        """Of host blocks, children before parents, those that may be written. What has to wait stays; what is rejected goes."""
        if not len(ids) or not self._entry.asks(DISK):
            return ids
        verdicts = self._verdicts(DISK, ids)
        now = verdicts != Verdict.THROTTLED
        return self._without(HOST, ids[now], verdicts[now] == Verdict.REJECT)

    def _verdicts(self, tier: Tier, ids: Ids) -> Verdicts:
        """Whether blocks may enter a tier; those that a user holds may."""
        verdicts = self._entry.verdicts(tier, ids)
        if self._holdings.holds.are_any:
            verdicts[self._holdings.holds.are_held(ids)] = Verdict.ADMIT
        return verdicts

    def _without(self, tier: Tier, ids: Ids, rejected: Mask) -> Ids:
        """Give up what was rejected, as far as it may go. What is left, in its order."""
        if not np.count_nonzero(rejected):
            return ids
        return ids[~np.isin(ids, self.reject(tier, ids[rejected]))]

    def _move_down(self, victims: Ids, take_slots: Callable[[int], Ids], num_indexed: int) -> None:
        """Ask for copies to as many host slots as there are. The youngest are worth most; the others go.

        `num_indexed`: blocks of the index when these were on the device.
        """
        if not len(victims):
            return
        residency = self._holdings.residency
        if fair := self._holdings.shares.on:
            self._holdings.shares.ask_for(HOST, victims)
        try:
            slots = take_slots(len(victims))
        finally:
            if fair:
                self._holdings.shares.asked(HOST)
        if len(self._holdings.radix) != num_indexed:
            # making room may have dropped a victim, as the descendant of a block that went for good
            victims = victims[residency.state[DEVICE][victims] == PRESENT]
        if self._holdings.holds.are_any:
            held = self._holdings.holds.are_held(victims)
            # nothing that is not held leads to what is
            victims = np.concatenate([victims[~held], victims[held]])
        num_kept = min(len(slots), len(victims))
        going, staying = victims[: len(victims) - num_kept], victims[len(victims) - num_kept :]
        if self._holdings.holds.are_any:
            going = going[~self._holdings.would_be_missed(going)]
        if len(going):
            self.give_up(DEVICE, going)
            # beyond a hole it may have been below one of those
            staying = staying[residency.present(DEVICE, staying)]
        if len(slots) > len(staying):
            self._return_host(slots[len(staying) :])
        self.demote(staying, slots[: len(staying)], then_free=True)

    def demote(self, ids: Ids, host_slots: Ids, *, then_free: bool) -> None:
        """Ask for a copy from device to host slots that were taken IN_FLIGHT."""
        if not len(ids):
            return
        residency = self._holdings.residency
        self._holdings.read_begins(DEVICE, ids)
        self._holdings.expect(HOST, ids, host_slots)
        self.num_leaving += len(ids) if then_free else 0
        device_slots = residency.place[DEVICE][ids]
        stamps = residency.stamp[ids]
        number = self._outbox.next_number()
        self._outbox.send(Demote(number, ids, device_slots, host_slots, stamps, then_free))

    def demoted(self, move: Demote, error: Exception | None) -> None:
        """A copy down is over. A block that was used meanwhile keeps its device copy."""
        self._holdings.read_ended(DEVICE, move.ids)
        if error is None:
            self._holdings.arrived(HOST, move.ids)
        else:
            self._holdings.failed(HOST, move.ids)
        if move.then_free:
            self.num_leaving -= len(move.ids)
            going = self._unused(move)
            if self._holdings.holds.are_any:
                going = going[self._holdings.may_leave(DEVICE, going)]
            if error is None:
                self.leave(DEVICE, going)
            else:
                self.give_up(DEVICE, going)

    def _unused(self, move: Demote) -> Ids:
        """What nobody has used since it was asked to be copied down."""
        residency = self._holdings.residency
        found: Ids = np.empty(len(move.ids), dtype=np.intp)
        num = self._kernels.find_unused(residency.stamp, move.stamps, residency.leases, move.ids, found)
        return found[:num]

    # --- host -----------------------------------------------------------------------------------------------------

    def host_slots(self, num_slots: int, *, enough: int | None = None) -> Ids:
        """Take up to `num_slots` host slots, IN_FLIGHT.

        Free ones, then those of blocks that are elsewhere as well, then those of the least recently used others. With
        `enough` of them, which may be below 1, none of the last goes.
        """
        table, victims = self._holdings.slots[HOST], self._holdings.host_victims
        wanted = num_slots if enough is None else min(num_slots, enough)
        # before anybody gives who has no more than its part
        if self._holdings.owners.several and self._holdings.shares.shared(HOST):
            self._leave_clean(self._holdings.host_clean.peek_over(num_slots - table.num_free))
            self.give_up(HOST, victims.peek_over(wanted - table.num_free))
        if (short := num_slots - table.num_free) > 0:
            self._leave_clean(self._holdings.host_clean.peek(short))
            if (short := wanted - table.num_free) > 0:
                self.give_up(HOST, victims.peek(short))
        return self._take_host(num_slots)

    def vacate_host(self, num_slots: int, *, elsewhere: bool) -> int:
        """Free up to `num_slots` host slots: of blocks that are elsewhere as well, or else of last copies. How many."""
        num_free = self._holdings.slots[HOST].num_free
        if elsewhere:
            self._leave_clean(self._holdings.host_clean.peek(num_slots))
        else:
            self.give_up(HOST, self._holdings.host_victims.peek(num_slots))
        return self._holdings.slots[HOST].num_free - num_free

    def _leave_clean(self, ids: Ids) -> None:
        """Give up host copies of blocks that are, or are about to be, elsewhere."""
        if not len(ids):
            return
        # who computes a block may end before it is there: then this was the last copy
        residency = self._holdings.residency
        if self._kernels.num_last_in(residency.state, HOST, ids):
            last = ~(residency.present(DEVICE, ids) | residency.present(DISK, ids))
            going = ~self._holdings.holds.are_held(ids)
            self.gone(ids[last & going], MissReason.EVICTED)
            ids = ids[~last | going]
        self.leave(HOST, ids)

    def host_slots_for_sweep(self, num_slots: int) -> Ids:
        """Take up to `num_slots` host slots, IN_FLIGHT: free ones, then those of blocks that the disk has as well."""
        table = self._holdings.slots[HOST]
        self.leave(HOST, self._holdings.host_stored.peek(num_slots - table.num_free))
        return self._take_host(num_slots)

    def _take_host(self, num_slots: int) -> Ids:
        """Up to `num_slots` free host slots, IN_FLIGHT."""
        table = self._holdings.slots[HOST]
        slots = table.take(max(0, min(num_slots, table.num_free)), _IN_FLIGHT)
        assert slots is not None, "no more was asked for than is free"
        return slots

    def _return_host(self, slots: Ids) -> None:
        self._holdings.slots[HOST].free(slots, SlotState.IN_FLIGHT)

    # --- disk -----------------------------------------------------------------------------------------------------

    def disk_room(self, num_bytes: int, *, used_before: int, owner: int = NOBODY) -> int:
        """How many of these bytes the disk may take, after giving up blocks with an older stamp than `used_before`.

        A block never takes the place of one that is worth more: else two of them could push each other out forever. Where
        owners have quotas, one that stands further above its part than `owner` will gives to it whatever was used when, and
        no other gives.
        """
        holdings = self._holdings
        while (over := holdings.disk_bytes + num_bytes - holdings.disk_capacity_bytes) > 0:
            # of a disk that is smaller than one record there is nothing to give up
            num_about = 1 + over * holdings.num_disk_blocks // max(1, holdings.disk_bytes)
            holdings.shares.asks(DISK, owner, num_bytes)
            victims, older_than = holdings.disk_victims.peek(min(num_about, _DISK_BATCH)), used_before
            if holdings.shares.on:
                are_older = holdings.residency.stamp[victims] < used_before
                victims, older_than = victims[self._gives_way(victims, are_older, owner)], _ANY_STAMP
            holdings.shares.asked(DISK)
            before = holdings.disk_bytes
            self._give_up_on_disk(victims, over, used_before=older_than)
            if holdings.disk_bytes == before:
                break
        return max(0, min(num_bytes, holdings.disk_capacity_bytes - holdings.disk_bytes))

    def _gives_way(self, victims: Ids, are_older: Mask, owner: int) -> Mask:
        """Which of the disk's victims may go for an owner: older ones of its own, and what others stand above it with."""
        holdings = self._holdings
        shares, residency = holdings.shares, holdings.residency
        shares.asks(DISK, owner, max(0, holdings.disk_capacity_bytes - holdings.disk_bytes))
        owners, sizes = residency.owner[victims], residency.place[DISK][victims]
        may_go: Mask = are_older & (owners == owner)
        for giver in set(owners.tolist()) - {owner}:
            (mine,) = (owners == giver).nonzero()
            may_go[mine] = np.cumsum(sizes[mine]) <= shares.surplus(DISK, giver, owner)
        may_go &= residency.stems[victims] == 0
        return may_go

    def fit_disk(self) -> None:
        """Give up the least recently used blocks that are more than the disk's capacity."""
        self.disk_room(0, used_before=self._holdings.order.now + 1)

    def shrink_disk(self, num_blocks: int) -> int:
        """Give up as many of the least recently used as are more than the capacity, `num_blocks` at most. How many bytes."""
        before = self._holdings.disk_bytes
        victims = self._holdings.disk_victims.peek(num_blocks)
        self._give_up_on_disk(victims, before - self._holdings.disk_capacity_bytes, used_before=_ANY_STAMP)
        return before - self._holdings.disk_bytes

    def _give_up_on_disk(self, victims: Ids, num_bytes: int, *, used_before: int) -> None:
        """Give up the first of these with an older stamp that have so many bytes together."""
        residency, found = self._holdings.residency, np.empty(len(victims), dtype=np.intp)
        num = self._kernels.find_older(
            residency.place[DISK], residency.stamp, num_bytes, used_before, victims, found
        )
        self.give_up(DISK, found[:num])
