"""Settings change while requests go on: tiers become as small or as large as they were told, and nothing else breaks."""

import math
import threading

import numpy as np
import pytest

from kvstore.memory import MemoryStore
from tests.tiering.memory_model import DIED
from tests.tiering.rig import HOST_SLOTS, LAYOUT, NAMESPACE, Rig
from tests.tiering.small_tiers import RECORD_BYTES, lookup, model, on_disk, prompt, stats
from tests.tiering.test_by_hand import drive
from tests.tiering.test_listing import Clock
from tiering.moves import Touch, Write
from tiering.residency import Tier


def host_blocks(tiers, *names: int):
    """Have these prompts' blocks in host memory only, one prompt each, the first the least recently used."""
    for name in names:
        tiers.run(prompt(name))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()


def in_host(tiers):
    return {name for name in range(1, 10) if lookup(tiers, name) == {"host": 1}}


# --- host slots -----------------------------------------------------------------------------------------------------


def test_free_host_slots_are_retired_at_once_and_come_back():
    tiers = model(device=4, host=6)
    tiers.index.change(host_slots=2)
    host = stats(tiers, "host")
    assert (host["slots"], host["free"], host["retired"]) == (6, 2, 4)
    tiers.index.change(host_slots=5)
    assert (stats(tiers, "host")["free"], stats(tiers, "host")["retired"]) == (5, 1)
    assert tiers.index.events.after(0)[-1].facts == {"host_slots": 5}
    tiers.check()


def test_without_a_disk_the_least_recently_used_go_for_good_when_nothing_else_can():
    tiers = model(device=8, host=6)
    host_blocks(tiers, 1, 2, 3, 4, 5)
    tiers.run(prompt(1))  # on the device as well: its copy below goes first
    tiers.index.change(host_slots=2)
    tiers.settle()
    assert in_host(tiers) == {4, 5}
    assert lookup(tiers, 1) == {"device": 1}
    assert stats(tiers, "host")["retired"] == 4
    assert stats(tiers, "host")["dropped"] == 2
    tiers.check()


def test_with_a_disk_what_only_host_memory_has_is_written_before_it_leaves():
    tiers = model(device=8, host=6, disk=16, clean_share=0.0, write_budget_blocks=1)
    host_blocks(tiers, 1, 2, 3, 4, 5)
    assert not tiers.disk
    tiers.index.change(host_slots=2)
    tiers.settle()
    found = [lookup(tiers, name) for name in range(1, 6)]
    assert found.count({"disk": 1}) >= 3 and {"device": 0} not in found
    assert all(found), "a block was lost although the disk would have taken it"
    assert stats(tiers, "host")["retired"] == 4
    assert stats(tiers, "host")["dropped"] == 0


def test_a_disk_that_takes_nothing_does_not_keep_host_memory_large():
    tiers = model(device=8, host=6, disk=16, clean_share=0.0, disk_failures=1, disk_rest_s=1000.0)
    host_blocks(tiers, 1, 2, 3, 4)
    tiers.index.change(host_slots=1)
    for _ in range(20):
        tiers.plan()
        for number in tiers.completable():
            tiers.complete(number, error=DIED)
    assert stats(tiers, "host")["retired"] == 5
    tiers.check()


def test_a_slot_that_is_in_use_is_retired_when_that_ends():
    tiers = model(device=8, host=4, disk=16)
    on_disk(tiers, 1, 2)
    request = tiers.request(prompt(1, 2))
    assert tiers.try_to_admit(request)
    tiers.plan()
    assert stats(tiers, "host")["in_flight"] == 2
    tiers.index.change(host_slots=1)
    tiers.plan()
    assert stats(tiers, "host")["retired"] == 2
    tiers.settle()
    assert stats(tiers, "host")["retired"] == 3
    assert request.lease.ready[:2].all()


def test_host_memory_that_is_still_opening_is_retired_as_it_comes():
    tiers = model(device=4, host=8, later_host_slots=6)
    tiers.index.change(host_slots=4)
    assert stats(tiers, "host")["retired"] == 0
    tiers.index.host_grows(5)
    assert (stats(tiers, "host")["slots"], stats(tiers, "host")["retired"]) == (5, 1)
    tiers.index.host_grows(8)
    assert (stats(tiers, "host")["slots"], stats(tiers, "host")["retired"]) == (8, 4)
    tiers.index.change(host_slots=8)
    assert stats(tiers, "host")["free"] == 8


