"""What a trace's hits are worth, by what a simulation of it has counted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvstore.reports import TierName
from tiering.plan import Capacity

_TIERS: tuple[TierName, ...] = ("device", "host", "disk")


def refuse_trace(trace: Path, tiers: Sequence[Capacity], block_tokens: int, trace_block_tokens: int) -> None:
    """A plan simulates nothing itself: say what does, with these tiers. Raises ValueError always."""
    if not trace.is_file():
        raise ValueError(f"cannot read --trace {trace}: there is no such file")
    sizes = {each.tier: each.num_blocks * block_tokens // trace_block_tokens for each in tiers}
    options = " ".join(f"--{tier}-blocks {sizes.get(tier, 0)}" for tier in _TIERS)
    raise ValueError(
        f"--trace: a plan does not simulate. `kvtide simulate {trace} {options} --json hits.json` counts the hits of these tiers "
        f"in blocks of {trace_block_tokens} tokens (where this version has that verb); then give --simulated hits.json instead"
    )


def read_simulated(file: Path) -> tuple[Mapping[TierName, int], int, int]:
    """Hits by tier, requests and block accesses of what a simulation has written. Raises ValueError for anything else."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read --simulated {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--simulated {file} is no JSON: {error}") from error
    try:
        hits, rate = found["hits_by_tier"], float(found["hit_rate"])
        requests, blocks = _count(found["num_requests"]), _count(found["num_blocks"])
        by_tier: dict[TierName, int] = {tier: _count(hits[tier]) for tier in _TIERS if tier in hits}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"--simulated {file} is not what `kvtide simulate --json` writes: {error!r}"
        ) from error
    if set(hits) - set(_TIERS) or abs(sum(by_tier.values()) - rate * blocks) > 0.001 * blocks + 1:
        raise ValueError(f"--simulated {file}: hits by tier, {hits}, are not {rate} of {blocks} blocks")
    return by_tier, requests, blocks


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
