"""The Huffman code of first bytes: exact for any bytes, as its definition says, and out of bounds for none."""

import hashlib
import threading

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore import CodecError
from kvstore.baseline import DIGEST_BYTES
from kvstore.block import BlockLayout, Namespace
from kvstore.codec import Checksums, Codec, addresses, decode, encode
from kvstore.huffman import EXCEPTION_BYTES, HEAD_BYTES, LENGTHS_BYTES, MOST_BITS, PROVEN, Code, Codes
from kvstore.kernels import kernels
from kvstore.reasons import MissReason
from kvstore.record import RecordFormat, codec_of, damage_of
from kvstore.store import BlockRef
from tests.kvstore.test_codec import bfloat16

BEGIN = DIGEST_BYTES + LENGTHS_BYTES


def reference(lengths: list[int], payload: bytes, num_items: int) -> bytes:
    """The first bytes, as docs/block-format.md defines them: a bit after the other."""
    by_bits, bits, length = {}, 0, 0
    for own, byte in sorted((own, byte) for byte, own in enumerate(lengths) if own):
        bits <<= own - length
        length = own
        by_bits[f"{bits:0{own}b}"] = byte
        bits += 1
    *sizes, num_absent = np.frombuffer(payload[:HEAD_BYTES], "<u4").tolist()
    at = HEAD_BYTES + EXCEPTION_BYTES * num_absent
    items = bytearray()
    for stream, size in enumerate(sizes):
        of_stream = payload[at : at + size]
        at += size
        run = iter("".join(f"{byte:08b}"[::-1] for byte in of_stream))
        end = (stream + 1) * (num_items // 16 * 4) if stream < 3 else num_items
        while len(items) < end:
            seen = next(run)
            while seen not in by_bits:
                seen += next(run)
            items.append(by_bits[seen])
    positions = np.frombuffer(payload[HEAD_BYTES : HEAD_BYTES + 4 * num_absent], "<u4")
    for position, byte in zip(positions.tolist(), payload[HEAD_BYTES + 4 * num_absent :], strict=False):
        items[position] = byte
    return bytes(items)


def coded(items: np.ndarray, code: Code) -> bytes:
    """Head, exceptions and streams, by the compiled loop: 64 at once where that can be, or four by four, as the planes of no code are told."""
    padded = np.concatenate([items, np.full(-items.size % 4, 0xA5, np.uint8)])
    found = []
    for planes in (code.planes, np.zeros_like(code.planes)):
        out = np.empty(items.size * MOST_BITS // 8 + 64, np.uint8)
        positions, values, sizes = (
            np.empty(items.size, np.uint32),
            np.empty(items.size, np.uint8),
            np.empty(4, np.int64),
        )
        number = kernels(2).encode(
            padded, items.size, code.pairs, planes, code.absent, out, positions, values, sizes
        )
        head = np.array([*sizes, number], "<u4").tobytes()
        beside = positions[:number].tobytes() + values[:number].tobytes()
        found.append(head + beside + out[: sizes.sum()].tobytes())
    assert found[0] == found[1]
    return found[0]


def restored(payload: bytes, begin: int, end: int, code: Code, num_items: int) -> np.ndarray | None:
    """The first bytes by the compiled loop, with guards around what it may write; None where it says that nothing was encoded so."""
    guarded = np.full(num_items + 32, 0xA5, np.uint8)
    plane = guarded[16 : 16 + num_items]
    source = np.frombuffer(
        payload[:end] + bytes(num_items), np.uint8
    )  # as in a payload, the second bytes follow
    words, zero = np.zeros(num_items, np.uint16), np.zeros(1, np.int64)
    states, checksums = np.zeros(1, np.uint8), np.empty((0, 2), np.uint64)
    records = addresses([source]), np.array([source.size]), zero, 0
    code_is = source[:begin], code.table, plane
    nothing = np.zeros((1, 4096), np.uint16), num_items, 7, None
    targets = addresses([words.view(np.uint8)])
    kernels(2).restore(*records, targets, checksums, states, num_items, *code_is, *nothing)
    held = states[0] == PROVEN
    assert (guarded[:16] == 0xA5).all()
    assert (guarded[-16:] == 0xA5).all()
    return plane if held else None


SKEWED = st.builds(
    lambda seed, size, spread: (
        np.random.default_rng(seed).normal(127, spread, size).astype(np.int64).astype(np.uint8)
    ),
    st.integers(0, 1 << 30),
    st.sampled_from([1, 3, 4, 15, 16, 17, 63, 64, 65, 200, 900]),
    st.sampled_from([0.3, 1.5, 40.0]),
)


@settings(max_examples=40)
@given(SKEWED, st.one_of(st.none(), SKEWED))
def test_any_bytes_come_back_by_any_code_and_as_the_definition_says(items, others):
    """Also by a code that was made of others, in which some have none."""
    code = Code.of(np.bincount(items if others is None else others, minlength=256))
    payload = coded(items, code)
    assert reference(code.lengths.tolist(), payload, items.size) == items.tobytes()
    assert np.array_equal(restored(payload, 0, len(payload), code, items.size), items)
    assert np.array_equal(restored(b"xyz" + payload, 3, 3 + len(payload), code, items.size), items)


@settings(max_examples=60)
@given(st.data())
def test_no_bytes_have_it_read_or_write_out_of_bounds(data):
    """Damaged heads, exceptions and streams, ends that are too early or too late: refused, or other bytes, which a checksum finds."""
    items = data.draw(SKEWED)
    code = Code.of(np.bincount(items, minlength=256))
    payload = bytearray(coded(items, code))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(payload) - 1, 40)) | st.integers(0, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(payload)) | st.integers(0, len(payload)))
    restored(bytes(payload[:end]), data.draw(st.integers(0, 3)), end, code, items.size)
    for size in (items.size // 3 + 1, items.size * 3):
        restored(bytes(payload), 0, len(payload), code, size)


@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.integers(129, 400) | st.integers(129, 5000))
def test_checksums_are_those_of_the_library(seed, num_bytes):
    from kvstore.xxh3 import xxh3  # takes numba

    data = np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8)
    assert xxh3(data) == xxhash.xxh3_64_intdigest(data)


