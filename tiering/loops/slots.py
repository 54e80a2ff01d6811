"""What is done to each of many slots: see tiering.slot_table."""

from typing import Any

from numba import njit

from tiering.loops.states import FREE, FRESH, INSIDE, STACKED


@njit(**INSIDE)
def change_slots(states: Any, counts: Any, old: int, new: int, slots: Any) -> Any:
    """Slots that are all in one state, and each named once, are in another from now on; else False, and no change."""
    for at in range(len(slots)):
        if not 0 <= slots[at] < len(states) or states[slots[at]] != old:
            for before in range(at):
                states[slots[before]] = old
            return False
        states[slots[at]] = new  # so that whoever comes a second time is found
    counts[old] -= len(slots)
    counts[new] += len(slots)
    return True


def take_slots(states: Any, free: Any, counts: Any, state: int, slots: Any) -> None:
    """Give out slots: from the stack of free ones, then fresh ones."""
    num_stacked, num_fresh = counts[STACKED], counts[FRESH]
    for at in range(len(slots)):
        if num_stacked:
            num_stacked -= 1
            slot = free[num_stacked]
        else:
            slot = num_fresh
            num_fresh += 1
        states[slot] = state
        slots[at] = slot
    counts[STACKED], counts[FRESH] = num_stacked, num_fresh
    counts[FREE] -= len(slots)
    counts[state] += len(slots)


def free_slots(states: Any, free: Any, counts: Any, old: int, slots: Any) -> Any:
    """`change_slots` to state 0, and put them on the stack, the first on top."""
    if not change_slots(states, counts, old, FREE, slots):
        return False
    counts[STACKED] += len(slots)
    top = counts[STACKED] - 1
    for at in range(len(slots)):
        free[top - at] = slots[at]
    return True
