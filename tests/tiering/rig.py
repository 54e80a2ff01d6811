"""A cache with real threads, copies and a store, and what computes in the place of a model."""

import threading

import numpy as np

from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.disk import LmdbStore
from kvstore.host import HostSlab
from kvstore.memory import MemoryStore
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tiering.cache import TieredCache
from tiering.index_config import IndexConfig
from tiering.leases import Wait
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=16, dtype="bfloat16", block_tokens=2)
NAMESPACE = Namespace.of({"model": "tiny"})
DEVICE_SLOTS, HOST_SLOTS, DISK_BLOCKS = 5, 8, 64
PROMPTS = [(1, 2, 3), (1, 2, 4), (5, 6), (7, 8, 9, 10), (1, 11), (12, 13, 14)]


def prompt(*names: int):
    """A block for each name, and a token more."""
    return np.array([name for name in names for _ in range(LAYOUT.block_tokens)] + [99], dtype="<i4")


def kv_of(tokens):
    """What a model would make of the block that ends these tokens: bytes that no other prefix has."""
    seed = [int(token) for token in tokens]
    return np.random.default_rng(seed).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def key_of(*names: int):
    key = NAMESPACE.root_key
    for name in names:
        key = chain_key(key, np.full(LAYOUT.block_tokens, name, dtype="<i4").tobytes())
    return key


class Rig:
    """A cache with its memories, and the part of an engine that computes what is missing and looks at the rest.

    `join_s` is how long its end waits for I/O: short only where a call hangs for good.
    """

    def __init__(
        self, store, device=None, *, join_s=GIVE_UP_S, restore_s=GIVE_UP_S, clocks=None, **changed
    ) -> None:
        self.store = store
        self.pool = SlotArray(DEVICE_SLOTS, LAYOUT.block_bytes)
        self.slab = HostSlab(HOST_SLOTS, LAYOUT.block_bytes)
        record_bytes = store.max_stored_bytes if store is not None else 0
        sizes = {
            "block_tokens": LAYOUT.block_tokens,
            "device_slots": DEVICE_SLOTS,
            "host_slots": HOST_SLOTS,
            "disk_bytes": DISK_BLOCKS * record_bytes,
            "record_bytes": record_bytes,
            "write_batch_share": 0.5,
            "write_host_share": 1.0,
        }
        self.woken = threading.Event()
        self.cache = TieredCache(
            IndexConfig(**sizes | changed),
            root_key=NAMESPACE.root_key,
            device=device or CpuDevice(),
            pool=self.pool,
            slab=self.slab,
            store=store,
            wake=self.woken.set,
            join_s=join_s,
            restore_s=restore_s,
            **(clocks or {}),
        )

    def settle(self):
        assert self.cache.settle(GIVE_UP_S), "the cache does not come to rest"
        self.cache.check()

    def admit(self, tokens):
        for _ in range(10):
            num_blocks = len(tokens) // LAYOUT.block_tokens + 1
            outcome = self.cache.admit(tokens, num_blocks, chunk_blocks=num_blocks)
            if not isinstance(outcome, Wait):
                return outcome
            self.settle()
        raise AssertionError(f"never admitted: {outcome}")

    def serve(self, *names: int):
        """A request from arrival to its end. Answers how many blocks came from which tier."""
        tokens = prompt(*names)
        lease = self.admit(tokens)
        self.settle()
        assert lease.num_loading == 0
        self.look(lease, tokens)
        for start, end in lease.gaps(len(lease.ids)):
            self.compute(lease, tokens, start, end)
        self.look(lease, tokens)
        self.cache.release(lease)
        self.settle()
        return {tier: num for tier, num in lease.cached_blocks_by_tier().items() if num}

    def compute(self, lease, tokens, start, end):
        slots = lease.slots.tolist()
        self.cache.before_compute(slots[:start], slots[start:end])
        for position in range(start, end):
            self.pool.bytes[slots[position]] = kv_of(tokens[: (position + 1) * LAYOUT.block_tokens])
        self.cache.after_compute()
        self.cache.publish(lease, tokens, start, end)

    def look(self, lease, tokens):
        for position in np.flatnonzero(lease.ready[: len(lease.ids)]).tolist():
            expected = kv_of(tokens[: (position + 1) * LAYOUT.block_tokens])
            found = self.pool.bytes[lease.slots[position]]
            assert (found == expected).all(), f"wrong bytes in block {position}"

    def put_on_disk(self, *names: int):
        self.serve(*names)
        self.cache.sweep(Tier.DISK, then_free=True)
        self.settle()
        assert self.lookup(*names) == {"disk": len(names)}

    def lookup(self, *names: int):
        found = self.cache.lookup(prompt(*names))
        return {tier: tokens // LAYOUT.block_tokens for tier, tokens in found.items() if tokens}

    def failed_loads(self):
        return self.cache.stats()["failed_loads"]


def memory_stores(tmp_path):
    shelf = {}
    return lambda: MemoryStore(NAMESPACE, LAYOUT, 1 << 20, shelf=shelf)


def lmdb_stores(tmp_path, **settings):
    return lambda: LmdbStore(
        tmp_path,
        namespace=NAMESPACE,
        layout=LAYOUT,
        capacity_bytes=1 << 20,
        min_free_bytes=0,
        sync_interval_s=3600.0,
        **settings,
    )
