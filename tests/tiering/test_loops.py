"""Each compiled loop over blocks does what the same does in plain Python: on random columns and ids."""

from dataclasses import fields

import numpy as np
import pytest

from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.kernels import Kernels, kernels
from tiering.residency import NO_BLOCK, State, Tier

ABSENT, WRITING, PRESENT = map(int, State)
DEVICE, HOST, DISK = map(int, Tier)
N = 24
"""Blocks: so few that ids meet."""
ROUNDS = 60


class Columns:
    """Random ones of a residency. A parent's id may be greater or less than its child's, and many are first blocks."""

    def __init__(self, rng) -> None:
        self.state = rng.choice(np.array([0, 0, 1, 2, 2], dtype=np.uint8), (3, N))
        self.readers = rng.choice(np.array([0, 0, 0, 1, 2], dtype=np.int16), (3, N))
        self.held = rng.choice(np.array([0, 0, 0, 0, 1], dtype=np.uint16), (3, N))
        self.leases = rng.choice(np.array([0, 0, 1, 3], dtype=np.int32), N)
        self.computing, self.live, self.has_key = (rng.random(N) < part for part in (0.2, 0.8, 0.5))
        self.place, self.hits, self.node, self.owner = rng.integers(0, 5, (4, N), dtype=np.int32)
        self.stamp = rng.integers(0, 6, N)
        order = rng.permutation(N)
        self.parent = np.full(N, NO_BLOCK, dtype=np.int32)
        for at in range(1, N):
            if rng.random() < 0.8:
                self.parent[order[at]] = order[rng.integers(at)]
        self.num_children = np.bincount(self.parent[self.parent >= 0], minlength=N).astype(np.int32)
        self.root_first: list[int] = order.tolist()

    def index(self) -> Index:
        """One whose columns say this of its blocks. Its books do not agree: only what looks at columns may be asked."""
        index = Index(IndexConfig(block_tokens=1, device_slots=N - 1, host_slots=1), bytes(32))
        for name in ("state", "parent", "has_key"):
            setattr(index._holdings.residency, name, getattr(self, name))
        return index

    def copy(self) -> dict[str, list]:
        """The columns as they are now."""
        return {name: each.tolist() for name, each in vars(self).items() if isinstance(each, np.ndarray)}

    def assert_changed_only(self, before, **changed) -> None:
        """All are as before, but for these, which are as is said."""
        now = self.copy()
        for name, column in before.items():
            assert now[name] == changed.get(name, column), name


def some(rng, among=range(N), *, least=0) -> np.ndarray:
    """Ids, each once, none among them or all, in any order."""
    among = list(among)
    num = rng.integers(min(least, len(among)), len(among) + 1)
    return rng.permutation(np.array(among, dtype=np.intp))[:num]


def room(num=N) -> np.ndarray:
    return np.full(num, -7, dtype=np.intp)


def in_rounds(test):
    """Run with new columns each round, from one seed."""

    def rounds() -> None:
        rng = np.random.default_rng(5)
        for _ in range(ROUNDS):
            test(rng, Columns(rng))

    rounds.__name__, rounds.__doc__ = test.__name__, test.__doc__
    return rounds


# ---- blocks


