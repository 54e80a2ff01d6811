"""`kvtide bench trace`: a trace through the real engine, and through the simulator with the same configuration: how far it errs.

The engine serves a part of each trace with tokens made from its blocks, which become smaller. What its steps took, in this very run, and
what moves between its tiers took before it, are what the replay on the virtual clock is told; which request finds what, and how
long each waits, it has to find out by itself.
"""

import dataclasses
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console

from engine import EngineConfig, Result, SamplingParams
from engine.engine import Engine
from engine.handle import Handle
from tiering.cli.environment import environment
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.markdown import gate, table, write
from tiering.cli.prompts import load
from tiering.cli.trace_costs import Step, Timed, move_costs, step_costs
from tiering.cli.trace_prompts import Prompts, Tokens
from tiering.replay import Asked, Replay, ReplayConfig, Seen

_BLOCK_TOKENS: Final = 16
_TIERS: Final = ("device", "host", "disk")
_HIT_POINTS, _TTFT_PERCENT = 1.0, 10.0
"""What the simulator may err by."""
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
    clients: int | None
    speed: float | None
    load: float
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
    gates = [gate for each in runs for gate in each["gates"]]
    configuration = {**dataclasses.asdict(bench), "traces": [trace.name for trace in bench.traces]}
    figures = {"runs": runs, "gates": gates, "config": configuration, "environment": environment()}
    page = _page(runs, gates)
    print(page)
    write(json_path, figures, page)
    return 0 if all(gate["holds"] for gate in gates) else 1


def _of_one(bench: TraceBench, trace: Path, model: Timed, console: Console) -> dict[str, Any]:
    part = _part(bench, trace, model)
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as disk:
        config = _engine_config(bench, part, model, disk)
        with Engine(model, config, announce=lambda _: None) as engine:
            wait_for_host_memory(engine)
            console.print(f"{trace.name}: what moves take", style="dim")
            most_blocks = engine.core.device_slots // 2
            moves = move_costs(engine, most_blocks, bench.seed)
            part = dataclasses.replace(part, at_s=_times(bench, part, model))
            console.print(
                f"{trace.name}: {len(part.prompts)} requests, over {part.at_s[-1]:.0f} s", style="dim"
            )
            model.steps.clear()
            results = _served(engine, part, bench.clients)
            stats, core = engine.stats()["cache"], engine.core
    steps = step_costs(model.steps)
    disk_figures = stats["tiers"]["disk"]
    replay = ReplayConfig(
        index=core,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        stored_bytes=_stored_bytes(stats),
        steps=steps,
        moves=moves,
    )
    replayed = Replay(replay)
    console.print(f"{trace.name}: the same, simulated", style="dim")
    seen = replayed.run(_asked(part), clients=bench.clients)
    happened = [Seen(found=_blocks(result), ttft_s=result.timings.ttft_s) for result in results]
    num_blocks = sum(len(prompt) // _BLOCK_TOKENS for prompt in part.prompts)
    compared = _compared(happened, seen, num_blocks)
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
        "disk_blocks_at_the_end": disk_figures["blocks"],
        **compared,
        "steps": {"engine": len(model.steps), "simulated": replayed.num_steps},
        "costs": {
            "steps": dataclasses.asdict(steps),
            "moves": {kind.__name__.lower(): dataclasses.asdict(cost) for kind, cost in moves.items()},
        },
        "gates": _gates(trace.name.partition(".")[0], compared),
        "engine": [dataclasses.asdict(each) for each in happened],
        "simulated": [dataclasses.asdict(each) for each in seen],
    }


# --- what is asked -----------------------------------------------------------------------------------------------------


