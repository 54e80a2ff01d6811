"""What tiers find of a trace: simulated here, or as a simulation has counted it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.reports import TierName
from tiering.cli.parsing import parsed
from tiering.plan import Capacity
from tiering.simulate import Simulation, SimulationConfig
from tiering.trace import read_trace


@dataclass(frozen=True, slots=True)
class Counted:
    """Hits by tier, and all accesses, in blocks of the trace."""

    hits_by_tier: Mapping[TierName, int]
    num_requests: int
    num_blocks: int


_TIERS: tuple[TierName, ...] = ("device", "host", "disk")


def simulate(trace: Path, tiers: Sequence[Capacity], block_tokens: int, trace_block_tokens: int) -> Counted:
    """What tiers of these sizes would have found of a trace, whose blocks have `trace_block_tokens` tokens.

    Reads the whole trace. Raises ValueError for what is none, or where the device holds no such block.
    """
    try:
        requests = list(read_trace(trace))
    except OSError as error:
        raise ValueError(f"cannot read --trace {trace}: {error.strerror}") from error
    most = sum(len(request.blocks) for request in requests)  # more room than that changes nothing
    sizes = {each.tier: min(most, each.num_blocks * block_tokens // trace_block_tokens) for each in tiers}
    if not sizes["device"]:
        raise ValueError(
            f"--trace: the device holds no block of {trace_block_tokens} tokens (--trace-block-tokens)"
        )
    host = sizes.get("host", 0)
    config = SimulationConfig(
        device_blocks=sizes["device"], host_blocks=host, disk_blocks=sizes.get("disk", 0) if host else 0
    )
    outcome = Simulation(config).run(requests)
    hits = {tier: outcome.hits_by_tier[tier] for tier in _TIERS if tier in outcome.hits_by_tier}
    return Counted(hits, outcome.num_requests, outcome.num_blocks)


def read_simulated(file: Path) -> Counted:
    """What `kvtide simulate --json` has written. Raises ValueError for anything else."""
    found = parsed(file, f"--simulated {file}")
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
    return Counted(by_tier, requests, blocks)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
