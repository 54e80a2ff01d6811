"""Copies change in one pass over the blocks: as the same says in Python, one fact after the other, or not at all."""

from collections import Counter

import numpy as np
import pytest

from kvstore.store import OWNER_BYTES
from tests.tiering.plain_copies import PlainCopies
from tiering import rules
from tiering.audience import Audiences
from tiering.eligible import Eligible
from tiering.owners import NOBODY
from tiering.policies.lru import LRU
from tiering.radix import RadixIndex
from tiering.residency import Residency, State, Tier
from tiering.slot_table import SlotState

ABSENT, WRITING, PRESENT = State
NUM_BLOCKS = 12
NUM_SLOTS = 20
CHANGES = ("expect", "arrived", "left", "failed", "read_begins", "read_ended")
_TABLES = (Tier.DEVICE, Tier.HOST)


def said(copies):
    """All that changes; what lies above a stack, and the place of what is nowhere, count for nothing."""
    residency, (device, host) = copies.residency, copies.slots
    tables = []
    for table in (device, host):
        states, free, counts = table.columns
        stacked = counts.item(5)
        tables.append((states.tolist(), free[:stacked].tolist(), counts.tolist()))
    states, places = residency.state.tolist(), residency.place.tolist()
    places = [
        [place if state else None for state, place in zip(*rows, strict=True)]
        for rows in zip(states, places, strict=True)
    ]
    tally = copies.disk_bytes, copies.num_disk_blocks, copies.num_dirty_host
    others = residency.told.tolist(), residency.computing.tolist()
    return states, places, residency.readers.tolist(), others, tables, tally


class Plain:
    """What `said` says, changed block by block."""

    def __init__(self, copies) -> None:
        self.states, self.places, self.readers, (self.told, self.computing), self.tables, _ = said(copies)
        self.is_right = True

    def change(self, name, tier, ids, more):
        old, new = {
            "expect": (ABSENT, WRITING),
            "arrived": (WRITING, PRESENT),
            "left": (PRESENT, ABSENT),
            "failed": (WRITING, ABSENT),
            "read_begins": (PRESENT, PRESENT),
            "read_ended": (PRESENT, PRESENT),
        }[name]
        state, place, readers = self.states[tier], self.places[tier], self.readers[tier]
        repeats = max(Counter(ids).values(), default=0) > 1
        for at, block in enumerate(ids):
            wrong = state[block] != old or (name in ("left", "failed") and readers[block])
            if wrong or (name == "read_ended" and not readers[block]):
                self.is_right = False
                return
            if name.startswith("read"):
                readers[block] += 1 if name == "read_begins" else -1
                continue
            if old != ABSENT and tier in _TABLES:
                self._turn(tier, place[block], old, new)
            state[block] = int(new)
            if name == "expect" or (name == "arrived" and tier is Tier.DISK):
                place[block] = more[at]
            if name == "arrived" and tier is Tier.DISK:
                self.told[block] = 0
            if name == "arrived" and tier is Tier.DEVICE:
                self.computing[block] = False
            if new is ABSENT:
                place[block] = None
        self.is_right &= not repeats or name.startswith("read")
        if new is ABSENT and tier in _TABLES:
            _, stack, counts = self.tables[tier]
            counts[5] = len(stack)

    def _turn(self, tier, slot, old, new):
        slots, stack, counts = self.tables[tier]
        old_slot = SlotState.INDEXED if old is PRESENT else SlotState.IN_FLIGHT
        new_slot = SlotState.INDEXED if new is PRESENT else SlotState.FREE
        slots[slot] = int(new_slot)
        counts[old_slot] -= 1
        counts[new_slot] += 1
        if new is ABSENT:
            stack.append(slot)

    def said(self, freed):
        """`freed`: how many slots went onto a stack: the first of them is to be on top."""
        for tier, num in freed.items():
            stack = self.tables[tier][1]
            stack[len(stack) - num :] = stack[len(stack) - num :][::-1]
        on_disk = self.states[Tier.DISK]
        host = self.states[Tier.HOST]
        num_bytes = sum(place for place in self.places[Tier.DISK] if place is not None)
        dirty = sum(up == PRESENT != down for up, down in zip(host, on_disk, strict=True))
        tally = num_bytes, on_disk.count(PRESENT), dirty
        others = self.told, self.computing
        return self.states, self.places, self.readers, others, self.tables, tally


