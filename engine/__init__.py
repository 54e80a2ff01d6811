"""Runs models on paged KV that a tiered prefix cache keeps: `Engine`, `EngineConfig`, `SamplingParams`.

with Engine("demo", EngineConfig(disk_path="kv")) as engine:
    print(engine.generate("The capital of France is", SamplingParams(max_tokens=8)).text)
"""

import importlib
from typing import TYPE_CHECKING, Any

from kvstore.collector import paused

if TYPE_CHECKING:
    from engine.aio import AsyncEngine
    from engine.config import EngineConfig
    from engine.engine import Engine
    from engine.errors import EngineClosed
    from engine.params import CacheHints, RequestOptions, SamplingParams
    from engine.results import Delta, Result, Sample, Timings, TokenLogprob, Usage

_HOME = {
    "AsyncEngine": "engine.aio",
    "CacheHints": "engine.params",
    "Delta": "engine.results",
    "Engine": "engine.engine",
    "EngineClosed": "engine.errors",
    "EngineConfig": "engine.config",
    "RequestOptions": "engine.params",
    "Result": "engine.results",
    "Sample": "engine.results",
    "SamplingParams": "engine.params",
    "Timings": "engine.results",
    "TokenLogprob": "engine.results",
    "Usage": "engine.results",
}

__all__ = [
    "AsyncEngine",
    "CacheHints",
    "Delta",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "RequestOptions",
    "Result",
    "Sample",
    "SamplingParams",
    "Timings",
    "TokenLogprob",
    "Usage",
]


def __getattr__(name: str) -> Any:
    """Import on first use: a configuration can be written and checked without loading torch."""
    if name in _HOME:
        with paused():
            home = importlib.import_module(_HOME[name])
        return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
