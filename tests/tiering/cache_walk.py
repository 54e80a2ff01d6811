"""The real cache on the virtual device, from start to restart, with an engine that enqueues ahead and looks at each byte.

Steps are enqueued, not run: blocks are published, demoted and read by others while the kernel that makes them still
waits. Slots that nobody holds are overwritten at once. The store's calls run when the walk lets them.
"""

import functools
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.errors import StoreFailed
from kvstore.memory import MemoryStore
from tiering.cache import TieredCache
from tiering.eviction import Room
from tiering.index import IndexConfig
from tiering.lease import Lease
from tiering.leases import Wait
from tiering.residency import Tier
from tiering.slot_table import SlotState
from tiering.swaps import Stash
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
TAIL = (7,)
"""Stands for the tokens of a block that is not whole: what a request has decoded for itself alone."""

FLUSH_S = 60.0  # never waited for: the walk makes time pass


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
    """Looks at what it is given to write, and fails when the walk says so."""

    def __init__(self, shelf, walk) -> None:
        super().__init__(NAMESPACE, LAYOUT, CAPACITY_BYTES, compress=False, shelf=shelf, now_ns=lambda: 0)
        self.walk = walk

    def put_many(self, refs, data):
        self.walk.counts["written"] += len(refs)
        for ref, block in zip(refs, data, strict=True):
            right = self.walk.kv_by_key[ref.key]
            if block.tolist() != right.tolist():
                self.walk.wrong.append(f"a write reads {block.tolist()}, not {right.tolist()}")
        self.walk.may_fail("a write")
        return super().put_many(refs, data)

    def get_many(self, refs, out):
        self.walk.counts["read"] += len(refs)
        self.walk.may_fail("a read")
        return super().get_many(refs, out)


class ChosenJobs:
    """Jobs that run when the walk says so: side by side as many as there are threads, begun in order."""

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

    def __init__(self, walk) -> None:
        self.walk, self.rung = walk, False

    def set(self):
        self.rung = True

    def clear(self):
        self.rung = False

    def wait(self, timeout_s):
        while not self.rung and self.walk.something_happens():
            pass
        assert self.rung or not self.walk.mover.in_flight, (
            "a copy is in flight and nothing will tell the cache"
        )


@dataclass
class Request:
    tokens: list[int]
    max_blocks: int
    lease: Lease
    stash: Stash | None = None
    has_tail: bool = False
    """A block behind the whole ones has been written."""
    came_back: bool = False
    """And was swapped out since then; whether it arrived is still to be seen."""
    ahead: tuple[int, int] | None = None
    """Blocks that were computed while others that they need were still on their way."""
    lost_before: int = 0

    @property
    def whole_blocks(self):
        return len(self.tokens) // LAYOUT.block_tokens

    @property
    def array(self):
        return np.array(self.tokens, dtype="<i4")

    def prefix(self, position):
        return tuple(self.tokens[: (position + 1) * LAYOUT.block_tokens])


