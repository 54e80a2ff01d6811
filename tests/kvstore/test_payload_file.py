"""Records that are not in memory are read from the file: the same blocks, the same verdicts, and damage on the way is none."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import BlockLayout, MissReason, StoreFailed
from kvstore.disk import payload_file, tree
from kvstore.disk.buffers import huge_pages
from kvstore.disk.page_cache import drop, share_absent
from kvstore.testing import assert_holds, fill, noise, read, reasons
from kvstore.testing.laws import LAWS
from tests.kvstore.conftest import CAPACITY_BYTES, LAYOUT, MASTER_KEY, absent_by, lmdb_store, read_by

LARGE = BlockLayout(num_layers=8, num_kv_heads=4, head_dim=64, dtype="bfloat16", block_tokens=16)


@pytest.fixture
def nothing_in_memory(monkeypatch):
    """As far as the store can tell."""
    absent_by(monkeypatch, lambda address, num_bytes: 1)


@pytest.fixture
def requests(monkeypatch):
    """The reads of files that were made: where each began, and of how many bytes."""
    made, preadv = [], os.preadv

    def noted(file, buffers, offset):
        made.append((offset, len(buffers[0])))
        return preadv(file, buffers, offset)

    read_by(monkeypatch, noted)
    return made


def data_file(path: Path) -> Path:
    return path / "v1" / "payload" / "data.mdb"


@pytest.mark.parametrize("head_dim", [LAYOUT.head_dim, 32], ids=["one by one", "many at once"])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_store_that_reads_files_keeps_the_laws(law, head_dim, nothing_in_memory, tmp_path):
    with lmdb_store(
        tmp_path, layout=replace(LAYOUT, head_dim=head_dim), capacity_bytes=2 * CAPACITY_BYTES
    ) as store:
        law(store, store.raw())


@pytest.mark.parametrize("form", ["plain", "encrypted"])
def test_both_ways_read_the_same(open_lmdb, monkeypatch, requests, form):
    """Blocks in memory, in the file, absent and damaged, in one batch and any order."""
    store = open_lmdb(master_key=MASTER_KEY if form == "encrypted" else None)
    refs, blocks = fill(store, 12)
    store.delete_many([refs[3].key])
    order = np.random.default_rng(0).permutation(len(refs)).tolist()

    def some_absent(address: int, num_bytes: int) -> int:
        return sum(page // 4 % 3 > 0 for page in range(address // 4096, -(-(address + num_bytes) // 4096)))

    for absent in (lambda address, num_bytes: 0, some_absent):
        absent_by(monkeypatch, absent)
        requests.clear()
        outcomes, out = read(store, [refs[number] for number in order])
        for number, outcome, block in zip(order, outcomes, out, strict=True):
            assert outcome.hit == (number != 3)
            assert number == 3 or np.array_equal(block, blocks[number])
    assert requests
    store.raw().corrupt(refs[5].key)
    found = reasons(store, refs)
    assert found[5] is MissReason.DAMAGED_CHECKSUM
    assert [n for n, reason in enumerate(found) if reason is not None] == [3, 5]


def test_what_lies_together_is_read_at_once_and_in_order(open_lmdb, nothing_in_memory, requests, monkeypatch):
    """However it is asked for; a request has its bounds; every one begins at a page."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 512 << 10)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 16)
    assert_holds(store, refs[::-1], blocks[::-1])
    requests.sort()  # several are on their way
    assert all(begin + size <= then for (begin, size), (then, _) in pairwise(requests))
    assert all(begin % 4096 == num_bytes % 4096 == 0 for begin, num_bytes in requests)
    assert len(requests) < len(refs) / 2
    assert max(num_bytes for _, num_bytes in requests) <= 512 << 10


def test_a_record_longer_than_a_request_is_one(open_lmdb, nothing_in_memory, requests, monkeypatch):
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 3)
    assert_holds(store, refs, blocks)
    assert len(requests) == 3


