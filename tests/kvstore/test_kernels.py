"""What is compiled does what its definition in numpy does, wherever its arrays lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore import code, codec
from kvstore.disk.compiled import functions
from kvstore.errors import StoreFailed
from kvstore.kernels import kernels
from kvstore.target import Target
from kvstore.testing import assert_holds, fill
from tests.kvstore.conftest import LAYOUT

FORMS = [(16, 7), (16, 8), (32, 23)]
"""Bits of an element, and the lowest of the byte that is coded: of bfloat16 and of planes, of float16, of float32."""


def reference(
    words: np.ndarray, numbers: np.ndarray, group_rows: int, first_bit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The planes, as docs/block-format.md defines them: one bit field after the other, in numbers that nothing overflows."""
    bits = words.itemsize * 8
    position = np.arange(words.size)
    channel = position % numbers.shape[1]
    group = position // numbers.shape[1] // group_rows
    left = (words.astype(np.int64) - numbers[group, channel].astype(np.int64)) % (1 << bits)
    coded = left >> first_bit & 0xFF
    if first_bit == bits - 8:
        second = left >> (bits - 16) & 0xFF
    else:
        second = (left >> (bits - 1)) << 7 | left >> (bits - 16) & 0x7F
    return coded.astype(np.uint8), second.astype(np.uint8), (left & 0xFFFF).astype(np.uint16)


def lying(content: np.ndarray, offset: int, *, written: bool) -> np.ndarray:
    """A copy that begins so many bytes behind a place where it should, read-only unless it is to be written."""
    memory = np.zeros(content.nbytes + 8, np.uint8)
    array = memory[offset : offset + content.nbytes].view(content.dtype).reshape(content.shape)
    array[...] = content
    array.flags.writeable = written
    return array


@given(st.data())
def test_planes_are_those_of_the_definition_and_give_back_the_elements(data):
    """With channels and without, rows that end early, sizes that fill no vector, arrays at odd addresses that nobody may write."""
    bits, first_bit = data.draw(st.sampled_from(FORMS))
    word = np.dtype(f"u{bits // 8}")
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    groups, rows, channels = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 150)))
    whole = groups * rows * channels
    num_items = data.draw(st.sampled_from([whole, max(1, whole - channels // 2)]))
    items = rng.integers(0, 1 << bits, num_items, dtype=word) & word.type(
        data.draw(st.sampled_from([0, 0xFF, (1 << bits) - 1]))
    )
    table = rng.integers(0, 1 << bits, (groups, channels), dtype=word)
    at = data.draw(st.tuples(*[st.integers(0, 7)] * 5))

    words, numbers = lying(items, at[0], written=False), lying(table, at[1], written=False)
    planes = [lying(np.zeros(num_items, np.uint8), offset, written=True) for offset in at[2:4]]
    planes.append(lying(np.zeros(num_items, np.uint16), at[4], written=True) if bits == 32 else None)
    kernels(word.itemsize).split(words, numbers, rows, first_bit, *planes)
    for plane, wanted in zip(planes, reference(items, table, rows, first_bit), strict=True):
        assert plane is None or np.array_equal(plane, wanted)

    back = lying(np.zeros(num_items, word), at[0], written=True)
    fixed = [None if plane is None else lying(plane, 1, written=False) for plane in planes]
    kernels(word.itemsize).join(back, numbers, rows, first_bit, *fixed)
    assert np.array_equal(back, items)


@pytest.mark.parametrize(("compression", "encodes"), [("on", True), ("auto", True), ("off", False)])
def test_a_store_has_all_code_that_it_needs_when_it_is_open(open_lmdb, monkeypatch, compression, encodes):
    """Where it has to be compiled that takes seconds: a write that waited for it would seem to hang. What encodes nothing needs none for it."""
    asked = []
    monkeypatch.setattr("kvstore.disk.compiled.loaded", lambda *functions: asked.extend(functions))
    store = open_lmdb(compression=compression)
    assert set(asked) == set(functions(LAYOUT.itemsize if encodes else None))
    assert_holds(store, *fill(store, 2))


def test_where_numba_may_not_compile_it_is_said_and_what_is_not_encoded_is_there(open_lmdb, monkeypatch):
    """Python's own loops would take a thousand times as long."""
    monkeypatch.setattr(code, "target", lambda: Target("", "", False, ""))
    monkeypatch.setattr(code, "_futures", {})
    monkeypatch.setattr(codec, "kernels", kernels.__wrapped__)
    store = open_lmdb(compression="on")
    with pytest.raises(StoreFailed, match="NUMBA_DISABLE_JIT"):
        fill(store, 2)
    store.close()
    store = open_lmdb(compression="off")
    assert_holds(store, *fill(store, 2))
