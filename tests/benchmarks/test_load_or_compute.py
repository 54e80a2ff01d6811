"""What the benchmarks of loading or computing hold against which bound, and what they tell."""

import pytest

from benchmarks import load_or_compute, load_or_compute_engine
from benchmarks.load_or_compute import MODELS, both_ends_s, matched, play
from tiering.decision import Predicted


def test_the_worst_and_the_best_cell_decide():
    rows = [{"by_better": value} for value in (1.0, 1.06, 0.7)]
    worst, best, changed = load_or_compute.gates(rows, [{"the disk becomes": "slower", "by_better": 0.9}])
    assert (worst["value"], worst["holds"]) == (1.06, False)
    assert (best["value"], best["holds"]) == (0.7, True)
    assert (changed["value"], changed["holds"]) == (0.9, True)


def test_an_engine_is_held_against_the_others_and_what_it_decided_too():
    rows = [
        {"loaded": 1.0, "always_s": 1.0, "never_s": 4.0, "auto_s": 1.5, "by_better": 1.5},
        {"loaded": 0.0, "always_s": 4.0, "never_s": 2.0, "auto_s": 2.0, "by_better": 1.0},
    ]
    worst, decided, together = load_or_compute_engine.gates(rows)
    assert (worst["value"], worst["holds"]) == (1.5, False)
    assert (decided["value"], decided["holds"]) == (1.0, True)
    assert (together["value"], together["holds"]) == (0.7, True)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("layout", load_or_compute.LAYOUTS)
@pytest.mark.parametrize("prefix_tokens", [256, 4096])
def test_meeting_in_the_middle_is_searched_as_well_as_trying_every_block(model, layout, prefix_tokens):
    machine = model
    match, curves = matched(machine, layout, prefix_tokens), machine.curves
    prefill, taken = curves.prefill, Predicted(match, curves.prefill, curves)
    latency_s, size = max(curve.latency_s for curve in curves.loads.values()), match.block_tokens
    first, last = match.num_on_device, match.num_blocks

    def met_at(block: int) -> float:
        front_s = prefill.seconds(first * size, (block - first) * size)
        tail_s = taken.load_s(last) - max(0.0, taken.load_s(block) - latency_s) if block < last else 0.0
        return max(front_s, tail_s) + taken.prefill_s(last)

    best_s = min(play(match, curves, num) for num in range(first, last + 1))
    plain_s = min(best_s, *(met_at(block) for block in range(first, last + 1)))
    assert both_ends_s(match, curves) == pytest.approx(plain_s)


def test_the_whole_of_it_runs_and_is_told():
    figures = load_or_compute.measure(repeats=4, requests=60, seed=0)
    page = load_or_compute.report(figures)
    assert figures["gates"][1]["holds"], "better than both somewhere"
    for row in figures["both_ends"]["rows"]:
        assert row["layout"] in page
    assert f"{100 * figures['both_ends']['most']:.1f} %" in page
