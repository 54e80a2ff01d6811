"""Memory that grows has what it had, and zeros behind; who holds an array over it keeps that."""

import mmap

import numpy as np
import pytest

from tiering.pages import GrowingPages


@pytest.mark.parametrize("num_pages", [1, 3, 2000])
def test_what_was_written_is_there_after_growing_and_zeros_behind(num_pages):
    """Of 2,000 pages, it is asked for huge ones."""
    had = num_pages * mmap.PAGESIZE
    pages = GrowingPages(had)
    written = np.random.default_rng(0).integers(0, 2**31, had // 4, dtype=np.int32)
    pages.array(np.int32)[:] = written
    pages.grow(2 * had)
    assert len(pages) == 2 * had
    array = pages.array(np.int32)
    assert np.array_equal(array[: len(written)], written)
    assert not array[len(written) :].any()
    array[:] = 1


def test_what_there_is_no_room_for_is_refused_and_changes_nothing():
    pages = GrowingPages(4)
    pages.array(np.int32)[:] = 7
    with pytest.raises(MemoryError, match="no room"):
        pages.grow(2**62)
    assert pages.array(np.int32).tolist() == [7]


def test_who_holds_an_array_keeps_what_was_there():
    pages = GrowingPages(12)
    held = pages.array(np.int32)
    held[:] = 1, 2, 3
    pages.grow(20)
    pages.array(np.int32)[:] = 4
    assert held.tolist() == [1, 2, 3]
    assert pages.array(np.int32).tolist() == [4] * 5


def test_what_is_held_is_there_in_the_larger_one():
    pages = GrowingPages(12)
    held = pages.array(np.int32)
    held[:] = 1, 2, 3
    pages.grow(20)
    assert pages.array(np.int32).tolist() == [1, 2, 3, 0, 0]
