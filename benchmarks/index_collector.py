"""How long the garbage collector holds up a thread that inserts and evicts in a large tree."""

import gc
import time
from typing import Any, Self

from benchmarks.index_tree import Tree
from benchmarks.workloads_index import Tokens, prefixes
from tiering.residency import Tier

_EVERYTHING = 5
_OTHERS = 20_000_000
"""Prefixes from this number on are in no tree."""


class Pauses:
    """Collections while it is entered: the generation and length of each, by the wall and by the thread's own time."""

    def __init__(self) -> None:
        self.wall_ms: list[tuple[int, float]] = []
        self.cpu_ms: list[float] = []
        self._wall_ns = self._cpu_ns = 0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._wall_ns, self._cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        else:
            self.cpu_ms.append((time.thread_time_ns() - self._cpu_ns) / 1e6)
            self.wall_ms.append((info["generation"], (time.perf_counter_ns() - self._wall_ns) / 1e6))


def collector(tree: Tree, seconds: float, seed: int) -> dict[str, Any]:
    """Enter prefixes and evict as many blocks for `seconds`, the collector on; then collect everything some times.

    `longest_ms` is the longest of all collections, those included, in processor time of the thread.
    """
    fresh = prefixes(_OTHERS, seed, _OTHERS)
    gc.collect()
    device = tree.holdings.slots[Tier.DEVICE]
    gaps_ms = []
    with Pauses() as pauses:
        end_s, number = time.monotonic() + seconds, 0
        while time.monotonic() < end_s:
            tokens = next(fresh)
            start_ns = time.thread_time_ns()
            _turn(tree, tokens, device.num_free)
            gaps_ms.append((time.thread_time_ns() - start_ns) / 1e6)
            number += 1
        of_themselves = len(pauses.cpu_ms)
        for _ in range(_EVERYTHING):
            gc.collect()
    forced = sorted(pauses.cpu_ms[of_themselves:])
    return {
        "prefixes_entered": number,
        "collections": of_themselves,
        "longest_ms": round(max(pauses.cpu_ms), 3),
        "longest_wall_ms": round(max((ms for _, ms in pauses.wall_ms), default=0.0), 3),
        "everything_median_ms": round(forced[len(forced) // 2], 3),
        "turn_p50_ms": round(sorted(gaps_ms)[len(gaps_ms) // 2], 3),
        "turn_longest_ms": round(max(gaps_ms), 3),
    }


def _turn(tree: Tree, tokens: Tokens, num_free: int) -> None:
    tree.enter(tokens, Tier.DEVICE)
    tree.index.make_room(num_free)
