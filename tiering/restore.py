"""Rebuilding the index from what a store says it holds: keys, parents, tokens, ages; no payload is read."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvstore.block import BlockKey
from kvstore.store import BlockMeta
from tiering.holdings import DISK, Holdings
from tiering.residency import NO_BLOCK, Ids

_SAME_AGE_S = 1e-3  # what a float loses of a time since 1970 is less


@dataclass(slots=True)
class _Run:
    """Blocks that follow each other without a branch."""

    metas: list[BlockMeta]
    ids: Ids
    above: "_Run | None"
    below_ns: int = -1
    """When what follows it was last used."""


def restore(
    holdings: Holdings, root_key: BlockKey, found: Iterable[BlockMeta], now_ns: int
) -> list[BlockKey]:
    """Enter the blocks that reach back to the root, least recently used first. Answers the other keys.

    It is `holdings.order.now_s`, and by the clock of the metas `now_ns`. What they say of later times, as after a clock
    was set back, cannot be: it was used now, and the disk is to be told so. So it is of uses that only what follows a block tells.
    """
    runs, others = _enter(holdings, root_key, found)
    now_s = holdings.order.now_s
    for used_ns, block in sorted(_uses(runs)):
        holdings.order.now_s = now_s - max(0, now_ns - used_ns) / 1e9
        holdings.order.touch(holdings.radix.path(block))
    holdings.order.now_s = now_s
    _note_what_is_told(holdings, runs, now_ns)
    return others


def _note_what_is_told(holdings: Holdings, runs: list[_Run], now_ns: int) -> None:
    residency, order = holdings.residency, holdings.order
    ids = np.concatenate([np.empty(0, dtype=np.intp), *(run.ids for run in runs)])
    by_disk_s = (
        now_ns - np.array([meta.used_ns for run in runs for meta in run.metas], dtype=np.int64)
    ) / 1e9
    told = (by_disk_s >= 0) & (by_disk_s - (order.now_s - order.touched_s(ids)) < _SAME_AGE_S)
    residency.told[ids] = np.where(told, residency.stamp[ids], 0)


def _enter(
    holdings: Holdings, root_key: BlockKey, found: Iterable[BlockMeta]
) -> tuple[list[_Run], list[BlockKey]]:
    """The runs that reach back to the root, each after the one above it, and the keys of other blocks."""
    children: defaultdict[BlockKey, list[BlockMeta]] = defaultdict(list)
    for meta in found:
        children[meta.parent_key].append(meta)
    runs: list[_Run] = []
    starts: list[tuple[_Run | None, BlockMeta]] = [(None, meta) for meta in children.pop(root_key, [])]
    while starts:
        above, meta = starts.pop()
        metas = [meta]
        while len(below := children.pop(metas[-1].key, [])) == 1:
            metas.append(below[0])
        parent = NO_BLOCK if above is None else above.ids.item(-1)
        ids = holdings.radix.extend(parent, b"".join(meta.tokens for meta in metas))
        for block, meta in zip(ids.tolist(), metas, strict=True):
            holdings.residency.set_key(block, meta.key)
        holdings.residency.owner[ids] = [holdings.owners.number(meta.owner) for meta in metas]
        sizes = np.array([meta.stored_bytes for meta in metas], dtype=np.int64)
        holdings.expect(DISK, ids, sizes)
        holdings.arrived(DISK, ids, sizes)
        runs.append(_Run(metas, ids, above))
        starts.extend((runs[-1], meta) for meta in below)
    return runs, [meta.key for metas in children.values() for meta in metas]


def _uses(runs: list[_Run]) -> list[tuple[int, int]]:
    """The last uses, by time and the last block of the path: of a block, those of what follows it are uses too."""
    uses = []
    for run in reversed(runs):
        used_ns = run.below_ns
        for meta, block in zip(reversed(run.metas), reversed(run.ids.tolist()), strict=True):
            if meta.used_ns > used_ns:
                used_ns = meta.used_ns
                uses.append((used_ns, block))
        if run.above is not None:
            run.above.below_ns = max(run.above.below_ns, used_ns)
    return uses
