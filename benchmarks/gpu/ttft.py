"""Time to first token with a prefix in each tier, as `kvtide bench ttft` measures it."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu.shapes import model_name

TIERS = ("cold", "device", "host", "disk", "restart")
ON_DISK = ("disk", "restart")

_REPEATS: dict[str, dict[int, int]] = {
    "full": {1024: 3, 4096: 3, 16384: 2, 32768: 1},
    "quick": {1024: 1, 4096: 1},
    "rehearsal": {64: 1, 160: 1},
}
"""By tokens of the prefix: a long one is filled anew for each cold row, and takes seconds."""


def _name(shape: str, num_tokens: int, tier: str) -> str:
    return f"ttft {shape}, {num_tokens} tokens, {tier}"


def names(shape: str, size: str) -> list[str]:
    return [_name(shape, num_tokens, tier) for num_tokens in _REPEATS[size] for tier in TIERS]


def needs_disk(name: str) -> bool:
    return name.endswith(ON_DISK)


def measure(
    shape: str, size: str, device: str, tell: Callable[[str], None], *, disk: bool = True
) -> Iterator[dict[str, Any]]:
    """The rows, as they come: the restarts at the end. Without `disk` those that need none."""
    from tiering.cli.bench_ttft import measure as measure_ttft
    from tiering.cli.ttft_setup import TtftBench

    bench = TtftBench(
        model=model_name(shape),
        prefix_tokens=tuple(_REPEATS[size]),
        suffix_tokens=64,
        tiers=tuple(tier for tier in TIERS if disk or tier not in ON_DISK),
        repeats=tuple(_REPEATS[size].values()),
        cold_repeats=max(_REPEATS[size].values()),
        threads=None,
        new_tokens=4,
        dtype="auto",
        kv_dtype="auto",
        device=device,
        deterministic=False,
        reference=False,
        phases=0,
        seed=0,
    )
    from_disk = {}
    for row in measure_ttft(bench, tell):
        if row["tier"] == "disk":
            from_disk[row["prefix_tokens"]] = row["token_ids"]
        yield {
            "name": _name(shape, row["prefix_tokens"], row["tier"]),
            "fastest_s": min(row["ttft_s_all"]),
            "slowest_s": max(row["ttft_s_all"]),
            "repeats": len(row["ttft_s_all"]),
            "complaint": _complaint(row),
            "replies_as_from_disk": _agrees(row, from_disk),
            **row,
        }


def _agrees(row: dict[str, Any], from_disk: dict[int, Any]) -> bool | None:
    """Whether a restarted engine replied as the first one did: also that weights which were drawn again are the same, whose
    KV was found by what made them.
    """
    return row["token_ids"] == from_disk[row["prefix_tokens"]] if row["tier"] == "restart" else None


def _complaint(row: dict[str, Any]) -> str | None:
    """Why the row does not measure what its name says."""
    tier, cached = row["tier"], row["cached_by_tier"]
    where = "disk" if tier == "restart" else tier
    expected = dict.fromkeys(cached, 0)
    if tier != "cold":
        expected[where] = row["prefix_tokens"] // 16 * 16
    return None if cached == expected else f"the prefix was found as {cached}, not as {expected}"
