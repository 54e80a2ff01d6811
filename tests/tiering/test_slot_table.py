"""Slots have one owner at a time, and none is lost: against a dict of slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tiering.loops.states import FRESH, STACKED
from tiering.slot_table import SlotState, SlotTable

USED_STATES = [SlotState.PRIVATE, SlotState.INDEXED, SlotState.IN_FLIGHT]
USED = st.sampled_from(USED_STATES)


def slots(*numbers: int):
    return np.array(numbers, dtype=np.intp)


class Machine(RuleBasedStateMachine):
    @initialize(num_slots=st.integers(0, 12))
    def make(self, num_slots):
        self.table = SlotTable(num_slots)
        self.oracle = dict.fromkeys(range(num_slots), SlotState.FREE)

    def some(self, data, state):
        there = [slot for slot, found in self.oracle.items() if found == state]
        chosen = data.draw(st.lists(st.sampled_from(there), unique=True) if there else st.just([]))
        return slots(*chosen)

    @rule(n=st.integers(0, 8), state=USED)
    def take(self, n, state):
        num_free = list(self.oracle.values()).count(SlotState.FREE)
        taken = self.table.take(n, state)
        if n > num_free:
            assert taken is None
            return
        assert taken.dtype == np.intp
        assert len(set(taken.tolist())) == len(taken) == n
        assert all(self.oracle[slot] == SlotState.FREE for slot in taken.tolist())
        self.oracle.update(dict.fromkeys(taken.tolist(), state))

    @rule(data=st.data(), states=st.permutations(USED_STATES))
    def turn(self, data, states):
        from_state, to_state, _ = states
        chosen = self.some(data, from_state)
        self.table.turn(chosen, from_state, to_state)
        self.oracle.update(dict.fromkeys(chosen.tolist(), to_state))

    @rule(data=st.data(), state=USED, singly=st.booleans())
    def free(self, data, state, singly):
        chosen = self.some(data, state)
        if singly:
            for slot in chosen.tolist():
                self.table.free_one(slot, state)
        else:
            self.table.free(chosen, state)
        self.oracle.update(dict.fromkeys(chosen.tolist(), SlotState.FREE))

    @rule(more=st.integers(0, 5))
    def grow(self, more):
        num_slots = len(self.oracle) + more
        self.table.grow(num_slots)
        self.oracle.update(dict.fromkeys(range(num_slots - more, num_slots), SlotState.FREE))

    @rule(n=st.integers(-1, 8))
    def retire(self, n):
        before = list(self.oracle.values()).count(SlotState.FREE)
        assert self.table.retire(n) == max(0, min(n, before))
        self.follow(SlotState.FREE, SlotState.RETIRED)

    @rule(n=st.integers(-1, 8))
    def restore(self, n):
        before = list(self.oracle.values()).count(SlotState.RETIRED)
        assert self.table.restore(n) == max(0, min(n, before))
        self.follow(SlotState.RETIRED, SlotState.FREE)

    def follow(self, from_state, to_state):
        """Which of the slots it is is the table's choice."""
        states = self.table.states(np.arange(len(self.oracle))).tolist()
        changed = {slot: state for slot, state in enumerate(states) if state != self.oracle[slot]}
        assert all((self.oracle[slot], state) == (from_state, to_state) for slot, state in changed.items())
        self.oracle.update((slot, SlotState(state)) for slot, state in changed.items())

    @invariant()
    def same(self):
        self.table.check()
        assert self.table.states(np.arange(len(self.oracle))).tolist() == list(self.oracle.values())
        assert self.table.num_slots == len(self.oracle)
        assert self.table.num_free == self.table.count(SlotState.FREE)
        assert self.table.num_usable == len(self.oracle) - self.table.count(SlotState.RETIRED)
        for state in SlotState:
            assert self.table.count(state) == list(self.oracle.values()).count(state)


def test_slots_follow_a_dict():
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
    )


def test_a_fresh_table_gives_the_lowest_slots_in_a_row():
    table = SlotTable(5)
    assert table.take(3, SlotState.PRIVATE).tolist() == [0, 1, 2]
    assert table.take(2, SlotState.PRIVATE).tolist() == [3, 4]


def test_new_slots_go_after_those_that_are_free():
    table = SlotTable(2)
    table.grow(4)
    assert table.take(4, SlotState.PRIVATE).tolist() == [0, 1, 2, 3]


def test_retired_slots_are_those_that_would_be_given_out_last_and_come_back_behind_the_others():
    table = SlotTable(4)
    assert table.retire(2) == 2
    assert table.take(2, SlotState.PRIVATE).tolist() == [0, 1]
    assert table.take(1, SlotState.PRIVATE) is None
    table.free(slots(0), SlotState.PRIVATE)
    assert table.restore(5) == 2
    assert table.take(3, SlotState.PRIVATE).tolist() == [0, 2, 3]


