"""What the core promises of blocks that come back: in one life of the process and the next, from a disk good or bad."""

import pytest

from kvstore.reasons import MissReason
from tests.tiering.memory_model import DIED, MemoryModel
from tests.tiering.small_tiers import RECORD_BYTES, config, lookup, model, on_disk, prompt, stats
from tiering.index_config import IndexConfig
from tiering.leases import Wait
from tiering.moves import Demote, Promote, Read, Write
from tiering.residency import Tier

# ---- loading


def test_two_requests_share_one_read():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    first, second = tiers.admit(prompt(1, 2, 3)), tiers.request(prompt(1, 2, 4))
    assert first.lease.num_loading == 2
    assert not tiers.try_to_admit(second)
    assert second.wait is Wait.FOR_BLOCKS
    tiers.settle()
    assert tiers.try_to_admit(second)
    assert sum(len(read.ids) for read in tiers.moves(Read)) == 2
    assert second.lease.cached_blocks_by_tier() == {"device": 2, "host": 0, "disk": 0}
    assert first.lease.cached_blocks_by_tier() == {"device": 0, "host": 0, "disk": 2}


def test_what_comes_from_host_memory_is_copied_up_while_the_rest_is_read():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(1))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    request = tiers.admit(prompt(1, 2))
    assert request.lease.cached_blocks_by_tier() == {"device": 0, "host": 1, "disk": 1}
    tiers.plan()
    assert len(tiers.completable()) == 2, "neither waits for the other"


def test_what_was_read_between_two_plans_is_copied_up_together():
    tiers = model(device=8, host=4, disk=8, read_batch_blocks=1)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    reads = tiers.moves(Read)
    assert [len(read.ids) for read in reads] == [1, 1, 1]
    for read in (reads[2], reads[0]):
        tiers.complete(read.number)
    assert not tiers.index.idle
    tiers.index.check()
    tiers.plan()
    [promote] = tiers.moves(Promote)
    assert promote.ids.tolist() == [*reads[2].ids, *reads[0].ids]
    tiers.settle()
    assert request.lease.ready[:3].all()


@pytest.mark.parametrize(
    ("record_bytes", "blocks"), [(0, 256), (1 << 16, 256), (5 << 20, 25), (100 << 20, 16)]
)
def test_of_large_blocks_fewer_are_on_their_way_at_once_but_one_batch_is(record_bytes, blocks):
    sizes = IndexConfig(block_tokens=2, device_slots=1, host_slots=1, record_bytes=record_bytes)
    assert sizes.blocks_in_reads == blocks


def test_reads_on_their_way_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr("tiering.index_config._READ_BUDGET_BYTES", 4 * RECORD_BYTES)
    tiers = model(device=12, host=12, disk=12, read_batch_blocks=2)
    on_disk(tiers, *range(8))
    request = tiers.admit(prompt(*range(8)))
    tiers.plan()
    assert [len(read.ids) for read in tiers.moves(Read)] == [2, 2]
    tiers.settle()
    assert request.lease.ready[:8].all()


def test_of_many_blocks_larger_batches_are_read_first_and_the_last_ones_are_small():
    """So that few ends are to be dealt with, and those that read end together."""
    tiers = model(device=48, host=48, disk=80, read_threads=4, read_batch_blocks=2, read_budget_blocks=32)
    on_disk(tiers, *range(40))
    request = tiers.admit(prompt(*range(40)))
    tiers.plan()
    assert [len(read.ids) for read in tiers.moves(Read)] == [8, 8, 6, 4, 4, 2], "as many as may be"
    tiers.complete(tiers.moves(Read)[0].number)
    tiers.plan()
    assert [len(read.ids) for read in tiers.moves(Read)][-4:] == [2, 2, 2, 2]
    positions = [position for read in tiers.moves(Read) for position in read.ids.tolist()]
    assert positions == request.lease.ids[:40].tolist()
    tiers.settle()
    assert request.lease.ready[:40].all()


@pytest.mark.parametrize("clean_share", [0.0, 0.5])
def test_a_long_load_takes_the_slots_of_what_it_has_read_rather_than_those_of_last_copies(clean_share):
    """There is no hurry: what was read is on the device soon, and its host slot may go then. Nothing is dropped for it."""
    tiers = model(
        device=48, host=24, disk=80, read_batch_blocks=2, write_batch_blocks=16, clean_share=clean_share
    )
    on_disk(tiers, *range(40))
    tiers.run(prompt(*range(100, 124)))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    assert stats(tiers, "host")["free"] == 0
    assert 0 < tiers.index._holdings.num_dirty_host < 24
    request = tiers.admit(prompt(*range(40)))
    tiers.settle()
    assert request.lease.ready[:40].all()
    assert stats(tiers, "host")["dropped"] == 0


