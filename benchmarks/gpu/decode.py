"""Tokens a second of several requests at a time, with traffic between the tiers and without, as `kvtide bench serve` has it."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.shapes import model_name

_SIZES: dict[str, dict[str, int]] = {
    "full": {"clients": 8, "requests": 24, "prompt_tokens": 1024, "new_tokens": 64, "repeats": 2},
    "quick": {"clients": 8, "requests": 8, "prompt_tokens": 512, "new_tokens": 32, "repeats": 1},
    "rehearsal": {"clients": 2, "requests": 24, "prompt_tokens": 64, "new_tokens": 4, "repeats": 1},
}


def _name(shape: str, *, tiers: bool) -> str:
    return f"decode {shape}, {'with' if tiers else 'without'} tier traffic"


def names(shape: str, size: str) -> list[str]:
    assert size in _SIZES, size
    return [_name(shape, tiers=tiers) for tiers in (False, True)]


def measure(shape: str, size: str, device: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Both rows, at the end: their repeats are interleaved."""
    from tiering.cli.bench_serve import ServeBench
    from tiering.cli.bench_serve import measure as measure_serving

    bench = ServeBench(
        model=model_name(shape),
        sharing=(0,),
        **_SIZES[size],
        threads=None,
        device=device,
        deterministic=False,
        seed=0,
    )
    for row in measure_serving(bench, tell):
        moved = row["evicted_blocks"] and row["disk_blocks"]
        complaint = "no block was evicted and written" if row["tiers"] and not moved else None
        yield {"name": _name(shape, tiers=row["tiers"]), "complaint": complaint, **_SIZES[size], **row}
