"""What the cache has after a restart: the blocks that were written, with their uses and their times to live."""

from collections import Counter

import pytest

from kvstore.layers import ErrorBefore, FaultStore, Gate, Hang
from kvstore.memory import MemoryStore
from kvstore.metas import metas_of
from tests.tiering.rig import LAYOUT, NAMESPACE, PROMPTS, key_of, lmdb_stores
from tests.tiering.slot_arrays import GIVE_UP_S


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
        store = lmdb_stores(tmp_path, now_ns=clocks.now_ns)()
        return start(store, clocks=clocks.of_cache, ttl_s=ttl_s)

    return restart


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
