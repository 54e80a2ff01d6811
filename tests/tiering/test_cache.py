"""The cache with real threads, copies and stores: the right bytes come back, and nothing hangs whatever the store does."""

import threading
from collections import Counter

import numpy as np
import pytest

from benchmarks.faults.kinds import break_tree
from kvstore.block import BlockLayout, Namespace, chain_key
from kvstore.disk import LmdbStore
from kvstore.errors import StoreFull
from kvstore.host import HostSlab
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
from kvstore.memory import MemoryStore
from kvstore.metas import metas_of
from tests.tiering.slot_arrays import GIVE_UP_S, SlotArray
from tiering.cache import TieredCache
from tiering.index_config import IndexConfig
from tiering.io_threads import IoThreads
from tiering.leases import Wait
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice
from tiering.transfer.faults import FaultDevice

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=1, head_dim=16, dtype="bfloat16", block_tokens=2)
NAMESPACE = Namespace.of({"model": "tiny"})
DEVICE_SLOTS, HOST_SLOTS, DISK_BLOCKS = 5, 8, 64


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


def lmdb_stores(tmp_path):
    return lambda: LmdbStore(
        tmp_path,
        namespace=NAMESPACE,
        layout=LAYOUT,
        capacity_bytes=1 << 20,
        min_free_bytes=0,
        sync_interval_s=3600.0,
    )


@pytest.fixture(params=[memory_stores, lmdb_stores], ids=["memory", "lmdb"])
def open_store(request, tmp_path):
    """Opens the same store again and again, one after the other."""
    return request.param(tmp_path)


@pytest.fixture
def start():
    """Starts caches, and ends those that the test has not closed."""
    rigs = []

    def start(store, device=None, **settings):
        rigs.append(Rig(store, device, **settings))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.cache.close()


@pytest.fixture
def faulty():
    return FaultStore(MemoryStore(NAMESPACE, LAYOUT, 1 << 20))


# ---- the right bytes


PROMPTS = [(1, 2, 3), (1, 2, 4), (5, 6), (7, 8, 9, 10), (1, 11), (12, 13, 14)]


def test_a_store_that_loses_everything_is_not_counted_on(start, tmp_path):
    """One read fails; from then on nothing is looked for there that is gone, and no byte of it is counted."""
    store = lmdb_stores(tmp_path)()
    rig = start(store)
    rig.put_on_disk(1, 2, 3)
    rig.put_on_disk(5, 6)
    assert rig.cache.stats()["tiers"]["disk"]["blocks"] == 5
    break_tree(tmp_path / "v1" / "payload" / "data.mdb")
    rig.serve(1, 2, 3)
    store.sync()  # what the writer was told before is done
    rig.serve(7, 8)
    rig.serve(5, 6)
    rig.settle()
    rig.cache.check()
    disk = rig.cache.stats()["tiers"]["disk"]
    assert (disk["blocks"], disk["bytes"]) == (0, 0)
    assert store.stats().fresh_starts == 1
    rig.put_on_disk(1, 2, 3)
    rig.serve(1, 2, 3)
    store.check()
    assert store.stats().blocks >= 3


def test_what_was_filled_and_flushed_is_read_back_after_a_restart(open_store, start):
    rig = start(open_store())
    for names in PROMPTS:
        rig.serve(*names)
    assert rig.cache.stats()["tiers"]["disk"]["blocks"] > 0, "pressure alone has written some"
    assert rig.cache.close(flush_s=GIVE_UP_S)
    again = start(open_store())
    for names in PROMPTS:
        assert again.lookup(*names) == {"disk": len(names)}
    tiers = Counter()
    for names in PROMPTS:
        found = again.serve(*names)
        assert sum(found.values()) == len(names), "nothing is computed twice"
        tiers.update(found)
    assert tiers["disk"] >= 12
    assert again.failed_loads() == {}


def test_a_close_without_a_flush_loses_only_what_was_not_written(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2)
    rig.serve(3, 4)
    assert rig.cache.close()
    again = start(open_store())
    assert again.lookup(1, 2) == {"disk": 2}
    assert again.lookup(3, 4) == {}
    assert again.serve(1, 2) == {"disk": 2}


