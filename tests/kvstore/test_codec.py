"""Encoding is lossless for any bytes, and refuses what it did not write."""

import contextlib
import hashlib
import threading

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvstore import BlockLayout, CodecError, FormatError
from kvstore.baseline import Baseline, Baselines
from kvstore.codec import Codec, decode, encode
from kvstore.errors import MissingBaseline


def encoded(data, itemsize: int, baseline: Baseline | None = None) -> tuple[Codec, bytes]:
    out = np.full(len(memoryview(data).cast("B")) + 3, 0xA5, dtype=np.uint8)
    codec, num_bytes = encode(data, itemsize, out, baseline)
    payload = out[out.size - num_bytes :].tobytes()
    assert (out[: out.size - num_bytes] == 0xA5).sum() >= 3  # what has no room is not needed
    return codec, payload


def decoded(codec: int, payload, itemsize: int, num_bytes: int, *known: Baseline) -> bytes:
    out = np.full(num_bytes, 0xA5, dtype=np.uint8)
    decode(codec, payload, itemsize, out, {baseline.digest: baseline for baseline in known})
    return out.tobytes()


def channels(dtype: str, num_blocks: int, layout: BlockLayout) -> np.ndarray:
    """Blocks whose channels differ in magnitude, as those of KV do."""
    rng = np.random.default_rng(0)
    scales = np.exp2(rng.normal(0, 3, (layout.num_layers, 2, 1, layout.num_kv_heads, layout.head_dim)))
    values = rng.standard_normal((num_blocks, *layout.shape)) * scales
    return (
        bfloat16(values)
        if dtype == "bfloat16"
        else values.astype({"float16": "<f2", "float32": "<f4"}[dtype])
    )


def learned(blocks: np.ndarray, layout: BlockLayout) -> Baseline:
    baselines = Baselines(layout, (len(blocks) * layout.block_tokens,))
    for block in blocks:
        baselines.learn(block.reshape(-1).view(np.uint8))
    return baselines.learned()


def bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def normal(dtype: str, num_items: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(num_items)
    return (
        bfloat16(values)
        if dtype == "bfloat16"
        else values.astype({"float16": "<f2", "float32": "<f4"}[dtype])
    )


@given(st.binary(max_size=3000), st.sampled_from([1, 2, 4, 8]))
def test_any_bytes_come_back(data, itemsize):
    """Sizes that are no whole number of elements included."""
    codec, payload = encoded(data, itemsize)
    assert decoded(codec, payload, itemsize, len(data)) == data
    assert len(payload) <= len(data)


@given(
    st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan]), max_size=30),
    st.integers(1, 60),
    st.sampled_from(["bfloat16", "float16", "float32"]),
)
def test_floats_come_back_bit_for_bit(values, repeats, dtype):
    """NaNs, infinities, subnormals and both zeros included; repeated, so that they do compress."""
    with np.errstate(over="ignore"):
        array = np.array(values * repeats, dtype="<f4")
        array = (
            bfloat16(array)
            if dtype == "bfloat16"
            else array.astype({"float16": "<f2", "float32": "<f4"}[dtype])
        )
    codec, payload = encoded(array, array.itemsize)
    assert decoded(codec, payload, array.itemsize, array.nbytes) == array.tobytes()


@pytest.mark.parametrize("word", ["<u2", "<u4"])
def test_every_pattern_of_the_upper_bits_comes_back(word):
    """All 65,536 of them: every sign, every exponent, every NaN of bfloat16."""
    bits = np.dtype(word).itemsize * 8
    array = np.arange(65536, dtype=word) << (bits - 16)
    array = np.concatenate([array, np.zeros(200_000, dtype=word)])  # so that the planes codec is used
    codec, payload = encoded(array, array.itemsize)
    assert codec is Codec.PLANES
    assert decoded(codec, payload, array.itemsize, array.nbytes) == array.tobytes()


@pytest.mark.parametrize("num_items", [1, 2, 3, 131_071, 131_072, 131_073, 300_001])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_size_comes_back(num_items, dtype):
    """Around the borders of the segments in which planes are split."""
    array = normal(dtype, num_items)
    codec, payload = encoded(array, array.itemsize)
    assert decoded(codec, payload, array.itemsize, array.nbytes) == array.tobytes()


@pytest.mark.parametrize(("dtype", "ratio"), [("bfloat16", 1.45), ("float16", 1.12), ("float32", 1.17)])
def test_what_looks_like_kv_gets_smaller(dtype, ratio):
    array = normal(dtype, 184_320)
    codec, payload = encoded(array, array.itemsize)
    assert codec is Codec.PLANES
    assert array.nbytes / len(payload) > ratio


