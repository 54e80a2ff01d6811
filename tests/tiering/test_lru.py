"""Eviction order by definition: the oldest touch, then the deepest, among the eligible leaves of a tier."""

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
from tiering.eligible import Eligible
from tiering.part import Part
from tiering.policies import lru
from tiering.policies.lru import LRU
from tiering.radix import RadixIndex
from tiering.ranks import Ranks
from tiering.residency import NO_BLOCK, Residency, State, Tier
from tiering.rules import DEVICE_VICTIM, DISK_VICTIM, HOST_DIRTY
from tiering.slot_table import SlotTable

TIERS = st.sampled_from(list(Tier))
PROMPT = st.lists(st.sampled_from([3, 4]), min_size=1, max_size=12)  # a block is one token


def array(blocks):
    return np.array(blocks, dtype=np.intp)


class Record:
    """What the oracle knows of one block; its place in the tree is its key in the oracle."""

    def __init__(self, block) -> None:
        self.block = block
        self.stamp = 0
        self.touched_s = 0.0
        self.leases = 0
        self.state = dict.fromkeys(Tier, State.ABSENT)
        self.readers = dict.fromkeys(Tier, 0)

    def eligible(self, tier):
        """By the rule that its tier's view has."""
        if self.state[tier] != State.PRESENT or self.readers[tier]:
            return False
        if tier is Tier.HOST:
            return self.state[Tier.DISK] == State.ABSENT
        return not self.leases or (tier is Tier.DISK and self.state[Tier.DEVICE] == State.PRESENT)


