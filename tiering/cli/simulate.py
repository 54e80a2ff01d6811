"""`kvtide simulate`: what caches of given sizes would have found of a trace, by the engine's own core."""

import signal
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from math import log
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress

from tiering.bound import chained, minimum
from tiering.cli.as_recorded import as_recorded
from tiering.cli.curves_file import read_curves
from tiering.cli.environment import commit, version
from tiering.durations import ASSUMED, ASSUMED_TOKEN_BYTES, BlockTimes, CurveTimes
from tiering.kernels import kernels
from tiering.residency import Ids
from tiering.simulate import Outcome, Simulation, SimulationConfig
from tiering.trace import read_trace

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
    admissions: tuple[str, ...]
    times: BlockTimes | CurveTimes
    load: str = "always"

    def configs(self) -> list[SimulationConfig | int]:
        """One for each run; of MIN the size alone. Raises ValueError for what cannot be simulated."""
        sizes = list(product(self.device_blocks, self.host_blocks, self.disk_blocks))
        return [
            self._config(policy, admission, *each)
            for policy in self.policies
            for admission in (self.admissions[:1] if policy == MINIMUM else self.admissions)
            for each in sizes
        ]

    def _config(
        self, policy: str, admission: str, device: int, host: int, disk: int
    ) -> SimulationConfig | int:
        if policy == MINIMUM:
            if host or disk:
                raise ValueError("min is a bound for one tier: give it --device-blocks alone")
            return device
        return SimulationConfig(
            device_blocks=device,
            host_blocks=host,
            disk_blocks=disk,
            policy=policy,
            admission=admission,
            times=self.times,
            load=self.load,
        )


def times(
    each_block: BlockTimes, curves: str | None, load: str, *, block_tokens: int, token_bytes: int | None
) -> BlockTimes | CurveTimes:
    """What takes how long: what options say of each block, or curves, for blocks of so many tokens.

    `curves`: a file, or "assumed", as `load` "auto" takes them if nothing is said. Raises ValueError if both are given, or the file
    has nothing to go by.
    """
    if curves is None and load != "auto":
        return each_block
    if each_block != BlockTimes():
        raise ValueError(
            "curves say what computing and copies take: give --curves, or --load auto, without --compute-s and the like"
        )
    if curves is None or curves == "assumed":
        known, token_bytes = ASSUMED, token_bytes or ASSUMED_TOKEN_BYTES
    else:
        known, token_bytes = read_curves(Path(curves), f"--curves {curves}", token_bytes)
    return CurveTimes.of(known, block_tokens=block_tokens, token_bytes=token_bytes)


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
    def ttft_s(self) -> dict[str, float] | None:
        """Mean, median and 99th percentile; None where nothing takes time."""
        return _ttft_s([self.outcome])

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
    return {
        "hit_rate": hits / num_blocks if num_blocks else 0.0,
        "hits_by_tier": _summed([outcome.hits_by_tier for outcome in outcomes]),
        "writes_by_tier": _summed([outcome.writes_by_tier for outcome in outcomes]),
        "num_requests": sum(outcome.num_requests for outcome in outcomes),
        "num_blocks": num_blocks,
        "num_computed": sum(outcome.num_computed for outcome in outcomes),
        "ttft_s": _ttft_s(outcomes),
    }


