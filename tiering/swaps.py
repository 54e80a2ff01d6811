"""What preempted requests had computed for themselves alone: it waits in host memory until they run again."""

from dataclasses import dataclass
from enum import Enum, auto

import numpy as np

from tiering.eviction import Eviction
from tiering.holdings import Holdings
from tiering.lease import Lease
from tiering.moves import SwapIn, SwapOut
from tiering.outbox import Outbox
from tiering.residency import DEVICE, HOST, Ids
from tiering.slot_table import SlotState


class StashState(Enum):
    """How far a stash is::

    preempted -> MOVING -> WAITING -> RETURNING -> OVER
                   |  ^                   |         ^
                   |  '---- preempted ----'         |
                   '-> LOST      MOVING, WAITING -> DROPPED
    """

    MOVING = auto()
    """Its request waits, and a copy into it or out of it has not ended."""
    WAITING = auto()
    """Its request waits, and it can be copied back."""
    RETURNING = auto()
    """It is being copied back for its request, which has been admitted."""
    DROPPED = auto()
    """Its request will not come back; it is over when no copy needs it any more."""
    LOST = auto()
    """The copy into it has failed."""
    OVER = auto()


@dataclass(slots=True, eq=False)
class Stash:
    """A request's own blocks in host memory: those at positions `start`, `start` + 1, ... of its block table."""

    start: int
    host_slots: Ids
    state: StashState = StashState.MOVING

    @property
    def lost(self) -> bool:
        """Whether there is nothing to come back for."""
        return self.state is StashState.LOST

    def __len__(self) -> int:
        return len(self.host_slots)


@dataclass(slots=True)
class _Return:
    """A copy back up, for a lease that may be released before it ends."""

    stash: Stash
    lease: Lease
    device_slots: Ids


class Swaps:
    """Takes private blocks off the device and brings them back. Host slots for it are half of what there is, at most:
    the rest is for loads, which the requests that run may be waiting for.
    """

    def __init__(self, holdings: Holdings, eviction: Eviction, outbox: Outbox) -> None:
        self._holdings, self._eviction, self._outbox = holdings, eviction, outbox
        self._out: dict[int, tuple[Stash, Ids]] = {}
        self._in: dict[int, _Return] = {}
        self._stashes: list[Stash] = []
        """Those that hold host slots."""
        self.num_swapped_out = 0
        self.num_swapped_in = 0
        """Blocks copied down for preempted requests, and back up."""

    def swap_out(self, start: int, device_slots: Ids) -> Stash | None:
        """Copy PRIVATE device slots down; they are free when that has ended. None, and no change, without a place."""
        table = self._holdings.slots[HOST]
        most = self._holdings.num_host_slots // 2
        if not len(device_slots) or len(device_slots) > most - table.count(SlotState.PRIVATE):
            return None
        host_slots = self._eviction.host_slots(len(device_slots))
        if len(host_slots) < len(device_slots):
            table.free(host_slots, SlotState.IN_FLIGHT)
            return None
        table.turn(host_slots, SlotState.IN_FLIGHT, SlotState.PRIVATE)
        stash = Stash(start, host_slots)
        self._stashes.append(stash)
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
        if error is None:
            self.num_swapped_out += len(stash)
        if stash.state is StashState.DROPPED:
            self._free(stash, StashState.OVER)
        elif error is not None:
            self._free(stash, StashState.LOST)
        else:
            stash.state = StashState.WAITING

    def swap_in(self, stash: Stash, lease: Lease) -> None:
        """Copy a stash up into the slots of a new lease, which is loading until that has ended."""
        assert stash.state is StashState.WAITING, f"a stash that is {stash.state.name} cannot be brought back"
        stash.state = StashState.RETURNING
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
        if back.stash.state is StashState.MOVING:  # its request waits again
            back.stash.state = StashState.WAITING
        else:
            self._free(back.stash, StashState.OVER)
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
                back.stash.state = StashState.MOVING
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
        if stash.state is StashState.WAITING:
            self._free(stash, StashState.OVER)
        elif stash.state is StashState.MOVING:
            stash.state = StashState.DROPPED

    def _free(self, stash: Stash, end: StashState) -> None:
        stash.state = end
        self._stashes.remove(stash)
        self._holdings.slots[HOST].free(stash.host_slots, SlotState.PRIVATE)

    def check(self) -> None:
        """Raise AssertionError unless the private slots of host memory are those of stashes, each with the copies it says."""
        table = self._holdings.slots[HOST]
        owned = sorted(slot for stash in self._stashes for slot in stash.host_slots.tolist())
        found = np.flatnonzero(table.states(np.arange(table.num_slots)) == SlotState.PRIVATE).tolist()
        assert owned == found, f"private host slots are {found}, stashes own {owned}"
        copied = [stash for stash, _ in self._out.values()] + [back.stash for back in self._in.values()]
        resting = [stash for stash in self._stashes if stash.state is StashState.WAITING]
        assert len(copied) + len(resting) == len(self._stashes), "a stash is moved twice, or by nobody"
        assert not set(map(id, copied)) & set(map(id, resting)), "a stash that is copied does not wait"
