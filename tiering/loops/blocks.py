"""What is done to each of many blocks, as loops over columns: see tiering.loops."""

from typing import Any

from numba import njit

from tiering.loops.states import (
    ABSENT,
    DEVICE,
    DISK,
    HOST,
    INSIDE,
    NO_BLOCK,
    PRESENT,
    WRITING,
)

# --- blocks: see tiering.residency -------------------------------------------------------------------------------------


def find_older(place: Any, stamp: Any, least: int, before: int, ids: Any, found: Any) -> Any:
    """The first of the copies of blocks with an older stamp that take so much together; all of them if they do not. How many."""
    num = total = 0
    for at in range(len(ids)):
        block = ids[at]
        if stamp[block] < before:
            found[num] = block
            num += 1
            total += place[block]
            if total >= least:
                break
    return num


def oldest_of(stamp: Any, ids: Any) -> Any:
    """The least of their stamps; 0 of none."""
    oldest = 0
    for at in range(len(ids)):
        if at == 0 or stamp[ids[at]] < oldest:
            oldest = stamp[ids[at]]
    return oldest


def give_out(free: Any, num_free: int, fresh: int, live: Any, parent: Any, node: Any, ids: Any) -> Any:
    """Give out ids: those on the stack of free ones, the last first, then fresh ones. Whether they ascend, as those do of a chain that was
    freed together.
    """
    ascend = True
    for at in range(len(ids)):
        if num_free:
            num_free -= 1
            ids[at] = free[num_free]
        else:
            ids[at] = fresh
            fresh += 1
        live[ids[at]] = True
        parent[ids[at]] = node[ids[at]] = NO_BLOCK
        if at and ids[at] < ids[at - 1]:
            ascend = False
    return ascend


@njit(**INSIDE)
def _is_idle(live: Any, leases: Any, num_children: Any, state: Any, readers: Any, block: int) -> Any:
    for tier in range(len(state)):
        if state[tier, block] != ABSENT or readers[tier, block] != 0:
            return False
    return live[block] and leases[block] == 0 and num_children[block] == 0


def free_blocks(
    live: Any,
    leases: Any,
    num_children: Any,
    state: Any,
    readers: Any,
    parent: Any,
    node: Any,
    stamp: Any,
    owner: Any,
    hits: Any,
    has_key: Any,
    free: Any,
    num_free: int,
    ids: Any,
) -> Any:
    """Take ids back, blank, onto the stack of free ones; False, and no change, if one has ties, or is named twice."""
    for at in range(len(ids)):
        if not _is_idle(live, leases, num_children, state, readers, ids[at]):
            for before in range(at):
                live[ids[before]] = True
            return False
        live[ids[at]] = False
    for at in range(len(ids)):
        block = ids[at]
        has_key[block] = False
        parent[block] = node[block] = NO_BLOCK
        stamp[block] = owner[block] = hits[block] = 0
        free[num_free + at] = block
    return True


def follow(parent: Any, num_children: Any, above: int, ids: Any) -> None:
    """New blocks follow one another, and the first of them `above`, which has a child more."""
    if above != NO_BLOCK and len(ids):
        num_children[above] += 1
    for at in range(len(ids)):
        parent[ids[at]] = above
        num_children[ids[at]] = at + 1 < len(ids)
        above = ids[at]


# --- what leaves: see tiering.removal -----------------------------------------------------------------------------------


@njit(**INSIDE)
def sort_by_ties(ties: Any, num_children: Any, parent: Any, ids: Any, going: Any, staying: Any) -> Any:
    """Of blocks, children before parents, those that nobody uses and nothing follows but what goes before them, and the others.

    How many go. Children that go are counted down, and are put back before this returns.
    """
    state, readers, leases, _, held = ties
    num_going = num_staying = 0
    for at in range(len(ids)):
        block = ids[at]
        used = leases[block] != 0 or num_children[block] != 0
        for tier in range(len(state)):
            if state[tier, block] == WRITING or readers[tier, block] != 0 or held[tier, block] != 0:
                used = True
        if used:
            staying[num_staying] = block
            num_staying += 1
            continue
        going[num_going] = block
        num_going += 1
        if parent[block] != NO_BLOCK:
            num_children[parent[block]] -= 1
    for at in range(num_going):
        if parent[going[at]] != NO_BLOCK:
            num_children[parent[going[at]]] += 1
    return num_going


def sort_leaving(
    ties: Any,
    num_children: Any,
    parent: Any,
    tier: int,
    ids: Any,
    leaving: Any,
    staying: Any,
    room: Any,
    counts: Any,
) -> None:
    """Of blocks that a tier has whole, children before parents: those that another has or expects, and behind them the others as far as
    they go by `sort_by_ties`; and what stays of these. `counts`: how many another has, how many of the others go, and how many stay.
    """
    state = ties[0]
    num_elsewhere = num_last = 0
    for at in range(len(ids)):
        block = ids[at]
        if state[tier, block] != PRESENT:
            continue
        alone = True
        for other in range(len(state)):
            if other != tier and state[other, block] != ABSENT:
                alone = False
        if alone:
            room[num_last] = block
            num_last += 1
        else:
            leaving[num_elsewhere] = block
            num_elsewhere += 1
    num_going = sort_by_ties(ties, num_children, parent, room[:num_last], leaving[num_elsewhere:], staying)
    counts[0], counts[1], counts[2] = num_elsewhere, num_going, num_last - num_going


