"""`make bench-keeping`: what the default admission gains over the last use alone, on the traces under benchmarks/traces.

One tier of so many blocks in plain Python (`benchmarks.leaf_order`): the hit rate with everything admitted, which is LRU with the
leaf rule, and with the adaptive admission; then with a hint for each request whether some later one asks for its last whole block,
a fifth of the hints turned round, for several seeds. Then the same by the engine's own core, as `kvtide simulate` drives it, and
tiers below: what is hit where, and what is written to disk. And whether it holds when requests come otherwise: halves of a trace,
part of its conversations, arrivals moved about; and constants chosen on the first half, measured on the second.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import command
from benchmarks.leaf_order import Trace, hit_rate, read
from tiering.cli.environment import environment
from tiering.cli.markdown import gate, table
from tiering.keeping import Adaptive, Everything, Hints
from tiering.keeping.adaptive import Tuning
from tiering.simulate import Outcome, Simulation, SimulationConfig
from tiering.trace import TraceRequest

_CONVERSATION = "mooncake_conversation_h1"
_BLOCK_TOKENS = {
    _CONVERSATION: 512,
    "mooncake_synthetic": 512,
    "weka_mixA_blk512": 512,
    "lmcache_agents_blk64": 64,
}
_HINTED_BLOCKS = 5000
_FLIPPED = 0.2
_JITTER = 60  # requests
_CHANCES = 3
"""Draws of the fingerprints, where a trace is short: which blocks are forgotten is a matter of chance."""
_SHORT = (_CONVERSATION, "mooncake_synthetic")
_GATED_TIERS = (3000, 10_000, 30_000)
_LARGE_DISK = (3000, 10_000, 200_000)
_TIERS = (_GATED_TIERS, (1000, 3000, 0), (1000, 2000, 50_000), _LARGE_DISK)
"""The first of all traces, the others of short ones."""
_TUNINGS = tuple(Tuning(ghosts_per_block=ghosts) for ghosts in (8, 16, 32))
"""The least gain, from 0 to 0.05, changes nothing there."""
_DRAWS = range(1, 6)
"""Of fingerprints, by which they are chosen: one draw differs from another by more than one constant from the next."""
_TUNED_BLOCKS = (1000, 3000)
_Row = dict[str, Any]


def rates(trace: Trace, capacity_blocks: int, variant: str = "as it is") -> _Row:
    """A row: the hit rate with all admitted, and with the default the median over draws of fingerprints."""
    start_s = time.process_time()
    plain = hit_rate(trace, capacity_blocks, Everything([capacity_blocks]))
    middle_s = time.process_time()
    salts = range(_CHANCES if trace.name in _SHORT and variant == "as it is" else 1)
    found = [hit_rate(trace, capacity_blocks, Adaptive([capacity_blocks]), salt=salt) for salt in salts]
    more_s = (time.process_time() - middle_s) / len(found) - (middle_s - start_s)
    adaptive = statistics.median(found)
    return {
        "trace": trace.name,
        "variant": variant,
        "blocks": capacity_blocks,
        "all": round(plain, 4),
        "adaptive": round(adaptive, 4),
        "least": round(min(found), 4),
        "ratio": round(adaptive / plain, 3),
        "points": round(100 * (adaptive - plain), 2),
        "more_us_a_request": round(more_s / len(trace.requests) * 1e6, 1),
    }


def hints(trace: Trace, seed: int, flipped: float = _FLIPPED) -> list[Hints]:
    """For each request whether a later one asks for its last whole block; so many of them wrong. None where no block is whole."""
    rng, later, said = random.Random(seed), set[int](), []
    for request in reversed(trace.requests):
        if request.full_blocks:
            truth = request.path[request.full_blocks - 1] in later
            said.append(Hints(goes_on=truth != (rng.random() < flipped)))
        else:
            said.append(Hints())
        later.update(request.path)
    return said[::-1]


def hinted(trace: Trace, capacity_blocks: int, seeds: int, flipped: float) -> _Row:
    """A row: the hit rates with hints."""
    found = [
        hit_rate(trace, capacity_blocks, Adaptive([capacity_blocks]), hints(trace, seed, flipped))
        for seed in range(seeds)
    ]
    return {
        "trace": trace.name,
        "blocks": capacity_blocks,
        "wrong": flipped,
        "median": round(statistics.median(found), 4),
        "least": round(min(found), 4),
        "most": round(max(found), 4),
        "seeds": seeds,
    }


def variants(trace: Trace, seed: int) -> Iterator[tuple[str, Trace]]:
    """The trace's requests as they might have come otherwise."""
    requests = trace.requests
    half = len(requests) // 2
    yield "first half", replace(trace, requests=requests[:half])
    yield "second half", replace(trace, requests=requests[half:])
    rng, kept = random.Random(seed), dict[int, bool]()
    some = [r for r in requests if kept.setdefault(r.path[min(1, len(r.path) - 1)], rng.random() < 0.75)]
    yield "three quarters of its conversations", replace(trace, requests=tuple(some))
    moved = sorted((at + rng.uniform(0, _JITTER), at) for at in range(len(requests)))
    yield "each later by 0 to 60 requests", replace(trace, requests=tuple(requests[at] for _, at in moved))