@in_rounds
def test_give_out_and_free_blocks(rng, columns):
    fresh = int(rng.integers(N + 1))
    free, before = some(rng, range(fresh)).astype(np.int32), columns.copy()
    if rng.random() < 0.5:
        free[::-1].sort()
    ids = room(int(rng.integers(len(free) + N - fresh + 1)))
    expected = [*free[::-1].tolist(), *range(fresh, N)][: len(ids)]
    ascend = kernels().give_out(free, len(free), fresh, columns.live, columns.parent, columns.node, ids)
    assert ids.tolist() == expected
    assert ascend == (expected == sorted(expected))

    def instead(name, value, known):
        return [value if block in ids else each for block, each in enumerate(known[name])]

    blank = {name: instead(name, NO_BLOCK, before) for name in ("parent", "node")}
    columns.assert_changed_only(before, live=instead("live", True, before), **blank)

    if rng.random() < 0.7:  # else some have ties
        columns.state[:, ids] = columns.readers[:, ids] = 0
        columns.leases[ids] = columns.num_children[ids] = 0
    before, stack = columns.copy(), np.full(2 * N, -1, dtype=np.int32)
    ties = [*before["state"], *before["readers"], before["leases"], before["num_children"]]
    idle = all(before["live"][block] and not any(tie[block] for tie in ties) for block in ids.tolist())
    is_free = kernels().free_blocks(
        columns.live,
        columns.leases,
        columns.num_children,
        columns.state,
        columns.readers,
        columns.parent,
        columns.node,
        columns.stamp,
        columns.owner,
        columns.hits,
        columns.has_key,
        stack,
        2,
        ids,
    )
    assert is_free == idle
    if not idle:
        columns.assert_changed_only(before)
        assert set(stack.tolist()) == {-1}
        return
    blank = {name: instead(name, NO_BLOCK, before) for name in ("parent", "node")}
    blank |= {name: instead(name, 0, before) for name in ("stamp", "owner", "hits", "has_key", "live")}
    columns.assert_changed_only(before, **blank)
    assert stack.tolist() == [-1, -1, *ids.tolist()] + [-1] * (2 * N - 2 - len(ids))


@in_rounds
def test_follow(rng, columns):
    above, before = int(rng.integers(-1, N)), columns.copy()
    ids = some(rng, [block for block in range(N) if block != above])
    parents, num_children = list(before["parent"]), list(before["num_children"])
    for block, parent in zip(ids.tolist(), [above, *ids.tolist()], strict=False):
        parents[block] = parent
        num_children[block] = int(block != ids[-1])
    if above != NO_BLOCK and len(ids):
        num_children[above] += 1
    kernels().follow(columns.parent, columns.num_children, above, ids)
    columns.assert_changed_only(before, parent=parents, num_children=num_children)


# ---- what leaves


@in_rounds
def test_sort_leaving(rng, columns):
    columns.state[:, rng.random(N) < 0.5] = PRESENT
    columns.leases[rng.random(N) < 0.8] = 0
    ids, before, tier = some(rng), columns.copy(), Tier(rng.integers(3))
    ids = np.array([block for block in reversed(columns.root_first) if block in ids], dtype=np.intp)
    there = [block for block in ids.tolist() if before["state"][tier][block] == PRESENT]
    others = [any(columns.state[other, block] for other in {0, 1, 2} - {tier}) for block in there]
    last = np.array([block for block, other in zip(there, others, strict=True) if not other], dtype=np.intp)
    eviction = columns.index()._eviction
    residency = eviction._holdings.residency
    for name, column in vars(columns).items():
        setattr(residency, name, column)
    residency.ties = columns.state, columns.readers, columns.leases, columns.computing, columns.held
    going, staying = eviction._by_ties(last)
    leaving, num_elsewhere, stay = eviction._sorted(tier, ids)
    assert leaving[:num_elsewhere].tolist() == [
        block for block, other in zip(there, others, strict=True) if other
    ]
    assert leaving[num_elsewhere:].tolist() == going.tolist()
    assert stay.tolist() == staying.tolist()
    columns.assert_changed_only(before)