@settings(max_examples=40)
@given(st.integers(0, 1 << 30), st.sampled_from([0.1, 1.0, 6.0]), st.integers(0, 256))
def test_a_code_is_whole_and_short_enough_and_is_what_it_says(seed, spread, num_used):
    """Of counts that are alike and of such that differ by orders of magnitude; of all bytes, some, one and none."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.normal(3, spread, 256)).astype(np.int64)
    counts[rng.permutation(256)[num_used:]] = 0
    code = Code.of(counts)
    used = code.lengths[code.lengths > 0].astype(int)
    assert used.size >= 2
    assert used.max() <= MOST_BITS
    assert sum(2.0**-used) == 1.0
    again = Code.parse(code.packed)
    assert np.array_equal(again.lengths, code.lengths)
    assert np.array_equal(again.table, code.table)


def test_a_code_is_as_short_as_codes_can_be():
    """Where no length is at its bound: within the entropy and the entropy of powers of two, for which it is exact."""
    counts = np.zeros(256, np.int64)
    counts[[7, 9, 40, 41, 200]] = [16, 8, 4, 2, 2]
    assert Code.of(counts).num_bits(counts) == 16 + 8 * 2 + 4 * 3 + 2 * 4 + 2 * 4


@pytest.mark.parametrize(
    "damage", [b"", bytes(128), b"\x01" + bytes(127), b"\x1c" + bytes(127), b"\x11" * 128, bytes(127)]
)
def test_lengths_that_are_no_code_are_refused(damage):
    """None at all, one only, one that is too long, too many."""
    with pytest.raises(CodecError):
        Code.parse(damage)


def kv(num_items: int, itemsize: int = 2) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(num_items).astype("<f4")
    return bfloat16(values) if itemsize == 2 else values


def payload_of(data: np.ndarray, codes: Codes) -> bytes:
    out = np.empty(data.nbytes, np.uint8)
    codec, num_bytes = encode(data, data.itemsize, out, None, codes, learns=True)
    assert codec is Codec.HUFFMAN
    return out[out.size - num_bytes :].tobytes()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("num_items", [4096, 4099, 20_001])
def test_the_format(itemsize, num_items):
    """As docs/block-format.md says: no baseline, the lengths in halves of bytes, what is coded, the second bytes and the rest."""
    data = kv(num_items, itemsize)
    payload = payload_of(data, Codes())
    words = data.view(f"<u{itemsize}").astype(np.int64)
    bits = itemsize * 8
    assert payload[:DIGEST_BYTES] == bytes(DIGEST_BYTES)
    lengths = [half for byte in payload[DIGEST_BYTES:BEGIN] for half in (byte & 15, byte >> 4)]
    rest = payload[len(payload) - num_items * (itemsize - 1) :]
    first = reference(lengths, payload[BEGIN:], num_items)
    assert first == (words >> (bits - 9) & 0xFF).astype(np.uint8).tobytes()
    second = (words >> (bits - 16) & 0x7F | words >> (bits - 1) << 7).astype(np.uint8)
    low = b"" if itemsize == 2 else (words & 0xFFFF).astype("<u2").tobytes()
    assert rest == second.tobytes() + low
    out = np.empty_like(data)
    decode(Codec.HUFFMAN, payload, itemsize, out)
    assert out.tobytes() == data.tobytes()


def test_nothing_of_another_block_is_in_a_blocks_bytes():
    """The loop codes four bytes at once: those behind the last one are no block's."""
    small = bfloat16(np.random.default_rng(2).normal(size=4097).astype(np.float32))
    payloads = []
    for others in (1.0, 1e30):
        large = bfloat16(np.full(4104, others, np.float32))
        encode(large, 2, np.empty(large.nbytes, np.uint8))
        out = np.empty(small.nbytes, np.uint8)
        codec, num_bytes = encode(small, 2, out, None, Codes(), learns=True)
        assert codec == Codec.HUFFMAN
        payloads.append(out[out.size - num_bytes :].tobytes())
    assert payloads[0] == payloads[1]


