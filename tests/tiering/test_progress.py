"""The law of progress: whatever the disk does, finitely many completions serve every request that fits alone."""

import os

import pytest
from hypothesis import settings

from tests.tiering.histories import Histories
from tests.tiering.progress import Progress, walk

NUM_SEEDS = int(os.environ.get("KVTIDE_PROGRESS_SEEDS", "40"))


class ProgressHistories(Histories):
    kind = Progress


TestProgress = ProgressHistories.TestCase
TestProgress.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_long_histories(seed):
    """Dozens of requests each, on a few slots, over a disk that fails and hangs."""
    walk(seed, 200)


def test_the_histories_get_everywhere():
    """Or the tests above would prove little."""
    histories = [walk(seed, 200) for seed in range(1000, 1010)]
    assert sum(progress.num_arrived for progress in histories) > 300
    stats = [progress.model.index.stats() for progress in histories]
    for figure in ("requests", "swapped_out_blocks", "swapped_in_blocks"):
        assert sum(each["preempted"][figure] for each in stats) > 0, f"no history has {figure} preempted"
    for reason in ("overdue", "copy_failed", "read_failed"):
        assert sum(each["failed_loads"].get(reason, 0) for each in stats) > 0, f"no load was {reason}"
    assert max(client.overtaken for progress in histories for client in progress.ended) > 0
