"""Attention on CUDA: FlashInfer's kernels against SDPA over the pool, and SDPA against itself on the CPU."""

import numpy as np
import pytest

from kvstore.block import BlockLayout

pytestmark = pytest.mark.gpu

DTYPES = ["bfloat16", "float16"]


@pytest.mark.parametrize("block_tokens", [16, 32])
@pytest.mark.parametrize("window", [None, 1, 40, 1024])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 3, 64), (32, 8, 128), (8, 4, 256), (8, 8, 64)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flashinfer_gives_what_sdpa_gives(dtype, heads, kv_heads, head_dim, window, block_tokens):
    """Mixed batches of scattered blocks with NaN behind each sequence's end, in a layer that is not the first."""
    pytest.importorskip("flashinfer", reason="flashinfer is not installed")
    from engine.dtypes import torch_dtype
    from engine.flashinfer import FlashInfer, load_wrapper
    from engine.kernels import check_agreement
    from engine.pool import DevicePool

    layout = BlockLayout(
        num_layers=3, num_kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, block_tokens=block_tokens
    )
    with DevicePool(layout, 800, "cuda") as pool:
        kernels = FlashInfer(
            load_wrapper(), pool, num_heads=heads, dtype=torch_dtype(dtype), windows=[window]
        )
        for layer in (2, 1):
            check_agreement(
                kernels, pool, num_heads=heads, dtype=torch_dtype(dtype), window=window, layer=layer
            )


@pytest.mark.parametrize("attention", ["sdpa", "flashinfer"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_computes_by_it(dtype, attention):
    """Many prompts at once, long and short, and again from the cache: the best next tokens are those of a lone run."""
    if attention == "flashinfer":
        pytest.importorskip("flashinfer", reason="flashinfer is not installed")
    from transformers import LlamaConfig

    from engine import Engine, EngineConfig, SamplingParams
    from engine.model import random_model

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    model = random_model(config, device="cuda", dtype=dtype)
    settings = EngineConfig(
        device="cuda",
        dtype=dtype,
        kv_dtype=dtype,
        attention=attention,
        device_bytes="64MiB",
        host_bytes="64MiB",
    )
    asked = SamplingParams(max_tokens=16, ignore_eos=True, logprobs=5)
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 500, length).tolist() for length in (5, 130, 333, 700, 1001)]
    with Engine(model, settings, announce=lambda _: None) as engine:
        assert engine.stats()["attention"] == attention
        alone = [engine.generate(prompt, asked) for prompt in prompts]
        assert engine.clear()
        for _ in range(2):
            for found, expected in zip(engine.generate(prompts, asked), alone, strict=True):
                ours, theirs = dict(found.logprobs[0].top), dict(expected.logprobs[0].top)
                both = ours.keys() & theirs.keys()
                assert both
                assert max(abs(ours[token] - theirs[token]) for token in both) < 0.1


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [*DTYPES, "float32"])
def test_sdpa_on_cuda_gives_what_it_gives_on_the_cpu(dtype, window):
    """Chunks that start and end anywhere: their masks are the ones that are not aligned by themselves. Decodes too, alone,
    together and behind shared blocks."""
    import torch

    from engine.attention import attend
    from engine.batch import build_batch
    from engine.chunk import Chunk
    from engine.dtypes import torch_dtype
    from engine.pool import DevicePool

    layout = BlockLayout(num_layers=2, num_kv_heads=2, head_dim=64, dtype=dtype)
    slots = np.arange(64, dtype=np.intp)
    behind = [np.concatenate([slots[:20], slots[20 + n : 24 + n]]) for n in (0, 4)]
    runs = [(0, 150, slots), (3, 90, slots), (100, 333, slots), (131, 333, slots)]
    runs += [(330, 331, behind[0]), (339, 340, behind[1]), (70, 71, slots[40:])]
    chunks = [
        Chunk(
            tokens=np.zeros(end - start, dtype=np.int32),
            start=start,
            slots=table,
            wants_logits=False,
            decode=end - start == 1,
        )
        for start, end, table in runs
    ]
    random = torch.Generator().manual_seed(0)
    kv = torch.randn((65, 2, 16, 2, 64), generator=random)
    rows = sum(len(chunk.tokens) for chunk in chunks)
    query = torch.randn((1, 6, rows, 64), generator=random).to(torch_dtype(dtype))
    found = {}
    for device in ("cpu", "cuda"):
        with DevicePool(layout, 64, device) as pool:
            layer = pool.layer_view(1)
            layer.copy_(kv)
            batch = build_batch(chunks, pool, dtype=torch_dtype(dtype), windows=[window])
            found[device] = attend(query.to(device), layer, batch, window, None).cpu().float()
    tolerance = 1e-3 if dtype == "float32" else 3e-2
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=tolerance, atol=tolerance)
