"""How much to load: the decision is the best there is, and never much worse than the better of all and nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load_or_compute import DISKS_GB_S, LAYOUTS, MODELS, measure_change, measure_grid, play
from tiering.costs import Costs, Curves, LoadCurve, PrefillCurve
from tiering.decision import _LEAST_DEADLINE_S, _LEAST_LOADS, Chooser, Match, Predicted, choose

SECONDS = st.floats(1e-9, 1e-1)
PREFILLS = st.builds(PrefillCurve, call_s=SECONDS, token_s=SECONDS, pair_s=st.floats(0, 1e-5))
LOADS = st.builds(LoadCurve, latency_s=SECONDS, byte_s=st.floats(1e-12, 1e-6))
CURVES = st.builds(
    Curves,
    prefill=PREFILLS,
    loads=st.fixed_dictionaries({}, optional={"host": LOADS, "disk": LOADS}),
)


@st.composite
def matches(draw, *, overlaps: bool):
    runs = draw(
        st.lists(st.tuples(st.sampled_from(["device", "host", "disk"]), st.integers(0, 40)), max_size=5)
    )
    more = draw(st.integers(0, 200))
    return Match(
        runs=tuple(runs),
        prompt_tokens=16 * sum(num for _, num in runs) + more,
        block_tokens=16,
        block_bytes=draw(st.integers(1, 1 << 24)),
        queued_bytes=draw(st.dictionaries(st.sampled_from(["host", "disk"]), st.integers(0, 1 << 30))),
        overlap=draw(st.floats(0, 1)) if overlaps else 0.0,
    )


@given(st.booleans().flatmap(lambda overlaps: matches(overlaps=overlaps)), CURVES)
def test_a_few_candidates_are_as_good_as_all(match, curves):
    """The plain way: every number of blocks is tried."""
    taken = Predicted(match, curves.prefill, curves)
    all_s = [taken.ttft_s(num) for num in range(match.num_on_device, match.num_blocks + 1)]
    decision = choose(match, curves)
    assert match.num_on_device <= decision.num_blocks <= match.num_blocks
    assert decision.ttft_s == taken.ttft_s(decision.num_blocks)
    assert decision.ttft_s <= min(all_s) * (1 + 1e-9)
    assert decision.ttft_s <= min(decision.always_s, decision.never_s)


@given(matches(overlaps=False), CURVES, st.lists(st.floats(1 / 1.02, 1.02), min_size=7, max_size=7))
def test_curves_that_are_off_cost_no_more_than_they_are_off_twice(match, curves, off):
    call, token, pair, *loads = off
    thought = Curves(
        prefill=PrefillCurve(
            call_s=curves.prefill.call_s * call,
            token_s=curves.prefill.token_s * token,
            pair_s=curves.prefill.pair_s * pair,
        ),
        loads={
            tier: LoadCurve(latency_s=curve.latency_s * loads[0], byte_s=curve.byte_s * loads[1])
            for tier, curve in curves.loads.items()
        },
    )
    decision = choose(match, thought)
    took_s = play(match, curves, decision.num_blocks)
    ends_s = [play(match, curves, num) for num in (match.num_on_device, match.num_blocks)]
    assert took_s <= 1.05 * min(ends_s) + 1e-12


@given(matches(overlaps=False), CURVES, st.floats(1, 1e6))
def test_a_disk_that_hangs_costs_at_most_twice_as_much_again_as_loading_nothing(match, curves, times):
    decision = choose(match, curves)
    hangs = {
        tier: replace(curve, latency_s=curve.latency_s * times, byte_s=curve.byte_s * times)
        for tier, curve in curves.loads.items()
    }
    took_s = play(match, replace(curves, loads=hangs), decision.num_blocks, decision.deadline_s)
    assert took_s <= 3 * play(match, curves, match.num_on_device) * (1 + 1e-9) + _LEAST_DEADLINE_S


def test_on_the_grid_it_is_never_much_worse_than_the_better_and_better_than_both_somewhere():
    """Speeds are learned from noisy requests, a stall among them now and then."""
    rows = measure_grid(40, seed=1, prefixes=(256, 2048, 16384, 65536))
    assert len(rows) == sum(len(DISKS_GB_S[model.name]) for model in MODELS) * len(LAYOUTS) * 4
    assert max(row["by_better"] for row in rows) <= 1.05
    assert min(row["by_better"] for row in rows) < 0.8
    used = {row["loaded_blocks"] / row["of_blocks"] for row in rows if row["layout"] == "all on disk"}
    assert used == {0.0, 1.0}, "within one tier a part is never best: see the module's docstring"
    partly = [row for row in rows if 0 < row["loaded_blocks"] < row["of_blocks"]]
    assert partly, "of two tiers only the faster one is used somewhere"


@pytest.mark.parametrize("times", [8.0, 1 / 8])
def test_a_disk_that_changes_its_speed_is_found_out(times):
    change = measure_change(times, 400, seed=0)
    assert change["by_better"] <= 1.05
    assert change["stats"]["decisions"]["none"] and change["stats"]["decisions"]["all"]
    assert change["stats"]["mean_error"] < 0.5


# ---- what is not known, what is tried, what is told ------------------------------------------------------------------

FAST, SLOW = LoadCurve(byte_s=1e-10), LoadCurve(byte_s=1.5e-6)
PREFILL = PrefillCurve(token_s=1e-3)


def a_match(*runs: tuple[str, int], prompt_tokens=1600, **more):
    return Match(runs=runs, prompt_tokens=prompt_tokens, block_tokens=16, block_bytes=16 << 10, **more)


def taken(chooser, match):
    decision = chooser.choose(match)
    assert chooser.choose(match) == decision, "asking changes nothing"
    chooser.taken(match, decision)
    chooser.check()
    return decision


def test_as_long_as_nothing_is_known_everything_is_loaded():
    decision = choose(a_match(("disk", 99)), Curves(prefill=None, loads={"disk": SLOW}))
    assert (decision.num_blocks, decision.ttft_s, decision.deadline_s) == (99, None, None)
    decision = choose(a_match(("host", 50), ("disk", 49)), Curves(prefill=PREFILL, loads={"host": FAST}))
    assert decision.num_blocks == 99, "how else would it be known what the disk takes?"


def test_a_tier_is_left_alone_only_when_some_loads_of_it_were_seen():
    """The first may have been small, or cold; what was not loaded would teach nothing, and a prompt that is late costs at most twice."""
    costs = Costs()
    costs.prefilled(0, 1600, 1.6)
    chooser = Chooser(costs)
    for _ in range(_LEAST_LOADS):
        decision = taken(chooser, a_match(("disk", 99)))
        assert decision.num_blocks == 99
        costs.loaded("disk", 99 * (16 << 10), 100.0)
    assert decision.ttft_s > decision.never_s, "what is known is told all the same"
    assert taken(chooser, a_match(("disk", 99))).num_blocks == 0


def test_much_more_than_was_ever_loaded_is_tried_once():
    """A disk of which only small loads were seen may be slow to begin, and fast."""
    costs, late = Costs(), LoadCurve(latency_s=1.0, byte_s=1e-9)
    costs.prefilled(0, 1600, 1.6)
    for _ in range(3 * _LEAST_LOADS):
        costs.loaded("disk", 16 << 10, late.seconds(16 << 10))
    chooser, match = Chooser(costs), a_match(("disk", 99))
    decision = taken(chooser, match)
    assert (decision.num_blocks, decision.load_s > 90) == (99, True), (
        "it would be thought to take a second a block"
    )
    assert taken(chooser, a_match(("disk", 2))).num_blocks == 0
    costs.loaded("disk", 99 * (16 << 10), late.seconds(99 * (16 << 10)))
    assert chooser.choose(match).load_s == pytest.approx(1.0, rel=0.3)
    assert taken(chooser, match).num_blocks == 99, "and now for being faster"


def test_what_is_loaded_is_waited_for_as_long_as_computing_takes_or_twice_as_long_as_it_should_take():
    def deadline_s(byte_s, *, blocks=99):
        curves = Curves(prefill=PREFILL, loads={"disk": LoadCurve(byte_s=byte_s)})
        return choose(a_match(("disk", blocks)), curves).deadline_s

    assert deadline_s(1e-8) == pytest.approx(1.584), "a millisecond a token"
    assert deadline_s(8e-7) == pytest.approx(2 * 8e-7 * 99 * (16 << 10))
    assert deadline_s(1e-10, blocks=0) is None
    tiny = Curves(prefill=PrefillCurve(token_s=1e-7), loads={"disk": LoadCurve(byte_s=1e-12)})
    assert choose(a_match(("disk", 1)), tiny).deadline_s == _LEAST_DEADLINE_S


def test_a_queue_before_the_disk_counts():
    curves = Curves(prefill=PREFILL, loads={"disk": LoadCurve(byte_s=1e-7)})
    assert choose(a_match(("disk", 99)), curves).num_blocks == 99
    behind = a_match(("disk", 99), queued_bytes={"disk": 1 << 30})
    assert choose(behind, curves).num_blocks == 0
    chooser = Chooser(Costs())
    chooser.took(chooser.choose(behind), 0, 16, 0.1, {"disk": 1 << 20}, 2.0)
    chooser.came_late(1 << 21, 1 << 30, 3.0)
    assert chooser.costs.as_json()["loads"]["disk"] == [[1 << 30, 1 << 20, 2.0], [1 << 30, 1 << 21, 3.0]]
    assert chooser.stats()["came_late"] == 1


def test_what_the_device_has_is_always_used():
    curves = Curves(prefill=PREFILL, loads={"disk": SLOW})
    decision = choose(a_match(("device", 10), ("disk", 89)), curves)
    assert (decision.num_blocks, decision.deadline_s) == (10, None)


def test_a_tier_that_was_slow_is_tried_again_if_that_does_not_cost_too_much():
    costs = Costs()
    costs.prefilled(0, 1600, 1.6)
    for _ in range(_LEAST_LOADS):
        costs.loaded("disk", 99 * (16 << 10), SLOW.seconds(99 * (16 << 10)))
    chooser = Chooser(costs, probe_every=8)
    decisions = [taken(chooser, a_match(("disk", 99))) for _ in range(24)]
    chooser.check()
    assert [number for number, each in enumerate(decisions) if each.probes] == [7, 15, 23]
    assert {each.num_blocks for each in decisions if each.probes} == {99}
    assert all(each.ttft_s <= 2 * each.never_s for each in decisions)
    stats = chooser.stats()
    assert stats["decisions"] == {"all": 3, "some": 0, "none": 21, "uncalibrated": 0}
    assert stats["probes"] == 3
    assert stats["blocks"] == {"loaded": 3 * 99, "computed": 21 * 99}
    for _ in range(3 * _LEAST_LOADS):
        costs.loaded("disk", 99 * (16 << 10), 100.0)
    slower = Chooser(costs, probe_every=2)
    assert not any(taken(slower, a_match(("disk", 99))).probes for _ in range(9)), "for that it is too slow"


def test_what_was_predicted_is_held_against_what_it_took():
    costs = Costs()
    costs.prefilled(0, 1600, 1.6)
    chooser = Chooser(costs)
    decision = chooser.choose(a_match(("disk", 99)))
    assert decision.ttft_s == pytest.approx(0.016, rel=0.01)
    ended = chooser.ended(decision, 0.04)
    assert ended == replace(decision, took_s=0.04, error=ended.error)
    assert ended.error == pytest.approx(1.5, rel=0.02)
    chooser.ended(decision, decision.ttft_s / 2)
    errors = chooser.stats()["errors"]
    assert dict(zip(errors["bounds"], errors["counts"], strict=False))[2.0] == 1
    assert dict(zip(errors["bounds"], errors["counts"], strict=False))[0.5] == 1
    assert chooser.stats()["mean_error"] == pytest.approx(1.0, rel=0.02)
    unknown = chooser.ended(chooser.choose(a_match(prompt_tokens=0)), 1.0)
    assert (unknown.took_s, unknown.error) == (1.0, None), "nothing was predicted"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"runs": (("disk", -1),)}, "a run has blocks or none"),
        ({"runs": (("disk", 101),)}, "are no part of 1600 tokens"),
        ({"overlap": 1.5}, "overlap must be between 0 and 1"),
    ],
)
def test_a_match_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        a_match(*wrong.pop("runs", (("disk", 9),)), **wrong)