def test_while_one_request_is_looked_at_others_read_on(open_lmdb, nothing_in_memory, monkeypatch):
    """By as many threads as there are for that: here none ends before each has begun."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 12)
    preadv, together, names = os.preadv, threading.Barrier(payload_file._READERS), []

    def waiting(file, buffers, offset):
        names.append(threading.current_thread().name)
        if len(names) <= together.parties:
            together.wait(10.0)
        return preadv(file, buffers, offset)

    read_by(monkeypatch, waiting)
    assert_holds(store, refs, blocks)
    assert len(names) == len(refs)
    assert len(set(names[: together.parties])) == together.parties


def test_reads_begin_before_what_is_in_memory_is_looked_at(open_lmdb, monkeypatch):
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    assert_holds(store, refs, blocks)
    begun, preadv, unpack, seen = threading.Event(), os.preadv, store._format.unpack, []

    def noted(file, buffers, offset):
        begun.set()
        return preadv(file, buffers, offset)

    def waiting(record, ref, out):
        seen.append(begun.wait(10.0))
        return unpack(record, ref, out)

    pages = -(-(store.stats().stored_bytes // len(refs) + tree.VALUE_OFFSET) // 4096)
    begins: list[int] = []

    def behind_the_second(address: int, num_bytes: int) -> bool:
        begins.append(address)
        return address - begins[0] >= 2 * pages * 4096

    absent_by(monkeypatch, behind_the_second)
    read_by(monkeypatch, noted)
    monkeypatch.setattr(store._format, "unpack", waiting)
    assert_holds(store, refs, blocks)
    assert seen == [True] * 6


def test_what_the_walk_is_not_sure_of_lmdb_is_asked_for(open_lmdb, nothing_in_memory, monkeypatch, requests):
    """Some, and all."""
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    assert_holds(store, refs, blocks)
    find, every = tree.finding(), [1]

    def unsure(*arguments: Any):
        find(*arguments)
        arguments[7][:: every[0]] = -1

    monkeypatch.setattr(tree, "finding", lambda: unsure)
    for every[0], are_read in ((2, True), (1, False)):
        requests.clear()
        assert_holds(store, refs, blocks)
        assert bool(requests) is are_read


def test_where_the_walk_finds_what_lmdb_does_not_it_counts_as_absent_unless_it_is_proven(
    open_lmdb, nothing_in_memory, monkeypatch
):
    """As it may in a tree that is damaged: another record's place is no record of this block."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    others, _ = fill(store, 1, seed=1)
    store.delete_many([others[0].key])
    find = tree.finding()

    def misled(*arguments: Any):
        find(*arguments)
        firsts, sizes = arguments[7:]
        firsts[:], sizes[:] = firsts.max(), sizes[firsts.argmax()]

    monkeypatch.setattr(tree, "finding", lambda: misled)
    assert reasons(store, [*refs, *others]) == [None] * 4 + [MissReason.ABSENT]
    assert store.stats().damaged_blocks == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_more_values_are_looked_at_at_once_than_there_are_cores(open_lmdb, monkeypatch, in_memory):
    """And while a read waits for the disk it takes nobody's place."""
    absent_by(monkeypatch, lambda address, num_bytes: not in_memory)
    monkeypatch.setattr(payload_file, "num_cores", lambda: 1)
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    store = open_lmdb()
    refs, blocks = fill(store, 6)
    turns, unpack, preadv = store._tables._payload._at_once, store._format.unpack, os.preadv
    free = []

    def looking(record, ref, out):
        free.append(turns._left.qsize())
        return unpack(record, ref, out)

    def reading(file, buffers, offset):
        free.append(1 - turns._left.qsize() if threading.current_thread() is threading.main_thread() else 0)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(store._format, "unpack", looking)
    read_by(monkeypatch, reading)
    assert_holds(store, refs, blocks)
    assert free == [0] * (len(refs) if in_memory else 2 * len(refs))
    assert turns._left.qsize() == 1


