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
        # A stack whose top hands out the lowest numbers first; int32 at rest.
        self._free = np.arange(num_slots - 1, -1, -1, dtype=np.int32)
        self._order = np.zeros(num_slots, dtype=np.uint16)  # scratch of _are_distinct

    def grow(self, num_slots: int) -> None:
        """There are `num_slots` from now on, at least as many as before; new ones are FREE, and go after those that are."""
        more = num_slots - self.num_slots
        assert more >= 0, f"a tier of {self.num_slots} slots does not shrink to {num_slots}"
        new = np.arange(num_slots - 1, self.num_slots - 1, -1, dtype=np.int32)
        self._free = np.concatenate([new, self._free])
        self._states = np.concatenate([self._states, np.zeros(more, dtype=np.uint8)])
        self._order = np.zeros(num_slots, dtype=np.uint16)
        self._counts[SlotState.FREE] += more

    def retire(self, n: int) -> int:
        """Take up to `n` FREE slots out of service, those first that would be given out last. How many it were."""
        n = max(0, min(n, self.num_free))
        slots = self._free[:n].copy()
        self._free[: self.num_free - n] = self._free[n : self.num_free]
        self._states[slots] = SlotState.RETIRED
        self._move(n, SlotState.FREE, SlotState.RETIRED)
        return n

    def restore(self, n: int) -> int:
        """Put up to `n` RETIRED slots back into service; they go after those that are FREE. How many it were."""
        slots = np.flatnonzero(self._states == SlotState.RETIRED)[: max(0, n)]
        num_free = self.num_free
        self._free[len(slots) : len(slots) + num_free] = self._free[:num_free].copy()
        self._free[: len(slots)] = slots[::-1]
        self._states[slots] = SlotState.FREE
        self._move(len(slots), SlotState.RETIRED, SlotState.FREE)
        return len(slots)

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
        left = self.num_free - n
        if left < 0:
            return None
        slots = self._free[left : left + n][::-1].astype(np.intp)
        self._states[slots] = state
        self._move(n, SlotState.FREE, state)
        return slots

    def turn(self, slots: Slots, from_state: SlotState, to_state: SlotState) -> None:
        """Change slots that are all in `from_state` to `to_state`; neither is FREE."""
        assert SlotState.FREE not in (from_state, to_state), "take and free change what is FREE"
        assert SlotState.RETIRED not in (from_state, to_state), "retire and restore change what is RETIRED"
        self._expect(slots, from_state)
        self._states[slots] = to_state
        self._move(len(slots), from_state, to_state)

    def free(self, slots: Slots, from_state: SlotState) -> None:
        """Give back slots that are all in `from_state`. They may be handed out, and overwritten, at once."""
        assert from_state not in (SlotState.FREE, SlotState.RETIRED), "a slot is freed once"
        self._expect(slots, from_state)
        top = self.num_free
        self._free[top : top + len(slots)] = slots[::-1]
        self._states[slots] = SlotState.FREE
        self._move(len(slots), from_state, SlotState.FREE)

    def free_one(self, slot: int, from_state: SlotState) -> None:
        """`free` for one slot, in a tenth of the time."""
        found = self._states.item(slot)
        assert found == from_state != _FREE, f"slot {slot} must be {from_state.name}, found {found}"
        self._free[self._counts[_FREE]] = slot
        self._states[slot] = _FREE
        self._counts[found] -= 1
        self._counts[_FREE] += 1

    def _expect(self, slots: Slots, state: SlotState) -> None:
        found = self._states.take(slots)
        right = found == int(state)  # numpy takes 2 us longer to compare with an IntEnum
        assert np.count_nonzero(right) == len(slots), (
            f"slots {slots.tolist()} must be {state.name}, found {found.tolist()}"
        )
        # a duplicate would be counted, and freed, twice
        assert self._are_distinct(slots), f"a slot is named twice in {slots.tolist()}"

    def _are_distinct(self, slots: Slots) -> bool:
        if len(slots) < 2:
            return True
        if len(slots) > np.iinfo(self._order.dtype).max:
            return len(np.unique(slots)) == len(slots)
        order = np.arange(len(slots), dtype=self._order.dtype)
        self._order[slots] = order
        return bool(np.count_nonzero(self._order.take(slots) == order) == len(slots))

    def _move(self, n: int, from_state: SlotState, to_state: SlotState) -> None:
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
        stack = self._free[:free]
        assert (self._states[stack] == SlotState.FREE).all(), "a slot in the free stack is in use"
        assert len(set(stack.tolist())) == free, "a slot is in the free stack twice"
