"""What a store holds is taken up as it would be a block at a time, in any order of pages, beside requests or before them."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from kvstore.block import chain_key
from kvstore.metas import BlockMetas
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER, OWNER_BYTES, BlockMeta
from tests.tiering.memory_model import OWNERS, MemoryModel
from tests.tiering.small_tiers import lookup, model, on_disk, prompt
from tiering.eligible import Eligible
from tiering.explain import explain
from tiering.found import MOST_RUN_BLOCKS, arranged
from tiering.index import Index
from tiering.index_config import IndexConfig
from tiering.moves import Forget, Write
from tiering.planting import NewRuns
from tiering.policies.lru import LRU
from tiering.radix import RadixIndex
from tiering.residency import NO_BLOCK, Residency, Tier, block_keys
from tiering.rules import EVERY_BLOCK
from tiering.slot_table import SlotTable

ROOT_KEY = bytes(32)
BLOCK_TOKENS = 2
NOW_NS = 10**18


def tree(seed, num_blocks, *, deep=0.5, num_times=1000):
    """Blocks of a random tree: each follows the last one with probability `deep`, else any; times may come twice."""
    rng = random.Random(seed)
    metas: list[BlockMeta] = []
    for number in range(num_blocks):
        above = metas[-1] if metas and rng.random() < deep else rng.choice([None, *metas])
        parent_key = ROOT_KEY if above is None else above.key
        tokens = np.array([number, rng.randrange(3)], dtype="<i4").tobytes()
        owner = NO_OWNER if above is None else above.owner
        if owner == NO_OWNER and rng.random() < 0.2:
            owner = bytes([rng.randrange(1, 4)]) * OWNER_BYTES
        used_ns = NOW_NS - rng.randrange(num_times) * 10**9
        metas.append(
            BlockMeta(chain_key(parent_key, tokens), parent_key, tokens, 10 + number, used_ns, owner)
        )
    return metas


def new_index(disk_bytes=10**9):
    config = IndexConfig(
        block_tokens=BLOCK_TOKENS, device_slots=4, host_slots=4, disk_bytes=disk_bytes, record_bytes=10
    )
    return Index(config, ROOT_KEY)


def index_of(metas, *, disk_bytes=10**9, pages=7):
    shuffled = random.Random(1).sample(metas, len(metas))
    index = new_index(disk_bytes)
    index.begin_restore(0.0)
    found = arranged(
        (BlockMetas.of(shuffled[i : i + pages]) for i in range(0, len(shuffled), pages)), ROOT_KEY, NOW_NS
    )
    for _ in index.restore(found):
        index.check()
    index.check()
    assert not index.restoring
    return index


def by_key(index):
    """{key: (parent's key, tokens, bytes, age of the last use, whether that was told, owner)} as the index has it."""
    holdings = index._holdings
    residency, order = holdings.residency, holdings.order
    ids = holdings.radix.subtree(NO_BLOCK)
    ages = (order.now_s - order.touched_s(ids)).tolist()
    known = {}
    for block, age in zip(ids.tolist(), ages, strict=True):
        parent = residency.parent.item(block)
        known[residency.key_of(block)] = (
            ROOT_KEY if parent == NO_BLOCK else residency.key_of(parent),
            holdings.radix.tokens_up(block)[0],
            residency.place.item(Tier.DISK, block),
            round(age),
            residency.told.item(block) == residency.stamp.item(block),
            holdings.owner_of(block),
        )
    return known


def expected(metas):
    """The same by going through the blocks one by one: uses of what follows a block are its own."""
    used = {meta.key: meta.used_ns for meta in metas}
    for meta in reversed(metas):  # children before parents
        if meta.parent_key in used:
            used[meta.parent_key] = max(used[meta.parent_key], used[meta.key])
    return {
        meta.key: (
            meta.parent_key,
            meta.tokens,
            meta.stored_bytes,
            (NOW_NS - used[meta.key]) // 10**9,
            used[meta.key] == meta.used_ns,
            meta.owner,
        )
        for meta in metas
    }


@pytest.mark.parametrize("deep", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("num_times", [1, 3, 1000])
def test_all_is_entered_as_one_by_one(deep, num_times):
    metas = tree(7, 300, deep=deep, num_times=num_times)
    assert by_key(index_of(metas)) == expected(metas)


def test_runs_come_most_recently_used_first_and_after_what_they_follow():
    found = arranged([BlockMetas.of(tree(3, 400, deep=0.8))], ROOT_KEY, NOW_NS)
    assert (np.diff(found.uses) <= 0).all()
    assert (np.diff(found.ages_s) <= 0).all()
    assert (found.after < np.arange(found.num_runs)).all()
    assert (np.diff(found.starts) >= 1).all()
    assert np.diff(found.starts).max() <= MOST_RUN_BLOCKS
    for start, end in pairwise(found.starts.tolist()):
        assert len(set(found.owners[start:end].tolist())) == 1, "a run is one owner's"


def test_long_runs_are_cut_and_grow_together_again():
    metas = tree(5, 3 * MOST_RUN_BLOCKS + 7, deep=1.0, num_times=1)
    metas = [replace(meta, owner=NO_OWNER) for meta in metas]
    index = index_of(metas)
    assert by_key(index) == expected(metas)
    assert index._holdings.radix.num_numbers == 5, "and the root"


def test_what_goes_first_was_used_longest_ago_and_children_go_before_parents():
    metas = tree(9, 200, deep=0.7)
    index, ages = index_of(metas), {key: entry[3] for key, entry in expected(metas).items()}
    victims = index._holdings.disk_victims.peek(len(metas)).tolist()
    assert len(victims) == len(metas)
    keys = [index._holdings.residency.key_of(block) for block in victims]
    assert [ages[key] for key in keys] == sorted(ages.values(), reverse=True)
    parents = {meta.key: meta.parent_key for meta in metas}
    place = {key: number for number, key in enumerate(keys)}
    assert all(place[key] < place[parent] for key, parent in parents.items() if parent != ROOT_KEY)


def test_a_smaller_disk_keeps_what_was_used_last():
    metas = tree(11, 200, deep=0.7)
    whole = index_of(metas)
    wanted = sum(meta.stored_bytes for meta in metas) // 2
    index = index_of(metas, disk_bytes=wanted)
    kept = by_key(index)
    assert kept.items() <= expected(metas).items()
    assert index._holdings.disk_bytes <= wanted
    gone = [entry[3] for key, entry in expected(metas).items() if key not in kept]
    assert min(gone) >= max(entry[3] for entry in kept.values()) - 1
    assert len(by_key(whole)) == len(metas)


def test_blocks_that_do_not_reach_the_root_are_deleted():
    metas = tree(13, 100, deep=0.7)
    parents = {meta.parent_key for meta in metas}
    lost = next(meta for meta in metas if meta.key in parents)
    left = [meta for meta in metas if meta is not lost]
    orphans, cut = [], {lost.key}
    for meta in left:
        if meta.parent_key in cut:
            cut.add(meta.key)
            orphans.append(meta.key)
    index = index_of(left)
    assert by_key(index).keys() == {meta.key for meta in left} - cut
    forgotten = {key for move in index.plan(0.0) if isinstance(move, Forget) for key in block_keys(move.keys)}
    assert forgotten == set(orphans)


def test_a_circle_and_a_block_told_twice_and_two_keys_for_one_block_do_no_harm():
    one = tree(15, 3, deep=1.0)
    twin = replace(one[1], key=b"t" * 32)
    below_twin = replace(one[2], key=b"u" * 32, parent_key=b"t" * 32)
    circle = [replace(one[0], key=a * 32, parent_key=b * 32) for a, b in ((b"a", b"b"), (b"b", b"a"))]
    index = index_of([*one, twin, below_twin, *circle, one[0]])
    known = by_key(index)
    assert len(known) == 3
    forgotten = {key for move in index.plan(0.0) if isinstance(move, Forget) for key in block_keys(move.keys)}
    assert {b"a" * 32, b"b" * 32} <= forgotten
    assert len(forgotten) == 4
    assert not forgotten & known.keys()


def test_keys_that_begin_alike_are_told_apart():
    """They are compared whole, however many begin with the same bytes."""
    metas = tree(17, 60, deep=0.6)
    names = {meta.key: b"same-begin" + number.to_bytes(22, "big") for number, meta in enumerate(metas)}
    names[ROOT_KEY] = ROOT_KEY
    metas = [replace(meta, key=names[meta.key], parent_key=names[meta.parent_key]) for meta in metas]
    assert by_key(index_of(metas)) == expected(metas)


def test_nothing_is_fine():
    assert by_key(index_of([])) == {}


# ---- beside requests


def restarted(tiers):
    """The next process, of which nothing has been entered yet."""
    return MemoryModel(tiers.config, tiers.disk, now_s=1.0, restores_in_steps=True)


@pytest.fixture
def before():
    tiers = model(device=12, host=12, disk=32)
    on_disk(tiers, 1, 2, 3)
    on_disk(tiers, 1, 5)
    tiers.now_s += 0.5
    on_disk(tiers, 7, 8)
    return tiers


def test_the_first_lookup_is_served_and_says_why_it_misses(before):
    tiers = restarted(before)
    assert lookup(tiers, 7, 8) == {}
    assert tiers.index.observe(np.array(prompt(7, 8), dtype="<i4")).restoring
    assert tiers.restore_some()
    assert lookup(tiers, 7, 8) != {}, "the most recently used comes first"
    tiers.restore()
    assert lookup(tiers, 1, 2, 3) == {"disk": 3}
    assert not tiers.index.observe(np.array(prompt(9), dtype="<i4")).restoring


def test_what_was_computed_meanwhile_is_on_disk_too_and_is_not_written_again(before):
    tiers = restarted(before)
    tiers.run(prompt(1, 2, 3))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    assert not tiers.moves(Write)
    tiers.settle()
    assert not [move for move in tiers.moves(Write) if len(move.ids)]
    assert len(tiers.disk) == 6
    assert set(tiers.where(prompt(1, 2, 3))) <= {"DK", "DHK"}
    tiers.check()


def test_what_branches_off_a_run_that_was_computed_meanwhile_finds_its_place(before):
    tiers = restarted(before)
    tiers.run(prompt(1, 2, 3, 4))
    tiers.restore()
    tiers.check()
    assert lookup(tiers, 1, 5) == {"device": 1, "disk": 1}


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_what_is_cleared_meanwhile_is_gone_for_good(before, num_steps):
    tiers = restarted(before)
    for _ in range(num_steps):
        tiers.restore_some()
    assert tiers.index.clear()
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 0
    assert not tiers.disk


def test_what_is_cleared_meanwhile_is_deleted_in_steps_too(monkeypatch):
    """The thread that computes makes them: all keys of a large disk at once would hold it up."""
    monkeypatch.setattr("tiering.restore._STEP_BLOCKS", 20)
    metas = tree(23, 300, deep=0.9)
    lost = metas[100]
    metas.remove(lost)
    index = new_index()
    index.begin_restore(0.0)
    assert index.clear()
    found = arranged([BlockMetas.of(metas)], ROOT_KEY, NOW_NS)
    assert len(found.others) > 20
    forgotten = []
    for _ in index.restore(found):
        forgotten += [block_keys(move.keys) for move in index.plan(0.0) if isinstance(move, Forget)]
        assert index.stats()["tiers"]["disk"]["restored_blocks"] <= len(found)
    assert max(map(len, forgotten)) <= max(20, MOST_RUN_BLOCKS)
    assert len(forgotten) > len(metas) // 40
    assert sorted(key for keys in forgotten for key in keys) == sorted(meta.key for meta in metas)
    assert not index.restoring and index.stats()["blocks"] == 0


@pytest.mark.parametrize("num_steps", [0, 2])
def test_what_is_erased_meanwhile_is_not_entered(before, num_steps):
    tiers = restarted(before)
    for _ in range(num_steps):
        tiers.restore_some()
    assert tiers.index.erase(OWNERS[1])
    tiers.settle()
    assert not len(tiers.index._holdings.blocks_of(OWNERS[1]))
    assert OWNERS[1] not in {record.meta.owner for record in tiers.disk.values()}
    tiers.check()


def test_of_what_is_erased_meanwhile_the_public_prefix_stays():
    """Although one use went through all of it, and it has no branch."""
    metas = tree(21, 6, deep=1.0, num_times=1)
    mine = OWNERS[1]
    metas = [replace(meta, owner=mine if number >= 3 else NO_OWNER) for number, meta in enumerate(metas)]
    index = new_index()
    index.begin_restore(0.0)
    assert index.erase(mine)
    list(index.restore(arranged([BlockMetas.of(metas)], ROOT_KEY, NOW_NS)))
    index.check()
    forgotten = {key for move in index.plan(0.0) if isinstance(move, Forget) for key in block_keys(move.keys)}
    assert forgotten == {meta.key for meta in metas[3:]}
    assert by_key(index).keys() == {meta.key for meta in metas[:3]}


def test_a_store_that_went_on_empty_has_nothing_to_enter(before):
    tiers = restarted(before)
    tiers.restore_some()
    tiers.disk.clear()
    tiers.index.disk_was_emptied()
    tiers.settle()
    assert tiers.index.stats()["tiers"]["disk"]["blocks"] == 0


def no_memory(_):
    raise MemoryError("no room for so many")


def test_what_cannot_be_entered_is_logged_and_the_index_goes_on(caplog):
    index = new_index()
    index.begin_restore(0.0)
    index._holdings.residency.reserve = no_memory
    assert not list(index.restore(arranged([BlockMetas.of(tree(7, 50))], ROOT_KEY, NOW_NS)))
    assert not index.restoring
    assert "no room for so many" in caplog.text
    assert [event.kind for event in index.events.after(0)] == ["failed"]
    index.check()


def test_a_store_whose_blocks_are_of_another_size_is_left_alone(caplog):
    """A store of somebody's own may tell anything."""
    index = new_index()
    index.begin_restore(0.0)
    metas = [replace(meta, tokens=meta.tokens * 2) for meta in tree(7, 50)]
    list(index.restore(arranged([BlockMetas.of(metas)], ROOT_KEY, NOW_NS)))
    assert not index.restoring and index.stats()["blocks"] == 0
    assert "16 bytes of tokens, not 8" in caplog.text
    index.check()


def test_that_the_books_do_not_agree_is_not_passed_over():
    index = new_index()
    index.begin_restore(0.0)
    found = arranged([BlockMetas.of(tree(7, 50))], ROOT_KEY, NOW_NS)
    steps = index.restore(found)
    next(steps)
    with pytest.raises(AssertionError):
        list(index.restore(found))


def test_the_reason_has_a_name_of_its_own(before):
    tiers = restarted(before)
    observed = tiers.index.observe(np.array(prompt(7, 8), dtype="<i4"))
    [part, _] = explain(observed, lambda _: pytest.fail("no difference is known")).parts
    assert part.reason is MissReason.NOT_RESTORED


# ---- the tree


@pytest.mark.parametrize("batch", [1, 5, 1000])
@pytest.mark.parametrize("known_share", [0.0, 0.2])
def test_planting_is_extending(batch, known_share):
    """The same paths and fingerprints, whatever was there before; what is there already is left to `extend`."""
    found = arranged([BlockMetas.of(tree(19, 300, deep=0.8))], ROOT_KEY, NOW_NS)
    planted, plain = (RadixIndex(BLOCK_TOKENS, Residency(), seed=2**63) for _ in range(2))
    paths = paths_of(found)
    for path in random.Random(2).sample(paths, int(known_share * len(paths))):
        planted.insert(path)
    planted.watch.begin()
    tails, met, first = [NO_BLOCK] * (found.num_runs + 1), 0, 0
    while first < found.num_runs:
        end = min(first + batch, found.num_runs)
        after = found.after[first:end].tolist()
        start, stop = found.starts[[first, end]].tolist()
        runs = NewRuns(
            tokens=found.tokens[start:stop].tobytes(),
            lengths=np.diff(found.starts[first : end + 1]).tolist(),
            tails=[NO_BLOCK if run >= first else tails[run] for run in after],
            after=[run - first if run >= first else -1 for run in after],
            alone=found.alone[first:end].tolist(),
        )
        ids, num_runs = planted.plant(runs)
        planted.check()
        for run in range(first, first + num_runs):
            tails[run] = ids.item(int(found.starts[run + 1]) - start - 1)
        first += num_runs
        if first < end:
            start, stop = found.starts[[first, first + 1]].tolist()
            edge = found.tokens[start:stop].tobytes()
            tails[first] = planted.extend(tails[int(found.after[first])], edge).item(-1)
            first, met = first + 1, met + 1
    planted.check()
    assert (met > 0) == (known_share > 0)
    for path in paths:
        plain.insert(path)
        same = [index.match(path) for index in (planted, plain)]
        assert len(same[0]) == len(same[1]) == len(path) // BLOCK_TOKENS
    assert len(planted) == len(plain) == len(found)


def test_a_run_that_no_node_may_hold_is_not_planted():
    index = RadixIndex(BLOCK_TOKENS, Residency(), max_node_blocks=2)
    tokens = np.arange(3 * BLOCK_TOKENS, dtype="<i4").tobytes()
    with pytest.raises(AssertionError, match="longer than a node"):
        index.plant(NewRuns(tokens, [3], [NO_BLOCK], [-1], [True]))
    index.check()
    ids, _ = index.plant(NewRuns(tokens, [2, 1], [NO_BLOCK] * 2, [-1, 0], [True] * 2))
    assert ids.tolist() == [0, 1, 2]
    index.check()


def paths_of(found):
    """The tokens of the path down to the end of each run."""
    paths = []
    for run in range(found.num_runs):
        own = found.tokens[found.starts[run] : found.starts[run + 1]].reshape(-1).view("<i4")
        above = paths[found.after[run]] if found.after[run] >= 0 else own[:0]
        paths.append(np.concatenate([above, own]))
    return paths


# ---- the order of uses


@pytest.mark.parametrize("seed", range(5))
def test_uses_from_before_wait_while_others_come_and_go(seed):
    """Also where the log is compacted meanwhile: the oldest use is that of the blocks that came last."""
    rng, residency = random.Random(seed), Residency()
    radix, order = RadixIndex(BLOCK_TOKENS, residency), LRU(residency, min_log_entries=2)
    order.leave_past()
    live = [radix.insert(np.array([number] * 4, dtype="<i4")) for number in range(3)]
    order.now_s = 10.0
    order.touch(live[0])
    order.recall(np.arange(6) - 100.0)
    view, seen = order.view(Eligible(EVERY_BLOCK, residency, SlotTable(0))), [live[0]]
    for number in reversed(range(6)):
        for _ in range(rng.randrange(4)):
            seen.append(rng.choice(live))
            order.touch(seen[-1])
        path = radix.insert(np.array([100 + number] * 6, dtype="<i4"))
        cut = rng.randrange(1, 3)
        for ids in (path[:cut], path[cut:]):  # one use may come in parts
            order.recalled(ids, np.full(len(ids), number))
            view.rewind(ids)
            if rng.randrange(2):
                order._compact()
            if rng.randrange(2):
                order.touch(live[0])
                seen.append(live[0])
            order.check()
            view.check()
        assert order.touched_s(path).tolist() == [number - 100.0] * 3
        assert view.peek(3).tolist() == path[::-1].tolist()
        assert order.oldest_s() == number - 100.0
    order.forget_past()
    order.check()
    last = [
        path[::-1].tolist() for path in dict.fromkeys(map(tuple, seen[::-1])) for path in [np.array(path)]
    ]
    assert view.peek(100).tolist()[18:] == [block for path in last[::-1] for block in path]
