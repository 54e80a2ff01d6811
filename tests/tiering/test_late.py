"""What arrives late is never half used: loads that nobody waits for any more, beside everything else that can happen to the core."""

import dataclasses
import random
from collections import Counter

from hypothesis import settings

from kvstore.reasons import MissReason
from tests.tiering.histories import Histories
from tests.tiering.traffic import RECORD_BYTES, Fickle, Traffic
from tiering.residency import Tier


class Impatient(Fickle):
    """Loads all there is of a match, or now and then some, and waits for it for a moment."""

    def choose(self, match):
        some = super().choose(match)
        num_blocks = self._choose([match.num_blocks, match.num_blocks, some.num_blocks])
        return dataclasses.replace(some, num_blocks=num_blocks, deadline_s=self._choose([1e-3, 1.0, 1.0]))


class LateTraffic(Traffic):
    """Much is on disk, and what is read from there takes about as long as it is waited for."""

    def __init__(self, choose) -> None:
        super().__init__(choose)
        self.seen: Counter[str] = Counter()
        self.actions = [
            *[self.come_back] * 5,
            *[self.serve] * 2,
            self.arrive,
            self.retry,
            self.give_up_waiting,
            *[self.compute] * 2,
            *[self.release] * 2,
            self.preempt,
            *[self.complete] * 2,
            self.fail,
            self.read_in_part,
            *[self.read_well] * 3,
            *[self.pass_a_moment] * 5,
            self.end_an_era,
        ]

    def some_config(self):
        config = dataclasses.replace(
            super().some_config(), policy="lru", device_slots=8, loads=True, ttl_s=None
        )
        return dataclasses.replace(config, host_slots=6, later_host_slots=0, disk_bytes=16 * RECORD_BYTES)

    def some_chooser(self):
        return Impatient(self.choose)

    def come_back(self):
        """All that is idle leaves for the disk, and somebody comes for some of it, for whom it may be too slow."""
        while self.model.running and self.choose([True, True, False]):
            self.release()
        self.model.index.sweep(Tier.DISK, then_free=True)
        self.model.settle(self.choose)
        self.arrive()
        self.model.plan()
        self.model.now_s += self.choose([0.0, 1.0])

    def pass_a_moment(self):
        self.model.now_s += self.choose([0.5, 1.0])

    def read_well(self):
        """All reads that were asked for end well, some of them late."""
        loads = self.model.index._loads
        reads = [number for number in self.model.flights if number in loads.reads]
        self.seen["late reads"] += sum(loads.reads[number][0].is_late for number in reads)
        for number in reads:
            self.model.complete(number)

    def act(self):
        super().act()
        loads = self.model.index._loads
        self.seen["late blocks"] = max(self.seen["late blocks"], loads.misses[MissReason.LATE])


class LateHistories(Histories):
    kind = LateTraffic


TestLate = LateHistories.TestCase
TestLate.settings = settings(stateful_step_count=30, max_examples=8)


def test_long_histories_in_which_much_is_late():
    """Of several seeds: else it would hold of nothing."""
    seen: Counter[str] = Counter()
    for seed in range(8):
        traffic = LateTraffic(random.Random(seed).choice)
        for _ in range(150):
            traffic.act()
        traffic.end()
        seen += traffic.seen
    assert seen["late blocks"] > 10, seen
    assert seen["late reads"] > 3, seen