def test_a_read_ahead_that_fails_fails_the_batch_and_leaves_nothing_behind(
    open_lmdb, nothing_in_memory, monkeypatch
):
    """What was not begun with is not read any more."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    monkeypatch.setattr(payload_file, "READS_AHEAD", 4)
    preadv, begun, ended = os.preadv, [], []

    def failing(file, buffers, offset):
        begun.append(offset)
        try:
            if begun[2:3] == [offset]:
                raise OSError(errno.EIO, "input/output error")
            return preadv(file, buffers, offset)
        finally:
            ended.append(offset)

    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes) as store:
        refs, blocks = fill(store, 12)
        readers = store._tables._payload._readers
        with monkeypatch.context() as broken:
            read_by(broken, failing)
            with pytest.raises(StoreFailed, match="input/output error"):
                read(store, refs)
        assert_holds(store, refs, blocks)
    readers.check()
    assert sorted(begun) == sorted(ended)
    assert len(begun) < len(refs)


def hang_at(monkeypatch, offsets: set[int]) -> tuple[threading.Semaphore, threading.Event]:
    """Reads from there do not end before the event is set. The semaphore counts those that have begun."""
    preadv, begun, go_on = os.preadv, threading.Semaphore(0), threading.Event()

    def hanging(file, buffers, offset):
        if offset in offsets:
            begun.release()
            assert go_on.wait(10.0)
        return preadv(file, buffers, offset)

    read_by(monkeypatch, hanging)
    return begun, go_on


def test_reads_that_hang_do_not_stop_the_calls_of_others(open_lmdb, nothing_in_memory, monkeypatch, requests):
    """Though they have all of the threads that read ahead."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    monkeypatch.setattr(payload_file, "_READERS", 2)
    monkeypatch.setattr(payload_file, "_MOST_WAIT_S", 0.0)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 12)
    assert_holds(store, refs[:3], blocks[:3])
    begun, go_on = hang_at(monkeypatch, {offset for offset, _ in requests})
    with ThreadPoolExecutor(1) as other:
        hanging = other.submit(assert_holds, store, refs[:3], blocks[:3])
        for _ in range(payload_file._READERS):
            assert begun.acquire(timeout=10.0)
        assert_holds(store, refs[3:], blocks[3:])
        go_on.set()
        hanging.result()


def test_a_value_that_cannot_be_looked_at_does_not_stop_others(open_lmdb, monkeypatch):
    """As where the system let go of its page before it was looked at, and the disk hangs."""
    monkeypatch.setattr(payload_file, "num_cores", lambda: 1)
    monkeypatch.setattr(payload_file, "_MOST_WAIT_S", 0.0)
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    unpack, begun, go_on = store._format.unpack, threading.Event(), threading.Event()

    def hanging(record, ref, out):
        if ref == refs[0]:
            begun.set()
            assert go_on.wait(10.0)
        return unpack(record, ref, out)

    monkeypatch.setattr(store._format, "unpack", hanging)
    with ThreadPoolExecutor(1) as other:
        job = other.submit(assert_holds, store, refs[:1], blocks[:1])
        assert begun.wait(10.0)
        assert_holds(store, refs[1:], blocks[1:])
        go_on.set()
        job.result()
    assert store._tables._payload._at_once._left.qsize() == 1


@pytest.mark.parametrize("number", [0, 1])
def test_where_no_more_threads_can_begin_the_caller_reads(open_lmdb, nothing_in_memory, monkeypatch, number):
    """None, or one, and all is read."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 8)
    start, started = threading.Thread.start, []

    def refusing(thread):
        if len(started) == number:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    assert_holds(store, refs, blocks)
    assert len(started) == number


@pytest.mark.parametrize("missing", ["running", "finding"])
def test_where_some_code_cannot_be_had_lmdb_is_asked(
    open_lmdb, nothing_in_memory, monkeypatch, requests, missing
):
    """Once, not before each read; and the store closes."""
    asked = []

    def failing() -> None:
        asked.append(missing)
        raise StoreFailed("no process could be had that compiles")

    monkeypatch.setattr(payload_file, missing, failing)
    with open_lmdb() as store:
        refs, blocks = fill(store, 4)
        for _ in range(3):
            assert_holds(store, refs, blocks)
    assert requests == []
    assert asked == [missing]


@pytest.mark.parametrize(("value_mib", "num_calls"), [(0, 1), (0, 4), (0, 100), (5, 2), (60, 4), (200, 2)])
def test_memory_for_reads_ahead_is_for_as_many_calls_and_as_large_values_as_there_are_but_has_a_bound(
    value_mib, num_calls
):
    """Values that are so large that there would not be a piece for each thread, and one more, are the callers' to read."""
    readers = payload_file._readers(-1, value_mib << 20, num_calls)
    num_pieces = readers._num_pieces
    assert num_pieces > readers._num_threads
    assert num_pieces * readers.piece_bytes <= payload_file._MOST_BYTES
    assert (readers.piece_bytes >= value_mib << 20) == (value_mib < 200)
    if (value_mib, num_calls) == (0, 4):
        assert num_pieces >= 4 * num_calls


def test_values_for_which_there_is_no_memory_ahead_are_read(
    open_lmdb, nothing_in_memory, monkeypatch, requests
):
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    monkeypatch.setattr(payload_file, "_MOST_BYTES", 2 * LARGE.block_bytes)
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 8)
    assert_holds(store, refs, blocks)
    assert len(requests) == 8


