"""Models computed by the kernel of our own, against transformers' own and, for their bits, against themselves."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import lanes, native
from engine.chunk import Chunk
from engine.lanes import registers
from engine.layers import PackedLayer, packs
from engine.model import Model, random_model
from engine.packed import PackedLinear, packing
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


def packed(model: Model) -> Model:
    with model.packing():
        pass
    assert model.decoder is not None
    return model


def logits_of(model: Model, *runs: tuple[int, int], each: bool = True) -> torch.Tensor:
    """Of the same tokens, computed in these runs: of every token, [tokens, vocabulary], or of each run's last."""
    found: list[torch.Tensor] = []
    with DevicePool(model.layout(str(model.dtype).removeprefix("torch."), 16), 20) as pool:
        for start, end in runs:
            chunk = Chunk(tokens=TOKENS[start:end], start=start, slots=np.arange(20), wants_logits=True)
            batch = model.batch([chunk], pool)
            if each:
                batch = replace(batch, logit_rows=torch.arange(end - start), num_logits=end - start)
            found.append(model.forward(batch, pool).clone())
    return torch.cat(found)


def exactly(model: Model, num_tokens: int) -> torch.Tensor:
    """The same by transformers alone, in float64."""
    hf = copy.deepcopy(model.hf).double()
    hf.set_attn_implementation("eager")
    with torch.inference_mode():
        return hf(torch.from_numpy(TOKENS[None, :num_tokens].astype(np.int64)), use_cache=False).logits[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_model_is_the_model(kind, dtype):
    """As near to it in float64 as transformers' own modules are in its dtype, or almost; and its state is what it was."""
    model = model_of(kind, dtype)
    expected = exactly(model, 133)
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    plain = logits_of(model, (0, 133)).double()
    for _ in range(2):
        packed(model)
    assert {type(layer) for layer in model.hf.model.layers} == {PackedLayer}
    found = logits_of(model, (0, 133)).double()
    scale = expected.square().mean().sqrt()
    off, tolerated = (found - expected).square().mean().sqrt(), (plain - expected).square().mean().sqrt()
    assert off <= 1.5 * tolerated + 1e-6 * scale < 0.1 * scale
    after = model.hf.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_however_many_are_computed(dtype, threads):
    """One alone, few, and more than a task takes, by one thread and by two; whether others' logits are wanted too."""
    model = packed(model_of("llama that attends by the kernel", dtype))
    runs = ((0, 1), (1, 8), (8, 17), (17, 100), (100, 300))
    at_once = logits_of(model, (0, 300))
    torch.set_num_threads(3 - threads)
    assert torch.equal(logits_of(model, *runs), at_once)
    assert torch.equal(logits_of(model, *runs, each=False), at_once[[end - 1 for _, end in runs]])


def test_what_it_does_not_compute():
    for name, more in (
        ("gemma3_text, window in some layers", {}),
        ("olmo2", {}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"hidden_size": 4}),  # less than a register
    ):
        assert not packs(random_model(CASES[name].config(**more)).hf)
    assert not packs(random_model(CASES["llama"].config()).hf.half())


class Wrapped(torch.nn.Linear):
    """As an adapter would be."""


def wrapped(hf: torch.nn.Module) -> None:
    hf.model.layers[1].self_attn.q_proj.__class__ = Wrapped


def hooked(hf: torch.nn.Module) -> None:
    hf.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def with_another_forward(hf: torch.nn.Module) -> None:
    hf.model.layers[1].mlp.forward = hf.model.layers[1].mlp.forward


def of_two_dtypes(hf: torch.nn.Module) -> None:
    hf.model.layers[1].input_layernorm.to(torch.float64)


def with_another_norm(hf: torch.nn.Module) -> None:
    hf.model.layers[1].post_attention_layernorm.variance_epsilon *= 2


def another_of_that_name(hf: torch.nn.Module) -> None:
    hf.model.layers[1].__class__ = type("LlamaDecoderLayer", (type(hf.model.layers[1]),), {})


