"""One life of a cache on the virtual device: it starts with what lies on a shelf, and everything in it runs when chosen.

Each byte that a kernel or the store reads is compared with the one that must be there, and slots that nobody holds are
overwritten at once.
"""

import functools
from collections import deque

import numpy as np

from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.errors import StoreFailed
from kvstore.memory import MemoryStore
from tests.tiering.mover_walk import layers_before
from tiering.cache import TieredCache
from tiering.index_config import IndexConfig
from tiering.residency import Tier
from tiering.slot_table import SlotState
from tiering.transfer.mover import WHOLE_SLOT
from tiering.transfer.virtual import VirtualDevice, VirtualMemory

LAYOUT = BlockLayout(num_layers=3, num_kv_heads=1, head_dim=1, dtype="bfloat16", block_tokens=2)
NAMESPACE = Namespace.of({"model": "tiny"})
LAYER_BYTES = LAYOUT.block_bytes // LAYOUT.num_layers
LAYER_GROUPS = [
    (WHOLE_SLOT,),
    (slice(0, LAYER_BYTES), slice(LAYER_BYTES, LAYOUT.block_bytes)),
    tuple(slice(start, start + LAYER_BYTES) for start in range(0, LAYOUT.block_bytes, LAYER_BYTES)),
]
CAPACITY_BYTES = 1 << 16
FAIL_ONE_IN = 15
_S_NS = 1_000_000_000


@functools.cache
def kv_of(prefix):
    """What a model makes of the block that ends these tokens: bytes that no other prefix has, none of them poison."""
    return np.random.default_rng(prefix).integers(0, 200, LAYOUT.block_bytes, dtype=np.uint8)


@functools.cache
def key_of(prefix):
    *above, last = range(0, len(prefix), LAYOUT.block_tokens)
    parent = key_of(prefix[:last]) if above else NAMESPACE.root_key
    return chain_key(parent, np.array(prefix[last:], dtype="<i4").tobytes())


class CheckedStore(MemoryStore):
    """Looks at what it is given to write, and fails when the process says so."""

    def __init__(self, shelf, process) -> None:
        super().__init__(
            NAMESPACE, LAYOUT, CAPACITY_BYTES, compression="off", shelf=shelf, now_ns=process.now_ns
        )
        self.process = process

    def put_many(self, refs, data):
        self.process.counts["written"] += len(refs)
        for ref, block in zip(refs, data, strict=True):
            right = self.process.kv_by_key[ref.key]
            if block.tolist() != right.tolist():
                # noted, not raised: the cache would take it for a failing disk
                self.process.wrong.append(f"a write reads {block.tolist()}, not {right.tolist()}")
        self._may_fail()
        return super().put_many(refs, data)

    def get_many(self, refs, out):
        self.process.counts["read"] += len(refs)
        self._may_fail()
        return super().get_many(refs, out)

    def touch_many(self, keys, used_ns):
        self.process.counts["touched"] += len(keys)
        self._may_fail()
        super().touch_many(keys, used_ns)

    def _may_fail(self):
        if self.process.fails():
            raise StoreFailed("the store was told to fail")


class ChosenJobs:
    """Jobs that run when they are chosen: side by side as many as there are threads, begun in order."""

    def __init__(self, num_threads) -> None:
        self.num_threads, self.jobs = num_threads, deque()

    def put(self, job):
        self.jobs.append(job)

    def run(self, choose):
        job = choose(list(self.jobs)[: self.num_threads])
        self.jobs.remove(job)
        job()

    def close(self, timeout_s):
        while self.jobs:
            self.jobs.popleft()()
        return True


class Doorbell:
    """Stands in for the event on which the cache waits for news: while it waits, device and store go on."""

    def __init__(self, process) -> None:
        self.process, self.rung = process, False

    def set(self):
        self.rung = True

    def clear(self):
        self.rung = False

    def wait(self, timeout_s):
        while not self.rung and self.process.something_happens():
            pass
        told = self.rung or not self.process.mover.in_flight
        assert told, "a copy is in flight and nothing will tell the cache"


