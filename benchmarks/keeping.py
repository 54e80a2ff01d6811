"""`make bench-keeping`: what the default admission gains over the last use alone, on the traces under benchmarks/traces.

One tier of so many blocks (`benchmarks.leaf_order`): the hit rate with everything admitted, which is LRU with the leaf rule, and
with the adaptive admission; then with a hint for each request whether some later one asks for its last whole block, a fifth of
the hints turned round, for several seeds. And whether it holds when requests come otherwise: halves of a trace, part of its
conversations, arrivals moved about. And two tiers: what is hit in which, and what is written to the lower one.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks import command
from benchmarks.leaf_order import Trace, hit_rate, read, two_tiers
from tiering.cli.environment import environment
from tiering.cli.markdown import table
from tiering.keeping import Adaptive, Everything, Hints

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
_TWO_TIERS = ((1000, 3000), (3000, 10_000), (3000, 40_000))
_Row = dict[str, Any]


def rates(trace: Trace, capacity_blocks: int, variant: str = "as it is") -> _Row:
    """A row: the hit rate with all admitted and with the default."""
    start_s = time.process_time()
    plain = hit_rate(trace, capacity_blocks, Everything([capacity_blocks]))
    middle_s = time.process_time()
    adaptive = hit_rate(trace, capacity_blocks, Adaptive([capacity_blocks]))
    more_s = time.process_time() - 2 * middle_s + start_s
    return {
        "trace": trace.name,
        "variant": variant,
        "blocks": capacity_blocks,
        "all": round(plain, 4),
        "adaptive": round(adaptive, 4),
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


def tiers(trace: Trace, upper_blocks: int, lower_blocks: int) -> Iterator[_Row]:
    """Rows: two tiers with everything admitted and with the default, beside one as large as both."""
    sizes = [upper_blocks, lower_blocks]
    one = hit_rate(trace, sum(sizes), Everything([sum(sizes)]))
    for name, admission in (("all", Everything(sizes)), ("adaptive", Adaptive(sizes))):
        found = two_tiers(trace, *sizes, admission)
        yield {
            "trace": trace.name,
            "upper": upper_blocks,
            "lower": lower_blocks,
            "admission": name,
            "hits": round(found.hits, 4),
            "one LRU of both": round(one, 4),
            "upper hits": round(found.upper_hits, 4),
            "written": round(found.written, 4),
        }


def gates(rows: list[_Row], hint_rows: list[_Row]) -> list[_Row]:
    """What was promised."""
    by_size = {row["blocks"]: row for row in rows if row["trace"] == _CONVERSATION}
    worst = min(rows, key=lambda row: row["points"])
    with_hints = next(
        row for row in hint_rows if row["blocks"] == _HINTED_BLOCKS and row["wrong"] == _FLIPPED
    )
    found = [
        ("conversation, 1,000 blocks, over LRU", by_size[1000]["ratio"], 1.25, "x"),
        ("conversation, 3,000 blocks, over LRU", by_size[3000]["ratio"], 1.7, "x"),
        (f"worst of all: {worst['trace']}, {worst['blocks']:,} blocks", worst["points"], -0.5, "points"),
        ("conversation, 5,000 blocks, with hints", with_hints["median"], 0.18, "hit rate"),
    ]
    return [
        {"name": name, "value": value, "bound": bound, "unit": unit, "holds": value >= bound}
        for name, value, bound, unit in found
    ]


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
    two = [row for trace in traces.values() for sizes in _TWO_TIERS for row in tiers(trace, *sizes)]
    for name in (_CONVERSATION, "mooncake_synthetic"):
        for variant, trace in variants(traces[name], arguments.seed):
            otherwise += [rates(trace, blocks, variant) for blocks in arguments.sizes]
    return {
        "command": "python -m benchmarks.keeping",
        "environment": environment(),
        "configuration": {
            "sizes": arguments.sizes,
            "two_tiers": _TWO_TIERS,
            "seeds_of_hints": arguments.seeds,
            "seed": arguments.seed,
            "warm_up": "none: the cold start counts",
            "repeats": "1: hit rates do not vary",
        },
        "gates": gates(rows, hint_rows),
        "rows": rows,
        "hints": hint_rows,
        "two_tiers": two,
        "otherwise": otherwise,
    }


def report(figures: dict[str, Any]) -> str:
    """For people."""
    machine = figures["environment"]
    columns = ["blocks", "all", "adaptive", "ratio", "points"]
    return "\n\n".join(
        [
            "# What the default admission gains",
            f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores.",
            table(figures["gates"], ["name", "value", "bound", "unit", "holds"]),
            table(figures["rows"], ["trace", *columns, "more_us_a_request"]),
            table(figures["hints"], ["trace", "blocks", "wrong", "median", "least", "most", "seeds"]),
            table(figures["two_tiers"], list(figures["two_tiers"][0])),
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
