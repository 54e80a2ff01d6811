"""What the rows of `kvtide bench ttft` have in common: their settings and prompts, and how a prefix comes to its tier."""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine import EngineConfig, Result, SamplingParams
from engine.engine import Engine
from engine.model import Model
from tiering.cli.dropped import drop_disk_tier
from tiering.cli.host_memory import wait_for_host_memory
from tiering.cli.prompts import load, real_text

Tokens = NDArray[np.int32]

BLOCK_TOKENS = 16
_SPARE_BLOCKS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TtftBench:
    """Everything that the command line says."""

    model: str
    prefix_tokens: tuple[int, ...]
    suffix_tokens: int
    tiers: tuple[str, ...]
    repeats: tuple[int, ...]
    """Of each prefix."""
    cold_repeats: int
    """Of them, those with cold prompts."""
    threads: int | None
    new_tokens: int
    dtype: str
    kv_dtype: str
    device: str
    deterministic: bool
    reference: bool
    phases: int
    """Further repeats of each hit with clocks around the parts of the model."""
    seed: int

    def engine_config(self, model: Model, disk_path: str | None) -> EngineConfig:
        """A device and host memory that hold the longest prefix with all suffixes, and a disk for all of them."""
        kv_dtype = "bfloat16" if self.kv_dtype == "auto" else self.kv_dtype
        block_bytes = model.layout(kv_dtype, BLOCK_TOKENS).block_bytes
        num_asked = (max(self.repeats) + self.phases) * len(self.tiers)
        behind = num_asked * (-(-(self.suffix_tokens + self.new_tokens) // BLOCK_TOKENS) + 1)
        size = (-(-max(self.prefix_tokens) // BLOCK_TOKENS) + behind + _SPARE_BLOCKS) * block_bytes
        return EngineConfig(
            device=self.device,  # type: ignore[arg-type]  # checked by EngineConfig itself
            dtype=self.dtype,  # type: ignore[arg-type]  # checked by EngineConfig itself
            kv_dtype=self.kv_dtype,  # type: ignore[arg-type]
            block_tokens=BLOCK_TOKENS,
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

    def load(self) -> Model:
        """The model, once more each time."""
        return load(self.model, self.device, self.seed, self.longest_tokens, self.dtype)


def prompts(bench: TtftBench, model: Model) -> list[Tokens]:
    """The prefixes, of which none begins with another: real text where the model has a tokenizer."""
    generator = np.random.default_rng(bench.seed)
    text = real_text(model, sum(bench.prefix_tokens), generator)
    return np.split(text, np.cumsum(bench.prefix_tokens)[:-1])


def suffix(bench: TtftBench, model: Model, repeat: int, tier: str) -> Tokens:
    """Random tokens that no other repeat and no other tier has had, save that a restart finds what the disk has had."""
    tiers = ("cold", "device", "host", "disk", "disk_dropped", "first use")
    place = tiers.index("disk" if tier == "restart" else tier)
    generator = np.random.default_rng([bench.seed, 1, repeat, place])
    return generator.integers(1, model.vocab_size, bench.suffix_tokens, dtype=np.int32)


def first_use(engine: Engine, bench: TtftBench) -> None:
    """Wait for host memory, and run a prompt of a suffix's length, which nobody sees again: what is made ready after the
    start, or loaded at first use, is no row's to pay for.
    """
    wait_for_host_memory(engine)
    generator = np.random.default_rng([bench.seed, 2])
    fill(engine, generator.integers(1, engine.model.vocab_size, bench.suffix_tokens, dtype=np.int32))


def fill(engine: Engine, prefix: Tokens) -> None:
    """Compute what the cache does not have of a prefix, and bring the rest to the device."""
    engine.generate(prefix.tolist(), SamplingParams(max_tokens=1, ignore_eos=True))


def bring(engine: Engine, tier: str, prefix: Tokens) -> None:
    """Have a prefix in a tier and no tier above, or for "cold" nothing in any. For "disk_dropped" the page cache has nothing of it
    either; for "disk" it has what was just written.
    """
    if tier == "cold":
        assert engine.clear(), "nothing runs, so everything can be forgotten"
        return
    found = engine.lookup(prefix.tolist())
    here = found["device"] if tier == "device" else sum(found.values())
    if here < len(prefix) // BLOCK_TOKENS * BLOCK_TOKENS:
        fill(engine, prefix)
    if tier in ("host", "disk"):
        engine.demote(tier)  # type: ignore[arg-type]
    if tier == "disk_dropped":
        engine.demote("disk")
        engine.flush()
        assert engine.config.disk_path is not None, "there is a disk tier"
        drop_disk_tier(engine.config.disk_path)


def timed(
    engine: Engine, tier: str, prefix: Tokens, suffix: Tokens, new_tokens: int
) -> tuple[float, list[int], Result, list[float]]:
    """Empty all tiers, bring the prefix to one, and time the prefix with the suffix."""
    bring(engine, "cold", prefix)
    if tier != "cold":
        bring(engine, tier, prefix)
    return ask(engine, prefix, suffix, new_tokens)


def ask(
    engine: Engine, prefix: Tokens, suffix: Tokens, new_tokens: int
) -> tuple[float, list[int], Result, list[float]]:
    """Seconds to the first token, the tokens, all about them, and the seconds from each to the next."""
    token_s: list[float] = []
    handle = engine.submit(
        np.concatenate([prefix, suffix]).tolist(),
        SamplingParams(max_tokens=new_tokens, ignore_eos=True),
        on_delta=lambda delta: token_s.extend([time.perf_counter()] * len(delta.token_ids)),
    )
    result = handle.result()
    between_s = [after - before for before, after in itertools.pairwise(token_s)]
    return result.timings.ttft_s, result.token_ids, result, between_s


def settings(engine: Engine) -> dict[str, Any]:
    """The engine's configuration, as JSON takes it."""
    names = engine.config.__slots__
    return {name: _plain(getattr(engine.config, name)) for name in names}


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
