"""`make bench-simulate`: the simulator on the traces that come with the project, and whether it says what it must.

Every trace at several sizes, with every order and the optimum, whose figures are known from another simulator (plain Python, one
tier); then a cache of three tiers beside one of their size; and, one at a time, how many blocks a second that takes. With
--speed-only the last alone.
"""

import os
import sys
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console

from benchmarks import command
from tiering.cli.environment import environment
from tiering.cli.markdown import gate, table
from tiering.cli.simulate import Run, Sweep, simulate
from tiering.durations import BlockTimes

TRACES: Final = Path(__file__).parent / "traces"
CONVERSATION, SYNTHETIC, AGENTS, CODING = (
    TRACES / f"{name}.jsonl.zst"
    for name in ("mooncake_conversation_h1", "mooncake_synthetic", "lmcache_agents_blk64", "weka_mixA_blk512")
)

SIZES: Final[dict[Path, tuple[int, ...]]] = {
    CONVERSATION: (1000, 3000, 10000, 30000, 50000),
    SYNTHETIC: (1000, 3000, 10000, 30000),
    AGENTS: (1000, 3000, 5000),
    CODING: (1000, 3000, 10000, 30000, 50000),
}

KNOWN: Final[dict[Path, dict[str, tuple[float, ...]]]] = {
    CONVERSATION: {
        "lru": (0.0432, 0.0641, 0.2062, 0.3133, 0.3364),
        "fifo": (0.0432, 0.0640, 0.2059, 0.3132, 0.3364),
        "s3fifo": (0.0550, 0.0907, 0.1952, 0.3042, 0.3363),
        "arc": (0.0510, 0.0867, 0.2082, 0.3049, 0.3363),
        "min": (0.1864, 0.2825, 0.3402, 0.3402, 0.3402),
    },
    SYNTHETIC: {
        "lru": (0.0841, 0.1906, 0.4239, 0.6242),
        "fifo": (0.0845, 0.1898, 0.4224, 0.6239),
        "s3fifo": (0.0801, 0.1715, 0.4005, 0.6257),
        "arc": (0.0946, 0.1978, 0.4357, 0.6260),
        "min": (0.2767, 0.4467, 0.6180, 0.6396),
    },
    AGENTS: {
        "lru": (0.8891, 0.8898, 0.8898),
        "fifo": (0.8888, 0.8898, 0.8898),
        "s3fifo": (0.8731, 0.8897, 0.8898),
        "arc": (0.8879, 0.8897, 0.8898),
        "min": (0.8898, 0.8898, 0.8898),
    },
    CODING: {
        "lru": (0.3913, 0.8584, 0.9582, 0.9646, 0.9648),
        "fifo": (0.3886, 0.8572, 0.9581, 0.9646, 0.9648),
        "s3fifo": (0.3643, 0.7485, 0.9433, 0.9630, 0.9645),
        "arc": (0.4090, 0.8510, 0.9568, 0.9640, 0.9642),
        "min": (0.6447, 0.9125, 0.9649, 0.9649, 0.9649),
    },
}
"""Hit rates by trace, order and blocks as another simulator computes them, in ten-thousandths: what becomes of LRU and MIN at 5,000
blocks of the conversation is in ONE_MORE."""

ONE_MORE: Final[dict[Path, dict[str, dict[int, float]]]] = {
    CONVERSATION: {"lru": {5000: 0.1114}, "min": {5000: 0.3257}}
}

_TIERS: Final = (3000, 10000, 30000)
_NO_TIMES: Final = BlockTimes()
_SPEED_RUNS: Final = 3


def _sweep(trace: Path, policy: str, device: tuple[int, ...], host: int = 0, disk: int = 0) -> Sweep:
    return Sweep(
        traces=(trace,),
        device_blocks=device,
        host_blocks=(host,),
        disk_blocks=(disk,),
        policies=(policy,),
        admissions=("all",),
        times=_NO_TIMES,
    )


def _runs(sweep: Sweep, num_processes: int) -> list[Run]:
    return simulate(sweep, Console(stderr=True), num_processes=num_processes, with_minimum=False)


def known(runs: list[dict[str, Any]], num_processes: int) -> list[dict[str, Any]]:
    """The runs of one tier, added to `runs`; a gate for each trace and order: the largest error."""
    gates = []
    for trace, orders in KNOWN.items():
        for policy, of_sizes in orders.items():
            rates = dict(zip(SIZES[trace], of_sizes, strict=True)) | ONE_MORE.get(trace, {}).get(policy, {})
            found = _runs(_sweep(trace, policy, tuple(sorted(rates))), num_processes)
            runs.extend(each.figures() for each in found)
            errors = [abs(each.outcome.hit_rate - rates[each.capacity_blocks]) for each in found]
            name = f"{_name(trace)}, {policy}, {len(found)} sizes: largest error of the hit rate"
            gates.append(gate(name, round(max(errors), 5), 0.001, "", at_most=True))
    return gates


def three_tiers(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of three tiers, added to `runs`; gates: against one tier of their size, and writes against all that is computed."""
    gates = []
    for trace in KNOWN:
        (one,) = _runs(_sweep(trace, "lru", (sum(_TIERS),)), 1)
        (three,) = _runs(_sweep(trace, "lru", _TIERS[:1], *_TIERS[1:]), 1)
        runs.extend(each.figures() for each in (one, three))
        points = round(100 * (three.outcome.hit_rate - one.outcome.hit_rate), 3)
        gates.append(
            gate(f"{_name(trace)}: three tiers less one of 43k", points, -1.0, "points", at_most=False)
        )
        written, computed = three.outcome.writes_by_tier["disk"], three.outcome.num_computed
        gates.append(gate(f"{_name(trace)}: written to disk", written, computed - 1, "blocks", at_most=True))
    return gates


def speed() -> list[dict[str, Any]]:
    """For each trace, with one tier and with three: the median of some runs, by processor time, reading the trace included."""
    gates = []
    for trace in KNOWN:
        for sweep, what in (
            (_sweep(trace, "lru", _TIERS[:1]), "one tier of 3k"),
            (_sweep(trace, "lru", _TIERS[:1], *_TIERS[1:]), "three tiers"),
        ):
            found = [_runs(sweep, 1)[0] for _ in range(1 if trace is CODING else _SPEED_RUNS)]
            rate = round(median(each.outcome.num_blocks / each.cpu_s for each in found))
            gates.append(gate(f"{_name(trace)}, {what}: speed", rate, 200_000, "blocks/s", at_most=False))
    return gates


def _name(trace: Path) -> str:
    return trace.name.removesuffix(".jsonl.zst")


def main() -> int:
    """Run all, print the gates, and write the figures. 1 if a gate does not hold."""
    parser = command.parser(__doc__)
    parser.add_argument("--speed-only", action="store_true", help="only how many blocks a second it takes")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    gates = speed()
    if not arguments.speed_only:
        gates = [*known(runs, arguments.processes), *three_tiers(runs), *gates]
    machine = environment()
    figures = {"command": "make bench-simulate", "environment": machine, "gates": gates, "runs": runs}
    page = (
        "# The simulator on four real traces\n\n"
        f"`make bench-simulate`, commit {machine['commit']}, {machine['cpu']}, {machine['cores']} cores.\n\n"
        f"{table(gates, ('name', 'value', 'bound', 'unit', 'holds'))}"
    )
    command.publish(arguments.json, figures, page)
    return 0 if all(each["holds"] for each in gates) else 1


if __name__ == "__main__":
    sys.exit(main())
