"""`kvtide bench trace`: a trace through the real engine, and through the simulator with the same configuration: how far it errs.

The engine serves a part of each trace with tokens made from its blocks, which become smaller. What its steps took, in this very run, and
what moves between its tiers took before it, are what the replay on the virtual clock is told (`trace_simulated`); which request
finds what, and how long each waits, it has to find out by itself.
"""

import contextlib
import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from engine import CacheHints, EngineConfig, RequestOptions, Result, SamplingParams
from engine.engine import Engine
from engine.handle import Handle
from kvstore.layers import FaultStore
from kvstore.store import BlockRef, Store
from tiering.cli.environment import environment
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.markdown import write
from tiering.cli.prompts import load
from tiering.cli.trace_compared import GATED, compared, gates, page
from tiering.cli.trace_costs import Forward, Timed, move_costs, processor_share, step_costs, steps_of
from tiering.cli.trace_prompts import Prompts, Tokens
from tiering.cli.trace_simulated import EngineRun, simulated
from tiering.costs import Costs
from tiering.decision import Chooser
from tiering.keeping import Hints
from tiering.replay import Asked, Seen

if TYPE_CHECKING:
    from kvstore.store import Readable

_BLOCK_TOKENS: Final = 16
_LEAST_DEVICE: Final = 1.25
"""Times the longest prompt, with its reply, that the device holds where nothing is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceBench:
    """Everything that the command line says."""

    traces: tuple[Path, ...]
    model: str
    requests: int
    device_blocks: int | None
    host_blocks: int | None
    disk_blocks: int | None
    max_prompt_tokens: int
    max_new_tokens: int
    repeats: int
    clients: int | None
    speed: float | None
    load: float
    engine_load: str
    max_num_seqs: int
    max_batch_tokens: int
    threads: int | None
    device: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What of a trace is served, and when each request comes."""

    prompts: list[Tokens]
    new_tokens: list[int]
    hints: list[Hints]
    at_s: list[float]
    num_distinct: int

    @property
    def most_blocks(self) -> int:
        sizes = zip(self.prompts, self.new_tokens, strict=True)
        return max(-(-(len(prompt) + new) // _BLOCK_TOKENS) for prompt, new in sizes)


def run(bench: TraceBench, json_path: Path | None) -> int:
    """Measure, print the page, and write the figures. 1 if a gate does not hold. Raises ValueError for what cannot be served."""
    console = Console(stderr=True)
    model = Timed(load(bench.model, bench.device, bench.seed, 0))
    runs = [_of_one(bench, trace, model, console) for trace in bench.traces]
    rows = [row for each in runs for row in each["gates"]]
    configuration = {**dataclasses.asdict(bench), "traces": [trace.name for trace in bench.traces]}
    figures = {"runs": runs, "gates": rows, "config": configuration, "environment": environment()}
    told = page(runs, rows)
    print(told)
    write(json_path, figures, told)
    return 0 if all(row["holds"] is not False for row in rows) else 1


def _of_one(bench: TraceBench, trace: Path, model: Timed, console: Console) -> dict[str, Any]:
    part = _part(bench, trace, model)
    console.print(f"{trace.name}: what moves take", style="dim")
    with _engine(bench, part, model, load="always") as engine:
        moves = move_costs(engine, engine.core.device_slots // 2, bench.seed)
    part = dataclasses.replace(part, at_s=_times(bench, part, model))
    runs, shares, stats = _served_runs(bench, trace.name, part, model, console)
    costs = step_costs([step for run in runs for step in run.steps])
    console.print(f"{trace.name}: the same, simulated", style="dim")
    seen = simulated(
        runs,
        _asked(part),
        costs=costs,
        moves=moves,
        max_num_seqs=bench.max_num_seqs,
        max_batch_tokens=bench.max_batch_tokens,
        block_bytes=stats["block_bytes"],
        chooser=partial(_chooser, bench),
        clients=bench.clients,
    )
    num_blocks = sum(len(prompt) // _BLOCK_TOKENS for prompt in part.prompts)
    found = compared([run.seen for run in runs], seen, num_blocks)
    core = runs[-1].core
    return {
        "trace": trace.name,
        "requests": len(part.prompts),
        "blocks": num_blocks,
        "distinct_blocks": part.num_distinct,
        "prompt_tokens": sum(map(len, part.prompts)),
        "seconds": part.at_s[-1],
        "device_blocks": core.device_slots,
        "host_blocks": core.host_slots,
        "disk_bytes": core.disk_bytes,
        "disk_blocks_at_the_end": stats["tiers"]["disk"]["blocks"],
        **found,
        "steps": [len(run.steps) for run in runs],
        "processor_share": shares if model.device.type == "cpu" else None,
        "costs": {
            "steps": dataclasses.asdict(costs),
            "moves": {kind.__name__.lower(): dataclasses.asdict(cost) for kind, cost in moves.items()},
        },
        "gates": gates(trace.name.partition(".")[0], found),
        "engine": [[dataclasses.asdict(each) for each in run.seen] for run in runs],
        "simulated": [dataclasses.asdict(each) for each in seen[GATED][0]],
    }


def _served_runs(
    bench: TraceBench, name: str, part: _Part, model: Timed, console: Console
) -> tuple[list[EngineRun], list[float], dict[str, Any]]:
    """What became of the requests in each run, the share of a processor that each had, and figures of the last one's cache."""
    told = f"{name}: {len(part.prompts)} requests, over {part.at_s[-1]:.0f} s"
    runs: list[EngineRun] = []
    shares: list[float] = []
    while True:
        console.print(f"{told}, {len(runs) + 1} of {bench.repeats}", style="dim")
        # a new one: an admission has learned nothing yet, as in the simulation
        stored_bytes: list[int] = []
        with _engine(bench, part, model, partial(_Weighing, stored_bytes=stored_bytes)) as engine:
            model.forwards.clear()  # those of its start
            began_s = time.perf_counter()
            results, came_s = _served(engine, part, bench.clients)
            runs.append(
                EngineRun(
                    seen=[_seen(result) for result in results],
                    came_s=[came - began_s for came in came_s],
                    steps=steps_of(model.forwards, began_s),
                    stored_bytes=stored_bytes,
                    core=engine.core,
                )
            )
            shares.append(processor_share(model.forwards))
            if len(runs) == bench.repeats:
                return runs, shares, engine.stats()["cache"]


class _Weighing(FaultStore):
    """A store that notes what blocks take in it, in the order in which they are written."""

    def __init__(self, store: Store, stored_bytes: list[int]) -> None:
        super().__init__(store)
        self._stored_bytes = stored_bytes

    def put_many(self, refs: Sequence[BlockRef], data: "Sequence[Readable]") -> list[int]:
        stored_bytes = super().put_many(refs, data)
        self._stored_bytes += stored_bytes
        return stored_bytes


@contextlib.contextmanager
def _engine(
    bench: TraceBench,
    part: _Part,
    model: Timed,
    wrap_store: Callable[[Store], Store] | None = None,
    **changed: Any,
) -> Iterator[Engine]:
    """One with an empty disk of its own, and all its host memory ready. `changed`: settings that are not `bench`'s."""
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as disk:
        config = dataclasses.replace(_engine_config(bench, part, model, disk), **changed)
        with Engine(model, config, announce=lambda _: None, wrap_store=wrap_store) as engine:
            wait_for_host_memory(engine)
            yield engine


def _chooser(bench: TraceBench) -> Chooser | None:
    """As such an engine begins with: it has seen nothing."""
    return Chooser(Costs()) if bench.engine_load == "auto" else None


# --- what is asked -----------------------------------------------------------------------------------------------------


def _part(bench: TraceBench, trace: Path, model: Timed) -> _Part:
    prompts = Prompts(
        trace,
        limit=bench.requests,
        block_tokens=_BLOCK_TOKENS,
        vocabulary=model.vocab_size,
        seed=bench.seed,
    )
    if (most_tokens := min(bench.max_prompt_tokens, model.max_len - bench.max_new_tokens)) < 1:
        raise ValueError(
            f"the model takes {model.max_len} tokens: --max-new-tokens must be less, got {bench.max_new_tokens}"
        )
    new_tokens = [min(max(1, each.output_tokens), bench.max_new_tokens) for each in prompts.requests]
    first_s = prompts.requests[0].at_s
    return _Part(
        prompts=prompts.made(most_tokens),
        new_tokens=new_tokens,
        hints=[each.hints for each in prompts.requests],
        at_s=[max(0.0, each.at_s - first_s) for each in prompts.requests],
        num_distinct=prompts.num_distinct,
    )


def _engine_config(bench: TraceBench, part: _Part, model: Timed, disk: str) -> EngineConfig:
    """Tiers that hold a part of what comes: what is not said is a twentieth of the distinct blocks, a tenth, and a fifth."""
    block_bytes = model.layout("bfloat16", _BLOCK_TOKENS).block_bytes
    least = int(_LEAST_DEVICE * part.most_blocks) + bench.max_num_seqs
    device = bench.device_blocks or max(least, part.num_distinct // 20)
    host = max(8, part.num_distinct // 10) if bench.host_blocks is None else bench.host_blocks
    on_disk = part.num_distinct // 5 if bench.disk_blocks is None else bench.disk_blocks
    if device < part.most_blocks:
        raise ValueError(f"the longest prompt and its reply need {part.most_blocks} blocks, not {device}")
    return EngineConfig(
        device=bench.device,  # type: ignore[arg-type]  # checked by EngineConfig itself
        kv_dtype="bfloat16",
        block_tokens=_BLOCK_TOKENS,
        device_bytes=device * block_bytes,
        host_bytes=host * block_bytes,
        disk_path=disk if on_disk else None,
        disk_bytes=_disk_bytes(on_disk * block_bytes),
        disk_min_free_bytes=0,
        max_num_seqs=bench.max_num_seqs,
        max_batch_tokens=bench.max_batch_tokens,
        num_threads=bench.threads,
        load=bench.engine_load,  # type: ignore[arg-type]  # likewise
    )


def _disk_bytes(record_bytes: int) -> int:
    """Records may take four fifths of it."""
    return max(64 << 20, record_bytes * 5 // 4)


def _times(bench: TraceBench, part: _Part, model: Timed) -> list[float]:
    """When requests come: at the given speed, else so that the engine would compute for that share of the time without a cache."""
    if bench.clients is not None:
        return [0.0] * len(part.at_s)
    if bench.speed is not None:
        return [at_s / bench.speed for at_s in part.at_s]
    work_s = sum(map(len, part.prompts)) * _token_s(model.forwards)
    span_s = max(part.at_s[-1], 1e-3)
    return [at_s * work_s / bench.load / span_s for at_s in part.at_s]


def _token_s(forwards: Sequence[Forward]) -> float:
    """What a prompt's token takes in the largest of these."""
    sizes = [sum(part.num_tokens for part in each.parts) for each in forwards]
    pairs = zip(forwards, sizes, strict=True)
    return statistics.median(
        (each.ended_s - each.began_s) / size for each, size in pairs if size == max(sizes)
    )


def _served(engine: Engine, part: _Part, clients: int | None) -> tuple[list[Result], list[float]]:
    """The engine's answers, in the order of the requests, and when each came (perf_counter): later than it was to, on a busy machine."""
    params = [SamplingParams(max_tokens=new, ignore_eos=True) for new in part.new_tokens]
    options = [RequestOptions(hints=_in_tokens(hints)) for hints in part.hints]
    handles: dict[int, Handle] = {}
    came_s = [0.0] * len(part.prompts)

    def ask(number: int) -> None:
        came_s[number] = time.perf_counter()
        handles[number] = engine.submit(part.prompts[number], params[number], options=options[number])

    if clients is None:
        began_s = time.perf_counter()
        for number in sorted(range(len(part.prompts)), key=lambda each: (part.at_s[each], each)):
            time.sleep(max(0.0, began_s + part.at_s[number] - time.perf_counter()))
            ask(number)
    else:
        numbers, lock = iter(range(len(part.prompts))), threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    if (number := next(numbers, None)) is None:
                        return
                    ask(number)
                handles[number].result()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results = [handles[number].result() for number in range(len(part.prompts))]
    if failed := next((result.error for result in results if result.error is not None), None):
        raise RuntimeError(f"a request failed: {failed}")
    return results, came_s


def _in_tokens(hints: Hints) -> CacheHints:
    """As a caller would say it."""
    return CacheHints(
        goes_on=hints.goes_on,
        one_shot=hints.one_shot,
        shared_tokens=hints.shared_blocks * _BLOCK_TOKENS,
        breakpoints=[point * _BLOCK_TOKENS for point in hints.breakpoints],
    )


def _asked(part: _Part) -> list[Asked]:
    rows = zip(part.prompts, part.new_tokens, part.hints, part.at_s, strict=True)
    return [Asked(at_s=at, prompt=prompt, max_tokens=new, hints=hints) for prompt, new, hints, at in rows]


def _seen(result: Result) -> Seen:
    found = {tier: num // _BLOCK_TOKENS for tier, num in result.usage.cached_by_tier.items()}
    timings = result.timings
    return Seen(found=found, ttft_s=timings.ttft_s, queue_s=timings.queue_s, load_s=timings.load_s)
