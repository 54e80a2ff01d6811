"""Eviction orders: the laws, figures of an independent simulator, the optimum, and the core's own order beside them."""

import itertools
import re
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiering.bound import chained, minimum
from tiering.policies import POLICIES, policy_named
from tiering.policies.fifo import FIFO
from tiering.policies.policy import Policy, Standing
from tiering.policies.testing import LAWS
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import read_trace

ROOT = Path(__file__).resolve().parents[2]
TRACE = ROOT / "benchmarks" / "traces" / "lmcache_agents_blk64.jsonl.zst"
NUM_REQUESTS = 400


class RecentlyUsed(FIFO):
    """The core's own order, as a plug-in: the reference for what lies between a plug-in and the core."""

    def use(self, name):
        self._place(name)


class Wrong(FIFO):
    """Gives up whatever entered last."""

    def evict(self, ask, coming):
        for name in reversed(self._keys):
            if ask(name) is not Standing.HELD:
                del self._keys[name]
                return name
        return None


class Hoarder(FIFO):
    """Remembers everything."""

    def __init__(self, capacity_blocks) -> None:
        super().__init__(capacity_blocks)
        self.seen = []

    def enter(self, name, position):
        self.seen.append(name)
        super().enter(name, position)


def sieve():
    """The class that docs/writing-a-policy.md shows."""
    page = (ROOT / "docs" / "writing-a-policy.md").read_text("utf-8")
    program = re.search(r'```python\n("""sieve.py.*?)```', page, re.DOTALL)
    assert program is not None
    assert len([line for line in program[1].splitlines() if line.strip()]) <= 40
    module = types.ModuleType("sieve")
    exec(program[1], module.__dict__)  # noqa: S102 - our own page
    return module.Sieve


PLUG_INS = [*filter(None, POLICIES.values()), RecentlyUsed, sieve()]


@pytest.fixture(scope="module")
def requests():
    return list(itertools.islice(read_trace(TRACE), NUM_REQUESTS))


def hits(requests, device_blocks, policy, **more):
    simulation = Simulation(SimulationConfig(device_blocks=device_blocks, policy=policy, **more))
    outcome = simulation.run(requests)
    simulation.check()
    return outcome.hits


@pytest.mark.parametrize("policy", PLUG_INS, ids=lambda policy: policy.__name__)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_law_holds(law, policy):
    law(policy)


@pytest.mark.parametrize(
    ("law", "policy"), [("gives_up_only_what_may_go", Wrong), ("remembers_a_bounded_number", Hoarder)]
)
def test_a_law_finds_who_breaks_it(law, policy):
    (found,) = [each for each in LAWS if each.__name__ == law]
    with pytest.raises(AssertionError):
        found(policy)


GOLDEN = {"lru": 6512, "fifo": 6458, "s3fifo": 6298, "arc": 6476, "recompute-cost": 6337}
"""Hits of those requests' 11,719 blocks at 150 blocks, as another simulator counts them (plain Python, one tier)."""

GOLDEN_MINIMUM = {150: (6717, 536), 500: (10510, 869)}
"""Hits and writes of MIN at two sizes, likewise."""


@pytest.mark.parametrize("policy", GOLDEN)
def test_the_hits_are_those_of_an_independent_simulator(policy, requests):
    assert hits(requests, 150, policy) == GOLDEN[policy]


@pytest.mark.parametrize("host_blocks", [0, 400])
def test_the_cores_own_order_is_the_same_as_a_plug_in(host_blocks, requests):
    """What lies between the core and a plug-in loses nothing and adds nothing."""
    own = Simulation(SimulationConfig(device_blocks=200, host_blocks=host_blocks)).run(requests[:150])
    name = f"{__name__}:RecentlyUsed"
    plugged = Simulation(SimulationConfig(device_blocks=200, host_blocks=host_blocks, policy=name)).run(
        requests[:150]
    )
    assert own.hits_by_tier["device"] == plugged.hits_by_tier["device"]
    assert own.writes_by_tier["device"] == plugged.writes_by_tier["device"]


def paths(requests):
    return chained([np.array(each.blocks, dtype="<i4") for each in requests])


@pytest.mark.parametrize("size", GOLDEN_MINIMUM)
def test_the_optimum_is_that_of_an_independent_simulator(size, requests):
    assert minimum(paths(requests), size) == GOLDEN_MINIMUM[size]


def test_no_order_is_better_than_the_optimum():
    assert max(GOLDEN.values()) < GOLDEN_MINIMUM[150][0]


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=9), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_optimum_is_the_best_of_all_choices(prompts, size):
    """Against trying everything: which blocks to keep after each block, on streams so small that this can be done."""
    chains = [tuple(tuple(prompt[: at + 1]) for at in range(len(prompt))) for prompt in prompts]
    hits, _ = minimum(chained([np.array(prompt, dtype="<i4") for prompt in prompts]), size)
    reachable = {frozenset(): 0}
    for block in itertools.chain(*chains):
        later: dict[frozenset[object], int] = {}
        for kept, found in reachable.items():
            now = found + (block in kept)
            others = kept | {block}
            choices = [others] if len(others) <= size else [others - {one} for one in others]
            for choice in choices:
                later[choice] = max(later.get(choice, 0), now)
        reachable = later
    assert hits == max(reachable.values())


def test_a_policy_of_an_outsiders_is_named_by_module_and_class():
    assert policy_named("tiering.policies.fifo:FIFO") is FIFO
    assert policy_named("arc") is POLICIES["arc"]
    assert policy_named("lru") is None
    assert issubclass(FIFO, Policy)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "lfru",
            "there is no policy 'lfru': there are lru, fifo, s3fifo, arc, recompute-cost, and package.module:Class",
        ),
        ("nowhere.at_all:Order", "cannot be imported: No module named 'nowhere'"),
        ("tiering.policies.fifo:LIFO", "cannot be imported"),
        ("tiering.bound:minimum", "is no tiering.policies.policy.Policy"),
    ],
)
def test_what_is_no_policy_is_said_to_be_none(name, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        SimulationConfig(device_blocks=1, policy=name)
