"""How chunks are laid out in rows and attention calls; what the layout computes is compared elsewhere."""

import numpy as np
import pytest
import torch

from engine.batch import MIN_ROWS, build_batch
from engine.calls import GATHER_BYTES, DecodeCall, PrefillCall, _aligned
from engine.chunk import Chunk
from engine.pool import DevicePool
from kvstore.block import BlockLayout

BLOCK = 16
WINDOWS = [None, 1, 7, 16, 40, 128, 300]
LAYOUT = BlockLayout(num_layers=1, num_kv_heads=1, head_dim=4, dtype="float32", block_tokens=16)


@pytest.fixture
def pool() -> DevicePool:
    return DevicePool(LAYOUT, 64)


def chunk(start: int, end: int, *, first_slot: int = 0, num_slots: int = 32, **more) -> Chunk:
    slots = np.arange(first_slot, first_slot + num_slots, dtype=np.intp)
    facts = {"wants_logits": False, "slots": slots} | more
    return Chunk(tokens=np.arange(start, end, dtype=np.int32), start=start, **facts)


def places(blocks: torch.Tensor) -> list[tuple[int, int]]:
    """The slot and offset of each gathered token."""
    return [(slot, offset) for slot in blocks.tolist() for offset in range(BLOCK)]


def seen(call: PrefillCall | DecodeCall) -> dict[int, list[tuple[int, int]]]:
    """The places of the tokens that each row of a call sees."""
    found = {}
    if isinstance(call, PrefillCall):
        for tile in call.tiles:
            taken = places(call.blocks)[tile.kv]
            for row, mask in zip(range(tile.rows.start, tile.rows.stop), tile.mask, strict=False):
                found[row] = [place for place, added in zip(taken, mask.tolist(), strict=True) if added == 0]
        return found
    rows = range(call.rows.start, call.rows.stop)
    masks = [None] * len(rows) if call.mask is None else call.mask[:, 0, 0].tolist()
    for row, blocks, mask in zip(rows, call.blocks.view(len(rows), -1), masks, strict=True):
        taken = places(blocks)[call.kv]
        found[row] = places(call.shared) + [
            place for place, added in zip(taken, mask or [0] * len(taken), strict=True) if added == 0
        ]
    return found


