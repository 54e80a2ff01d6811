"""What an engine saw of a trace beside what simulations saw of it: figures, how far both scatter, bounds, and a page of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tiering.cli.markdown import gate, table
from tiering.replay import Seen

GATED: Final = "costs and pace"
"""The replays that are held to the bounds: they are told what steps cost, how these scatter, and how fast the machine was when."""
_TIERS: Final = ("device", "host", "disk")
_HIT_POINTS, _TTFT_PERCENT = 1.0, 10.0
"""What the simulator may err by."""

_TOLD_OF_THE_RUNS: Final = (
    "Each run of the engine is replayed. Whatever is simulated here was told of these very runs: when requests came, unless clients ask one after the other; what steps cost, "
    f"fitted to them, and how they scatter; what blocks took on disk; and, where it says *{GATED}*, how fast the machine was when. So bounds are held by who knows how the "
    "machine was, and what is tested is who is admitted when, what is found in which tier, and what is computed together. p50 and p90 are Harrell's and Davis' quantiles."
)
"""What a reader has to know of all that is said of simulations."""

Figures = dict[str, dict[str, float]]
"""Hit rates by tier, seconds to the first token, and where these went."""


def compared(
    engine: Sequence[Sequence[Seen]], simulated: Mapping[str, Sequence[Sequence[Seen]]], num_blocks: int
) -> dict[str, Any]:
    """Figures as [engine, simulated], each the mean of its runs, and likewise how far these are apart from one another.

    Each run is a list with what became of the same requests, whose prompts have so many whole blocks together. `simulated`: by what
    the simulations were told; `if_told` has the errors of each of them, of hit rates in blocks asked for and of times by the engine's.
    """
    sides = [[_figures(run, num_blocks) for run in runs] for runs in (engine, simulated[GATED])]
    told: dict[str, Any] = {"apart": {}}
    for kind, names in sides[0][0].items():
        values = {name: [[run[kind][name] for run in side] for side in sides] for name in names}
        told[kind] = {name: [float(np.mean(side)) for side in both] for name, both in values.items()}
        told["apart"][kind] = {
            name: [max(side) - min(side) for side in both] for name, both in values.items()
        }
    ttft_s = [
        np.mean([[each.ttft_s for each in run] for run in runs], axis=0)
        for runs in (engine, simulated[GATED])
    ]
    each = np.abs(ttft_s[1] / np.maximum(ttft_s[0], 1e-6) - 1)
    errors = {what: _errors(engine, runs, num_blocks) for what, runs in simulated.items()}
    return {**told, "if_told": errors, "median_error_of_one_request": float(np.median(each))}


def _errors(
    engine: Sequence[Sequence[Seen]], simulated: Sequence[Sequence[Seen]], num_blocks: int
) -> Figures:
    """Of the means, with their signs: hit rates and where the time went as they are, times to the first token by the engine's."""
    true, found = (
        {
            kind: {name: float(np.mean([run[kind][name] for run in figures])) for name in names}
            for kind, names in figures[0].items()
        }
        for figures in ([_figures(run, num_blocks) for run in runs] for runs in (engine, simulated))
    )
    return {
        kind: {
            name: (found[kind][name] - value) / (value if kind == "ttft_s" else 1.0)
            for name, value in names.items()
        }
        for kind, names in true.items()
    }


def _figures(seen: Sequence[Seen], num_blocks: int) -> Figures:
    hit_rate = {tier: sum(each.found.get(tier, 0) for each in seen) / num_blocks for tier in _TIERS}
    times = np.array([each.ttft_s for each in seen])
    return {
        "hit_rate": {**hit_rate, "all": sum(hit_rate.values())},
        "ttft_s": {
            "mean": float(times.mean()),
            "p50": quantile(times, 0.5),
            "p90": quantile(times, 0.9),
        },
        "spent_s": {
            "queue": float(np.mean([each.queue_s for each in seen])),
            "load": float(np.mean([each.load_s for each in seen])),
            "prefill": float(np.mean([each.prefill_s for each in seen])),
        },
    }


