"""How fast blocks are copied between host memory and the device, as a share of one plain copy of as many bytes.

Through the engine's own mover, over a slab whose slots are scattered on both sides or follow each other, as whole slots or
in four layer groups. The plain copy is made in the same run, before each of the others.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.shapes import layout

if TYPE_CHECKING:
    from benchmarks.gpu.links import Link, PlainCopy
    from engine.pool import DevicePool
    from kvstore.host import HostSlab
    from tiering.transfer.mover import Mover

GROUPS = 4
_BLOCK_TOKENS = {"full": (16, 32, 64, 128, 256), "quick": (16, 256), "rehearsal": (16, 64)}
_BYTES = {"full": 512 << 20, "quick": 256 << 20, "rehearsal": 1 << 20}
_REPEATS = {"full": 7, "quick": 3, "rehearsal": 2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row."""

    shape: str
    block_tokens: int
    scattered: bool
    groups: int
    up: bool

    @property
    def name(self) -> str:
        slots = "scattered" if self.scattered else "adjacent"
        parts = "whole slots" if self.groups == 1 else f"{self.groups} layer groups"
        return f"copies {self.shape}, {self.block_tokens} tokens, {slots}, {parts}, {'up' if self.up else 'down'}"


def cases(shape: str, size: str) -> list[Case]:
    """A copy down has no layer groups: nobody computes on what it brings."""
    return [
        Case(shape=shape, block_tokens=block_tokens, scattered=scattered, groups=groups, up=up)
        for block_tokens in _BLOCK_TOKENS[size]
        for scattered in (True, False)
        for groups, up in ((1, True), (GROUPS, True), (1, False))
    ]


def names(shape: str, size: str) -> list[str]:
    return [case.name for case in cases(shape, size)]


def measure(shape: str, size: str, device: str, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The rows, as they come."""
    from benchmarks.gpu.links import link_to

    link = link_to(device)
    for block_tokens in _BLOCK_TOKENS[size]:
        tell(f"blocks of {block_tokens} tokens")
        chosen = [case for case in cases(shape, size) if case.block_tokens == block_tokens]
        yield from rows(link, device, chosen, num_bytes=_BYTES[size], repeats=_REPEATS[size])


def rows(
    link: "Link", device: str, chosen: Sequence[Case], *, num_bytes: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Of cases with the same blocks, about `num_bytes` of them."""
    from engine.pool import DevicePool
    from kvstore.host import HostSlab

    blocks = layout(chosen[0].shape, chosen[0].block_tokens)
    num_slots = max(2, num_bytes // blocks.block_bytes)
    with (
        HostSlab(num_slots, blocks.block_bytes) as slab,
        DevicePool(blocks, num_slots, device) as pool,
        link.ready(slab),
        link.plain(pool) as plain,
    ):
        for case in chosen:
            plain_s, moved_s = _seconds(link, case, pool, slab, plain, repeats)
            size = num_slots * blocks.block_bytes
            yield {
                "name": case.name,
                "direction": "up" if case.up else "down",
                "block_tokens": case.block_tokens,
                "block_bytes": blocks.block_bytes,
                "scattered": case.scattered,
                "layer_groups": case.groups,
                "bytes": size,
                "plain_gb_per_s": size / statistics.median(plain_s) / 1e9,
                "gb_per_s": size / statistics.median(moved_s) / 1e9,
                "slowest_gb_per_s": size / max(moved_s) / 1e9,
                "fastest_gb_per_s": size / min(moved_s) / 1e9,
                "share": statistics.median(plain_s) / statistics.median(moved_s),
                "repeats": repeats,
                "seconds": moved_s,
                "plain_seconds": plain_s,
            }


def _seconds(
    link: "Link",
    case: Case,
    pool: "DevicePool",
    slab: "HostSlab",
    plain: "PlainCopy",
    repeats: int,
) -> tuple[list[float], list[float]]:
    """Of the plain copy and of the mover's, in turn; the first of each, which nobody counts, warms up."""
    from engine.layer_groups import layer_groups
    from tiering.transfer.mover import Mover

    arrived = threading.Event()
    groups = layer_groups(pool.layout, case.groups, pool.device.type).parts
    mover = Mover(link.device(), pool, slab, wake=arrived.set, groups=groups)
    plain_s, moved_s = [], []
    try:
        for _ in range(repeats + 1):
            start_s = time.perf_counter()
            plain(up=case.up)
            plain_s.append(time.perf_counter() - start_s)
            moved_s.append(moved_once(mover, arrived, slab.num_slots, scattered=case.scattered, up=case.up))
    finally:
        mover.close()
    return plain_s[1:], moved_s[1:]


def moved_once(
    mover: "Mover", arrived: threading.Event, num_slots: int, *, scattered: bool, up: bool
) -> float:
    """Seconds from asking the mover for a copy of all slots until it says that they have arrived."""
    import numpy as np

    from tiering.transfer.mover import Ended

    order = np.random.default_rng(0)
    host, device = (
        (order.permutation(num_slots) if scattered else np.arange(num_slots)).tolist() for _ in range(2)
    )
    arrived.clear()
    start_s = time.perf_counter()
    if up:
        mover.submit_promote(1, host, device)
    else:
        mover.submit_demote(1, device, host)
    while not (ended := [news for news in mover.poll() if isinstance(news, Ended)]):
        arrived.wait()
        arrived.clear()
    seconds = time.perf_counter() - start_s
    if ended[0].error is not None:
        raise ended[0].error
    return seconds
