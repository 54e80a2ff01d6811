"""Laws of a sound store: what was put is read, what is gone is gone, and what does not fit is refused."""

# ruff: noqa: ARG001
# (every law takes both arguments, so that they can be called alike)

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from kvstore.block import KEY_BYTES
from kvstore.errors import StoreFull
from kvstore.metas import metas_of
from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER, OWNER_BYTES, BlockRef, Store
from kvstore.testing import Block, assert_holds, chain, fill, kv_like, noise, reasons


def what_was_put_is_read(store: Store, raw: RawRecords) -> None:
    """Compressible or not, a block comes back as it was."""
    refs, blocks = chain(store, 6), kv_like(store, 3) + noise(store, 3)
    stored = store.put_many(refs, blocks)
    assert len(stored) == 6
    assert all(0 < count <= store.max_stored_bytes for count in stored)
    assert_holds(store, refs, blocks)
    store.sync()
    assert_holds(store, refs[::-1], blocks[::-1])
    store.check()


def extreme_floats_are_kept(store: Store, raw: RawRecords) -> None:
    """Zeros of both signs, infinities, subnormals, and NaNs with their payloads are only bits here."""
    patterns = np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 1, 0x8001], dtype="<u2").view(np.uint8)
    blocks = [np.resize(patterns, store.layout.block_bytes), np.zeros(store.layout.block_bytes, np.uint8)]
    refs = chain(store, 2)
    store.put_many(refs, blocks)
    assert_holds(store, refs, blocks)


def absent_is_a_miss(store: Store, raw: RawRecords) -> None:
    """Hits and misses of one batch keep their places."""
    refs, blocks = chain(store, 4), kv_like(store, 4)
    store.put_many(refs[1::2], blocks[1::2])
    assert reasons(store, refs) == [MissReason.ABSENT, None, MissReason.ABSENT, None]
    assert store.stats().damaged_blocks == 0


def the_last_put_wins(store: Store, raw: RawRecords) -> None:
    """A second put replaces the first, in later batches and within one, and is counted once."""
    refs, blocks = chain(store, 2), kv_like(store, 3)
    store.put_many(refs, blocks[:2])
    store.put_many([refs[0], refs[0]], [blocks[0], blocks[2]])
    assert_holds(store, refs, [blocks[2], blocks[1]])
    assert store.stats().blocks == 2
    store.check()


def any_contiguous_buffer_will_do(store: Store, raw: RawRecords) -> None:
    """Shape and item type do not matter, on the way in and on the way out."""
    refs, blocks = chain(store, 4), kv_like(store, 4)
    shaped = blocks[3].view(f"<u{store.layout.itemsize}").reshape(store.layout.shape)
    store.put_many(refs, [blocks[0].tobytes(), bytearray(blocks[1]), blocks[2].data, shaped])
    assert_holds(store, refs, blocks)
    out = np.zeros_like(shaped)
    out_bytes = bytearray(store.layout.block_bytes)
    assert all(outcome.hit for outcome in store.get_many(refs[2:], [memoryview(out_bytes), out]))
    assert out_bytes == blocks[2].tobytes()
    assert np.array_equal(out, shaped)


def nothing_is_fine(store: Store, raw: RawRecords) -> None:
    """Empty batches do nothing."""
    assert store.put_many([], []) == []
    assert store.get_many([], []) == []
    store.delete_many([])
    assert list(metas_of(store)) == []
    store.check()


def what_is_deleted_is_gone(store: Store, raw: RawRecords) -> None:
    """Deleting is exact, and keys that are not there are fine."""
    refs, blocks = fill(store, 5)
    store.delete_many([refs[1].key, bytes(KEY_BYTES), refs[3].key, refs[3].key])
    absent = MissReason.ABSENT
    assert reasons(store, refs) == [None, absent, None, absent, None]
    store.put_many([refs[1]], [blocks[1]])
    assert_holds(store, refs[:3], blocks[:3])
    store.check()


def wrong_sizes_are_refused(store: Store, raw: RawRecords) -> None:
    """What does not fit the layout raises ValueError, and nothing of its batch is written."""
    refs, blocks = chain(store, 2), kv_like(store, 2)
    bad_puts = (
        ([refs[0], refs[1]], [blocks[0], blocks[1][:-1]]),
        ([refs[0], replace(refs[1], tokens=refs[1].tokens[:-4])], blocks),
        ([refs[0], replace(refs[1], key=refs[1].key[:-1])], blocks),
        ([refs[0], replace(refs[1], parent_key=b"")], blocks),
        (refs, blocks[:1]),
    )
    for bad_refs, bad_blocks in bad_puts:
        _assert_value_error(lambda: store.put_many(bad_refs, bad_blocks))  # noqa: B023 - called at once
    _assert_value_error(lambda: store.get_many(refs, blocks[:1]))
    _assert_value_error(lambda: store.get_many(refs[:1], [blocks[0][:-1].copy()]))
    assert store.stats().blocks == 0
    store.check()