class Machine(RuleBasedStateMachine):
    """Index, residency and policy together, as the core uses them, on three tiers.

    The oracle is a dict from a path of tokens to a Record. What is evicted is found by taking, one after the other,
    the eligible block with no eligible child left that has the smallest stamp, and the greatest depth among those.
    """

    @initialize(
        max_node_blocks=st.sampled_from([1, 4, 128]),
        min_log=st.sampled_from([1, 4, 1024]),
        prompts=st.lists(st.tuples(PROMPT, TIERS), min_size=3, max_size=6),
    )
    def make(self, max_node_blocks, min_log, prompts):
        self.residency = Residency(8)
        self.index = RadixIndex(1, self.residency, max_node_blocks)
        self.policy = LRU(self.residency, min_log_entries=min_log)
        self.copies = PlainCopies(self.residency, self.policy)
        self.views = [
            self.policy.view(Eligible(rule, self.residency, SlotTable(1)))
            for rule in (DEVICE_VICTIM, HOST_DIRTY, DISK_VICTIM)
        ]
        self.oracle = {}
        self.clock = 0
        self.leased = []  # paths of tokens, once for each lease
        for prompt, tier in prompts:
            self.insert(prompt, tier, touched=True)

    def show(self, ids):
        """These may be eligible that were not."""
        for view in self.views:
            view.rewind(ids)

    # ---- the oracle

    def expected_victims(self, tier, k):
        left = {
            path: record for path, record in self.oracle.items() if record.stamp and record.eligible(tier)
        }
        victims = []
        while left and len(victims) < k:
            inner = {path[:-1] for path in left}
            leaves = [path for path in left if path not in inner]
            path = min(leaves, key=lambda leaf: (left[leaf].stamp, -len(leaf)))
            victims.append(left.pop(path).block)
        return victims

    def ids(self, path):
        return array([self.oracle[path[: n + 1]].block for n in range(len(path))])

    def records(self, path):
        return [self.oracle[path[: n + 1]] for n in range(len(path))]

    def matched(self, prompt):
        path = tuple(prompt)
        while path and path not in self.oracle:
            path = path[:-1]
        assert self.index.match(np.array(prompt, dtype=np.int32)).tolist() == self.ids(path).tolist()
        return path

    def some(self, data, condition):
        """Paths of up to four blocks that meet a condition."""
        there = sorted(path for path, record in self.oracle.items() if condition(record))
        some = st.lists(st.sampled_from(there), unique=True, min_size=1, max_size=4) if there else st.just([])
        return data.draw(some)

    def touch(self, path):
        self.policy.touch(self.ids(path))
        self.clock += bool(path)
        for record in self.records(path):
            record.stamp, record.touched_s = self.clock, self.policy.now_s

    # ---- what the core does

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def pass_time(self, seconds):
        self.policy.now_s += seconds

    @rule(prompt=PROMPT)
    def use(self, prompt):
        self.touch(self.matched(prompt))

    @rule(prompt=PROMPT, tier=st.sampled_from([*Tier, None]), touched=st.sampled_from([True, True, False]))
    def insert(self, prompt, tier, touched):
        """As a prefill publishes a prompt's blocks; a block that is never touched is never evicted."""
        ids = self.index.insert(np.array(prompt, dtype=np.int32))
        for n, block in enumerate(ids.tolist()):
            record = self.oracle.setdefault(tuple(prompt[: n + 1]), Record(block))
            assert record.block == block
        if tier is not None:
            absent = [record for record in self.records(tuple(prompt)) if not record.state[tier]]
            self.write(tier, absent)
            self.finish(tier, absent)
        if touched:
            self.touch(tuple(prompt))

    @precondition(lambda self: self.oracle)
    @rule(data=st.data())
    def lease(self, data):
        path = data.draw(st.sampled_from(sorted(self.oracle)))
        self.residency.leases[self.ids(path)] += 1
        self.leased.append(path)
        for record in self.records(path):
            record.leases += 1

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), touched=st.booleans())
    def release(self, data, touched):
        """A release that is no use rewinds instead."""
        path = self.leased.pop(data.draw(st.integers(0, len(self.leased) - 1)))
        self.residency.leases[self.ids(path)] -= 1
        for record in self.records(path):
            record.leases -= 1
        if touched:
            self.touch(path)
        else:
            self.show(self.ids(path))

    def write(self, tier, records):
        ids = array([record.block for record in records])
        self.copies.begin(tier, ids)
        for record in records:
            record.state[tier] = State.WRITING

    def finish(self, tier, records):
        ids = array([record.block for record in records])
        self.copies.finish(tier, ids)
        self.show(ids)
        for record in records:
            record.state[tier] = State.PRESENT

    @rule(data=st.data(), tier=TIERS)
    def begin(self, data, tier):
        self.write(
            tier, [self.oracle[path] for path in self.some(data, lambda record: not record.state[tier])]
        )

    @rule(data=st.data(), tier=TIERS)
    def arrive(self, data, tier):
        paths = self.some(data, lambda record: record.state[tier] == State.WRITING)
        self.finish(tier, [self.oracle[path] for path in paths])

    @rule(data=st.data(), tier=TIERS)
    def begin_read(self, data, tier):
        paths = self.some(data, lambda record: record.state[tier] == State.PRESENT)
        self.copies.read_begins(tier, array([self.oracle[path].block for path in paths]))
        for path in paths:
            self.oracle[path].readers[tier] += 1

    @rule(data=st.data(), tier=TIERS)
    def end_read(self, data, tier):
        """A copy has ended and its source stays, as after a promotion or a demotion that failed."""
        paths = self.some(data, lambda record: record.readers[tier])
        ids = array([self.oracle[path].block for path in paths])
        self.copies.read_ended(tier, ids)
        self.show(ids)
        for path in paths:
            self.oracle[path].readers[tier] -= 1

    def full_tier(self, data, tiers=tuple(Tier)):
        """A tier that has something to give up, if there is one."""
        full = [tier for tier in tiers if self.expected_victims(tier, 1)]
        return data.draw(st.sampled_from(full or tiers))

    @rule(data=st.data(), k=st.integers(0, 9))
    def peek(self, data, k):
        tier = self.full_tier(data)
        victims = self.views[tier].peek(k)
        assert victims.dtype == np.intp
        assert victims.tolist() == self.expected_victims(tier, k)
        assert self.views[tier].peek(k).tolist() == victims.tolist()

    @rule(data=st.data())
    def first(self, data):
        tier = self.full_tier(data)
        assert [self.views[tier].first()] == (self.expected_victims(tier, 1) or [NO_BLOCK])

    @rule(data=st.data(), k=st.integers(1, 4))
    def evict(self, data, k):
        tier = self.full_tier(data)
        victims = self.views[tier].peek(k)
        assert victims.tolist() == self.expected_victims(tier, k)
        self.copies.left(tier, victims)
        self.show(victims)
        blocks = {record.block: path for path, record in self.oracle.items()}
        for block in victims.tolist():
            self.oracle[blocks[block]].state[tier] = State.ABSENT
        self.forget([blocks[block] for block in victims.tolist()])

    @rule(data=st.data(), k=st.integers(1, 4))
    def demote(self, data, k):
        tier = self.full_tier(data, (Tier.DEVICE, Tier.HOST))
        below = Tier(tier + 1)
        victims = self.views[tier].peek(k)
        assert victims.tolist() == self.expected_victims(tier, k)
        records = [record for record in self.oracle.values() if record.block in victims]
        absent = [record for record in records if not record.state[below]]
        self.write(below, absent)
        self.finish(below, absent)
        self.copies.left(tier, victims)
        for record in records:
            record.state[tier] = State.ABSENT

    def forget(self, paths):
        """Remove blocks that no tier holds and nothing follows, and then those before them likewise."""
        gone = []
        for path in paths:
            while path and self.is_forgotten(path, gone):
                gone.append(path)
                path = path[:-1]
        ids = array([self.oracle[path].block for path in gone])
        self.policy.removed(ids)
        self.index.remove(ids)
        for path in gone:
            del self.oracle[path]

    def is_forgotten(self, path, gone):
        record = self.oracle[path]
        followed = any(other[:-1] == path for other in self.oracle if other not in gone)
        return not (path in gone or followed or record.leases or any(record.state.values()))

    # ---- after each step

    @invariant()
    def same(self):
        self.residency.check()
        self.index.check()
        self.policy.check()
        assert len(self.index) == len(self.oracle)

    @invariant()
    def knows_when(self):
        touched = [record for record in self.oracle.values() if record.stamp]
        times = [record.touched_s for record in touched]
        assert self.policy.touched_s(array([record.block for record in touched])).tolist() == times
        assert self.policy.oldest_s() == min(times, default=None)
        for time_s in {*times, -1.0, self.policy.now_s}:
            last = self.policy.last_stamp(time_s)
            assert all((record.stamp <= last) == (record.touched_s <= time_s) for record in touched)
        for record in self.oracle.values():
            assert self.residency.stamp[record.block] == record.stamp

    def teardown(self):
        for tier in Tier if hasattr(self, "views") else ():
            victims = self.views[tier].peek(1000)
            assert victims.tolist() == self.expected_victims(tier, 1000)
            self.views[tier].check()