def quantile(values: NDArray[np.float64], part: float) -> float:
    """Below which this part of the values lies, by Harrell and Davis (1982): a mean of the values about that one.

    Of a hundred times to the first token the two in the middle may be a tenth apart, and which they are is chance.
    """
    num, fine = len(values), 64
    at = (np.arange(num * fine) + 0.5) / (num * fine)
    before, behind = (num + 1) * part, (num + 1) * (1 - part)
    logarithm = (before - 1) * np.log(at) + (behind - 1) * np.log1p(-at)  # of the beta distribution
    weights = np.exp(logarithm - logarithm.max()).reshape(num, fine).sum(axis=1)
    return float(np.sort(values) @ weights / weights.sum())


def gates(name: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors, with their bounds. Without one: what of the mean TTFT's error is whose, how far the engine's own runs are apart, and
    the errors of simulations that were told less, and more.
    """
    rows = []

    def row(which: str, figure: str, value: float, bound: float | None, unit: str) -> None:
        rows.append(gate(f"{which} {name}: {figure}", round(100 * value, 2), bound, unit, at_most=True))

    mean_s = told["ttft_s"]["mean"][0]
    for tier, error in told["if_told"][GATED]["hit_rate"].items():
        row(f"told {GATED}, error of", f"hit rate, {tier}", abs(error), _HIT_POINTS, "points")
    for figure, error in told["if_told"][GATED]["ttft_s"].items():
        row(f"told {GATED}, error of", f"TTFT, {figure}", abs(error), _TTFT_PERCENT, "%")
    for part, error in told["if_told"][GATED]["spent_s"].items():
        row(f"told {GATED}, part of the error of", f"mean TTFT, {part}", error / mean_s, None, "%")
    for tier, apart in told["apart"]["hit_rate"].items():
        row("engine against itself,", f"hit rate, {tier}", apart[0], None, "points")
    for figure, apart in told["apart"]["ttft_s"].items():
        row("engine against itself,", f"TTFT, {figure}", apart[0] / told["ttft_s"][figure][0], None, "%")
    for what, errors in told["if_told"].items():
        if what != GATED:
            for figure, error in errors["ttft_s"].items():
                row(f"told {what}, error of", f"TTFT, {figure}", abs(error), None, "%")
    return rows


def page(runs: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> str:
    """All of it in Markdown."""
    figures, times = [], []
    for run in runs:
        name = run["trace"].partition(".")[0]
        for kind, title, form in (
            ("hit_rate", "hit rate", lambda value: f"{value:.2%}"),
            ("ttft_s", "TTFT", lambda value: f"{1e3 * value:,.0f} ms"),
            ("spent_s", "mean TTFT,", lambda value: f"{1e3 * value:,.0f} ms"),
        ):
            for figure, values in run[kind].items():
                engine, simulated = map(form, values)
                apart = [form(value) for value in run["apart"][kind][figure]]
                figures.append(
                    {
                        "trace": name,
                        "figure": f"{title} {figure}" if kind == "spent_s" else f"{title}, {figure}",
                        "engine": engine,
                        "its_runs_apart": apart[0],
                        f"simulated, told {GATED}": simulated,
                        "simulations_apart": apart[1],
                    }
                )
        for figure, (engine, _) in run["ttft_s"].items():
            errors = {told: f"{each['ttft_s'][figure]:+.1%}" for told, each in run["if_told"].items()}
            itself = f"{run['apart']['ttft_s'][figure][0] / engine:.1%}"
            times.append({"trace": name, "TTFT": figure, "engine's runs apart": itself, **errors})
    bounded = [row for row in rows if row["bound"] is not None]
    return (
        "# The simulator beside the engine\n\n`kvtide bench trace`\n\n"
        f"{_TOLD_OF_THE_RUNS}\n\n"
        f"{table(figures, list(figures[0]))}\n\n"
        "How far the TTFT errs, by what the simulator is told of steps, with requests that come when they came in each case: what steps cost; how fast the "
        "machine was when as well; and what each took\n\n"
        f"{table(times, list(times[0]))}\n\n"
        f"{table(bounded, ('name', 'value', 'bound', 'unit', 'holds'))}"
    )