def test_noise_is_stored_as_it_is():
    data = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    assert encoded(data, 2) == (Codec.RAW, data.tobytes())


def test_the_format_of_planes():
    """As docs/block-format.md says: 1.0 and -2.0 in bfloat16 are 3F80 and C000."""
    array = np.array([0x3F80, 0xC000] * 500, dtype="<u2")
    codec, payload = encoded(array, 2)
    frame_bytes = int.from_bytes(payload[:4], "little")
    assert codec == 2
    assert payload[4:8] == bytes.fromhex("28b52ffd")  # what every zstd frame begins with
    assert zstandard.decompress(payload[4 : 4 + frame_bytes]) == b"\x7f\x80" * 500
    assert payload[4 + frame_bytes :] == b"\x00\x80" * 500  # sign and mantissa of each


def test_the_format_of_planes_of_four_bytes():
    """-1.5 + 2^-23 is BFBFFFFF."""
    array = np.array([0xBFBFFFFF] * 500, dtype="<u4")
    codec, payload = encoded(array, 4)
    frame_bytes = int.from_bytes(payload[:4], "little")
    assert codec == 2
    assert zstandard.decompress(payload[4 : 4 + frame_bytes]) == b"\x7f" * 500
    assert payload[4 + frame_bytes :] == b"\xbf" * 500 + b"\xff\xff" * 500


@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_format_of_a_baseline(itemsize):
    """As docs/block-format.md says: of two channels, the second twice as large."""
    layout = BlockLayout(
        num_layers=1,
        num_kv_heads=1,
        head_dim=2,
        dtype={2: "bfloat16", 4: "float32"}[itemsize],
        block_tokens=500,
    )
    array = np.array([0x3F80, 0x4000] * 1000, dtype="<u2").astype(f"<u{itemsize}") << (itemsize * 8 - 16)
    baseline = learned(array.reshape(1, -1), layout)
    assert baseline.content[-8:] == bytes.fromhex("803f0040803f0040")
    codec, payload = encoded(array, itemsize, baseline)
    assert codec == 3
    assert payload[:16] == hashlib.blake2b(baseline.content, digest_size=16).digest()
    frame_bytes = int.from_bytes(payload[16:20], "little")
    assert zstandard.decompress(payload[20 : 20 + frame_bytes]) == bytes(2000)
    assert payload[20 + frame_bytes :] == bytes(2000 * (itemsize - 1))


def test_the_format_of_a_baseline_of_float16():
    """The sign is coded with the exponent, and turned where a channel is mostly negative: 1.0 is 3C00, -2.0 is C000."""
    layout = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="float16", block_tokens=500)
    array = np.array([0x3C00, 0xC000] * 1000, dtype="<u2")
    baseline = learned(array.reshape(1, -1), layout)
    assert baseline.content[-8:] == bytes.fromhex("003c00c0003c00c0")
    array[0], array[1] = 0xBC01, 0x4302  # the other sign
    codec, payload = encoded(array, 2, baseline)
    frame_bytes = int.from_bytes(payload[16:20], "little")
    assert codec == 3
    assert zstandard.decompress(payload[20 : 20 + frame_bytes]) == b"\x80\x83" + bytes(1998)
    assert payload[20 + frame_bytes :] == b"\x01\x02" + bytes(1998)