def _ttft_s(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    ttft_s = np.concatenate([outcome.ttft_s for outcome in outcomes])
    if not len(ttft_s):
        return None
    p50, p99 = np.quantile(ttft_s, [0.5, 0.99]).tolist()
    return {"mean": ttft_s.mean().item(), "p50": p50, "p99": p99}


def _summed(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    return {tier: sum(each[tier] for each in counts) for tier in counts[0]}


# --- running -----------------------------------------------------------------------------------------------------------


def simulate(
    sweep: Sweep, console: Console, *, num_processes: int = 1, with_minimum: bool = True
) -> list[Run]:
    """All runs, trace by trace, so many at the same time. `with_minimum`: whether several have MIN beside them.

    A single one reads its trace as it goes; several, and MIN, keep it in memory.
    """
    configs = sweep.configs()
    keeps = len(configs) > 1 or MINIMUM in sweep.policies
    wanted = [(trace, config, keeps, keeps and with_minimum) for trace in sweep.traces for config in configs]
    with ExitStack() as stack:
        progress = stack.enter_context(
            Progress(console=console, transient=True, disable=not console.is_terminal)
        )
        task = progress.add_task("simulating", total=len(wanted))
        done: Iterable[Run]
        if num_processes > 1 and len(wanted) > 1:
            kernels()  # or each process would have them compiled
            pool = stack.enter_context(
                ProcessPoolExecutor(num_processes, get_context("spawn"), _begin, (sys.path,))
            )
            stack.push(_stopped)
            started = [pool.submit(_run, *each) for each in wanted]
            done = (each.result() for each in started)
        else:
            done = (_run(*each) for each in wanted)
        runs = []
        for each in done:
            progress.update(task, advance=1, description=f"{each.trace.name}: {each.policy}")
            runs.append(each)
    _kept.cache_clear()
    return runs


def _begin(path: list[str]) -> None:
    """In another process: find the same plug-ins as in this one, which alone is told of Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = path


def _stopped(kind: type[BaseException] | None, *_: object) -> None:
    """On Ctrl-C end the other processes, of which each would finish its run first, and take seconds."""
    if kind is not None and issubclass(kind, KeyboardInterrupt):
        for process in active_children():
            process.terminate()


class _Kept:
    """A trace in memory, and MIN on it, whose blocks are named once."""

    def __init__(self, trace: Path) -> None:
        self.requests = list(read_trace(trace))
        self._paths: list[Ids] | None = None
        self._found: dict[int, Outcome] = {}

    def best(self, capacity_blocks: int) -> Outcome:
        """What one tier of that size would have found at best."""
        if self._paths is None:
            self._paths = chained([np.array(request.blocks, dtype="<i4") for request in self.requests])
        if capacity_blocks not in self._found:
            hits, writes = minimum(self._paths, capacity_blocks)
            num_blocks = sum(map(len, self._paths))
            self._found[capacity_blocks] = Outcome(
                num_requests=len(self._paths),
                num_blocks=num_blocks,
                hits_by_tier={"device": hits},
                writes_by_tier={"device": writes},
                num_computed=num_blocks - hits,
            )
        return self._found[capacity_blocks]


_kept = lru_cache(maxsize=1)(_Kept)
"""By its path, the trace that was used last."""


def _run(trace: Path, config: SimulationConfig | int, keeps: bool, with_minimum: bool) -> Run:
    """One run; of a trace that is kept in memory, or read as it goes. `with_minimum`: of one that is kept."""
    kept = _kept(trace) if keeps else None
    kernels()  # before time is taken
    start_s = time.process_time()
    if isinstance(config, int):
        assert kept is not None, "MIN has to know all of it"
        outcome = kept.best(config)
    else:
        outcome = Simulation(config).run(read_trace(trace) if kept is None else kept.requests)
    run = Run(
        trace=trace,
        config=config,
        outcome=outcome,
        cpu_s=time.process_time() - start_s,
        minimum_hit_rate=None,
    )
    if kept is None or not (with_minimum or isinstance(config, int)):
        return run
    return replace(run, minimum_hit_rate=kept.best(run.capacity_blocks).hit_rate)


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


def told(sweep: Sweep, runs: Sequence[Run]) -> dict[str, Any]:
    """The JSON: every run, and of a single configuration its figures, over all traces, on top."""
    single = len(sweep.configs()) == 1
    top = {**_figures([each.outcome for each in runs]), "configuration": _configuration(runs[0].config)}
    return {
        **(top if single else {}),
        "runs": [each.figures() for each in runs],
        "recorded": {t.name: found.figures() for t in sweep.traces if (found := as_recorded(t)) is not None},
        "kvtide": version("kvtide"),
        "commit": commit(),
    }


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[int, float]]]:
    """By policy the hit rate over the blocks of all tiers together, ascending. Of combinations of one size the best counts."""
    found: dict[str, dict[int, float]] = {}
    for each in runs:
        rates = found.setdefault(each.policy, {})
        rates[each.capacity_blocks] = max(each.outcome.hit_rate, rates.get(each.capacity_blocks, 0.0))
    return {policy: sorted(rates.items()) for policy, rates in found.items()}


def knees(runs: Sequence[Run]) -> list[str]:
    """A sentence for each policy whose sizes have a knee."""
    found = []
    for policy, points in curves(runs).items():
        if (size := knee(points)) is not None:
            rate = dict(points)[size]
            found.append(f"{policy}: beyond {size:,} blocks, which find {rate:.1%}, more brings less.")
    return found
