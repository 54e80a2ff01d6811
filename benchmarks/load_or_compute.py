"""`make bench-load-or-compute`: does choosing between loading and computing pay, on a virtual clock?

Machines whose true speeds are known: a model's prefill, host memory, and disks from slow to fast. On each the chooser begins
without any figures and learns from requests of traffic, whose times are noisy and now and then far too long. Then prompts
behind short to long prefixes are answered in four ways, with the same luck: all that matches is loaded, nothing is, the
chooser decides, and (with the true speeds, as a bound) the front is computed while the tail is being loaded.

No thread sleeps and nothing is computed: seconds are what the machines' speeds say. The processor does not matter.
"""

import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import command
from kvstore.reports import TierName
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.costs import Costs, Curves, LoadCurve, PrefillCurve
from tiering.decision import Chooser, Match, Predicted

BLOCK_TOKENS = 16
SUFFIX_TOKENS = 256
LEARN_REQUESTS = 48
WORSE = 1.05
WORTH_BUILDING = 0.10


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """True speeds, and how far a single time may be from them.

    noise: sigma of the logarithm.   stalls: the part of loads from disk that take `stall_times` as long.
    """

    name: str
    token_bytes: int
    prefill: PrefillCurve
    host: LoadCurve
    disk: LoadCurve
    noise: float = 0.1
    stalls: float = 0.01
    stall_times: float = 10.0

    @property
    def curves(self) -> Curves:
        return Curves(prefill=self.prefill, loads={"host": self.host, "disk": self.disk})


MODELS = (
    # fitted by hand to benchmarks/results/ttft_zen4-2core_2026-11-30.json: 13.5 s for 4,160 tokens, 0.48 s for 64 behind 4,096
    Machine(
        name="SmolLM2-135M, 2 cores",
        token_bytes=23_040,
        prefill=PrefillCurve(call_s=0.16, token_s=1.7e-3, pair_s=7.5e-7),
        host=LoadCurve(latency_s=1e-3, byte_s=1 / 7.7e9),
        disk=LoadCurve(latency_s=5e-3, byte_s=1),
    ),
    # assumed: 2 * 8e9 operations a token and 4 * 32 * 4,096 a pair, at 300e12 a second; PCIe at 25 GB/s
    Machine(
        name="8B, one GPU (assumed)",
        token_bytes=131_072,
        prefill=PrefillCurve(call_s=0.02, token_s=5.3e-5, pair_s=1.75e-9),
        host=LoadCurve(latency_s=1e-3, byte_s=1 / 25e9),
        disk=LoadCurve(latency_s=2e-3, byte_s=1),
    ),
)
DISKS_GB_S = {
    "SmolLM2-135M, 2 cores": (0.003, 0.006, 0.0125, 0.025, 0.05, 0.1, 0.6, 3.0),
    "8B, one GPU (assumed)": (0.3, 0.6, 1.2, 2.4, 3.5, 5.0, 7.0, 14.0),
}
PREFIXES = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
LAYOUTS: dict[str, tuple[tuple[TierName, int], ...]] = {
    "all on disk": (("disk", 4),),
    "half in host memory, half on disk": (("host", 2), ("disk", 2)),
    "a quarter on the device, one in host memory, half on disk": (("device", 1), ("host", 1), ("disk", 2)),
}


@dataclass(frozen=True, slots=True)
class Luck:
    """How much longer than its speeds say each part of one request takes."""

    prefill: float = 1.0
    host: float = 1.0
    disk: float = 1.0


def luck(machine: Machine, rng: random.Random) -> Luck:
    stalled = machine.stall_times if rng.random() < machine.stalls else 1.0
    prefill, host, disk = (rng.lognormvariate(0, machine.noise) for _ in range(3))
    return Luck(prefill, host, disk * stalled)


def matched(machine: Machine, layout: str, prefix_tokens: int) -> Match:
    quarter = prefix_tokens // BLOCK_TOKENS // 4
    return Match(
        runs=tuple((tier, quarters * quarter) for tier, quarters in LAYOUTS[layout]),
        prompt_tokens=prefix_tokens + SUFFIX_TOKENS,
        block_tokens=BLOCK_TOKENS,
        block_bytes=BLOCK_TOKENS * machine.token_bytes,
    )