class Clocks:
    """Both stand still until they are set. The one that does not go backwards begins anew with each process."""

    def __init__(self) -> None:
        self.now_s, self.wall_s = 5.0, 1_000_000.0

    def pass_s(self, seconds):
        self.now_s += seconds
        self.wall_s += seconds

    def now_ns(self):
        return int(self.wall_s * 1e9)

    @property
    def of_cache(self):
        return {"clock": lambda: self.now_s, "now_ns": self.now_ns}


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def restart(tmp_path, start, clocks):
    """Another process on the same directory, some time later."""

    def restart(gone_s=0.0, *, ttl_s=100.0):
        clocks.wall_s += gone_s
        clocks.now_s = 5.0
        store = LmdbStore(
            tmp_path,
            namespace=NAMESPACE,
            layout=LAYOUT,
            capacity_bytes=1 << 20,
            min_free_bytes=0,
            sync_interval_s=3600.0,
            now_ns=clocks.now_ns,
        )
        return start(store, clocks=clocks.of_cache, ttl_s=ttl_s)

    return restart


def test_uses_keep_a_block_alive_over_restarts(restart, clocks):
    rig = restart()
    rig.put_on_disk(1, 2)
    rig.put_on_disk(3, 4)
    for _ in range(3):
        clocks.pass_s(40.0)
        assert sum(rig.serve(1, 2).values()) == 2
        rig.cache.close()
        rig = restart(gone_s=40.0)
        assert rig.lookup(1, 2) == {"disk": 2}
    assert rig.lookup(3, 4) == {}
    rig.settle()
    assert rig.cache.stats()["blocks"] == 2
    rig.cache.close()
    rig = restart(gone_s=60.0)
    assert rig.lookup(1, 2) == {}
    rig.settle()
    rig.cache.close()
    with restart().store as store:
        assert list(metas_of(store)) == [], "the records went as well"


def test_the_ttl_holds_after_a_crash(restart, clocks, tmp_path):
    """What the disk was told in time counts, and what it was not told makes blocks older at most."""
    rig = restart()
    rig.put_on_disk(1, 2)
    rig.put_on_disk(3, 4)
    clocks.pass_s(60.0)
    rig.serve(1, 2)
    clocks.pass_s(100.0 / 8)
    rig.cache.pump()  # as the deadline has the loop do
    rig.serve(3, 4)
    rig.store.sync()  # what the writer was told before is done
    rig.cache.abandon()
    rig = restart(gone_s=30.0)
    assert rig.lookup(1, 2) == {"disk": 2}
    assert rig.lookup(3, 4) == {}


@pytest.mark.parametrize(("jump_s", "left"), [(-1e5, {"disk": 2}), (1e5, {})])
def test_a_clock_that_jumps_is_believed_at_a_restart_only(restart, clocks, jump_s, left):
    rig = restart()
    rig.put_on_disk(1, 2)
    clocks.wall_s += jump_s
    assert rig.lookup(1, 2) == {"disk": 2}
    rig.cache.abandon()
    rig = restart()
    assert rig.lookup(1, 2) == left
    clocks.pass_s(100.0)
    assert rig.lookup(1, 2) == {}


def test_the_order_of_uses_survives_a_restart_without_a_ttl(restart, clocks):
    rig = restart(ttl_s=None)
    rig.put_on_disk(1, 2)
    clocks.pass_s(1.0)
    rig.put_on_disk(3, 4)
    clocks.pass_s(1.0)
    rig.serve(1, 2)
    rig.cache.close()
    used = {meta.key: meta.used_ns for meta in metas_of(restart(ttl_s=None).store)}
    assert used[key_of(1)] == used[key_of(1, 2)] > used[key_of(3)]


def test_a_slow_disk_that_is_told_of_uses_does_not_hold_up_the_end(start, monkeypatch):
    """What it has begun it ends; the rest is left, and counted."""
    monkeypatch.setattr("tiering.uses._BATCH_BLOCKS", 1)
    gate = Gate()
    store = FaultStore(MemoryStore(NAMESPACE, LAYOUT, 1 << 20), [Hang(gate, on="touch", first=1)])
    rig = start(store, join_s=0.2)
    rig.put_on_disk(1, 2, 3)
    assert not rig.cache.close()
    gate.open()
    assert rig.cache._calls.close(GIVE_UP_S)
    assert rig.cache._calls.num_failed_touches == 2


def test_a_store_that_cannot_note_uses_is_no_worse_for_it(faulty, start, clocks):
    rig = start(faulty, clocks=clocks.of_cache, ttl_s=100.0)
    rig.put_on_disk(1, 2)
    faulty.faults = [ErrorBefore(on="touch")]
    clocks.pass_s(20.0)
    rig.cache.pump()
    rig.settle()
    assert rig.serve(1, 2) == {"disk": 2}
    assert rig.cache.close()
    assert faulty.injected(ErrorBefore, "touch") == 2
    assert rig.cache._calls.num_failed_touches == 4