@in_rounds
def test_sort_by_ties(rng, columns):
    columns.state[:, rng.random(N) < 0.8] = PRESENT
    for ties in (columns.readers, columns.held):
        ties[:, rng.random(N) < 0.8] = 0
    columns.leases[rng.random(N) < 0.8] = 0
    before = columns.copy()
    children_first = columns.root_first[::-1]
    chosen = set(some(rng, least=N // 2).tolist())
    ids = np.array([block for block in children_first if block in chosen], dtype=np.intp)
    left, going, staying = list(before["num_children"]), [], []
    for block in ids.tolist():
        ties = [*before["readers"], *before["held"], before["leases"], left]
        is_used = any(tie[block] for tie in ties) or any(row[block] == WRITING for row in before["state"])
        (staying if is_used else going).append(block)
        if not is_used and (parent := before["parent"][block]) != NO_BLOCK:
            left[parent] -= 1
    go, stay = room(), room()
    num = kernels().sort_by_ties(
        (columns.state, columns.readers, columns.leases, columns.computing, columns.held),
        columns.num_children,
        columns.parent,
        ids,
        go,
        stay,
    )
    assert go[:num].tolist() == going
    assert stay[: len(ids) - num].tolist() == staying
    columns.assert_changed_only(before)


@in_rounds
def test_find_nowhere(rng, columns):
    columns.state[:, rng.random(N) < 0.5] = ABSENT
    ids, found = rng.integers(NO_BLOCK, N, N), room()  # parents of blocks: some twice, and NO_BLOCK
    expected = [
        block
        for block in ids.tolist()
        if block != NO_BLOCK and columns.live[block] and not columns.state[:, block].any()
    ]
    num = kernels().find_nowhere(columns.live, columns.state, ids, found)
    assert found[:num].tolist() == expected


# ---- what is written


@in_rounds
def test_find_unkeyed(rng, columns):
    for block in columns.root_first:  # keys become known from the root down
        parent = columns.parent.item(block)
        columns.has_key[block] &= parent == NO_BLOCK or bool(columns.has_key[parent])
    ids, before = some(rng)[: int(rng.choice([1, 2, N]))], columns.copy()
    expected = set(ids.tolist())
    for block in ids.tolist():
        above = columns.parent.item(block)
        while above != NO_BLOCK and not columns.has_key[above]:
            expected.add(above)
            above = columns.parent.item(above)
    blocks = (
        columns.index()._writes._unkeyed(ids).tolist()
    )  # of which there may be more than it has room for at first
    columns.assert_changed_only(before)
    assert len(blocks) == len(expected)
    assert set(blocks) == expected
    place = {block: at for at, block in enumerate(blocks)}
    parents = [place.get(columns.parent.item(block), -1) for block in blocks]
    assert all(parent < at for at, parent in enumerate(parents)), "a block comes before its parent"


# ---- what a request finds


@in_rounds
def test_num_usable_nearest_tiers_found_in_count_found_and_num_absent(rng, columns):
    columns.state[DEVICE, rng.random(N) < 0.6] = PRESENT
    columns.state[HOST, columns.state[HOST] == WRITING] = rng.choice([PRESENT, WRITING], p=[0.9, 0.1])
    columns.computing &= rng.random(N) < 0.3
    path, before, tiers = some(rng), columns.copy(), room()
    device, host, disk = before["state"]
    computing = before["computing"]
    for below in range(3):

        def usable(block, below=below):
            return (
                device[block] != ABSENT
                or computing[block]
                or (below >= 1 and host[block] != ABSENT)
                or (below == 2 and disk[block] == PRESENT)
            )

        expected = [*map(usable, path.tolist()), False].index(False)
        assert kernels().num_usable(columns.state, columns.computing, below, path) == expected

    kernels().nearest_tiers(columns.state, path, tiers)
    rows = [[row[block] == PRESENT for row in before["state"]] for block in path.tolist()]
    nearest = [[*row, True].index(True) for row in rows]
    assert tiers[: len(path)].tolist() == nearest
    found = np.zeros(len(path) + 2, dtype=np.int8)
    kernels().found_in(columns.state, columns.computing, path, found)
    assert found.tolist() == [
        *(
            3 if device[block] == WRITING or computing[block] else tier
            for block, tier in zip(path.tolist(), nearest, strict=True)
        ),
        *(-1, -1),
    ]
    counted, by_tier = np.zeros_like(found), np.ones(4, dtype=np.int64)
    kernels().count_found(columns.hits, columns.state, columns.computing, path, counted, by_tier)
    assert counted.tolist() == found.tolist()
    assert by_tier.tolist() == [1 + found.tolist().count(tier) for tier in range(4)]

    absent = [block for block in path.tolist() if device[block] != PRESENT]
    pending = [device[block] == WRITING or computing[block] or host[block] == WRITING for block in absent]
    expected = -1 if any(pending) else len(absent)
    assert kernels().num_absent(columns.state, columns.computing, path) == expected
    hits = [num + (block in path) for block, num in enumerate(before["hits"])]
    columns.assert_changed_only(before, hits=hits)


# ---- the order of uses


@in_rounds
def test_touch_place_of_and_forget(rng, columns):
    path, now = some(rng, least=1), int(rng.integers(10, 20))
    if rng.random() < 0.8:
        columns.parent[path[0]] = NO_BLOCK
    for change in (0, 1, -1):
        now, before, first = now + 1, columns.copy(), int(rng.integers(len(path) + 1))
        held = path[first:].tolist()
        is_root = columns.parent[path[0]] == NO_BLOCK
        fits = is_root and all(before["leases"][block] + change >= 0 for block in held)
        log = tuple(np.zeros(3, dtype=dtype) for dtype in (np.int64, np.float64, np.int64))
        of_blocks = columns.parent, columns.stamp, columns.leases
        assert kernels().touch(*of_blocks, log, 1, change, first, path, now, 2.5) == fits
        entry = (now, 2.5, path.item(-1)) if fits else (0, 0.0, 0)
        assert [column.tolist() for column in log] == [[0, each, 0] for each in entry]
        used = path.tolist() if fits else []
        stamps = [now if block in used else stamp for block, stamp in enumerate(before["stamp"])]
        leases = [num + change * (fits and block in held) for block, num in enumerate(before["leases"])]
        columns.assert_changed_only(before, stamp=stamps, leases=leases)

    stamps = np.unique(np.append(columns.stamp[columns.stamp > 0], rng.integers(1, 30, 4)))
    for stamp in range(32):
        expected = [*(each >= stamp for each in stamps.tolist()), True].index(True)
        assert kernels().place_of(stamps, len(stamps), stamp) == expected

    deepest, ids = rng.integers(0, N, len(stamps)), some(rng)
    expected = deepest.tolist()
    for block in ids.tolist():  # one at a time: the last of a stamp says what is above
        if columns.stamp[block]:
            expected[stamps.tolist().index(columns.stamp[block])] = columns.parent.item(block)
    kernels().forget(stamps, deepest, len(stamps), columns.parent, columns.stamp, ids)
    assert deepest.tolist() == expected


@in_rounds
def test_take_keys_and_put_keys(rng, columns):
    key, ids = rng.integers(0, 256, (N, 32), dtype=np.uint8), some(rng)
    if rng.random() < 0.5:
        ids = ids[columns.has_key[ids]]
    keys = np.zeros((len(ids), 32), dtype=np.uint8)
    have_keys = kernels().take_keys(key, columns.has_key, ids, keys)
    assert have_keys == all(columns.has_key[ids].tolist())
    assert not have_keys or keys.tolist() == key[ids].tolist()

    rows, expected = rng.integers(0, 256, (len(ids), 32), dtype=np.uint8), key.copy()
    expected[ids] = rows
    has_key = [has or block in ids for block, has in enumerate(columns.has_key.tolist())]
    rows.flags.writeable = False
    kernels().put_keys(key, columns.has_key, ids, rows)
    assert key.tolist() == expected.tolist()
    assert columns.has_key.tolist() == has_key


@in_rounds
def test_find_older(rng, columns):
    ids, least, before, found = some(rng), rng.integers(-1, 30).item(), rng.integers(0, 8).item(), room()
    older = [block for block in ids.tolist() if columns.stamp[block] < before]
    enough = [n for n in range(1, len(older) + 1) if sum(columns.place[older[:n]].tolist()) >= least]
    num = kernels().find_older(columns.place, columns.stamp, least, before, ids, found)
    assert found[:num].tolist() == older[: min(enough, default=len(older))]


@in_rounds
def test_oldest_of(rng, columns):
    ids = some(rng)
    assert kernels().oldest_of(columns.stamp, ids) == min(columns.stamp[ids].tolist(), default=0)


@in_rounds
def test_num_last_in(rng, columns):
    ids, tier = some(rng), int(rng.integers(3))
    others = [other for other in range(3) if other != tier]
    last = [all(columns.state[other, block] != PRESENT for other in others) for block in ids.tolist()]
    assert kernels().num_last_in(columns.state, tier, ids) == sum(last)


@in_rounds
def test_find_unused(rng, columns):
    ids, found = some(rng), room()
    stamps = columns.stamp[ids] + rng.integers(0, 2, len(ids))
    expected = [
        block
        for block, stamp in zip(ids.tolist(), stamps.tolist(), strict=True)
        if columns.stamp[block] == stamp and not columns.leases[block]
    ]
    num = kernels().find_unused(columns.stamp, stamps, columns.leases, ids, found)
    assert found[:num].tolist() == expected


@in_rounds
def test_sort_by_way_down(rng, columns):
    ids, counts = some(rng), np.zeros(3, dtype=np.int64)
    found = room(3 * len(ids))
    in_host = [block for block in ids.tolist() if columns.state[HOST, block] != ABSENT]
    others = [block for block in ids.tolist() if block not in in_host]
    stored = [
        block for block in others if columns.state[DISK, block] == PRESENT and not columns.held[HOST, block]
    ]
    kernels().sort_by_way_down(columns.state, columns.held, ids, found, counts)
    thirds = found.reshape(3, -1)
    assert [row[:num].tolist() for row, num in zip(thirds, counts.tolist(), strict=True)] == [
        in_host,
        [block for block in others if block not in stored],
        stored,
    ]


# ---- owners


@in_rounds
def test_count_blocks(rng, columns):
    ids, counts, sign = some(rng), rng.integers(0, 9, 5), int(rng.choice([-1, 1]))
    expected = counts + sign * np.bincount(columns.owner[ids], minlength=5)
    before = columns.copy()
    kernels().count_blocks(counts, columns.owner, sign, ids)
    assert counts.tolist() == expected.tolist()
    columns.assert_changed_only(before)


@in_rounds
def test_count_use(rng, columns):
    place = rng.integers(0, 5, (3, N), dtype=np.int32)
    used, num_with = np.zeros((3, 5), dtype=np.int64), np.zeros(4, dtype=np.int64)
    there = {tier: some(rng) for tier in (DEVICE, HOST, DISK)}
    going = {tier: some(rng, ids.tolist()) for tier, ids in there.items()}
    before = columns.copy()
    for sign, by_tier in ((+1, there), (-1, going)):
        for tier, ids in by_tier.items():
            num = kernels().count_use(used, num_with, tier, DISK, place, columns.owner, sign, ids)
    left = {tier: sorted({*ids.tolist()}.difference(going[tier].tolist())) for tier, ids in there.items()}
    for tier, ids in left.items():
        expected = [0] * 5
        for block in ids:
            expected[columns.owner[block]] += int(place[tier, block]) if tier == DISK else 1
        assert used[tier].tolist() == expected
        assert num_with[tier] == np.count_nonzero(expected)
    assert num == num_with[-1] == np.count_nonzero(used.any(axis=0))
    columns.assert_changed_only(before)


@in_rounds
def test_mark_owners(rng, columns):
    has_some = np.zeros(7, dtype=np.bool_)
    kernels().mark_owners(has_some, columns.owner)
    assert np.flatnonzero(has_some).tolist() == sorted({*columns.owner.tolist()})


@in_rounds
def test_stand(rng, columns):
    used = rng.choice([0, 0, 3, 9, 20], (3, 5)).astype(np.int64)
    sizes = rng.choice([np.nan, np.nan, -0.25, 0.0, 6.0, 30.0], (3, 5))
    weights, coming = rng.choice([1e-6, 0.5, 1.0, 2.0], 5), rng.choice([0.0, 2.0], rng.integers(6))
    tier, stood = int(rng.integers(3)), np.empty((2, 5))
    kernels().stand(used, tier, coming, sizes, weights, 24, 1e-6, stood)
    there = used[tier].astype(np.float64)
    there[: len(coming)] += coming
    fixed = np.where(sizes[tier] < 0, -sizes[tier] * 24, sizes[tier])
    is_fixed = ~np.isnan(fixed)
    rest = max(0.0, 24 - fixed[is_fixed & (there > 0)].sum())
    sharing = weights[~is_fixed & (there > 0)].sum() + np.where(there > 0, 0.0, weights)
    part = np.where(is_fixed, fixed, rest * weights / np.maximum(sharing, 1e-6))
    assert stood[0].tolist() == there.tolist()
    assert stood[1] == pytest.approx(np.maximum(part, 1e-6 * weights))


@in_rounds
def test_split(rng, columns):
    """As by looking for the level among the owners in the order of how they stand. Where some stand alike other ones may give a place more."""
    used, entitled = rng.integers(0, 40, 6) / rng.choice([1, 4]), rng.integers(1, 30, 6) / 2
    amount, given, exact = int(rng.integers(1, 90)), np.empty(6, dtype=np.int64), np.empty(6)
    kernels().split(used, entitled, amount, 1e-6, exact, given)
    order = np.argsort(-used / entitled, kind="stable")
    mine, parts = used[order], entitled[order]
    levels = (mine.cumsum() - amount) / parts.cumsum()
    reached = np.flatnonzero(levels >= np.append((mine / parts)[1:], 0.0))
    gives = np.maximum(0.0, used - (levels[reached[0]] if len(reached) else 0.0) * entitled)
    assert (np.abs(given - gives) < 1).all()
    assert given.sum() == min(amount, int(used.sum()))


@in_rounds
def test_find_dirty(rng, columns):
    dirty, entitled, excess = rng.integers(0, 9, 5), 12 * rng.random(5), np.empty(5, dtype=np.int64)
    num = kernels().find_dirty(dirty, entitled, 0.25, excess)
    parts = np.floor(entitled).astype(np.int64)
    clean = np.maximum(1, (0.25 * parts).astype(np.int64))
    expected = dirty - np.maximum(0, parts - clean)
    assert excess.tolist() == expected.tolist()
    assert num == np.count_nonzero(expected > 0)


ELSEWHERE = {
    "test_eligible": {
        "is_eligible",
        "are_eligible",
        "walk",
        "rewind",
        "are_in_part",
        "walk_part",
        "oldest_in_part",
    },
    "test_copies": {"copies_begin", "copies_arrive", "copies_leave", "copies_read", "copies_awaited"},
    "test_lru": {"peek"},
    "test_fingerprints": {"chain", "name_blocks"},
    "test_slot_table": {"change_slots", "take_slots", "free_slots"},
    "test_radix": {
        "find_child",
        "descend",
        "link",
        "unlink",
        "move_places",
        "lay",
        "plant",
        "take_off",
        "name_run",
        "along",
        "gather",
    },
}


def test_no_loop_is_left_out():
    names = {each.name for each in fields(Kernels)}
    here = {name for name in names for test in globals() if test.startswith("test_") and f"_{name}" in test}
    assert here.union(*ELSEWHERE.values()) == names


@pytest.mark.parametrize("name", ["count_found", "touch"])
def test_a_part_of_an_array_and_a_reversed_one_are_ids_too(name):
    ids = np.arange(12, dtype=np.intp)
    for part in (ids[2:7], ids[::-1], ids[1::3]):
        part.flags.writeable = False
        zeros = np.zeros(12, dtype=np.int32)
        stamp = np.zeros(12, dtype=np.int64)
        match name:
            case "count_found":
                nowhere, tiers = np.zeros((3, 12), dtype=np.uint8), np.zeros(len(part), dtype=np.int8)
                by_tier, none = np.zeros(4, dtype=np.int64), np.zeros(12, dtype=np.bool_)
                kernels().count_found(zeros, nowhere, none, part, tiers, by_tier)
            case "touch":
                log = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1, dtype=np.int64)
                top = np.full(12, NO_BLOCK, dtype=np.int32)
                assert kernels().touch(top, stamp, zeros, log, 0, 0, 0, part, 1, 0.0)
        changed = np.flatnonzero(zeros + stamp).tolist()
        assert changed == sorted(part.tolist())