@pytest.mark.parametrize("itemsize", [2, 4])
@given(st.binary(min_size=8, max_size=2000))
def test_what_earlier_versions_wrote_is_read(itemsize, data):
    """Codec 1: each element rotated left by one bit, and cut into bytes."""
    data = data[: len(data) // itemsize * itemsize]
    bits, words = (
        itemsize * 8,
        [int.from_bytes(data[i : i + itemsize], "little") for i in range(0, len(data), itemsize)],
    )
    rotated = [(word << 1 | word >> bits - 1) & (1 << bits) - 1 for word in words]
    frame = zstandard.compress(bytes(word >> bits - 8 for word in rotated))
    second = bytes(word >> 16 & 0xFF for word in rotated) if itemsize == 4 else b""
    low = b"".join(
        (word & (0xFFFF if itemsize == 4 else 0xFF)).to_bytes(itemsize // 2, "little") for word in rotated
    )
    payload = len(frame).to_bytes(4, "little") + frame + second + low
    assert decoded(1, payload, itemsize, len(data)) == data


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@given(data=st.data())
def test_any_bytes_come_back_with_any_baseline(dtype, data):
    """Whatever wraps around, and whatever the baseline was learned from."""
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=4, dtype=dtype, block_tokens=16)
    seeds = data.draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
    blocks = [
        np.random.default_rng(seed).integers(0, 256, layout.block_bytes, dtype=np.uint8) for seed in seeds
    ]
    baseline = learned(np.stack(blocks[:1]), layout)
    block = blocks[1] & data.draw(st.sampled_from([0, 1, 0xFF]))
    codec, payload = encoded(block, layout.itemsize, baseline)
    assert decoded(codec, payload, layout.itemsize, layout.block_bytes, baseline) == block.tobytes()


@pytest.mark.parametrize(
    ("dtype", "planes", "baseline"),
    [("bfloat16", 1.27, 1.43), ("float16", 1.04, 1.12), ("float32", 1.11, 1.17)],
)
@pytest.mark.parametrize("block_tokens", [16, 128])
def test_a_baseline_makes_what_looks_like_kv_smaller(dtype, planes, baseline, block_tokens):
    """Also where a layer alone is more than what is worked on at a time."""
    layout = BlockLayout(
        num_layers=1 if block_tokens == 128 else 8,
        num_kv_heads=8,
        head_dim=128,
        dtype=dtype,
        block_tokens=block_tokens,
    )
    first, second = channels(dtype, 2, layout)
    table = learned(first[None], layout)
    codec, payload = encoded(second, layout.itemsize, table)
    assert codec is Codec.BASELINE
    assert decoded(codec, payload, layout.itemsize, layout.block_bytes, table) == second.tobytes()
    assert layout.block_bytes / len(payload) > baseline
    assert layout.block_bytes / len(encoded(second, layout.itemsize)[1]) < planes + 0.1


def test_what_needs_a_baseline_is_refused_without_it():
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16")
    blocks = channels("bfloat16", 1, layout)
    table = learned(blocks, layout)
    codec, payload = encoded(blocks[0], 2, table)
    with pytest.raises(MissingBaseline, match=table.digest.hex()):
        decoded(codec, payload, 2, layout.block_bytes)
    with pytest.raises(CodecError, match="layout"):
        decoded(codec, payload, 4, layout.block_bytes, table)
    with pytest.raises(CodecError, match="layout"):
        decoded(codec, payload, 2, layout.block_bytes - 2, table)


def test_what_has_no_room_or_another_layout_is_not_encoded():
    """Compiled loops would write and read beyond what is there."""
    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype="bfloat16")
    blocks = channels("bfloat16", 1, layout)
    with pytest.raises(ValueError, match="bytes to encode"):
        encode(blocks[0], 2, np.empty(layout.block_bytes - 1, np.uint8))
    with pytest.raises(ValueError, match="channels"):
        encoded(blocks[0].reshape(-1)[:-1], 2, learned(blocks, layout))


@given(st.binary(max_size=200), st.sampled_from([1, 2, 4]), st.integers(0, 400))
def test_junk_is_refused_or_decodes_to_the_size_asked_for(payload, itemsize, num_bytes):
    """Never another exception, never a write outside of the buffer."""
    out = np.zeros(num_bytes + 8, dtype=np.uint8)
    layout = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="bfloat16", block_tokens=1)
    table = learned(np.ones((1, 8), np.uint8), layout)
    for codec in (0, 1, 2, 3, 255):
        with contextlib.suppress(FormatError):
            decode(codec, payload, itemsize, out[:num_bytes])
        with contextlib.suppress(FormatError):
            decode(codec, table.digest + payload, itemsize, out[:num_bytes], {table.digest: table})
        assert not out[num_bytes:].any()


def test_a_frame_that_claims_to_be_huge_reserves_nothing():
    """The size is compared before zstd is asked to decompress."""
    huge = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26))
    with pytest.raises(CodecError, match="exponents"):
        decode(1, len(huge).to_bytes(4, "little") + huge + bytes(10), 2, np.zeros(20, dtype=np.uint8))


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_planes_of_nothing_are_refused(codec):
    """Nobody writes them."""
    table = learned(
        np.ones((1, 8), np.uint8),
        BlockLayout(num_layers=1, num_kv_heads=1, head_dim=2, dtype="bfloat16", block_tokens=1),
    )
    empty = zstandard.compress(b"")
    payload = (table.digest if codec == 3 else b"") + len(empty).to_bytes(4, "little") + empty
    with pytest.raises(CodecError, match="no elements"):
        decoded(codec, payload, 2, 0, table)


def test_unknown_codecs_are_refused():
    with pytest.raises(FormatError, match="codec 7"):
        decode(7, b"", 2, np.zeros(2, dtype=np.uint8))


def test_threads_do_not_share_tools():
    """Contexts and scratch are a thread's own: results stay right side by side."""
    arrays = [normal("bfloat16", 50_000 + 1000 * i)[::-1].copy() for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            codec, payload = encoded(arrays[i], 2)
            if decoded(codec, payload, 2, arrays[i].nbytes) != arrays[i].tobytes():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