def test_where_host_memory_has_hardly_anything_but_last_copies_some_of_them_go_for_a_load():
    """Or it would never begin."""
    tiers = model(device=48, host=24, disk=80, read_batch_blocks=2, write_batch_blocks=1, clean_share=0.0)
    on_disk(tiers, *range(20))
    for name in range(100, 124):
        tiers.run(prompt(name))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    assert tiers.index._holdings.num_dirty_host == 23
    request = tiers.admit(prompt(*range(20)))
    tiers.plan()
    assert sum(len(read.ids) for read in tiers.moves(Read)) == 24 // 4
    tiers.settle()
    assert request.lease.ready[:20].all()
    assert stats(tiers, "host")["dropped"] == 24 // 4 - 1, "one slot could be had for nothing"


def test_what_was_read_for_a_request_that_ends_before_the_next_plan_is_copied_up_and_stays():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number)
    tiers.release(request)
    tiers.index.check()
    tiers.settle()
    assert lookup(tiers, 1, 2) == {"device": 2}


@pytest.mark.parametrize("reason", [MissReason.ABSENT, MissReason.DAMAGED_CHECKSUM])
def test_a_lost_record_costs_one_block_and_the_hole_heals(reason):
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, misses={1: reason})
    tiers.settle()
    assert request.lease.num_lost == 1
    assert request.lease.gaps(3) == [(1, 2)], "what arrived before and after it is used"
    assert request.lease.num_cached_blocks == 2
    tiers.prefill(request)
    tiers.release(request)
    tiers.settle()
    assert lookup(tiers, 1, 2, 3) == {"device": 3}
    assert tiers.index.stats()["failed_loads"] == {reason.value: 1}


@pytest.mark.parametrize("died", [True, False])
def test_reads_that_were_begun_before_the_disk_was_emptied_say_nothing_of_it_as_it_is(died):
    """They fail all together, as they were asked of files that are gone: no reason to leave the new ones alone."""
    tiers = model(device=8, host=4, disk=8, read_batch_blocks=1, disk_failures=2)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    reads = [move.number for move in tiers.moves(Read)]
    assert len(reads) == 3
    tiers.index.disk_was_emptied()
    tiers.disk.clear()
    for number in reads:
        tiers.complete(number, error=DIED if died else None)
    assert request.lease.num_lost == 3
    assert tiers.index.stats()["failed_loads"] == {"absent": 3}
    assert stats(tiers, "disk")["ready"]
    assert stats(tiers, "disk")["blocks"] == 0
    tiers.prefill(request)
    tiers.release(request)
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    assert len(tiers.disk) == 3, "they are written again"
    assert lookup(tiers, 1, 2, 3) == {"disk": 3}


def test_a_failed_read_is_computed_and_the_records_stay():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, error=DIED)
    assert request.lease.gaps(2) == [(0, 2)]
    tiers.prefill(request)
    tiers.release(request)
    assert tiers.where(prompt(1, 2)) == ["DK", "DK"]


def test_a_failed_copy_up_is_computed():
    tiers = model(device=4, host=4)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.complete(tiers.moves(Promote)[0].number, error=DIED)
    assert request.lease.gaps(2) == [(0, 2)]
    tiers.prefill(request)
    tiers.check()


def test_a_hole_that_nobody_computes_expires_with_what_is_below():
    tiers = model(device=8, host=4, disk=8, hole_ttl_s=300.0)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, misses={0: MissReason.ABSENT})
    tiers.settle()
    tiers.release(request)
    assert lookup(tiers, 1, 2, 3) == {}
    tiers.now_s += 299.0
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 3, "it may be computed again"
    tiers.now_s += 2.0
    tiers.settle()
    assert tiers.index.stats()["blocks"] == 0
    assert not tiers.disk


def test_a_record_that_turns_out_lost_when_its_request_has_gone_leaves_a_hole():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.release(request)
    tiers.complete(tiers.moves(Read)[0].number, misses={1: MissReason.ABSENT})
    tiers.check()
    assert tiers.where(prompt(1, 2, 3)) == ["HK", "", "HK"]
    assert lookup(tiers, 1, 2, 3) == {"host": 1}


