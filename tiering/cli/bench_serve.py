"""`kvtide bench serve`: clients that share a part of their prompts, with traffic between the tiers and without.

Each client sends its next request when the one before has ended. Of a prompt's tokens `sharing` percent are the same for
all, and were computed before the clock starts; the rest nobody has seen. Without tier traffic there is the device only,
and what it has no room for is dropped; with it the same is copied to host memory and written to disk meanwhile. Repeats
are interleaved over the rows, so that a machine that is busy for a while does not favour one.
"""

import dataclasses
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine import EngineConfig, Result, SamplingParams
from engine.engine import Engine
from engine.model import Model
from tiering.cli.environment import environment
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.prompts import load, real_text

Tokens = NDArray[np.int32]

_BLOCK_TOKENS = 16
_SPARE_BLOCKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeBench:
    """Everything that the command line says."""

    model: str
    sharing: tuple[int, ...]
    clients: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int | None
    device: str
    deterministic: bool
    seed: int

    def engine_config(self, model: Model, disk_path: str | None) -> EngineConfig:
        """A device that holds what runs and the shared part, and little more; as much host memory; plenty of disk."""
        block_bytes = model.layout("bfloat16", _BLOCK_TOKENS).block_bytes
        blocks = -(-(self.prompt_tokens + self.new_tokens) // _BLOCK_TOKENS) + 1
        size = ((self.clients + 1) * blocks + _SPARE_BLOCKS) * block_bytes
        return EngineConfig(
            device=self.device,  # type: ignore[arg-type]  # checked by EngineConfig itself
            kv_dtype="bfloat16",
            block_tokens=_BLOCK_TOKENS,
            device_bytes=size,
            host_bytes=size if disk_path is not None else 0,
            disk_path=disk_path,
            disk_bytes=8 * size,
            disk_min_free_bytes=0,
            max_num_seqs=self.clients,
            deterministic=self.deterministic,
            num_threads=self.threads,
        )


@dataclass(frozen=True, slots=True)
class _Answer:
    result: Result
    sent_s: float
    token_s: tuple[float, ...]
    """When each token came."""


@dataclass(slots=True)
class _Row:
    sharing: int
    tiers: bool
    runs: list[dict[str, float]] = field(default_factory=list)

    def add(self, answers: Sequence[_Answer], wall_s: float, moved: dict[str, int]) -> None:
        usages = [answer.result.usage for answer in answers]
        ttft_s = [answer.token_s[0] - answer.sent_s for answer in answers]
        gaps_s = [after - before for a in answers for before, after in itertools.pairwise(a.token_s)]
        rates = [answer.result.timings.decode_tokens_per_s for answer in answers]
        self.runs.append(
            {
                "requests_per_s": len(answers) / wall_s,
                "prompt_tokens_saved": sum(u.cached_tokens for u in usages)
                / sum(u.prompt_tokens for u in usages),
                "output_tokens_per_s": sum(usage.completion_tokens for usage in usages) / wall_s,
                "decode_tokens_per_s": statistics.median(rates),
                "ttft_p50_s": _percentile(ttft_s, 50),
                "ttft_p99_s": _percentile(ttft_s, 99),
                "between_tokens_p50_s": _percentile(gaps_s, 50),
                "between_tokens_p99_s": _percentile(gaps_s, 99),
                **moved,
            }
        )

    def as_dict(self) -> dict[str, Any]:
        medians = {name: statistics.median(run[name] for run in self.runs) for name in self.runs[0]}
        return {"sharing": self.sharing, "tiers": self.tiers, **medians, "runs": self.runs}


def _percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share)) if values else 0.0


def run(bench: ServeBench, json_path: Path | None) -> None:
    """Measure, print a table, and write the rows."""
    console = Console(stderr=True)
    measured: dict[str, Any] = {
        "rows": measure(bench, lambda text: console.print(text, style="dim")),
        "config": dataclasses.asdict(bench),
        "environment": environment(),
    }
    _show(measured["rows"])
    if json_path is not None:
        json_path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        console.print(f"rows written to {json_path}")


