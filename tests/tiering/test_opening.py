"""Host memory that becomes ready while it is in use."""

import threading

import pytest

from kvstore.host import HostSlab
from tests.tiering.slot_arrays import GIVE_UP_S
from tests.tiering.virtual_cuda import VirtualCuda
from tiering.transfer.opening import HostOpening
from tiering.transfer.page_locks import PageLocks
from tiering.transfer.virtual import VirtualDevice

BLOCK_BYTES = 1024
PIECE = 4
"""Slots: one page."""


@pytest.fixture
def slab():
    with HostSlab(10, BLOCK_BYTES, piece_bytes=1) as slab:
        assert slab.piece_slots == PIECE
        yield slab


@pytest.fixture
def runtime():
    runtime = VirtualCuda(VirtualDevice(lambda ready: ready[0]))
    with runtime.nothing_left():
        yield runtime


class Told:
    """What the cache is told; it can be made to take its time."""

    def __init__(self) -> None:
        self.sizes, self.done, self.go_on = [], threading.Event(), threading.Event()
        self.go_on.set()

    def tell(self, num_slots):
        self.sizes.append(num_slots)
        self.done.set()
        assert self.go_on.wait(GIVE_UP_S)


def locked_slots(runtime, slab):
    spans = sorted((span.start, len(span)) for span in runtime.locked.values())
    return [((start - slab.address) // BLOCK_BYTES, size // BLOCK_BYTES) for start, size in spans]


def test_it_begins_with_as_much_as_is_needed_and_goes_on_to_the_end(slab, runtime):
    locks, told = PageLocks(runtime), Told()
    with HostOpening(slab, 1, locks.lock) as opening:
        assert opening.num_slots == PIECE
        assert locked_slots(runtime, slab) == [(0, 4)]
        opening.start(told.tell)
        opening._thread.join(GIVE_UP_S)
        assert told.sizes == [8, 10]
        assert opening.is_locked and opening.refused is None
    assert locked_slots(runtime, slab) == [(0, 4), (4, 4), (8, 2)]
    locks.unlock_all()
    locks.unlock_all()


def test_what_a_start_needs_may_be_several_pieces(slab):
    with HostOpening(slab, PIECE + 1, None) as opening:
        assert opening.num_slots == 2 * PIECE


def test_without_a_gpu_nothing_is_locked(slab):
    told = Told()
    with HostOpening(slab, 1, None) as opening:
        assert not opening.is_locked
        opening.start(told.tell)
        opening._thread.join(GIVE_UP_S)
    assert told.sizes == [8, 10]


def test_closing_ends_it_after_the_piece_at_hand(slab):
    told = Told()
    told.go_on.clear()
    opening = HostOpening(slab, 1, None)
    opening.start(told.tell)
    assert told.done.wait(GIVE_UP_S)
    opening._stopping.set()
    told.go_on.set()
    opening.close()
    opening.close()
    assert told.sizes == [8]


def test_where_nothing_can_be_locked_it_goes_on_without(slab, runtime):
    runtime.max_locked_bytes = 100
    told = Told()
    with HostOpening(slab, 1, PageLocks(runtime).lock) as opening:
        assert not opening.is_locked
        assert "out of memory" in opening.refused
        opening.start(told.tell)
        opening._thread.join(GIVE_UP_S)
    assert told.sizes == [8, 10], "copies go by way of buffers"


def test_where_some_of_it_can_be_locked_that_is_all_there_is(slab, runtime, caplog):
    runtime.max_locked_bytes = 2 * PIECE * BLOCK_BYTES
    locks, told = PageLocks(runtime), Told()
    with HostOpening(slab, 1, locks.lock) as opening:
        opening.start(told.tell)
        opening._thread.join(GIVE_UP_S)
        assert opening.is_locked
    assert told.sizes == [8]
    assert "host memory stays at 8 of 10 blocks" in caplog.text
    locks.unlock_all()


def test_a_tier_that_is_off_needs_nothing(runtime):
    with HostSlab(0, BLOCK_BYTES) as slab, HostOpening(slab, 8, PageLocks(runtime).lock) as opening:
        opening.start(Told().tell)
        assert opening.num_slots == 0