def test_preempted_requests_have_half_of_what_is_in_service():
    tiers = model(device=8, host=8)
    tiers.index.change(host_slots=4)
    request = tiers.admit(prompt(), num_blocks=8)
    tiers.grow(request, 3)
    for _ in range(3):
        tiers.compute_own(request)
    tiers.preempt(request)
    assert request.stash is None, "three blocks are more than half of four"


def test_many_slots_are_retired_over_several_plans_without_anything_else_to_wake_for(monkeypatch):
    monkeypatch.setattr("tiering.sizes._HOST_BATCH", 1)
    monkeypatch.setattr("tiering.sizes._ONE_BY_ONE", 1)
    tiers = model(device=8, host=8)
    host_blocks(tiers, 1, 2, 3, 4, 5)
    tiers.index.change(host_slots=1)
    plans = 0
    while tiers.index.deadline_s() == -math.inf:
        tiers.plan()
        plans += 1
    assert plans >= 4
    assert stats(tiers, "host")["retired"] == 7
    assert in_host(tiers) == {5}


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_smaller_disk_gives_up_the_least_recently_used_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr("tiering.sizes._ONE_BY_ONE", 1)
    tiers = model(device=8, host=8, disk=8)
    for name in (1, 2, 3, 4):
        on_disk(tiers, name)
    tiers.index.change(disk_bytes=2 * RECORD_BYTES)
    plans = 0
    while tiers.index.deadline_s() == -math.inf:
        tiers.plan()
        plans += 1
    assert plans >= 2
    assert [lookup(tiers, name) for name in (1, 2, 3, 4)] == [{}, {}, {"disk": 1}, {"disk": 1}]
    assert stats(tiers, "disk")["capacity_bytes"] == 2 * RECORD_BYTES
    tiers.forget()
    assert len(tiers.disk) == 2
    on_disk(tiers, 5)
    assert lookup(tiers, 3) == {}, "what comes takes the place of what is older"


def test_while_there_is_too_much_on_disk_nothing_is_written():
    tiers = model(device=8, host=8, disk=8)
    on_disk(tiers, 1, 2)
    host_blocks(tiers, 3)
    assert tiers.try_to_admit(tiers.request(prompt(1, 2)))
    tiers.plan()  # what is read cannot go
    num_writes = len(tiers.moves(Write))
    tiers.index.change(disk_bytes=RECORD_BYTES)
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    assert len(tiers.moves(Write)) == num_writes
    assert lookup(tiers, 3) == {"host": 1}
    tiers.settle()
    assert stats(tiers, "disk")["bytes"] <= RECORD_BYTES


def test_a_write_does_not_make_a_disk_smaller_all_at_once(monkeypatch):
    monkeypatch.setattr("tiering.sizes._ONE_BY_ONE", 1)
    tiers = model(device=8, host=8, disk=8)
    on_disk(tiers, 1, 2, 3, 4, 5)
    host_blocks(tiers, 6)
    tiers.index.change(disk_bytes=2 * RECORD_BYTES)
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    assert stats(tiers, "disk")["blocks"] == 4


def test_a_disk_that_is_smaller_than_one_record_takes_none():
    tiers = model(2, 2, 4)
    on_disk(tiers, 1)
    tiers.index.change(disk_bytes=RECORD_BYTES - 1)
    tiers.settle()
    for name in (2, 3, 4, 5):
        tiers.run(prompt(name))
    tiers.settle()
    assert (stats(tiers, "disk")["blocks"], stats(tiers, "disk")["bytes"]) == (0, 0)


def test_a_larger_disk_takes_more():
    tiers = model(device=8, host=8, disk=1)
    on_disk(tiers, 1)
    tiers.index.change(disk_bytes=8 * RECORD_BYTES)
    on_disk(tiers, 2, 3)
    assert lookup(tiers, 1) == {"disk": 1}


# --- times and shares -----------------------------------------------------------------------------------------------