def measure(bench: ServeBench, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The rows; `tell` hears what is being done."""
    model = load(bench.model, bench.device, bench.seed, bench.prompt_tokens + bench.new_tokens)
    rows = [_Row(sharing, tiers) for tiers in (False, True) for sharing in bench.sharing]
    fresh = np.random.default_rng(bench.seed)
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as scratch:
        for repeat in range(bench.repeats):
            for row in rows:
                name = f"{row.sharing} % shared, {'with' if row.tiers else 'without'} tier traffic"
                tell(f"repeat {repeat + 1} of {bench.repeats}: {name}")
                config = bench.engine_config(model, f"{scratch}/kv" if row.tiers else None)
                with Engine(model, config, announce=lambda _: None) as engine:
                    wait_for_host_memory(engine)
                    row.add(*_measure(engine, bench, row.sharing, fresh))
                    engine.clear()  # the next row finds an empty disk
    return [row.as_dict() for row in rows]


def _measure(
    engine: Engine, bench: ServeBench, sharing: int, fresh: np.random.Generator
) -> tuple[list[_Answer], float, dict[str, int]]:
    """Serve all requests; what became of them, how long it took, and the blocks that were moved meanwhile."""
    shared = real_text(engine.model, bench.prompt_tokens * sharing // 100, fresh)
    if len(shared):
        engine.warm(shared.tolist())
    own_tokens = bench.prompt_tokens - len(shared)
    prompts = [
        np.concatenate([shared, fresh.integers(1, engine.model.vocab_size, own_tokens, dtype=np.int32)])
        for _ in range(bench.requests)
    ]
    before = _moved(engine)
    start_s = time.perf_counter()
    answers = _serve(engine, iter(prompts), bench)
    wall_s = time.perf_counter() - start_s
    return answers, wall_s, {name: num - before[name] for name, num in _moved(engine).items()}


def _serve(engine: Engine, prompts: Iterator[Tokens], bench: ServeBench) -> list[_Answer]:
    answers: list[_Answer] = []
    failures: list[BaseException] = []
    lock = threading.Lock()
    params = SamplingParams(max_tokens=bench.new_tokens, ignore_eos=True)

    def client() -> None:
        try:
            while True:
                with lock:
                    prompt = next(prompts, None)
                if prompt is None:
                    return
                answer = _ask(engine, prompt, params)
                with lock:
                    answers.append(answer)
        except BaseException as error:  # noqa: BLE001 - the thread's top: raised by who waits for it
            failures.append(error)

    clients = [threading.Thread(target=client) for _ in range(bench.clients)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if failures:
        raise failures[0]
    return answers


def _ask(engine: Engine, prompt: Tokens, params: SamplingParams) -> _Answer:
    times: list[float] = []
    sent_s = time.perf_counter()
    handle = engine.submit(prompt, params, on_delta=lambda _: times.append(time.perf_counter()))
    result = handle.result()
    if result.error is not None:
        raise RuntimeError(f"a request failed: {result.error}")
    return _Answer(result, sent_s, tuple(times))


def _moved(engine: Engine) -> dict[str, int]:
    """Blocks that have left the device to make room, and that lie on disk."""
    tiers = engine.stats()["cache"]["tiers"]
    return {"evicted_blocks": tiers["device"]["evicted"], "disk_blocks": tiers["disk"]["blocks"]}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(title="serving, medians")
    for name in (
        "shared",
        "tiers",
        "req/s",
        "",
        "saved",
        "decode tok/s",
        "TTFT p50, p99",
        "between p50, p99",
    ):
        table.add_column(name, justify="right")
    base = {row["tiers"]: row["requests_per_s"] for row in rows if row["sharing"] == 0}
    for row in rows:
        ratio = row["requests_per_s"] / base[row["tiers"]] if row["tiers"] in base else None
        table.add_row(
            f"{row['sharing']} %",
            "all" if row["tiers"] else "device",
            f"{row['requests_per_s']:.2f}",
            "" if ratio is None else f"{ratio:.1f}x",
            f"{row['prompt_tokens_saved']:.0%}",
            f"{row['decode_tokens_per_s']:.1f}",
            f"{row['ttft_p50_s'] * 1e3:,.0f}, {row['ttft_p99_s'] * 1e3:,.0f} ms",
            f"{row['between_tokens_p50_s'] * 1e3:,.0f}, {row['between_tokens_p99_s'] * 1e3:,.0f} ms",
        )
    Console().print(table)