def _part(bench: TraceBench, trace: Path, model: Timed) -> _Part:
    prompts = Prompts(
        trace,
        limit=bench.requests,
        block_tokens=_BLOCK_TOKENS,
        vocabulary=model.vocab_size,
        seed=bench.seed,
    )
    new_tokens = [min(max(1, each.output_tokens), bench.max_new_tokens) for each in prompts.requests]
    first_s = prompts.requests[0].at_s
    return _Part(
        prompts=prompts.made(min(bench.max_prompt_tokens, model.max_len - bench.max_new_tokens)),
        new_tokens=new_tokens,
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
    work_s = sum(map(len, part.prompts)) * _token_s(model.steps)
    span_s = max(part.at_s[-1], 1e-3)
    return [at_s * work_s / bench.load / span_s for at_s in part.at_s]


def _token_s(steps: Sequence[Step]) -> float:
    """What a prompt's token takes in the largest of these steps."""
    sizes = [sum(part.num_tokens for part in step.parts) for step in steps]
    pairs = zip(steps, sizes, strict=True)
    return statistics.median((s.ended_s - s.began_s) / size for s, size in pairs if size == max(sizes))


def _served(engine: Engine, part: _Part, clients: int | None) -> list[Result]:
    """The engine's answers, in the order of the requests."""
    params = [SamplingParams(max_tokens=new, ignore_eos=True) for new in part.new_tokens]
    handles: dict[int, Handle] = {}
    if clients is None:
        began_s = time.perf_counter()
        for number in sorted(range(len(part.prompts)), key=lambda each: (part.at_s[each], each)):
            time.sleep(max(0.0, began_s + part.at_s[number] - time.perf_counter()))
            handles[number] = engine.submit(part.prompts[number], params[number])
    else:
        numbers, lock = iter(range(len(part.prompts))), threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    if (number := next(numbers, None)) is None:
                        return
                    handles[number] = engine.submit(part.prompts[number], params[number])
                handles[number].result()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results = [handles[number].result() for number in range(len(part.prompts))]
    if failed := next((result.error for result in results if result.error is not None), None):
        raise RuntimeError(f"a request failed: {failed}")
    return results


def _asked(part: _Part) -> list[Asked]:
    rows = zip(part.prompts, part.new_tokens, part.at_s, strict=True)
    return [Asked(at_s=at_s, prompt=prompt, max_tokens=new) for prompt, new, at_s in rows]


def _stored_bytes(stats: dict[str, Any]) -> int:
    """Of a block on disk, as far as some were written."""
    disk = stats["tiers"]["disk"]
    return max(1, disk["bytes"] // disk["blocks"]) if disk.get("blocks") else 1


def _blocks(result: Result) -> dict[Any, int]:
    return {tier: num // _BLOCK_TOKENS for tier, num in result.usage.cached_by_tier.items()}


# --- what it says -------------------------------------------------------------------------------------------------------


def _compared(happened: Sequence[Seen], seen: Sequence[Seen], num_blocks: int) -> dict[str, Any]:
    hit_rate = {
        tier: [sum(each.found.get(tier, 0) for each in some) / num_blocks for some in (happened, seen)]
        for tier in _TIERS
    }
    hit_rate["all"] = [sum(rates[at] for rates in hit_rate.values()) for at in (0, 1)]
    ttft_s = [np.array([each.ttft_s for each in some]) for some in (happened, seen)]
    figures = {
        "mean": [float(times.mean()) for times in ttft_s],
        "p50": [float(np.percentile(times, 50)) for times in ttft_s],
        "p90": [float(np.percentile(times, 90)) for times in ttft_s],
    }
    each = np.abs(ttft_s[1] / np.maximum(ttft_s[0], 1e-6) - 1)
    return {
        "hit_rate": hit_rate,
        "ttft_s": figures,
        "median_error_of_one_request": float(np.median(each)),
        "requests_with_the_same_hits": sum(
            dict(a.found) == dict(b.found) for a, b in zip(happened, seen, strict=True)
        ),
    }


def _gates(name: str, compared: dict[str, Any]) -> list[dict[str, object]]:
    points = {
        f"hit rate, {tier}": 100 * abs(simulated - engine)
        for tier, (engine, simulated) in compared["hit_rate"].items()
    }
    percent = {
        f"TTFT, {which}": 100 * abs(simulated / engine - 1)
        for which, (engine, simulated) in compared["ttft_s"].items()
    }
    return [
        gate(f"error of {name}: {what}", round(value, 2), bound, unit, at_most=True)
        for errors, bound, unit in ((points, _HIT_POINTS, "points"), (percent, _TTFT_PERCENT, "%"))
        for what, value in errors.items()
    ]


def _page(runs: Sequence[dict[str, Any]], gates: Sequence[dict[str, object]]) -> str:
    rows = []
    for each in runs:
        name = each["trace"].partition(".")[0]
        for tier, (engine, simulated) in each["hit_rate"].items():
            rows.append(_row(name, f"hit rate, {tier}", f"{engine:.2%}", f"{simulated:.2%}"))
        for which, (engine, simulated) in each["ttft_s"].items():
            rows.append(_row(name, f"TTFT, {which}", f"{1e3 * engine:,.0f} ms", f"{1e3 * simulated:,.0f} ms"))
    return (
        "# The simulator beside the engine\n\n`kvtide bench trace`\n\n"
        f"{table(rows, ('trace', 'figure', 'engine', 'simulated'))}\n\n"
        f"{table(gates, ('name', 'value', 'bound', 'unit', 'holds'))}"
    )


def _row(trace: str, figure: str, engine: str, simulated: str) -> dict[str, str]:
    return {"trace": trace, "figure": figure, "engine": engine, "simulated": simulated}