def with_a_layer_of_another_shape(hf: torch.nn.Module) -> None:
    hf.model.layers[1].mlp = copy.deepcopy(
        random_model(CASES["llama"].config(intermediate_size=64)).hf.model.layers[1].mlp
    )


def with_a_hooked_head(hf: torch.nn.Module) -> None:
    hf.lm_head.register_forward_hook(lambda *_: None)


def with_a_head_that_adds(hf: torch.nn.Module) -> None:
    hf.lm_head = torch.nn.Linear(hf.lm_head.in_features, hf.lm_head.out_features)


def with_a_head_of_fewer_tokens(hf: torch.nn.Module) -> None:
    hf.lm_head = torch.nn.Linear(hf.lm_head.in_features, 100, bias=False)


def with_fewer_values_than_keys(hf: torch.nn.Module) -> None:
    for layer in hf.model.layers:
        layer.self_attn.v_proj = torch.nn.Linear(layer.self_attn.v_proj.in_features, 16, bias=False)


def with_a_short_norm(hf: torch.nn.Module) -> None:
    hf.model.norm.weight = torch.nn.Parameter(hf.model.norm.weight[:8].clone())


def with_a_layer_that_scales_otherwise(hf: torch.nn.Module) -> None:
    hf.model.layers[1].self_attn.scaling *= 2


@pytest.mark.parametrize(
    "change",
    [
        wrapped,
        hooked,
        with_another_forward,
        of_two_dtypes,
        with_another_norm,
        another_of_that_name,
        with_a_layer_of_another_shape,
        with_a_hooked_head,
        with_a_head_that_adds,
        with_a_head_of_fewer_tokens,
        with_fewer_values_than_keys,
        with_a_short_norm,
        with_a_layer_that_scales_otherwise,
    ],
)
def test_a_model_that_was_changed_stays_transformers_own(change):
    """What was done to it would not be done; products that nobody touched are packed all the same."""
    model = random_model(KINDS["llama"])
    change(model.hf)
    with model.packing():
        pass
    assert model.decoder is None
    assert type(model.hf.model.layers[0].mlp.up_proj) is PackedLinear


def test_a_hooked_product_stays():
    hf = random_model(CASES["olmo2"].config()).hf
    hf.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    with packing(hf):
        pass
    assert type(hf.model.layers[1].mlp.up_proj) is torch.nn.Linear


def hook_a_layer(hf: torch.nn.Module) -> None:
    hf.model.layers[1].register_forward_hook(lambda *_: None)


def hook_all(hf: torch.nn.Module) -> None:
    hf.register_forward_pre_hook(lambda *_: None)


def replace_the_head(hf: torch.nn.Module) -> None:
    """As an adapter does that wraps it."""
    hf.lm_head = torch.nn.Sequential(hf.lm_head)


def replace_a_weight(hf: torch.nn.Module) -> None:
    hf.model.norm.weight = torch.nn.Parameter(2 * hf.model.norm.weight)


def move_the_weights(hf: torch.nn.Module) -> None:
    hf.half()


@pytest.mark.parametrize(
    "change", [hook_a_layer, hook_all, replace_the_head, replace_a_weight, move_the_weights]
)
def test_what_is_done_to_a_packed_model_is_noticed(change):
    """It would be done to what nothing is computed with any more."""
    model = packed(random_model(KINDS["llama"]))
    logits_of(model, (0, 20))
    change(model.hf)
    with pytest.raises(ValueError, match="after an engine had taken over its weights"):
        logits_of(model, (0, 20))


def test_hooks_that_are_gone_are_forgotten_and_those_on_turns_are_called():
    model = packed(random_model(KINDS["llama"]))
    called = []
    model.hf.model.rotary_emb.register_forward_hook(lambda *_: called.append(True))
    hook = model.hf.lm_head.register_forward_hook(lambda *_: None)
    hook.remove()
    logits_of(model, (0, 20))
    assert called


def test_turns_of_another_width_are_refused():
    """Of them the kernel would read more than there is."""
    model = packed(random_model(KINDS["llama"]))
    turn = model.hf.model.rotary_emb.forward
    model.hf.model.rotary_emb.forward = lambda *given, **named: tuple(
        one[..., :8] for one in turn(*given, **named)
    )
    with pytest.raises(ValueError, match="heads of 16 numbers"):
        logits_of(model, (0, 20))


