"""The cache with real threads, copies and stores: the right bytes come back, and whoever waits is told how it ends."""

import threading

import pytest

from benchmarks.faults.kinds import break_tree
from kvstore.layers import FaultStore, Gate, Hang
from kvstore.metas import metas_of
from tests.tiering.rig import HOST_SLOTS, PROMPTS, Rig, lmdb_stores, prompt
from tests.tiering.slot_arrays import GIVE_UP_S
from tiering.residency import Tier
from tiering.transfer.cpu import CpuDevice


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
