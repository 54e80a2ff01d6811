"""`kvtide simulate`: what caches of given sizes would have found of a trace, by the engine's own core."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from math import log
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tiering.bound import chained, minimum
from tiering.cli.environment import commit, version
from tiering.pace import Pace
from tiering.policies import policy_named
from tiering.policies.policy import PolicyError
from tiering.simulate import BlockTimes, Outcome, Simulation, SimulationConfig
from tiering.trace import TraceRequest, read_trace

_BELOW: Final = ("host", "disk")

MINIMUM: Final = "min"
"""In the place of a policy: the optimum, of one tier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What to simulate: all combinations. Sizes are blocks."""

    traces: tuple[Path, ...]
    device_blocks: tuple[int, ...]
    host_blocks: tuple[int, ...]
    disk_blocks: tuple[int, ...]
    policies: tuple[str, ...]
    admission: str | None
    """None: adaptive where the device is the only tier and its order lru, which is what it is made for; else all."""
    times: BlockTimes
    load: str = "always"
    pace: Pace | None = None

    def configs(self) -> list[SimulationConfig | int]:
        """One for each run; of MIN the size alone. Raises ValueError for what cannot be simulated."""
        sizes = list(product(self.device_blocks, self.host_blocks, self.disk_blocks))
        return [self._config(policy, *each) for policy in self.policies for each in sizes]

    def _config(self, policy: str, device: int, host: int, disk: int) -> SimulationConfig | int:
        if policy == MINIMUM:
            if host or disk:
                raise ValueError("min is a bound for one tier: give it --device-blocks alone")
            return device
        admission = self.admission
        if admission is None:
            admission = "all" if host or policy_named(policy) is not None else "adaptive"
        return SimulationConfig(
            device_blocks=device,
            host_blocks=host,
            disk_blocks=disk,
            policy=policy,
            admission=admission,
            times=self.times,
            load=self.load,
            pace=self.pace,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One configuration on one trace."""

    trace: Path
    config: SimulationConfig | int
    outcome: Outcome
    cpu_s: float
    """Processor time that it took."""
    minimum_hit_rate: float | None
    """Of MIN with as many blocks in one tier; None where nobody asked."""

    @property
    def capacity_blocks(self) -> int:
        """Of all tiers together."""
        return self.config if isinstance(self.config, int) else self.config.capacity_blocks

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Blocks of device, host and disk."""
        if isinstance(self.config, int):
            return self.config, 0, 0
        return self.config.device_blocks, self.config.host_blocks, self.config.disk_blocks

    @property
    def policy(self) -> str:
        """The name it was asked for by, and the admission's, where that is not all."""
        if isinstance(self.config, int):
            return MINIMUM
        admission = self.config.admission
        return self.config.policy if admission == "all" else f"{self.config.policy}, {admission}"

    @property
    def share_of_minimum(self) -> float:
        """What MIN would have found, that part of it; 1 if that is nothing."""
        return self.outcome.hit_rate / self.minimum_hit_rate if self.minimum_hit_rate else 1.0

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "trace": self.trace.name,
            **_figures([self.outcome]),
            "minimum_hit_rate": self.minimum_hit_rate,
            "cpu_s": self.cpu_s,
            "configuration": _configuration(self.config),
        }


