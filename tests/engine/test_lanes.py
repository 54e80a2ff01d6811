"""Prompts' attention by the kernel of our own, against SDPA in float64 and, for its bits, against itself."""

import numpy as np
import pytest
import torch

from engine import lanes
from engine.attention import attend
from engine.batch import build_batch
from engine.chunk import Chunk
from engine.lanes import LaneCall, has_lanes
from engine.packed import PackedLinear, packing
from engine.pool import DevicePool
from kvstore.block import BlockLayout
from tests.engine.families import CASES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not has_lanes(CPU, torch.float32, torch.float32, 64), reason="this processor has no registers for it"
)


def pool_of(heads: int, stored: str, num_tokens: int, head_dim: int = 64) -> DevicePool:
    """Random keys and values, of which some are much larger; and NaN in the last block from token `num_tokens` on."""
    layout = BlockLayout(num_layers=2, num_kv_heads=heads, head_dim=head_dim, dtype=stored, block_tokens=16)
    pool = DevicePool(layout, -(-num_tokens // 16))
    layer = pool.layer_view(1)
    layer.copy_(torch.randn(layer.shape, generator=torch.Generator().manual_seed(0)))
    layer[num_tokens // 32, 0] *= 20
    layer[slots_of(pool)[-1], :, (num_tokens - 1) % 16 + 1 :] = float("nan")
    return pool


def slots_of(pool: DevicePool) -> np.ndarray:
    return np.random.default_rng(0).permutation(pool.num_slots).astype(np.intp)


def chunk_of(pool: DevicePool, start: int, end: int) -> Chunk:
    return Chunk(
        tokens=np.zeros(end - start, dtype=np.int32), start=start, slots=slots_of(pool), wants_logits=False
    )


def computed(
    pool: DevicePool, query: torch.Tensor, start: int, end: int, window: int | None = None
) -> torch.Tensor:
    """The attention of the tokens from `start` to `end`, [rows, heads, dim]; `query` is that of all tokens."""
    batch = build_batch([chunk_of(pool, start, end)], pool, dtype=query.dtype, windows=[window])
    assert [type(call) for call in batch.calls[window]] == [LaneCall]
    return attend(query[:, :, start:end], pool.layer_view(1), batch, window, 0.2)[0]


def by_sdpa(pool: DevicePool, query: torch.Tensor, end: int, window: int | None) -> torch.Tensor:
    """The same of all tokens by SDPA, in the query's dtype."""
    blocks = pool.layer_view(1)[torch.from_numpy(slots_of(pool))].to(query.dtype)
    key, value = blocks.permute(1, 3, 0, 2, 4).flatten(2, 3)[:, None, :, :end]
    seen = torch.ones(end, end).tril().bool()
    if window is not None:
        seen &= torch.ones(end, end).triu(1 - window).bool()
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.2, enable_gqa=True
    )
    return found[0].transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 40, 200])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 64), (3, 3, 32), (7, 1, 96)])
@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_it_is_attention(stored, dtype, heads, kv_heads, head_dim, window):
    """As near to it as SDPA in the same dtype, or almost, cold and behind prefixes of any length; what is not seen does no harm."""
    if not has_lanes(CPU, DTYPES[stored], DTYPES[dtype], head_dim):
        pytest.skip("this processor has no products of bfloat16")
    end = 331
    pool = pool_of(kv_heads, stored, end, head_dim)
    query = torch.randn(1, heads, end, head_dim, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    expected = by_sdpa(pool, query.double(), end, window)
    tolerated = 2 * (by_sdpa(pool, query, end, window) - expected).abs().max() + 1e-6
    for start in (0, 5, 128, 330):
        found = computed(pool, query, start, end, window)
        assert found.dtype == query.dtype
        assert (found - expected[start:]).abs().max() <= tolerated < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 100])
def test_a_row_has_the_same_bits_wherever_it_is_computed(dtype, window, monkeypatch):
    """In chunks that begin and end anywhere, beside others, by more threads, and by more units at a time."""
    if not has_lanes(CPU, torch.bfloat16, DTYPES[dtype], 64):
        pytest.skip("this processor has no products of bfloat16")
    pool = pool_of(2, "bfloat16", 400)
    query = torch.randn(1, 6, 400, 64, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
    alone = computed(pool, query, 0, 400, window)
    threads = torch.get_num_threads()
    try:
        for num_threads, most in ((1, 1), (3, 4 << 20)):
            torch.set_num_threads(num_threads)
            monkeypatch.setattr(lanes, "CACHE_BYTES", most)
            for start, end in ((0, 1), (3, 131), (255, 257), (384, 400), (131, 399)):
                assert torch.equal(computed(pool, query, start, end, window), alone[start:end])
    finally:
        torch.set_num_threads(threads)


def test_what_it_does_not_compute():
    for device, stored, dtype, dim in (
        ("cuda", torch.float32, torch.float32, 64),
        ("cpu", torch.float16, torch.float32, 64),
        ("cpu", torch.float32, torch.bfloat16, 64),
        ("cpu", torch.float16, torch.float16, 64),
        ("cpu", torch.float32, torch.float32, 36),
    ):
        assert not has_lanes(torch.device(device), stored, dtype, dim)


def test_no_call_is_refused_however_its_rows_lie():
    """Of one token, and of a model with one layer, they are contiguous."""
    for num_layers, num_tokens in ((1, 20), (2, 20), (2, 1)):
        layout = BlockLayout(
            num_layers=num_layers, num_kv_heads=2, head_dim=64, dtype="float32", block_tokens=16
        )
        with DevicePool(layout, 2) as pool:
            batch = build_batch([chunk_of(pool, 0, num_tokens)], pool)
            query = torch.randn(1, num_tokens, 4, 64).transpose(1, 2)
            assert torch.isfinite(attend(query, pool.layer_view(0), batch, None, None)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_weights_are_the_same_weights(dtype):
    """Products to rounding, whose bits depend on no other row; the state as it was; and packed once."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 80).to(DTYPES[dtype]).eval()
    packed, rows = PackedLinear(plain), torch.randn(1, 300, 96).to(DTYPES[dtype])
    found = packed(rows)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    torch.testing.assert_close(found, plain(rows), rtol=tolerance, atol=tolerance)
    assert all(torch.equal(packed(rows[:, at : at + 16]), found[:, at : at + 16]) for at in (0, 7, 284))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[name], tensor)


def test_layers_of_other_families_have_their_products_packed():
    """All save the last one."""
    from engine.model import random_model

    hf = random_model(CASES["olmo2"].config()).hf
    before = hf.state_dict()
    for _ in range(2):
        with packing(hf):
            pass
    kinds = [type(module) for module in hf.modules() if isinstance(module, torch.nn.Linear)]
    assert kinds.count(torch.nn.Linear) == 1, "the head"
    assert kinds.count(PackedLinear) == 7 * hf.config.num_hidden_layers
    after = hf.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
