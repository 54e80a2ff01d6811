"""Reads beside puts, deletions and a map that moves: every block that is served is the one that was asked for."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvstore import BlockLayout
from kvstore.reasons import MissReason
from kvstore.testing import chain, kv_like
from tests.kvstore.conftest import absent_by

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16", block_tokens=16)
NUM_READERS, NUM_BLOCKS, NUM_ROUNDS = 8, 40, 48
FIRST_BYTES = 4 << 20


def test_what_is_read_while_others_write_delete_and_grow_is_right_or_absent(open_lmdb, monkeypatch):
    """By way of the map and past it, into places that are aligned in all ways; nothing around them is written."""
    absent = itertools.cycle([0, 1, 1, 0, 1])
    absent_by(monkeypatch, lambda address, num_bytes: next(absent))
    store, ended = open_lmdb(layout=LAYOUT, capacity_bytes=FIRST_BYTES), threading.Event()
    refs, size = chain(store, NUM_BLOCKS), store.layout.block_bytes
    blocks = [np.asarray(block).view(np.uint8).reshape(-1) for block in kv_like(store, NUM_BLOCKS)]

    def written(seed: int) -> None:
        rng, capacity_bytes = np.random.default_rng(seed), FIRST_BYTES
        for number in range(NUM_ROUNDS):
            some = rng.permutation(NUM_BLOCKS)[:12]
            if number % 3:
                store.put_many([refs[i] for i in some], [blocks[i] for i in some])
            else:
                store.delete_many([refs[i].key for i in (some if number % 30 else range(NUM_BLOCKS))])
            if number % 8 == 0:
                capacity_bytes *= 2
                store.change(capacity_bytes=min(capacity_bytes, 2 << 30))

    def read(seed: int) -> int:
        rng, num_hits = np.random.default_rng(seed), 0
        whole = np.full((NUM_BLOCKS, size + 192), 0xA5, np.uint8)
        while not ended.is_set():
            some, begin = rng.permutation(NUM_BLOCKS)[: rng.integers(1, 30)], 64 + int(rng.integers(0, 64))
            places = [whole[i, begin : begin + size] for i in some]
            for i, place, outcome in zip(
                some, places, store.get_many([refs[i] for i in some], places), strict=True
            ):
                assert outcome.reason in (None, MissReason.ABSENT)
                assert not outcome.hit or np.array_equal(place, blocks[i])
                num_hits += outcome.hit
                place[:] = 0xA5
            assert (whole == 0xA5).all()
        return num_hits

    with ThreadPoolExecutor(NUM_READERS + 1) as threads:
        reads = [threads.submit(read, seed) for seed in range(NUM_READERS)]
        try:
            threads.submit(written, NUM_READERS).result()
        finally:
            ended.set()
        assert sum(one.result() for one in reads) > 0
    assert store.stats().fresh_starts == store.stats().damaged_blocks == 0
    store.check()