def test_a_full_device_and_host_serve_from_all_three_tiers(open_store, start):
    rig = start(open_store())
    for names in PROMPTS * 3:
        rig.serve(*names)
    stats = rig.cache.stats()
    assert stats["tiers"]["device"]["evicted"] > 0
    assert stats["store"]["blocks"] == stats["tiers"]["disk"]["blocks"] > 0
    assert stats["failed_loads"] == {}
    assert sum(tier["dropped"] for tier in stats["tiers"].values()) == 0


def test_host_memory_alone_serves_what_the_device_gave_up(start):
    rig = start(None)
    rig.serve(1, 2, 3)
    rig.serve(4, 5, 6)
    assert rig.serve(1, 2, 3) == {"device": 1, "host": 2}
    assert "store" not in rig.cache.stats()
    assert rig.cache.close(flush_s=GIVE_UP_S)


def test_clear_empties_the_store_too(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2)
    assert rig.cache.clear(GIVE_UP_S)
    assert rig.cache.close()
    with open_store() as store:
        assert list(metas_of(store)) == []


@pytest.fixture
def unlisted(open_store, start):
    """A store with blocks of three prompts, as the next process opens it, and a gate at which its listing hangs."""
    rig = start(open_store())
    for names in PROMPTS[:3]:
        rig.put_on_disk(*names)
    assert rig.cache.close()
    gate = Gate()
    return FaultStore(open_store(), [Hang(gate, on="scan")]), gate


@pytest.mark.parametrize("step_blocks", [1, 384])
def test_clear_is_done_only_when_what_the_disk_held_at_the_start_is_gone(
    unlisted, open_store, start, monkeypatch, step_blocks
):
    monkeypatch.setattr("tiering.restore._STEP_BLOCKS", step_blocks)
    store, gate = unlisted
    rig = start(store, restore_s=0.0)
    assert not rig.cache.clear(0.0), "what is there is not known, and the next start would find it"
    gate.open()
    assert rig.cache.clear(GIVE_UP_S)
    assert rig.cache.close(flush_s=0.0)
    with open_store() as store:
        assert list(metas_of(store)) == []


def broken_books(*_: object):
    raise AssertionError("the books do not agree")
    yield


def test_whoever_waits_for_the_cache_is_told_that_it_is_closed_although_closing_it_fails(
    unlisted, start, monkeypatch
):
    store, gate = unlisted
    monkeypatch.setattr("tiering.restore.Restore.enter", broken_books)
    cache = start(store, restore_s=0.0).cache
    cache.pump()

    def never():
        yield lambda: False

    waiting = cache.ask_in_steps(never)
    gate.open()
    with pytest.raises(AssertionError, match="the books"):
        cache.close(flush_s=GIVE_UP_S)
    with pytest.raises(RuntimeError, match="the cache is closed"):
        waiting.result(0)
    assert cache.close(), "its threads have ended"


def test_no_thread_is_left_at_work_in_the_store_when_a_cache_cannot_start(unlisted, monkeypatch):
    store, gate = unlisted
    monkeypatch.setattr("tiering.restore.Restore.enter", broken_books)
    gate.open()
    before, device = threading.enumerate(), CpuDevice()
    with pytest.raises(AssertionError, match="the books"):
        Rig(store, device)
    device.close()  # it is the caller's still, as the store is
    assert [thread for thread in threading.enumerate() if thread not in before] == []
    store.close()


# ---- a store that does not do as it should


def test_a_record_that_is_gone_costs_one_block(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2, 3)
    rig.store.delete_many([key_of(1, 2)])
    assert rig.serve(1, 2, 3) == {"disk": 2}
    assert rig.failed_loads() == {"absent": 1}
    assert rig.lookup(1, 2, 3) == {"device": 3}


def test_a_damaged_record_is_never_served(open_store, start):
    rig = start(open_store())
    rig.put_on_disk(1, 2, 3)
    rig.store.raw().corrupt(key_of(1))
    assert rig.serve(1, 2, 3) == {"disk": 2}
    assert sum(rig.failed_loads().values()) == 1


