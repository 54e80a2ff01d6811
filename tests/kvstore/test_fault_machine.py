"""With every fault at once, any sequence of calls: what is a hit is right, and what is not says so in a known way."""

import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from kvstore import BlockLayout, BlockRef, LmdbStore, MemoryStore, MissReason, Namespace, StoreError
from kvstore.layers import (
    Delay,
    DirtyMiss,
    ErrorAfter,
    ErrorBefore,
    FalseMiss,
    FaultStore,
    Garbage,
    Gate,
    Hang,
    ShortData,
)
from kvstore.metas import metas_of
from kvstore.testing import chain, kv_like, read

LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=64, dtype="bfloat16", block_tokens=32)
NAMESPACE = Namespace.of({"model": "a"})
CAPACITY_BYTES = 60_000
REFS = [
    BlockRef(bytes([i]) * 32, bytes([i ^ 255]) * 32, bytes([i]) * LAYOUT.token_id_bytes) for i in range(6)
]
which = st.integers(0, len(REFS) - 1)
OPEN = Gate()
OPEN.open()


def every_fault(chance):
    """The order matters: what raises comes last, so that it hides nothing."""
    kinds = [ShortData, Garbage, FalseMiss, DirtyMiss, ErrorAfter, ErrorBefore]
    return [
        Delay(1.0, chance=chance),
        Hang(OPEN, chance=chance),
        *(kind(chance=chance) for kind in kinds),
    ]


def content(seed: int) -> bytes:
    """Even seeds compress, odd ones do not."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256 if seed % 2 else 3, LAYOUT.block_bytes, dtype=np.uint8).tobytes()


class FaultMachine(RuleBasedStateMachine):
    """The oracle holds, of each block, everything that a hit may be: after a call that failed, the old and the new."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: dict[int, set[bytes]] = {i: set() for i in range(len(REFS))}
        self.store: FaultStore | None = None

    def open_store(self):
        raise NotImplementedError

    @initialize(seed=st.integers(0, 2**32), chance=st.sampled_from([0.05, 0.2, 0.5]))
    def begin(self, seed, chance) -> None:
        self.store = FaultStore(self.open_store(), every_fault(chance), seed=seed, sleep=lambda _: None)

    @rule(batch=st.lists(st.tuples(which, st.integers(0, 9)), max_size=4))
    def put(self, batch) -> None:
        new = {i: content(seed) for i, seed in batch}
        try:
            self.store.put_many([REFS[i] for i, _ in batch], [content(seed) for _, seed in batch])
        except StoreError:
            for i, block in new.items():
                self.allowed[i].add(block)
        else:
            for i, block in new.items():
                self.allowed[i] = {block}

    @rule(batch=st.lists(which, min_size=1, max_size=6))
    def get(self, batch) -> None:
        out = np.zeros((len(batch), LAYOUT.block_bytes), dtype=np.uint8)
        try:
            outcomes = self.store.get_many([REFS[i] for i in batch], list(out))
        except StoreError:
            return
        for i, outcome, got in zip(batch, outcomes, out, strict=True):
            if outcome.hit:
                assert got.tobytes() in self.allowed[i]
            else:
                assert isinstance(outcome.reason, MissReason)

    @rule(batch=st.lists(which, max_size=4))
    def touch(self, batch) -> None:
        with suppress(StoreError):
            self.store.touch_many([REFS[i].key for i in batch], [1] * len(batch))

    @rule(batch=st.lists(which, max_size=4))
    def delete(self, batch) -> None:
        try:
            self.store.delete_many([REFS[i].key for i in batch])
        except StoreError:
            return
        for i in batch:
            self.allowed[i] = set()

    @rule()
    def scan(self) -> None:
        try:
            found = [meta.ref for meta in metas_of(self.store)]
        except StoreError:
            return
        assert len(set(found)) == len(found)
        assert {ref.key[0] for ref in found} <= {i for i, blocks in self.allowed.items() if blocks}

    @rule()
    def calm(self) -> None:
        """With the faults gone, no false miss, no error: what the store lists is a hit or was damaged."""
        faults, self.store.faults = self.store.faults, ()
        listed = {meta.ref.key[0] for meta in metas_of(self.store)}
        outcomes, out = read(self.store, REFS)
        for i, (outcome, got) in enumerate(zip(outcomes, out, strict=True)):
            assert (outcome.hit or outcome.damaged) == (i in listed)
            assert not outcome.hit or got.tobytes() in self.allowed[i]
        self.store.check()
        self.store.faults = faults

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()


class MemoryMachine(FaultMachine):
    def open_store(self):
        return MemoryStore(NAMESPACE, LAYOUT, CAPACITY_BYTES)


class LmdbMachine(FaultMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(prefix="kvtide-"))

    def open_store(self):
        return LmdbStore(
            self.path,
            namespace=NAMESPACE,
            layout=LAYOUT,
            capacity_bytes=CAPACITY_BYTES,
            min_free_bytes=0,
            sync_interval_s=3600.0,
        )

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.path)


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40)
TestLmdb = LmdbMachine.TestCase
TestLmdb.settings = settings(max_examples=30, stateful_step_count=40)


# ---- threads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("store", ["memory", "lmdb"], indirect=True)
def test_readers_and_writers_under_every_fault_never_see_a_mixture_or_garbage(store, seed):
    """Two write and delete, two read: every hit is one of the two versions of its block, whole."""
    refs, versions = chain(store, 3), [kv_like(store, 3, seed=n) for n in (1, 2)]
    allowed = [{version[i].tobytes() for version in versions} for i in range(3)]
    faults = every_fault(0.1)
    layer = FaultStore(store, faults, seed=seed, sleep=lambda _: None)
    failures, hits, misses = [], [], []

    def guarded(work):
        def run():
            try:
                for turn in range(150):
                    try:
                        work(turn)
                    except StoreError:
                        continue
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                failures.append(error)

        return threading.Thread(target=run)

    def write(turn):
        layer.put_many(refs, versions[turn % 2])
        if turn % 10 == 9:
            layer.delete_many([refs[turn % 3].key])
            layer.sync()

    def look(turn):
        outcomes, out = read(layer, refs)
        for i, outcome in enumerate(outcomes):
            assert not outcome.hit or out[i].tobytes() in allowed[i], "a mixture, or garbage"
            (hits if outcome.hit else misses).append(outcome.reason)

    threads = [guarded(work) for work in (write, look, write, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    assert hits
    assert {MissReason.ABSENT} < set(misses) <= set(MissReason)
    for fault in faults:
        assert layer.injected(type(fault)) > 0, f"{fault} never struck"
    store.check()
