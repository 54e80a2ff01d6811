"""A copy and the slot that it lies in, which change together: see tiering.copies."""

from typing import Any

from tiering.loops.states import ABSENT, FREE, IN_FLIGHT, INDEXED, PRESENT, WRITING


def copies_arrive(state: Any, place: Any, tier: int, slots: Any, other: int, ids: Any) -> Any:
    """Copies that were begun are whole, and their slots the index's. How many of the blocks another tier has whole; -1, and no change,
    if one of them was not begun, or is named twice.
    """
    num_other = 0
    for at in range(len(ids)):
        block = ids[at]
        slot = place[tier, block]
        if state[tier, block] != WRITING or not 0 <= slot < len(slots) or slots[slot] != IN_FLIGHT:
            for before in range(at):
                state[tier, ids[before]] = WRITING
                slots[place[tier, ids[before]]] = IN_FLIGHT
            return -1
        state[tier, block] = PRESENT
        slots[slot] = INDEXED
        num_other += state[other, block] == PRESENT
    return num_other


def copies_leave(
    state: Any,
    readers: Any,
    place: Any,
    tier: int,
    slots: Any,
    free: Any,
    num_stacked: int,
    old: int,
    other: int,
    ids: Any,
) -> Any:
    """Copies that are all in one state are given up, and their slots free: on the stack, the first on top. Answers as `copies_arrive`,
    for which a copy that is being read is wrong as well.
    """
    old_slot = INDEXED if old == PRESENT else IN_FLIGHT
    top = num_stacked + len(ids) - 1
    num_other = 0
    for at in range(len(ids)):
        block = ids[at]
        slot = place[tier, block]
        if (
            state[tier, block] != old
            or readers[tier, block] != 0
            or not 0 <= slot < len(slots)
            or slots[slot] != old_slot
        ):
            for before in range(at):
                state[tier, ids[before]] = old
                slots[place[tier, ids[before]]] = old_slot
            return -1
        state[tier, block] = ABSENT
        slots[slot] = FREE
        num_other += state[other, block] == PRESENT
    for at in range(len(ids)):
        free[top - at] = place[tier, ids[at]]
    return num_other
