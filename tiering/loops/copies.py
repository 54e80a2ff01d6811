"""Copies that begin, are whole, are read, and go: each with the slot that it lies in, what is counted of it, and the views that may see its
block again. See tiering.copies.

    columns   of a residency: state, place, readers, leases, computing, held, stamp, told
    table     of the tier's slots: states, free, counts; of the disk, which has none, anything
    views     heads, cursors, rules
    seers     numbers of the views that are to look at these blocks again
    tally     see tiering.loops.states

A loop that answers False has changed nothing: one of the blocks was not as it must be, or named once too often. What it had changed until
then it has taken back, but for the places of what is nowhere, which say nothing.
"""

from typing import Any

from numba import njit

from tiering.loops.order import rewind
from tiering.loops.states import (
    ABSENT,
    DEVICE,
    DIRTY,
    DISK,
    DISK_BLOCKS,
    DISK_BYTES,
    FREE,
    HOST,
    IN_FLIGHT,
    INDEXED,
    INSIDE,
    PRESENT,
    STACKED,
    WRITING,
)


@njit(**INSIDE)
def _show(columns: Any, views: Any, seers: Any, host_counts: Any, ids: Any) -> None:
    state, _, readers, leases, computing, held, stamp, _ = columns
    heads, cursors, rules = views
    rewind(seers, heads, cursors, rules, stamp, host_counts, (state, readers, leases, computing, held), ids)


def copies_begin(
    columns: Any, views: Any, seers: Any, host_counts: Any, tally: Any, tier: int, ids: Any, places: Any
) -> Any:
    """ABSENT -> WRITING, at these places: slots, or bytes on disk."""
    state, place = columns[0], columns[1]
    if len(places) != len(ids):
        return False
    num_bytes = 0
    for at in range(len(ids)):
        block = ids[at]
        if state[tier, block] != ABSENT:
            for before in range(at):
                state[tier, ids[before]] = ABSENT
            return False
        state[tier, block] = WRITING
        place[tier, block] = places[at]
        num_bytes += places[at]
    if tier == DISK:
        tally[DISK_BYTES] += num_bytes
    _show(columns, views, seers, host_counts, ids)
    return True


@njit(**INSIDE)
def _change(columns: Any, slots: Any, tier: int, old: int, new: int, ids: Any) -> Any:
    """Copies, and the slots in which they lie, are in another state from now on; a copy that goes must not be read."""
    state, place, readers = columns[0], columns[1], columns[2]
    old_slot = INDEXED if old == PRESENT else IN_FLIGHT
    new_slot = INDEXED if new == PRESENT else FREE
    in_memory = tier != DISK
    for at in range(len(ids)):
        block = ids[at]
        slot = place[tier, block]
        is_right = state[tier, block] == old and readers[tier, block] == 0
        if in_memory:
            is_right = is_right and 0 <= slot < len(slots) and slots[slot] == old_slot
        if not is_right:
            for before in range(at):
                state[tier, ids[before]] = old
                if in_memory:
                    slots[place[tier, ids[before]]] = old_slot
            return False
        state[tier, block] = new
        if in_memory:
            slots[slot] = new_slot
    return True


@njit(**INSIDE)
def _count_whole(state: Any, tally: Any, tier: int, sign: int, ids: Any) -> None:
    """Copies have become whole (1), or whole ones have gone (-1)."""
    num_both, other = 0, HOST if tier == DISK else DISK
    for at in range(len(ids)):
        num_both += state[other, ids[at]] == PRESENT
    if tier == HOST:
        tally[DIRTY] += sign * (len(ids) - num_both)
    elif tier == DISK:
        tally[DISK_BLOCKS] += sign * len(ids)
        tally[DIRTY] -= sign * num_both


def copies_arrive(
    columns: Any,
    table: Any,
    views: Any,
    seers: Any,
    host_counts: Any,
    tally: Any,
    tier: int,
    ids: Any,
    sizes: Any,
) -> Any:
    """WRITING -> PRESENT, and their slots IN_FLIGHT -> INDEXED: what the device has nobody computes any more. `sizes`: what copies on
    disk take there.
    """
    state, place, computing, told = columns[0], columns[1], columns[4], columns[7]
    slots, _, counts = table
    if tier == DISK and len(sizes) != len(ids):
        return False
    if not _change(columns, slots, tier, WRITING, PRESENT, ids):
        return False
    if tier == DISK:
        for at in range(len(ids)):
            tally[DISK_BYTES] += sizes[at] - place[DISK, ids[at]]
            place[DISK, ids[at]] = sizes[at]
            told[ids[at]] = 0
    else:
        counts[IN_FLIGHT] -= len(ids)
        counts[INDEXED] += len(ids)
    if tier == DEVICE:
        for at in range(len(ids)):
            computing[ids[at]] = False
    _count_whole(state, tally, tier, 1, ids)
    _show(columns, views, seers, host_counts, ids)
    return True


def copies_leave(
    columns: Any,
    table: Any,
    views: Any,
    seers: Any,
    host_counts: Any,
    tally: Any,
    tier: int,
    old: int,
    ids: Any,
) -> Any:
    """PRESENT, or else WRITING -> ABSENT, and their slots free: on the stack, the first on top. Nobody may be reading."""
    state, place = columns[0], columns[1]
    slots, free, counts = table
    if not _change(columns, slots, tier, old, ABSENT, ids):
        return False
    if tier == DISK:
        for at in range(len(ids)):
            tally[DISK_BYTES] -= place[DISK, ids[at]]
    else:
        counts[INDEXED if old == PRESENT else IN_FLIGHT] -= len(ids)
        counts[FREE] += len(ids)
        counts[STACKED] += len(ids)
        top = counts[STACKED] - 1
        for at in range(len(ids)):
            free[top - at] = place[tier, ids[at]]
    if old == PRESENT:
        _count_whole(state, tally, tier, -1, ids)
    _show(columns, views, seers, host_counts, ids)
    return True


def copies_read(
    columns: Any, views: Any, seers: Any, host_counts: Any, tier: int, change: int, ids: Any
) -> Any:
    """More copies, or fewer, read places that are whole: one more, or fewer, each time that a block is named."""
    state, readers = columns[0], columns[2]
    for at in range(len(ids)):
        block = ids[at]
        if state[tier, block] != PRESENT or readers[tier, block] + change < 0:
            for before in range(at):
                readers[tier, ids[before]] -= change
            return False
        readers[tier, block] += change
    if change < 0:
        _show(columns, views, seers, host_counts, ids)
    return True


def copies_awaited(columns: Any, views: Any, seers: Any, host_counts: Any, are: Any, ids: Any) -> None:
    """A request is going to compute these blocks on the device, or is not."""
    computing = columns[4]
    for at in range(len(ids)):
        computing[ids[at]] = are
    if are:
        _show(columns, views, seers, host_counts, ids)