def with_luck(machine: Machine, bad: Luck) -> Curves:
    """What this machine takes with it."""
    prefill = PrefillCurve(**{name: value * bad.prefill for name, value in asdict(machine.prefill).items()})
    loads: dict[TierName, LoadCurve] = {
        "host": _slower(machine.host, bad.host),
        "disk": _slower(machine.disk, bad.disk),
    }
    return Curves(prefill=prefill, loads=loads)


def _slower(curve: LoadCurve, times: float) -> LoadCurve:
    return LoadCurve(latency_s=curve.latency_s * times, byte_s=curve.byte_s * times)


def play(match: Match, curves: Curves, num_blocks: int, deadline_s: float | None = None) -> float:
    """Seconds to the first token, by what things truly take. What has not come by the deadline is computed."""
    assert curves.prefill is not None, "machines have speeds"
    taken = Predicted(match, curves.prefill, curves)
    if deadline_s is None or taken.load_s(num_blocks) <= deadline_s:
        return taken.ttft_s(num_blocks)
    arrived = num_blocks
    while arrived > match.num_on_device and taken.load_s(arrived) > deadline_s:
        arrived -= 1
    return deadline_s + taken.prefill_s(arrived)


def both_ends_s(match: Match, curves: Curves) -> float:
    """The front is computed while what lies behind it is loaded; then what was never seen. At the best place to meet.

    A bound: computing does not slow loading, nor the other way round, and the tail has the tiers in any order.
    """
    assert curves.prefill is not None, "machines have speeds"
    prefill, taken = curves.prefill, Predicted(match, curves.prefill, curves)
    first, last, size = match.num_on_device, match.num_blocks, match.block_tokens
    all_s, latency_s = taken.load_s(last), max(curve.latency_s for curve in curves.loads.values())

    def front_s(block: int) -> float:
        return prefill.seconds(first * size, (block - first) * size)

    def tail_s(block: int) -> float:
        return all_s - max(0.0, taken.load_s(block) - latency_s) if block < last else 0.0

    low, high = first, last
    while low < high:  # the front takes longer the further it goes, the tail less
        middle = (low + high) // 2
        low, high = (low, middle) if front_s(middle) >= tail_s(middle) else (middle + 1, high)
    met_s = min(max(front_s(block), tail_s(block)) for block in (max(first, low - 1), low, first, last))
    return min(met_s + taken.prefill_s(last), taken.ttft_s(taken.best()))


def learn(machine: Machine, rng: random.Random, chooser: Chooser, num_requests: int) -> None:
    """Requests of traffic: computed from somewhere on, or loaded; of sizes over the whole grid."""
    for _ in range(num_requests):
        start = rng.choice([0, rng.choice(PREFIXES)])
        tokens = int(2 ** rng.uniform(6, 14))
        curves = with_luck(machine, luck(machine, rng))
        assert curves.prefill is not None, "a machine has one"
        chooser.costs.prefilled(start, tokens, curves.prefill.seconds(start, tokens))
        for tier in ("host", "disk"):
            num_bytes = int(2 ** rng.uniform(8, 15)) * machine.token_bytes
            chooser.costs.loaded(tier, num_bytes, curves.loads[tier].seconds(num_bytes))


def measure_cell(
    machine: Machine, chooser: Chooser, layout: str, prefix_tokens: int, repeats: int, rng: random.Random
) -> dict[str, Any]:
    """One prefix in one place: mean seconds to the first token in each way."""
    match = matched(machine, layout, prefix_tokens)
    always, never, chosen = [], [], []
    decision = chooser.choose(match)
    chooser.taken(match, decision)
    for _ in range(repeats):
        curves = with_luck(machine, luck(machine, rng))
        always.append(play(match, curves, match.num_blocks))
        never.append(play(match, curves, match.num_on_device))
        chosen.append(play(match, curves, decision.num_blocks, decision.deadline_s))
        chooser.ended(decision, chosen[-1])
    best = min(statistics.mean(always), statistics.mean(never))
    true = machine.curves
    assert true.prefill is not None, "machines have speeds"
    ideal_s = play(match, true, Predicted(match, true.prefill, true).best())
    return {
        "prefix_tokens": prefix_tokens,
        "always_s": statistics.mean(always),
        "never_s": statistics.mean(never),
        "chosen_s": statistics.mean(chosen),
        "loaded_blocks": decision.num_blocks - match.num_on_device,
        "of_blocks": match.num_blocks - match.num_on_device,
        "predicted_s": decision.ttft_s,
        "by_better": statistics.mean(chosen) / best,
        "both_ends_save": 1 - both_ends_s(match, true) / ideal_s,
    }