READ_THAT_HANGS = """
import ctypes, sys, threading
from pathlib import Path

import pytest

from kvstore.disk import payload_file, requests
from kvstore.disk.request_words import BEGUN, PREAD, STATE
from kvstore.testing import fill, read
from tests.kvstore.conftest import absent_by, lmdb_store

absent_by(pytest.MonkeyPatch(), lambda address, num_bytes: 1)
payload_file.READ_BYTES = 4096
requests.functions[PREAD] = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p).value
store = lmdb_store(Path(sys.argv[1]), compression="off")
refs, _ = fill(store, 4)
threading.Thread(target=read, args=(store, refs), daemon=True).start()
rows = store._tables._payload._readers.shared[0]
while (rows[:, STATE] == BEGUN).sum() < payload_file._READERS:
    threading.Event().wait(0.001)
"""


def test_a_read_that_hangs_does_not_hold_up_the_end_of_the_program(tmp_path):
    subprocess.run([sys.executable, "-c", READ_THAT_HANGS, tmp_path], check=True, timeout=20.0)


def test_records_without_pages_of_their_own_are_looked_at_in_the_tree(open_lmdb, nothing_in_memory, requests):
    """Those that are small lie in the pages of the tree."""
    small = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=16, dtype="bfloat16", block_tokens=8)
    store = open_lmdb(layout=small)
    refs, blocks = fill(store, 6)
    assert_holds(store, refs, blocks)
    assert requests == []


def test_damage_on_the_way_is_no_damage(open_lmdb, nothing_in_memory, monkeypatch):
    """A bit that flips in what was read past LMDB's map: the record in the map is whole, and stays."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv = os.preadv

    def flipping(file, buffers, offset):
        num_bytes = preadv(file, buffers, offset)
        buffers[0][len(buffers[0]) // 2] ^= 1
        return num_bytes

    read_by(monkeypatch, flipping)
    assert_holds(store, refs, blocks)
    assert store.stats().damaged_blocks == 0


def test_damage_in_the_file_is_found(open_lmdb, nothing_in_memory, tmp_path):
    """On the disk itself: one record goes, with its evidence, and the others are served."""
    store = open_lmdb()
    refs, _ = fill(store, 1)
    blocks = noise(store, 1)
    store.put_many(refs, blocks)
    others, those = fill(store, 3, seed=1)
    store.sync()
    content = data_file(tmp_path).read_bytes()
    at = content.index(blocks[0].tobytes()[:64])
    with data_file(tmp_path).open("r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 1]))
    assert reasons(store, refs) == [MissReason.DAMAGED_CHECKSUM]
    assert_holds(store, others, those)
    store.check()
    assert len(store.quarantined()) == 1


def test_a_file_that_ends_within_a_record_is_not_touched(open_lmdb, nothing_in_memory, monkeypatch, tmp_path):
    """It was cut after it was looked at: what would have been a signal is an error, and the store goes on empty."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv, asked = os.preadv, []

    def cut_before(file, buffers, offset):
        if not asked:
            os.truncate(data_file(tmp_path), offset + 4096)
        asked.append(offset)
        return preadv(file, buffers, offset)

    read_by(monkeypatch, cut_before)
    with pytest.raises(StoreFailed, match="within a record"):
        read(store, refs)
    store._writer.run(lambda: None)
    assert store.stats().fresh_starts == 1
    monkeypatch.undo()
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("num_bytes", [1 << 20, 255 << 20, 1 << 30])
def test_a_tree_that_says_a_value_is_longer_than_the_file_is_not_believed(
    open_lmdb, monkeypatch, tmp_path, in_memory, num_bytes
):
    """Inside the map, where there is no file, and outside of it: either would be a signal."""
    absent_by(monkeypatch, lambda address, num_bytes: not in_memory)
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    key = store._form.entry_key(refs[2].key)
    with data_file(tmp_path).open("r+b") as file:
        content, at = file.read(), -1
        while (at := content.find(key, at + 1)) >= 0:
            os.pwrite(file.fileno(), (num_bytes >> 16).to_bytes(2, "little"), at - 6)
    with pytest.raises(StoreFailed, match="within a record"):
        read(store, refs)
    store._writer.run(lambda: None)
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)


