"""The core serves the right bytes whatever ends when, and in whatever way; nothing leaks and nothing hangs."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.tiering.traffic import Traffic


class Machine(RuleBasedStateMachine):
    """Short histories, which hypothesis makes shorter still when one fails."""

    traffic = None

    @initialize(data=st.data())
    def make(self, data):
        self.traffic = Traffic(self.choose_by(data))

    @rule(data=st.data())
    def act(self, data):
        self.traffic.choose = self.choose_by(data)
        self.traffic.act()

    @staticmethod
    def choose_by(data) -> Callable[[Iterable[Any]], Any]:
        return lambda values: data.draw(st.sampled_from(list(values)))

    def teardown(self):
        if self.traffic is not None:
            self.traffic.choose = lambda values: values[0]
            self.traffic.end()


TestIndex = Machine.TestCase
TestIndex.settings = settings(stateful_step_count=40)


@pytest.mark.parametrize("seed", range(100))
def test_long_histories(seed):
    """What it takes many steps to get to: tiers that are full, holes, leases that were handed over."""
    traffic = Traffic(random.Random(seed).choice)
    for _ in range(300):
        traffic.act()
    traffic.end()
