"""What the core promises of the tiers, one example for each promise. `test_index` tries to break them all at once."""

from dataclasses import replace

import pytest

from tests.tiering.memory_model import DIED
from tests.tiering.small_tiers import (
    BLOCK_TOKENS,
    RECORD_BYTES,
    lookup,
    model,
    on_disk,
    prompt,
    stats,
)
from tiering.index_config import IndexConfig
from tiering.leases import Wait
from tiering.moves import Demote, Read, Write
from tiering.residency import Tier

# ---- eviction


def test_an_evicted_block_moves_down_and_the_tiers_hold_different_blocks():
    tiers = model(device=3, host=2)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    assert tiers.where(prompt(1, 2)) == ["H", "H"]
    assert tiers.where(prompt(3, 4)) == ["D", "D"]
    assert stats(tiers, "device")["dropped"] == stats(tiers, "host")["dropped"] == 0


def test_a_request_waits_until_the_copies_that_make_its_room_have_ended():
    tiers = model(device=3, host=2)
    tiers.run(prompt(1, 2))
    request = tiers.request(prompt(3, 4))
    assert not tiers.try_to_admit(request)
    assert request.wait is Wait.FOR_ROOM
    tiers.plan()
    assert not tiers.try_to_admit(request), "the slots are still being read"
    assert len(tiers.moves(Demote)) == 1, "the same blocks are not asked to leave twice"
    tiers.settle()
    assert tiers.try_to_admit(request)


def test_a_block_that_is_used_while_it_leaves_stays():
    tiers = model(device=3, host=2)
    tiers.run(prompt(1, 2))
    assert not tiers.try_to_admit(tiers.request(prompt(3, 4)))
    tiers.plan()
    user = tiers.admit(prompt(1))
    tiers.prefill(user)
    tiers.release(user)
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["DH", "H"]


def test_a_block_with_a_copy_below_is_dropped_without_a_move():
    tiers = model(device=3, host=4)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=False)
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["DH", "DH"]
    copies = len(tiers.moves(Demote))
    tiers.admit(prompt(3, 4))  # at once: nothing had to be copied
    tiers.settle()
    assert len(tiers.moves(Demote)) == copies
    assert tiers.where(prompt(1, 2)) == ["H", "H"]


def test_leaves_go_before_their_parents_and_the_least_recently_used_first():
    tiers = model(device=5)
    tiers.run(prompt(1, 2, 3))
    tiers.run(prompt(1))
    tiers.run(prompt(8, 9))
    assert tiers.where(prompt(1, 2, 3)) == ["D", "D"], "3 is the oldest leaf"
    tiers.run(prompt(7))
    assert tiers.where(prompt(1, 2, 3)) == ["D"], "2 became one"
    assert tiers.where(prompt(8, 9)) == ["D", "D"]


def test_a_running_request_keeps_its_blocks():
    tiers = model(device=4)
    running = tiers.admit(prompt(1, 2))
    tiers.prefill(running)
    other = tiers.request(prompt(3))
    assert not tiers.try_to_admit(other)
    assert other.wait is Wait.FOR_ROOM
    tiers.release(running)
    assert tiers.try_to_admit(other)


def test_nothing_leaves_for_a_request_that_would_not_fit_even_then():
    tiers = model(device=5)
    running = tiers.admit(prompt(1, 2))
    tiers.prefill(running)
    tiers.run(prompt(3))
    assert not tiers.try_to_admit(tiers.request(prompt(5, 6)))
    assert tiers.where(prompt(3)) == ["D"]


def test_without_a_place_below_a_block_is_dropped_and_counted():
    tiers = model(device=3)
    tiers.run(prompt(1, 2))
    tiers.run(prompt(3, 4))
    assert tiers.where(prompt(1, 2)) == []
    assert stats(tiers, "device")["dropped"] == 2


def test_the_host_copies_of_a_prefix_do_not_make_room_for_its_own_admission():
    tiers = model(device=4, host=2, disk=8)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.DISK, then_free=False)
    tiers.settle()
    tiers.run(prompt(3, 4, 5))
    assert tiers.where(prompt(1, 2)) == ["HK", "HK"]
    request = tiers.run(prompt(1, 2))
    assert request.lease.cached_blocks_by_tier() == {"device": 0, "host": 2, "disk": 0}
    assert not tiers.moves(Read)


# ---- writing down


def test_host_memory_is_written_ahead_of_need():
    tiers = model(device=3, host=4, disk=20)
    for name in range(0, 8, 2):
        tiers.run(prompt(name, name + 1))
        assert tiers.index._holdings.num_dirty_host <= 2, "half of the host's slots are free or clean"
    assert tiers.moves(Write)
    assert stats(tiers, "host")["dropped"] == 0
    assert lookup(tiers, 0, 1) == {"disk": 2}
    assert lookup(tiers, 4, 5) == {"host": 2}
    assert lookup(tiers, 6, 7) == {"device": 2}


