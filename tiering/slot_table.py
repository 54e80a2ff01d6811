"""The one place that gives out the slot numbers of a tier."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.intp]


class SlotState(IntEnum):
    """Who may write to a slot, and who counts on its content."""

    FREE = 0  # nobody
    PRIVATE = 1  # a sequence's own, not in the index
    INDEXED = 2  # the place of a block of the index
    IN_FLIGHT = 3  # destination of a copy that has not ended
    RETIRED = 4  # nobody, and it is not given out


_FREE, _RETIRED = int(SlotState.FREE), int(SlotState.RETIRED)  # an enum's attributes take longer

_FEW = 64  # slots that a set tells apart in less time than arrays do

_NUMBERS = np.arange(512)  # ready: to make them gives up Python's lock, which a batch need not


class SlotTable:
    """States of the slots 0 .. num_slots - 1 of one tier, which may become more.

    Every change names the state that it expects, so that a slot cannot have two owners. Not thread-safe: the engine
    loop is the only caller. Slots travel as 1-D intp arrays without duplicates; the empty array does nothing.
    """

    def __init__(self, num_slots: int) -> None:
        """All slots start FREE. ValueError for a negative number."""
        if num_slots < 0:
            raise ValueError(f"num_slots must not be negative, it is {num_slots}")
        self._states = np.zeros(num_slots, dtype=np.uint8)
        self._counts = [num_slots, 0, 0, 0, 0]
        # FREE slots: a stack, _free[:_num_stacked], int32 at rest; and below it those from _num_fresh on, of which the lowest
        # goes first. What lies above the stack is not written to, and so takes no memory.
        self._free = np.zeros(num_slots, dtype=np.int32)
        self._num_stacked = self._num_fresh = 0

    def grow(self, num_slots: int) -> None:
        """There are `num_slots` from now on, at least as many as before; new ones are FREE, and go after those that are."""
        more = num_slots - self.num_slots
        assert more >= 0, f"a tier of {self.num_slots} slots does not shrink to {num_slots}"
        stacked = self._free[: self._num_stacked]
        self._free = np.zeros(num_slots, dtype=np.int32)
        self._free[: self._num_stacked] = stacked
        self._states = np.concatenate([self._states, np.zeros(more, dtype=np.uint8)])
        self._counts[SlotState.FREE] += more

    def retire(self, n: int) -> int:
        """Take up to `n` FREE slots out of service, those first that would be given out last. How many it were."""
        n = max(0, min(n, self.num_free))
        self._stack_fresh()
        slots = self._free[:n].copy()
        self._num_stacked -= n
        self._free[: self._num_stacked] = self._free[n : n + self._num_stacked].copy()
        self._states[slots] = SlotState.RETIRED
        self._move(n, SlotState.FREE, SlotState.RETIRED)
        return n

    def restore(self, n: int) -> int:
        """Put up to `n` RETIRED slots back into service; they go after those that are FREE. How many it were."""
        slots = np.flatnonzero(self._states == SlotState.RETIRED)[: max(0, n)]
        self._stack_fresh()
        self._put_below(slots)
        self._states[slots] = SlotState.FREE
        self._move(len(slots), SlotState.RETIRED, SlotState.FREE)
        return len(slots)

    def _stack_fresh(self) -> None:
        """Have all FREE slots on the stack, in the same order."""
        self._put_below(np.arange(self._num_fresh, self.num_slots))
        self._num_fresh = self.num_slots

    def _put_below(self, slots: Slots) -> None:
        """Have the stack hand these out, in this order, after all that are on it."""
        n, stacked = len(slots), self._num_stacked
        self._free[n : n + stacked] = self._free[:stacked].copy()
        self._free[:n] = slots[::-1]
        self._num_stacked += n

    @property
    def num_slots(self) -> int:
        """All slots, whatever their state."""
        return len(self._states)

    @property
    def num_usable(self) -> int:
        """All but those that are RETIRED."""
        return len(self._states) - self._counts[_RETIRED]

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
        assert state not in (SlotState.FREE, SlotState.RETIRED), "a slot is taken for some use"
        if n > self.num_free:
            return None
        slots = np.empty(n, dtype=np.intp)
        used, fresh = min(n, self._num_stacked), self._num_fresh
        self._num_stacked -= used
        self._num_fresh += n - used
        slots[:used] = self._free[self._num_stacked : self._num_stacked + used][::-1]
        if n > used:
            slots[used:] = np.arange(fresh, self._num_fresh)
        self._states[slots] = new = int(state)
        self._move(n, _FREE, new)
        return slots

    def turn(self, slots: Slots, from_state: SlotState, to_state: SlotState) -> None:
        """Change slots that are all in `from_state` to `to_state`; neither is FREE."""
        assert SlotState.FREE not in (from_state, to_state), "take and free change what is FREE"
        assert SlotState.RETIRED not in (from_state, to_state), "retire and restore change what is RETIRED"
        self._change(slots, from_state, to_state)

    def free(self, slots: Slots, from_state: SlotState) -> None:
        """Give back slots that are all in `from_state`. They may be handed out, and overwritten, at once."""
        assert from_state not in (SlotState.FREE, SlotState.RETIRED), "a slot is freed once"
        self._change(slots, from_state, SlotState.FREE)
        top = self._num_stacked
        self._free[top : top + len(slots)] = slots[::-1]
        self._num_stacked += len(slots)

    def free_one(self, slot: int, from_state: SlotState) -> None:
        """`free` for one slot, in a tenth of the time."""
        found = self._states.item(slot)
        assert found == from_state != _FREE, f"slot {slot} must be {from_state.name}, found {found}"
        self._free[self._num_stacked] = slot
        self._num_stacked += 1
        self._states[slot] = _FREE
        self._counts[found] -= 1
        self._counts[_FREE] += 1

    def _change(self, slots: Slots, from_state: SlotState, to_state: SlotState) -> None:
        old, new = int(from_state), int(to_state)  # numpy takes 2 us longer to compare with an IntEnum
        found = self._states[slots]
        right = found == old
        assert np.count_nonzero(right) == len(slots), (
            f"slots {slots.tolist()} must be {from_state.name}, found {found.tolist()}"
        )
        # a duplicate would be counted, and freed, twice
        assert self._are_distinct(slots), f"a slot is named twice in {slots.tolist()}"
        self._states[slots] = new
        self._move(len(slots), old, new)

    def _are_distinct(self, slots: Slots) -> bool:
        """Whether none of these slots of one state is named twice. They have that state afterwards if not, or else any."""
        n, states = len(slots), self._states
        if n <= _FEW:
            return len(set(slots.tolist())) == n
        if np.count_nonzero(slots[1:] > slots[:-1]) == n - 1:
            return True
        state = states.item(slots.item(0))
        numbers = _NUMBERS[:n] if n <= len(_NUMBERS) else np.arange(n)
        # Each slot is given its place instead of its state, a byte at a time: of two places only one is there afterwards.
        for shift in range(0, (n - 1).bit_length(), 8):
            places = (numbers >> shift).astype(np.uint8)
            states[slots] = places
            if np.count_nonzero(states[slots] == places) < n:
                states[slots] = state
                return False
        return True

    def _move(self, n: int, from_state: int, to_state: int) -> None:
        self._counts[from_state] -= n
        self._counts[to_state] += n

    def check(self) -> None:
        """Raise AssertionError unless free + private + indexed + in flight + retired == total, each slot once."""
        counts = np.bincount(self._states, minlength=len(SlotState)).tolist()
        free, private, indexed, in_flight, retired = self._counts
        assert free + private + indexed + in_flight + retired == self.num_slots, (
            f"{free} free + {private} private + {indexed} indexed + {in_flight} in flight + {retired} retired"
            f" != {self.num_slots}"
        )
        assert counts == self._counts, f"states hold {counts}, the counts say {self._counts}"
        stack = self._free[: self._num_stacked]
        assert len(stack) + self.num_slots - self._num_fresh == free, "a free slot is lost"
        assert not self._states[self._num_fresh :].any(), "a fresh slot is in use"
        assert (stack < self._num_fresh).all(), "a fresh slot is in the free stack"
        assert (self._states[stack] == SlotState.FREE).all(), "a slot in the free stack is in use"
        assert len(set(stack.tolist())) == len(stack), "a slot is in the free stack twice"
