"""What preempted requests had computed for themselves alone: it waits in host memory until they run again."""

from dataclasses import dataclass

import numpy as np

from tiering.eviction import Eviction
from tiering.holdings import DEVICE, HOST, Holdings
from tiering.lease import Lease
from tiering.moves import SwapIn, SwapOut
from tiering.outbox import Outbox
from tiering.residency import Ids
from tiering.slot_table import SlotState


@dataclass(slots=True, eq=False)
class Stash:
    """A request's own blocks in host memory: those at positions `start`, `start` + 1, ... of its block table.

    Made by a preemption; ended by the next admission, by `drop`, or, then it is `lost`, by a copy that failed.
    """

    start: int
    host_slots: Ids
    arriving: bool = True
    """The copy down has not ended."""
    dropped: bool = False
    lost: bool = False

    def __len__(self) -> int:
        return len(self.host_slots)


@dataclass(slots=True)
class _Return:
    """A copy back up, for a lease that may be released before it ends."""

    stash: Stash
    lease: Lease
    device_slots: Ids
    kept: bool = False
    """The request was preempted again: the stash waits on for it."""


class Swaps:
    """Takes private blocks off the device and brings them back. Host slots for it are half of what there is, at most:
    the rest is for loads, which the requests that run may be waiting for.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction, outbox: Outbox) -> None:
        self._holdings, self._eviction, self._outbox = holdings, eviction, outbox
        self._out: dict[int, tuple[Stash, Ids]] = {}
        self._in: dict[int, _Return] = {}
        self.num_swapped_out = 0
        self.num_swapped_in = 0
        """Blocks copied down for preempted requests, and back up."""

    def swap_out(self, start: int, device_slots: Ids) -> Stash | None:
        """Copy PRIVATE device slots down; they are free when that has ended. None, and no change, without a place."""
        table = self._holdings.slots[HOST]
        if not len(device_slots) or len(device_slots) > table.num_slots // 2 - table.count(SlotState.PRIVATE):
            return None
        host_slots = self._eviction.host_slots(len(device_slots))
        if len(host_slots) < len(device_slots):
            table.free(host_slots, SlotState.IN_FLIGHT)
            return None
        table.turn(host_slots, SlotState.IN_FLIGHT, SlotState.PRIVATE)
        stash = Stash(start, host_slots)
        number = self._outbox.next_number()
        self._out[number] = (stash, device_slots)
        self._eviction.num_leaving += len(device_slots)
        self._outbox.send(SwapOut(number, device_slots, host_slots))
        return stash

    def swapped_out(self, move: SwapOut, error: Exception | None) -> None:
        """The copy down is over: the device slots are free. The stash is lost if the copy failed."""
        stash, device_slots = self._out.pop(move.number)
        self._eviction.num_leaving -= len(device_slots)
        self._holdings.slots[DEVICE].free(device_slots, SlotState.PRIVATE)
        stash.arriving = False
        if error is None:
            self.num_swapped_out += len(stash)
        else:
            stash.lost = True
        if stash.lost or stash.dropped:
            self._free(stash)

    def swap_in(self, stash: Stash, lease: Lease) -> None:
        """Copy a stash up into the slots of a new lease, which is loading until that has ended."""
        assert not (stash.arriving or stash.dropped or stash.lost), "there is nothing to bring back"
        device_slots = lease.slots[stash.start : stash.start + len(stash)]
        lease.num_loading += len(stash)
        number = self._outbox.next_number()
        self._in[number] = _Return(stash, lease, device_slots)
        self._outbox.send(SwapIn(number, stash.host_slots, device_slots))

    def swapped_in(self, move: SwapIn, error: Exception | None) -> None:
        """The copy up is over. If it failed, the blocks are not ready: the request must compute them again."""
        back = self._in.pop(move.number)
        if back.lease.released:
            self._eviction.num_leaving -= len(back.device_slots)
            self._holdings.slots[DEVICE].free(back.device_slots, SlotState.PRIVATE)
        if back.kept:
            back.stash.arriving = False
        if back.stash.dropped or not back.kept:
            self._free(back.stash)
        if back.lease.released:
            return
        back.lease.num_loading -= len(back.stash)
        if error is None:
            self.num_swapped_in += len(back.stash)
            back.lease.ready[back.stash.start : back.stash.start + len(back.stash)] = True

    def keep(self, lease: Lease) -> Stash | None:
        """The lease is preempted: what is still being copied up for it goes back to waiting. None if nothing is."""
        for back in self._in.values():
            if back.lease is lease:
                back.kept = back.stash.arriving = True
                return back.stash
        return None

    def release(self, lease: Lease) -> Ids:
        """Device slots of a lease into which a copy is still under way: they are freed when it ends, not before."""
        for back in self._in.values():
            if back.lease is lease:
                self._eviction.num_leaving += len(back.device_slots)
                return back.device_slots
        return np.empty(0, dtype=np.intp)

    def device_slots(self) -> list[Ids]:
        """Device slots that no lease holds, because a copy out of them or into them has not ended."""
        leaving = [device_slots for _, device_slots in self._out.values()]
        return leaving + [back.device_slots for back in self._in.values() if back.lease.released]

    def drop(self, stash: Stash) -> None:
        """The request will not come back: its host slots are free, at the latest when the copy into them has ended."""
        if stash.dropped or stash.lost:
            return
        stash.dropped = True
        if not stash.arriving:
            self._free(stash)

    def _free(self, stash: Stash) -> None:
        self._holdings.slots[HOST].free(stash.host_slots, SlotState.PRIVATE)