def test_a_block_whose_write_failed_stays_in_host_memory_and_is_written_later():
    tiers = model(device=4, host=4, disk=8)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.plan()
    tiers.complete(tiers.moves(Write)[0].number, error=DIED)
    assert tiers.where(prompt(1, 2)) == ["H", "H"]
    assert stats(tiers, "disk")["failed_writes"] == 2
    assert stats(tiers, "disk")["bytes"] == 0, "what was reserved is given back"
    tiers.settle()
    assert tiers.where(prompt(1, 2)) == ["K", "K"]


def test_what_went_to_the_disk_and_came_back_is_counted():
    """Failed writes, and reads of what did not arrive, are not."""
    tiers = model(device=4, host=4, disk=8)
    tiers.run(prompt(1, 2))
    assert stats(tiers, "disk")["written_by_read"] is None
    on_disk(tiers, 1, 2)
    written = stats(tiers, "disk")["bytes"]
    assert stats(tiers, "disk")["written_bytes"] == written
    assert stats(tiers, "disk")["read_bytes"] == 0
    for _ in range(2):
        tiers.run(prompt(1, 2))
        tiers.index.sweep(Tier.DISK, then_free=True)
        tiers.settle()
    assert stats(tiers, "disk")["written_bytes"] == written, "what is there is not written again"
    assert stats(tiers, "disk")["read_bytes"] == 2 * written
    assert stats(tiers, "disk")["written_by_read"] == 0.5


def test_no_more_waits_to_be_written_than_the_queue_takes():
    tiers = model(device=8, host=8, disk=64, write_budget_blocks=4, write_batch_blocks=2)
    tiers.run(prompt(1, 2, 3, 4, 5, 6))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.plan()
    assert stats(tiers, "disk")["writing_blocks"] == 4
    tiers.settle()
    assert stats(tiers, "disk")["writing_blocks"] == 0
    assert lookup(tiers, 1, 2, 3, 4, 5, 6) == {"disk": 6}


def test_a_full_disk_gives_up_the_least_recently_used():
    tiers = model(device=4, host=4, disk=4)
    on_disk(tiers, 1, 2)
    on_disk(tiers, 3, 4)
    on_disk(tiers, 5, 6)
    assert tiers.where(prompt(1, 2)) == []
    assert stats(tiers, "disk")["bytes"] == 4 * RECORD_BYTES
    assert len(tiers.disk) == 4
    assert lookup(tiers, 3, 4) == {"disk": 2}


def test_on_a_full_disk_no_block_takes_the_place_of_one_that_was_used_later():
    tiers = model(device=4, host=4, disk=2)
    tiers.run(prompt(1, 2))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.run(prompt(3, 4))
    tiers.index.sweep(Tier.DISK, then_free=True)
    tiers.settle()
    assert lookup(tiers, 3, 4) == {"disk": 2}
    assert lookup(tiers, 1, 2) == {"host": 2}


# ---- sharing


def test_who_shares_a_prefix_that_is_being_computed_waits_and_is_served():
    tiers = model(device=8)
    first, second = tiers.admit(prompt(1, 2)), tiers.request(prompt(1, 2, 3))
    assert not tiers.try_to_admit(second)
    assert second.wait is Wait.FOR_BLOCKS
    tiers.prefill(first)
    assert tiers.try_to_admit(second)
    assert second.lease.gaps(3) == [(2, 3)]
    assert second.lease.slots[:2].tolist() == first.lease.slots[:2].tolist()


@pytest.mark.parametrize("computed", [0, 1])
def test_if_who_computes_ends_early_the_waiting_request_takes_over(computed):
    tiers = model(device=8)
    first, second = tiers.admit(prompt(1, 2)), tiers.request(prompt(1, 2, 3))
    assert not tiers.try_to_admit(second)
    tiers.compute(first, 0, computed)
    tiers.publish(first, 0, computed)
    tiers.release(first)
    assert tiers.try_to_admit(second)
    assert second.lease.num_cached_blocks == computed
    assert second.lease.gaps(3) == [(computed, 3)]
    tiers.prefill(second)
    tiers.check()


@pytest.mark.parametrize("computed", [False, True])
def test_a_block_that_two_requests_compute_is_kept_whichever_ends_first(computed):
    """Neither could wait for it: it ends both prompts, and one token is always computed."""
    tiers = model(device=8)
    first = tiers.admit([1, 1, 2, 2])
    tiers.compute(first, 0, 1)
    tiers.publish(first, 0, 1)
    second = tiers.admit([1, 1, 2, 2])
    assert second.lease.slots[1] != first.lease.slots[1]
    if computed:
        tiers.prefill(second)
    tiers.release(first)
    assert lookup(tiers, 1, 2) == {"device": 1}
    if not computed:
        tiers.prefill(second)
    tiers.release(second)
    assert tiers.where([1, 1, 2, 2]) == ["D", "D"]
    assert stats(tiers, "device")["free"] == 6