def measure_grid(repeats: int, seed: int, prefixes: Sequence[int] = PREFIXES) -> list[dict[str, Any]]:
    rows = []
    for model in MODELS:
        for disk_gb_s in DISKS_GB_S[model.name]:
            machine = replace(model, disk=replace(model.disk, byte_s=1 / (disk_gb_s * 1e9)))
            rng = random.Random(f"{seed} {model.name} {disk_gb_s}")
            # what a chooser tries now and then is for traffic, not for a grid
            chooser = Chooser(Costs(), probe_every=1 << 30)
            learn(machine, rng, chooser, LEARN_REQUESTS)
            for layout in LAYOUTS:
                for prefix_tokens in prefixes:
                    cell = measure_cell(machine, chooser, layout, prefix_tokens, repeats, rng)
                    rows.append({"model": model.name, "disk_gb_s": disk_gb_s, "layout": layout, **cell})
            chooser.check()
    return rows


def measure_change(times: float, num_requests: int, seed: int) -> dict[str, Any]:
    """Traffic over a disk that changes its speed in the middle: the chooser knows what it has seen itself, and no more."""
    model = MODELS[1]
    before = replace(model, disk=replace(model.disk, byte_s=1 / 3.5e9))
    after = replace(before, disk=_slower(before.disk, times))
    rng, chooser = random.Random(f"{seed} {times}"), Chooser(Costs())
    always_s = never_s = better_s = chosen_s = 0.0
    for number in range(num_requests):
        machine = before if number < num_requests // 2 else after
        match = matched(machine, "all on disk", rng.choice(PREFIXES))
        curves = with_luck(machine, luck(machine, rng))
        decision = chooser.choose(match)
        chooser.taken(match, decision)
        all_s, none_s = play(match, curves, match.num_blocks), play(match, curves, 0)
        took_s = play(match, curves, decision.num_blocks, decision.deadline_s)
        chooser.ended(decision, took_s)
        _tell(chooser, match, curves, decision.num_blocks, decision.deadline_s)
        always_s, never_s, chosen_s = always_s + all_s, never_s + none_s, chosen_s + took_s
        better_s += min(play(match, machine.curves, match.num_blocks), play(match, machine.curves, 0))
    chooser.check()
    return {
        "the disk becomes": f"{times:g} times as slow" if times > 1 else f"{1 / times:g} times as fast",
        "requests": num_requests,
        "always_s": always_s,
        "never_s": never_s,
        "chosen_s": chosen_s,
        "by_better": chosen_s / min(always_s, never_s),
        "by_better_each_time": chosen_s / better_s,
        "stats": chooser.stats(),
    }


def _tell(chooser: Chooser, match: Match, curves: Curves, num_blocks: int, deadline_s: float | None) -> None:
    """What an engine sees of a request: loads as far as they came, and what was computed."""
    assert curves.prefill is not None, "machines have speeds"
    load_s = curves.loads["disk"].seconds(num_blocks * match.block_bytes)
    if num_blocks and deadline_s is not None and load_s > deadline_s:
        num_blocks = max(1, int(num_blocks * deadline_s / load_s))
        load_s = max(deadline_s, curves.loads["disk"].seconds(num_blocks * match.block_bytes))
    start = num_blocks * match.block_tokens
    chooser.costs.loaded("disk", num_blocks * match.block_bytes, load_s)
    rest = match.prompt_tokens - start
    chooser.costs.prefilled(start, rest, curves.prefill.seconds(start, rest))