def test_a_store_that_cannot_read_makes_the_request_compute(faulty, start):
    rig = start(faulty)
    rig.put_on_disk(1, 2)
    faulty.faults = [ErrorBefore(on="read")]
    assert rig.serve(1, 2) == {}
    assert rig.failed_loads() == {"read_failed": 2}
    assert rig.cache.close()


def test_a_store_that_cannot_write_leaves_the_blocks_in_host_memory(faulty, start):
    rig = start(faulty)
    faulty.faults = [ErrorBefore(StoreFull, on="write")]
    rig.serve(1, 2)
    rig.cache.sweep(Tier.DISK, then_free=True)
    rig.settle()
    assert rig.lookup(1, 2) == {"host": 2}
    disk = rig.cache.stats()["tiers"]["disk"]
    assert disk["failed_writes"] > 0
    assert disk["bytes"] == 0
    assert rig.cache.close(flush_s=GIVE_UP_S), "a disk that rests does not hold up the end"


def test_deletes_that_fail_are_counted(faulty, start):
    rig = start(faulty)
    rig.put_on_disk(1, 2)
    faulty.faults = [ErrorBefore(on="delete")]
    rig.cache.clear(GIVE_UP_S)
    assert rig.cache.close()
    assert rig.cache._calls.num_failed_deletes == 2


def test_a_store_that_cannot_be_listed_is_taken_for_empty(faulty, start, caplog):
    """It was tried twice; and requests are served, and written down."""
    faulty.faults = [ErrorBefore(on="scan")]
    rig = start(faulty)
    assert not rig.cache.stats()["tiers"]["disk"]["restoring"]
    assert "cannot be listed" in caplog.text
    assert faulty.injected(on="scan") == 2
    rig.put_on_disk(1, 2)
    assert rig.lookup(1, 2) == {"disk": 2}


def test_others_run_while_a_read_hangs_and_close_does_not_wait_for_it(faulty, start):
    rig, gate = start(faulty, join_s=0.05), Gate()
    rig.put_on_disk(1)
    faulty.faults = [Hang(gate, on="read")]
    hanging = rig.admit(prompt(1))
    assert gate.wait_until_reached(GIVE_UP_S)
    other = rig.admit(prompt(2))
    rig.compute(other, prompt(2), 0, 1)
    rig.cache.release(other)
    assert hanging.num_loading == 1
    rig.cache.release(hanging)
    assert not rig.cache.settle(0.0)
    assert not rig.cache.close()
    assert not rig.cache.close(), "closing twice does not make the memory safe to free"
    gate.open()


def test_close_does_not_wait_for_a_write_that_hangs(faulty, start):
    rig, gate = start(faulty, join_s=0.05), Gate()
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    rig.settle()
    faulty.faults = [Hang(gate, on="write")]
    rig.cache.sweep(Tier.DISK, then_free=True)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert rig.lookup(1, 2) == {"host": 2}
    assert not rig.cache.close(flush_s=0.05)
    gate.open()


def test_each_end_of_a_move_wakes_the_loop(faulty, start):
    rig = start(faulty)
    rig.put_on_disk(1)
    rig.woken.clear()
    rig.cache.pump()  # it has looked: what was announced late, of moves before, would keep others from waking it
    lease = rig.admit(prompt(1))
    while lease.num_loading:
        assert rig.woken.wait(GIVE_UP_S), "a move has ended and nobody was told"
        rig.woken.clear()
        rig.cache.pump()
    rig.look(lease, prompt(1))
    rig.cache.release(lease)


def test_the_loop_is_woken_once_for_all_that_comes_until_it_looks(start):
    rig, wakes = start(None), []  # without a store, whose threads would announce as well
    rig.cache._wake = lambda: wakes.append(1)
    rig.cache.host_grows(HOST_SLOTS)
    rig.cache.host_grows(HOST_SLOTS)
    asked = rig.cache.ask(lambda: "answer")
    assert len(wakes) == 1
    rig.cache.pump()
    assert asked.result(0) == "answer"
    rig.cache.host_grows(HOST_SLOTS)
    assert len(wakes) == 2, "it has looked since then"


def test_settle_wakes_up_when_a_move_ends(faulty, start, monkeypatch):
    monkeypatch.setattr("tiering.cache._SETTLE_STEP_S", GIVE_UP_S)
    start(faulty).put_on_disk(1, 2)


def test_a_cache_closes_at_the_end_of_a_with_block(faulty):
    with Rig(faulty).cache as cache:
        pass
    assert cache.close()
    assert faulty.store._closed


