"""`kvtide bench ttft`: time to first token with the prefix in each tier.

For each row all tiers are emptied, the prefix alone is run, the cache's own demotion brings it to the row's tier, and
then the prefix with a suffix that was never seen is timed. A `restart` row is timed in a new process. Repeats are
interleaved over the rows, so that a machine that is busy for a while does not favour one.
"""

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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
from tiering.cli.prompts import load, real_text
from tiering.cli.reference import Reference

Tokens = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class TtftBench:
    """Everything that the command line says."""

    model: str
    prefix_tokens: int
    suffix_tokens: int
    tiers: tuple[str, ...]
    repeats: int
    threads: int | None
    new_tokens: int
    kv_dtype: str
    device: str
    deterministic: bool
    reference: bool
    seed: int

    def engine_config(self, model: Model, disk_path: str | None) -> EngineConfig:
        """Tiers that hold the longest prompt, and little more."""
        kv_dtype = "bfloat16" if self.kv_dtype == "auto" else self.kv_dtype
        block_bytes = model.layout(kv_dtype, _BLOCK_TOKENS).block_bytes
        num_tokens = self.prefix_tokens + self.suffix_tokens + self.new_tokens
        size = (-(-num_tokens // _BLOCK_TOKENS) + _SPARE_BLOCKS) * block_bytes
        return EngineConfig(
            device=self.device,  # type: ignore[arg-type]  # checked by EngineConfig itself
            kv_dtype=self.kv_dtype,  # type: ignore[arg-type]
            block_tokens=_BLOCK_TOKENS,
            device_bytes=size,
            host_bytes=size,
            disk_path=disk_path,
            disk_bytes=4 * size,
            disk_min_free_bytes=0,
            deterministic=self.deterministic,
            num_threads=self.threads,
        )


_BLOCK_TOKENS = 16
_SPARE_BLOCKS = 8


@dataclass(slots=True)
class _Row:
    tier: str
    ttft_s: list[float] = field(default_factory=list)
    last: Result | None = None
    token_ids: list[list[int]] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    """From each token to the next, in all repeats."""

    def add(
        self,
        ttft_s: float,
        token_ids: list[int],
        result: Result | None = None,
        between_s: Sequence[float] = (),
    ) -> None:
        self.ttft_s.append(ttft_s)
        self.token_ids.append(token_ids)
        self.last = result
        self.between_s += between_s

    def _decode_tokens_per_s(self) -> float | None:
        """By the median step: what else the machine does for a moment does not count."""
        return 1 / statistics.median(self.between_s) if self.between_s else None

    def as_dict(self) -> dict[str, Any]:
        usage = self.last.usage if self.last is not None else None
        return {
            "tier": self.tier,
            "ttft_s": statistics.median(self.ttft_s),
            "ttft_s_all": self.ttft_s,
            "cached_tokens": usage.cached_tokens if usage else None,
            "prefilled_tokens": usage.prefilled_tokens if usage else None,
            "cached_by_tier": usage.cached_by_tier if usage else None,
            "decode_tokens_per_s": self._decode_tokens_per_s(),
            "between_tokens_s": _spread(self.between_s),
            "token_ids": self.token_ids,
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """The middle and the quarters of these, by how many percent are less."""
    return {str(share): float(np.percentile(values, share)) for share in (25, 50, 75)} if values else {}


def _load(bench: TtftBench) -> Model:
    length = bench.prefix_tokens + bench.suffix_tokens + bench.new_tokens
    return load(bench.model, bench.device, bench.seed, length)


def prompts(bench: TtftBench, model: Model) -> tuple[Tokens, list[Tokens]]:
    """The prefix, real text where the model has a tokenizer, and a random suffix for each repeat."""
    generator = np.random.default_rng(bench.seed)

    def draw(num_tokens: int) -> Tokens:
        return generator.integers(1, model.vocab_size, num_tokens, dtype=np.int32)

    suffixes = [draw(bench.suffix_tokens) for _ in range(bench.repeats)]
    return real_text(model, bench.prefix_tokens, generator), suffixes


def run(bench: TtftBench, json_path: Path | None) -> None:
    """Measure, print a table, and write the rows."""
    console = Console(stderr=True)
    rows = {tier: _Row(tier) for tier in (*_reference_tiers(bench), *bench.tiers)}
    model = _load(bench)
    prefix, suffixes = prompts(bench, model)
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as scratch:
        config = bench.engine_config(model, f"{scratch}/kv" if "disk" in bench.tiers else None)
        reference = Reference(_load(bench).hf) if bench.reference else None
        with Engine(model, config, announce=console.print) as engine:
            prefix_cache = reference.prefill(prefix) if reference is not None else None
            for repeat, suffix in enumerate(suffixes):
                for tier, row in rows.items():
                    console.print(f"repeat {repeat + 1} of {bench.repeats}: {tier}", style="dim")
                    if tier == "reference_cold":
                        assert reference is not None, "the row exists only with a reference"
                        row.add(*reference.cold(np.concatenate([prefix, suffix]), bench.new_tokens))
                    elif tier == "reference_hit":
                        assert reference is not None, "the row exists only with a reference"
                        row.add(*reference.hit(prefix_cache, suffix, bench.new_tokens))
                    elif tier == "restart":
                        row.add(*_restarted(bench, f"{scratch}/restart-{repeat}", repeat))
                    else:
                        row.add(*_measure(engine, tier, prefix, suffix, bench.new_tokens))
            settings = {**dataclasses.asdict(bench), "engine": _settings(engine)}
    measured = {
        "rows": [row.as_dict() for row in rows.values()],
        "config": settings,
        "environment": environment(),
    }
    _show(measured)
    if json_path is not None:
        json_path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        console.print(f"rows written to {json_path}")


def _reference_tiers(bench: TtftBench) -> tuple[str, ...]:
    return ("reference_cold", "reference_hit") if bench.reference else ()


def _settings(engine: Engine) -> dict[str, Any]:
    settings = {name: getattr(engine.config, name) for name in engine.config.__slots__}
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def _measure(
    engine: Engine, tier: str, prefix: Tokens, suffix: Tokens, new_tokens: int
) -> tuple[float, list[int], Result, list[float]]:
    """Empty all tiers, bring the prefix to one, and time the prefix with the suffix."""
    assert engine.clear(), "nothing runs, so everything can be forgotten"
    if tier != "cold":
        _fill(engine, prefix)
    if tier in ("host", "disk"):
        engine.demote(tier)  # type: ignore[arg-type]
    return _time(engine, prefix, suffix, new_tokens)


def _fill(engine: Engine, prefix: Tokens) -> None:
    engine.generate(prefix.tolist(), SamplingParams(max_tokens=1, ignore_eos=True))


def _time(
    engine: Engine, prefix: Tokens, suffix: Tokens, new_tokens: int
) -> tuple[float, list[int], Result, list[float]]:
    token_s: list[float] = []
    handle = engine.submit(
        np.concatenate([prefix, suffix]).tolist(),
        SamplingParams(max_tokens=new_tokens, ignore_eos=True),
        on_delta=lambda delta: token_s.extend([time.perf_counter()] * len(delta.token_ids)),
    )
    result = handle.result()
    between_s = [after - before for before, after in itertools.pairwise(token_s)]
    return result.timings.ttft_s, result.token_ids, result, between_s


# --- restart: a process that fills the disk, and another that finds it ------------------------------------------------


def _restarted(bench: TtftBench, disk_path: str, repeat: int) -> tuple[float, list[int], Result, list[float]]:
    _process(bench, disk_path, repeat, "fill")
    answer = _process(bench, disk_path, repeat, "time")
    result = _result(answer["result"])
    return result.timings.ttft_s, result.token_ids, result, answer["between_s"]


def _process(bench: TtftBench, disk_path: str, repeat: int, phase: str) -> Any:
    spec = {"bench": dataclasses.asdict(bench), "disk_path": disk_path, "repeat": repeat, "phase": phase}
    command = [sys.executable, "-m", "tiering", "bench", "ttft-process", json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the {phase} process of a restart row failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_process(spec: str) -> None:
    """One phase of a restart row: print its result as JSON."""
    given = json.loads(spec)
    bench = TtftBench(**{**given["bench"], "tiers": tuple(given["bench"]["tiers"])})
    model = _load(bench)
    prefix, suffixes = prompts(bench, model)
    config = bench.engine_config(model, given["disk_path"])
    with Engine(model, config, announce=lambda _: None) as engine:
        if given["phase"] == "fill":
            _fill(engine, prefix)
            answer: dict[str, Any] = {}
        else:
            _, _, result, between_s = _time(engine, prefix, suffixes[given["repeat"]], bench.new_tokens)
            answer = {"result": dataclasses.asdict(result), "between_s": between_s}
    print(json.dumps(answer))


def _result(answer: dict[str, Any]) -> Result:
    from engine.results import Sample, Timings, Usage

    samples = tuple(Sample(**sample) for sample in answer["samples"])
    usage, timings = Usage(**answer["usage"]), Timings(**answer["timings"])
    return Result(**{**answer, "samples": samples, "usage": usage, "timings": timings})


# --- output -----------------------------------------------------------------------------------------------------------


def _show(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    by_tier = {row["tier"]: row["ttft_s"] for row in rows}
    cold, hit = by_tier.get("cold"), by_tier.get("reference_hit")
    table = Table(title="time to first token, median")
    for name in ("tier", "TTFT", "spread", "vs cold", "vs reference", "cached", "prefilled", "decode"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for row in rows:
        ttft_s, spread = row["ttft_s"], (min(row["ttft_s_all"]), max(row["ttft_s_all"]))
        yardstick = by_tier.get("reference_cold") if "cold" in row["tier"] else hit
        table.add_row(
            row["tier"],
            f"{ttft_s * 1e3:,.0f} ms",
            f"{spread[0] * 1e3:,.0f}-{spread[1] * 1e3:,.0f}",
            f"{cold / ttft_s:.1f}x" if cold else "",
            f"{ttft_s / yardstick:.2f}" if yardstick else "",
            "" if row["cached_tokens"] is None else str(row["cached_tokens"]),
            "" if row["prefilled_tokens"] is None else str(row["prefilled_tokens"]),
            "" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:.1f}/s",
        )
    Console().print(table)
