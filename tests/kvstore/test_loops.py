"""The way back from a payload to elements that are proven: the same bytes in one pass as in two, wherever they are wanted."""

import platform

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.code import _shelf
from kvstore.codec import addresses
from kvstore.huffman import BROKEN, PROVEN, Code
from kvstore.kernels import _restore, kernels
from tests.kvstore.test_huffman import coded

FORMS = [(16, 7), (16, 8), (32, 23)]
"""Bits of an element, and the lowest of the byte that is coded."""
SHAPES = [
    *[(2, 16, 64), (3, 16, 192), (1, 32, 48), (2, 8, 640), (2, 2, 1280), (1, 1, 512), (1, 9, 4096)],
    *[(3, 17, 64), (2, 5, 96), (1, 1, 165), (2, 1, 320), (1, 3, 256)],
]
"""Groups, rows of each, channels. Of the first each 1,024 bytes are of one group, with rows that are shorter and longer; of the last they are not."""
GUARD_BYTES = 128


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other instructions")
@pytest.mark.parametrize("word_bytes", [2, 4])
def test_what_was_written_past_the_caches_is_there_for_others(word_bytes):
    """Before anybody is told: by an instruction that is meant for that."""
    assert kernels(word_bytes).restore  # it is kept from then on
    code = _shelf(_restore(word_bytes)).find()
    assert code is not None
    assert b"\x0f\xae\xf8" in code, "no sfence"


def placed(num_bytes: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """So many bytes that begin so many behind a multiple of 64, and all that lies around them."""
    whole = np.full(num_bytes + 2 * GUARD_BYTES + 64, 0xA5, np.uint8)
    begin = GUARD_BYTES + offset - int(addresses([whole])[0]) % 64
    return whole[begin : begin + num_bytes], whole


@settings(max_examples=60)
@given(
    st.sampled_from(FORMS),
    st.sampled_from(SHAPES),
    st.sampled_from([0, 0, 2, 16, 63]),
    st.integers(0, 1000),
    st.booleans(),
)
def test_what_was_parted_and_coded_is_there_and_proven_wherever_it_is_wanted(
    form, shape, offset, seed, ends_early
):
    """Past the caches and through them, by either order of bits, with values that have no code; nothing around it is written."""
    (bits, first_bit), (groups, rows, channels) = form, shape
    word, rng = np.dtype(f"u{bits // 8}"), np.random.default_rng(seed)
    num_items = groups * rows * channels - (channels // 2 if ends_early else 0)
    numbers = rng.integers(0, 1 << bits, (groups, channels), dtype=word)
    items = (rng.standard_normal(num_items) * (1 << (bits - 4))).astype(np.int64).astype(word)
    first, second = np.zeros(num_items, np.uint8), np.zeros(num_items, np.uint8)
    low = np.zeros(num_items, np.uint16) if bits == 32 else None
    kernels(word.itemsize).split(items, numbers, rows, first_bit, first, second, low)
    code = Code.of(np.bincount(first[: num_items // 2 + 1], minlength=256))
    payload = b"front" + coded(first, code) + second.tobytes() + (b"" if low is None else low.tobytes())
    raw = items.tobytes()
    right = xxhash.xxh3_64_intdigest(payload), xxhash.xxh3_64_intdigest(raw)

    target, whole = placed(len(raw), offset)
    source = np.frombuffer(payload, np.uint8)
    for checksums, state in (
        (right, PROVEN),
        ((right[0], right[1] ^ 1), BROKEN),
        ((right[0] ^ 1, right[1]), BROKEN),
    ):
        whole[:], states = 0xA5, np.zeros(1, np.uint8)
        kernels(word.itemsize).restore(
            *(addresses([source]), np.array([source.size]), np.zeros(1, np.int64), 0, addresses([target])),
            *(
                np.array([checksums], np.uint64),
                states,
                num_items,
                np.frombuffer(b"front", np.uint8),
                code.table,
            ),
            *(
                np.empty(num_items, np.uint8),
                numbers,
                rows,
                first_bit,
                None if low is None else np.empty(0, np.uint16),
            ),
        )
        assert states[0] == state
        assert state != PROVEN or target.tobytes() == raw
        begin = int(addresses([target])[0] - addresses([whole])[0])
        assert (whole[:begin] == 0xA5).all()
        assert (whole[begin + target.size :] == 0xA5).all()
