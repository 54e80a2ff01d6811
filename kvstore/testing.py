"""The laws that every store keeps, for the tests of stores here and elsewhere.

A law is a function `law(store, raw)` that raises AssertionError where the store breaks it. Give each one a
fresh, empty store, with a capacity of some 20 to 200 blocks that do not compress, and its `RawRecords`:

    @pytest.mark.parametrize("law", LAWS)
    def test_law(law):
        with MyStore(...) as store:
            law(store, store.raw())
"""

# ruff: noqa: ARG001
# (every law takes both arguments, so that they can be called alike)

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvstore.block import KEY_BYTES, chain_key
from kvstore.errors import StoreClosed, StoreFull
from kvstore.metas import metas_of
from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.store import NO_OWNER, OWNER_BYTES, BlockRef, ReadOutcome, Store

Block: TypeAlias = NDArray[np.uint8]
Law: TypeAlias = Callable[[Store, RawRecords], None]


# ---- what laws are written with ------------------------------------------------------------------------


def chain(store: Store, num_blocks: int, seed: int = 0) -> list[BlockRef]:
    """The blocks of one prompt of random tokens, in order."""
    rng = np.random.default_rng(seed)
    refs, parent = [], store.namespace.root_key
    for _ in range(num_blocks):
        tokens = rng.integers(0, 2**31 - 1, store.layout.block_tokens).astype("<i4").tobytes()
        refs.append(BlockRef(chain_key(parent, tokens), parent, tokens))
        parent = refs[-1].key
    return refs


def kv_like(store: Store, num_blocks: int, seed: int = 0) -> list[Block]:
    """Blocks that compress as KV does: normally distributed, in the layout's dtype."""
    num_items = store.layout.block_bytes // store.layout.itemsize
    normal = np.random.default_rng(seed).standard_normal((num_blocks, num_items))
    if store.layout.dtype == "float16":
        return [block.astype("<f2").view(np.uint8) for block in normal]
    words = normal.astype("<f4").view("<u4")
    if store.layout.dtype == "bfloat16":
        words = (words >> 16).astype("<u2")
    return [block.view(np.uint8) for block in words]


