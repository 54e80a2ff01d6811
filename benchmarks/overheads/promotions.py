"""What a block costs in Python on its way back to the device, on the cache's thread and on those that read and copy.

Blocks are of a kilobyte, so that neither copying nor decoding counts. The store that answers at once does not even read;
of a real one the time within its own calls is told apart.
"""

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.block import BlockLayout, Namespace
from kvstore.disk import LmdbStore
from kvstore.host import HostSlab
from kvstore.memory import MemoryStore
from kvstore.store import HIT, BlockRef, ReadOutcome, Store
from tiering.cache import TieredCache
from tiering.index_config import IndexConfig
from tiering.io_threads import IoThreads
from tiering.lease import Lease
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice

SIZES = (256, 2048)  # blocks: a prefix of 4,096 tokens, and one of 32,768
_LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=16, dtype="bfloat16", block_tokens=16)
_NAMESPACE = Namespace.of({"model": "none"})
_CAPACITY_BYTES = 256 << 20
_GIVE_UP_S = 30.0


class AtOnce(MemoryStore):
    """Says that it has read what it is asked for."""

    def get_many(self, refs: Sequence[BlockRef], out: Any) -> list[ReadOutcome]:  # noqa: ARG002 - it has read nothing
        return [HIT] * len(refs)


def stores(directory: Path) -> dict[str, Callable[[], Store | None]]:
    return {
        "host": lambda: None,
        "disk that answers at once": lambda: AtOnce(_NAMESPACE, _LAYOUT, _CAPACITY_BYTES),
        "disk": lambda: LmdbStore(
            directory, namespace=_NAMESPACE, layout=_LAYOUT, capacity_bytes=_CAPACITY_BYTES, min_free_bytes=0
        ),
    }


def measure(source: str, num_blocks: int, repeats: int) -> dict[str, Any]:
    """Bring a prefix back so often, the first not counted; medians in us a block."""
    with tempfile.TemporaryDirectory() as scratch, _opened(Path(scratch), source, num_blocks) as rig:
        tier = Tier.HOST if source == "host" else Tier.DISK
        rounds = [rig.bring_back(tier) for _ in range(repeats + 1)][1:]
    medians = {
        name: round(float(np.median([each[name] for each in rounds])) / num_blocks * 1e6, 2)
        for name in rounds[0]
    }
    whole = [sum(each.values()) for each in rounds]
    total = [all_s - each["in_the_store"] for all_s, each in zip(whole, rounds, strict=True)]
    return {
        "from": source,
        "blocks": num_blocks,
        "repeats": repeats,
        "us_a_block": round(float(np.median(total)) / num_blocks * 1e6, 2),
        "us_a_block_with_the_store": round(float(np.median(whole)) / num_blocks * 1e6, 2),
        "quartiles": [round(float(np.percentile(total, q)) / num_blocks * 1e6, 2) for q in (25, 75)],
        **medians,
    }


class _Rig:
    """A real cache with real threads, and a prompt whose blocks it has."""

    def __init__(self, store: Store | None, num_blocks: int) -> None:
        self._store_s = [0.0]
        if store is not None:
            self._time_reads(store)
        slots = num_blocks + 8
        self._pool, self._slab = HostSlab(slots, _LAYOUT.block_bytes), HostSlab(slots, _LAYOUT.block_bytes)
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()  # as the engine's loop is woken
        self.cache = TieredCache(
            IndexConfig(
                block_tokens=_LAYOUT.block_tokens,
                device_slots=slots,
                host_slots=slots,
                disk_bytes=0 if store is None else _CAPACITY_BYTES,
                record_bytes=0 if store is None else store.max_stored_bytes,
                clean_share=0.0,
            ),
            root_key=_NAMESPACE.root_key,
            device=CpuDevice(),
            pool=self._pool,
            slab=self._slab,
            store=store,
            wake=lambda: self._woken.put(None),
            jobs=IoThreads,
        )
        self._num_blocks = num_blocks
        rng = np.random.default_rng(0)
        self._tokens = rng.integers(1, 50_000, num_blocks * _LAYOUT.block_tokens + 1, dtype=np.int32)
        lease = self._admit()
        self.cache.publish(lease, self._tokens, 0, num_blocks)
        self.cache.release(lease)

    def _admit(self) -> Lease:
        lease = self.cache.admit(self._tokens, self._num_blocks + 1, chunk_blocks=self._num_blocks + 1)
        assert isinstance(lease, Lease), "there is room for one"
        return lease

    def _time_reads(self, store: Any) -> None:
        get_many = store.get_many

        def timed(*arguments: Any) -> Any:
            start_s = time.thread_time()
            try:
                return get_many(*arguments)
            finally:
                self._store_s.append(time.thread_time() - start_s)

        store.get_many = timed

    def bring_back(self, tier: Tier) -> dict[str, float]:
        """Push the prompt out of the device, and take it back in: processor time, in seconds, by thread."""
        sweep = self.cache.sweep(tier, then_free=True)
        self._pump_until(lambda: sweep.done)
        clocks = _other_threads()
        before = [_seconds(clock) for clock in clocks.values()]
        self._store_s.clear()
        start_s = time.thread_time()
        lease = self._admit()
        admitted_s = time.thread_time()
        self._pump_until(lambda: lease.num_loading == 0)
        ended_s = time.thread_time()
        assert lease.num_lost == 0 and lease.num_cached_blocks == self._num_blocks, "all of it has come back"
        spent = [_seconds(clock) - since_s for clock, since_s in zip(clocks.values(), before, strict=True)]
        by_thread = dict(zip(clocks, spent, strict=True))
        store_s = sum(self._store_s)
        reading_s = sum(took_s for name, took_s in by_thread.items() if name.startswith("kvtide-read"))
        self.cache.release(lease)
        return {
            "admission": admitted_s - start_s,
            "the cache's turns": ended_s - admitted_s,
            "copying": by_thread["kvtide-up"],
            "reading": reading_s - store_s,
            "in_the_store": store_s,
        }

    def _pump_until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._woken.get(timeout=_GIVE_UP_S)
            while not self._woken.empty():
                self._woken.get()
            self.cache.pump()

    def close(self) -> None:
        self.cache.close()
        self._pool.close()
        self._slab.close()


@contextmanager
def _opened(scratch: Path, source: str, num_blocks: int) -> Iterator[_Rig]:
    rig = _Rig(stores(scratch)[source](), num_blocks)
    try:
        yield rig
    finally:
        rig.close()


def _other_threads() -> dict[str, int]:
    """The clocks of the processor time of our threads, by name."""
    return {
        thread.name: time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.ident is not None and thread.name.startswith("kvtide-")
    }


def _seconds(clock: int) -> float:
    return time.clock_gettime(clock)
