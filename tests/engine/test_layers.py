"""Decoder layers computed by the kernel of our own, against transformers' own and, for their bits, against themselves."""

import copy

import numpy as np
import pytest
import torch

from engine import lanes, native
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


class Wrapped(torch.nn.Linear):
    """As an adapter would be."""


def wrapped(layer: torch.nn.Module) -> None:
    layer.self_attn.q_proj.__class__ = Wrapped


def hooked(layer: torch.nn.Module) -> None:
    layer.mlp.register_forward_hook(lambda *_: None)


def with_another_forward(layer: torch.nn.Module) -> None:
    layer.mlp.forward = layer.mlp.forward


def of_two_dtypes(layer: torch.nn.Module) -> None:
    layer.input_layernorm.to(torch.float64)


def with_another_norm(layer: torch.nn.Module) -> None:
    layer.post_attention_layernorm.variance_epsilon *= 2


def another_of_that_name(layer: torch.nn.Module) -> None:
    layer.__class__ = type("LlamaDecoderLayer", (type(layer),), {})


@pytest.mark.parametrize(
    "change", [wrapped, hooked, with_another_forward, of_two_dtypes, with_another_norm, another_of_that_name]
)
def test_a_layer_that_was_changed_stays(change):
    """What was done to it would not be done; the other layers are packed all the same."""
    hf = random_model(KINDS["llama"]).hf
    change(hf.model.layers[1])
    with packing(hf):
        pass
    assert [type(layer) is PackedLayer for layer in hf.model.layers] == [True, False, True]


def test_a_hooked_product_stays():
    hf = random_model(CASES["olmo2"].config()).hf
    hf.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    with packing(hf):
        pass
    assert type(hf.model.layers[1].mlp.up_proj) is torch.nn.Linear


def test_turns_of_another_width_are_refused():
    """Of them the kernel would read more than there is."""
    model = random_model(KINDS["llama"])
    with packing(model.hf):
        pass
    turn = model.hf.model.rotary_emb.forward
    model.hf.model.rotary_emb.forward = lambda *given, **named: tuple(
        one[..., :8] for one in turn(*given, **named)
    )
    with pytest.raises(ValueError, match="heads of 16 numbers"):
        hidden_of(model, (0, 20))


def test_two_engines_may_compute_with_one_model():
    """What is on its way lies in each one's pool."""
    model = random_model(KINDS["llama"])
    with packing(model.hf):
        pass
    layout = model.layout("float32", 16)
    chunk = Chunk(tokens=TOKENS[:60], start=0, slots=np.arange(20), wants_logits=True)
    with DevicePool(layout, 20) as pool, DevicePool(layout, 20) as other:
        for one in (pool, other):
            model.forward(model.batch([chunk], one), one)
        names = ("query", "kv", "normal", "sums", "gates")
        of_pool, of_other = (
            {each.workspace.take(name, 1, dtype=torch.float32).data_ptr() for name in names}
            for each in (pool, other)
        )
        assert not of_pool & of_other


def test_nothing_is_compiled_once_it_is_packed(monkeypatch):
    """Not even by the first request."""
    for cached in (native._around, native.watching, native.attending):
        cached.cache_clear()
    model = random_model(KINDS["llama that attends by the kernel"])
    with packing(model.hf):
        lanes.prepare(torch.device("cpu"), torch.float32, torch.float32, 32)
    monkeypatch.setattr(native, "loaded", None)
    assert torch.isfinite(hidden_of(model, (0, 30))).all()
