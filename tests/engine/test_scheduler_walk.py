"""Whatever moves do, each request gets what it would have got alone, from KV that is what it must be wherever it lies."""

import os

import pytest
from hypothesis import settings

from tests.engine.scheduler_walk import SchedulerWalk, walk
from tests.tiering.histories import Histories

NUM_SEEDS = int(os.environ.get("KVTIDE_SCHEDULER_SEEDS", "6"))


class SchedulerHistories(Histories):
    kind = SchedulerWalk


TestScheduler = SchedulerHistories.TestCase
TestScheduler.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_long_histories(seed):
    """Dozens of requests each, more than a few slots can hold, over a disk that fails and hangs."""
    walk(seed, 200)