class CacheWalk:
    def __init__(self, choose, fail_one_in=15) -> None:
        self.choose, self.fail_one_in = choose, fail_one_in
        self.kv_by_key, self.shelf, self.wrong = {}, {}, []
        self.counts = Counter()
        self.start()
        self.actions = [
            *[self.arrive] * 8,
            *[self.serve] * 6,
            *[self.compute] * 8,
            *[self.compute_ahead] * 6,
            *[self.decode] * 4,
            *[self.reply] * 2,
            *[self.release] * 6,
            *[self.preempt] * 3,
            *[self.resume] * 8,
            *[self.pump] * 8,
            *[self.run_device] * 8,
            *[self.run_job] * 4,
            *[self.sweep] * 5,
            *[self.settle] * 2,
            self.end_an_era,
        ]

    def start(self):
        """A process begins, with whatever the last one left on the shelf."""
        self.device = VirtualDevice(self.choose, fails=self.copy_fails)
        device_slots, host_slots = self.choose([4, 6, 8, 10]), self.choose([1, 2, 4, 8])
        self.pool = VirtualMemory(device_slots, LAYOUT.block_bytes, page_locked=False)
        self.slab = VirtualMemory(host_slots, LAYOUT.block_bytes, page_locked=True)
        self.groups = self.choose(LAYER_GROUPS)
        self.jobs: list[ChosenJobs] = []
        self.running: list[Request] = []
        self.preempted: list[Request] = []
        self.failed_copies: set[int] = set()
        self.now_s = 0.0
        self.failures_left = 10
        self.every_slot = {Tier.DEVICE: np.arange(device_slots), Tier.HOST: np.arange(host_slots)}
        self.free = {Tier.DEVICE: set(), Tier.HOST: set()}
        store = CheckedStore(self.shelf, self)
        self.cache = TieredCache(
            IndexConfig(
                block_tokens=LAYOUT.block_tokens,
                device_slots=device_slots,
                host_slots=host_slots,
                disk_bytes=self.choose([3, 6, 12]) * store.max_stored_bytes,
                record_bytes=store.max_stored_bytes,
                read_batch_blocks=self.choose([1, 2]),
                write_batch_blocks=self.choose([1, 3]),
                disk_rest_s=5.0,
            ),
            root_key=NAMESPACE.root_key,
            device=self.device,
            pool=self.pool,
            slab=self.slab,
            store=store,
            wake=lambda: None,
            clock=lambda: self.now_s,
            jobs=self.make_jobs,
            layer_groups=self.groups,
        )
        self.cache._news = Doorbell(self)

    def make_jobs(self, name, num_threads):
        self.jobs.append(ChosenJobs(num_threads))
        return self.jobs[-1]

    @property
    def mover(self):
        return self.cache._mover

    def copy_fails(self, destination, slots):
        self.counts["promoted" if destination is self.pool else "demoted"] += len(slots)
        failing = self.fails()
        if failing and destination is self.pool:
            found = [flight.number for flight in self.mover._ups if flight.device_slots == set(slots)]
            assert len(found) == 1, "the places of a copy are its own until it has ended"
            self.failed_copies.update(found)
        self.counts["failed copies"] += failing
        return failing

    def fails(self):
        """Now and then, but not for ever: a copy that always fails is tried for ever."""
        failing = self.failures_left > 0 and self.choose([*[False] * (self.fail_one_in - 1), True])
        self.failures_left -= failing
        return failing

    def may_fail(self, what):
        if self.fails():
            raise StoreFailed(f"{what} was told to fail")

    def act(self):
        self.choose(self.actions)()
        self.overwrite_what_is_free()
        assert not self.wrong, self.wrong

    # ---- requests

    def arrive(self):
        """One of a few documents with forks, so that prompts share blocks and push others out."""
        if len(self.running) >= 3:
            return
        blocks = [
            self.choose([1, 1, 2]),
            *(self.choose(range(k)) for k in (2, 8)[: self.choose([0, 1, 2, 2])]),
        ]
        tokens = [token for token in blocks for _ in range(LAYOUT.block_tokens)] + [9]
        num_blocks = len(blocks) + self.choose([1, 2])
        if num_blocks > self.pool.num_slots:
            return
        chunk_blocks = self.choose([1, num_blocks])
        outcome = self.cache.admit(np.array(tokens, dtype="<i4"), num_blocks, chunk_blocks=chunk_blocks)
        self.counts["arrived"] += 1
        if isinstance(outcome, Wait):
            return
        self.counts["admitted"] += 1
        request = Request(tokens, num_blocks, outcome)
        for position in range(request.whole_blocks):
            self.know(request.prefix(position))
        self.running.append(request)
        if self.choose([True, False]):
            self.compute_ahead()

    def serve(self):
        """A request whose steps are all enqueued at once, and that is gone before they have run."""
        before = len(self.running)
        self.arrive()
        for request in self.running[before:]:
            if not request.lease.num_loading:
                self.finish(request)

    def finish(self, request):
        if self.has_room(request, request.whole_blocks):
            for start, end in request.lease.gaps(request.whole_blocks):
                self.step([(request, start, end)])
                self.cache.publish(request.lease, request.array, start, end)
            self.step([(request, request.whole_blocks, len(request.lease.slots))], part_of_block=True)
        self.running.remove(request)
        self.cache.release(request.lease)

    def has_room(self, request, num_blocks):
        """Whether the block table reaches so far, or could be made to."""
        return self.cache.grow(request.lease, num_blocks) is Room.NOW

    def know(self, prefix):
        self.kv_by_key[key_of(prefix)] = kv_of(prefix)

    def loaded(self):
        return [request for request in self.running if not request.lease.num_loading]

    def compute(self):
        """One step of a batch: of some requests a part of the first gap, published before it has run."""
        chunks = []
        for request in self.loaded():
            gaps = request.lease.gaps(request.whole_blocks)
            if request.ahead is not None:
                self.settle_ahead(request)
            elif gaps and self.choose([True, True, False]):
                start, end = gaps[0]
                end = self.choose(range(start + 1, end + 1))
                if self.has_room(request, end):
                    chunks.append((request, start, end))
        if chunks:
            self.step(chunks)
            for request, start, end in chunks:
                self.cache.publish(request.lease, request.array, start, end)

    def compute_ahead(self):
        """A step that reads blocks whose copy up is in flight, layer group by layer group."""
        arriving = {slot: flight.number for flight in self.mover._ups for slot in flight.device_slots}
        for request in self.running:
            lease = request.lease
            filling = np.flatnonzero(lease.filling[: len(lease.ids)]).tolist()
            if not lease.num_loading or request.ahead is not None or not filling:
                continue
            if filling[0] >= len(lease.slots):
                continue
            before = [lease.slots.item(p) for p in range(filling[0]) if not lease.ready[p]]
            if all(slot in arriving for slot in before):
                request.lost_before = lease.num_lost
                request.ahead = (filling[0], filling[0] + 1)
                self.step([(request, *request.ahead)], arriving)
                self.counts["computed ahead"] += 1

    def settle_ahead(self, request):
        """What was computed ahead counts if all that it read has come."""
        (start, end), request.ahead = request.ahead, None
        if request.lease.num_lost == request.lost_before:
            self.cache.publish(request.lease, request.array, start, end)

    def decode(self):
        """A token of a reply: reads everything before it, writes into a block that is not whole."""
        for request in self.whole():
            position = request.whole_blocks
            if position < request.max_blocks and self.has_room(request, position + 1):
                self.step([(request, position, position + 1)], part_of_block=True)
                request.has_tail = True

    def reply(self):
        """A reply has filled the block behind the path."""
        for request in self.whole():
            position = request.whole_blocks
            if position < len(request.lease.slots) and self.choose([True, False]):
                short = (position + 1) * LAYOUT.block_tokens - len(request.tokens)
                request.tokens += [self.choose([0, 1])] * short
                self.know(request.prefix(position))
                self.step([(request, position, position + 1)])
                request.has_tail = False
                self.cache.publish(request.lease, request.array, position, position + 1)

    def whole(self):
        loaded = [request for request in self.loaded() if request.ahead is None]
        return [request for request in loaded if not request.lease.gaps(request.whole_blocks)]

    def preempt(self):
        """At any time: while it loads, while a step that has not run writes what is to be saved."""
        if not self.running:
            return
        self.choose([self.decode, lambda: None])()
        whole = self.whole()
        request = self.choose([each for each in whole if each.has_tail] or self.running)
        num_used = request.whole_blocks + request.has_tail if request in whole else 0
        if request.came_back and not request.lease.ready[request.whole_blocks]:
            num_used = 0
        request.stash, request.ahead = self.cache.preempt(request.lease, num_used), None
        request.has_tail &= request.stash is not None
        self.running.remove(request)
        self.preempted.append(request)
        self.counts["preempted"] += 1

    def resume(self):
        if not self.preempted:
            return
        request = self.choose(self.preempted)
        stash = request.stash
        if stash is not None and stash.lost:
            request.stash = stash = None
            request.has_tail = False
        tokens = request.array if stash is None else request.array[: stash.start * LAYOUT.block_tokens]
        outcome = self.cache.admit(
            tokens, request.max_blocks, chunk_blocks=1, compute_last=stash is None, stash=stash
        )
        if not isinstance(outcome, Wait):
            request.lease, request.stash, request.came_back = outcome, None, stash is not None
            self.preempted.remove(request)
            self.running.append(request)
            self.counts["swapped in"] += stash is not None

    def release(self):
        """The end of a request, at any time: it may be loading, or be read by a step that has not run."""
        if self.running:
            request = self.choose(self.running)
            self.running.remove(request)
            self.cache.release(request.lease)

    # ---- steps

    def step(self, chunks, arriving=None, *, part_of_block=False):
        """Enqueue a step: each chunk reads what is before it and writes its blocks. Nothing has run afterwards."""
        found, written = {}, {}
        for request, start, end in chunks:
            slots = request.lease.slots.tolist()
            transfers = arriving or {}
            found.update((slots[p], (request.prefix(p), transfers.get(slots[p]))) for p in range(start))
            if request.came_back:
                request.came_back = False
                request.has_tail = request.has_tail and bool(request.lease.ready[request.whole_blocks])
            if request.has_tail and start >= request.whole_blocks:
                found[slots[request.whole_blocks]] = (TAIL, None)
            content = {} if part_of_block else {p: kv_of(request.prefix(p)) for p in range(start, end)}
            written.update((slots[p], content.get(p, kv_of(TAIL))) for p in range(start, end))
        for number, group in enumerate(self.groups):
            self.cache.before_compute(list(found), list(written), number)
            self.device.launch(lambda group=group: self.kernel(found, written, group))
        self.cache.after_compute()
        self.counts["steps"] += 1

    def kernel(self, found, written, group):
        for slot, (prefix, transfer) in found.items():
            if transfer not in self.failed_copies:
                seen, right = self.pool.view(slot)[group].tolist(), kv_of(prefix)[group].tolist()
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
        newly_free = {}
        for tier, known in self.free.items():
            states = self.cache._index._holdings.slots[tier].states(self.every_slot[tier]).tolist()
            self.free[tier] = {slot for slot, state in enumerate(states) if state == SlotState.FREE}
            newly_free[tier] = self.free[tier] - known
        for slot in newly_free[Tier.HOST]:
            self.slab.view(slot)[:] = 1
        if slots := newly_free[Tier.DEVICE]:
            junk = dict.fromkeys(slots, kv_of((8,)))
            for number, group in enumerate(self.groups):
                self.cache.before_compute([], list(slots), number)
                self.device.launch(lambda group=group: self.kernel({}, junk, group))
            self.cache.after_compute()

    # ---- the world

    def pump(self):
        self.cache.pump()
        for request in self.loaded():
            if request.ahead is not None:
                self.settle_ahead(request)

    def run_device(self):
        """The device goes on, or only a part of it while the rest hangs behind."""
        streams = self.device.streams
        self.device.run(
            self.choose([1, 2, 5, 10, 40]), only=self.choose([None, *([each] for each in streams)])
        )

    def run_job(self):
        if waiting := [jobs for jobs in self.jobs if jobs.jobs]:
            self.choose(waiting).run(self.choose)

    def something_happens(self):
        """A piece of work on the device or a job of the store. False if there is none."""
        waiting = [jobs for jobs in self.jobs if jobs.jobs]
        if waiting and self.choose([True, False]):
            self.choose(waiting).run(self.choose)
            return True
        if self.device.run(1):
            return True
        if waiting:
            self.choose(waiting).run(self.choose)
        return bool(waiting)

    def sweep(self):
        self.cache.sweep(
            self.choose([Tier.HOST, Tier.HOST, Tier.DISK]), then_free=self.choose([True, True, False])
        )

    def settle(self):
        """The loop has nothing to compute and sleeps until all moves are over."""
        self.now_s += self.choose([0.0, 1.0, 10.0])
        assert self.cache.settle(FLUSH_S)
        self.cache.check()
        self.pump()

    # ---- ends

    def end_an_era(self):
        """Rare, or the tiers would hardly ever be full."""
        self.choose([*[lambda: None] * 3, self.restart])()

    def restart(self):
        for request in self.running:
            self.cache.release(request.lease)
        self.preempted.clear()
        self.close()
        self.start()
        self.counts["restarts"] += 1

    def close(self):
        """The end of a process with work in flight, or after everything was written down."""
        assert self.cache.close(self.choose([0.0, FLUSH_S]))
        assert self.cache.close()
        assert not any(stream.work for stream in self.device.streams), "closed, and the device still works"
        assert not self.wrong, self.wrong

    def end(self):
        """Whoever is still there gets the right bytes; then the process ends."""
        self.settle()
        for request in [*self.running]:
            self.finish(request)
        for request in self.preempted:
            if request.stash is not None:
                self.cache.drop(request.stash)
        self.overwrite_what_is_free()
        self.close()
        return self.counts
