"""Rebuilding the index from what a store says it holds: keys, parents, tokens; no payload is read."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from kvstore.block import BlockKey
from kvstore.store import BlockMeta
from tiering.holdings import DISK, Holdings
from tiering.residency import NO_BLOCK


def restore(holdings: Holdings, root_key: BlockKey, found: Iterable[BlockMeta]) -> list[BlockKey]:
    """Enter the blocks that reach back to the root, oldest written as least recently used. Answers the other keys."""
    children: defaultdict[BlockKey, list[BlockMeta]] = defaultdict(list)
    for meta in found:
        children[meta.parent_key].append(meta)
    leaves: list[tuple[int, int]] = []
    starts: list[tuple[int, BlockMeta]] = [(NO_BLOCK, meta) for meta in children.pop(root_key, [])]
    while starts:
        parent, meta = starts.pop()
        run = [meta]
        while len(below := children.pop(run[-1].key, [])) == 1:
            run.append(below[0])
        ids = holdings.radix.extend(parent, b"".join(meta.tokens for meta in run))
        for block, meta in zip(ids.tolist(), run, strict=True):
            holdings.residency.set_key(block, meta.key)
        holdings.residency.owner[ids] = [holdings.owners.number(meta.owner) for meta in run]
        sizes = np.array([meta.stored_bytes for meta in run], dtype=np.int64)
        holdings.expect(DISK, ids, sizes)
        holdings.arrived(DISK, ids, sizes)
        starts.extend((ids.item(-1), meta) for meta in below)
        if not below:
            leaves.append((max(meta.written_ns for meta in run), ids.item(-1)))
    for _, leaf in sorted(leaves):
        holdings.order.touch(holdings.radix.path(leaf))
    return [meta.key for metas in children.values() for meta in metas]
