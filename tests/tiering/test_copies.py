"""A copy and its slot, changed in one pass: as the residency and the table change them one after the other, or not at all."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from tiering.copies import Copies
from tiering.residency import Residency, State, Tier
from tiering.slot_table import SlotState, SlotTable

NUM_BLOCKS = 12
NUM_SLOTS = 20


@dataclass
class Memory:
    """A tier's columns and slots: some copies are on their way, some whole, some of those read or on disk as well."""

    residency: Residency
    table: SlotTable
    tier: Tier

    def said(self):
        """All that changes."""
        residency, table = self.residency, self.table
        free, num_stacked = table.stack
        # what lies above the stack counts for nothing
        stack = free[:num_stacked].tolist()
        counts = [table.count(state) for state in SlotState]
        return residency.state.tolist(), residency.place.tolist(), table.column.tolist(), stack, counts

    def plainly_arrived(self, ids):
        self.residency.finish_write(self.tier, ids)
        self.table.turn(self.residency.place[self.tier][ids], SlotState.IN_FLIGHT, SlotState.INDEXED)
        return self._num_on_disk(ids)

    def plainly_left(self, ids, state):
        old = SlotState.INDEXED if state == State.PRESENT else SlotState.IN_FLIGHT
        self.residency.drop(self.tier, ids, state)
        self.table.free(self.residency.place[self.tier][ids], old)
        return self._num_on_disk(ids)

    def _num_on_disk(self, ids):
        return np.count_nonzero(self.residency.state[Tier.DISK][ids] == State.PRESENT)


def memory(seed):
    """The same for the same seed."""
    rng = np.random.default_rng(seed)
    residency, table = Residency(16), SlotTable(NUM_SLOTS)
    tier = Tier(int(rng.integers(2)))
    ids = residency.allocate(NUM_BLOCKS)
    slots = table.take(NUM_SLOTS - 2, SlotState.IN_FLIGHT)
    table.free(rng.permutation(slots)[: int(rng.integers(5))], SlotState.IN_FLIGHT)
    taken = np.flatnonzero(table.states(np.arange(NUM_SLOTS)) == SlotState.IN_FLIGHT)
    residency.begin_write(tier, ids, rng.permutation(taken)[:NUM_BLOCKS])
    made = Memory(residency, table, tier)
    made.plainly_arrived(ids[rng.random(NUM_BLOCKS) < 0.5])
    whole = ids[residency.state[tier][ids] == State.PRESENT]
    residency.add_readers(tier, whole[rng.random(len(whole)) < 0.2])
    stored = ids[rng.random(NUM_BLOCKS) < 0.5]
    residency.begin_write(Tier.DISK, stored, 0)
    residency.finish_write(Tier.DISK, stored)
    return made


def some_ids(seed, made, state) -> Iterator[np.ndarray]:
    """Blocks that are in this state and not read, in any order; with one that is not, or that is there twice; all or none."""
    rng, residency = np.random.default_rng(seed), made.residency
    states, readers = residency.state[made.tier][:NUM_BLOCKS], residency.readers[made.tier][:NUM_BLOCKS]
    right = rng.permutation(np.flatnonzero((states == state) & (readers == 0)))
    wrong = rng.permutation(np.flatnonzero((states != state) | (readers > 0)))
    yield right
    yield right[: len(right) // 2][::-1]
    yield right[:0]
    for more in (wrong[:1], right[:1]):
        yield np.concatenate([right, more])


@pytest.mark.parametrize("state", [State.WRITING, State.PRESENT])
@pytest.mark.parametrize("ends", ["arrived", "left"])
def test_one_pass_changes_what_two_would_or_nothing(ends, state):
    num_refused = 0
    for seed in range(25):
        for ids in some_ids(seed, memory(seed), state):
            plain, made = memory(seed), memory(seed)
            copies = Copies(made.tier, made.residency, made.table, Tier.DISK)
            before = made.said()
            arguments = (ids,) if ends == "arrived" else (ids, int(state))
            try:
                found = getattr(copies, ends)(*arguments)
            except AssertionError:
                num_refused += 1
                assert made.said() == before
                with pytest.raises(AssertionError):
                    getattr(plain, f"plainly_{ends}")(*arguments)
            else:
                assert found == getattr(plain, f"plainly_{ends}")(*arguments)
                assert made.said() == plain.said()
                made.table.check()
    assert num_refused > 12


def test_a_slot_that_is_somebody_elses_is_refused():
    for change in (
        lambda made, slot: made.table.turn(slot, SlotState.IN_FLIGHT, SlotState.PRIVATE),
        lambda made, slot: made.table.free(slot, SlotState.IN_FLIGHT),
        lambda made, _: made.residency.place.fill(NUM_SLOTS),
        lambda made, _: made.residency.place.fill(-1),
    ):
        residency, table = Residency(4), SlotTable(NUM_SLOTS)
        ids, slots = residency.allocate(3), table.take(3, SlotState.IN_FLIGHT)
        residency.begin_write(Tier.HOST, ids, slots)
        made = Memory(residency, table, Tier.HOST)
        change(made, slots[2:])
        copies, before = Copies(Tier.HOST, residency, table, Tier.DISK), made.said()
        for end in (partial(copies.arrived, ids), partial(copies.left, ids, 1)):
            with pytest.raises(AssertionError, match="slot"):
                end()
            assert made.said() == before
