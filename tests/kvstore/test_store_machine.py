"""Any sequence of calls, reopenings and damage against a plain dict."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore import BlockLayout, BlockRef, LmdbStore, MemoryStore, Namespace, StoreFull
from kvstore.metas import metas_of
from tests.kvstore.conftest import absent_by

LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=64, dtype="bfloat16", block_tokens=32)
NAMESPACES = [Namespace.of({"model": name}) for name in "ab"]
CAPACITY_BYTES = 60_000
REFS = [
    BlockRef(bytes([i]) * 32, bytes([i ^ 255]) * 32, bytes([i]) * LAYOUT.token_id_bytes) for i in range(12)
]
which = st.integers(0, len(REFS) - 1)


def content(seed: int) -> bytes:
    """Even seeds compress, odd ones do not."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256 if seed % 2 else 3, LAYOUT.block_bytes, dtype=np.uint8).tobytes()


class StoreMachine(RuleBasedStateMachine):
    """The oracle holds content and damage by namespace and block; sizes are the store's own business."""

    def __init__(self) -> None:
        super().__init__()
        self.oracle: dict[tuple[int, int], bytes] = {}
        self.damaged: set[tuple[int, int]] = set()
        self.used: dict[tuple[int, int], int] = {}
        self.space = 0
        self.store = None

    def open_store(self):
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.store = self.open_store()

    @rule(batch=st.lists(st.tuples(which, st.integers(0, 9)), max_size=5))
    def put(self, batch) -> None:
        try:
            self.store.put_many([REFS[i] for i, _ in batch], [content(seed) for _, seed in batch])
        except StoreFull:
            return
        for i, seed in batch:
            self.oracle[self.space, i] = content(seed)
            self.used.pop((self.space, i), None)
            self.damaged.discard((self.space, i))

    @rule(batch=st.lists(which, max_size=5, unique=True))
    def get(self, batch) -> None:
        out = np.zeros((len(batch), LAYOUT.block_bytes), dtype=np.uint8)
        outcomes = self.store.get_many([REFS[i] for i in batch], list(out))
        for i, outcome, got in zip(batch, outcomes, out, strict=True):
            place = self.space, i
            assert outcome.damaged == (place in self.damaged)
            assert outcome.hit == (place in self.oracle and place not in self.damaged)
            assert not outcome.hit or got.tobytes() == self.oracle[place]
            if outcome.damaged:
                self.damaged.remove(place)
                del self.oracle[place]

    @rule(batch=st.lists(which, max_size=5))
    def delete(self, batch) -> None:
        self.store.delete_many([REFS[i].key for i in batch])
        for i in batch:
            self.oracle.pop((self.space, i), None)
            self.damaged.discard((self.space, i))

    @rule(batch=st.dictionaries(which, st.integers(1, 1000), max_size=5))
    def touch(self, batch) -> None:
        self.store.touch_many([REFS[i].key for i in batch], list(batch.values()))
        for i, used_ns in batch.items():
            if (self.space, i) in self.oracle:
                self.used[self.space, i] = used_ns

    @rule(i=which, byte=st.integers(-20, 199), bit=st.integers(0, 7))
    def damage(self, i, byte, bit) -> None:
        if (self.space, i) in self.oracle and (self.space, i) not in self.damaged:
            self.store.raw().corrupt(REFS[i].key, byte, bit)
            self.damaged.add((self.space, i))

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @rule(space=st.integers(0, 1))
    def reopen(self, space) -> None:
        self.store.close()
        self.space = space
        self.store = self.open_store()

    @invariant()
    def agrees(self) -> None:
        if self.store is None:
            return
        own = {REFS[i] for space, i in self.oracle if space == self.space}
        metas = list(metas_of(self.store))
        assert {meta.ref for meta in metas} == own
        assert len(metas) == len(own)
        used = {REFS.index(meta.ref): meta.used_ns for meta in metas}
        for i, used_ns in used.items():
            assert used_ns == self.used.get((self.space, i), used_ns)
        stats = self.store.stats()
        assert stats.blocks == len(own)
        assert stats.stored_bytes == sum(meta.stored_bytes for meta in metas)
        assert stats.stored_bytes + stats.other_namespaces_bytes <= CAPACITY_BYTES
        self.store.check()

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()


class MemoryMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shelf = {}

    def open_store(self):
        return MemoryStore(NAMESPACES[self.space], LAYOUT, CAPACITY_BYTES, shelf=self.shelf)


class LmdbMachine(StoreMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="kvtide-"))
        self.seen = pytest.MonkeyPatch()

    def open_store(self):
        store = LmdbStore(
            self.path,
            namespace=NAMESPACES[self.space],
            layout=LAYOUT,
            capacity_bytes=CAPACITY_BYTES,
            min_free_bytes=0,
            sync_interval_s=3600.0,
            learn_tokens=(2 * LAYOUT.block_tokens, 6 * LAYOUT.block_tokens),
        )
        if store.opening.trimmed_blocks:
            self.forget_what_was_trimmed(store)
        return store

    @rule(forgotten=st.booleans())
    def memory_is_short(self, forgotten) -> None:
        """From now on records are read from the file, or from where LMDB has mapped them."""
        self.seen.undo()
        absent_by(self.seen, lambda address, num_bytes: forgotten)

    def forget_what_was_trimmed(self, store) -> None:
        """Which blocks go has a test of its own; here, that no more go than must."""
        with store._tables.records.begin() as txn:
            there = {(space, i) for space in (0, 1) for i in range(len(REFS)) if txn.get(entry_key(space, i))}
        gone = set(self.oracle) - there
        assert len(gone) == store.opening.trimmed_blocks
        assert all(space != self.space for space, _ in gone)
        self.damaged -= gone
        self.oracle = {place: block for place, block in self.oracle.items() if place in there}

    def teardown(self) -> None:
        super().teardown()
        self.seen.undo()
        shutil.rmtree(self.path)


def entry_key(space: int, i: int) -> bytes:
    return NAMESPACES[space].digest + REFS[i].key


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=40, stateful_step_count=30)
TestLmdb = LmdbMachine.TestCase
TestLmdb.settings = settings(max_examples=40, stateful_step_count=30)
