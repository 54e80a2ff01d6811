"""`make bench-simulate`: the simulator on the traces that come with the project, and whether it says what it must.

Every trace at several sizes, with the core's own order and the optimum, whose figures are known from another simulator (plain
Python, one tier); then a cache of three tiers beside one of their size; and how many blocks a second that takes.
"""

import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import command
from tiering.cli.environment import environment
from tiering.cli.markdown import table, write
from tiering.cli.simulate import Run, Sweep, simulate
from tiering.simulate import BlockTimes

TRACES: Final = Path(__file__).parent / "traces"
CONVERSATION, SYNTHETIC, AGENTS, CODING = (
    TRACES / f"{name}.jsonl.zst"
    for name in ("mooncake_conversation_h1", "mooncake_synthetic", "lmcache_agents_blk64", "weka_mixA_blk512")
)

KNOWN: Final = {
    CONVERSATION: {
        "lru": {1000: 0.0432, 3000: 0.0641, 5000: 0.1114, 10000: 0.2062, 30000: 0.3133, 50000: 0.3364},
        "min": {1000: 0.1864, 3000: 0.2825, 5000: 0.3257, 10000: 0.3402, 30000: 0.3402, 50000: 0.3402},
        "fifo": {1000: 0.0432, 3000: 0.0640, 10000: 0.2059},
        "s3fifo": {1000: 0.0550, 3000: 0.0907, 10000: 0.1952},
        "arc": {1000: 0.0510, 3000: 0.0867, 10000: 0.2082},
    },
    SYNTHETIC: {
        "lru": {1000: 0.0841, 3000: 0.1906, 10000: 0.4239, 30000: 0.6242},
        "min": {1000: 0.2767, 3000: 0.4467, 10000: 0.6180, 30000: 0.6396},
        "fifo": {1000: 0.0845, 3000: 0.1898, 10000: 0.4224},
        "s3fifo": {1000: 0.0801, 3000: 0.1715, 10000: 0.4005},
        "arc": {1000: 0.0946, 3000: 0.1978, 10000: 0.4357},
    },
    CODING: {
        "lru": {1000: 0.3913, 3000: 0.8584, 10000: 0.9582, 30000: 0.9646, 50000: 0.9648},
        "min": {1000: 0.6447, 3000: 0.9125, 10000: 0.9649, 30000: 0.9649, 50000: 0.9649},
    },
}
"""Hit rates by trace, order and blocks, as another simulator computes them, in ten-thousandths."""

_TIERS: Final = (3000, 10000, 30000)
_NO_TIMES: Final = BlockTimes()


def _runs(trace: Path, policy: str, device: tuple[int, ...], host: int = 0, disk: int = 0) -> list[Run]:
    sweep = Sweep(
        traces=(trace,),
        device_blocks=device,
        host_blocks=(host,),
        disk_blocks=(disk,),
        policies=(policy,),
        admission="all",
        times=_NO_TIMES,
    )
    return simulate(sweep, Console(stderr=True))


def _gate(name: str, value: float, bound: float, unit: str, *, at_most: bool) -> dict[str, Any]:
    holds = value <= bound if at_most else value >= bound
    return {"name": name, "value": value, "bound": bound, "unit": unit, "holds": holds}


def known(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of one tier, added to `runs`; a gate for each trace and order: the largest error."""
    gates = []
    for trace, orders in KNOWN.items():
        for policy, rates in orders.items():
            found = _runs(trace, policy, tuple(rates))
            runs.extend(each.figures() for each in found)
            errors = [abs(each.outcome.hit_rate - rates[each.capacity_blocks]) for each in found]
            name = f"{_name(trace)}, {policy}: largest error of the hit rate"
            gates.append(_gate(name, round(max(errors), 5), 0.001, "", at_most=True))
    return gates


def three_tiers(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of three tiers, added to `runs`; gates: against one tier of their size, and writes against all that is computed."""
    gates = []
    for trace in (CONVERSATION, SYNTHETIC, AGENTS, CODING):
        (one,) = _runs(trace, "lru", (sum(_TIERS),))
        (three,) = _runs(trace, "lru", _TIERS[:1], *_TIERS[1:])
        runs.extend(each.figures() for each in (one, three))
        points = round(100 * (three.outcome.hit_rate - one.outcome.hit_rate), 3)
        gates.append(
            _gate(f"{_name(trace)}: three tiers less one of 43k", points, -1.0, "points", at_most=False)
        )
        written, computed = three.outcome.writes_by_tier["disk"], three.outcome.num_computed
        gates.append(_gate(f"{_name(trace)}: written to disk", written, computed - 1, "blocks", at_most=True))
        if trace is CODING:
            for each, what in ((one, "one tier"), (three, "three tiers")):
                rate = round(each.outcome.num_blocks / each.cpu_s)
                gates.append(
                    _gate(f"{_name(trace)}, {what}: speed", rate, 200_000, "blocks/s", at_most=False)
                )
    return gates


def _name(trace: Path) -> str:
    return trace.name.removesuffix(".jsonl.zst")


def main() -> int:
    """Run all, print the gates, and write the figures. 1 if a gate does not hold."""
    parser = command.parser(__doc__)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    gates = [*known(runs), *three_tiers(runs)]
    page = table(gates, ("name", "value", "bound", "unit", "holds"))
    print(page)
    figures = {"environment": environment(), "gates": gates, "runs": runs}
    write(arguments.json, figures, f"# The simulator on four real traces\n\n`make bench-simulate`\n\n{page}")
    return 0 if all(gate["holds"] for gate in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