def test_a_ttl_that_comes_and_goes():
    tiers = model(device=8)
    tiers.run(prompt(1))
    tiers.now_s = 100.0
    tiers.run(prompt(2))
    tiers.index.change(ttl_s=50.0)
    tiers.index.at(tiers.now_s)
    assert lookup(tiers, 1) == {}, "it was unused for longer than that"
    tiers.plan()
    assert tiers.index.stats()["expired"] == 1
    assert tiers.index.deadline_s() == 150.0
    tiers.now_s = 149.0
    tiers.index.change(ttl_s=None)
    assert tiers.index.deadline_s() is None
    tiers.now_s = 1000.0
    tiers.settle()
    assert lookup(tiers, 2) == {"device": 1}
    tiers.index.change(ttl_s=899.0)
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 0


def test_a_ttl_that_goes_takes_what_is_over_with_it_and_a_shorter_one_comes_at_once():
    tiers = model(device=8, ttl_s=10.0)
    tiers.run(prompt(1))
    tiers.now_s += 11.0
    tiers.index.at(tiers.now_s)
    assert lookup(tiers, 1) == {}
    tiers.index.change(ttl_s=None)
    tiers.index.at(tiers.now_s)
    assert lookup(tiers, 1) == {"device": 1}
    tiers.index.change(ttl_s=1000.0)
    tiers.plan()
    assert tiers.index.deadline_s() == 1000.0
    tiers.index.change(ttl_s=5.0)
    tiers.plan()
    assert tiers.index.stats()["expired"] == 1


def test_uses_that_were_about_to_be_told_are_told_within_another_ttl_too(monkeypatch):
    monkeypatch.setattr("tiering.uses._BATCH_BLOCKS", 1)
    tiers = model(device=8, host=8, disk=8, ttl_s=1600.0)
    on_disk(tiers, 1)
    on_disk(tiers, 2)
    tiers.run(prompt(1))
    tiers.run(prompt(2))

    def told():
        return [len(move.keys) for move in tiers.asked if isinstance(move, Touch)]

    while not told():
        tiers.now_s = max(tiers.now_s, tiers.index.deadline_s())
        tiers.plan()
    so_far, changed_s = sum(told()), tiers.now_s
    tiers.index.change(ttl_s=800.0)
    while sum(told()) == so_far and tiers.now_s <= changed_s + 100.0:
        tiers.now_s = max(tiers.now_s, tiers.index.deadline_s())
        tiers.plan()
    assert sum(told()) > so_far
    assert tiers.now_s <= changed_s + 100.0, "half of an eighth of the TTL is 50 s"


def test_what_was_over_and_has_not_gone_may_be_used_again_with_a_longer_ttl():
    tiers = model(device=8, ttl_s=10.0)
    tiers.run(prompt(1))
    tiers.now_s += 11.0
    tiers.index.at(tiers.now_s)
    assert lookup(tiers, 1) == {}
    tiers.index.change(ttl_s=100.0)
    tiers.index.at(tiers.now_s)
    assert lookup(tiers, 1) == {"device": 1}


def test_with_a_ttl_that_is_new_the_disk_is_told_of_uses_from_before():
    tiers = model(device=8, host=8, disk=8)
    on_disk(tiers, 1)
    written_ns = next(iter(tiers.disk.values())).meta.used_ns
    tiers.now_s += 20.0
    tiers.run(prompt(1))
    tiers.now_s += 20.0
    tiers.settle()
    assert next(iter(tiers.disk.values())).meta.used_ns == written_ns
    tiers.index.change(ttl_s=160.0)
    while (deadline_s := tiers.index.deadline_s()) is not None and deadline_s <= 60.0:
        tiers.now_s = max(tiers.now_s, deadline_s)
        tiers.settle()
        if next(iter(tiers.disk.values())).meta.used_ns != written_ns:
            break
    assert next(iter(tiers.disk.values())).meta.used_ns == written_ns + 20 * 10**9


def test_more_of_host_memory_is_kept_clean():
    tiers = model(device=8, host=4, disk=16, clean_share=0.0)
    host_blocks(tiers, 1, 2, 3)
    assert not tiers.moves(Write)
    tiers.index.change(clean_share=1.0)
    tiers.settle()
    assert sum(len(move.ids) for move in tiers.moves(Write)) == 3


