"""Decoder layers computed by the kernel of our own, against transformers' own and, for their bits, against themselves."""

import copy

import numpy as np
import pytest
import torch

from engine.chunk import Chunk
from engine.lanes import registers
from engine.layers import PackedLayer, packs
from engine.model import Model, random_model
from engine.packed import packing
from engine.pool import DevicePool
from tests.engine.families import CASES, ODD

TOKENS = np.random.default_rng(0).integers(3, 500, 300).astype(np.int32)
DTYPES = ("float32", "bfloat16")
KINDS = {
    "llama": CASES["llama"].config(),
    "llama with biases": CASES["llama"].config(attention_bias=True, mlp_bias=True),
    "llama of odd sizes": CASES["llama"].config(**ODD),
    "llama that attends by the kernel": CASES["llama"].config(**{**ODD, "head_dim": 32}),
    "mistral": CASES["mistral, window"].config(),
    "qwen2": CASES["qwen2, window in some layers"].config(),
    "qwen3": CASES["qwen3, window in some layers"].config(),
}

pytestmark = pytest.mark.skipif(registers()[0] == 0, reason="this processor has no registers for it")


def model_of(kind: str, dtype: str) -> Model:
    """With norms and biases that are not all the same."""
    if dtype == "bfloat16" and not registers()[1]:
        pytest.skip("this processor has no products of bfloat16")
    model = random_model(KINDS[kind], dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.hf.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype) / 4)
    return model


def hidden_of(model: Model, *runs: tuple[int, int]) -> torch.Tensor:
    """What the layers make of the same tokens, computed in these runs, [tokens, hidden]."""
    found: list[torch.Tensor] = []
    hook = model.hf.model.norm.register_forward_pre_hook(lambda _, given: found.append(given[0][0].clone()))
    with DevicePool(model.layout(str(model.dtype).removeprefix("torch."), 16), 20) as pool:
        for start, end in runs:
            chunk = Chunk(tokens=TOKENS[start:end], start=start, slots=np.arange(20), wants_logits=True)
            model.forward(model.batch([chunk], pool), pool)
    hook.remove()
    return torch.cat(found)


def exactly(model: Model, num_tokens: int) -> torch.Tensor:
    """The same by transformers alone, in float64."""
    hf, found = copy.deepcopy(model.hf).double(), []
    hf.set_attn_implementation("eager")
    hf.model.norm.register_forward_pre_hook(lambda _, given: found.append(given[0][0]))
    with torch.inference_mode():
        hf(torch.from_numpy(TOKENS[None, :num_tokens].astype(np.int64)), use_cache=False)
    return found[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_layer_is_the_layer(kind, dtype):
    """As near to it in float64 as transformers' own modules are in its dtype, or almost; and its state is what it was."""
    model = model_of(kind, dtype)
    expected = exactly(model, 133)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    plain = hidden_of(model, (0, 133)).double()
    for _ in range(2):
        with packing(model.hf):
            pass
    assert {type(layer) for layer in model.hf.model.layers} == {PackedLayer}
    found = hidden_of(model, (0, 133)).double()
    scale = expected.square().mean().sqrt()
    off, tolerated = (found - expected).square().mean().sqrt(), (plain - expected).square().mean().sqrt()
    assert off <= 1.5 * tolerated + 1e-6 * scale < 0.1 * scale
    after = model.hf.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_however_many_are_computed(dtype, threads):
    """One alone, few, and more than a task takes, by one thread and by two."""
    model = model_of("llama that attends by the kernel", dtype)
    with packing(model.hf):
        pass
    runs = ((0, 1), (1, 8), (8, 17), (17, 100), (100, 300))
    at_once = hidden_of(model, (0, 300))
    torch.set_num_threads(3 - threads)
    assert torch.equal(hidden_of(model, *runs), at_once)


def test_what_it_does_not_compute():
    for name, more in (
        ("gemma3_text, window in some layers", {}),
        ("olmo2", {}),
        ("llama", {"hidden_act": "gelu"}),
    ):
        hf = random_model(CASES[name].config(**more)).hf
        assert not any(packs(layer, hf.config) for layer in hf.modules())
    half = random_model(CASES["llama"].config()).hf.half()
    assert not packs(half.model.layers[0], half.config)
