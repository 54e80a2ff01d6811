"""Ids and copies of blocks: every column against plain Python objects."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.tiering.plain_copies import PlainCopies
from tiering import pages
from tiering.residency import NO_BLOCK, NO_NODE, Residency, State, Tier

TIERS = st.sampled_from(list(Tier))


def ids(*numbers: int):
    return np.array(numbers, dtype=np.intp)


class Record:
    """What the oracle knows of one live block."""

    def __init__(self, parent) -> None:
        self.parent = parent
        self.leases = 0
        self.state = dict.fromkeys(Tier, State.ABSENT)
        self.place = dict.fromkeys(Tier, None)
        self.readers = dict.fromkeys(Tier, 0)
        self.key = None


class Machine(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 6), data=st.data())
    def make(self, capacity, data):
        self.residency = Residency(capacity)
        self.copies = PlainCopies(self.residency)
        self.oracle = {}
        self.allocate_a_chain(data, 3)

    def draw(self, data, condition):
        there = [block for block, record in self.oracle.items() if condition(record)]
        return ids(
            *data.draw(st.lists(st.sampled_from(there), unique=True, max_size=4) if there else st.just([]))
        )

    def path(self, block):
        path = [block]
        while self.oracle[path[-1]].parent != NO_BLOCK:
            path.append(self.oracle[path[-1]].parent)
        return path[::-1]

    def children(self, block):
        return [child for child, record in self.oracle.items() if record.parent == block]

    @rule(data=st.data(), n=st.integers(0, 5))
    def allocate_a_chain(self, data, n):
        parent = data.draw(st.sampled_from([NO_BLOCK, *self.oracle]))
        new = self.residency.allocate(n)
        assert new.dtype == np.intp
        assert new.tolist() == sorted(set(new.tolist()))
        assert len(new) == n
        for block in new.tolist():
            assert block not in self.oracle
            self.residency.parent[block] = parent
            if parent != NO_BLOCK:
                self.residency.num_children[parent] += 1
            self.residency.node[block] = 7
            self.residency.stamp[block] = 5
            self.oracle[block] = Record(parent)
            parent = block

    @rule(data=st.data())
    def free_leaves(self, data):
        def idle(block, record):
            ties = [record.leases, *record.state.values(), *record.readers.values()]
            return not any(ties) and not self.children(block)

        there = [block for block, record in self.oracle.items() if idle(block, record)]
        chosen = data.draw(st.lists(st.sampled_from(there), unique=True) if there else st.just([]))
        for block in chosen:
            if self.oracle[block].parent != NO_BLOCK:
                self.residency.num_children[self.oracle[block].parent] -= 1
            del self.oracle[block]
        self.residency.free(ids(*chosen))

    @rule(data=st.data(), tier=TIERS, num_bytes=st.integers(1, 2**31 - 1))
    def begin(self, data, tier, num_bytes):
        chosen = self.draw(data, lambda record: record.state[tier] == State.ABSENT)
        places = self.copies.begin(tier, chosen, num_bytes)
        for block, place in zip(chosen.tolist(), places.tolist(), strict=True):
            self.oracle[block].state[tier] = State.WRITING
            self.oracle[block].place[tier] = place

    @rule(data=st.data(), tier=TIERS)
    def finish(self, data, tier):
        chosen = self.draw(data, lambda record: record.state[tier] == State.WRITING)
        self.copies.finish(tier, chosen)
        for block in chosen.tolist():
            self.oracle[block].state[tier] = State.PRESENT

    @rule(data=st.data(), tier=TIERS)
    def drop(self, data, tier):
        state = data.draw(st.sampled_from([State.WRITING, State.PRESENT]))
        chosen = self.draw(data, lambda record: record.state[tier] == state and not record.readers[tier])
        self.copies.drop(tier, chosen, were_whole=state is State.PRESENT)
        for block in chosen.tolist():
            self.oracle[block].state[tier] = State.ABSENT

    @rule(data=st.data(), tier=TIERS)
    def read_begins(self, data, tier):
        chosen = self.draw(data, lambda record: record.state[tier] == State.PRESENT)
        self.copies.read_begins(tier, chosen)
        for block in chosen.tolist():
            self.oracle[block].readers[tier] += 1

    @rule(data=st.data(), tier=TIERS)
    def read_ended(self, data, tier):
        chosen = self.draw(data, lambda record: record.readers[tier])
        self.copies.read_ended(tier, chosen)
        for block in chosen.tolist():
            self.oracle[block].readers[tier] -= 1

    @precondition(lambda self: self.oracle)
    @rule(data=st.data())
    def lease(self, data):
        path = self.path(data.draw(st.sampled_from(list(self.oracle))))
        self.residency.leases[ids(*path)] += 1
        for block in path:
            self.oracle[block].leases += 1

    @rule(data=st.data())
    def release(self, data):
        leased = [
            block
            for block, record in self.oracle.items()
            if record.leases > sum(self.oracle[child].leases for child in self.children(block))
        ]
        if not leased:
            return
        path = self.path(data.draw(st.sampled_from(leased)))
        self.residency.leases[ids(*path)] -= 1
        for block in path:
            self.oracle[block].leases -= 1

    @precondition(lambda self: self.oracle)
    @rule(data=st.data(), key=st.binary(min_size=32, max_size=32))
    def set_key(self, data, key):
        block = data.draw(st.sampled_from(list(self.oracle)))
        self.residency.set_keys(np.array([block]), np.frombuffer(key, np.uint8)[None])
        self.oracle[block].key = key

    @invariant()
    def same(self):
        self.copies.check()
        assert len(self.residency) == len(self.oracle)
        live = ids(*self.oracle)
        states = [list(record.state.values()) for record in self.oracle.values()]
        present = [[state == State.PRESENT for state in row] for row in states]
        assert self.residency.resident_anywhere(live).tolist() == [any(row) for row in states]
        assert self.residency.present_anywhere(live).tolist() == [any(row) for row in present]
        assert self.residency.nearest_tier(live).tolist() == [[*row, True].index(True) for row in present]
        for tier in Tier:
            there = [record.state[tier] == State.PRESENT for record in self.oracle.values()]
            assert self.residency.present(tier, live).tolist() == there
        for block, record in self.oracle.items():
            self.same_block(block, record)

    def same_block(self, block, record):
        residency = self.residency
        assert residency.live[block]
        assert residency.parent[block] == record.parent
        assert residency.num_children[block] == len(self.children(block))
        assert (residency.node[block], residency.stamp[block]) == (7, 5)
        assert residency.leases[block] == record.leases
        assert residency.key_of(block) == record.key
        for tier in Tier:
            assert residency.state[tier, block] == record.state[tier]
            assert residency.readers[tier, block] == record.readers[tier]
            if record.state[tier]:
                assert residency.place[tier, block] == record.place[tier]


def test_columns_follow_plain_objects():
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
    )


def test_tiers_have_labels_in_order_of_nearness():
    assert [tier.label for tier in Tier] == ["device", "host", "disk"]
    assert list(Tier) == [0, 1, 2]


def test_a_chain_that_was_freed_comes_back_in_a_row():
    residency = Residency(16)
    residency.allocate(4)
    chain = residency.allocate(5)
    residency.allocate(1)
    residency.free(chain[::-1])
    assert residency.allocate(5).tolist() == chain.tolist()


def test_ids_ascend_when_freed_and_fresh_ones_are_mixed():
    residency = Residency(4)
    residency.allocate(4)
    residency.free(ids(0, 2))
    assert residency.allocate(4).tolist() == [0, 2, 4, 5]
    residency.check()
    assert residency.capacity == 8


def test_a_freed_block_is_forgotten():
    residency = Residency(2)
    (block,) = residency.allocate(1)
    residency.parent[block], residency.node[block], residency.stamp[block] = NO_BLOCK, 3, 9
    residency.set_keys(np.array([block]), np.arange(32, dtype=np.uint8)[None])
    residency.free(ids(block))
    assert residency.allocate(1).tolist() == [block]
    assert residency.key_of(block) is None
    assert (residency.stamp[block], residency.node[block], residency.parent[block]) == (0, NO_NODE, NO_BLOCK)


def test_growing_keeps_every_column():
    residency = Residency(2)
    old = residency.allocate(2)
    residency.leases[old] += 1
    copies = PlainCopies(residency)
    slots = copies.begin(Tier.HOST, old)
    copies.finish(Tier.HOST, old)
    copies.read_begins(Tier.HOST, old)
    residency.set_keys(np.array([1]), np.frombuffer(b"k" * 32, np.uint8)[None])
    residency.allocate(100)
    assert residency.capacity >= 102
    assert residency.place[Tier.HOST, old].tolist() == slots.tolist()
    assert residency.readers[Tier.HOST, old].tolist() == residency.leases[old].tolist() == [1, 1]
    assert residency.nearest_tier(old).tolist() == [Tier.HOST] * 2
    assert residency.key_of(1) == b"k" * 32
    residency.check()


@pytest.fixture
def full():
    """0 is being written to the device, 1 is present there and read, 2 leased, 3 the child of 2, and 5 of 4."""
    residency = Residency(8)
    residency.allocate(6)
    copies = PlainCopies(residency)
    copies.begin(Tier.DEVICE, ids(0, 1))
    copies.finish(Tier.DEVICE, ids(1))
    copies.read_begins(Tier.DEVICE, ids(1))
    residency.leases[ids(2)] += 1
    residency.parent[ids(3, 5)] = 2, 4
    residency.num_children[ids(2, 4)] = 1
    residency.check()
    return residency


@pytest.mark.parametrize(
    "misuse",
    [
        lambda residency: residency.free(ids(0)),
        lambda residency: residency.free(ids(1)),
        lambda residency: residency.free(ids(2)),
        lambda residency: residency.free(ids(3, 0)),
        lambda residency: residency.free(ids(2, 3)),
        lambda residency: residency.free(ids(4)),
        lambda residency: residency.free(ids(5, 4)),
        lambda residency: residency.free(ids(5, 5)),
        lambda residency: residency.free(ids(6)),
    ],
)
def test_illegal_changes_are_refused_before_anything_changes(full, misuse):
    with pytest.raises(AssertionError):
        misuse(full)
    full.check()
    assert full.state[Tier.DEVICE, :4].tolist() == [State.WRITING, State.PRESENT, 0, 0]
    assert full.readers[Tier.DEVICE, :4].tolist() == [0, 1, 0, 0]
    assert full.leases[:4].tolist() == [0, 0, 1, 0]
    assert len(full) == 6


@pytest.mark.parametrize(
    ("column", "at", "value"),
    [
        ("live", 0, False),
        ("live", 6, True),
        ("parent", 3, 1),
        ("parent", 3, 6),
        ("num_children", 2, 2),
        ("num_children", 6, 1),
        ("leases", 3, 4),
        ("leases", 6, -1),
        ("stamp", 3, 1),
        ("stamp", 6, 1),
        ("state", (0, 1), State.WRITING),
        ("state", (2, 6), State.PRESENT),
        ("state", (1, 0), 3),
        ("readers", (1, 0), 1),
        ("readers", (0, 1), -1),
        ("has_key", 6, True),
    ],
)
def test_check_sees_damage(full, column, at, value):
    getattr(full, column)[at] = value
    with pytest.raises(AssertionError):
        full.check()


@pytest.mark.parametrize("num_columns", [0, 5])
def test_where_there_is_no_memory_to_grow_nothing_changes(monkeypatch, num_columns):
    """Whichever column it is that cannot be had, and whatever was free: the next that asks gets it."""
    residency = Residency(4)
    residency.free(residency.allocate(3)[:2])
    grow, left = pages.GrowingPages.grow, [num_columns]

    def refused(some, num_bytes):
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError
        grow(some, num_bytes)

    with monkeypatch.context() as short:
        short.setattr(pages.GrowingPages, "grow", refused)
        with pytest.raises(MemoryError):
            residency.allocate(9)
    assert (len(residency), residency.capacity) == (1, 4)
    residency.check()
    assert sorted(residency.allocate(9).tolist()) == [0, 1, *range(3, 10)]
    residency.check()


@pytest.mark.parametrize("capacity", [0, -1, 2**31])
def test_impossible_capacities_are_refused(capacity):
    with pytest.raises(ValueError, match=str(capacity)):
        Residency(capacity)


def test_the_empty_array_is_fine_everywhere(full):
    none = ids()
    full.free(none)
    copies = PlainCopies(full)
    for tier in Tier:
        copies.begin(tier, none)
        copies.finish(tier, none)
        copies.left(tier, none)
        copies.failed(tier, none)
        copies.read_begins(tier, none)
        copies.read_ended(tier, none)
    full.found(none, 0, np.zeros(4, dtype=np.int64))
    assert full.allocate(0).tolist() == full.nearest_tier(none).tolist() == []
    assert full.resident_anywhere(none).tolist() == full.present_anywhere(none).tolist() == []
    full.check()


def test_who_has_found_a_path_is_counted():
    residency = Residency(8)
    path = residency.allocate(4)
    by_tier = np.zeros(4, dtype=np.int64)
    residency.found(path, len(path), by_tier)
    residency.found(path[:3], 3, by_tier)
    assert by_tier.tolist() == [0, 0, 0, 7], "no tier has them"
    assert residency.hits[path].tolist() == [2, 2, 2, 1]


def test_one_blocks_columns_are_those_of_all():
    """Also after the arrays have grown."""
    residency = Residency(4)
    for _ in range(3):
        last = residency.allocate(4).item(-1)
        residency.cells.stamp[last] = 7
        residency.cells.state[Tier.HOST][last] = State.PRESENT
        assert residency.stamp[last] == 7
        assert residency.present(Tier.HOST, ids(last)).all()
        residency.leases[last] = 3
        assert residency.cells.leases[last] == 3


@pytest.mark.parametrize("held", [False, True])
def test_columns_grow_with_what_is_in_them(monkeypatch, held):
    """And without being copied, unless somebody holds one: who does keeps what was there."""
    made = []
    zeros = pages._zeros
    residency = Residency(4)
    ids = residency.allocate(4)
    residency.state[Tier.HOST, ids[:2]], residency.place[Tier.HOST, ids[:2]] = State.WRITING, 7
    residency.cells.stamp[3] = 5
    residency.leases[ids] += 1
    monkeypatch.setattr(pages, "_zeros", lambda num_bytes: made.append(num_bytes) or zeros(num_bytes))
    stamp = residency.stamp if held else None
    residency.allocate(10_000)
    assert len(made) == held
    if stamp is not None:
        residency.stamp[:] = 1
        assert stamp.tolist() == [0, 0, 0, 5]
    else:
        assert residency.stamp[:5].tolist() == [0, 0, 0, 5, 0]
    assert residency.leases.sum() == 4
    assert residency.place[Tier.HOST, :3].tolist() == [7, 7, 0]
    assert residency.cells.live[10_003]
    assert residency.ties[2] is residency.leases is residency.columns[3]
