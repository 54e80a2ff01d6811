"""The one place that gives out the slot numbers of a tier."""

from enum import IntEnum
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from tiering.kernels import kernels
from tiering.loops.states import FRESH, STACKED

Slots = NDArray[np.intp]
_SLOT = np.dtype(np.intp)


class SlotState(IntEnum):
    """Who may write to a slot, and who counts on its content."""

    FREE = 0  # nobody
    PRIVATE = 1  # a sequence's own, not in the index
    INDEXED = 2  # the place of a block of the index
    IN_FLIGHT = 3  # destination of a copy that has not ended
    RETIRED = 4  # nobody, and it is not given out


_FREE, _RETIRED = int(SlotState.FREE), int(SlotState.RETIRED)  # an enum's attributes take longer


class SlotTable:
    """States of the slots 0 .. num_slots - 1 of one tier, which may become more.

    Every change names the state that it expects, so that a slot cannot have two owners. Not thread-safe: the engine
    loop is the only caller. Slots travel as 1-D intp arrays without duplicates; the empty array does nothing.
    """

    def __init__(self, num_slots: int) -> None:
        """All slots start FREE. ValueError for a negative number."""
        if num_slots < 0:
            raise ValueError(f"num_slots must not be negative, it is {num_slots}")
        self._kernels = kernels()
        self.counts: NDArray[np.int64] = np.zeros(len(SlotState) + 2, dtype=np.int64)
        """Slots by state; of the FREE ones those on the stack, and all that were ever given out: loops change these, and count here."""
        self._counts: memoryview[int] = self.counts.data
        self._counts[_FREE] = num_slots
        # FREE slots: a stack, int32 at rest; and below it those that were never given out, of which the lowest goes first.
        # What lies above the stack is not written to, and so takes no memory.
        self._lay_out(np.zeros(num_slots, dtype=np.uint8), np.zeros(num_slots, dtype=np.int32))

    def _lay_out(self, states: NDArray[np.uint8], free: NDArray[np.int32]) -> None:
        self._states, self._free = states, free
        self.num_usable = len(states) - self._counts[_RETIRED]
        """All but those that are RETIRED. Asked at each step: an attribute is read fastest."""
        self.columns = states, free, self.counts
        """The slots' states, the stack of FREE ones, and the counts: for loops. Replaced when the table grows."""

    def grow(self, num_slots: int) -> None:
        """There are `num_slots` from now on, at least as many as before; new ones are FREE, and go after those that are."""
        more = num_slots - self.num_slots
        assert more >= 0, f"a tier of {self.num_slots} slots does not shrink to {num_slots}"
        free, num_stacked = np.zeros(num_slots, dtype=np.int32), self._counts[STACKED]
        free[:num_stacked] = self._free[:num_stacked]
        self._lay_out(np.concatenate([self._states, np.zeros(more, dtype=np.uint8)]), free)
        self._counts[_FREE] += more

    def retire(self, n: int) -> int:
        """Take up to `n` FREE slots out of service, those first that would be given out last. How many it were."""
        n = max(0, min(n, self.num_free))
        self._stack_fresh()
        slots = self._free[:n].copy()
        self._counts[STACKED] -= n
        left = self._counts[STACKED]
        self._free[:left] = self._free[n : n + left].copy()
        self._states[slots] = SlotState.RETIRED
        self._move(n, SlotState.FREE, SlotState.RETIRED)
        self.num_usable -= n
        return n

    def restore(self, n: int) -> int:
        """Put up to `n` RETIRED slots back into service; they go after those that are FREE. How many it were."""
        slots = np.flatnonzero(self._states == SlotState.RETIRED)[: max(0, n)]
        self._stack_fresh()
        self._put_below(slots)
        self._states[slots] = SlotState.FREE
        self._move(len(slots), SlotState.RETIRED, SlotState.FREE)
        self.num_usable += len(slots)
        return len(slots)

    def _stack_fresh(self) -> None:
        """Have all FREE slots on the stack, in the same order."""
        self._put_below(np.arange(self._counts[FRESH], self.num_slots))
        self._counts[FRESH] = self.num_slots

    def _put_below(self, slots: Slots) -> None:
        """Have the stack hand these out, in this order, after all that are on it."""
        n, stacked = len(slots), self._counts[STACKED]
        self._free[n : n + stacked] = self._free[:stacked].copy()
        self._free[:n] = slots[::-1]
        self._counts[STACKED] += n

    @property
    def num_slots(self) -> int:
        """All slots, whatever their state."""
        return len(self._states)

    @property
    def num_free(self) -> int:
        """Slots that `take` can give out."""
        return self._counts[_FREE]

    def count(self, state: SlotState) -> int:
        """Number of slots in one state."""
        return self._counts[state]

    def states(self, slots: Slots) -> NDArray[np.uint8]:
        """The SlotState of each slot, as a copy."""
        return self._states.take(slots)

    def take(self, n: int, state: SlotState) -> Slots | None:
        """Turn `n` FREE slots into `state` and return them; None, and no change, if there are not so many."""
        assert int(state) not in (_FREE, _RETIRED), "a slot is taken for some use"
        if n > self._counts[_FREE]:
            return None
        slots = np.empty(n, dtype=_SLOT)
        self._kernels.take_slots(*self.columns, state, slots)
        return slots

    def turn(self, slots: Slots, from_state: SlotState, to_state: SlotState) -> None:
        """Change slots that are all in `from_state` to `to_state`; neither is FREE."""
        old, new = int(from_state), int(to_state)
        assert _FREE not in (old, new), "take and free change what is FREE"
        assert _RETIRED not in (old, new), "retire and restore change what is RETIRED"
        assert old != new, "a slot changes its state, or need not be turned"
        if not self._kernels.change_slots[slots.itemsize](self._states, self.counts, old, new, slots):
            self._refuse(slots, from_state)

    def free(self, slots: Slots, from_state: SlotState) -> None:
        """Give back slots that are all in `from_state`. They may be handed out, and overwritten, at once."""
        old = int(from_state)
        assert old not in (_FREE, _RETIRED), "a slot is freed once"
        if not self._kernels.free_slots[slots.itemsize](*self.columns, old, slots):
            self._refuse(slots, from_state)

    def _refuse(self, slots: Slots, state: SlotState) -> NoReturn:
        """Say why these cannot change from this state. A duplicate would be counted, and freed, twice."""
        there = (slots >= 0) & (slots < self.num_slots)
        assert there.all(), (
            f"there are {self.num_slots} slots, of which these are none: {slots[~there].tolist()}"
        )
        found = self._states[slots].tolist()
        wrong = "a slot is named twice" if found == [state] * len(slots) else f"must be {state.name}"
        raise AssertionError(f"{wrong}: slots {slots.tolist()}, found {found}")

    def free_one(self, slot: int, from_state: SlotState) -> None:
        """`free` for one slot, in a tenth of the time."""
        found = self._states.item(slot)
        assert found == from_state != _FREE, f"slot {slot} must be {from_state.name}, found {found}"
        counts = self._counts
        self._free[counts[STACKED]] = slot
        counts[STACKED] += 1
        self._states[slot] = _FREE
        counts[found] -= 1
        counts[_FREE] += 1

    def _move(self, n: int, from_state: int, to_state: int) -> None:
        self._counts[from_state] -= n
        self._counts[to_state] += n

    def check(self) -> None:
        """Raise AssertionError unless free + private + indexed + in flight + retired == total, each slot once."""
        counts = np.bincount(self._states, minlength=len(SlotState)).tolist()
        free, private, indexed, in_flight, retired, num_stacked, num_fresh = self._counts.tolist()
        assert free + private + indexed + in_flight + retired == self.num_slots, (
            f"{free} free + {private} private + {indexed} indexed + {in_flight} in flight + {retired} retired"
            f" != {self.num_slots}"
        )
        told = [free, private, indexed, in_flight, retired]
        assert counts == told, f"states hold {counts}, the counts say {told}"
        assert self.num_usable == self.num_slots - retired, "slots are usable, or retired"
        stack = self._free[:num_stacked]
        assert len(stack) + self.num_slots - num_fresh == free, "a free slot is lost"
        assert not self._states[num_fresh:].any(), "a fresh slot is in use"
        assert (stack < num_fresh).all(), "a fresh slot is in the free stack"
        assert (self._states[stack] == SlotState.FREE).all(), "a slot in the free stack is in use"
        assert len(set(stack.tolist())) == len(stack), "a slot is in the free stack twice"
