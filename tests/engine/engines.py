"""Engines on tiny models with tiers of known sizes, prompts for them, and how they are asked."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from engine import EngineConfig, SamplingParams
from engine.engine import Engine
from kvstore.reports import Explanation

BLOCK = 16
BLOCK_BYTES = 12 * 1024  # of the tiny llama, in float32
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def tokens(seed: int, n: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 500, n).tolist()


def bytes_of(num_blocks: int) -> str:
    return f"{num_blocks * BLOCK_BYTES // 1024}KiB"


def open_engine(model: Path, disk: Path | None = None, **settings) -> Engine:
    wraps = {name: settings.pop(name, None) for name in ("wrap_store", "wrap_device", "load_flashinfer")}
    facts = {
        "kv_dtype": "float32",
        "block_tokens": BLOCK,
        "device_bytes": "16MiB",
        "host_bytes": "16MiB",
        "disk_path": disk,
        "disk_bytes": "64MiB",
        "disk_min_free_bytes": 0,
        "max_batch_tokens": 128,
        "load": "always",  # so small a model computes a prompt as soon as it is read
    }
    return Engine(model, EngineConfig(**{**facts, **settings}), announce=lambda _: None, **wraps)


@contextmanager
def engine_on(model: Path, disk: Path | None = None, **settings) -> Iterator[Engine]:
    with open_engine(model, disk, **settings) as engine:
        yield engine
        engine.check()


def until(seen: Callable[[], bool], deadline_s: float = 30.0) -> None:
    """Ask again until it is so: something happens on another thread."""
    end_s = time.monotonic() + deadline_s
    while not seen():
        assert time.monotonic() < end_s, "it never came to that"
        time.sleep(0.01)  # between looks at a clock that nobody can set: a TTL counts real seconds


def told(explanation: Explanation) -> list[tuple[str | None, int]]:
    """(tier or reason, tokens) for each part."""
    return [
        (part.tier if part.reason is None else part.reason.value, part.end_token - part.start_token)
        for part in explanation.parts
    ]
