"""Encoding is lossless for any bytes, and refuses what it did not write."""

import contextlib
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import CodecError, FormatError
from kvstore.codec import Codec, decode, encode


def encoded(data, itemsize: int) -> tuple[Codec, bytes]:
    codec, pieces = encode(data, itemsize)
    return codec, b"".join(pieces)


def decoded(codec: int, payload, itemsize: int, num_bytes: int) -> bytes:
    out = np.full(num_bytes, 0xA5, dtype=np.uint8)
    decode(codec, payload, itemsize, out)
    return out.tobytes()


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
    """Without a copy, too."""
    data = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8)
    codec, pieces = encode(data, 2)
    assert codec is Codec.RAW
    assert np.shares_memory(np.asarray(pieces[0]), data)


def test_the_format_of_planes():
    """As docs/block-format.md says: 1.0 and -2.0 in bfloat16 are 3F80 and C000."""
    array = np.array([0x3F80, 0xC000] * 500, dtype="<u2")
    codec, payload = encoded(array, 2)
    frame_bytes = int.from_bytes(payload[:4], "little")
    assert codec == 1
    assert payload[4:8] == bytes.fromhex("28b52ffd")  # what every zstd frame begins with
    assert payload[4 + frame_bytes :] == b"\x00\x01" * 500  # mantissa and sign of each


@given(st.binary(max_size=200), st.sampled_from([1, 2, 4]), st.integers(0, 400))
def test_junk_is_refused_or_decodes_to_the_size_asked_for(payload, itemsize, num_bytes):
    """Never another exception, never a write outside of the buffer."""
    out = np.zeros(num_bytes + 8, dtype=np.uint8)
    for codec in (0, 1, 2, 255):
        with contextlib.suppress(FormatError):
            decode(codec, payload, itemsize, out[:num_bytes])
        assert not out[num_bytes:].any()


def test_a_frame_that_claims_to_be_huge_reserves_nothing():
    """The size is compared before zstd is asked to decompress."""
    import zstandard

    huge = zstandard.ZstdCompressor(level=1).compress(bytes(1 << 26))
    with pytest.raises(CodecError, match="exponents"):
        decode(1, len(huge).to_bytes(4, "little") + huge + bytes(10), 2, np.zeros(20, dtype=np.uint8))


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