def test_a_pool_of_another_shape_is_refused():
    """The kernel writes to addresses: nothing else would tell."""
    model = packed(random_model(KINDS["llama that attends by the kernel"]))
    chunk = Chunk(tokens=TOKENS[:60], start=0, slots=np.arange(20), wants_logits=True)
    layout = model.layout("float32", 16)
    for other in (
        replace(layout, num_layers=2),
        replace(layout, num_kv_heads=1),
        replace(layout, head_dim=16),
    ):
        with DevicePool(other, 20) as pool, pytest.raises(ValueError, match="a pool of"):
            model.forward(model.batch([chunk], pool), pool)
    with DevicePool(layout, 20) as pool, DevicePool(layout, 2) as small:
        batch = model.batch([chunk], pool)
        with pytest.raises(ValueError, match="slot 3 of a pool of 2"):
            model.forward(batch, small)


def test_layers_that_wait_are_computed_one_by_one():
    """To the same bits, and each is asked for before anything of it is written."""
    model = packed(random_model(KINDS["llama that attends by the kernel"]))
    chunk = Chunk(tokens=TOKENS[:60], start=0, slots=np.arange(20), wants_logits=True)
    with DevicePool(model.layout("float32", 16), 20) as pool:
        at_once = model.forward(model.batch([chunk], pool), pool)
        pool.blocks.zero_()
        written: list[list[bool]] = []
        found = model.forward(
            model.batch([chunk], pool),
            pool,
            lambda number: written.append([bool(layer.any()) for layer in pool.blocks.unbind(1)]),
        )
    assert torch.equal(found, at_once)
    assert written == [[False, False, False], [True, False, False], [True, True, False]]


def test_of_a_chunk_without_logits_all_layers_have_their_keys_and_values():
    model = packed(random_model(KINDS["llama that attends by the kernel"]))
    kept: list[torch.Tensor] = []
    for wants in (True, False):
        chunk = Chunk(tokens=TOKENS[:60], start=0, slots=np.arange(20), wants_logits=wants)
        with DevicePool(model.layout("float32", 16), 20) as pool:
            pool.blocks.zero_()
            assert len(model.forward(model.batch([chunk], pool), pool)) == wants
            kept.append(pool.blocks.clone())
    assert kept[0][:, -1].any()
    assert torch.equal(*kept)


def test_two_engines_may_compute_with_one_model():
    """What is on its way lies in each one's pool."""
    model = packed(random_model(KINDS["llama"]))
    layout = model.layout("float32", 16)
    chunk = Chunk(tokens=TOKENS[:60], start=0, slots=np.arange(20), wants_logits=True)
    with DevicePool(layout, 20) as pool, DevicePool(layout, 20) as other:
        for one in (pool, other):
            model.forward(model.batch([chunk], one), one)
        names = ("x", "query", "kv", "normal", "sums", "gates")
        of_pool, of_other = (
            {each.workspace.take(name, 1, dtype=torch.float32).data_ptr() for name in names}
            for each in (pool, other)
        )
        assert not of_pool & of_other


def test_two_models_may_have_the_same_weights():
    """Whichever is packed first; what lay in the modules is gone from there."""
    model = packed(random_model(KINDS["llama"]))
    other = packed(Model(model.hf, name="the same"))
    assert torch.equal(logits_of(other, (0, 40)), logits_of(model, (0, 40)))


def test_nothing_is_compiled_once_it_is_packed(monkeypatch):
    """Not even by the first request."""
    for cached in (native.computing, native.watching, native.attending):
        cached.cache_clear()
    model = random_model(KINDS["llama that attends by the kernel"])
    with model.packing(torch.float32):
        lanes.prepare(torch.device("cpu"), torch.float32, torch.float32, 32)
    monkeypatch.setattr(native, "loaded", None)
    assert torch.isfinite(logits_of(model, (0, 30))).all()
