"""A record proves what it is. Damage to stored records is in the laws; here is what the laws cannot reach."""

import base64
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvstore import BlockLayout, BlockRef, MissReason, Namespace, chain_key
from kvstore.baseline import Baseline, Baselines
from kvstore.codec import Codec
from kvstore.record import RecordFormat, codec_of, damage_of

GOLDEN = Path(__file__).parent / "data" / "records.json"
LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=8, dtype="bfloat16", block_tokens=4)
NAMESPACE = Namespace.of({"model": "tiny"})
FORMAT = RecordFormat(NAMESPACE, LAYOUT)
TOKENS = struct.pack("<4i", 1, 2, 3, 50_000)
REF = BlockRef(chain_key(NAMESPACE.root_key, TOKENS), NAMESPACE.root_key, TOKENS)
BLOCK = np.arange(LAYOUT.block_bytes, dtype=np.uint8)
WIDE = replace(LAYOUT, num_kv_heads=8, head_dim=64)


def baseline_of(layout: BlockLayout, num_blocks: int = 1) -> Baseline:
    """Learned from noise."""
    baselines, rng = Baselines(layout, (num_blocks * layout.block_tokens,)), np.random.default_rng(0)
    for _ in range(num_blocks):
        baselines.learn(rng.integers(0, 256, layout.block_bytes, dtype=np.uint8))
    return baselines.learned()


def unpack(record: bytes, ref: BlockRef = REF, form: RecordFormat = FORMAT) -> MissReason | None:
    out = np.zeros(form.layout.block_bytes, dtype=np.uint8)
    reason = form.unpack(record, ref, out)
    assert reason is not None or np.array_equal(out, BLOCK)
    return reason


def resealed(record: bytes, position: int, value: bytes) -> bytes:
    """The record with other bytes in its header, and a header checksum that fits them."""
    header = bytearray(record[: 152 + len(TOKENS)])
    header[position : position + len(value)] = value
    checksum = struct.pack("<Q", xxhash.xxh3_64_intdigest(bytes(header)))
    return bytes(header) + checksum + record[len(header) + 8 :]


def test_the_format_is_what_the_document_says():
    """Read by hand, field by field, from the table in docs/block-format.md."""
    record = FORMAT.pack(REF, BLOCK, written_ns=1_700_000_000_000_000_000)
    assert record[:8] == b"kvtide\r\n"
    assert struct.unpack_from("<HBBIQQQ", record, 8) == (1, 0, 2, 16, 128, 128, 1_700_000_000_000_000_000)
    assert record[40:72] == NAMESPACE.digest
    assert record[72:104] == REF.key
    assert record[104:136] == REF.parent_key
    assert struct.unpack_from("<QQ", record, 136) == (xxhash.xxh3_64_intdigest(BLOCK.tobytes()),) * 2
    assert record[152:168] == TOKENS
    assert struct.unpack_from("<Q", record, 168)[0] == xxhash.xxh3_64_intdigest(record[:168])
    assert record[176:] == BLOCK.tobytes()


def test_what_was_packed_is_unpacked():
    assert unpack(FORMAT.pack(REF, BLOCK, 0)) is None


def test_compressed_and_raw_records_are_read_alike():
    raw = RecordFormat(NAMESPACE, LAYOUT, encodes=False)
    assert unpack(raw.pack(REF, BLOCK, 0)) is None
    assert unpack(FORMAT.pack(REF, BLOCK, 0), form=raw) is None


@pytest.mark.parametrize(
    "form",
    [
        RecordFormat(Namespace.of({"model": "other"}), LAYOUT),
        RecordFormat(NAMESPACE, replace(LAYOUT, num_kv_heads=2)),
        RecordFormat(NAMESPACE, replace(LAYOUT, head_dim=4, dtype="float32")),
    ],
    ids=["namespace", "size", "itemsize"],
)
def test_a_record_of_another_identity_is_not_read(form):
    assert unpack(FORMAT.pack(REF, BLOCK, 0), form=form) is MissReason.WRONG_IDENTITY