def in_any_state(rng, order=None, residency=None):
    """Some copies are on their way, some whole, some of those read, in each tier; of nobody's blocks, and of two owners'."""
    residency = Residency(NUM_BLOCKS) if residency is None else residency
    copies = PlainCopies(residency, order, NUM_SLOTS)
    ids = np.arange(NUM_BLOCKS) if len(residency) else residency.allocate(NUM_BLOCKS)
    numbers = [copies.owners.number(bytes([each])) for each in (1, 2)]
    residency.owner[ids] = rng.choice([0, *numbers], NUM_BLOCKS)
    residency.told[ids] = 7
    residency.computing[ids] = rng.random(NUM_BLOCKS) < 0.5
    for tier in Tier:
        begun = rng.permutation(ids[rng.random(NUM_BLOCKS) < 0.7])
        copies.begin(tier, begun, 3)
        whole = begun[rng.random(len(begun)) < 0.7]
        copies.finish(tier, whole)
        copies.read_begins(tier, whole[rng.random(len(whole)) < 0.2])
        copies.left(tier, rng.permutation(whole[residency.readers[tier][whole] == 0])[:2])
    return copies


def what_changes(rng, copies, name, tier):
    """Blocks, mostly such as may change in this way, else with one that may not or is named twice; and places or sizes."""
    residency = copies.residency
    state, readers = residency.state[tier][:NUM_BLOCKS], residency.readers[tier][:NUM_BLOCKS]
    right = {
        "expect": state == ABSENT,
        "arrived": state == WRITING,
        "left": (state == PRESENT) & (readers == 0),
        "failed": state == WRITING,
        "read_begins": state == PRESENT,
        "read_ended": readers > 0,
    }[name]
    ids = rng.permutation(np.flatnonzero(right))[: rng.integers(NUM_BLOCKS)]
    kind = rng.integers(4)
    if kind == 0:
        ids = np.append(ids, rng.permutation(np.flatnonzero(~right))[:1])
    elif kind == 1 and len(ids):  # who reads twice has begun twice
        ids = np.append(ids, ids[:1])
    more = ()
    if name == "expect":
        slots = None if tier is Tier.DISK else copies.slots[tier].take(len(ids), SlotState.IN_FLIGHT)
        more = (rng.integers(1, 9, len(ids)) if slots is None else slots,)
    elif name == "arrived" and tier is Tier.DISK:
        more = (rng.integers(1, 9, len(ids)),)
    return ids, more


@pytest.mark.parametrize("name", CHANGES)
def test_one_pass_says_what_blocks_one_by_one_would_or_nothing(name):
    rng, num_refused = np.random.default_rng(11), 0
    for round_ in range(90):
        tier, copies = Tier(round_ % 3), in_any_state(rng)
        ids, more = what_changes(rng, copies, name, tier)
        before, plain = said(copies), Plain(copies)
        plain.change(name, tier, ids.tolist(), more[0].tolist() if more else ())
        if plain.is_right:
            getattr(copies, name)(tier, ids, *more)
            freed = {tier: len(ids)} if name in ("left", "failed") and tier in _TABLES else {}
            assert said(copies) == plain.said(freed)
            if name != "expect" or tier is Tier.DISK:
                copies.check()
        else:
            num_refused += 1
            with pytest.raises(AssertionError):
                getattr(copies, name)(tier, ids, *more)
            assert said(copies) == before
        copies.shares.check()
    assert 5 < num_refused < 70


@pytest.mark.parametrize("name", CHANGES)
def test_owners_have_what_their_copies_take_also_where_a_change_is_refused(name):
    rng, num_refused = np.random.default_rng(7), 0
    for round_ in range(60):
        tier, copies = Tier(round_ % 3), in_any_state(rng)
        numbers = [copies.owners.number(bytes([which]) * OWNER_BYTES) for which in (1, 2)]
        residency, shares = copies.residency, copies.shares
        is_dirty = (residency.state[Tier.HOST] == PRESENT) & (residency.state[Tier.DISK] != PRESENT)
        for sign in (-1, +1):
            for each in Tier:
                shares.change_use(each, np.flatnonzero(residency.state[each]), sign)
            shares.change_dirty(np.flatnonzero(is_dirty), sign)
            if sign < 0:
                residency.owner[:NUM_BLOCKS] = rng.choice([NOBODY, *numbers], NUM_BLOCKS)
        shares.check()
        ids, more = what_changes(rng, copies, name, tier)
        try:
            getattr(copies, name)(tier, ids, *more)
        except AssertionError:
            num_refused += 1
        shares.check()
    assert 3 < num_refused < 50


