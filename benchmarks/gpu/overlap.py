"""How much of a promotion is hidden behind computing: a prefix in host memory, and 64 tokens after it.

What a hit in host memory costs beyond one on the device, as a share of what the copy takes alone; what is missing to one is
hidden. With one layer group computing begins when all has come, with "auto" when the first layers have.
"""

import dataclasses
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.copies import moved_once
from benchmarks.gpu.shapes import layout, model_name
from kvstore.reports import TierName

if TYPE_CHECKING:
    from benchmarks.gpu.links import Link

_BLOCK_TOKENS = 16
_REPEATS: dict[str, dict[int, int]] = {
    "full": {1024: 5, 4096: 5, 16384: 3},
    "quick": {4096: 2},
    "rehearsal": {160: 2},
}
"""By tokens of the prefix."""


def _name(shape: str, num_tokens: int) -> str:
    return f"overlap {shape}, {num_tokens} tokens"


def names(shape: str, size: str) -> list[str]:
    return [_name(shape, num_tokens) for num_tokens in _REPEATS[size]]


def measure(shape: str, size: str, device: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows, as they come."""
    from benchmarks.gpu.links import link_to
    from engine.engine import Engine
    from tiering.cli.ttft_setup import TtftBench, first_use, prompts, suffix, timed

    repeats = _REPEATS[size]
    bench = TtftBench(
        model=model_name(shape),
        prefix_tokens=tuple(repeats),
        suffix_tokens=64,
        tiers=("device", "host"),
        repeats=tuple(repeats.values()),
        cold_repeats=max(repeats.values()),
        threads=None,
        new_tokens=1,
        dtype="auto",
        kv_dtype="auto",
        device=device,
        deterministic=False,
        reference=False,
        phases=0,
        seed=0,
    )
    model = bench.load()
    prefixes = prompts(bench, model)
    config = bench.engine_config(model, None)
    with (
        Engine(model, dataclasses.replace(config, layer_groups=1), announce=tell) as whole,
        Engine(model, dataclasses.replace(config, layer_groups="auto"), announce=tell) as in_groups,
    ):
        first_use(whole, bench)
        first_use(in_groups, bench)
        ways: dict[str, tuple[Engine, TierName]] = {
            "device": (whole, "device"),
            "one_group": (whole, "host"),
            "groups": (in_groups, "host"),
        }
        for number, num_tokens, num_repeats in bench.lengths:
            tell(f"{num_tokens} tokens")
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            # the first of each, which nobody counts, warms up
            for repeat in range(num_repeats + 1):
                behind = suffix(bench, model, repeat, "device")
                for way, (engine, tier) in ways.items():
                    ttft_s, _, result, _ = timed(engine, tier, prefixes[number], behind, bench.new_tokens)
                    assert result.usage.cached_by_tier[tier] == num_tokens // _BLOCK_TOKENS * _BLOCK_TOKENS
                    seconds[way].append(ttft_s)
            seconds["promotion"] = promotion_s(link_to(device), device, shape, num_tokens, num_repeats)
            yield row(shape, num_tokens, {way: values[1:] for way, values in seconds.items()})


def row(shape: str, num_tokens: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Of all repeats of each way."""
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "name": _name(shape, num_tokens),
        "prefix_tokens": num_tokens,
        "device_s": medians["device"],
        "one_group_s": medians["one_group"],
        "groups_s": medians["groups"],
        "promotion_s": medians["promotion"],
        "hidden_with_one_group": _hidden(seconds, "one_group"),
        "hidden_with_groups": _hidden(seconds, "groups"),
        "repeats": len(seconds["device"]),
        "seconds": seconds,
    }


def _hidden(seconds: dict[str, list[float]], way: str) -> float | None:
    """None where the copy takes less than repeats of the same differ by: it says nothing."""
    medians = {each: statistics.median(seconds[each]) for each in ("device", way, "promotion")}
    if medians["promotion"] < max(seconds["device"]) - min(seconds["device"]):
        return None
    return 1 - (medians[way] - medians["device"]) / medians["promotion"]


def promotion_s(link: "Link", device: str, shape: str, num_tokens: int, repeats: int) -> list[float]:
    """Seconds of the copy alone, from scattered slots to scattered slots; the first warms up."""
    from engine.pool import DevicePool
    from kvstore.host import HostSlab
    from tiering.transfer.mover import Mover

    blocks = layout(shape, _BLOCK_TOKENS)
    num_slots = num_tokens // _BLOCK_TOKENS
    arrived = threading.Event()
    with (
        HostSlab(num_slots, blocks.block_bytes) as slab,
        DevicePool(blocks, num_slots, device) as pool,
        link.ready(slab),
    ):
        mover = Mover(link.device(), pool, slab, wake=arrived.set)
        try:
            return [
                moved_once(mover, arrived, num_slots, scattered=True, up=True) for _ in range(repeats + 1)
            ]
        finally:
            mover.close()
