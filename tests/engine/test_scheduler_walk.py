"""Whatever moves do, each request gets what it would have got alone, from KV that is what it must be wherever it lies."""

import os
from collections import Counter

from hypothesis import settings

from tests.engine.scheduler_walk import SchedulerWalk, walk
from tests.tiering.histories import Histories

NUM_SEEDS = int(os.environ.get("KVTIDE_SCHEDULER_SEEDS", "20"))
PLACES = (
    *("decoded", "prefilled", "looked ahead", "cut", "gaps before what is there"),
    *("early", "void"),
    *("stashes back", "stashes lost on the way out", "stashes lost on the way in"),
    *("stop", "length", "cancelled", "error"),
)


class SchedulerHistories(Histories):
    kind = SchedulerWalk


TestScheduler = SchedulerHistories.TestCase
TestScheduler.settings = settings(stateful_step_count=40)


def test_long_histories_get_everywhere():
    """Dozens of requests each, more than a few slots can hold, over a disk that fails and hangs."""
    counts = sum((walk(seed, 200).counts for seed in range(NUM_SEEDS)), Counter())
    missed = [place for place in PLACES if not counts[place]]
    assert not missed, f"or the histories would prove little: no {missed}"