@pytest.mark.parametrize("thresholds", ["as shipped", "lowered"])
def test_eviction_follows_the_definition(thresholds, monkeypatch):
    if thresholds == "lowered":  # so that short chains and short logs take the paths of the long ones
        monkeypatch.setattr(lru, "_SLICE_ENTRIES", 3)
        monkeypatch.setattr(lru, "_MAX_CHUNK", 2)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=120, stateful_step_count=50, deadline=None, derandomize=True)
    )


# ---- one fact at a time


class Chains:
    """A tree of one-token blocks, all of which a view sees until they are hidden."""

    def __init__(self, min_log_entries=1024) -> None:
        self.residency = Residency(8192)
        self.residency.state[Tier.DISK] = State.PRESENT
        self.index = RadixIndex(1, self.residency)
        self.policy = LRU(self.residency, min_log_entries=min_log_entries)
        self.eligible = Eligible(DISK_VICTIM, self.residency, SlotTable(0))
        self.view = self.policy.view(self.eligible)

    @property
    def place(self):
        """Where the view stands: head and cursor."""
        return [each[self.view.number] for each in self.view.places.cells]

    def hide(self, *blocks: int):
        """These, and no others, are being read."""
        self.residency.readers[Tier.DISK] = 0
        self.residency.readers[Tier.DISK, blocks] = 1

    def use(self, *tokens: int):
        ids = self.index.insert(np.array(tokens, dtype=np.int32))
        self.policy.touch(ids)
        return ids.tolist()

    def remove(self, *blocks: int):
        self.residency.state[Tier.DISK, blocks] = State.ABSENT
        self.policy.removed(array(blocks))
        self.index.remove(array(blocks))
        self.residency.state[Tier.DISK, blocks] = State.PRESENT  # of who gets the ids next
        self.policy.check()
        self.index.check()


def test_the_older_path_goes_first_and_from_its_end():
    chains = Chains()
    a = chains.use(1, 2, 3)
    b = chains.use(4, 5)
    assert chains.view.peek(4).tolist() == [*a[::-1], b[1]]
    chains.use(1)
    assert chains.view.peek(9).tolist() == [a[2], a[1], b[1], b[0], a[0]]


def test_a_shared_parent_outlives_its_children():
    chains = Chains()
    a = chains.use(1, 2)
    b = chains.use(1, 3)
    assert chains.view.peek(9).tolist() == [a[1], b[1], b[0]]


def test_peek_of_nothing():
    chains = Chains()
    assert chains.view.peek(3).tolist() == []
    chains.use(1)
    assert chains.view.peek(0).tolist() == []
    assert len(chains.view.peek(3)) == 1


def test_a_block_that_was_never_touched_is_not_seen():
    chains = Chains()
    ids = chains.index.insert(np.array([1, 2], dtype=np.int32))
    assert chains.view.peek(9).tolist() == []
    chains.view.rewind(ids)
    assert chains.view.peek(9).tolist() == []
    chains.remove(ids[1])
    chains.policy.touch(ids[:1])
    assert chains.view.peek(9).tolist() == ids[:1].tolist()


