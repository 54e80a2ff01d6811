"""Pages that are there before they are touched."""

import mmap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kvstore import pages as module
from kvstore.disk.page_cache import pages_absent
from kvstore.pages import BITE_BYTES, Pages, Taking

MIB = 1 << 20
NUM_PAGES = MIB // mmap.PAGESIZE
"""In a MiB."""


@pytest.fixture(params=["by the kernel", "by touching"])
def way(request, monkeypatch):
    """Kernels before 5.14 have no call for it."""
    if request.param == "by touching":
        monkeypatch.setattr(module, "populated", lambda address, num_bytes: False)


def absent(pages, begin=0, end=None):
    return pages_absent(pages.address + begin, (len(pages.bytes) if end is None else end) - begin)


def test_taking_keeps_what_pages_hold(way):
    pages = Pages(9 * MIB + 5)
    pages.bytes[::1000] = np.arange(len(pages.bytes[::1000])) % 251
    before = pages.bytes.copy()
    pages.take(mmap.PAGESIZE, len(pages.bytes))
    assert np.array_equal(pages.bytes, before)


def test_what_the_kernel_has_no_memory_for_is_left_to_who_touches_it(monkeypatch):
    """It is not written to, as others may be writing there."""
    pages, populated = Pages(2 * BITE_BYTES), module.populated
    monkeypatch.setattr(
        module,
        "populated",
        lambda address, num_bytes: num_bytes < BITE_BYTES and populated(address, num_bytes),
    )
    assert pages.may_be_used_meanwhile
    pages.take(BITE_BYTES, 2 * BITE_BYTES)
    assert absent(pages, BITE_BYTES) == BITE_BYTES // mmap.PAGESIZE


def test_what_is_taken_is_zeros_and_no_more_than_was_asked_for(way):
    pages = Pages(16 * MIB)
    assert absent(pages) == 16 * NUM_PAGES
    end = 8 * MIB + BITE_BYTES + 1
    pages.take(8 * MIB, end)
    assert not absent(pages, 8 * MIB, end)
    assert absent(pages) == 16 * NUM_PAGES - BITE_BYTES // mmap.PAGESIZE - 1
    assert not pages.bytes[8 * MIB : end].any()


def test_memory_that_is_not_there_is_refused():
    with pytest.raises(OSError, match="Cannot allocate memory"):
        Pages(1 << 50)


def test_the_memory_goes_with_the_last_array_that_shows_it():
    pages = Pages(16 * MIB)
    pages.bytes[7] = 3
    address, part = pages.address, pages.bytes[5:9]
    del pages
    assert _is_mapped(address)
    assert part.tolist() == [0, 0, 3, 0]
    del part
    assert not _is_mapped(address)


def _is_mapped(address):
    maps = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    return any(begin <= address < end for begin, end in spans)


def test_what_is_given_back_is_the_systems_again_and_zeros_when_touched():
    pages = Pages(4 * MIB)
    pages.bytes[:] = 3
    pages.give_back(MIB + 1)
    assert absent(pages) == 3 * NUM_PAGES - 1
    assert pages.bytes[: MIB + mmap.PAGESIZE].min() == 3
    assert not pages.bytes[MIB + mmap.PAGESIZE :].any()
    pages.give_back(4 * MIB)


def test_a_thread_takes_all_of_it(way):
    pages = Pages(24 * MIB)
    taking = Taking(pages, 20 * MIB - 1)
    taking.wait()
    assert (taking.taken_bytes, taking.left_bytes) == (20 * MIB - 1, 0)
    assert not absent(pages, 0, 20 * MIB)
    assert absent(pages) == 4 * NUM_PAGES
    taking.wait()
    taking.close()


def test_closing_ends_it_after_the_bite_at_hand(monkeypatch):
    closing, begun = [], threading.Event()

    def populated(address, num_bytes):
        assert begun.wait(30)
        closing[0].start()
        while taking._end > BITE_BYTES:
            pass
        return True

    monkeypatch.setattr(module, "populated", populated)
    taking = Taking(Pages(64 * MIB), 64 * MIB)
    closing.append(threading.Thread(target=taking.close))
    begun.set()
    taking._thread.join(30)
    closing[0].join(30)
    assert taking.taken_bytes == BITE_BYTES
    taking.wait()
    assert taking.taken_bytes == BITE_BYTES


def test_while_it_rests_nothing_is_taken(monkeypatch):
    """Save the bite at hand; closing it ends it all the same."""
    begun, go_on = threading.Event(), threading.Event()

    def populated(address, num_bytes):
        begun.set()
        return go_on.wait(30)

    monkeypatch.setattr(module, "populated", populated)
    taking = Taking(Pages(64 * MIB), 64 * MIB)
    assert begun.wait(30)
    with taking.resting():
        go_on.set()
        assert taking.left_bytes == 64 * MIB - BITE_BYTES
        taking._thread.join(0.01)
        assert taking.taken_bytes == BITE_BYTES
    taking.wait()
    assert taking.left_bytes == 0
    with Taking(Pages(64 * MIB), 64 * MIB) as other, other.resting():
        other.close()
        assert not other._thread.is_alive()


def test_others_have_the_interpreter_while_pages_are_taken(monkeypatch):
    """With all of it in one bite: a call that kept the lock would stop this thread for as long as it takes."""
    pages, spans = Pages(200 * MIB), []
    monkeypatch.setattr(module, "BITE_BYTES", len(pages.bytes))

    def take():
        begun_s = time.perf_counter()
        pages.take(0, len(pages.bytes))
        spans.append(time.perf_counter() - begun_s)

    taker = threading.Thread(target=take)
    longest_s, last_s = 0.0, time.perf_counter()
    taker.start()
    while not spans:
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    taker.join()
    assert longest_s < spans[0] / 2