def test_a_copy_below_a_hole_does_not_keep_the_only_host_slot_from_a_load():
    tiers = model(device=8, host=1, disk=8)
    on_disk(tiers, 1, 2, 3)
    first = tiers.admit(prompt(1, 2, 3))
    for misses in ({}, {0: MissReason.ABSENT}, {}):
        tiers.plan()
        tiers.complete(tiers.moves(Read)[-1].number, misses=misses)
        tiers.plan()
        for number in tiers.completable():
            if isinstance(tiers.flights[number].move, Promote):
                tiers.complete(number)
    tiers.release(first)
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    assert tiers.where(prompt(1, 2, 3)) == ["K", "", "HK"]
    request = tiers.run(prompt(1, 2, 3))
    assert request.lease.num_cached_blocks == 1
    assert lookup(tiers, 1, 2, 3) == {"device": 3}


def test_a_load_that_is_called_off_is_computed_by_the_other_that_holds_the_block():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(1))
    first, second = tiers.admit(prompt(1, 2)), tiers.admit([1, 1, 2, 2])
    assert first.lease.num_loading == 1
    tiers.release(first)
    tiers.check()
    assert second.lease.gaps(2) == [(1, 2)]
    tiers.prefill(second)
    tiers.release(second)
    assert lookup(tiers, 1, 2) == {"device": 2}


def test_a_block_computed_while_it_was_read_needs_no_copy_down():
    tiers = model(device=4, host=4, disk=8)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(1))
    first, second = tiers.admit(prompt(1, 2)), tiers.admit([1, 1, 2, 2], num_blocks=2)
    tiers.plan()
    tiers.release(first)
    tiers.prefill(second)
    tiers.release(second)
    tiers.admit(prompt(5, 6, 7))  # at once, although the read still runs
    tiers.settle()
    assert tiers.where([1, 1, 2, 2]) == ["HK", "HK"]


def test_loads_switched_off_compute_everything():
    disk = model(device=8, host=4, disk=8)
    on_disk(disk, 1, 2)
    tiers = MemoryModel(config(8, 4, 8, loads=False), disk.disk)
    assert lookup(tiers, 1, 2) == {}
    request = tiers.admit(prompt(1, 2))
    assert request.lease.gaps(2) == [(0, 2)]
    tiers.settle()
    assert not tiers.moves(Read)
    tiers.prefill(request)
    tiers.release(request)
    assert lookup(tiers, 1, 2) == {"device": 2}


# ---- a failing disk


def test_reads_that_keep_failing_rest_the_disk_and_lookups_skip_it():
    tiers = model(device=8, host=4, disk=8, read_batch_blocks=1, disk_failures=2, disk_rest_s=30.0)
    on_disk(tiers, 1, 2)
    on_disk(tiers, 3, 4)
    tiers.admit(prompt(1, 2))
    tiers.plan()
    assert lookup(tiers, 3, 4) == {"disk": 2}
    for read in tiers.moves(Read):
        tiers.complete(read.number, error=DIED)
    assert lookup(tiers, 3, 4) == {}
    assert not stats(tiers, "disk")["ready"]
    tiers.now_s += 31.0
    tiers.plan()
    assert lookup(tiers, 3, 4) == {"disk": 2}
    assert stats(tiers, "disk")["ready"]


def test_one_good_read_between_failures_keeps_the_disk_in_use():
    tiers = model(device=8, host=4, disk=8, read_batch_blocks=1, disk_failures=2)
    on_disk(tiers, 1, 2, 3)
    tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    for read, error in zip(tiers.moves(Read), [DIED, None, DIED], strict=True):
        tiers.complete(read.number, error=error)
    assert stats(tiers, "disk")["ready"]


def test_writes_that_keep_failing_rest_and_begin_again():
    tiers = model(device=4, host=4, disk=8, disk_failures=2, disk_rest_s=30.0, write_batch_blocks=1)
    tiers.run(prompt(1, 2))
    sweep = tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    for demote in tiers.moves(Demote):
        tiers.complete(demote.number)
    tiers.plan()
    for write in tiers.moves(Write):
        tiers.complete(write.number, error=DIED)
    tiers.settle()
    assert sweep.done, "a sweep does not wait for a disk that rests"
    assert len(tiers.moves(Write)) == 2
    tiers.now_s += 31.0
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["DHK", "DHK"]


