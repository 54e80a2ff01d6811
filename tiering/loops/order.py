"""Who may go, and the order of uses: see tiering.rules and tiering.policies.lru."""

from typing import Any

from numba import njit

from tiering.loops.states import (
    ABSENT,
    DEVICE,
    DISK,
    FREE,
    HOST,
    IN_FLIGHT,
    INDEXED,
    INSIDE,
    NO_BLOCK,
    PRESENT,
    PRIVATE,
)
from tiering.rules import (
    DEVICE_VICTIM,
    DISK_VICTIM,
    EVERY_BLOCK,
    HOST_CLEAN,
    HOST_STORED,
    HOST_VICTIM,
)

# --- who may go -------------------------------------------------------------------------------------------------------


@njit(**INSIDE)
def _is_held(held: Any, block: int) -> Any:
    return held[DEVICE, block] != 0 or held[HOST, block] != 0 or held[DISK, block] != 0


@njit(**INSIDE)
def _is_elsewhere(state: Any, computing: Any, block: int) -> Any:
    on_device = state[DEVICE, block] != ABSENT or computing[block]
    return on_device or state[DISK, block] == PRESENT


@njit(**INSIDE)
def _has_slots(counts: Any) -> Any:
    return counts[FREE] + counts[PRIVATE] + counts[INDEXED] + counts[IN_FLIGHT] > 0


@njit(**INSIDE)
def is_eligible(
    rule: int, host_counts: Any, block: int, state: Any, readers: Any, leases: Any, computing: Any, held: Any
) -> Any:
    """Whether a block meets a rule: see tiering.rules, which says what each means. `host_counts`: of the slots of host memory."""
    if rule == EVERY_BLOCK:
        return True
    tier = DEVICE if rule == DEVICE_VICTIM else DISK if rule == DISK_VICTIM else HOST
    if state[tier, block] != PRESENT or readers[tier, block] != 0:
        return False
    if rule == DEVICE_VICTIM:
        kept = held[DEVICE, block] != 0 or (_is_held(held, block) and not _has_slots(host_counts))
        return leases[block] == 0 and not kept
    if rule == DISK_VICTIM:
        if held[DISK, block] != 0:
            return False
        if state[DEVICE, block] == PRESENT:
            return True
        return leases[block] == 0 and not _is_held(held, block)
    if rule == HOST_VICTIM:
        return not _is_elsewhere(state, computing, block) and not _is_held(held, block)
    if held[HOST, block] != 0:
        return False
    if rule == HOST_CLEAN:
        return _is_elsewhere(state, computing, block)
    if rule == HOST_STORED:
        return state[DISK, block] == PRESENT
    return state[DISK, block] == ABSENT  # HOST_DIRTY


def are_eligible(rule: int, host_counts: Any, ties: Any, ids: Any, mask: Any) -> None:
    """`is_eligible` of many. `ties`: state, readers, leases, computing and held."""
    state, readers, leases, computing, held = ties
    for at in range(len(ids)):
        mask[at] = is_eligible(rule, host_counts, ids[at], state, readers, leases, computing, held)


# --- the order of uses ----------------------------------------------------------------------


@njit(**INSIDE)
def place_of(stamps: Any, num_entries: int, stamp: int) -> Any:
    """The number of the log's first entry with this stamp or a later one."""
    low, high = 0, num_entries
    while low < high:
        middle = (low + high) // 2
        if stamps[middle] < stamp:
            low = middle + 1
        else:
            high = middle
    return low


@njit(**INSIDE)
def _walk(
    stamps: Any,
    deepest: Any,
    num_entries: int,
    head: int,
    entry: int,
    block: int,
    parent: Any,
    stamp: Any,
    rule: int,
    host_counts: Any,
    ties: Any,
    found: Any,
) -> Any:
    """See `walk`. How many there were, and where to go on."""
    state, readers, leases, computing, held = ties
    num = 0
    if head:
        entry = max(entry, place_of(stamps, num_entries, head))
        if block != NO_BLOCK and stamp[block] != head:
            block = NO_BLOCK
    while entry < num_entries and num < len(found):
        this = stamps[entry]
        if block == NO_BLOCK or stamp[block] != this:
            block = deepest[entry]
        # where the deepest block has a newer stamp a later touch went through it, and so through all above it
        while block != NO_BLOCK and stamp[block] == this and num < len(found):
            if is_eligible(rule, host_counts, block, state, readers, leases, computing, held):
                found[num] = block
                num += 1
            block = parent[block]
        if num < len(found) or block == NO_BLOCK or stamp[block] != this:
            entry, block = entry + 1, NO_BLOCK
    return num, entry, block