def test_values_that_lie_over_each_other_are_not_read_as_one(
    open_lmdb, nothing_in_memory, monkeypatch, requests
):
    """As a damaged tree may have it: what is looked at of each was read for it, whatever lies behind the others' ends."""
    store = open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes)
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    find = tree.finding()

    def misled(*arguments: Any):
        find(*arguments)
        firsts, sizes = arguments[7:]
        firsts[1:], sizes[1:] = firsts[0] + np.arange(3), 100

    monkeypatch.setattr(tree, "finding", lambda: misled)
    requests.clear()
    assert_holds(store, refs, blocks)
    longest = max(num_bytes for _, num_bytes in requests)  # threads make them, in any order
    assert longest * 4 >= store.stats().stored_bytes, "the first value was not read to its end"
    assert store.stats().damaged_blocks == 0


def test_a_disk_that_cannot_read_fails_the_batch_and_nothing_else(open_lmdb, nothing_in_memory, monkeypatch):
    """Through the map it would be a signal."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)

    def failing(file, buffers, offset):
        raise OSError(errno.EIO, "input/output error")

    read_by(monkeypatch, failing)
    with pytest.raises(StoreFailed, match="input/output error"):
        read(store, refs)
    monkeypatch.undo()
    assert_holds(store, refs, blocks)
    assert store.stats().fresh_starts == 0


def test_a_read_that_stops_early_goes_on_from_there(open_lmdb, nothing_in_memory, monkeypatch):
    """And from the begin of a page, as reads past the page cache must."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv, offsets = os.preadv, []

    def short(file, buffers, offset):
        offsets.append(offset)
        return min(preadv(file, buffers, offset), 5000)

    read_by(monkeypatch, short)
    assert_holds(store, refs, blocks)
    assert len(offsets) > 1
    assert all(offset % 4096 == 0 for offset in offsets)
    assert store.stats().fresh_starts == store.stats().damaged_blocks == 0


@pytest.mark.parametrize("says", ["why", "nothing"])
@pytest.mark.parametrize("read_before", [512, 4096 + 512])
def test_a_bad_sector_in_the_middle_fails_the_batch_and_nothing_else(
    open_lmdb, nothing_in_memory, monkeypatch, says, read_before
):
    """A read answers what lies before it. The next one says why it does not go on, or no more than that it does not."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv, first = os.preadv, []

    def failing(file, buffers, offset):
        first[:] = first or [offset]
        left = first[0] + read_before - offset
        if left <= 512 and says == "why" and offset > first[0]:
            raise OSError(errno.EIO, "input/output error")
        return min(preadv(file, buffers, offset), left)

    read_by(monkeypatch, failing)
    with pytest.raises(StoreFailed, match=r"input/output error|cannot be read from"):
        read(store, refs)
    monkeypatch.undo()
    assert store.stats().fresh_starts == store.stats().damaged_blocks == 0
    absent_by(monkeypatch, lambda address, num_bytes: 1)
    assert_holds(store, refs, blocks)


def test_a_read_that_is_refused_after_another_one_has_seen_to_that_is_made_again(
    open_lmdb, nothing_in_memory, monkeypatch
):
    """Two threads are refused, and the other one goes on first: the flag is gone, and this one's read is made again too."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv, refused = os.preadv, []

    def refused_once(file, buffers, offset):
        if not refused:
            refused.append(offset)
            fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)
            raise OSError(errno.EINVAL, "invalid argument")
        return preadv(file, buffers, offset)

    read_by(monkeypatch, refused_once)
    assert_holds(store, refs, blocks)
    assert refused


def test_a_read_that_is_refused_twice_fails(open_lmdb, nothing_in_memory, monkeypatch):
    store = open_lmdb()
    refs, _ = fill(store, 2)
    asked = []

    def refusing(file, buffers, offset):
        asked.append(offset)
        raise OSError(errno.EINVAL, "invalid argument")

    read_by(monkeypatch, refusing)
    with pytest.raises(StoreFailed, match="invalid argument"):
        read(store, refs)
    assert len(asked) == 3  # by another thread, and twice by the caller


def test_a_file_system_that_takes_its_word_back_is_read_through_the_page_cache(
    open_lmdb, nothing_in_memory, monkeypatch
):
    """Some let a file be opened for reading past the cache, and refuse to do it."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    preadv, refused = os.preadv, []

    def reluctant(file, buffers, offset):
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "invalid argument")
        return preadv(file, buffers, offset)

    read_by(monkeypatch, reluctant)
    assert_holds(store, refs, blocks)
    assert_holds(store, refs, blocks)
    assert (
        len(refused) <= 2
    )  # by another thread and by the caller, once; none where the file system has no such reading at all


def test_another_layout_of_pages_is_left_to_lmdb(open_lmdb, nothing_in_memory, monkeypatch, requests):
    """Whoever changes LMDB's format: its own answer is compared with ours once, and counts."""
    monkeypatch.setattr(tree, "VALUE_OFFSET", 24)
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    assert requests == []


