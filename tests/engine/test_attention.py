"""Attention over blocks by SDPA, in the formats that GPUs compute in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Result, SamplingParams
from engine.attention import attend
from engine.batch import Batch, build_batch
from engine.chunk import Chunk
from engine.model import random_model
from engine.pool import DevicePool
from kvstore.block import BlockLayout
from tests.engine.engines import engine_on
from tests.engine.families import CASES
from tests.engine.naive import tokens

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
WARM = SamplingParams(max_tokens=1, ignore_eos=True)
ASKED = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=10)


def replies_behind(pool: DevicePool, shared: int, lengths: list[int]) -> list[Chunk]:
    """Decodes at these lengths, at least one block past `shared` blocks that all of them begin with."""
    own = np.array_split(np.arange(shared, pool.num_slots), len(lengths))
    return [
        Chunk(
            tokens=np.zeros(1, dtype=np.int32),
            start=length - 1,
            slots=np.concatenate([np.arange(shared), slots]).astype(np.intp),
            wants_logits=True,
            decode=True,
        )
        for length, slots in zip(lengths, own, strict=True)
    ]


@pytest.mark.parametrize("size", [1.0, 200.0], ids=["small", "large"])
@pytest.mark.parametrize("dtype", HALVES)
def test_scores_behind_shared_blocks_fit_their_format(dtype, size):
    """Large: products of some 10**5, which float16 cannot hold."""
    layout = BlockLayout(num_layers=1, num_kv_heads=2, head_dim=64, dtype=dtype, block_tokens=16)
    pool = DevicePool(layout, 24)
    generator = torch.Generator().manual_seed(0)
    layer = pool.layer_view(0)
    layer.copy_(torch.randn(layer.shape, generator=generator))
    layer[:, 0] *= size
    query = (size * torch.randn(1, 6, 2, 64, generator=generator)).to(HALVES[dtype])
    batch = build_batch(replies_behind(pool, 8, [150, 141]), pool, dtype=HALVES[dtype])
    assert [len(call.shared) for call in batch.calls[None]] == [8]
    found = attend(query, layer, batch, None, None)[0]
    torch.testing.assert_close(found.double(), exact(query, layer, batch, pool), rtol=0.02, atol=0.02)


def exact(query: torch.Tensor, layer: torch.Tensor, batch: Batch, pool: DevicePool) -> torch.Tensor:
    """What one call of decodes should give, from the definition, in float64: [rows, heads, head_dim]."""
    [call] = batch.calls[None]
    rows = []
    for own, mask, vectors in zip(
        call.blocks.view(2, -1), call.mask.flatten(1), query[0].transpose(0, 1), strict=True
    ):
        blocks = torch.cat([call.shared, own])
        seen = torch.cat([torch.zeros(len(call.shared) * 16), mask.float()]) == 0
        key, value = layer[blocks].double().permute(1, 3, 0, 2, 4).flatten(2, 3)[:, :, seen]
        grouped = vectors.double().view(2, 3, 64)
        rows.append(((grouped @ key.mT / 8).softmax(-1) @ value).flatten(0, 1))
    return torch.stack(rows)


@pytest.fixture(scope="module", params=["llama", "gemma3_text, window in some layers"])
def config(request: pytest.FixtureRequest):
    return CASES[request.param].config(head_dim=64, tie_word_embeddings=False)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_tiers_change_nothing_in_half_precision(config, dtype, deterministic, tmp_path: Path):
    """Deterministic: the same reply from every tier as where nothing is cached. Else tokens that are nearly as probable
    may change places, by no more than rounding moves them."""
    model = random_model(config, seed=3, dtype=dtype)
    prompt = tokens(1, 300).tolist()
    settings = {"dtype": dtype, "kv_dtype": dtype, "deterministic": deterministic}
    with engine_on(model, host_bytes=0, load="never", **settings) as served:
        cold = served.generate(prompt, ASKED)
    with engine_on(model, tmp_path, **settings) as served:
        for tier in ("device", "host", "disk"):
            assert served.clear()
            served.generate(prompt[:200], WARM)
            if tier != "device":
                served.demote(tier)
            found = served.generate(prompt, ASKED)
            assert found.usage.cached_by_tier[tier] == 192
            if deterministic:
                assert found.token_ids == cold.token_ids
            else:
                assert_near(found, cold)


def assert_near(found: Result, expected: Result) -> None:
    """The best tokens to follow the prompt are as probable, but for rounding."""
    ours, theirs = (dict(result.logprobs[0].top) for result in (found, expected))
    both = ours.keys() & theirs.keys()
    assert len(both) >= len(theirs) // 2
    assert max(abs(ours[token] - theirs[token]) for token in both) < 0.2