def test_the_slots_freed_last_come_back_first_and_in_their_order():
    table = SlotTable(8)
    table.take(8, SlotState.PRIVATE)
    table.free(slots(6), SlotState.PRIVATE)
    table.free(slots(1, 2, 3), SlotState.PRIVATE)
    assert table.take(3, SlotState.INDEXED).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda table: table.take(1, SlotState.FREE),
        lambda table: table.turn(slots(0), SlotState.INDEXED, SlotState.PRIVATE),
        lambda table: table.turn(slots(0, 3), SlotState.PRIVATE, SlotState.INDEXED),
        lambda table: table.turn(slots(0), SlotState.PRIVATE, SlotState.FREE),
        lambda table: table.turn(slots(3), SlotState.FREE, SlotState.PRIVATE),
        lambda table: table.turn(slots(0, 1, 0), SlotState.PRIVATE, SlotState.INDEXED),
        lambda table: table.free(slots(1, 1), SlotState.PRIVATE),
        lambda table: table.free(slots(3), SlotState.PRIVATE),
        lambda table: table.free(slots(3), SlotState.FREE),
        lambda table: table.free(slots(0), SlotState.IN_FLIGHT),
        lambda table: table.free_one(0, SlotState.IN_FLIGHT),
        lambda table: table.free_one(3, SlotState.FREE),
        lambda table: table.free(slots(0), SlotState.RETIRED),
        lambda table: table.take(1, SlotState.RETIRED),
        lambda table: table.turn(slots(0), SlotState.PRIVATE, SlotState.RETIRED),
        lambda table: table.grow(3),
    ],
)
def test_misuse_is_refused_before_anything_changes(misuse):
    table = SlotTable(4)
    table.take(2, SlotState.PRIVATE)
    with pytest.raises(AssertionError):
        misuse(table)
    table.check()
    assert table.states(np.arange(4)).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("slot", [4, 1 << 40, -1])
def test_a_slot_that_there_is_not_is_refused(slot):
    table = SlotTable(4)
    table.take(4, SlotState.PRIVATE)
    for misuse in (table.free, lambda *args: table.turn(*args, SlotState.INDEXED)):
        with pytest.raises(AssertionError, match="there are 4 slots"):
            misuse(slots(0, slot), SlotState.PRIVATE)
        table.check()
        assert table.states(np.arange(4)).tolist() == [SlotState.PRIVATE] * 4


@pytest.mark.parametrize("num_slots", [2, 300, 65_535, 65_536, 70_000])
def test_a_duplicate_is_found_among_many(num_slots):
    table = SlotTable(num_slots)
    taken = table.take(num_slots, SlotState.PRIVATE)
    twice = taken.copy()
    twice[-1] = twice[0]
    with pytest.raises(AssertionError, match="named twice"):
        table.turn(twice, SlotState.PRIVATE, SlotState.INDEXED)
    assert (table.states(taken) == SlotState.PRIVATE).all()
    table.free(taken, SlotState.PRIVATE)
    table.check()


@given(slots=st.lists(st.integers(0, 699), min_size=1, max_size=600))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_slots_in_any_order_are_taken_for_distinct_if_a_set_says_so(slots):
    table = SlotTable(700)
    table.take(700, SlotState.PRIVATE)
    try:
        table.turn(np.array(slots, dtype=np.intp), SlotState.PRIVATE, SlotState.INDEXED)
    except AssertionError:
        assert len(set(slots)) < len(slots)
    else:
        assert len(set(slots)) == len(slots)
    table.check()


def test_slots_that_were_never_used_are_not_written_down():
    """What is free for a start takes no memory: only what was freed is listed."""
    table = SlotTable(1000)
    table.free(table.take(10, SlotState.PRIVATE), SlotState.PRIVATE)
    assert table.take(20, SlotState.PRIVATE).tolist() == list(range(20))
    assert not table._free[10:].any()


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="-1"):
        SlotTable(-1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table._states.__setitem__(0, SlotState.INDEXED),
        lambda table: table._free.__setitem__(0, table._free[1]),
        lambda table: table._free.__setitem__(0, 0),
        lambda table: table._counts.__setitem__(0, 5),
        lambda table: table.counts.__setitem__(STACKED, 1),
        lambda table: table.counts.__setitem__(FRESH, 2),
    ],
)
def test_check_sees_damage(damage):
    table = SlotTable(5)
    table.take(3, SlotState.PRIVATE)
    table.free(slots(1, 2), SlotState.PRIVATE)
    table.check()
    damage(table)
    with pytest.raises(AssertionError):
        table.check()