class Process:
    """The cache with its memories and streams, and the part of an engine that enqueues steps.

    `kv_by_key`: the right bytes of each block that any process has made, for what is written to the shelf.
    """

    def __init__(self, choose, shelf, kv_by_key, counts) -> None:
        self.choose, self.kv_by_key, self.counts = choose, kv_by_key, counts
        self.wrong: list[str] = []
        self.failed_promotions: set[int] = set()
        self.jobs: list[ChosenJobs] = []
        self.now_s = 0.0
        latest_ns = max((meta.used_ns for meta, _ in shelf.values()), default=1000 * _S_NS)
        self.epoch_ns = (
            latest_ns + choose([0, 0, 5, 100, -50]) * _S_NS
        )  # the clock may jump between two lives
        self.device = VirtualDevice(choose, fails=self.copy_fails)
        device_slots, host_slots = choose([4, 6, 8, 10]), choose([1, 2, 4, 8])
        self.pool = VirtualMemory(device_slots, LAYOUT.block_bytes, page_locked=False)
        self.slab = VirtualMemory(host_slots, LAYOUT.block_bytes, page_locked=True)
        self.groups = choose(LAYER_GROUPS)
        self.every_slot = {Tier.DEVICE: np.arange(device_slots), Tier.HOST: np.arange(host_slots)}
        self.free: dict[Tier, set[int]] = {Tier.DEVICE: set(), Tier.HOST: set()}
        store = CheckedStore(shelf, self)
        config = IndexConfig(
            block_tokens=LAYOUT.block_tokens,
            device_slots=device_slots,
            host_slots=host_slots,
            disk_bytes=choose([3, 6, 12]) * store.max_stored_bytes,
            record_bytes=store.max_stored_bytes,
            read_batch_blocks=choose([1, 2]),
            write_batch_blocks=choose([1, 3]),
            write_batch_share=0.5,
            write_host_share=1.0,
            disk_rest_s=5.0,
            ttl_s=choose([None, None, 15.0]),
        )
        self.cache = TieredCache(
            config,
            root_key=NAMESPACE.root_key,
            device=self.device,
            pool=self.pool,
            slab=self.slab,
            store=store,
            wake=lambda: None,
            clock=lambda: self.now_s,
            now_ns=self.now_ns,
            jobs=self._make_jobs,
            layer_groups=self.groups,
            restore_s=0.0,
        )
        self.cache._news = Doorbell(self)

    def now_ns(self):
        return self.epoch_ns + round(self.now_s * _S_NS)

    def _make_jobs(self, name, num_threads):
        self.jobs.append(ChosenJobs(num_threads))
        return self.jobs[-1]

    @property
    def mover(self):
        return self.cache._mover

    def arriving(self):
        """Device slots into which copies are in flight, and the numbers of these."""
        return {slot: flight.number for flight in self.mover._ups for slot in flight.device_slots}

    # ---- failures

    def fails(self):
        return self.choose([*[False] * (FAIL_ONE_IN - 1), True])

    def copy_fails(self, destination, slots):
        up = destination is self.pool
        self.counts["promoted" if up else "demoted"] += len(slots)
        if not self.fails():
            return False
        self.counts["failed copies"] += 1
        if up:
            (number,) = {self.arriving()[slot] for slot in slots}
            self.failed_promotions.add(number)
        return True

    # ---- steps

    def step(self, found, written, num_layers=LAYOUT.num_layers):
        """Enqueue a step, layer group by layer group. Nothing has run afterwards.

        `found`: {slot: (bytes that must be there, the promotion that brings them, if any)}; `written`: {slot: bytes}.
        `num_layers`: it breaks off behind so many.
        """
        self.counts["steps"] += 1
        for number, group in enumerate(layers_before(self.groups, num_layers * LAYER_BYTES)):
            self.cache.before_compute(list(found), list(written), number)
            self.device.launch(lambda group=group: self._kernel(found, written, group))
        self.cache.after_compute()

    def _kernel(self, found, written, group):
        for slot, (right, promotion) in found.items():
            if promotion not in self.failed_promotions:
                seen, right = self.pool.view(slot)[group].tolist(), right[group].tolist()
                assert seen == right, f"a step reads {seen} in device slot {slot}, not {right}"
            yield
        for slot in written:
            self.pool.view(slot)[group] = 0  # not what was there, and not yet what will be
        yield
        for slot, content in written.items():
            self.pool.view(slot)[group] = content[group]
            yield

    def overwrite_what_is_free(self):
        """The next owner of a slot writes at once: a step into the device's, the host into its own."""
        freed = {}
        for tier, known in self.free.items():
            states = self.cache._index._holdings.slots[tier].states(self.every_slot[tier]).tolist()
            self.free[tier] = {slot for slot, state in enumerate(states) if state == SlotState.FREE}
            freed[tier] = self.free[tier] - known
        for slot in freed[Tier.HOST]:
            self.slab.view(slot)[:] = 1
        if freed[Tier.DEVICE]:
            self.step({}, dict.fromkeys(freed[Tier.DEVICE], kv_of((8,))))

    # ---- what goes on beside the loop

    def run_device(self):
        """The device goes on, or only a part of it while the rest hangs behind."""
        streams = self.device.streams
        self.device.run(
            self.choose([1, 2, 5, 10, 40]), only=self.choose([None, *([each] for each in streams)])
        )

    def run_job(self):
        """A call of the store. False if there is none."""
        waiting = [jobs for jobs in self.jobs if jobs.jobs]
        if waiting:
            self.choose(waiting).run(self.choose)
        return bool(waiting)

    def something_happens(self):
        """A piece of work on the device or a call of the store. False if there is none."""
        first, second = self.run_job, lambda: bool(self.device.run(1))
        if self.choose([True, False]):
            first, second = second, first
        return first() or second()

    def close(self, flush_s):
        """The end, with work in flight or after everything was written down."""
        assert self.cache.close(flush_s)
        assert self.cache.close(), "closing twice is safe"
        assert not any(stream.work for stream in self.device.streams), "closed, and the device still works"
        self.check()

    def check(self):
        assert not self.wrong, self.wrong
