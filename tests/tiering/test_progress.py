"""The law of progress: whatever the disk does, finitely many completions serve every request that fits alone."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import settings

from tests.tiering.histories import Histories
from tests.tiering.progress import Progress, walk
from tests.tiering.small_tiers import model, on_disk, prompt
from tests.tiering.virtual_loop import ModelCache
from tiering.leases import Wait

NUM_SEEDS = int(os.environ.get("KVTIDE_PROGRESS_SEEDS", "15"))


class ProgressHistories(Histories):
    kind = Progress


TestProgress = ProgressHistories.TestCase
TestProgress.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_long_histories(seed):
    """Dozens of requests each, on a few slots, over a disk that fails and hangs."""
    walk(seed, 250)


def test_the_histories_get_everywhere():
    """Or the tests above would prove little."""
    histories = [walk(seed, 250) for seed in range(1000, 1020)]
    assert sum(progress.num_arrived for progress in histories) > 600
    counts = sum((progress.counts for progress in histories), Counter())
    for progress in histories:
        counts.update(progress.model.index.stats()["preempted"])
        counts.update(progress.model.index.stats()["failed_loads"])
    for what in (
        *("requests", "swapped_out_blocks", "swapped_in_blocks", "cut", "looked ahead"),
        *("overdue", "copy_failed", "read_failed"),
    ):
        assert counts[what] > 0, f"no history has {what}"
    assert max(client.overtaken for progress in histories for client in progress.ended) > 0


# ---- what a loop that sleeps is woken by


class Latecomer:
    """A cache over a disk that hangs, asked for the same two blocks again and again; time passes as it is told."""

    def __init__(self, *, host) -> None:
        self.tiers = model(device=8, host=host, disk=8, io_deadline_s=10.0, max_overdue_reads=5)
        for name in (1, 2):
            on_disk(self.tiers, name)
        self.times = [0.0]
        self.cache = ModelCache(self.tiers, wake=lambda: None, clock=self._now, something_happens=bool)

    def _now(self):
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]

    def ask(self, name):
        return self.cache.admit(np.array(prompt(name), dtype="<i4"), 2, chunk_blocks=2)


def test_what_takes_too_long_while_requests_are_tried_is_seen_before_the_loop_sleeps():
    """Who waits for a read that a cancelled request had begun: nothing else may ever happen, as the read hangs."""
    late = Latecomer(host=4)
    late.cache.release(late.ask(1))
    assert late.cache.deadline_s == 10.0
    late.times = [9.9, 10.1]
    assert not late.cache.pump()
    assert late.ask(1) is Wait.FOR_BLOCKS
    assert late.cache.deadline_s <= 10.1, "the read has just become overdue"
    assert late.cache.pump()
    assert late.cache.deadline_s is None
    assert late.ask(1).gaps(1) == [(0, 1)]


def test_a_load_that_is_given_up_while_requests_are_tried_is_seen_before_the_loop_sleeps():
    """The request computes instead, which only a look at what runs finds out."""
    late = Latecomer(host=1)
    late.ask(1)  # reads into the only place in host memory
    late.times = [5.0]
    assert not late.cache.pump()
    loading = late.ask(2)
    late.times = [10.0]
    assert late.cache.pump()
    assert late.cache.deadline_s == 15.0
    late.times = [14.9, 15.1]
    assert not late.cache.pump()
    assert late.ask(2) is Wait.FOR_BLOCKS
    assert loading.num_loading == 0, "given up just now"
    assert late.cache.deadline_s <= 15.1
    assert late.cache.pump()
    assert late.cache.deadline_s is None