def tuned(trace: Trace) -> _Row:
    """A row: the constant that is best for the first half of a trace, beside the default on the second half; medians of draws."""
    halves = dict(variants(trace, 0))

    def rates_of(half: str, tuning: Tuning) -> list[float]:
        return [
            statistics.median(
                hit_rate(halves[half], size, Adaptive([size], tuning=tuning), salt=salt) for salt in _DRAWS
            )
            for size in _TUNED_BLOCKS
        ]

    plain = [hit_rate(halves["second half"], size, Everything([size])) for size in _TUNED_BLOCKS]
    best = max(_TUNINGS, key=lambda tuning: sum(rates_of("first half", tuning)))
    return {
        "trace": trace.name,
        "blocks": " ".join(map(str, _TUNED_BLOCKS)),
        "ghosts a block": best.ghosts_per_block,
        "draws": len(_DRAWS),
        "second half, over LRU": _ratios(rates_of("second half", best), plain),
        "with the default": _ratios(rates_of("second half", Tuning()), plain),
    }


def _ratios(rates: Sequence[float], plain: Sequence[float]) -> str:
    return " ".join(f"{rate / base:.2f}" for rate, base in zip(rates, plain, strict=True))


# --- by the engine's own core -----------------------------------------------------------------------------------------


def simulated(
    trace: Trace, sizes: tuple[int, int, int], admission: str, said: Sequence[Hints] | None = None
) -> Outcome:
    """What the core makes of a trace. `sizes`: blocks of device, host and disk."""
    config = SimulationConfig(
        device_blocks=sizes[0], host_blocks=sizes[1], disk_blocks=sizes[2], admission=admission
    )
    return Simulation(config).run(
        TraceRequest(
            0.0, list(request.path), 0, request.output_tokens, *(() if said is None else (said[number],))
        )
        for number, request in enumerate(trace.requests)
    )


def tiers(trace: Trace, sizes: tuple[int, int, int]) -> Iterator[_Row]:
    """Rows: three tiers with everything admitted and with the default, beside one tier as large as all."""
    one = hit_rate(trace, sum(sizes), Everything([sum(sizes)]))
    for admission in ("all", "adaptive"):
        found = simulated(trace, sizes, admission)
        yield {
            "trace": trace.name,
            "tiers": sizes,
            "admission": admission,
            "hits": round(found.hit_rate, 4),
            "one LRU of all": round(one, 4),
            "hits by tier": " ".join(
                f"{hits / found.num_blocks:.4f}" for hits in found.hits_by_tier.values()
            ),
            "to host": found.writes_by_tier["host"],
            "to disk": found.writes_by_tier.get("disk", 0),
            "computed": found.num_computed,
        }


def by_the_core(trace: Trace, seeds: int) -> dict[str, float]:
    """Of the conversations: the ratios to LRU, and the hit rate with hints."""
    found = {}
    for blocks in _TUNED_BLOCKS:
        plain, adaptive = (simulated(trace, (blocks, 0, 0), each).hit_rate for each in ("all", "adaptive"))
        found[f"{blocks:,} blocks, over LRU"] = round(adaptive / plain, 3)
    with_hints = [
        simulated(trace, (_HINTED_BLOCKS, 0, 0), "adaptive", hints(trace, seed)).hit_rate
        for seed in range(seeds)
    ]
    found[f"{_HINTED_BLOCKS:,} blocks, with hints"] = round(statistics.median(with_hints), 4)
    return found


# --- what was promised ------------------------------------------------------------------------------------------------


def gates(rows: list[_Row], hint_rows: list[_Row]) -> list[_Row]:
    """Of one tier in plain Python."""
    by_size = {row["blocks"]: row for row in rows if row["trace"] == _CONVERSATION}
    worst = min(rows, key=lambda row: row["points"])
    with_hints = next(
        row for row in hint_rows if row["blocks"] == _HINTED_BLOCKS and row["wrong"] == _FLIPPED
    )
    return [
        _at_least("conversation, 1,000 blocks, over LRU", by_size[1000]["ratio"], 1.25, "x"),
        _at_least("conversation, 3,000 blocks, over LRU", by_size[3000]["ratio"], 1.7, "x"),
        _at_least(
            f"worst of all: {worst['trace']}, {worst['blocks']:,} blocks", worst["points"], -0.5, "points"
        ),
        _at_least("conversation, 5,000 blocks, with hints", with_hints["median"], 0.18, "hit rate"),
    ]