def _configuration(config: SimulationConfig | int) -> dict[str, Any]:
    if isinstance(config, int):
        return {"device_blocks": config, "host_blocks": 0, "disk_blocks": 0, "policy": MINIMUM}
    return asdict(config)


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of one trace, or of several together."""
    num_blocks = sum(outcome.num_blocks for outcome in outcomes)
    hits = sum(outcome.hits for outcome in outcomes)
    ttft_s = np.concatenate([outcome.ttft_s for outcome in outcomes])
    p50, p99 = np.quantile(ttft_s, [0.5, 0.99]).tolist() if len(ttft_s) else (None, None)
    return {
        "hit_rate": hits / num_blocks if num_blocks else 0.0,
        "hits_by_tier": _summed([outcome.hits_by_tier for outcome in outcomes]),
        "writes_by_tier": _summed([outcome.writes_by_tier for outcome in outcomes]),
        "num_requests": sum(outcome.num_requests for outcome in outcomes),
        "num_blocks": num_blocks,
        "num_computed": sum(outcome.num_computed for outcome in outcomes),
        "ttft_s": {"mean": ttft_s.mean().item(), "p50": p50, "p99": p99} if len(ttft_s) else None,
    }


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {tier: sum(each[tier] for each in counts) for tier in counts[0]}


# --- running -----------------------------------------------------------------------------------------------------------


def simulate(sweep: Sweep, console: Console) -> list[Run]:
    """All runs, trace by trace. A single one reads its trace as it goes; several, and MIN, keep it in memory."""
    configs = sweep.configs()
    keeps = len(configs) > 1 or MINIMUM in sweep.policies
    runs = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("simulating", total=len(configs) * len(sweep.traces))
        for trace in sweep.traces:
            requests: Iterable[TraceRequest] = read_trace(trace)
            best = None
            if keeps:
                requests = list(requests)
                best = _Minimum(requests)
            for config in configs:
                progress.update(task, description=f"{trace.name}: {_configuration(config)['policy']}")
                runs.append(_run(trace, requests, config, best))
                progress.advance(task)
    return runs


class _Minimum:
    """MIN on one trace, whose blocks are named once."""

    def __init__(self, requests: Sequence[TraceRequest]) -> None:
        self._paths = chained([np.array(request.blocks, dtype="<i4") for request in requests])
        self._num_blocks = sum(map(len, self._paths))

    def outcome(self, capacity_blocks: int) -> Outcome:
        """What one tier of that size would have found at best."""
        hits, writes = minimum(self._paths, capacity_blocks)
        return Outcome(
            num_requests=len(self._paths),
            num_blocks=self._num_blocks,
            hits_by_tier={"device": hits},
            writes_by_tier={"device": writes},
            num_computed=self._num_blocks - hits,
        )


def _run(
    trace: Path, requests: Iterable[TraceRequest], config: SimulationConfig | int, best: _Minimum | None
) -> Run:
    start_s = time.process_time()
    if isinstance(config, int):
        assert best is not None, "it was asked for"
        outcome = best.outcome(config)
        minimum_hit_rate: float | None = outcome.hit_rate
    else:
        outcome = Simulation(config).run(requests)
        minimum_hit_rate = None
    cpu_s = time.process_time() - start_s
    if minimum_hit_rate is None and best is not None and not isinstance(config, int):
        minimum_hit_rate = best.outcome(config.capacity_blocks).hit_rate
    return Run(trace=trace, config=config, outcome=outcome, cpu_s=cpu_s, minimum_hit_rate=minimum_hit_rate)


def knee(points: Sequence[tuple[int, float]]) -> int | None:
    """The size from which on more brings less: farthest above the line from the first point to the last.

    points: (blocks, hit rate), ascending. Sizes count by their logarithm. None with fewer than three, or where no point
    stands above that line by a point.
    """
    if len(points) < 3:
        return None
    (first, low), (last, high) = points[0], points[-1]
    slope = (high - low) / (log(last) - log(first))
    above = [(rate - low - slope * (log(size) - log(first)), size) for size, rate in points]
    most, size = max(above)
    return size if most > 0.01 else None


# --- telling -----------------------------------------------------------------------------------------------------------


def run(sweep: Sweep, json_path: Path | None, html_path: Path | None) -> None:
    """Simulate, print a table, and write the files that were asked for."""
    console = Console()
    for path in (json_path, html_path):
        if path is not None:
            _check_writable(path)
    # a policy of one's own is where one is, most likely, which a console script does not search
    sys.path.append(str(Path.cwd()))
    try:
        runs = simulate(sweep, Console(stderr=True))
    except PolicyError as error:
        raise ValueError(f"{error}: run it through tiering.policies.testing.LAWS") from error
    for trace in sweep.traces:
        console.print(_table(trace, [each for each in runs if each.trace == trace]))
        for line in knees([each for each in runs if each.trace == trace]):
            console.print(line)
    if json_path is not None:
        json_path.write_text(json.dumps(told(sweep, runs), indent=1) + "\n", "utf-8")
        console.print(f"figures written to {json_path}")
    if html_path is not None:
        from tiering.cli.simulate_page import page

        html_path.write_text(page(runs), "utf-8")
        console.print(f"page written to {html_path}")


def _check_writable(path: Path) -> None:
    """Raise ValueError if a file cannot be written there: better before a long sweep than after it."""
    was_there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def told(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    """The JSON: every run, and of a single configuration its figures, over all traces, on top."""
    single = len(sweep.configs()) == 1
    top = {**_figures([each.outcome for each in runs]), "configuration": _configuration(runs[0].config)}
    return {
        **(top if single else {}),
        "runs": [each.figures() for each in runs],
        "kvtide": version("kvtide"),
        "commit": commit(),
    }


def knees(runs: Sequence[Run]) -> list[str]:
    """A sentence for each policy whose sizes have a knee."""
    found = []
    for policy in dict.fromkeys(each.policy for each in runs):
        rates = {each.capacity_blocks: each.outcome.hit_rate for each in runs if each.policy == policy}
        if (size := knee(sorted(rates.items()))) is not None:
            found.append(f"{policy}: beyond {size:,} blocks, which find {rates[size]:.1%}, more brings less.")
    return found


def _ttft(outcome: Outcome) -> list[str]:
    """Mean and 99th percentile."""
    if not outcome.ttft_s:
        return ["", ""]
    return [f"{np.mean(outcome.ttft_s):.3g}", f"{np.quantile(outcome.ttft_s, 0.99):.3g}"]


def _table(trace: Path, runs: Sequence[Run]) -> Table:
    first = runs[0].outcome
    title = f"{trace.name}: {first.num_requests:,} requests, {first.num_blocks:,} blocks"
    table = Table(title=title, title_justify="left", caption="%: of all blocks", caption_justify="left")
    below = [tier for tier in _BELOW if any(_configuration(each.config)[f"{tier}_blocks"] for each in runs)]
    table.add_column("device", justify="right")
    for name in below:
        table.add_column(name, justify="right")
    table.add_column("policy")
    for name in ("hits %", *(f"{tier} hits %" for tier in below), *(f"{tier} writes %" for tier in below)):
        table.add_column(name, justify="right")
    if timed := any(each.outcome.ttft_s for each in runs):
        table.add_column("TTFT s", justify="right")
        table.add_column("p99", justify="right")
    if best := any(each.minimum_hit_rate for each in runs):
        table.add_column("of MIN %", justify="right")
    for each in runs:
        config, outcome = _configuration(each.config), each.outcome
        counts = [
            counts.get(tier, 0) for counts in (outcome.hits_by_tier, outcome.writes_by_tier) for tier in below
        ]
        table.add_row(
            *(f"{config[f'{tier}_blocks']:,}" for tier in ("device", *below)),
            each.policy,
            f"{100 * outcome.hit_rate:.2f}",
            *(f"{100 * count / max(1, outcome.num_blocks):.1f}" for count in counts),
            *(_ttft(outcome) if timed else []),
            *([f"{100 * each.share_of_minimum:.0f}"] if best else []),
        )
    return table
