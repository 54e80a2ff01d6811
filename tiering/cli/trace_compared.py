"""What an engine saw of a trace beside what simulations saw of it: figures, how far both scatter, bounds, and a page of it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tiering.cli.markdown import gate, table
from tiering.replay import Seen

_TIERS: Final = ("device", "host", "disk")
_HIT_POINTS, _TTFT_PERCENT = 1.0, 10.0
"""What the simulator may err by."""

Figures = dict[str, dict[str, float]]
"""Hit rates by tier, and seconds to the first token."""


def compared(
    engine: Sequence[Sequence[Seen]], simulated: Sequence[Sequence[Seen]], num_blocks: int
) -> dict[str, Any]:
    """Figures as [engine, simulated], each the mean of its runs, and likewise how far these are apart from one another.

    Each run is a list with what became of the same requests, whose prompts have so many whole blocks together.
    """
    sides = [[_figures(run, num_blocks) for run in runs] for runs in (engine, simulated)]
    told: dict[str, Any] = {"apart": {}}
    for kind, names in sides[0][0].items():
        values = {name: [[run[kind][name] for run in side] for side in sides] for name in names}
        told[kind] = {name: [float(np.mean(side)) for side in both] for name, both in values.items()}
        told["apart"][kind] = {
            name: [max(side) - min(side) for side in both] for name, both in values.items()
        }
    ttft_s = [
        np.mean([[each.ttft_s for each in run] for run in runs], axis=0) for runs in (engine, simulated)
    ]
    each = np.abs(ttft_s[1] / np.maximum(ttft_s[0], 1e-6) - 1)
    return {**told, "median_error_of_one_request": float(np.median(each))}


def _figures(seen: Sequence[Seen], num_blocks: int) -> Figures:
    hit_rate = {tier: sum(each.found.get(tier, 0) for each in seen) / num_blocks for tier in _TIERS}
    times = np.array([each.ttft_s for each in seen])
    return {
        "hit_rate": {**hit_rate, "all": sum(hit_rate.values())},
        "ttft_s": {
            "mean": float(times.mean()),
            "p50": float(np.percentile(times, 50)),
            "p90": float(np.percentile(times, 90)),
        },
    }


def gates(name: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors, with their bounds, and beside them how far the engine's own runs are apart, where there are several."""
    rows = []
    for which, bound in (("error of", True), ("engine against itself,", False)):
        for tier, (engine, simulated) in told["hit_rate"].items():
            points = abs(simulated - engine) if bound else told["apart"]["hit_rate"][tier][0]
            row = f"{which} {name}: hit rate, {tier}"
            rows.append(
                gate(row, round(100 * points, 2), _HIT_POINTS if bound else None, "points", at_most=True)
            )
        for figure, (engine, simulated) in told["ttft_s"].items():
            part = abs(simulated / engine - 1) if bound else told["apart"]["ttft_s"][figure][0] / engine
            row = f"{which} {name}: TTFT, {figure}"
            rows.append(gate(row, round(100 * part, 2), _TTFT_PERCENT if bound else None, "%", at_most=True))
    return rows


def page(runs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """All of it in Markdown."""
    figures = []
    for run in runs:
        for kind, title, form in (
            ("hit_rate", "hit rate", lambda value: f"{value:.2%}"),
            ("ttft_s", "TTFT", lambda value: f"{1e3 * value:,.0f} ms"),
        ):
            for name, values in run[kind].items():
                engine, simulated = map(form, values)
                apart = [form(value) for value in run["apart"][kind][name]]
                figures.append(
                    {
                        "trace": run["trace"].partition(".")[0],
                        "figure": f"{title}, {name}",
                        "engine": engine,
                        "its_runs_apart": apart[0],
                        "simulated": simulated,
                        "simulations_apart": apart[1],
                    }
                )
    bounded = [row for row in rows if row["bound"] is not None]
    return (
        "# The simulator beside the engine\n\n`kvtide bench trace`\n\n"
        f"{table(figures, list(figures[0]))}\n\n"
        f"{table(bounded, ('name', 'value', 'bound', 'unit', 'holds'))}"
    )
