"""Many records that are proven at once: the same verdicts and bytes as one by one, and nothing that `unpack` would not serve."""

import ctypes
import mmap
from dataclasses import replace

import numpy as np
import pytest
import xxhash

from kvstore import BlockLayout, BlockRef, Namespace, chain_key
from kvstore.baseline import Baseline, Baselines
from kvstore.codec import Codec, addresses
from kvstore.disk import payload_file
from kvstore.huffman import Codes
from kvstore.record import RecordFormat, codec_of
from kvstore.span import Span
from kvstore.testing import assert_holds, fill, kv_like
from kvstore.testing import chain as store_chain
from kvstore.wanted import Wanted
from tests.kvstore.conftest import absent_by, patient

LAYOUT = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16", block_tokens=16)
FORMS = [LAYOUT, replace(LAYOUT, dtype="float32"), replace(LAYOUT, block_tokens=17, num_layers=3)]
SMALL = replace(LAYOUT, num_layers=1, num_kv_heads=2, block_tokens=16)
NAMESPACE = Namespace.of({"model": "tiny"})
_HEAD_BYTES = 152


def chain(layout: BlockLayout, num_blocks: int) -> tuple[list[BlockRef], np.ndarray]:
    """Blocks like KV, one after the other."""
    rng, refs, parent = np.random.default_rng(0), [], NAMESPACE.root_key
    for number in range(num_blocks):
        tokens = np.arange(number, number + layout.block_tokens, dtype="<i4").tobytes()
        refs.append(BlockRef(chain_key(parent, tokens), parent, tokens))
        parent = refs[-1].key
    values = rng.standard_normal((num_blocks, layout.block_bytes // layout.itemsize), np.float32)
    words = values.view(np.uint32)
    return refs, (words if layout.itemsize == 4 else (words >> 16).astype(np.uint16)).view(np.uint8)


def learned(layout: BlockLayout, blocks: np.ndarray) -> Baseline:
    """Of these blocks."""
    baselines = Baselines(layout, (len(blocks) * layout.block_tokens,))
    for block in blocks:
        baselines.learn(block)
    return baselines.learned()


def packed(form: RecordFormat, refs: list[BlockRef], blocks: np.ndarray) -> list[bytes]:
    records = [bytes(form.pack(ref, block, 7)) for ref, block in zip(refs, blocks, strict=True)]
    assert {codec_of(record) for record in records} == {Codec.HUFFMAN}
    return records


def agree(form: RecordFormat, records: list[bytes], refs: list[BlockRef]) -> tuple[list[bool], np.ndarray]:
    """What is proven at once, and what it was decoded to, with guards around it; `unpack` says the same of each."""
    size = form.layout.block_bytes
    guarded = np.full((len(records), size + 64), 0xA5, np.uint8)
    out = guarded[:, 32 : 32 + size]
    sources = [np.frombuffer(record, np.uint8) for record in records]
    spans = [Span(address, len(record)) for address, record in zip(addresses(sources), records, strict=True)]
    wanted = form.wanted(refs, list(out))
    assert wanted is not None
    proven = wanted.proven(range(len(records)), spans)
    assert (guarded[:, :32] == 0xA5).all()
    assert (guarded[:, -32:] == 0xA5).all()
    for record, ref, is_proven, block in zip(records, refs, proven, out, strict=True):
        alone = np.zeros(size, np.uint8)
        assert is_proven == (form.unpack(record, ref, alone) is None)
        assert not is_proven or np.array_equal(alone, block)
    return proven, out


@pytest.mark.parametrize("layout", FORMS, ids=lambda layout: f"{layout.dtype}-{layout.block_tokens}")
@pytest.mark.parametrize("has_baseline", [False, True])
def test_what_was_packed_is_proven(layout, has_baseline):
    form = RecordFormat(NAMESPACE, layout)
    refs, blocks = chain(layout, 5)
    before = packed(form, refs[:2], blocks[:2])
    if has_baseline:
        form.baselines.add(learned(layout, blocks))
    records = before + packed(form, refs[2:], blocks[2:])  # of another baseline, in the same call
    proven, out = agree(form, records, refs)
    assert all(proven)
    assert np.array_equal(out, blocks)


def test_damage_anywhere_is_not_proven_and_spoils_no_other():
    form = RecordFormat(NAMESPACE, LAYOUT)
    refs, blocks = chain(LAYOUT, 3)
    records = packed(form, refs, blocks)
    end = len(records[1])
    for at in [*range(300), *range(300, end, 1009), end - 1]:
        damaged = bytearray(records[1])
        damaged[at] ^= 0x41
        proven, out = agree(form, [records[0], bytes(damaged), records[2]], refs)
        assert proven == [True, False, True], at
        assert np.array_equal(out[::2], blocks[::2])


def resealed(record: bytes, position: int, value: bytes) -> bytes:
    """With other bytes in its header, and a header checksum that fits them."""
    covered = _HEAD_BYTES + LAYOUT.token_id_bytes
    header = bytearray(record[:covered])
    header[position : position + len(value)] = value
    return (
        bytes(header) + xxhash.xxh3_64_intdigest(bytes(header)).to_bytes(8, "little") + record[covered + 8 :]
    )


def test_every_bit_of_a_record_counts():
    """Save that of when it was written, which its header's checksum is of all the same."""
    form = RecordFormat(NAMESPACE, SMALL)
    refs, blocks = chain(SMALL, 1)
    [record] = packed(form, refs, blocks)
    damaged = np.frombuffer(record, np.uint8).copy()
    out = np.zeros(SMALL.block_bytes, np.uint8)
    wanted, spans = form.wanted(refs, [out]), [Span(addresses([damaged])[0], len(record))]
    for at in range(len(record)):
        for bit in range(8):
            damaged[at] ^= 1 << bit
            assert wanted.proven([0], spans) == [False], (at, bit)
            damaged[at] ^= 1 << bit
    assert wanted.proven([0], spans) == [True]
    assert np.array_equal(out, blocks[0])


class Fenced:
    """Memory between pages that nobody may touch: who does ends the process."""

    def __init__(self, most_bytes: int) -> None:
        self._size = -(-most_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._whole = np.frombuffer(mmap.mmap(-1, self._size + 2 * mmap.PAGESIZE), np.uint8)
        self._address = int(addresses([self._whole])[0])
        for at in (0, mmap.PAGESIZE + self._size):
            page = ctypes.c_void_p(self._address + at)
            assert ctypes.CDLL(None).mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def span(self, num_bytes: int, *, at_end: bool) -> tuple[Span, np.ndarray]:
        """So many of it, just behind the first of these pages or before the last."""
        begin = mmap.PAGESIZE + (self._size - num_bytes) * at_end
        return Span(self._address + begin, num_bytes), self._whole[begin : begin + num_bytes]


@pytest.mark.parametrize("itemsize", [2, 4])
def test_whatever_a_sealed_record_says_nothing_outside_of_it_is_touched(itemsize):
    """Lengths of streams, exceptions, codes, and how long it is: with checksums that hold, as a hostile or an unlucky writer makes them."""
    layout = SMALL if itemsize == 2 else replace(SMALL, dtype="float32")
    form, rng = RecordFormat(NAMESPACE, layout), np.random.default_rng(itemsize)
    refs, blocks = chain(layout, 1)
    [record] = packed(form, refs, blocks)
    memory, target = Fenced(2 * len(record)), Fenced(layout.block_bytes)
    header = _HEAD_BYTES + layout.token_id_bytes + 8
    streams = header + 160
    for number in range(3000):
        changed, at = bytearray(record), int(rng.choice([streams + 4 * (number % 5), header + 32, streams]))
        kind = number % 6
        if kind < 3:
            value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.integers(1 << 16)]))
            changed[at : at + 4] = value.to_bytes(4, "little")
        elif kind == 3:
            del changed[rng.integers(streams, len(changed)) :]
        elif kind == 4:
            changed[streams + 20 :] = rng.bytes(len(changed) - streams - 20)
        else:
            one, two = rng.integers(0, 4, 2) * 4 + streams  # one stream's bytes are another's: the sum holds
            moved = int(rng.integers(1, 2000))
            for place, by in ((one, moved), (two, -moved)):
                size = int.from_bytes(changed[place : place + 4], "little") + by
                changed[place : place + 4] = (size % (1 << 32)).to_bytes(4, "little")
        sealed = with_checksums(bytes(changed), layout)
        span, place = memory.span(len(sealed), at_end=bool(number % 2))
        place[:] = np.frombuffer(sealed, np.uint8)
        _, out = target.span(layout.block_bytes, at_end=bool(number // 2 % 2))
        [is_proven] = form.wanted(refs, [out]).proven([0], [span])
        assert not is_proven or np.array_equal(out, blocks[0])
        [short] = form.wanted(refs, [out]).proven([0], [Span(span.address, int(rng.integers(len(sealed))))])
        assert not short


def with_checksums(record: bytes, layout: BlockLayout) -> bytes:
    """With the length and the checksums of header and payload that fit it; that of the block stays."""
    covered = _HEAD_BYTES + layout.token_id_bytes
    payload = record[covered + 8 :]
    header = bytearray(record[:covered])
    header[16 + 8 : 16 + 16] = len(payload).to_bytes(8, "little")
    header[144:152] = xxhash.xxh3_64_intdigest(payload).to_bytes(8, "little")
    return bytes(header) + xxhash.xxh3_64_intdigest(bytes(header)).to_bytes(8, "little") + payload


def test_what_is_sound_but_not_what_is_asked_for_is_not_proven():
    """Another block's, another model's, cut, longer, of another version, codec, size or time: only the last is."""
    form, other = RecordFormat(NAMESPACE, LAYOUT), RecordFormat(Namespace.of({"model": "other"}), LAYOUT)
    refs, blocks = chain(LAYOUT, 2)
    record, neighbour = packed(form, refs, blocks)
    foreign = packed(other, refs[:1], blocks[:1])[0]
    wrong = [
        neighbour,
        foreign,
        record[:-1],
        record[:100],
        b"",
        record + b"x",
        *(
            resealed(record, at, b"\x07")
            for at in (0, 8, 10, 11, 12, 16, 24, 40, 72, 104, 136, 144, 152, 212)
        ),
    ]
    proven, _ = agree(form, [*wrong, resealed(record, 32, b"\x09")], refs[:1] * (len(wrong) + 1))
    assert proven == [False] * len(wrong) + [True]


def test_without_its_baseline_none_is_proven():
    form, reader = RecordFormat(NAMESPACE, LAYOUT), RecordFormat(NAMESPACE, LAYOUT)
    refs, blocks = chain(LAYOUT, 2)
    form.baselines.add(learned(LAYOUT, blocks))
    assert agree(reader, packed(form, refs, blocks), refs)[0] == [False, False]


def test_where_nothing_is_encoded_and_of_references_of_other_lengths_nothing_is_asked():
    refs, blocks = chain(LAYOUT, 2)
    assert RecordFormat(NAMESPACE, LAYOUT, encodes=False).wanted(refs, list(blocks)) is None
    short = BlockRef(refs[0].key, refs[0].parent_key, refs[0].tokens[:-4])
    assert RecordFormat(NAMESPACE, LAYOUT).wanted([refs[1], short], list(blocks)) is None


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_store_serves_most_blocks_so(open_lmdb, monkeypatch, in_memory):
    """From memory and past the page cache; what is damaged is looked at alone, and nothing else is."""
    absent_by(monkeypatch, lambda address, num_bytes: not in_memory)
    store = open_lmdb(layout=LAYOUT, capacity_bytes=64 * LAYOUT.block_bytes)
    refs, blocks = fill(store, 8)
    unpack, alone = store._format.unpack, []
    monkeypatch.setattr(store._format, "unpack", lambda *given: alone.append(given[1]) or unpack(*given))
    assert_holds(store, refs, blocks)
    assert alone == []
    store.raw().corrupt(refs[3].key)
    out = np.zeros((8, LAYOUT.block_bytes), np.uint8)
    outcomes = store.get_many(refs, list(out))
    assert [outcome.hit for outcome in outcomes] == [number != 3 for number in range(8)]
    assert set(alone) == {refs[3]}


def _spread(block, layout: BlockLayout) -> np.ndarray:
    """Every other element is larger by far: exponents of another distribution, so of another code."""
    words = np.asarray(block).view(np.uint16 if layout.itemsize == 2 else np.uint32).copy()
    words[::2] += 9 << (8 * layout.itemsize - 9)
    return words.view(np.uint8)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_like_the_last_one_is_proven_on_the_way(open_lmdb, monkeypatch, dtype, in_memory):
    """Without Python, from run to run. Where the code changes, what comes first of the other one is not."""
    absent_by(monkeypatch, lambda address, num_bytes: not in_memory)
    patient(monkeypatch)
    layout, asked = replace(LAYOUT, dtype=dtype), []
    monkeypatch.setattr(payload_file, "READ_BYTES", 2 * layout.block_bytes)
    store = open_lmdb(layout=layout, capacity_bytes=256 * layout.block_bytes)
    refs, blocks = fill(store, 12)
    monkeypatch.setattr(store._format, "_codes", Codes())
    more, wide = store_chain(store, 12, seed=1), [_spread(block, layout) for block in kv_like(store, 12)]
    store.put_many(more, wide)
    proven = Wanted.proven

    def noted(wanted, numbers, records):
        asked.extend(numbers)
        return proven(wanted, numbers, records)

    monkeypatch.setattr(Wanted, "proven", noted)
    for _ in range(3):
        asked.clear()
        assert_holds(store, [*refs, *more], [*blocks, *wide])
    if in_memory:  # all are one run
        assert asked in [list(range(12)), list(range(12, 24))]
    else:
        assert sorted(asked) == [0, 1, 12, 13]
    assert_holds(store, more, wide)
    asked.clear()
    for _ in range(2):
        assert_holds(store, more, wide)
    assert asked == []


def test_a_buffer_that_cannot_be_written_is_refused(open_lmdb):
    """What is compiled would write into it all the same."""
    store = open_lmdb(layout=LAYOUT, capacity_bytes=64 * LAYOUT.block_bytes)
    refs, _ = fill(store, 1)
    with pytest.raises(ValueError, match="cannot be written"):
        store.get_many(refs, [bytes(LAYOUT.block_bytes)])