def sort_by_way_down(state: Any, held: Any, ids: Any, found: Any, counts: Any) -> None:
    """Of blocks on the device, in the first third of `found`, those that host memory has or expects; of the others those that are to be
    there, as the disk has them not or somebody holds them there, in the second; those that the disk has in the last. `counts`: how many.
    """
    num_elsewhere, num_alone, num_stored = 0, len(ids), 2 * len(ids)
    for at in range(len(ids)):
        block = ids[at]
        if state[HOST, block] != ABSENT:
            found[num_elsewhere] = block
            num_elsewhere += 1
        elif state[DISK, block] != PRESENT or held[HOST, block] != 0:
            found[num_alone] = block
            num_alone += 1
        else:
            found[num_stored] = block
            num_stored += 1
    counts[0], counts[1], counts[2] = num_elsewhere, num_alone - len(ids), num_stored - 2 * len(ids)


def num_last_in(state: Any, tier: int, ids: Any) -> Any:
    """How many blocks no other tier has whole."""
    num = 0
    for at in range(len(ids)):
        whole = False
        for other in range(len(state)):
            if other != tier and state[other, ids[at]] == PRESENT:
                whole = True
        num += not whole
    return num


def find_unused(stamp: Any, stamps: Any, leases: Any, ids: Any, found: Any) -> Any:
    """Blocks that nobody has used since they had these stamps, or holds. How many."""
    num = 0
    for at in range(len(ids)):
        if stamp[ids[at]] == stamps[at] and leases[ids[at]] == 0:
            found[num] = ids[at]
            num += 1
    return num


def put_keys(key: Any, has_key: Any, ids: Any, keys: Any) -> None:
    """Blocks have these keys."""
    for at in range(len(ids)):
        for step in range(key.shape[1]):
            key[ids[at], step] = keys[at, step]
        has_key[ids[at]] = True


def take_keys(key: Any, has_key: Any, ids: Any, found: Any) -> Any:
    """The keys of blocks; False if one has none."""
    for at in range(len(ids)):
        if not has_key[ids[at]]:
            return False
        for step in range(key.shape[1]):
            found[at, step] = key[ids[at], step]
    return True


def find_nowhere(live: Any, state: Any, ids: Any, found: Any) -> Any:
    """Those of the blocks, NO_BLOCK among them or not, that are in the index and in no tier. How many."""
    num = 0
    for at in range(len(ids)):
        block = ids[at]
        if block == NO_BLOCK or not live[block]:
            continue
        there = False
        for tier in range(len(state)):
            if state[tier, block] != ABSENT:
                there = True
        if not there:
            found[num] = block
            num += 1
    return num


# --- what is written: see tiering.writes --------------------------------------------------------------------------------


def find_unkeyed(parent: Any, has_key: Any, ids: Any, had: Any, found: Any) -> Any:
    """These blocks, and all above them that have no key, each once, parents first. How many; -1 if `found` is too small.

    Who was found is marked meanwhile as though it had a key, and who is still to be found as though it had none; `had`, as long as `ids`, is
    where it is noted who had one.
    """
    for at in range(len(ids)):
        had[at] = has_key[ids[at]]
        has_key[ids[at]] = False
    num, fits = 0, True
    for at in range(len(ids)):
        first, block = num, ids[at]
        while block != NO_BLOCK and not has_key[block] and num < len(found):
            has_key[block] = True
            found[num] = block
            num += 1
            block = parent[block]
        if block != NO_BLOCK and not has_key[block]:
            fits = False
            break
        for step in range((num - first) // 2):
            found[first + step], found[num - 1 - step] = found[num - 1 - step], found[first + step]
    for before in range(num):
        has_key[found[before]] = False
    for at in range(len(ids)):
        has_key[ids[at]] = had[at]
    return num if fits else -1


# --- what a request finds: see tiering.leases ---------------------------------------------------------------------------


def num_usable(state: Any, computing: Any, below: int, path: Any) -> Any:
    """How many blocks of a path, from the first on, are on the device or will be, or in one of so many tiers below it."""
    for at in range(len(path)):
        block = path[at]
        if state[DEVICE, block] != ABSENT or computing[block]:
            continue
        in_host = below > 0 and state[HOST, block] != ABSENT
        on_disk = below > 1 and state[DISK, block] == PRESENT
        if not (in_host or on_disk):
            return at
    return len(path)


def nearest_tiers(state: Any, ids: Any, tiers: Any) -> None:
    """Of each block the first tier that has it whole, or the number of tiers."""
    for at in range(len(ids)):
        tier = 0
        while tier < len(state) and state[tier, ids[at]] != PRESENT:
            tier += 1
        tiers[at] = tier


@njit(**INSIDE)
def found_in(state: Any, computing: Any, ids: Any, tiers: Any) -> None:
    """The same of what a request has found, where the number of tiers stands for what is on its way to the device as well; behind that -1."""
    for at in range(len(ids)):
        block, tier = ids[at], 0
        if state[DEVICE, block] == WRITING or computing[block]:
            tier = len(state)
        while tier < len(state) and state[tier, block] != PRESENT:
            tier += 1
        tiers[at] = tier
    for at in range(len(ids), len(tiers)):
        tiers[at] = -1


def count_found(hits: Any, state: Any, computing: Any, path: Any, tiers: Any, by_tier: Any) -> None:
    """The same, and one more request has found the blocks: counted by block, and all by tier."""
    found_in(state, computing, path, tiers)
    for at in range(len(path)):
        hits[path[at]] += 1
        by_tier[tiers[at]] += 1


def num_absent(state: Any, computing: Any, path: Any) -> Any:
    """How many blocks of a path the device does not have; -1 if one is being computed, or loaded, for another request."""
    num = 0
    for at in range(len(path)):
        block = path[at]
        on_device = state[DEVICE, block]
        if on_device == PRESENT:
            continue
        num += 1
        if on_device == WRITING or computing[block] or state[HOST, block] == WRITING:
            return -1
    return num