def test_another_budget_and_another_deadline():
    tiers = model(device=8, host=8, disk=16, clean_share=0.0, io_deadline_s=100.0)
    tiers.index.change(write_budget_blocks=1, io_deadline_s=5.0)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.plan()
    assert stats(tiers, "disk")["writing_blocks"] == 1
    tiers.now_s += 6.0
    tiers.plan()
    assert not stats(tiers, "disk")["ready"], "the write is overdue by the new deadline"


# --- all or nothing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host_slots": 9}, "at most 8"),
        ({"host_slots": 0}, "needs host memory"),
        ({"host_slots": -1}, "host_slots|host slots"),
        ({"disk_bytes": 0}, "cannot come or go"),
        ({"ttl_s": 0.0}, "ttl_s"),
        ({"clean_share": 1.5}, "clean_share"),
        ({"write_budget_blocks": 0}, "write_budget_blocks"),
        ({"io_deadline_s": 0.0}, "io_deadline_s"),
        ({"device_slots": 3}, "device_slots cannot be changed"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_changes(changes, message):
    tiers = model(device=4, host=8, disk=8, later_host_slots=2)
    before, config = tiers.index.stats(), tiers.index.config
    with pytest.raises(ValueError, match=message):
        tiers.index.change(**{"clean_share": 0.25, **changes})
    assert tiers.index.config == config
    assert tiers.index.stats() == before


def test_a_disk_tier_does_not_come():
    tiers = model(device=4, host=4)
    with pytest.raises(ValueError, match=r"record_bytes|come or go"):
        tiers.index.change(disk_bytes=100)


# --- in the cache ---------------------------------------------------------------------------------------------------


def test_another_thread_changes_settings_and_what_is_left_out_stays():
    rig = Rig(MemoryStore(NAMESPACE, LAYOUT, 1 << 20), ttl_s=500.0)
    with rig.cache as cache:
        cache.pump()
        drive(rig, lambda: cache.change(host_slots=2, clean_share=0.25))
        assert cache._index.config.ttl_s == 500.0
        assert cache.stats()["tiers"]["host"]["retired"] == HOST_SLOTS - 2
        assert rig.serve(1, 2) == {}
        rig.put_on_disk(1, 2)
        assert rig.serve(1, 2) == {"disk": 2}
        drive(rig, lambda: cache.change(ttl_s=None))
        assert cache._index.config.ttl_s is None
        with pytest.raises(ValueError, match="at most"):
            drive(rig, lambda: cache.change(host_slots=HOST_SLOTS + 1))


def test_a_transfer_takes_until_its_end_is_taken_in():
    clock = Clock()
    rig = Rig(None, clocks={"clock": clock})
    with rig.cache as cache:
        rig.serve(1, 2)
        cache.sweep(Tier.HOST, then_free=True)
        clock.now_s = 5.0  # the copy may have ended before
        rig.settle()
        assert cache.stats()["transfers"]["demote"]["busy_s"] == 5.0
        assert [event.facts["seconds"] for event in cache.events(0) if event.kind == "demoted"] == [5.0]


def test_figures_and_events_may_be_read_by_any_thread_while_requests_go_on():
    rig = Rig(MemoryStore(NAMESPACE, LAYOUT, 1 << 20))
    failures, stop = [], threading.Event()

    def look():
        last = 0
        try:
            while not stop.is_set():
                figures = rig.cache.stats()
                assert figures["block_bytes"] == LAYOUT.block_bytes
                numbers = [event.number for event in rig.cache.events(last)]
                assert numbers == list(range(last + 1, last + 1 + len(numbers)))
                last += len(numbers)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    with rig.cache:
        for thread in threads:
            thread.start()
        for i in range(20):
            rig.serve(1, i % 7, i % 3)
        rig.cache.note("request", number=7)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        transfers = rig.cache.stats()["transfers"]
        assert transfers["demote"]["bytes"] == transfers["demote"]["blocks"] * LAYOUT.block_bytes > 0
        assert transfers["demote"]["busy_s"] > 0
        kinds = {event.kind for event in rig.cache.events(0)}
        assert {"demoted", "evicted", "request"} <= kinds
        assert isinstance(np.asarray(rig.cache.stats()["lookups"]["blocks"]).item(), int)