def gates(rows: Sequence[dict[str, Any]], changes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    worst, best = max(row["by_better"] for row in rows), min(row["by_better"] for row in rows)
    held = [
        ("chosen, by the better of always and never, the worst cell", worst, WORSE, worst <= WORSE),
        ("chosen, by the better of always and never, the best cell", best, 1.0, best < 1.0),
    ]
    for change in changes:
        name = f"chosen, by the better of always and never, {change['the disk becomes']}"
        held.append((name, change["by_better"], WORSE, change["by_better"] <= WORSE))
    return [
        {"name": name, "value": round(value, 4), "bound": bound, "unit": "x", "holds": holds}
        for name, value, bound, holds in held
    ]


def both_ends(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What restoring from both ends would save of the best that loading from the front can do, by model and layout."""
    told = []
    for model, layout in dict.fromkeys((row["model"], row["layout"]) for row in rows):
        saved = [row["both_ends_save"] for row in rows if (row["model"], row["layout"]) == (model, layout)]
        told.append(
            {
                "model": model,
                "layout": layout,
                "both ends would save, mean": _percent(statistics.mean(saved)),
                "median": _percent(statistics.median(saved)),
                "most": _percent(max(saved)),
                "cells with more than 10 %": f"{sum(each > WORTH_BUILDING for each in saved)} of {len(saved)}",
            }
        )
    return told


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def measure(repeats: int, requests: int, seed: int) -> dict[str, Any]:
    rows = measure_grid(repeats, seed)
    changes = [measure_change(times, requests, seed) for times in (8.0, 1 / 8)]
    saved = [row["both_ends_save"] for row in rows]
    return {
        "command": " ".join(["python -m benchmarks.load_or_compute", *sys.argv[1:]]),
        "environment": environment(),
        "config": {"machines": [asdict(model) for model in MODELS], "suffix_tokens": SUFFIX_TOKENS},
        "seed": seed,
        "warm_up": f"{LEARN_REQUESTS} requests on each machine",
        "repeats": repeats,
        "rows": rows,
        "changes": changes,
        "both_ends": {
            "mean": statistics.mean(saved),
            "median": statistics.median(saved),
            "most": max(saved),
            "share_above_10_percent": sum(each > WORTH_BUILDING for each in saved) / len(saved),
            "rows": both_ends(rows),
        },
        "gates": gates(rows, changes),
    }


def _grid(rows: Sequence[dict[str, Any]], model: str, layout: str, shown: str) -> str:
    """One table: disks down, prefixes across."""
    of_both = [row for row in rows if (row["model"], row["layout"]) == (model, layout)]
    lines = []
    for disk in dict.fromkeys(row["disk_gb_s"] for row in of_both):
        of_disk = [row for row in of_both if row["disk_gb_s"] == disk]
        cells = {f"{row['prefix_tokens']:,}": _shown(row, shown) for row in of_disk}
        lines.append({"disk, GB/s": disk, **cells})
    return table(lines, list(lines[0]))


def _shown(row: dict[str, Any], shown: str) -> str:
    if shown == "save":
        return _percent(row["both_ends_save"])
    return f"{row['by_better']:.3f} ({row['loaded_blocks'] / row['of_blocks']:.0%})"


def report(figures: dict[str, Any]) -> str:
    """For people."""
    rows, machine = figures["rows"], figures["environment"]
    parts = [
        "# Load or compute",
        (
            f"`{figures['command']}`, commit {machine['commit']}. On a virtual clock: {figures['repeats']} requests a cell, each with "
            f"{SUFFIX_TOKENS} tokens never seen behind the prefix; the chooser has learned from {LEARN_REQUESTS} requests of the machine."
        ),
        table(figures["gates"], ("name", "value", "bound", "unit", "holds")),
        "Mean time to first token as chosen, by the better of always loading and never; in brackets how much of the match is loaded.",
    ]
    tables = dict.fromkeys((row["model"], row["layout"]) for row in rows)
    for model, layout in tables:
        parts += [f"## {model}: {layout}", _grid(rows, model, layout, "by_better")]
    changes = [
        {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in change.items()
            if name != "stats"
        }
        for change in figures["changes"]
    ]
    told = figures["both_ends"]
    parts += [
        "## A disk that changes in the middle of the traffic",
        table(changes, list(changes[0])),
        "## Restoring from both ends, not built",
        (
            "What computing the front while loading the tail would save of the best decision with the true speeds, if neither slowed "
            f"the other: in the mean {_percent(told['mean'])}, in the middle {_percent(told['median'])}, at most "
            f"{_percent(told['most'])}; more than 10 % in {_percent(told['share_above_10_percent'])} of the cells."
        ),
        table(told["rows"], list(told["rows"][0])),
        *(f"{model}, all on disk:\n\n{_grid(rows, model, 'all on disk', 'save')}" for model in DISKS_GB_S),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=400, help="requests of each cell")
    parser.add_argument(
        "--requests", type=int, default=2000, help="over a disk that changes its speed in the middle"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = measure(arguments.repeats, arguments.requests, arguments.seed)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