def test_a_node_that_tells_of_too_long_a_value_is_left_to_lmdb(
    open_lmdb, nothing_in_memory, monkeypatch, requests
):
    """Rather than taking as much memory."""
    monkeypatch.setattr(payload_file, "_MOST_BYTES", LAYOUT.block_bytes // 2)
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    assert requests == []


def test_records_are_found_after_the_map_has_moved(open_lmdb, nothing_in_memory, requests):
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    store.change(capacity_bytes=8 * CAPACITY_BYTES)
    more, those = fill(store, 4, seed=1)
    assert_holds(store, [*refs, *more], [*blocks, *those])
    assert requests


def test_records_are_found_that_are_written_while_they_are_looked_for(
    open_lmdb, nothing_in_memory, monkeypatch, tmp_path
):
    """And make the file longer: what lies behind its former end is no damage."""
    store = open_lmdb()
    refs, blocks = fill(store, 4)
    assert_holds(store, refs, blocks)
    newest, sizes = tree._newest, [data_file(tmp_path).stat().st_size]

    def growing(*arguments: Any):
        if len(sizes) == 1:
            fill(store, 8, seed=1)
            store.put_many(refs, blocks)
            sizes.append(data_file(tmp_path).stat().st_size)
        return newest(*arguments)

    monkeypatch.setattr(tree, "_newest", growing)
    assert_holds(store, refs, blocks)
    assert sizes[1] > sizes[0]
    assert store.stats().fresh_starts == 0


def test_what_is_not_in_memory_is_told_from_what_is(open_lmdb, tmp_path, requests):
    """With the system's own page cache; on a file system that is nothing but memory it tells that too."""
    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes) as store:
        refs, blocks = fill(store, 8)
        assert_holds(store, refs, blocks)
        assert requests == []  # they have just been written
    drop(data_file(tmp_path))
    was_absent = share_absent(data_file(tmp_path)) > 0.9
    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes) as store:
        drop(data_file(tmp_path))
        assert_holds(store, refs, blocks)
    assert bool(requests) is was_absent


@pytest.mark.parametrize("where", ["unproven", "close"])
def test_who_is_interrupted_leaves_no_request_behind(open_lmdb, nothing_in_memory, monkeypatch, where):
    """Though what it asked for is being read, and it does not come to say that nobody wants it: memory is given back when that has ended."""
    monkeypatch.setattr(payload_file, "READ_BYTES", 4096)
    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes) as store:
        refs, blocks = fill(store, 12)
        assert_holds(store, refs, blocks)
        readers = store._tables._payload._readers

        def interrupted(*given: Any) -> Any:
            raise KeyboardInterrupt

        for _ in range(4):  # more requests in all than there are pieces
            with monkeypatch.context() as short:
                short.setattr(payload_file.Runs, "unproven", interrupted)
                short.setattr(payload_file.Runs, where, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    read(store, refs)
        assert_holds(store, refs, blocks)
    readers.check()


def test_memory_to_read_into_is_ready_where_there_is_much_to_read(open_lmdb, monkeypatch):
    """A small file is read before it could be taken."""
    monkeypatch.setattr(payload_file, "_LEAST_BYTES", 1 << 20)
    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes) as store:
        store.sync()
        assert store._tables._payload._readers._memory.size == 0
        fill(store, 12)
    with open_lmdb(layout=LARGE, capacity_bytes=64 * LARGE.block_bytes, read_threads=3) as store:
        store.sync()
        assert (
            store._tables._payload._readers._memory.size
            >= 3 * payload_file._PIECES_A_CALL * payload_file.READ_BYTES
        )


def test_buffers_are_whole_huge_pages():
    buffer = huge_pages(LAYOUT.block_bytes)
    assert len(buffer) == 2 << 20
    assert np.frombuffer(buffer, np.uint8).ctypes.data % (2 << 20) == 0
    buffer[:] = bytes(len(buffer))


def test_a_turn_that_an_interrupt_has_taken_is_there_again(monkeypatch):
    monkeypatch.setattr(payload_file, "_MOST_WAIT_S", 0.0)
    turns = payload_file._Turns(2)
    turns._left.get()
    with turns.turn():
        assert turns._left.empty()
        with turns.turn():
            pass
        assert turns._left.qsize() == 1
    assert turns._left.qsize() == 2