def test_hidden_blocks_are_seen_again_after_a_rewind_and_only_then():
    chains = Chains()
    a, b = chains.use(1, 2, 3), chains.use(4)
    chains.hide(*a)
    assert chains.view.peek(1).tolist() == b
    chains.hide(a[2])
    with pytest.raises(AssertionError, match="the view starts at"):
        chains.view.check()
    chains.view.rewind(array(a[:2]))
    assert chains.view.peek(9).tolist() == [a[1], a[0], *b]
    chains.hide()  # deeper than the cursor, within the head's entry
    chains.view.rewind(array(a[2:]))
    assert chains.view.peek(9).tolist() == [*a[::-1], *b]


def test_a_rewind_to_what_lies_ahead_keeps_the_place():
    chains = Chains()
    a, b = chains.use(1, 2, 3), chains.use(4)
    chains.hide(a[2])
    chains.view.peek(1)
    place = chains.place
    chains.view.rewind(array(b))
    never_touched = chains.index.insert(np.array([5], dtype=np.int32))
    chains.view.rewind(never_touched)
    assert chains.place == place
    chains.view.rewind(array([]))
    assert chains.view.peek(9).tolist() == [a[1], a[0], *b]


def test_a_touch_needs_no_rewind():
    chains = Chains()
    a = chains.use(1, 2)
    chains.hide(*a)
    assert chains.view.peek(1).tolist() == []
    chains.hide()
    chains.use(1, 2)
    assert chains.view.peek(9).tolist() == a[::-1]


def test_evicting_one_by_one_does_not_look_at_a_long_chain_again_and_again():
    """Blocks that keep a copy elsewhere stay in the index, and in the log."""
    chains = Chains()
    path = chains.use(*range(2000))
    for num_left in range(len(path), 0, -1):
        assert chains.view.peek(1).tolist() == path[num_left - 1 : num_left]
        chains.hide(*path[num_left - 1 :])
        assert chains.place == [1, path[num_left - 1]], "it goes on where it was"


def test_a_cursor_on_an_id_that_was_given_out_again_is_not_believed():
    chains = Chains()
    a = chains.use(1, 2, 3)
    assert chains.view.peek(1).tolist() == [a[2]]
    chains.remove(a[2])
    b = chains.use(9)
    assert b == [a[2]]
    assert chains.view.peek(9).tolist() == [a[1], a[0], b[0]]


def test_removal_hands_the_entry_to_the_parent_of_the_same_touch_only():
    chains = Chains()
    a = chains.use(1, 2, 3)
    b = chains.use(1, 4)
    chains.remove(a[2])
    assert chains.view.peek(9).tolist() == [a[1], b[1], b[0]]
    chains.remove(a[1])
    assert chains.view.peek(9).tolist() == [b[1], b[0]]
    chains.remove(b[1], b[0])
    assert chains.view.peek(9).tolist() == []


def test_many_can_be_removed_at_once_across_touches():
    chains = Chains()
    a = chains.use(1, 2, 3, 4)
    chains.use(1, 2)
    b = chains.use(1, 5, 6)
    chains.remove(a[3], b[2], a[2], b[1], a[1])
    assert chains.view.peek(9).tolist() == [a[0]]


def test_compaction_keeps_order_and_places():
    chains = Chains(min_log_entries=4)
    paths = [chains.use(10 * i, 10 * i + 1) for i in range(8)]
    chains.residency.owner[paths[7]] = 1
    other = chains.policy.view(Part(chains.eligible, Ranks(chains.residency, chains.policy, 1.0), owner=1))
    assert other.peek(1).tolist() == paths[7][1:]
    for _ in range(50):
        chains.use(0, 1)
    chains.policy.check()
    assert len(chains.policy) < 30
    assert other.peek(9).tolist() == paths[7][::-1]
    expected = [block for path in [*paths[1:], paths[0]] for block in path[::-1]]
    assert chains.view.peek(99).tolist() == expected


# ---- uses from before


def past(num_touches, min_log_entries=2):
    """Chains of which so many touches are told afterwards, a second apart, the last of them a second ago."""
    chains = Chains(min_log_entries)
    chains.policy.leave_past()
    chains.policy.recall(np.arange(-num_touches, 0, dtype=np.float64))
    return chains


def recall(chains, ids, number):
    chains.policy.recalled(ids, np.full(len(ids), number))
    chains.view.rewind(ids)
    chains.policy.check()
    chains.view.check()


