"""No order of compute and copies that streams and events allow shows anybody a wrong byte: thousands of them, by seed.

`tools/mutate_ordering.py` removes each wait from the mover and sees these tests fail. docs/ordering.md has the hazards.
"""

import random
from collections import Counter

import pytest
from hypothesis import settings

from tests.tiering.cache_walk import CacheWalk
from tests.tiering.histories import Histories
from tests.tiering.mover_walk import MoverWalk

WALKS = 50


def walk(kind, seed, num_actions):
    """One history. Its seed is in the message if it goes wrong."""
    lives = kind(random.Random(seed).choice)
    try:
        for _ in range(num_actions):
            lives.act()
        return lives.end()
    except BaseException as error:
        error.add_note(f"{kind.__name__} {seed}")
        raise


def walks(kind, first, num_actions):
    return sum((walk(kind, seed, num_actions) for seed in range(first, first + WALKS)), Counter())


@pytest.mark.parametrize("first", range(0, 40 * WALKS, WALKS))
def test_slots_from_owner_to_owner(first):
    """The mover alone, every slot with its next owner at once."""
    counts = walks(MoverWalk, first, 60)
    assert counts["looks"] > 20 * WALKS, "bytes were looked at"
    assert counts["transfers"] > 5 * WALKS, "and moved"
    assert counts["failed"] > WALKS // 10, "not always well"


@pytest.mark.parametrize("first", range(0, 4 * WALKS, WALKS))
def test_blocks_from_computing_to_restart(first):
    """The real cache, with an engine that enqueues ahead, and stores and copies that fail."""
    counts = walks(CacheWalk, first, 200)
    assert counts["steps"] > 10 * WALKS
    for event in ("computed ahead", "failed copies", "restarts", "promoted", "demoted", "read", "written"):
        assert counts[event] > WALKS // 10, event
    assert counts["preempted"] > WALKS
    assert counts["swapped in"] > 0


class MoverHistories(Histories):
    kind = MoverWalk


class CacheHistories(Histories):
    kind = CacheWalk


TestMover = MoverHistories.TestCase
TestMover.settings = settings(max_examples=60, stateful_step_count=30)
TestCache = CacheHistories.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=40)
