"""What is measured of a real card: its memory, and what NVML says of it."""

import pytest

pytestmark = pytest.mark.gpu

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
CONTEXT = 8192


def test_the_card_is_the_one_that_torch_computes_on():
    pytest.importorskip("pynvml")
    import torch

    from engine.gpu_figures import figures_of

    with figures_of(torch.device("cuda")) as figures:
        told = figures.read()
    assert told["name"] == torch.cuda.get_device_name()
    assert told["memory_total_bytes"] >= torch.cuda.get_device_properties().total_memory


def test_the_meter_sees_what_torch_takes_and_gives_back():
    import torch

    from engine.device_memory import CudaMeter

    meter, size = CudaMeter(), 64 << 20
    meter.empty_cache()
    before, free = meter.allocated_bytes(), meter.free_bytes()
    meter.reset_peak()
    taken = torch.empty(size, dtype=torch.uint8, device="cuda")
    assert meter.allocated_bytes() == before + size
    assert meter.free_bytes() <= free - size
    del taken
    assert (meter.allocated_bytes(), meter.peak_bytes()) == (before, before + size)
    assert meter.free_bytes() > free - size, "what torch keeps counts as free"


def test_a_pool_of_the_measured_size_leaves_room_for_the_largest_step():
    """With the whole of what is left: what the largest step takes is not in the pool."""
    import torch
    from transformers import LlamaConfig

    from engine import EngineConfig
    from engine.device_memory import CudaMeter, largest_step, measured_pool_bytes, run_step
    from engine.model import random_model
    from engine.pool import DevicePool

    facts = LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=CONTEXT, vocab_size=32000)
    model = random_model(facts, device="cuda", dtype="bfloat16")
    layout = model.layout("bfloat16", 16)
    config = EngineConfig(device="cuda", device_memory_fraction=0.98)
    size = measured_pool_bytes(model, layout, config, CudaMeter())
    assert size > 0.9 * torch.cuda.mem_get_info()[0]
    with DevicePool(layout, size // layout.block_bytes, "cuda"):
        run_step(model, layout, largest_step(model, config, CONTEXT), deterministic=False)