# ---- a device that does not do as it should, alone and with a store like that


@pytest.mark.parametrize("kind", [ErrorBefore, ErrorAfter, ShortData, Garbage])
def test_a_copy_up_that_fails_makes_the_request_compute(start, kind):
    device = FaultDevice(CpuDevice())
    rig = start(None, device)
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    rig.settle()
    device.faults = [kind(on="up", first=1)]
    assert rig.serve(1, 2) == {}
    assert rig.failed_loads() == {"copy_failed": 2}
    assert device.injected(kind, "up") == 1
    assert rig.serve(1, 2) == {"device": 2}


@pytest.mark.parametrize("kind", [ErrorBefore, ErrorAfter, ShortData, Garbage])
def test_a_copy_down_that_fails_is_not_taken_for_a_copy(start, kind):
    device = FaultDevice(CpuDevice(), [kind(on="down")])
    rig = start(None, device)
    rig.serve(1, 2, 3)
    rig.serve(4, 5, 6)
    assert device.injected(kind, "down") > 0
    assert rig.lookup(1, 2, 3) == {"device": 1}, "what had to leave is nowhere"
    device.faults = ()
    assert rig.serve(1, 2, 3) == {"device": 1}


def test_a_sweep_ends_although_no_copy_down_succeeds(start):
    device = FaultDevice(CpuDevice(), [ErrorBefore(on="down")])
    rig = start(None, device)
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    rig.settle()
    assert rig.lookup(1, 2) == {"device": 2}


def test_close_ends_a_copy_that_hangs(start):
    gate = Gate()
    rig = start(None, FaultDevice(CpuDevice(), [Hang(gate, on="down")]))
    rig.serve(1, 2)
    rig.cache.sweep(Tier.HOST, then_free=True)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert rig.cache.close()


@pytest.mark.parametrize("seed", range(4))
def test_with_every_fault_at_once_every_block_is_right_and_nothing_is_left_over(open_store, start, seed):
    """`serve` looks at each byte, `settle` checks the books; it goes on until every fault has acted."""
    gate = Gate()
    gate.open()
    errors = [kind(chance=0.1) for kind in (ErrorBefore, ErrorAfter)]
    damage = [kind(chance=0.1) for kind in (ShortData, Garbage)]
    faults = [Delay(1.0, chance=0.3), Hang(gate), *errors, *damage]
    device = FaultDevice(CpuDevice(), seed=seed, sleep=lambda _: None)
    faulty = FaultStore(open_store(), seed=seed, sleep=lambda _: None)
    rig = start(faulty, device, disk_rest_s=0.0)
    device.faults, faulty.faults = faults, [*faults, FalseMiss(chance=0.2), DirtyMiss()]
    expected = [(device, type(fault), on) for fault in faults for on in ("up", "down")]
    expected += [(faulty, type(fault), on) for fault in faults for on in ("read", "write")]
    expected += [(faulty, FalseMiss, "read"), (faulty, DirtyMiss, "read")]
    for turn in range(100):
        for names in PROMPTS:
            rig.serve(*names)
        rig.cache.sweep([Tier.HOST, Tier.DISK][turn % 2], then_free=True)
        rig.settle()
        missing = [kind for layer, kind, on in expected if not layer.injected(kind, on)]
        if not missing:
            break
    assert missing == []
    assert rig.cache.stats()["leases"] == 0
    device.faults = faulty.faults = ()
    for names in PROMPTS:
        rig.serve(*names)


# ---- threads


def test_one_thread_runs_jobs_in_order():
    threads, done = IoThreads("test", 1), []
    for number in range(100):
        threads.put(lambda number=number: done.append(number))
    assert threads.close(GIVE_UP_S)
    assert done == list(range(100))


def test_two_threads_run_jobs_side_by_side():
    threads, barrier = IoThreads("test", 2), threading.Barrier(2)
    for _ in range(2):
        threads.put(lambda: barrier.wait(GIVE_UP_S))
    assert threads.close(GIVE_UP_S)
    assert not barrier.broken


def test_a_job_that_hangs_does_not_hold_up_close():
    threads, gate = IoThreads("test", 2), Gate()
    threads.put(gate.wait)
    assert gate.wait_until_reached(GIVE_UP_S)
    assert not threads.close(0.0)
    gate.open()
    assert threads.close(GIVE_UP_S)


def test_no_threads_close_at_once():
    assert IoThreads("test", 0).close(0.0)