def walk(
    stamps: Any,
    deepest: Any,
    num_entries: int,
    head: int,
    place: Any,
    parent: Any,
    stamp: Any,
    rule: int,
    host_counts: Any,
    ties: Any,
    found: Any,
) -> Any:
    """The next blocks in eviction order that meet a rule, as many as `found` has room for. How many there were.

    `place`: number of the entry with which to begin, or a later one: the first with the stamp `head`; and the block in it if that
    is not NO_BLOCK and has this stamp. Afterwards where to go on, without a `head`, which is 0 then.
    """
    num, place[0], place[1] = _walk(
        stamps,
        deepest,
        num_entries,
        head,
        place[0],
        place[1],
        parent,
        stamp,
        rule,
        host_counts,
        ties,
        found,
    )
    return num


def peek(
    log: Any,
    num_waiting: int,
    num_entries: int,
    now: int,
    views: Any,
    number: int,
    parent: Any,
    stamp: Any,
    host_counts: Any,
    ties: Any,
    found: Any,
) -> Any:
    """The first blocks that a view sees, as many as there is room for; it stands at the first of them then. How many there were."""
    (stamps, _, deepest), (heads, cursors, rules) = log, views
    if heads[number] > now:
        return 0
    num, _, _ = _walk(
        stamps,
        deepest,
        num_entries,
        heads[number],
        num_waiting,
        cursors[number],
        parent,
        stamp,
        rules[number],
        host_counts,
        ties,
        found,
    )
    if num:
        heads[number], cursors[number] = stamp[found[0]], found[0]
    else:
        heads[number], cursors[number] = now + 1, NO_BLOCK
    return num


@njit(**INSIDE)
def rewind(
    numbers: Any,
    heads: Any,
    cursors: Any,
    rules: Any,
    stamp: Any,
    host_counts: Any,
    ties: Any,
    ids: Any,
) -> None:
    """Set the views of these numbers back to the oldest of the blocks that they may see and have gone past: see tiering.policies.view."""
    state, readers, leases, computing, held = ties
    for number in numbers:
        head, oldest = heads[number], 0
        for at in range(len(ids)):
            block = ids[at]
            this = stamp[block]
            if (
                0 < this <= head
                and (oldest == 0 or this < oldest)
                and is_eligible(rules[number], host_counts, block, state, readers, leases, computing, held)
            ):
                oldest = this
        if oldest:
            heads[number], cursors[number] = oldest, NO_BLOCK


def touch(
    parent: Any,
    stamp: Any,
    leases: Any,
    log: Any,
    num_entries: int,
    change: int,
    first: int,
    path: Any,
    now: int,
    now_s: float,
) -> Any:
    """The blocks of a path were used, and so many more requests hold those from the `first` on: an entry of the log. False, and no change,
    if fewer than none would, or if something leads to the path.
    """
    if parent[path[0]] != NO_BLOCK:
        return False
    if change < 0:
        for at in range(first, len(path)):
            if leases[path[at]] + change < 0:
                return False
    for at in range(len(path)):  # apart: most paths are long, and a loop that only writes is fastest
        stamp[path[at]] = now
    if change != 0:
        for at in range(first, len(path)):
            leases[path[at]] += change
    stamps, times, deepest = log
    stamps[num_entries], times[num_entries], deepest[num_entries] = now, now_s, path[len(path) - 1]
    return True


def forget(stamps: Any, deepest: Any, num_entries: int, parent: Any, stamp: Any, ids: Any) -> None:
    """Blocks leave, each without children at its turn: what is above one is the deepest of its stamp, or the entry dies."""
    for at in range(len(ids)):
        block = ids[at]
        this = stamp[block]
        if this and (at + 1 == len(ids) or stamp[ids[at + 1]] != this):
            deepest[place_of(stamps, num_entries, this)] = parent[block]
