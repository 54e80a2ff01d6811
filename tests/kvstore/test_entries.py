"""Entries of the disk store, many at once and one by one; and the counts that the mark of a clean directory tells."""

import random
from dataclasses import replace

import numpy as np
import pytest

from kvstore.disk.entry import pack_entry, unpack_entries, unpack_entry
from kvstore.disk.tables import Tables, Usage
from kvstore.metas import BlockMetas, metas_of
from kvstore.store import OWNER_BYTES, BlockMeta
from kvstore.testing import chain, kv_like


def some(num, *, token_bytes=64, seed=0):
    rng = random.Random(seed)
    items = []
    for _ in range(num):
        key, parent = rng.randbytes(32), rng.randbytes(32)
        meta = BlockMeta(
            key,
            parent,
            rng.randbytes(token_bytes),
            rng.randrange(1 << 40),
            rng.randrange(1 << 62),
            rng.randbytes(OWNER_BYTES),
        )
        entry_key = rng.randbytes(32) + key
        items.append((entry_key, pack_entry(entry_key, meta)))
    return items


def unpacked(items):
    """{entry key: what it tells, None if it is damaged} by both ways."""
    pages = unpack_entries(items)
    at_once = {key: meta for page in pages for key, meta in zip(page.keys, page.metas, strict=True)}
    at_once |= {key: None for page in pages for key in page.damaged}
    return at_once, {key: unpack_entry(key, value) for key, value in items}


def test_many_are_unpacked_as_one_is():
    at_once, one_by_one = unpacked(
        [*some(50), *some(20, token_bytes=172, seed=1), *some(1, token_bytes=0, seed=2)]
    )
    assert at_once == one_by_one
    assert None not in one_by_one.values()
    assert unpacked([]) == ({}, {})


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_found_in_many_as_in_one(seed):
    """A bit anywhere, a version, a length that is another's, what is shorter than any entry."""
    rng, items = random.Random(seed), some(12, seed=seed)
    for number in rng.sample(range(12), 5):
        key, value = items[number]
        damaged = bytearray(value)
        damaged[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
        items[number] = key, bytes(damaged)[: rng.choice([len(value), len(value), len(value) - 4, 30, 0])]
    at_once, one_by_one = unpacked(items)
    assert at_once == one_by_one
    assert sum(meta is None for meta in one_by_one.values()) == 5


def test_columns_are_what_they_were_made_of():
    metas = [unpack_entry(key, value) for key, value in some(9)]
    columns = BlockMetas.of(metas)
    assert list(columns) == metas
    assert list(BlockMetas.joined([columns, BlockMetas.of(()), columns])) == metas * 2
    assert list(BlockMetas.of(())) == []
    with pytest.raises(ValueError, match="reshape"):
        BlockMetas.of([metas[0], metas[1], BlockMeta(bytes(32), bytes(32), b"1234", 1, 1)])


@pytest.fixture
def counted(monkeypatch):
    """How often entries were counted."""
    calls, recount = [], Tables.recount

    def counting(tables):
        calls.append(tables)
        recount(tables)

    monkeypatch.setattr(Tables, "recount", counting)
    monkeypatch.setattr("kvstore.disk.opening._MOST_VERIFIED_BYTES", 0)  # as if they were many
    return calls


def written(open_lmdb, num=5):
    with open_lmdb() as store:
        store.put_many(chain(store, num), kv_like(store, num))
        return store.stats()


def test_what_was_left_in_order_is_not_counted_again(open_lmdb, counted):
    stats = written(open_lmdb)
    counted.clear()
    with open_lmdb() as store:
        assert not counted
        assert store.stats() == replace(stats, written={})
        store.check()


@pytest.mark.parametrize("content", [b"", b"x", b"00 1 2\n0123456789abcdef\n", None])
def test_a_mark_that_tells_nothing_has_everything_counted(open_lmdb, counted, tmp_path, content):
    stats = written(open_lmdb)
    mark = tmp_path / "v1" / "clean"
    text = mark.read_text()
    if content is None:  # a count that somebody changed
        content = text.replace(" 5 ", " 6 ").encode()
    mark.write_bytes(content)
    counted.clear()
    with open_lmdb() as store:
        assert counted
        assert store.stats() == replace(stats, written={})


def test_a_mark_without_its_last_end_is_not_believed(open_lmdb, counted, tmp_path):
    """After a crash the counts are old."""
    written(open_lmdb)
    store = open_lmdb()
    store.put_many(chain(store, 3, seed=1), kv_like(store, 3))
    assert not (tmp_path / "v1" / "clean").exists()
    store.sync()
    assert Usage(8, store.stats().stored_bytes) in store._tables.usage.values()
    assert " 8 " in (tmp_path / "v1" / "clean").read_text()


def test_a_scan_that_meets_damaged_entries_has_them_deleted(open_lmdb, counted):
    """They would take room for ever, as nobody counts at the next openings."""
    store = open_lmdb()
    refs = chain(store, 4)
    store.put_many(refs, kv_like(store, 4))
    key = store._form.entry_key(refs[1].key)
    with store._tables.entries.begin(write=True) as txn:
        txn.put(key, np.random.default_rng(0).bytes(len(txn.get(key))))
    assert {meta.key for meta in metas_of(store)} == {ref.key for ref in refs} - {refs[1].key}
    store.sync()  # behind it
    assert store.stats().blocks == 3
    store.check()
