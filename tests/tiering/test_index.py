"""The core serves the right bytes whatever ends when, and in whatever way; nothing leaks and nothing hangs."""

import random

import pytest
from hypothesis import settings

from tests.tiering.histories import Histories
from tests.tiering.traffic import Traffic


class IndexHistories(Histories):
    kind = Traffic


TestIndex = IndexHistories.TestCase
TestIndex.settings = settings(stateful_step_count=40)


# the last two: what is rejected in host memory while another computes it; an end of a path that is in two tiers
@pytest.mark.parametrize("seed", [*range(100), 251, 1204])
def test_long_histories(seed):
    """What it takes many steps to get to: tiers that are full, holes, requests that are preempted."""
    traffic = Traffic(random.Random(seed).choice)
    for _ in range(300):
        traffic.act()
    traffic.end()