def scan_tells_what_is_there(store: Store, raw: RawRecords) -> None:
    """Every block once, with what its reference and its writing said."""
    refs, blocks = chain(store, 6), kv_like(store, 6)
    stored = store.put_many(refs, blocks)
    store.delete_many([refs[2].key])
    metas = {meta.ref: meta for meta in metas_of(store)}
    assert len(list(metas_of(store))) == 5
    assert set(metas) == {ref for ref in refs if ref != refs[2]}
    for ref, stored_bytes in zip(refs, stored, strict=True):
        assert ref == refs[2] or metas[ref].stored_bytes == stored_bytes
        assert ref == refs[2] or metas[ref].used_ns > 0


def a_touch_changes_the_time_and_nothing_else(store: Store, raw: RawRecords) -> None:
    """Forwards and backwards; what is not there is not made; a block that is written again was used then."""
    refs, blocks = fill(store, 4)
    before, stats = {meta.key: meta for meta in metas_of(store)}, store.stats()
    store.delete_many([refs[3].key])
    keys = [ref.key for ref in refs]
    store.touch_many(keys[:2], [1, 2**62])
    store.touch_many([keys[0], bytes(KEY_BYTES), keys[3], keys[0]], [7, 7, 7, 5])
    store.touch_many([], [])
    after = {meta.key: meta for meta in metas_of(store)}
    times = {keys[0]: 5, keys[1]: 2**62, keys[2]: before[keys[2]].used_ns}
    assert after == {key: replace(before[key], used_ns=used_ns) for key, used_ns in times.items()}
    assert store.stats().stored_bytes == stats.stored_bytes - before[keys[3]].stored_bytes
    assert_holds(store, refs[:3], blocks[:3])
    store.put_many(refs[:1], blocks[:1])
    assert {meta.key: meta.used_ns for meta in metas_of(store)}[keys[0]] > 5
    store.check()


def wrong_times_are_refused(store: Store, raw: RawRecords) -> None:
    """And nothing is noted then."""
    refs, _ = fill(store, 2)
    before = set(metas_of(store))
    keys = [ref.key for ref in refs]
    for used_ns in ([1], [1, -1], [1, 2**63]):
        _assert_value_error(lambda: store.touch_many(keys, used_ns))  # noqa: B023 - called at once
    assert set(metas_of(store)) == before


def what_is_erased_is_gone(store: Store, raw: RawRecords) -> None:
    """All blocks of one owner, and nobody else's; what the owner puts later is there."""
    refs, blocks = chain(store, 6), kv_like(store, 6)
    owners = [NO_OWNER, *(bytes([number]) * OWNER_BYTES for number in (1, 2, 1, 1, 2))]
    refs = [replace(ref, owner=owner) for ref, owner in zip(refs, owners, strict=True)]
    store.put_many(refs, blocks)
    assert {meta.ref for meta in metas_of(store)} == set(refs), "a scan tells whose a block is"
    assert store.erase(owners[1]) == 3
    absent = MissReason.ABSENT
    assert reasons(store, refs) == [None, absent, None, absent, absent, None]
    assert {meta.ref for meta in metas_of(store)} == {refs[i] for i in (0, 2, 5)}
    assert store.stats().blocks == 3
    assert store.erase(owners[1]) == 0
    store.put_many(refs[1:2], blocks[1:2])
    assert_holds(store, refs[:3], blocks[:3])
    assert store.stats().damaged_blocks == 0
    for nobody in (NO_OWNER, b"", bytes([1])):
        _assert_value_error(lambda: store.erase(nobody))  # noqa: B023 - called at once
    _assert_value_error(lambda: store.put_many([replace(refs[0], owner=b"1")], blocks[:1]))
    store.check()


def stats_add_up(store: Store, raw: RawRecords) -> None:
    """Counts follow every put, replacement and deletion."""
    refs = chain(store, 4)
    stored = store.put_many(refs, noise(store, 4))
    stored[0] = store.put_many(refs[:1], kv_like(store, 1))[0]
    store.delete_many([refs[3].key])
    stats = store.stats()
    assert stats.blocks == 3
    assert stats.stored_bytes == sum(stored[:3])
    assert stats.raw_bytes == 3 * store.layout.block_bytes
    assert stats.other_namespaces_bytes == 0
    store.check()


def a_full_store_refuses_whole_batches(store: Store, raw: RawRecords) -> None:
    """StoreFull leaves everything as it was; deleting makes room."""
    capacity = store.stats().capacity_bytes
    refs, blocks = chain(store, capacity // store.layout.block_bytes + 3), noise(store, 3)
    held = 0
    while held < len(refs) and _fits(store, refs[held : held + 1], [blocks[held % 3]]):
        held += 1
    assert 0 < held < len(refs) - 1, "the capacity was never reached"
    assert store.stats().stored_bytes <= capacity
    batch = [refs[0], *refs[held : held + 2]]
    assert not _fits(store, batch, blocks), "a batch went into a full store"
    assert_holds(store, refs[:held], [blocks[i % 3] for i in range(held)])
    assert reasons(store, batch[1:])[0] is MissReason.ABSENT
    store.delete_many([refs[1].key])
    store.put_many([refs[held]], [blocks[0]])
    assert_holds(store, [refs[held]], blocks[:1])
    store.check()


def _fits(store: Store, refs: Sequence[BlockRef], blocks: Sequence[Block]) -> bool:
    """Put blocks; answer whether there was room."""
    try:
        store.put_many(refs, blocks)
    except StoreFull:
        return False
    return True


def _assert_value_error(call: Callable[[], object]) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError("what does not fit the layout was accepted")
