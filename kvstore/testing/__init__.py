"""What tests of stores are written with, here and elsewhere; the laws that every store keeps are `kvstore.testing.laws`."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvstore.block import chain_key
from kvstore.reasons import MissReason
from kvstore.store import BlockRef, ReadOutcome, Store

Block: TypeAlias = NDArray[np.uint8]


def chain(store: Store, num_blocks: int, seed: int = 0) -> list[BlockRef]:
    """The blocks of one prompt of random tokens, in order."""
    rng = np.random.default_rng(seed)
    refs, parent = [], store.namespace.root_key
    for _ in range(num_blocks):
        tokens = rng.integers(0, 2**31 - 1, store.layout.block_tokens).astype("<i4").tobytes()
        refs.append(BlockRef(chain_key(parent, tokens), parent, tokens))
        parent = refs[-1].key
    return refs


def kv_like(store: Store, num_blocks: int, seed: int = 0) -> list[Block]:
    """Blocks that compress as KV does: normally distributed, in the layout's dtype."""
    num_items = store.layout.block_bytes // store.layout.itemsize
    normal = np.random.default_rng(seed).standard_normal((num_blocks, num_items))
    if store.layout.dtype == "float16":
        return [block.astype("<f2").view(np.uint8) for block in normal]
    words = normal.astype("<f4").view("<u4")
    if store.layout.dtype == "bfloat16":
        words = (words >> 16).astype("<u2")
    return [block.view(np.uint8) for block in words]


def noise(store: Store, num_blocks: int, seed: int = 0) -> list[Block]:
    """Blocks that do not compress."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, store.layout.block_bytes, dtype=np.uint8) for _ in range(num_blocks)]


def fill(store: Store, num_blocks: int, seed: int = 0) -> tuple[list[BlockRef], list[Block]]:
    """Put the blocks of one prompt; answer them."""
    refs, blocks = chain(store, num_blocks, seed), kv_like(store, num_blocks, seed)
    store.put_many(refs, blocks)
    return refs, blocks


def read(store: Store, refs: Sequence[BlockRef]) -> tuple[list[ReadOutcome], list[Block]]:
    """The outcomes, and the buffers that were read into, which held junk before."""
    out = [np.full(store.layout.block_bytes, 0xA5, dtype=np.uint8) for _ in refs]
    return store.get_many(refs, out), out


def assert_holds(store: Store, refs: Sequence[BlockRef], blocks: Sequence[Block]) -> None:
    """Every one of the blocks is a hit and comes back byte for byte."""
    outcomes, out = read(store, refs)
    assert [outcome.reason for outcome in outcomes] == [None] * len(refs), f"missed: {outcomes}"
    for position, (got, expected) in enumerate(zip(out, blocks, strict=True)):
        assert np.array_equal(got, expected), f"block {position} came back changed"


def reasons(store: Store, refs: Sequence[BlockRef]) -> list[MissReason | None]:
    """Why each of the blocks misses; None for a hit."""
    return [outcome.reason for outcome in read(store, refs)[0]]
