"""Which blocks are in a part of a tier, and the order of uses within it: see tiering.part."""

from typing import Any

from numba import njit

from tiering.loops.order import is_eligible, place_of
from tiering.loops.states import INSIDE, NO_BLOCK
from tiering.rules import ANY_RANK, EVERYBODY


@njit(**INSIDE)
def _is_in_part(
    number: int, wanted: int, until: int, owner: Any, stems: Any, rank: Any, stamp: Any, block: int
) -> Any:
    if number != EVERYBODY and owner[block] != number:
        return False
    if number == 0 and stems[block] != 0:
        return False
    if wanted == ANY_RANK:
        return True
    this = rank[block]
    if this > 0 and stamp[block] <= until:
        this = 0
    return this == wanted


def are_in_part(
    number: int, wanted: int, until: int, owner: Any, stems: Any, rank: Any, stamp: Any, ids: Any, mask: Any
) -> None:
    """Which of these blocks are the owner's of this number, of the rank that is wanted, and lead to no owner's where they are nobody's."""
    for at in range(len(ids)):
        mask[at] = _is_in_part(number, wanted, until, owner, stems, rank, stamp, ids[at])


def walk_part(
    stamps: Any,
    deepest: Any,
    num_entries: int,
    first: int,
    head: int,
    cursor: int,
    parent: Any,
    number: int,
    wanted: int,
    until: int,
    owner: Any,
    stems: Any,
    rank: Any,
    stamp: Any,
    rule: int,
    host_counts: Any,
    ties: Any,
    found: Any,
) -> Any:
    """The first blocks of a part, in eviction order, that meet a rule: as many as `found` has room for. How many there were.

    To be found from the stamp `head` on, and with that stamp from `cursor` on if it has it. `first`: of the log's entries the first with
    blocks. What follows an owner's block is the same owner's, so an entry whose deepest block is another's has none.
    """
    state, readers, leases, computing, held = ties
    num = 0
    for entry in range(max(first, place_of(stamps, num_entries, head)), num_entries):
        this, block = stamps[entry], deepest[entry]
        if block == NO_BLOCK or stamp[block] != this or (number > 0 and owner[block] != number):
            continue
        if this == head and cursor != NO_BLOCK and stamp[cursor] == head:
            block = cursor
        while block != NO_BLOCK and stamp[block] == this:
            if _is_in_part(number, wanted, until, owner, stems, rank, stamp, block) and is_eligible(
                rule, host_counts, block, state, readers, leases, computing, held
            ):
                found[num] = block
                num += 1
                if num == len(found):
                    return num
            block = parent[block]
    return num


def oldest_in_part(
    head: int,
    number: int,
    wanted: int,
    until: int,
    owner: Any,
    stems: Any,
    rank: Any,
    stamp: Any,
    rule: int,
    host_counts: Any,
    ties: Any,
    ids: Any,
) -> Any:
    """Of blocks of a part that meet a rule, and were used at `head` or before, the stamp of the oldest; 0 if there are none."""
    state, readers, leases, computing, held = ties
    oldest = 0
    for at in range(len(ids)):
        block = ids[at]
        this = stamp[block]
        if (
            0 < this <= head
            and (oldest == 0 or this < oldest)
            and _is_in_part(number, wanted, until, owner, stems, rank, stamp, block)
            and is_eligible(rule, host_counts, block, state, readers, leases, computing, held)
        ):
            oldest = this
    return oldest