def test_what_was_used_before_goes_first_whatever_was_used_since():
    chains = past(2)
    new = chains.use(9)
    later, earlier = (chains.index.insert(np.array([i, i], dtype=np.int32)) for i in (1, 2))
    assert chains.policy.num_open == 2
    recall(chains, later, 1)
    recall(chains, earlier, 0)
    assert chains.view.peek(9).tolist() == [*earlier[::-1], *later[::-1], *new]
    assert chains.policy.touched_s(earlier).tolist() == [-2.0, -2.0]
    chains.policy.forget_past()
    assert chains.policy.num_open == 0
    chains.policy.check()


@pytest.mark.parametrize("number", [0, 1])
def test_a_use_of_which_a_part_was_told_keeps_its_place_when_that_part_is_used_again(number):
    """The oldest use is no exception, of which nothing older waits: its entry dies, and more of it is to come."""
    chains = past(3)
    for told in reversed(range(number + 1, 3)):
        recall(chains, chains.index.insert(np.array([100 + told], dtype=np.int32)), told)
    path = chains.index.insert(np.array([1, 2, 3], dtype=np.int32))
    recall(chains, path[:2], number)
    for _ in range(12):  # the log is compacted
        chains.policy.touch(path[:2])
    chains.policy.check()
    recall(chains, path[2:], number)
    chains.policy.forget_past()
    chains.policy.check()
    assert chains.policy.touched_s(path).tolist() == [0.0, 0.0, number - 3.0]
    assert chains.view.peek(9).tolist()[0] == path[2]
    for _ in range(12):
        chains.policy.touch(path)
    assert len(chains.policy) <= 6, "what is dead goes once no more may come"


def test_a_touch_is_told_of_only_in_turn_and_while_the_past_is_open():
    chains = past(2)
    ids = chains.index.insert(np.array([1, 2], dtype=np.int32))
    recall(chains, ids[:1], 0)
    for number in (1, 0):
        with pytest.raises(AssertionError, match="before a later one"):
            chains.policy.recalled(ids[1:], np.array([number]))
        chains.policy.forget_past()


def test_a_path_without_its_start_is_no_use():
    chains = Chains()
    path = chains.use(1, 2)
    with pytest.raises(AssertionError, match="starts at a first block"):
        chains.policy.touch(array(path[1:]))
    chains.policy.touch(array([]))
    assert chains.policy.now == 1


def test_a_path_is_released_as_often_as_it_was_leased_or_nothing_changes():
    chains = Chains()
    path, policy, residency = array(chains.use(1, 2, 3)), chains.policy, chains.residency
    for leased in (path, path[:2]):
        policy.touch(leased, leases=+1)
    policy.touch(path, leases=-1)
    before = policy.now, len(policy), residency.stamp[path].tolist()
    with pytest.raises(AssertionError, match="as often"):
        policy.touch(path, leases=-1)
    assert (policy.now, len(policy), residency.stamp[path].tolist()) == before
    assert residency.leases[path].tolist() == [1, 1, 0]


def test_many_entries_and_long_chains_come_in_order():
    """Long enough for every slice; ids in a row and not."""
    chains = Chains()
    expected = []
    for i in range(1500):
        expected += chains.use(i, -1 - i)[::-1]
    for length in (31, 32, 33, 34, 290, 700):
        head = chains.use(*[10_000 + length] * (length // 2))
        tail = chains.use(*[10_000 + length] * length)
        assert tail[: len(head)] == head
        expected += tail[::-1]
    assert chains.view.peek(10**6).tolist() == expected
    for k in (1, 7, 100, 2000):
        assert chains.policy.view(chains.eligible).peek(k).tolist() == expected[:k]


@pytest.mark.parametrize(
    "damage",
    [
        lambda policy, a: policy._deepest.__setitem__(0, a[0]),
        lambda policy, a: policy._deepest.__setitem__(0, NO_BLOCK),
        lambda policy, a: setattr(policy, "_times", policy._times.copy()),
        lambda policy, a: setattr(policy, "_deepest_cells", policy._deepest.copy().data),
        lambda policy, a: policy._stamps.__setitem__(0, 5),
        lambda policy, a: policy._stamps.__setitem__(1, 5),
        lambda policy, a: policy._residency.stamp.__setitem__(a[1], 2),
    ],
)
def test_check_sees_damage(damage):
    chains = Chains()
    a = chains.use(1, 2, 3)
    chains.use(4)
    chains.policy.check()
    damage(chains.policy, a)
    with pytest.raises(AssertionError):
        chains.policy.check()
