"""The host slab."""

import numpy as np
import pytest

from kvstore import HostSlab, SlotMemory
from kvstore.disk.page_cache import pages_absent


def test_slots_are_views_of_one_run_of_memory():
    with HostSlab(3, 1000) as slab:
        memory: SlotMemory = slab
        views = [memory.view(slot) for slot in range(3)]
        assert [view.ctypes.data - slab.address for view in views] == [0, 1000, 2000]
        for slot, view in enumerate(views):
            assert view.shape == (1000,)
            assert view.dtype == np.uint8
            assert not view.any()
            view[:] = slot + 1
        assert [int(slab.view(slot).sum()) for slot in range(3)] == [1000, 2000, 3000]
        assert slab.num_bytes == 3000


def test_prefault_keeps_what_slots_hold():
    with HostSlab(8, 5000, piece_bytes=5000) as slab:
        slab.view(2)[:] = 7
        for number in range(slab.num_pieces):
            slab.prefault(number)
        assert int(slab.view(2).sum()) == 35_000
        assert not slab.view(1).any()


@pytest.mark.parametrize(
    ("block_bytes", "piece_bytes", "slots"),
    [(4096, 4096, 1), (1000, 1, 512), (6144, 10_000, 2), (6144, 13_000, 4), (5000, 5000, 512)],
)
def test_pieces_begin_at_whole_pages(block_bytes, piece_bytes, slots):
    with HostSlab(3 * slots + 1, block_bytes, piece_bytes) as slab:
        assert slab.piece_slots == slots
        assert slab.piece_slots * block_bytes % 4096 == 0
        assert [slab.piece(number) for number in range(slab.num_pieces)] == [
            (0, slots),
            (slots, 2 * slots),
            (2 * slots, 3 * slots),
            (3 * slots, 3 * slots + 1),
        ]


def test_prefault_takes_the_pages_of_one_piece():
    """As the system counts them."""
    with HostSlab(64, 1 << 20, piece_bytes=16 << 20) as slab:
        slab.prefault(1)
        absent = [pages_absent(slab.address + slot * (1 << 20), 1 << 20) for slot in range(64)]
        assert absent == 16 * [256] + 16 * [0] + 32 * [256]


def test_slots_outside_are_refused():
    with HostSlab(2, 10) as slab:
        for slot in (-1, 2):
            with pytest.raises(IndexError, match=str(slot)):
                slab.view(slot)


def test_no_slots_is_a_tier_that_is_off():
    with HostSlab(0, 10) as slab:
        assert slab.num_pieces == 0
        with pytest.raises(IndexError):
            slab.view(0)


def test_sizes_that_make_no_sense_are_refused():
    for num_slots, block_bytes in ((-1, 10), (1, 0)):
        with pytest.raises(ValueError, match="num_slots"):
            HostSlab(num_slots, block_bytes)


def test_closing_twice_is_safe_and_leaves_living_views_alone():
    slab = HostSlab(2, 10)
    view = slab.view(1)
    slab.close()
    slab.close()
    view[:] = 1
    assert int(view.sum()) == 10
    with pytest.raises(AssertionError, match="close"):
        slab.view(0)
