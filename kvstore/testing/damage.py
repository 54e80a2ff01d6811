"""Laws of damage: nothing wrong is served, whatever has become of a record."""

# ruff: noqa: ARG001
# (every law takes both arguments, so that they can be called alike)

from dataclasses import replace

from kvstore.raw import RawRecords
from kvstore.reasons import MissReason
from kvstore.store import Store
from kvstore.testing import assert_holds, fill, read, reasons


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
