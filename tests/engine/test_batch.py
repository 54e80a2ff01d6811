"""How chunks are laid out in rows and attention calls; what the layout computes is compared elsewhere."""

import numpy as np
import pytest
import torch

from engine.batch import MIN_ROWS, Batch, Chunk, DecodeCall, PrefillCall, build_batch
from engine.pool import DevicePool
from kvstore.block import BlockLayout

LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=4, dtype="float32", block_tokens=16)


@pytest.fixture
def pool() -> DevicePool:
    return DevicePool(LAYOUT, 64)


def chunk(start: int, end: int, *, first_slot: int = 0, num_slots: int = 32, **more) -> Chunk:
    facts = {"wants_logits": False} | more
    slots = np.arange(first_slot, first_slot + num_slots, dtype=np.intp)
    return Chunk(tokens=np.arange(start, end, dtype=np.int32), start=start, slots=slots, **facts)


def seen(batch: Batch) -> list[int]:
    """How many tokens each row of the only call sees."""
    [call] = batch.calls
    assert isinstance(call, PrefillCall)
    return [
        int((tile.mask[row] == 0).sum())
        for tile in call.tiles
        for row in range(tile.rows.stop - tile.rows.start)
    ]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 128), (5, 6), (112, 144), (127, 129), (64, 100), (200, 400), (255, 257)]
)
def test_each_row_sees_itself_and_what_is_before(pool, start, end, deterministic):
    batch = build_batch([chunk(start, end)], pool, deterministic=deterministic)
    batch.check(pool)
    assert seen(batch) == list(range(start + 1, end + 1))


@pytest.mark.parametrize("deterministic", [False, True])
def test_padding_rows_see_something(pool, deterministic):
    """A row that sees nothing would be NaN."""
    for start, end in ((0, 1), (40, 45), (100, 130), (120, 128), (0, 300)):
        [call] = build_batch([chunk(start, end)], pool, deterministic=deterministic).calls
        assert all((tile.mask == 0).any(dim=1).all() for tile in call.tiles)


def test_a_tile_is_as_long_as_its_rows_need(pool):
    [call] = build_batch([chunk(100, 300)], pool).calls
    assert [(tile.rows, tile.kv_tokens) for tile in call.tiles] == [
        (slice(0, 28), 128),
        (slice(28, 156), 256),
        (slice(156, 200), 300),
    ]
    assert call.blocks.tolist() == list(range(19))


def test_a_deterministic_tile_is_as_long_as_if_the_prompt_went_on(pool):
    """And takes the scratch slot for what is beyond the chunk: the sequence's own slots may be written to just now."""
    [call] = build_batch([chunk(100, 300)], pool, deterministic=True).calls
    assert [tile.kv_tokens for tile in call.tiles] == [128, 256, 384]
    assert [tile.mask.shape for tile in call.tiles] == [(32, 128), (128, 256), (64, 384)]
    assert call.blocks.tolist() == [*range(19), *[pool.scratch] * 5]
    assert call.num_tokens == 300


def test_rows_go_to_their_slots_and_dummy_rows_to_the_scratch_slot(pool):
    batch = build_batch([chunk(30, 35, first_slot=7)], pool, deterministic=True)
    batch.check(pool)
    assert batch.slots.tolist()[:5] == [8, 8, 9, 9, 9]
    assert batch.offsets.tolist()[:5] == [14, 15, 0, 1, 2]
    assert batch.positions[0, :5].tolist() == [30, 31, 32, 33, 34]
    assert batch.num_rows >= MIN_ROWS
    assert set(batch.slots.tolist()[5:]) == {pool.scratch}


def test_more_threads_need_more_rows(pool):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(16)
        assert build_batch([chunk(0, 1)], pool, deterministic=True).num_rows == 64
    finally:
        torch.set_num_threads(before)


def decodes(*lengths: int) -> list[Chunk]:
    return [
        chunk(n - 1, n, first_slot=5 * i, num_slots=-(-n // 16), wants_logits=True, decode=True)
        for i, n in enumerate(lengths)
    ]


def test_decodes_of_like_length_share_a_call(pool):
    batch = build_batch([chunk(0, 3, first_slot=60, num_slots=1), *decodes(20, 70, 36, 64)], pool)
    batch.check(pool)
    assert [type(call) for call in batch.calls] == [PrefillCall, DecodeCall, DecodeCall]
    assert [call.rows for call in batch.calls] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert batch.calls[1].mask.shape == (3, 1, 1, 80)
    assert batch.logit_rows.tolist() == [6, 3, 5, 4], "in the order of the chunks"


def test_deterministic_decodes_are_alone(pool):
    batch = build_batch(decodes(64, 64, 64), pool, deterministic=True)
    assert [call.rows for call in batch.calls] == [slice(i, i + 1) for i in range(3)]
    assert batch.num_logits == 3
    assert len(batch.logit_rows) >= MIN_ROWS


def test_two_rows_for_one_place_are_found(pool):
    batch = build_batch([chunk(0, 20), chunk(16, 30)], pool)
    with pytest.raises(AssertionError, match="same place"):
        batch.check(pool)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"start": 0, "end": 33, "num_slots": 2}, "need 3 slots"),
        ({"start": 3, "end": 3}, "at least one token"),
        ({"start": 3, "end": 5, "decode": True}, "a decode is one token"),
    ],
)
def test_a_chunk_that_cannot_be(pool, wrong, words):
    with pytest.raises(AssertionError, match=words):
        build_batch([chunk(**wrong)], pool)
