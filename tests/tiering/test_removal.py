"""What leaves a tier is what would leave it block by block, in the order that the definition of least recently used gives."""

import random

import numpy as np
import pytest

from benchmarks.index_tree import Tree
from benchmarks.workloads_index import prefixes
from kvstore.reasons import MissReason
from tests.tiering.progress import Progress
from tests.tiering.small_tiers import model, prompt, stats
from tiering.eviction import Eviction
from tiering.policies.view import View
from tiering.removal import Removal
from tiering.residency import NO_BLOCK, State, Tier, block_keys


def array(blocks):
    return np.array(blocks, dtype=np.intp)


# ---- the reference: one block at a time, each by itself; and each look at the order begins where the order does


def give_up(removal, tier, ids):
    residency = removal._holdings.residency
    for block in ids.tolist():
        one = array([block])
        if residency.state[tier, block] != State.PRESENT:
            continue
        if any(residency.state[other, block] != State.ABSENT for other in Tier if other is not tier):
            if tier is Tier.DISK:
                removal.forget(one)
            removal.leave(tier, one)
        elif removed := remove(removal, block, MissReason.EVICTED):
            removal.dropped[tier] += removed
            removal.evicted[tier] += 1
        elif tier is Tier.DEVICE and removal._outbox.hangs:
            removal.gone(one, MissReason.EVICTED)
            removal.leave(Tier.DEVICE, one)
            removal.dropped[Tier.DEVICE] += 1
            removal._holes.prune(one)


def remove(removal, block, reason):
    holdings = removal._holdings
    ids = holdings.radix.subtree(block)
    if holdings.in_use(ids).any():
        return 0
    removal.gone(ids, reason)
    for below in ids.tolist():
        one = array([below])
        for tier in Tier:
            if holdings.residency.state[tier, below] == State.PRESENT:
                if tier is Tier.DISK:
                    removal.forget(one)
                holdings.left(tier, one)
    holdings.prune(ids[::-1])
    return len(ids)


def peek(view, k):
    ids = np.concatenate([array([]), *view._lru.upwards(0, NO_BLOCK, 3)])
    return ids[view._eligible(ids)][: max(0, k)]


def use_reference(monkeypatch):
    monkeypatch.setattr(Removal, "give_up", give_up)
    monkeypatch.setattr(Removal, "give_up_leaf", lambda removal, tier, block: False)
    monkeypatch.setattr(Removal, "remove", remove)
    monkeypatch.setattr(View, "peek", peek)
    monkeypatch.setattr(View, "first", lambda view: next(iter(peek(view, 1).tolist()), NO_BLOCK))
    monkeypatch.setattr(View, "check", lambda view: None)


def watch_moves(monkeypatch):
    """Whether something moves on the device is asked of the moves, and is what the columns say."""
    of_the_moves = Eviction._is_device_moving
    answers = []

    def is_device_moving(eviction):
        residency = eviction._holdings.residency
        moving = (residency.state[Tier.DEVICE] == State.WRITING) | (residency.readers[Tier.DEVICE] > 0)
        answers.append(of_the_moves(eviction))
        assert answers[-1] == (moving & (residency.leases == 0)).any()
        return answers[-1]

    monkeypatch.setattr(Eviction, "_is_device_moving", is_device_moving)
    return answers


def state_of(index):
    """All that is known of each block, by what leads to it: two cores may give one block different ids."""
    holdings, residency = index._holdings, index._holdings.residency
    blocks = {}
    for block in np.flatnonzero(residency.live).tolist():
        path = b"".join(holdings.radix.tokens_up(block, len(holdings.radix.path(block)))[::-1])
        columns = (residency.stamp, residency.leases, residency.computing, residency.has_key)
        blocks[path] = [*residency.state[:, block].tolist(), *(column.item(block) for column in columns)]
    eviction = index._eviction
    counts = [*eviction.evicted, *eviction.dropped, len(eviction.departed), holdings.disk_bytes]
    return blocks, counts, index.stats()["tiers"]


def history(seed, num_actions):
    progress = Progress(random.Random(seed).choice)
    for number in range(num_actions):
        progress.act()
        if number % 4 == 3:
            yield state_of(progress.model.index)
    progress.end()
    yield state_of(progress.model.index)


@pytest.mark.parametrize("seed", range(3))
def test_a_history_is_what_it_is_block_by_block(seed, monkeypatch):
    with monkeypatch.context() as patched:
        use_reference(patched)
        plainly = list(history(seed, 80))
    moving = watch_moves(monkeypatch)
    for number, (fast, plain) in enumerate(zip(history(seed, 80), plainly, strict=True)):
        assert fast == plain, f"at look {number}"
    assert sum(plainly[-1][1][:6]) > 20, "hardly anything was evicted"
    assert moving, "nobody asked whether something moves"


