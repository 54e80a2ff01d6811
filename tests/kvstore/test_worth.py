"""`compression`: whether blocks are encoded, decided by what was measured."""

import os
from dataclasses import replace

import pytest

from kvstore import BlockLayout, MemoryStore
from kvstore.disk.worth import LEAST_FILE_BYTES, Rates, is_worth_encoding, measured
from kvstore.testing import assert_holds, fill

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=32, dtype="bfloat16", block_tokens=16)
SLOW = Rates(disk=1e9, decoding=1.5e9, copying=10e9, ratio=1.5)


@pytest.mark.parametrize(
    ("changed", "read_threads", "worth"),
    [
        ({}, 1, True),  # the disk is the slower one: records that are smaller come sooner
        ({"disk": 1.4e9}, 1, True),  # decoding is the slower one then, and still not slower than the disk
        ({"disk": 1.5e9}, 1, True),  # just so
        ({"disk": 1.6e9}, 1, False),
        ({"disk": 1.6e9}, 2, True),  # two threads decode 3 GB/s
        ({"disk": 7e9}, 4, False),
        ({"disk": 7e9}, 5, True),
        ({"disk": 1e12}, 8, False),  # a disk like memory: threads copy 80 GB/s and decode 12
        ({"disk": 1e12, "copying": 1e9}, 8, True),  # nor is copying free
        ({"ratio": 1.0}, 1, True),  # nothing is lost by it either
    ],
)
def test_reads_may_not_become_slower_by_it(changed, read_threads, worth):
    assert is_worth_encoding(replace(SLOW, **changed), read_threads) is worth


def test_what_was_not_worth_it_never_is_on_a_faster_disk_and_always_on_a_slower_one():
    for read_threads in (1, 2, 4):
        decided = [is_worth_encoding(replace(SLOW, disk=gb_s * 1e8), read_threads) for gb_s in range(1, 200)]
        assert decided == sorted(decided, reverse=True)
        assert decided[0]
        assert not decided[-1]


@pytest.mark.parametrize(
    ("compression", "rates", "codecs"),
    [
        ("auto", None, {"huffman"}),
        ("auto", SLOW, {"huffman"}),
        ("auto", replace(SLOW, disk=9e9), {"raw"}),
        ("on", replace(SLOW, disk=9e9), {"huffman"}),
        ("off", SLOW, {"raw"}),
    ],
)
def test_a_store_does_what_it_was_told_or_what_it_measured(open_lmdb, compression, rates, codecs):
    store = open_lmdb(layout=LAYOUT, compression=compression, rates=lambda: rates)
    store._writer.run(lambda: None)
    refs, blocks = fill(store, 3)
    assert store.stats().written.keys() == codecs
    assert store.stats().encodes == ("raw" not in codecs)
    assert_holds(store, refs, blocks)


def test_it_is_found_out_once_when_there_is_enough_to_measure(open_lmdb):
    """At the opening, else with a sync in the background. What was written before is read as it is."""
    answers = iter([None, None, replace(SLOW, disk=9e9)])
    store = open_lmdb(layout=LAYOUT, sync_interval_s=3600.0, rates=lambda: next(answers))
    before = fill(store, 3)
    for _ in range(3):
        store._writer.run(store._changes._sync_in_background)
        store._writer.run(lambda: None)
    after = fill(store, 2, seed=1)
    assert store.stats().written == {"huffman": 3, "raw": 2}
    assert_holds(store, *before)
    assert_holds(store, *after)


def test_threads_count_as_far_as_there_are_cores(open_lmdb, tmp_path, monkeypatch):
    for read_threads, num_cores, codec in ((1, 4, "raw"), (4, 4, "huffman"), (4, 1, "raw")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=num_cores: set(range(n)))
        path = tmp_path / f"{read_threads}-{num_cores}"
        store = open_lmdb(
            path, layout=LAYOUT, read_threads=read_threads, rates=lambda: replace(SLOW, disk=5e9)
        )
        store._writer.run(lambda: None)
        fill(store, 1)
        assert store.stats().written == {codec: 1}


@pytest.mark.parametrize(
    ("setting", "message"), [({"compression": True}, "compression"), ({"read_threads": 0}, "read_threads")]
)
def test_what_cannot_be_meant_is_refused(open_lmdb, setting, message):
    with pytest.raises(ValueError, match=message):
        open_lmdb(**setting)


def test_in_memory_no_disk_is_faster_than_decoding(memory_store):
    assert fill(memory_store, 2)
    with pytest.raises(ValueError, match="compression"):
        MemoryStore(memory_store.namespace, LAYOUT, 1 << 20, compression="yes")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_is_measured(tmp_path, dtype):
    """A real file, where the file system reads past its cache; of a small one nothing is said."""
    layout = replace(LAYOUT, dtype=dtype)
    data = tmp_path / "data.mdb"
    assert measured(data, layout, 2) is None
    data.write_bytes(bytes(LEAST_FILE_BYTES - 1))
    assert measured(data, layout, 2) is None
    data.write_bytes(bytes(LEAST_FILE_BYTES))
    rates = measured(data, layout, 2)
    if rates is None:
        pytest.skip("this file system has no O_DIRECT")
    assert rates.disk > 0
    assert rates.copying > rates.decoding > 0
    assert rates.ratio > 1.1