def test_each_copy_has_a_place_and_on_disk_a_size():
    residency = Residency(4)
    copies, ids = PlainCopies(residency), residency.allocate(2)
    for change in (copies.expect, copies.arrived):
        before = said(copies)
        for wrong in ([4], [4, 5, 6]):
            with pytest.raises(AssertionError):
                change(Tier.DISK, ids, np.array(wrong))
            assert said(copies) == before
        change(Tier.DISK, ids, np.array([4, 5]))
    assert copies.disk_bytes == 9


def test_a_slot_that_is_somebody_elses_is_refused():
    for change in (
        lambda copies, slot: copies.slots[Tier.HOST].turn(slot, SlotState.IN_FLIGHT, SlotState.PRIVATE),
        lambda copies, slot: copies.slots[Tier.HOST].free(slot, SlotState.IN_FLIGHT),
        lambda copies, _: copies.residency.place.fill(NUM_SLOTS),
        lambda copies, _: copies.residency.place.fill(-1),
    ):
        residency = Residency(4)
        copies, ids = PlainCopies(residency, num_slots=NUM_SLOTS), residency.allocate(3)
        slots = copies.begin(Tier.HOST, ids)
        change(copies, slots[2:])
        before = said(copies)
        for end in (copies.arrived, copies.failed):
            with pytest.raises(AssertionError, match="slot"):
                end(Tier.HOST, ids)
            assert said(copies) == before


@pytest.mark.parametrize("name", CHANGES)
def test_who_is_to_see_a_block_again_looks_where_it_would_if_it_were_told_afterwards(name):
    rng, num_set_back = np.random.default_rng(4), 0
    numbers = (rules.DEVICE_VICTIM, rules.HOST_CLEAN, rules.HOST_DIRTY, rules.HOST_VICTIM, rules.DISK_VICTIM)
    for round_ in range(60):
        tier, residency = Tier(round_ % 3), Residency(NUM_BLOCKS)
        index, order = RadixIndex(1, residency), LRU(residency)
        for start in range(0, NUM_BLOCKS, 3):
            order.touch(index.insert(np.arange(start, start + 3, dtype=np.int32)))
        copies = in_any_state(rng, order, residency)
        told, by_hand = (
            [order.view(Eligible(number, residency, copies.slots[Tier.HOST])) for number in numbers]
            for _ in range(2)
        )
        everybody = (tuple(told),) * 3
        copies._see = Audiences(begun=everybody, whole=everybody, gone=everybody, unread=everybody)
        before = [(view.first(), each.first()) for view, each in zip(told, by_hand, strict=True)]
        ids, more = what_changes(rng, copies, name, tier)
        try:
            getattr(copies, name)(tier, ids, *more)
        except AssertionError:
            assert [(view.first(), each.first()) for view, each in zip(told, by_hand, strict=True)] == before
            continue
        if name != "read_begins":  # nobody may go because somebody reads
            for view in by_hand:
                view.rewind(ids)
        heads, cursors, _ = order.places.columns
        num_set_back += int((cursors[[view.number for view in told]] == -1).any())
        for view, each in zip(told, by_hand, strict=True):
            assert (heads[view.number], cursors[view.number]) == (heads[each.number], cursors[each.number])
    assert name in ("read_begins", "expect") or num_set_back > 5


def test_what_is_going_to_be_computed_is_looked_for_again_and_what_is_not_is_not():
    residency = Residency(NUM_BLOCKS)
    index, order = RadixIndex(1, residency), LRU(residency)
    ids = index.insert(np.arange(4, dtype=np.int32))
    order.touch(ids)
    copies = PlainCopies(residency, order, NUM_SLOTS)
    copies.begin(Tier.HOST, ids)
    copies.finish(Tier.HOST, ids)
    view = order.view(Eligible(rules.HOST_CLEAN, residency, copies.slots[Tier.HOST]))
    copies._see = Audiences(begun=((view,), (), ()))
    assert view.first() == -1, "host memory alone has them"
    copies.will_compute(ids[1:3])
    assert residency.computing[ids].tolist() == [False, True, True, False]
    assert view.peek(9).tolist() == [ids[2], ids[1]]
    copies.wont_compute(ids[1:2])
    assert residency.computing[ids].tolist() == [False, False, True, False]
    view.check()