def test_the_same_bytes_are_written_as_ever():
    """A payload that some version wrote, by its digest: later ones must read it, so none may lay it out otherwise."""
    words = (np.arange(5000) * 7919 % 251 // 2).astype(np.uint16) | (
        np.bitwise_count(np.arange(5000)) + 120
    ).astype(np.uint16) << 7
    payload = payload_of(words, Codes())
    assert hashlib.sha256(payload).hexdigest()[:16] == "8bc02b32dc14384e"


def test_codes_are_learned_only_of_what_may_be():
    """And made anew when blocks have become others, not before some hundred."""
    codes, narrow = Codes(), np.random.default_rng(0).normal(127, 1, 5000).astype(np.uint8)
    assert codes.code(b"", narrow, learns=False) is None
    first = codes.code(b"", narrow, learns=True)
    assert first is not None
    other = narrow + np.uint8(20)
    assert codes.code(b"", other, learns=False) is first
    assert codes.code(b"another baseline", other, learns=False) is None
    seen = [codes.code(b"", other, learns=True) for _ in range(300)]
    assert seen[0] is first
    assert seen[-1] is not first
    assert seen[-1].num_bits(np.bincount(other, minlength=256)) < 3 * other.size


@pytest.mark.parametrize("values", [90, 2])
def test_what_takes_many_bits_or_next_to_none_is_left_to_zstd(values):
    spread = np.random.default_rng(0).integers(0, values, 8192).astype(np.uint16) << 7
    out = np.empty(spread.nbytes, np.uint8)
    assert encode(spread, 2, out, None, Codes(), learns=True)[0] is Codec.PLANES


LAYOUT = BlockLayout(num_layers=4, num_kv_heads=2, head_dim=32, dtype="bfloat16", block_tokens=16)
REF = BlockRef(bytes(32), bytes(32), bytes(LAYOUT.token_id_bytes))


def test_a_record_that_is_damaged_anywhere_is_found_out():
    """In the digest, the lengths, the head, exceptions, streams, second bytes: never served, and never called missing."""
    form = RecordFormat(Namespace.of({}), LAYOUT)
    block = kv(LAYOUT.block_bytes // 2)
    record = bytearray(form.pack(REF, block, 0))
    assert codec_of(record) is Codec.HUFFMAN
    out = np.empty(LAYOUT.block_bytes, np.uint8)
    assert form.unpack(record, REF, out) is None
    assert out.tobytes() == block.tobytes()
    begin = len(record) - int.from_bytes(record[24:32], "little")
    for at in [
        *range(begin, begin + BEGIN + 60, 3),
        *range(begin + BEGIN + 60, len(record), 97),
        len(record) - 1,
    ]:
        record[at] ^= 0x41
        assert form.unpack(record, REF, out) is MissReason.DAMAGED_CHECKSUM
        record[at] ^= 0x41
    assert damage_of(record, form.namespace.digest + REF.key, {}) is None


def test_a_tenants_own_blocks_make_no_code():
    """What it says of them would be in the records of others; one that others' blocks have made is for all."""
    form, block = RecordFormat(Namespace.of({}), LAYOUT), kv(LAYOUT.block_bytes // 2)
    own = BlockRef(REF.key, REF.parent_key, REF.tokens, b"o" * 16)
    assert codec_of(form.pack(own, block, 0)) is Codec.PLANES
    assert codec_of(form.pack(REF, block, 0)) is Codec.HUFFMAN
    assert codec_of(form.pack(own, block, 0)) is Codec.HUFFMAN


def test_wrong_checksums_are_found_though_all_decodes():
    data = kv(5000)
    payload, out = payload_of(data, Codes()), np.empty(data.nbytes, np.uint8)
    right = Checksums(xxhash.xxh3_64_intdigest(payload), xxhash.xxh3_64_intdigest(data.tobytes()))
    decode(Codec.HUFFMAN, payload, 2, out, {}, right)
    for wrong in (right._replace(payload=1), right._replace(block=1)):
        with pytest.raises(CodecError):
            decode(Codec.HUFFMAN, payload, 2, out, {}, wrong)


def test_threads_have_their_own():
    """Of planes and streams: several encode and decode at once."""
    codes, failed = Codes(), []

    def work(seed: int) -> None:
        data = np.roll(kv(30_000), seed)
        for _ in range(20):
            out = np.empty(data.nbytes, np.uint8)
            decode(Codec.HUFFMAN, payload_of(data, codes), 2, out)
            if out.tobytes() != data.tobytes():
                failed.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
