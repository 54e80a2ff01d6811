"""The keys of written blocks are those that their tokens give, from the root on, whatever was known before.

The model compares each key that a write is given, or computes, with the one that all tokens of the prefix give.
"""

import random

import numpy as np
import pytest

from kvstore.block import chain_key
from tests.tiering.memory_model import DIED, ROOT_KEY, MemoryModel
from tests.tiering.small_tiers import BLOCK_TOKENS, config, model, on_disk, prompt
from tiering.moves import Write
from tiering.residency import NO_BLOCK, Tier


def key(*names: int):
    above = ROOT_KEY
    for name in names:
        above = chain_key(above, np.full(BLOCK_TOKENS, name, dtype="<i4").tobytes())
    return above


def down(tiers, *names: int):
    """Have these computed, and write whatever is not on disk."""
    tiers.run(prompt(*names))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    tiers.check()


def test_a_first_block_follows_the_root_when_all_ids_are_given_out_and_the_last_one_has_a_key():
    """NO_BLOCK, as a place in a column, is that of the last id."""
    tiers = model(device=3, host=3, disk=5)
    residency = tiers.index._holdings.residency
    for name in range(1, 7):
        on_disk(tiers, name)
    assert residency.key_of(NO_BLOCK) == key(6)
    on_disk(tiers, 7)  # has the id of 1, which has left the disk
    assert residency.key_of(NO_BLOCK) == key(6)
    assert key(7) in tiers.disk


def test_a_block_that_has_a_key_is_written_again_under_the_same():
    tiers = model(device=5, host=4, disk=9)
    tiers.run(prompt(1, 2, 3))
    tiers.index.sweep(Tier.DISK, then_free=False)
    failed = 0
    while not failed:
        tiers.plan()
        for number in tiers.completable():
            failed += isinstance(tiers.flights[number].move, Write)
            tiers.complete(number, error=DIED if isinstance(tiers.flights[number].move, Write) else None)
    assert tiers.index._holdings.residency.has_key.any()
    assert not tiers.disk
    tiers.settle()
    down(tiers, 1, 2, 3)
    assert {key(1), key(1, 2), key(1, 2, 3)} <= tiers.disk.keys()


def test_what_follows_a_block_with_a_key_and_what_branches_off_in_the_middle_of_a_node():
    tiers = model(device=9, host=12, disk=20)
    down(tiers, 1, 2, 3)
    down(tiers, 1, 2, 3, 4, 5)  # below keys
    down(tiers, 1, 2, 6, 7)  # splits what has keys
    tiers.run(prompt(1, 8, 9))  # a split of what has keys, written with a split of what has none
    down(tiers, 1, 8, 10)
    down(tiers, 11)
    paths = [(1, 2, 3, 4, 5), (1, 2, 6, 7), (1, 8, 9), (1, 8, 10), (11,)]
    assert set(tiers.disk) == {key(*path[:end]) for path in paths for end in range(1, len(path) + 1)}


def test_children_are_written_before_their_parents():
    """A block a write, the least recently used first, and the deepest of a path: its key takes those of all above."""
    tiers = model(device=4, host=8, disk=12, write_batch_share=0.01)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(4, 5, 6))
    tiers.run(prompt(7, 8, 9))
    tiers.settle()
    writes = tiers.moves(Write)
    assert writes
    assert any(len(write.unkeyed) > len(write.ids) for write in writes)
    assert all(write.ids.tolist() == write.unkeyed[-1:].tolist() for write in writes if len(write.ids) == 1)
    down(tiers, 1, 2, 3)
    assert {key(1), key(1, 2), key(1, 2, 3)} <= tiers.disk.keys()


@pytest.mark.parametrize("seed", range(2))
def test_keys_stay_right_through_splits_moves_failures_and_restarts(seed):
    rng = random.Random(seed)
    tiers = model(device=6, host=5, disk=14)
    num_written = 0
    for _ in range(40):
        tiers.run(prompt(*(rng.randrange(1, 4) for _ in range(rng.randrange(1, 5)))))
        if rng.random() < 0.4:
            tiers.index.sweep(Tier.DISK, then_free=rng.random() < 0.5)
        for _ in range(rng.randrange(6)):
            tiers.plan()
            if tiers.flights:
                number = rng.choice(tiers.completable())
                tiers.complete(number, error=DIED if rng.random() < 0.2 else None)
        tiers.settle(rng.choice)
        tiers.check()
        num_written += len(tiers.moves(Write))
        tiers.asked.clear()
        if rng.random() < 0.1:
            tiers = MemoryModel(config(6, 5, 14), disk=tiers.disk)
    assert num_written > 10