def noise(store: Store, num_blocks: int, seed: int = 0) -> list[Block]:
    """Blocks that do not compress."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, store.layout.block_bytes, dtype=np.uint8) for _ in range(num_blocks)]


def fill(store: Store, num_blocks: int, seed: int = 0) -> tuple[list[BlockRef], list[Block]]:
    """Put the blocks of one prompt; answer them."""
    refs, blocks = chain(store, num_blocks, seed), kv_like(store, num_blocks, seed)
    store.put_many(refs, blocks)
    return refs, blocks


def read(store: Store, refs: Sequence[BlockRef]) -> tuple[list[ReadOutcome], list[Block]]:
    """The outcomes, and the buffers that were read into, which held junk before."""
    out = [np.full(store.layout.block_bytes, 0xA5, dtype=np.uint8) for _ in refs]
    return store.get_many(refs, out), out


def assert_holds(store: Store, refs: Sequence[BlockRef], blocks: Sequence[Block]) -> None:
    """Every one of the blocks is a hit and comes back byte for byte."""
    outcomes, out = read(store, refs)
    assert [outcome.reason for outcome in outcomes] == [None] * len(refs), f"missed: {outcomes}"
    for position, (got, expected) in enumerate(zip(out, blocks, strict=True)):
        assert np.array_equal(got, expected), f"block {position} came back changed"


def reasons(store: Store, refs: Sequence[BlockRef]) -> list[MissReason | None]:
    """Why each of the blocks misses; None for a hit."""
    return [outcome.reason for outcome in read(store, refs)[0]]


# ---- reading and writing -------------------------------------------------------------------------------


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


# ---- nothing wrong is served ---------------------------------------------------------------------------


def damage_is_a_miss(store: Store, raw: RawRecords) -> None:
    """A flipped bit anywhere in a record: a miss that is counted, then absent, and the rest is unharmed."""
    refs, blocks = fill(store, 3)
    record = raw.read(refs[1].key)
    assert record is not None
    positions = [*range(0, 320, 3), *range(320, len(record), max(1, len(record) // 40)), len(record) - 1]
    for count, position in enumerate(positions, start=1):
        store.put_many(refs[1:2], blocks[1:2])
        damaged = bytearray(record)  # what was just written may be encoded otherwise, and be shorter
        damaged[position] ^= 1 << position % 8
        raw.write(refs[1].key, bytes(damaged))
        outcomes, _ = read(store, refs)
        assert [outcome.hit for outcome in outcomes] == [True, False, True], f"byte {position}: {outcomes}"
        assert outcomes[1].damaged, f"byte {position}: {outcomes[1]}"
        assert store.stats().damaged_blocks == count
        assert reasons(store, refs[1:2]) == [MissReason.ABSENT]
    store.check()
    store.put_many(refs[1:2], blocks[1:2])
    assert_holds(store, refs, blocks)


def damage_is_counted_by_reason(store: Store, raw: RawRecords) -> None:
    """Each failed check under its own name, and nothing else."""
    refs, _ = fill(store, 4)
    sound = raw.read(refs[0].key)
    assert sound is not None
    raw.write(refs[1].key, sound)
    raw.truncate(refs[2].key)
    raw.corrupt(refs[3].key)
    assert reasons(store, refs)[0] is None
    assert store.stats().damaged == {
        MissReason.WRONG_IDENTITY: 1,
        MissReason.DAMAGED_LENGTH: 1,
        MissReason.DAMAGED_CHECKSUM: 1,
    }
    assert store.stats().damaged_blocks == 3


def short_records_are_a_miss(store: Store, raw: RawRecords) -> None:
    """Records that were cut, to nothing at last, or that have grown."""
    refs, blocks = fill(store, 1)
    record = raw.read(refs[0].key)
    assert record is not None
    for damaged in (record[:-1], record[:-8], record[:100], record[:1], b"", record + b"\0", bytes(500)):
        store.put_many(refs, blocks)
        raw.write(refs[0].key, damaged)
        reason = reasons(store, refs)[0]
        assert reason is not None and reason.damaged, f"a record of {len(damaged)} bytes: {reason}"
    store.check()


def misplaced_records_are_a_miss(store: Store, raw: RawRecords) -> None:
    """A sound record under the key of another block is not that block."""
    refs, _ = fill(store, 2)
    record = raw.read(refs[0].key)
    assert record is not None
    raw.write(refs[1].key, record)
    assert reasons(store, refs) == [None, MissReason.WRONG_IDENTITY]
    assert reasons(store, refs) == [None, MissReason.ABSENT]


def all_of_the_reference_counts(store: Store, raw: RawRecords) -> None:
    """The same key with another parent or other tokens is another block."""
    refs, _ = fill(store, 2)
    tokens = bytes([refs[0].tokens[0] ^ 1]) + refs[0].tokens[1:]
    others = [replace(refs[0], tokens=tokens), replace(refs[1], parent_key=refs[1].key)]
    assert reasons(store, others) == [MissReason.WRONG_IDENTITY] * 2


# ---- threads and the end -------------------------------------------------------------------------------


def readers_never_see_a_mixture(store: Store, raw: RawRecords) -> None:
    """While a block is replaced and deleted over and over, a reader sees one version, the other, or none."""
    refs, versions = chain(store, 1), kv_like(store, 2)
    allowed = {version.tobytes() for version in versions}
    ended = threading.Event()
    errors: list[BaseException] = []

    def keep_reading() -> None:
        try:
            while not ended.is_set():
                outcomes, out = read(store, refs)
                assert not outcomes[0].damaged, f"a half-written record: {outcomes[0]}"
                assert not outcomes[0].hit or out[0].tobytes() in allowed, "a mixture was served"
        except BaseException as error:  # noqa: BLE001 - raised again where the law is called
            errors.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        store.put_many(refs, [versions[turn % 2]])
        if turn % 5 == 4:
            store.delete_many([refs[0].key])
    ended.set()
    for reader in readers:
        reader.join()
    if errors:
        raise errors[0]
    store.check()


def a_closed_store_says_so(store: Store, raw: RawRecords) -> None:
    """Closing twice is safe; everything after it raises StoreClosed, scans that were under way included."""
    refs, blocks = fill(store, 1)
    store.close()
    store.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.put_many(refs, blocks),
        lambda: store.get_many(refs, blocks),
        lambda: store.delete_many([refs[0].key]),
        lambda: store.touch_many([refs[0].key], [1]),
        lambda: store.erase(bytes([1]) * OWNER_BYTES),
        lambda: list(metas_of(store)),
        store.sync,
        store.stats,
    )
    for call in calls:
        try:
            call()
        except StoreClosed:
            continue
        raise AssertionError("a closed store answered")


LAWS: Final[tuple[Law, ...]] = (
    what_was_put_is_read,
    extreme_floats_are_kept,
    absent_is_a_miss,
    the_last_put_wins,
    any_contiguous_buffer_will_do,
    nothing_is_fine,
    what_is_deleted_is_gone,
    wrong_sizes_are_refused,
    scan_tells_what_is_there,
    a_touch_changes_the_time_and_nothing_else,
    wrong_times_are_refused,
    what_is_erased_is_gone,
    stats_add_up,
    a_full_store_refuses_whole_batches,
    damage_is_a_miss,
    damage_is_counted_by_reason,
    short_records_are_a_miss,
    misplaced_records_are_a_miss,
    all_of_the_reference_counts,
    readers_never_see_a_mixture,
    a_closed_store_says_so,
)


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