def make_room(rooms, **sizes):
    """Trees with branches at many places, from which so many blocks have to go at a time."""
    tiers = model(24, **sizes)
    for names in ((1, 2, 3, 4), (1, 2, 5), (6, 7, 8), (1, 2, 3, 9), (6, 10), (11,), (6, 7, 12, 13)):
        tiers.run(prompt(*names))
    device = tiers.index._holdings.slots[Tier.DEVICE]
    for num in rooms:
        tiers.index.make_room(device.num_free + num)
        tiers.settle()
        yield state_of(tiers.index)


@pytest.mark.parametrize("sizes", [{}, {"host": 4}, {"host": 30}, {"host": 4, "disk": 5}])
def test_room_for_one_or_for_many_is_made_of_the_same_blocks(sizes, monkeypatch):
    rooms = [1, 1, 1, 4, 1, 2, 1, 1]
    with monkeypatch.context() as patched:
        use_reference(patched)
        plainly = list(make_room(rooms, **sizes))
    assert list(make_room(rooms, **sizes)) == plainly


@pytest.mark.parametrize("name", ["host_clean", "host_victims"])
def test_looking_for_what_is_not_there_does_not_begin_anew(name):
    """Blocks that leave a device without anything below it have no view look at all the others again."""
    tiers = model(200)
    for block in range(0, 180, 3):
        tiers.run(prompt(block, block + 1, block + 2))
    holdings = tiers.index._holdings
    view, looked = getattr(holdings, name).view, []
    for _ in range(60):
        head = view.places.cells[0][view.number]
        looked.append(np.count_nonzero(holdings.residency.stamp >= max(1, head)))
        view.peek(1)
        tiers.index.make_room(holdings.slots[Tier.DEVICE].num_free + 2)
    assert 180 <= sum(looked) < 3 * 180, "each block is looked at once, and hardly one again"


# ---- one fact at a time


def entered(*tiers: Tier, blocks=96):
    """A core with one prompt of 96 blocks in these tiers, and its path."""
    tree = Tree(blocks, blocks, blocks)
    return tree, tree.enter(next(prefixes(1, seed=0)), *tiers)


def test_what_the_disk_gives_up_is_to_be_written_again():
    tree, path = entered(Tier.HOST, Tier.DISK)
    holdings = tree.holdings
    assert holdings.host_dirty.peek(1).tolist() == []
    holdings.disk_capacity_bytes = 0
    tree.eviction.fit_disk()
    assert holdings.host_dirty.peek(96).tolist() == path[::-1].tolist()
    tree.index.check()


def test_records_of_what_the_disk_gives_up_are_deleted():
    tree, path = entered(Tier.DISK)
    keys = [tree.residency.key_of(block) for block in path.tolist()]
    tree.holdings.disk_capacity_bytes = 0
    tree.eviction.fit_disk()
    forgotten = [key for move in tree.index._outbox.take() for key in block_keys(move.keys)]
    assert sorted(forgotten) == sorted(keys)
    assert len(tree.radix) == 0


@pytest.mark.parametrize("num", [1, 2])
def test_a_hole_goes_with_the_last_block_below_it(num):
    tree = Tree(96)
    path = tree.enter(next(prefixes(1, seed=0)), Tier.DEVICE)
    tree.holdings.left(Tier.DEVICE, path[-num - 1 : -num])
    tree.index.make_room(tree.holdings.slots[Tier.DEVICE].num_free + num)
    assert len(tree.radix) == 95 - num
    tree.index.check()


@pytest.mark.parametrize("num", [1, 2])
def test_what_is_leased_is_not_given_up(num):
    tree, path = entered(Tier.DEVICE)
    tree.holdings.lease(path)
    tree.eviction.give_up(Tier.DEVICE, path[: -num - 1 : -1])
    assert tree.residency.present(Tier.DEVICE, path).all()
    assert sum(tree.eviction.dropped) == 0
    tree.holdings.release(path)
    tree.eviction.give_up(Tier.DEVICE, path[: -num - 1 : -1])
    assert tree.eviction.dropped[Tier.DEVICE] == num
    tree.index.check()


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_a_copy_that_is_not_there_does_not_leave_nor_is_it_counted(tier):
    tiers = model(device=3, host=3, disk=4)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=False)
    tiers.settle()
    holdings = tiers.index._holdings
    first, second = holdings.radix.match(array(prompt(1, 2)[:-1]).astype(np.int32)).tolist()
    if tier is Tier.HOST:
        holdings.left(tier, array([second]))
    with pytest.raises(AssertionError, match="only a copy"):
        holdings.left(tier, array([first, second]))
    tiers.check()


@pytest.mark.parametrize("explains", [True, False])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_what_went_is_remembered_only_where_somebody_may_ask(explains, num_blocks):
    """A leaf by itself as well as several."""
    tiers = model(device=num_blocks + 1, explains=explains)
    tiers._check_departed = lambda: None  # it wants all of them known
    for first in (1, 3, 5):
        tiers.run(prompt(*range(first, first + num_blocks)))
    assert stats(tiers, "device")["dropped"] == 2 * num_blocks
    assert len(tiers.index._eviction.departed) == explains * 2 * num_blocks
