"""`make bench-quotas`: what one tenant's flood does to another's hits, with quotas and without, in the engine's own core.

One tenant asks what a real trace under benchmarks/traces holds. Another sends prompts that nobody asks for twice between its
requests, several for each. On a virtual clock, as `kvtide simulate`: the first one's hit rate alone in half of each tier, which
is its fair part, and beside the flood in the whole of them. Once with everything admitted, where the last use alone decides, and
once with the default admission, which may learn that what the flood sends never comes back. Then two tenants with a real trace each,
the conversations of one trace in turns: what quotas cost them together. And the processor time that they cost one tenant, and two: the
trace without a flood, with quotas and without, in turns.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks import command
from benchmarks.leaf_order import TRACES
from kvstore.store import OWNER_BYTES
from tiering.claim import Claim
from tiering.cli.environment import environment
from tiering.cli.markdown import gate, table
from tiering.index_config import IndexConfig
from tiering.lease import Lease
from tiering.owners import Ownership
from tiering.quotas import Quotas
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import TraceRequest, read_trace

_STEADY, _FLOODING = (Claim(Ownership(bytes([number]) * OWNER_BYTES)) for number in (1, 2))
_FIRST_FLOOD_BLOCK: Final = 1 << 30  # above all ids of the trace
_NAMES: Final = ("conversation_h1", "synthetic")
ADMISSIONS: Final = ("all", "adaptive")
_Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes(SimulationConfig):
    """Tiers that tenants share."""

    quotas: Quotas | None = None

    @property
    def index(self) -> IndexConfig:
        """See SimulationConfig."""
        index: IndexConfig = SimulationConfig.index.__get__(self)
        return replace(index, quotas=self.quotas)


class Shared(Simulation):
    """Requests of tenants."""

    def __init__(self, config: Sizes) -> None:
        super().__init__(config)
        self._tenant = _STEADY
        self.asked: Counter[Claim] = Counter()
        self.found: Counter[Claim] = Counter()
        """Blocks, by tenant."""

    def of(self, tenant: Claim, requests: Iterator[TraceRequest]) -> Iterator[TraceRequest]:
        """These requests, each of which is the tenant's when it is served."""
        for request in requests:
            self._tenant = tenant
            self.asked[tenant] += len(request.blocks)
            yield request

    def _admit(self, tokens: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Lease:
        while True:
            outcome = self._index.admit(
                tokens, len(tokens), chunk_blocks=len(tokens), compute_last=False, claim=self._tenant
            )
            self._start_moves()
            if isinstance(outcome, Lease):
                self.found[self._tenant] += outcome.num_cached_blocks
                return outcome
            self._wait()

    def rate(self, tenant: Claim) -> float:
        """The part of a tenant's blocks that was found."""
        return self.found[tenant] / max(1, self.asked[tenant])


def flood(number: int, num: int, blocks: int, at_s: float) -> Iterator[TraceRequest]:
    """So many prompts that come once."""
    for at in range(number * num, (number + 1) * num):
        first = _FIRST_FLOOD_BLOCK + at * blocks
        yield TraceRequest(at_s, list(range(first, first + blocks)), blocks, 0)


def sizes_of(
    arguments: argparse.Namespace, quotas: Quotas | None, part: float = 1.0, admission: str = "adaptive"
) -> Sizes:
    """The tiers, or a part of each."""
    device, host, disk = (int(blocks * part) for blocks in arguments.blocks)
    return Sizes(device_blocks=device, host_blocks=host, disk_blocks=disk, quotas=quotas, admission=admission)


def serve(simulation: Shared, requests: list[TraceRequest], num_flood: int, blocks: int) -> None:
    """The trace, with so many prompts of the flood before each of its requests."""

    def together() -> Iterator[TraceRequest]:
        for number, request in enumerate(requests):
            yield from simulation.of(_FLOODING, flood(number, num_flood, blocks, request.at_s))
            yield from simulation.of(_STEADY, iter([request]))

    simulation.run(together())
    simulation.check()


def rates(traces: dict[str, list[TraceRequest]], arguments: argparse.Namespace) -> list[_Row]:
    """A row for each trace, admission and flood."""
    rows = []
    for trace, admission in product(traces, ADMISSIONS):
        alone = Shared(sizes_of(arguments, None, 0.5, admission))
        serve(alone, traces[trace], 0, 0)
        for num_flood in arguments.flood:
            row: _Row = {"alone": alone.rate(_STEADY)}
            for name, quotas in (("without", None), ("with", Quotas())):
                shared = Shared(sizes_of(arguments, quotas, admission=admission))
                serve(shared, traces[trace], num_flood, arguments.flood_blocks)
                row[name] = shared.rate(_STEADY)
            row = {name: round(value, 4) for name, value in row.items()}
            row["without by alone"], row["with by alone"] = (
                round(row[name] / row["alone"], 3) for name in ("without", "with")
            )
            rows.append({"trace": trace, "admission": admission, "flood": num_flood, **row})
            print(*rows[-1].values(), file=sys.stderr, flush=True)
    return rows


def two_tenants(traces: dict[str, list[TraceRequest]], arguments: argparse.Namespace) -> list[_Row]:
    """Every other conversation is one's, the rest are another's: what both find together, in the device alone and in all tiers."""
    rows = []
    for trace, num_tiers in product(traces, (1, 3)):
        row: _Row = {"trace": trace, "tiers": num_tiers}
        for name, quotas in (("without", None), ("with", Quotas())):
            sizes = sizes_of(arguments, quotas)
            if num_tiers == 1:
                sizes = replace(sizes, host_blocks=0, disk_blocks=0)
            shared = Shared(sizes)
            shared.run(by_conversation(shared, traces[trace]))
            shared.check()
            row[name] = round(sum(shared.found.values()) / sum(shared.asked.values()), 4)
        rows.append(row)
        print(*row.values(), file=sys.stderr, flush=True)
    return rows


def by_conversation(shared: Shared, requests: list[TraceRequest]) -> Iterator[TraceRequest]:
    """Whose a request is, its second block says: the first is a system prompt that many have. What both have is not shared."""
    for request in requests:
        if request.blocks[:2][-1] % 2:
            blocks = [_FIRST_FLOOD_BLOCK + block for block in request.blocks]
            yield from shared.of(_FLOODING, iter([msgspec.structs.replace(request, blocks=blocks)]))
        else:
            yield from shared.of(_STEADY, iter([request]))


def of_one(shared: Shared, requests: list[TraceRequest]) -> Iterator[TraceRequest]:
    """All are one tenant's."""
    return shared.of(_STEADY, iter(requests))


def cost(
    requests: list[TraceRequest],
    arguments: argparse.Namespace,
    tenants: Callable[[Shared, list[TraceRequest]], Iterator[TraceRequest]],
) -> _Row:
    """Processor time of a trace of these tenants', with quotas by without; medians of rounds in which both run in turns."""
    took_s: dict[str, list[float]] = {"without": [], "with": []}
    found: dict[str, Counter[Claim]] = {}
    for _ in range(arguments.repeats + 1):
        for name, quotas in (("without", None), ("with", Quotas())):
            simulation = Shared(sizes_of(arguments, quotas))
            start_s = time.process_time()
            simulation.run(tenants(simulation, requests))
            took_s[name].append(time.process_time() - start_s)
            found[name] = simulation.found
    ratios = [b / a for a, b in zip(took_s["without"][1:], took_s["with"][1:], strict=True)]
    return {
        "tenants": len(found["with"]),
        "ratio": round(float(np.median(ratios)), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "differing_hits": abs(found["with"].total() - found["without"].total()),
    }


def gates(rows: list[_Row], two: list[_Row], one: _Row) -> list[_Row]:
    """What must hold."""
    kept = min(row["with by alone"] for row in rows)
    points = max(100 * (row["alone"] - row["with"]) for row in rows)
    harm = min(row["without by alone"] for row in rows)
    together = max(100 * (row["without"] - row["with"]) for row in two)
    found = [
        ("hit rate with quotas, by that alone, the worst row", kept, 0.75, "x", False),
        ("points lost beside the flood, with quotas, the worst row", points, 3.0, "points", True),
        ("hit rate without quotas, by that alone, where the flood does most harm", harm, 0.5, "x", True),
        ("points that two tenants lose together by quotas, the worst row", together, 1.0, "points", True),
        ("one tenant: hits that differ", one["differing_hits"], 0, "blocks", True),
        ("one tenant: processor time with quotas, by that without", one["ratio"], 1.1, "x", True),
    ]
    return [
        gate(name, round(float(value), 3), bound, unit, at_most=at_most)
        for name, value, bound, unit, at_most in found
    ]


def measure(arguments: argparse.Namespace) -> _Row:
    traces = {path.name: list(islice(read_trace(path), arguments.requests)) for path in arguments.trace}
    rows, two = rates(traces, arguments), two_tenants(traces, arguments)
    one, two_cost = (cost(next(iter(traces.values())), arguments, by) for by in (of_one, by_conversation))
    return {
        "command": "make bench-quotas",
        "environment": environment(),
        "configuration": {
            "traces": list(traces),
            "requests": arguments.requests,
            "blocks": arguments.blocks,
            "flood": arguments.flood,
            "flood_blocks": arguments.flood_blocks,
            "seed": "none: nothing is drawn",
            "warm_up": "rates: none, the cold start counts; times: one round",
            "repeats": arguments.repeats,
        },
        "rows": rows,
        "two_tenants": two,
        "cost": [one, two_cost],
        "gates": gates(rows, two, one),
    }


def report(figures: _Row) -> str:
    """For people."""
    machine, given = figures["environment"], figures["configuration"]
    device, host, disk = given["blocks"]
    return "\n\n".join(
        [
            "# One tenant's flood beside another's traffic",
            (
                f"`{figures['command']}`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores. "
                f"The first {given['requests']} requests of a trace, and before each so many prompts of {given['flood_blocks']} blocks "
                f"that come once, of another tenant; device {device:,}, host memory {host:,}, disk {disk:,} blocks. Hit rates of the "
                "trace's tenant: alone in half of each tier, and beside the flood in the whole of them."
            ),
            table(figures["rows"], list(figures["rows"][0])),
            "Two tenants, with every other conversation of a trace each: what both find, in the device alone and in all tiers.",
            table(figures["two_tenants"], list(figures["two_tenants"][0])),
            "One tenant alone, and two: processor time with quotas by that without.",
            table(figures["cost"], list(figures["cost"][0])),
            table(figures["gates"], ["name", "value", "bound", "unit", "holds"]),
        ]
    )


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--trace", type=Path, nargs="+", default=[TRACES / f"mooncake_{name}.jsonl.zst" for name in _NAMES]
    )
    parser.add_argument("--requests", type=int, default=600, help="of each trace")
    parser.add_argument(
        "--blocks", type=int, nargs=3, default=[1000, 2000, 4000], help="of device, host memory and disk"
    )
    parser.add_argument(
        "--flood", type=int, nargs="+", default=[4], help="prompts before each request of the trace"
    )
    parser.add_argument("--flood-blocks", type=int, default=32, help="of each of them")
    parser.add_argument("--repeats", type=int, default=3, help="of measuring what quotas cost")
    arguments = parser.parse_args()
    figures = measure(arguments)
    command.publish(arguments.json, figures, report(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