def test_a_reply_is_found_by_the_prompt_that_continues_it():
    tiers = model(device=6)
    request = tiers.admit(prompt(1), num_blocks=3)
    tiers.prefill(request)
    tiers.reply(request, [99])
    tiers.release(request)
    assert tiers.where([1, 1, 99, 99]) == ["D", "D"]


# ---- the whole cache


def test_clear_forgets_everything_but_what_is_in_use():
    tiers = model(device=8, host=4, disk=8)
    on_disk(tiers, 1, 2)
    running = tiers.admit(prompt(3))
    tiers.prefill(running)
    assert not tiers.index.clear()
    assert lookup(tiers, 1, 2) == {}
    assert lookup(tiers, 3) == {"device": 1}
    tiers.release(running)
    assert tiers.index.clear()
    tiers.settle()
    assert not tiers.disk
    assert stats(tiers, "device")["free"] == 8


def test_a_new_sweep_ends_the_one_before():
    tiers = model(device=4, host=4)
    first = tiers.index.sweep(Tier.HOST, then_free=False)
    second = tiers.index.sweep(Tier.HOST, then_free=False)
    assert first.done
    assert not second.done
    tiers.settle()
    assert second.done


# ---- what a user may not ask for


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"device_slots": 0, "host_slots": 0}, "at least one block, not 0"),
        ({"device_slots": 1, "host_slots": 0, "disk_bytes": 10, "record_bytes": 1}, "host_slots is 0"),
        ({"device_slots": 1, "host_slots": 1, "disk_bytes": 10}, "record_bytes must be given"),
    ],
)
def test_sizes_that_cannot_work_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        IndexConfig(block_tokens=BLOCK_TOKENS, **sizes)


_LARGE_TIERS = IndexConfig(
    block_tokens=1, device_slots=1, host_slots=1 << 20, disk_bytes=1 << 50, record_bytes=1 << 10
)
"""Blocks are small."""


@pytest.mark.parametrize(
    ("changed", "blocks"),
    [
        ({}, 64),
        ({"write_batch_blocks": 3}, 3),
        # of the disk, or its files outgrow what is in them
        *(
            ({"disk_bytes": 1024 * n}, most)
            for n, most in ((1, 1), (399, 1), (400, 2), (3200, 16), (12_800, 64))
        ),
        ({"disk_bytes": 100 * 1024, "write_batch_share": 0.5}, 50),
        ({"disk_bytes": 0}, 1),
        # in bytes: 5 MB a block are those of large models
        *(
            ({"record_bytes": size}, most)
            for size, most in ((256 << 10, 64), (372_736, 45), (5 << 20, 3), (1 << 30, 1))
        ),
        # of host memory, as it cannot be had for anything else meanwhile
        *(({"host_slots": n}, most) for n, most in ((1, 1), (8, 8), (64, 16), (256, 32), (512, 64))),
        ({"host_slots": 64, "write_host_share": 0.5}, 32),
        ({"host_slots": 64, "write_least_blocks": 1}, 8),
        # of what may wait, as one waits while another is written
        *(({"write_budget_blocks": n}, most) for n, most in ((1, 1), (2, 1), (3, 2), (91, 46), (128, 64))),
    ],
)
def test_a_write_is_of_many_blocks_and_a_small_part_of_all_that_it_uses(changed, blocks):
    assert replace(_LARGE_TIERS, **changed).blocks_per_write == blocks


def test_another_write_waits_until_there_is_room_for_a_whole_batch():
    """What is left of the queue would be a commit for a block or two, again and again."""
    tiers = model(device=16, host=16, disk=64, clean_share=0.0, write_budget_blocks=5, write_batch_blocks=2)
    tiers.run(prompt(*range(10)))
    tiers.index.sweep(Tier.HOST, then_free=True)
    tiers.settle()
    tiers.index.change(clean_share=1.0)
    tiers.settle()
    assert [len(move.ids) for move in tiers.moves(Write)] == [2] * 5
    assert lookup(tiers, *range(10)) == {"host": 10}


def test_a_request_that_never_fits_is_refused():
    tiers = model(device=3)
    with pytest.raises(ValueError, match="4 blocks will never fit into 3"):
        tiers.admit(prompt(1, 2, 3), 4)
    with pytest.raises(ValueError, match="7 tokens need more than 3 blocks"):
        tiers.admit(prompt(1, 2, 3), 3)
    assert tiers.index.stats()["leases"] == 0
