"""kvtide's LmdbStore."""

from pathlib import Path

import numpy as np

from benchmarks.peers.backend import (
    BLOCK_BYTES,
    BLOCK_TOKENS,
    HEAD_DIM,
    JUNK,
    NUM_BLOCKS,
    NUM_KV_HEADS,
    NUM_LAYERS,
    Block,
    Read,
)
from benchmarks.peers.faults import Place
from kvstore.block import BlockLayout, Namespace
from kvstore.disk import LmdbStore
from kvstore.head import header_bytes
from kvstore.reasons import MissReason
from kvstore.testing import chain


class Backend:
    def __init__(self, directory: Path) -> None:
        layout = BlockLayout(
            num_layers=NUM_LAYERS,
            num_kv_heads=NUM_KV_HEADS,
            head_dim=HEAD_DIM,
            block_tokens=BLOCK_TOKENS,
            dtype="bfloat16",
        )
        assert layout.block_bytes == BLOCK_BYTES
        self._payload = directory / "v1" / "payload" / "data.mdb"
        self._store = LmdbStore(
            directory, namespace=Namespace.of({"model": "peers"}), layout=layout, capacity_bytes=1 << 30
        )
        self._refs = chain(self._store, NUM_BLOCKS)

    def put(self, number: int, block: Block) -> None:
        self._store.put_many([self._refs[number]], [block])
        self._store.sync()

    def get(self, number: int) -> Read:
        out = np.full(BLOCK_BYTES, JUNK, np.uint8)
        [outcome] = self._store.get_many([self._refs[number]], [out])
        if outcome.hit:
            return Read("hit", out)
        return Read("missed" if outcome.reason is MissReason.ABSENT else "refused")

    def place(self, number: int) -> Place:
        record = self._store.raw().read(self._refs[number].key)
        assert record is not None
        start = self._payload.read_bytes().index(record)
        header = header_bytes(self._store.layout.token_id_bytes)
        return Place(self._payload, start + header, start + len(record))

    def close(self) -> None:
        self._store.close()