def within(position: int, window: int | None, first_slot: int = 0) -> list[tuple[int, int]]:
    """The places of what the token at `position` has to see, from the definition of a sliding window."""
    tokens = [other for other in range(position + 1) if window is None or position - other < window]
    return [(first_slot + token // BLOCK, token % BLOCK) for token in tokens]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (0, 128), (5, 6), (112, 144), (127, 129), (64, 100), (200, 400), (255, 257)]
)
def test_each_row_sees_itself_and_what_its_window_holds(pool, start, end, deterministic, window):
    batch = build_batch([chunk(start, end)], pool, deterministic=deterministic, windows=[window])
    batch.check(pool)
    [call] = batch.calls[window]
    assert list(seen(call).values()) == [within(position, window) for position in range(start, end)]


def test_a_tile_attends_alike_whatever_is_beside_it_and_wherever_its_prompt_ends(pool):
    """Also in layers whose window hides nothing yet."""
    other = {"first_slot": 32}
    batches = [
        [chunk(128, 190)],
        [chunk(128, 256)],
        [chunk(128, 190), chunk(180, 300, **other)],
        [chunk(128, 190), chunk(299, 300, decode=True, **other)],
    ]
    windows = [None, 200, 299, 500]
    plans = [build_batch(chunks, pool, deterministic=True, windows=windows).calls for chunks in batches]
    for window in windows:
        tiles = [calls[window][0].tiles[0] for calls in plans]
        assert [tile.kv for tile in tiles] == [slice(0, 256)] * len(batches)
    assert plans[0][200] is plans[0][500]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_each_decode_sees_itself_and_what_its_window_holds(pool, deterministic, window):
    lengths = (20, 70, 36, 64, 65, 16, 1)
    batch = build_batch(decodes(*lengths), pool, deterministic=deterministic, windows=[window])
    batch.check(pool)
    rows = {row: places for call in batch.calls[window] for row, places in seen(call).items()}
    assert [rows[row] for row in batch.logit_rows.tolist()[: len(lengths)]] == [
        within(length - 1, window, first_slot=5 * i) for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_padding_rows_see_something(pool, deterministic, window):
    """A row that sees nothing would be NaN."""
    for start, end in ((0, 1), (40, 45), (100, 130), (120, 128), (0, 300)):
        batch = build_batch([chunk(start, end)], pool, deterministic=deterministic, windows=[window])
        [call] = batch.calls[window]
        assert all((tile.mask == 0).any(dim=1).all() for tile in call.tiles)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_masks_for_other_devices_begin_where_cuda_can_read_them(deterministic, window, dtype, monkeypatch):
    """Rows at multiples of 16 bytes, from the first of their storage on; on the CPU they stay views of one mask."""
    monkeypatch.setitem(GATHER_BYTES, "meta", 1 << 20)
    for device in ("meta", "cpu"):
        elsewhere = DevicePool(LAYOUT, 64, device)
        chunks = [chunk(100, 333), chunk(3, 90, first_slot=30), *decodes(20, 70, 36)]
        batch = build_batch(
            chunks, elsewhere, dtype=dtype, deterministic=deterministic, windows=[window, None]
        )
        prefills = [call for call in batch.calls[window] if isinstance(call, PrefillCall)]
        masks = [tile.mask for call in prefills for tile in call.tiles]
        if device == "cpu":
            assert len({mask.untyped_storage().data_ptr() for mask in masks}) == 1
        else:
            masks += [call.mask for call in batch.calls[window] if isinstance(call, DecodeCall)]
            for mask in (mask for mask in masks if mask is not None):
                assert mask.storage_offset() * dtype.itemsize % 16 == 0
                assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
                assert mask.stride(-1) == 1


def test_an_aligned_mask_says_the_same(pool):
    """And what it was copied from is what a kernel would have stumbled over."""
    [call] = build_batch([chunk(100, 333)], pool).calls[None]
    masks = [tile.mask for tile in call.tiles]
    assert any(mask.data_ptr() % 16 for mask in masks)
    for mask in masks:
        copy = _aligned(mask)
        assert torch.equal(copy, mask)
        assert copy.data_ptr() % 16 == 0


def test_blocks_before_the_window_are_not_gathered(pool):
    """A decode takes what it sees; a tile what it would see if it were whole, wherever its chunk starts."""
    batch = build_batch([chunk(300, 330), *decodes(500)], pool, windows=[None, 40])
    whole, windowed = batch.calls[None], batch.calls[40]
    assert [len(call.blocks) for call in whole] == [21, 32]
    assert windowed[0].blocks.tolist() == list(range((256 - 39) // BLOCK, 21))
    assert windowed[1].blocks.tolist() == list(range(460 // BLOCK, 32))
    assert windowed[1].kv == slice(460 % BLOCK, 460 % BLOCK + 40)


def test_windows_that_hide_nothing_share_their_calls(pool):
    batch = build_batch([chunk(0, 100)], pool, windows=[None, 99, 100, 4096])
    assert batch.calls[100] is batch.calls[4096] is batch.calls[None]
    assert batch.calls[99] is not batch.calls[None]


def test_a_deterministic_tile_has_one_length_wherever_its_chunk_starts(pool):
    """Its bits depend on it."""
    lengths = set()
    for start, end in ((256, 384), (300, 310), (383, 384), (130, 384), (256, 257)):
        [call] = build_batch([chunk(start, end)], pool, deterministic=True, windows=[40]).calls[40]
        lengths.add(call.tiles[-1].kv.stop - call.tiles[-1].kv.start)
        assert call.tiles[-1].kv.start % BLOCK == 0
    assert lengths == {384 - (256 - 39) // BLOCK * BLOCK}


def test_a_tile_is_as_long_as_its_rows_need(pool):
    [call] = build_batch([chunk(100, 300)], pool).calls[None]
    assert [(tile.rows, tile.kv) for tile in call.tiles] == [
        (slice(0, 28), slice(0, 128)),
        (slice(28, 156), slice(0, 256)),
        (slice(156, 200), slice(0, 300)),
    ]
    assert call.blocks.tolist() == list(range(19))


def test_a_deterministic_tile_is_as_long_as_if_the_prompt_went_on(pool):
    """And takes the scratch slot for what is beyond the chunk: the sequence's own slots may be written to just now."""
    [call] = build_batch([chunk(100, 300)], pool, deterministic=True).calls[None]
    assert [tile.kv for tile in call.tiles] == [slice(0, 128), slice(0, 256), slice(0, 384)]
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
    calls = batch.calls[None]
    assert [type(call) for call in calls] == [PrefillCall, DecodeCall, DecodeCall]
    assert [call.rows for call in calls] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert calls[1].mask.shape == (3, 1, 1, 80)
    assert batch.logit_rows.tolist() == [6, 3, 5, 4], "in the order of the chunks"


def test_a_call_gathers_no_more_than_the_caches_hold(pool, monkeypatch):
    """32 bytes of keys and values a token here: room for two of 64 tokens, or one that is larger than the room."""
    monkeypatch.setitem(GATHER_BYTES, "cpu", 2 * 64 * 32)
    batch = build_batch(decodes(64, 64, 64, 64, 64), pool)
    assert [call.rows for call in batch.calls[None]] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    monkeypatch.setitem(GATHER_BYTES, "cpu", 10)
    assert len(build_batch(decodes(64, 64), pool).calls[None]) == 2


def behind(shared: int, *lengths: int) -> list[Chunk]:
    """Decodes at these lengths that have their first blocks in common."""
    return [
        chunk(n - 1, n, wants_logits=True, decode=True, slots=np.array([*range(shared), *own], dtype=np.intp))
        for n, own in zip(lengths, np.arange(shared, 64).reshape(len(lengths), -1), strict=True)
    ]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("deterministic", [False, True])
def test_each_decode_behind_shared_blocks_sees_them_and_its_own(pool, deterministic, window):
    lengths = (70, 65, 81, 96)
    chunks = behind(4, *lengths)
    batch = build_batch(chunks, pool, deterministic=deterministic, windows=[window])
    batch.check(pool)
    calls = batch.calls[window]
    whole = window is None or window >= max(lengths)
    assert [len(call.shared) for call in calls] == ([4] if whole and not deterministic else [0] * len(calls))
    rows = {row: places for call in calls for row, places in seen(call).items()}
    for each, row in zip(chunks, batch.logit_rows.tolist(), strict=False):
        tokens = within(each.start, window)
        assert rows[row] == [(int(each.slots[block]), offset) for block, offset in tokens]


def test_a_block_that_is_being_written_is_not_shared(pool):
    """Two replies that, wrongly or not, name the same slot for it: each reads its own token there."""
    [call] = build_batch(behind(4, 64, 65), pool).calls[None]
    assert call.shared.tolist() == [0, 1, 2]


def test_few_shared_blocks_are_gathered_with_the_rest(pool):
    [call] = build_batch(behind(2, 80, 80), pool).calls[None]
    assert call.shared.tolist() == []
    assert call.blocks.tolist()[:5] == [0, 1, 2, 3, 4]


def test_deterministic_decodes_are_alone(pool):
    batch = build_batch(decodes(64, 64, 64), pool, deterministic=True)
    assert [call.rows for call in batch.calls[None]] == [slice(i, i + 1) for i in range(3)]
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