def core_gates(core: dict[str, float], tier_rows: list[_Row]) -> list[_Row]:
    """Of the core."""
    one, three, hinted_rate = core
    found = [
        _at_least(f"core: conversation, {one}", core[one], 1.25, "x"),
        _at_least(f"core: conversation, {three}", core[three], 1.7, "x"),
        _at_least(f"core: conversation, {hinted_rate}", core[hinted_rate], 0.18, "hit rate"),
    ]
    for name in dict.fromkeys(row["trace"] for row in tier_rows):
        found += _tier_gates(name, [row for row in tier_rows if row["trace"] == name])
    return found


def _tier_gates(name: str, rows: list[_Row]) -> Iterator[_Row]:
    """Of one trace: hits and writes with the default, beside all admitted and beside one tier as large."""
    by_case = {(row["tiers"], row["admission"]): row for row in rows}
    for sizes in dict.fromkeys(row["tiers"] for row in rows):
        plain, adaptive = (by_case[sizes, each] for each in ("all", "adaptive"))
        case = f"{name}, {' + '.join(f'{size:,}' for size in sizes if size)}"
        yield _at_least(f"{case}: hits beside all admitted", _points(adaptive, plain, "hits"), -1.0, "points")
    adaptive = by_case[_GATED_TIERS, "adaptive"]
    yield _at_least(
        f"{name}: three tiers less one LRU of 43k",
        _points(adaptive, adaptive, "one LRU of all"),
        -1.0,
        "points",
    )
    spared = adaptive["computed"] - adaptive["to disk"]
    yield _at_least(f"{name}: fewer written to disk than computed", spared, 1, "blocks")


def _points(one: _Row, other: _Row, what: str) -> float:
    return round(100 * float(one["hits"] - other[what]), 2)


def _at_least(name: str, value: float, bound: float, unit: str) -> _Row:
    return gate(name, value, bound, unit, at_most=False)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows, each printed as it comes."""
    traces = {name: read(name, tokens) for name, tokens in _BLOCK_TOKENS.items()}
    rows, otherwise = [], []
    for trace in traces.values():
        for blocks in arguments.sizes:
            rows.append(rates(trace, blocks))
            print(*rows[-1].values(), flush=True)
    conversation = traces[_CONVERSATION]
    hint_rows = [
        hinted(conversation, blocks, arguments.seeds if flipped else 1, flipped)
        for blocks in sorted({*arguments.sizes, _HINTED_BLOCKS})
        for flipped in (0.0, _FLIPPED)
    ]
    core = by_the_core(conversation, arguments.seeds)
    tier_rows = [
        row
        for trace in traces.values()
        for sizes in (_TIERS if trace.name in _SHORT else _TIERS[:1])
        for row in tiers(trace, sizes)
    ]
    for name in _SHORT:
        for variant, trace in variants(traces[name], arguments.seed):
            otherwise += [rates(trace, blocks, variant) for blocks in arguments.sizes]
    return {
        "command": "python -m benchmarks.keeping",
        "environment": environment(),
        "configuration": {
            "sizes": arguments.sizes,
            "tiers": _TIERS,
            "draws_of_fingerprints": _CHANCES,
            "seeds_of_hints": arguments.seeds,
            "seed": arguments.seed,
            "warm_up": "none: the cold start counts",
            "repeats": "1: hit rates do not vary with the machine",
        },
        "gates": [*gates(rows, hint_rows), *core_gates(core, tier_rows)],
        "rows": rows,
        "hints": hint_rows,
        "core": core,
        "tiers": tier_rows,
        "tuned": [tuned(conversation)],
        "otherwise": otherwise,
    }


def report(figures: dict[str, Any]) -> str:
    """For people."""
    machine = figures["environment"]
    columns = ["blocks", "all", "adaptive", "least", "ratio", "points"]
    return "\n\n".join(
        [
            "# What the default admission gains",
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores.",
            table(figures["gates"], ["name", "value", "bound", "unit", "holds"]),
            table(figures["rows"], ["trace", *columns, "more_us_a_request"]),
            table(figures["hints"], ["trace", "blocks", "wrong", "median", "least", "most", "seeds"]),
            table(figures["tiers"], list(figures["tiers"][0])),
            table(figures["tuned"], list(figures["tuned"][0])),
            table(figures["otherwise"], ["trace", "variant", *columns]),
        ]
    )


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 3000, 10_000, 30_000, 50_000])
    parser.add_argument("--seeds", type=int, default=5, help="of the hints that are wrong")
    parser.add_argument("--seed", type=int, default=1, help="of the traces that come otherwise")
    arguments = parser.parse_args()
    figures = measure(arguments)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
