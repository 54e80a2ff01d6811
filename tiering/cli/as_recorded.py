"""What a live engine found of a trace that it was recorded with: what a simulation of the same sizes is held against."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tiering.trace import read_trace, whole_block_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class AsRecorded:
    """Of all requests that were computed: their whole blocks, those of them that were found, by tier, and their TTFT."""

    num_blocks: int
    hits_by_tier: dict[str, int]
    ttft_s: list[float]

    @property
    def hit_rate(self) -> float:
        """Of all blocks, those found."""
        return sum(self.hits_by_tier.values()) / self.num_blocks if self.num_blocks else 0.0

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        ttft_s = {"mean": fmean(self.ttft_s), "p50": median(self.ttft_s)} if self.ttft_s else None
        return {"hit_rate": self.hit_rate, "hits_by_tier": self.hits_by_tier, "ttft_s": ttft_s}

    def told(self, simulated: float | None) -> str:
        """A sentence; `simulated`: the hit rate of the one simulation, if there was one."""
        parts = ", ".join(
            f"{tier} {num / self.num_blocks:.1%}" for tier, num in self.hits_by_tier.items() if num
        )
        line = f"recorded: the engine found {self.hit_rate:.2%}" + (f" ({parts})" if parts else "")
        if simulated is None:
            return f"{line}."
        return f"{line}; simulated are {100 * (simulated - self.hit_rate):+.2f} points."


def as_recorded(trace: Path) -> AsRecorded | None:
    """What became of the requests; None for a trace that does not say. Raises as `read_trace` does."""
    if whole_block_tokens(trace) is None:
        return None
    hits: Counter[str] = Counter()
    num_blocks, ttft_s = 0, []
    for request in read_trace(trace):
        if request.found is not None:
            hits.update(request.found)
            num_blocks += len(request.blocks)
            ttft_s += [] if request.ttft_s is None else [request.ttft_s]
    return AsRecorded(num_blocks=num_blocks, hits_by_tier=dict(hits), ttft_s=ttft_s) if num_blocks else None
