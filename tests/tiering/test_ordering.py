"""No order of compute and copies that streams and events allow shows anybody a wrong byte: thousands of them, by seed.

`tools/mutate_ordering.py` removes each wait from the mover and sees these tests fail. docs/ordering.md has the hazards.

`make soak` runs the same for longer: KVTIDE_ORDERING_WALKS says how many histories of the mover there are, and of the
cache a tenth of that; KVTIDE_ORDERING_JSON where the figures go.
"""

import json
import os
import random
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings

from tests.tiering.cache_walk import CacheWalk
from tests.tiering.cuda_walk import CudaMoverWalk
from tests.tiering.histories import Histories
from tests.tiering.mover_walk import MoverWalk
from tiering.transfer.mover import Mover

NUM_WALKS = int(os.environ.get("KVTIDE_ORDERING_WALKS", "2000"))
WALKS = 50
"""In one test: so many seeds from its first."""


@pytest.fixture(scope="module")
def totals():
    """What all histories of a kind together have seen."""
    totals = {"mover": Counter(), "cuda": Counter(), "cache": Counter()}
    yield totals
    if path := os.environ.get("KVTIDE_ORDERING_JSON"):
        known = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps({**known, "ordering": totals}, indent=1) + "\n")


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
    histories = (walk(kind, seed, num_actions) for seed in range(first, first + WALKS))
    return sum(histories, Counter(histories=WALKS))


@pytest.mark.parametrize("first", range(0, NUM_WALKS, WALKS))
def test_slots_from_owner_to_owner(first, totals):
    """The mover alone, every slot with its next owner at once."""
    counts = walks(MoverWalk, first, 60)
    totals["mover"] += counts
    assert counts["looks"] > 20 * WALKS, "bytes were looked at"
    assert counts["transfers"] > 5 * WALKS, "and moved"
    assert counts["failed"] > WALKS // 10, "not always well"
    assert counts["broken off"] > WALKS // 2, "steps came to an end half-way"
    assert counts["behind a broken step"] > WALKS // 10, "and copies into their slots had to wait"


@pytest.mark.parametrize("first", range(0, NUM_WALKS // 5, WALKS))
def test_slots_from_owner_to_owner_over_cuda(first, totals):
    """What the CUDA device tells the runtime keeps the order that the mover asks for."""
    counts = walks(CudaMoverWalk, first, 60)
    totals["cuda"] += counts
    assert counts["looks"] > 20 * WALKS
    assert counts["transfers"] > 5 * WALKS
    assert counts["failed"] > WALKS // 10
    assert counts["behind a broken step"] > WALKS // 10


@pytest.mark.parametrize("first", range(0, NUM_WALKS // 10, WALKS))
def test_blocks_from_computing_to_restart(first, totals):
    """The real cache, with an engine that enqueues ahead, and stores and copies that fail."""
    counts = walks(CacheWalk, first, 200)
    totals["cache"] += counts
    assert counts["steps"] > 10 * WALKS
    for event in ("computed ahead", "failed copies", "restarts", "promoted", "demoted", "read", "written"):
        assert counts[event] > WALKS // 10, event
    assert counts["preempted"] > WALKS
    assert counts["swapped in"] > 0
    assert counts["broken off"] > WALKS // 10
    assert counts["behind a broken step"] > 0


@pytest.mark.parametrize(("kind", "num_actions"), [(MoverWalk, 60), (CacheWalk, 200)])
def test_an_engine_that_says_nothing_of_a_step_that_breaks_off_is_noticed(kind, num_actions):
    """Without `after_compute` copies overtake the layers that were enqueued before it broke off."""

    class Forgetful(kind):
        def break_off(self, *step: object):
            with patch.object(Mover, "after_compute", lambda _: None):
                super().break_off(*step)

    with pytest.raises(AssertionError, match="a step reads"):
        walks(Forgetful, 0, num_actions)


class MoverHistories(Histories):
    kind = MoverWalk


class CacheHistories(Histories):
    kind = CacheWalk


TestMover = MoverHistories.TestCase
TestMover.settings = settings(max_examples=60, stateful_step_count=30)
TestCache = CacheHistories.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=40)
