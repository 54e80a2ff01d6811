"""`kvtide bench ttft`: time to first token with the prefix in each tier.

For each row all tiers are emptied, the prefix alone is run, the cache's own demotion brings it to the row's tier, and
then the prefix with a suffix that was never seen is timed. Repeats are interleaved over the rows of a length, so that a
machine that is busy for a while does not favour one. The `restart` rows come last: one process fills a directory with
the prefixes of all lengths, and for each repeat a new one finds them there.
"""

import dataclasses
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine import EngineConfig, Result, SamplingParams
from engine.engine import Engine
from engine.model import Model
from tiering.cli.environment import environment
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.prompts import load, real_text
from tiering.cli.reference import Reference

Tokens = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class TtftBench:
    """Everything that the command line says."""

    model: str
    prefix_tokens: tuple[int, ...]
    suffix_tokens: int
    tiers: tuple[str, ...]
    repeats: tuple[int, ...]
    """Of each prefix."""
    threads: int | None
    new_tokens: int
    kv_dtype: str
    device: str
    deterministic: bool
    reference: bool
    seed: int

    def engine_config(self, model: Model, disk_path: str | None) -> EngineConfig:
        """A device and host memory that hold the longest prompt, and little more, and a disk for all of them."""
        kv_dtype = "bfloat16" if self.kv_dtype == "auto" else self.kv_dtype
        block_bytes = model.layout(kv_dtype, _BLOCK_TOKENS).block_bytes
        size = (-(-self.longest_tokens // _BLOCK_TOKENS) + _SPARE_BLOCKS) * block_bytes
        return EngineConfig(
            device=self.device,  # type: ignore[arg-type]  # checked by EngineConfig itself
            kv_dtype=self.kv_dtype,  # type: ignore[arg-type]
            block_tokens=_BLOCK_TOKENS,
            device_bytes=size,
            host_bytes=size,
            disk_path=disk_path,
            disk_bytes=4 * size * len(self.prefix_tokens),
            disk_min_free_bytes=0,
            deterministic=self.deterministic,
            num_threads=self.threads,
        )

    @property
    def longest_tokens(self) -> int:
        """Of a prompt and its reply."""
        return max(self.prefix_tokens) + self.suffix_tokens + self.new_tokens

    @property
    def lengths(self) -> list[tuple[int, int, int]]:
        """Each prefix by its number, with its tokens and repeats."""
        return [(n, *one) for n, one in enumerate(zip(self.prefix_tokens, self.repeats, strict=True))]


_BLOCK_TOKENS = 16
_SPARE_BLOCKS = 8


@dataclass(slots=True)
class _Row:
    tier: str
    prefix_tokens: int
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
            "prefix_tokens": self.prefix_tokens,
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
    return load(bench.model, bench.device, bench.seed, bench.longest_tokens)


def prompts(bench: TtftBench, model: Model) -> tuple[list[Tokens], list[Tokens]]:
    """The prefixes, of which none begins with another, real text where the model has a tokenizer, and a random suffix
    for each repeat.
    """
    generator = np.random.default_rng(bench.seed)
    suffixes = [_random_tokens(generator, model, bench.suffix_tokens) for _ in range(max(bench.repeats))]
    text = real_text(model, sum(bench.prefix_tokens), generator)
    return np.split(text, np.cumsum(bench.prefix_tokens)[:-1]), suffixes


def _random_tokens(generator: np.random.Generator, model: Model, num_tokens: int) -> Tokens:
    return generator.integers(1, model.vocab_size, num_tokens, dtype=np.int32)


def run(bench: TtftBench, json_path: Path | None) -> None:
    """Measure, print a table, and write the rows."""
    console = Console(stderr=True)
    rows = list(measure(bench, lambda text: console.print(text, style="dim")))
    engines = [row.pop("engine") for row in rows]
    settings = {
        **dataclasses.asdict(bench),
        "engine": engines[0],
    }  # the others' differ in where the disk tier is
    measured = {"rows": rows, "config": settings, "environment": environment()}
    _show(measured)
    if json_path is not None:
        json_path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
        console.print(f"rows written to {json_path}")


def measure(bench: TtftBench, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows, each as soon as its repeats are over; `tell` hears what is being done."""
    with tempfile.TemporaryDirectory(prefix="kvtide-bench-") as scratch:
        yield from _in_this_process(bench, f"{scratch}/kv", tell)
        if "restart" in bench.tiers:
            _give_memory_back()
            yield from _after_restarts(bench, f"{scratch}/restart", tell)


def _give_memory_back() -> None:
    """Of a GPU: torch keeps what the model and the pool took, and other processes are to have it. Nothing on a CPU."""
    gc.collect()
    torch.cuda.empty_cache()


def _in_this_process(
    bench: TtftBench, disk_path: str, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    tiers = (*_reference_tiers(bench), *(tier for tier in bench.tiers if tier != "restart"))
    if not tiers:
        return
    model = _load(bench)
    prefixes, suffixes = prompts(bench, model)
    config = bench.engine_config(model, disk_path if "disk" in tiers else None)
    reference = Reference(_load(bench).hf) if bench.reference else None
    with Engine(model, config, announce=tell) as engine:
        first_use(engine, bench)
        settings = _settings(engine)
        for number, num_tokens, repeats in bench.lengths:
            prefix = prefixes[number]
            rows = {tier: _Row(tier, num_tokens) for tier in tiers}
            prefix_cache = reference.prefill(prefix) if reference is not None else None
            for repeat, suffix in enumerate(suffixes[:repeats]):
                for tier, row in rows.items():
                    tell(f"{num_tokens} tokens, repeat {repeat + 1} of {repeats}: {tier}")
                    if tier == "reference_cold":
                        assert reference is not None, "the row exists only with a reference"
                        row.add(*reference.cold(np.concatenate([prefix, suffix]), bench.new_tokens))
                    elif tier == "reference_hit":
                        assert reference is not None, "the row exists only with a reference"
                        row.add(*reference.hit(prefix_cache, suffix, bench.new_tokens))
                    else:
                        row.add(*timed(engine, tier, prefix, suffix, bench.new_tokens))
            yield from ({**row.as_dict(), "engine": settings} for row in rows.values())


def _reference_tiers(bench: TtftBench) -> tuple[str, ...]:
    return ("reference_cold", "reference_hit") if bench.reference else ()


def _settings(engine: Engine) -> dict[str, Any]:
    settings = {name: getattr(engine.config, name) for name in engine.config.__slots__}
    return {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}


def first_use(engine: Engine, bench: TtftBench) -> None:
    """Wait for host memory, and run a prompt of a suffix's length, which nobody sees again: what is made ready after the
    start, or loaded at first use, is no row's to pay for.
    """
    wait_for_host_memory(engine)
    prompt = _random_tokens(np.random.default_rng([bench.seed, 1]), engine.model, bench.suffix_tokens)
    _fill(engine, prompt)


def timed(
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


# --- restart: a process that fills the disk, and others that find it --------------------------------------------------


def _after_restarts(
    bench: TtftBench, disk_path: str, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    rows = [_Row("restart", num_tokens) for num_tokens in bench.prefix_tokens]
    tell("a process that fills the disk")
    for _ in _process(bench, disk_path, 0, "fill"):
        pass
    for repeat in range(max(bench.repeats)):
        tell(f"restart {repeat + 1} of {max(bench.repeats)}")
        for answer in _process(bench, disk_path, repeat, "time"):
            number, result = answer["number"], _result(answer["result"])
            rows[number].add(result.timings.ttft_s, result.token_ids, result, answer["between_s"])
            if len(rows[number].ttft_s) == bench.repeats[number]:
                yield {**rows[number].as_dict(), "engine": answer["engine"]}


def _process(bench: TtftBench, disk_path: str, repeat: int, phase: str) -> Iterator[Any]:
    """What the process says, line by line."""
    spec = {"bench": dataclasses.asdict(bench), "disk_path": disk_path, "repeat": repeat, "phase": phase}
    command = [sys.executable, "-m", "tiering", "bench", "ttft-process", json.dumps(spec)]
    with ExitStack() as stack:
        complaints = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        )
        assert process.stdout is not None, "it is a pipe"
        yield from map(json.loads, process.stdout)
        if process.wait():
            complaints.seek(0)
            raise RuntimeError(f"the {phase} process of the restart rows failed:\n{complaints.read()}")


def run_process(spec: str) -> None:
    """One process of the restart rows: print what it finds, a line of JSON for each prefix."""
    given = json.loads(spec)
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given["bench"].items()
    }
    bench = TtftBench(**options)
    model = _load(bench)
    prefixes, suffixes = prompts(bench, model)
    config = bench.engine_config(model, given["disk_path"])
    with Engine(model, config, announce=lambda _: None) as engine:
        if given["phase"] == "fill":
            for prefix in prefixes:
                _fill(engine, prefix)
                engine.flush()  # what the next prefix drives out would otherwise be dropped where writing is slow
            return
        first_use(engine, bench)
        suffix = suffixes[given["repeat"]]
        for number, _, repeats in bench.lengths:
            if given["repeat"] < repeats:
                _, _, result, between_s = _time(engine, prefixes[number], suffix, bench.new_tokens)
                answer = {"number": number, "result": dataclasses.asdict(result), "between_s": between_s}
                print(json.dumps({**answer, "engine": _settings(engine)}), flush=True)


def _result(answer: dict[str, Any]) -> Result:
    from engine.results import Sample, Timings, Usage

    samples = tuple(Sample(**sample) for sample in answer["samples"])
    usage, timings = Usage(**answer["usage"]), Timings(**answer["timings"])
    return Result(**{**answer, "samples": samples, "usage": usage, "timings": timings})


# --- output -----------------------------------------------------------------------------------------------------------


def _show(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    table = Table(title="time to first token, median")
    for name in (
        "prefix",
        "tier",
        "TTFT",
        "spread",
        "vs cold",
        "vs reference",
        "cached",
        "prefilled",
        "decode",
    ):
        table.add_column(name, justify="left" if name == "tier" else "right")
    by_tier = {(row["prefix_tokens"], row["tier"]): row["ttft_s"] for row in rows}
    for row in rows:
        prefix, ttft_s, spread = (
            row["prefix_tokens"],
            row["ttft_s"],
            (min(row["ttft_s_all"]), max(row["ttft_s_all"])),
        )
        cold = by_tier.get((prefix, "cold"))
        reference = "reference_cold" if "cold" in row["tier"] else "reference_hit"
        yardstick = by_tier.get((prefix, reference))
        table.add_row(
            str(prefix),
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
