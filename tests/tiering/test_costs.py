"""What is learned of prefilling and loading: from few observations, noisy ones, and such as contradict each other."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiering.costs import Costs, LoadCurve, PrefillCurve

PREFILL = PrefillCurve(call_s=0.02, token_s=5e-5, pair_s=2e-9)
DISK = LoadCurve(latency_s=2e-3, byte_s=1 / 3e9)

TIMES = st.floats(1e-6, 1e3)


def learned(
    num: int, *, prefill: PrefillCurve = PREFILL, disk: LoadCurve = DISK, noise=0.0, stalls=0.0, seed=0
):
    rng, costs = random.Random(seed), Costs()
    for _ in range(num):
        late = 10 if rng.random() < stalls else 1
        start, tokens = rng.choice([0, int(2 ** rng.uniform(4, 15))]), int(2 ** rng.uniform(5, 14))
        costs.prefilled(start, tokens, prefill.seconds(start, tokens) * rng.lognormvariate(0, noise) * late)
        num_bytes, queued = int(2 ** rng.uniform(20, 32)), rng.choice([0, 1 << 28])
        took_s = disk.seconds(num_bytes, queued) * rng.lognormvariate(0, noise) * late
        costs.loaded("disk", num_bytes, took_s, queued_bytes=queued)
    costs.check()
    return costs


def errors(costs: Costs, *, prefill: PrefillCurve = PREFILL, disk: LoadCurve = DISK) -> list[float]:
    """How far what it says is from what is so, over sizes as they are and far beyond."""
    curves = costs.curves
    spans = [(0, 64), (0, 1024), (0, 32768), (4096, 64), (16384, 16384), (0, 1 << 20)]
    pairs = [(curves.prefill.seconds(*span), prefill.seconds(*span)) for span in spans]
    pairs += [
        (curves.loads["disk"].seconds(size), disk.seconds(size)) for size in (1 << 22, 1 << 28, 1 << 36)
    ]
    return [abs(said / so - 1) for said, so in pairs]


def test_exact_times_give_the_curves_back():
    assert max(errors(learned(12))) < 0.01


def test_noise_and_stalls_do_not_move_it_far():
    """Every tenth takes ten times as long, and the others are off by a tenth or so."""
    for seed in range(5):
        assert max(errors(learned(64, noise=0.1, stalls=0.1, seed=seed))) < 0.2


def test_one_observation_is_taken_for_the_speed():
    costs = Costs()
    costs.prefilled(0, 1000, 0.5)
    costs.loaded("host", 1 << 20, 0.001)
    curves = costs.curves
    assert curves.prefill.seconds(0, 2000) == pytest.approx(1.0, rel=0.01)
    assert curves.loads["host"].seconds(1 << 21) == pytest.approx(0.002, rel=0.01)
    assert "disk" not in curves.loads


def test_a_machine_that_changes_is_believed_within_as_many_observations_as_it_keeps():
    costs, slower = learned(64), LoadCurve(latency_s=DISK.latency_s * 8, byte_s=DISK.byte_s * 8)
    rng = random.Random(1)
    for _ in range(64):
        num_bytes = int(2 ** rng.uniform(20, 32))
        costs.loaded("disk", num_bytes, slower.seconds(num_bytes))
    assert max(errors(costs, disk=slower)) < 0.1


def test_traffic_of_one_size_does_not_wear_out_the_rest():
    costs = learned(32)
    for _ in range(2000):
        costs.prefilled(4096, 64, PREFILL.seconds(4096, 64))
    assert max(errors(costs)) < 0.05
    assert len(json.dumps(costs.as_json())) < 20_000, "kept is a bounded number of observations"


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), TIMES), min_size=1, max_size=30),
    st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)),
    st.integers(0, 10**5),
)
def test_whatever_was_seen_more_takes_no_less_and_nothing_takes_less_than_nothing(seen, span, more):
    costs = Costs()
    for before, size, seconds in seen:
        costs.prefilled(before, size, seconds)
        costs.loaded("disk", size, seconds, queued_bytes=before)
    costs.check()
    (start, tokens), curves = span, costs.curves
    for curve in (curves.prefill.seconds, lambda queued, size: curves.loads["disk"].seconds(size, queued)):
        said = curve(start, tokens)
        assert 0 <= said < math.inf
        assert said <= curve(start, tokens + more)
        assert said <= curve(start + more, tokens)
        assert curve(start, 0) == 0
    far = 10**9
    assert curves.prefill.seconds(0, far) >= min(s / n for _, n, s in seen) / 4 * far * 0.99 or (
        curves.prefill.pair_s > 0
    ), "far from all that was seen nothing is faster than a few times the fastest"
    assert curves.loads["disk"].seconds(far) >= min(s / (b + n) for b, n, s in seen) / 4 * far * 0.99


def test_what_is_kept_is_what_was_known():
    costs = learned(40, noise=0.1)
    again = Costs.from_json(json.loads(json.dumps(costs.as_json())))
    again.check()
    assert max(errors(again)) < 0.15
    assert again.as_json() == costs.as_json()
    assert again.stats()["prefill"]["observations"] == len(costs.as_json()["prefill"])


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        {"version": 0},
        {"version": 1},
        {"version": 1, "prefill": [], "loads": {"tape": []}},
        {"version": 1, "prefill": 3, "loads": {}},
        {"version": 1, "prefill": [[0, 0, 1.0]], "loads": {}},
        {"version": 1, "prefill": [[0, 1, -1.0]], "loads": {}},
        {"version": 1, "prefill": [[0, 1, math.nan]], "loads": {}},
        {"version": 1, "prefill": [], "loads": {"disk": [[0, 1]]}},
        {"version": 1, "prefill": [], "loads": {"disk": ["abc"]}},
    ],
)
def test_what_is_no_kept_costs_is_refused(kept):
    with pytest.raises(ValueError, match=r"costs|observation"):
        Costs.from_json(kept)


def test_what_took_no_time_says_nothing():
    costs = Costs()
    costs.prefilled(0, 0, 1.0)
    costs.prefilled(0, 10, 0.0)
    costs.prefilled(0, 10, math.inf)
    assert costs.curves.prefill is None
    assert costs.stats() == {"prefill": None, "loads": {"host": None, "disk": None}}
    with pytest.raises(ValueError, match="negative"):
        costs.prefilled(-1, 10, 1.0)
    with pytest.raises(ValueError, match="byte_s must be"):
        LoadCurve(byte_s=-1.0)
