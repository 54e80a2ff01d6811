"""Blocks of KV to measure a disk with: a model's own, computed by the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvstore.block import BlockKey, BlockLayout, Namespace, chain_key
from kvstore.disk import LmdbStore
from kvstore.metas import metas_of
from kvstore.store import BlockRef

NO_MODEL: Final = "none"
_BLOCK_TOKENS: Final = 16
_DEMO_LAYOUT: Final = BlockLayout(
    num_layers=30, num_kv_heads=3, head_dim=64, block_tokens=_BLOCK_TOKENS, dtype="bfloat16"
)


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """The blocks of one prompt."""

    namespace: Namespace
    layout: BlockLayout
    refs: list[BlockRef]
    """In the order of the prompt."""
    data: NDArray[np.uint8]
    """[blocks, block_bytes]"""
    source: str
    """In words."""

    def copies(self, num_copies: int) -> list[BlockRef]:
        """References of so many prompts, one after the other, that differ in their first token: their data may be the same."""
        refs: list[BlockRef] = []
        for copy in range(num_copies):
            parent: BlockKey = self.namespace.root_key
            for number, ref in enumerate(self.refs):
                tokens = np.frombuffer(ref.tokens, np.int32).copy()
                tokens[0] += copy if number == 0 else 0
                refs.append(BlockRef(chain_key(parent, tokens.tobytes()), parent, tokens.tobytes()))
                parent = refs[-1].key
        return refs


def kv_blocks(
    model: str,
    num_tokens: int,
    seed: int,
    scratch: Path,
    tell: Callable[[str], None],
    kv_dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> KvBlocks:
    """KV of that many tokens of real text; of the model NO_MODEL random numbers in the demo's shape, in bfloat16."""
    if model == NO_MODEL:
        return _random(num_tokens, seed)
    from engine import EngineConfig
    from engine.engine import Engine
    from tiering.cli.prompts import load, real_text

    loaded = load(model, "cpu", seed, num_tokens + 1)
    tokens = real_text(loaded, num_tokens, np.random.default_rng(seed))
    layout = loaded.layout(kv_dtype, _BLOCK_TOKENS)
    size = (num_tokens // _BLOCK_TOKENS + 8) * layout.block_bytes
    config = EngineConfig(
        device="cpu",
        kv_dtype=kv_dtype,
        block_tokens=_BLOCK_TOKENS,
        device_bytes=size,
        host_bytes=size,
        disk_path=scratch,
        disk_bytes=4 * size,
        disk_min_free_bytes=0,
        load="always",
    )
    tell(f"{num_tokens} tokens are computed by {model}")
    with Engine(loaded, config, announce=lambda _: None) as engine:
        engine.warm(tokens.tolist())
        engine.flush()
        namespace = engine.namespace
    with LmdbStore(
        scratch, namespace=namespace, layout=layout, capacity_bytes=4 * size, min_free_bytes=0
    ) as store:
        return _chain(store, f"{model}, computed by the engine over real text")


def _chain(store: LmdbStore, source: str) -> KvBlocks:
    """What the store holds of its one prompt."""
    after = {meta.parent_key: meta.ref for meta in metas_of(store)}
    refs: list[BlockRef] = []
    parent = store.namespace.root_key
    while parent in after:
        refs.append(after[parent])
        parent = refs[-1].key
    data = np.empty((len(refs), store.layout.block_bytes), np.uint8)
    assert all(outcome.hit for outcome in store.get_many(refs, list(data))), "nothing has happened to them"
    return KvBlocks(store.namespace, store.layout, refs, data, source)


def _random(num_tokens: int, seed: int) -> KvBlocks:
    rng = np.random.default_rng(seed)
    num_blocks = num_tokens // _BLOCK_TOKENS
    shape = (num_blocks, _DEMO_LAYOUT.block_bytes // 2)
    floats = rng.standard_normal(shape, dtype=np.float32)
    data = (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    namespace = Namespace.of({"model": "random numbers"})
    refs: list[BlockRef] = []
    parent: BlockKey = namespace.root_key
    for tokens in rng.integers(1, 1 << 15, (num_blocks, _BLOCK_TOKENS), dtype=np.int32):
        refs.append(BlockRef(chain_key(parent, tokens.tobytes()), parent, tokens.tobytes()))
        parent = refs[-1].key
    return KvBlocks(namespace, _DEMO_LAYOUT, refs, data, "normally distributed random numbers, no model")
