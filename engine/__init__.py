"""Runs models on paged KV that a tiered prefix cache keeps: `Engine`, `EngineConfig`, `SamplingParams`.

with Engine("demo", EngineConfig(disk_path="kv")) as engine:
    print(engine.generate("The capital of France is", SamplingParams(max_tokens=8)).text)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.config import EngineConfig, SamplingParams
    from engine.engine import Engine
    from engine.results import Result, Timings, Usage

_HOME = {
    "Engine": "engine.engine",
    "EngineConfig": "engine.config",
    "Result": "engine.results",
    "SamplingParams": "engine.config",
    "Timings": "engine.results",
    "Usage": "engine.results",
}

__all__ = ["Engine", "EngineConfig", "Result", "SamplingParams", "Timings", "Usage"]


def __getattr__(name: str) -> Any:
    """Import on first use: a configuration can be written and checked without loading torch."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