def test_a_sweep_ends_while_writes_keep_failing_though_the_disk_never_rests():
    tiers = model(device=4, host=4, disk=8, disk_failures=3, disk_rest_s=0.0, write_batch_blocks=1)
    tiers.run(prompt(1, 2))
    sweep = tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    for demote in tiers.moves(Demote):
        tiers.complete(demote.number)
    tiers.plan()
    while writes := [number for number, flight in tiers.flights.items() if isinstance(flight.move, Write)]:
        assert len(tiers.moves(Write)) < 10, "it tries for ever"
        tiers.complete(writes[0], error=DIED)
        tiers.plan()
    assert sweep.done
    assert sweep.num_left == 2
    sweep = tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    assert sweep.num_left == 0, "the next one tries again"


def test_what_could_not_be_copied_from_the_device_is_counted_as_left():
    tiers = model(device=4, host=4, disk=8)
    tiers.run(prompt(1, 2))
    sweep = tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.plan()
    for demote in tiers.moves(Demote):
        tiers.complete(demote.number, error=DIED)
    tiers.settle()
    assert sweep.done
    assert sweep.num_left == 2
    assert tiers.where(prompt(1, 2)) == ["D", "D"]


# ---- a disk that hangs


def test_a_read_that_hangs_is_computed_and_what_comes_in_the_end_is_kept():
    tiers = model(device=8, host=4, disk=8, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    request = tiers.admit(prompt(1, 2))
    tiers.plan()
    assert tiers.index.deadline_s() == 10.0
    tiers.now_s += 9.0
    tiers.plan()
    assert request.lease.num_loading == 2
    tiers.now_s += 1.0
    tiers.plan()
    assert request.lease.gaps(2) == [(0, 2)]
    assert tiers.index.stats()["failed_loads"] == {"overdue": 2}
    assert tiers.index.deadline_s() is None
    assert tiers.index.idle, "nobody waits for it"
    tiers.prefill(request)
    tiers.release(request)
    tiers.complete(tiers.moves(Read)[0].number)
    assert tiers.where(prompt(1, 2)) == ["DHK", "DHK"]


def test_a_block_that_hangs_in_a_read_is_waited_for_by_nobody():
    tiers = model(device=8, host=4, disk=8, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    first, second = tiers.admit(prompt(1, 2)), tiers.request(prompt(1, 2, 3))
    assert not tiers.try_to_admit(second)
    tiers.plan()
    tiers.now_s += 10.0
    tiers.plan()
    tiers.release(first)
    assert lookup(tiers, 1, 2) == {}
    assert tiers.try_to_admit(second)
    assert second.lease.gaps(3) == [(0, 3)]
    tiers.prefill(second)
    tiers.release(second)
    tiers.settle()
    assert lookup(tiers, 1, 2, 3) == {"device": 3}


def test_with_too_many_reads_that_hang_the_disk_is_off_until_they_end():
    tiers = model(device=8, host=6, disk=8, read_batch_blocks=1, io_deadline_s=10.0, max_overdue_reads=2)
    on_disk(tiers, 1, 2)
    on_disk(tiers, 3, 4)
    tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.now_s += 10.0
    tiers.plan()
    assert stats(tiers, "disk")["overdue_reads"] == 2
    assert not stats(tiers, "disk")["ready"]
    assert lookup(tiers, 3, 4) == {}
    tiers.complete(tiers.moves(Read)[0].number)
    assert lookup(tiers, 3, 4) == {"disk": 2}
    tiers.complete(tiers.moves(Read)[1].number, error=DIED)
    assert stats(tiers, "disk")["ready"]


def test_what_was_not_asked_for_when_the_disk_went_off_is_computed():
    tiers = model(
        device=8,
        host=6,
        disk=8,
        read_batch_blocks=1,
        read_budget_blocks=1,
        io_deadline_s=10.0,
        max_overdue_reads=1,
    )
    on_disk(tiers, 1, 2, 3)
    request = tiers.admit(prompt(1, 2, 3))
    tiers.plan()
    tiers.now_s += 10.0
    tiers.plan()
    assert len(tiers.moves(Read)) == 1
    assert request.lease.gaps(3) == [(0, 3)]
    assert tiers.index.stats()["failed_loads"] == {"overdue": 1, "tier_off": 2}


def test_a_load_that_gets_no_place_to_read_into_is_given_up():
    tiers = model(device=8, host=1, disk=8, io_deadline_s=10.0, max_overdue_reads=5)
    on_disk(tiers, 1)
    on_disk(tiers, 3)
    tiers.admit(prompt(1))
    tiers.plan()
    tiers.now_s += 5.0
    tiers.plan()
    other = tiers.admit(prompt(3))
    tiers.now_s += 5.0
    tiers.plan()
    assert other.lease.num_loading == 1, "the only place is taken by a read that hangs"
    tiers.now_s += 5.0
    tiers.plan()
    assert other.lease.gaps(1) == [(0, 1)]


def test_a_sweep_does_not_wait_for_a_write_that_hangs():
    tiers = model(device=4, host=4, disk=8, io_deadline_s=10.0)
    tiers.run(prompt(1, 2))
    sweep = tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.plan()
    tiers.complete(tiers.moves(Demote)[0].number)
    tiers.plan()
    assert tiers.moves(Write)
    tiers.now_s += 10.0
    tiers.plan()
    assert sweep.done
    assert not stats(tiers, "disk")["ready"]
    assert tiers.where(prompt(1, 2)) == ["H", "H"]
    tiers.complete(tiers.moves(Write)[0].number)
    assert tiers.where(prompt(1, 2)) == ["HK", "HK"]
    assert stats(tiers, "disk")["ready"]


def test_what_hangs_below_a_block_does_not_keep_its_place_on_the_device():
    """The block's last copy is on the device, and what follows it hangs in a read: it becomes a hole."""
    tiers = model(device=4, host=1, disk=8, io_deadline_s=10.0, max_overdue_reads=5)
    on_disk(tiers, 1, 2)
    first = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.complete(tiers.moves(Read)[0].number, misses={0: MissReason.ABSENT})
    tiers.plan()
    hanging = tiers.moves(Read)[1]
    tiers.now_s += 10.0
    tiers.plan()
    tiers.prefill(first)
    tiers.release(first)
    assert tiers.where(prompt(1, 2)) == ["D", "DK"]
    running = tiers.request(prompt(5, 6, 7))
    for _ in range(3):
        if tiers.try_to_admit(running):
            break
        tiers.plan()
    assert running.lease is not None
    assert tiers.where(prompt(1, 2))[0] == ""
    tiers.check()
    tiers.complete(hanging.number)
    tiers.check()


def test_loads_do_not_wait_for_writes_that_hang():
    tiers = model(device=4, host=6, disk=12, write_batch_blocks=1, write_budget_blocks=1, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    tiers.run(prompt(3, 4))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.plan()
    for demote in tiers.moves(Demote)[-1:]:
        tiers.complete(demote.number)
    tiers.plan()
    assert tiers.moves(Write)[-1].number in tiers.flights, "a write fills the budget, and hangs"
    request = tiers.request(prompt(1, 2))
    assert tiers.try_to_admit(request)
    tiers.plan()
    assert tiers.moves(Read)
    assert request.lease.num_loading == 2


def test_demotion_does_not_wait_where_hanging_reads_hold_all_of_host_memory():
    tiers = model(device=3, host=2, disk=8, io_deadline_s=10.0)
    on_disk(tiers, 1, 2)
    first = tiers.admit(prompt(1, 2))
    tiers.plan()
    tiers.now_s += 10.0
    tiers.plan()
    tiers.release(first)
    other = tiers.admit(prompt(3))
    tiers.prefill(other)
    tiers.release(other)
    tiers.admit(prompt(5, 6))  # at once
    assert tiers.where(prompt(3)) == []
    assert stats(tiers, "device")["dropped"] == 1


# ---- restart


def test_a_restart_finds_what_the_store_lists():
    before = model(device=8, host=4, disk=8)
    on_disk(before, 1, 2, 3)
    on_disk(before, 1, 2, 4)
    tiers = MemoryModel(before.config, before.disk)
    assert lookup(tiers, 1, 2, 3) == lookup(tiers, 1, 2, 4) == {"disk": 3}
    request = tiers.run(prompt(1, 2, 4))
    assert request.lease.num_cached_blocks == 3


def test_records_whose_parents_are_gone_are_forgotten_at_a_restart():
    before = model(device=8, host=4, disk=8)
    on_disk(before, 1, 2, 3)
    del before.disk[before.key_of((1, 1, 2, 2))]
    tiers = MemoryModel(before.config, before.disk)
    assert tiers.where(prompt(1, 2, 3)) == ["K"]
    tiers.settle()
    assert list(tiers.disk) == [tiers.key_of((1, 1))]


def test_a_smaller_disk_after_a_restart_keeps_the_blocks_that_were_written_last():
    before = model(device=8, host=4, disk=8)
    on_disk(before, 1, 2)
    before.now_s = 1.0
    on_disk(before, 3, 4)
    tiers = MemoryModel(config(8, 4, disk=2), before.disk, now_s=1.0)
    tiers.settle()
    assert lookup(tiers, 1, 2) == {}
    assert lookup(tiers, 3, 4) == {"disk": 2}
    assert len(tiers.disk) == 2