def test_a_sound_header_that_promises_something_else_is_not_believed():
    """As if the header had been written wrong, with a checksum to match."""
    record = FORMAT.pack(REF, BLOCK, 0)
    assert unpack(resealed(record, 8, struct.pack("<H", 2))) is MissReason.UNKNOWN_FORMAT
    assert unpack(resealed(record, 10, b"\x09")) is MissReason.UNKNOWN_FORMAT
    assert unpack(resealed(record, 10, b"\x01")) is MissReason.DAMAGED_CHECKSUM
    assert unpack(resealed(record, 24, struct.pack("<Q", 127))) is MissReason.DAMAGED_LENGTH
    assert unpack(resealed(record, 136, bytes(8))) is MissReason.DAMAGED_CHECKSUM


def test_a_block_that_changed_while_it_was_written_is_found_out(monkeypatch):
    """The writer broke its promise: the record must not be served, though the payload is sound."""
    block = BLOCK.copy()

    def overwritten(raw, itemsize, out, baseline, codes, *, learns):
        block[5] ^= 1
        out[-block.size :] = block
        return 0, block.size

    monkeypatch.setattr("kvstore.record.encode", overwritten)
    assert unpack(FORMAT.pack(REF, block, 0)) is MissReason.DAMAGED_CHECKSUM


@pytest.mark.parametrize("number", range(6))
def test_what_the_first_version_wrote_is_read_and_still_written(number):
    """Records of all dtypes, with a baseline and without, byte for byte; what a later zstd makes of a frame may differ."""
    golden = json.loads(GOLDEN.read_text())
    told = {
        name: value and base64.b64decode(value)
        for name, value in golden["records"][number].items()
        if name != "dtype"
    }
    layout = BlockLayout(
        num_layers=2, num_kv_heads=1, head_dim=12, dtype=golden["records"][number]["dtype"], block_tokens=9
    )
    namespace = Namespace.of({"model": layout.dtype})
    tokens = np.arange(9, dtype="<i4").tobytes()
    ref = BlockRef(chain_key(namespace.root_key, tokens), namespace.root_key, tokens)
    form = RecordFormat(namespace, layout)
    if told["baseline"]:
        form.baselines.add(Baseline.parse(told["baseline"]))
    out = np.zeros(layout.block_bytes, np.uint8)
    assert form.unpack(told["record"], ref, out) is None
    assert out.tobytes() == told["block"]
    packed = form.pack(ref, out, 1_700_000_000_000_000_000)
    assert codec_of(packed) == codec_of(told["record"])
    if tuple(golden["zstd"]) == zstandard.ZSTD_VERSION:
        assert packed == told["record"]


def test_a_record_says_how_it_is_encoded():
    assert codec_of(FORMAT.pack(REF, BLOCK, 0)) is Codec.RAW  # too small to gain
    form = RecordFormat(NAMESPACE, WIDE)
    zeros = np.zeros(WIDE.block_bytes, np.uint8)
    assert codec_of(form.pack(REF, zeros, 0)) is Codec.PLANES
    form.baselines.add(baseline_of(WIDE))
    assert codec_of(form.pack(REF, zeros, 0)) is Codec.BASELINE


def test_a_record_without_its_baseline_is_a_miss_that_says_so():
    """And one with it is a hit, whatever baseline is current by then."""
    form = RecordFormat(NAMESPACE, WIDE)
    form.baselines.add(baseline_of(WIDE))
    block = np.zeros(WIDE.block_bytes, np.uint8)
    record = form.pack(REF, block, 0)
    out = np.ones_like(block)
    assert RecordFormat(NAMESPACE, WIDE).unpack(record, REF, out) is MissReason.MISSING_BASELINE
    form.baselines.add(baseline_of(WIDE, num_blocks=2))
    assert form.unpack(record, REF, out) is None
    assert not out.any()
    assert damage_of(record, NAMESPACE.digest + REF.key, {}) is MissReason.MISSING_BASELINE
    assert damage_of(record, NAMESPACE.digest + REF.key, form.baselines.known) is None


@given(st.binary(max_size=400))
def test_junk_is_never_a_hit_and_never_raises(junk):
    assert unpack(junk) is not None
    assert unpack(b"kvtide\r\n\x01\x00" + junk) is not None
