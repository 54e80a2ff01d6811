"""What is loaded is what was asked for; what would compute something wrong is refused by name."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from engine.attention import PagedKV
from engine.batch import build_batch
from engine.demo_model import demo_model_dir
from engine.model import draw, load_model, random_model
from tests.engine.families import CASES
from tests.engine.naive import Driver, tokens


def test_facts_of_the_demo_model(demo_model):
    layout = demo_model.layout("bfloat16", 16)
    assert layout.token_bytes == 23_040
    shape = demo_model.shape
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.head_dim) == (30, 9, 3, 64)
    assert (demo_model.vocab_size, demo_model.max_len, demo_model.windows) == (49152, 8192, (None,))
    assert demo_model.dtype == torch.float32
    assert demo_model.eos_ids == {demo_model.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_the_demo_model_is_converted_once(demo_dir, tmp_path):
    """A second call finds it, and says nothing."""
    said: list[str] = []
    shutil.copytree(demo_dir, tmp_path / demo_dir.name, copy_function=_link)
    assert demo_model_dir(tmp_path, said.append) == tmp_path / demo_dir.name
    assert not said


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def test_a_random_model_of_the_demo_shape_has_its_layout(demo_model):
    model = random_model(AutoConfig.from_pretrained(demo_model.source))
    assert model.layout("bfloat16", 16) == demo_model.layout("bfloat16", 16)
    assert model.tokenizer is None


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (random_model(CASES["llama"].config(), seed=seed) for seed in (1, 1, 2))
    weights = [model.hf.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weights_drawn_where_they_are_needed_are_in_the_wanted_dtype():
    """As on a GPU, tried on the CPU: the weights in bfloat16 from the start, what rotates keys still in float32."""
    one, same, other = (draw(CASES["llama"].config(), seed, "cpu", torch.bfloat16) for seed in (1, 1, 2))
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in one.buffers()} == {torch.float32}
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    before = torch.get_rng_state()
    draw(CASES["llama"].config(), 3, "cpu", torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before), "who draws leaves the generator as it was"


def test_a_random_model_can_be_longer():
    config = CASES["llama"].config()
    assert [random_model(config, min_len=n).max_len for n in (None, 100, 20_000)] == [4096, 4096, 20_000]
    assert config.max_position_embeddings == 4096, "the config given is left as it is"


def test_loading_a_directory(tiny_llama_dir):
    model = load_model(tiny_llama_dir, max_model_len=100)
    assert (model.architecture, model.max_len, model.eos_ids) == ("LlamaForCausalLM", 100, {2})
    assert model.tokenizer is None
    assert model.source == tiny_llama_dir


def test_attention_refuses_what_it_does_not_know(tiny_llama_dir):
    model = load_model(tiny_llama_dir)
    driver = Driver(model)
    batch = build_batch([driver.row(tokens(1, 20)).chunk(0, 20)], driver.pool)

    def forward(**more):
        with torch.inference_mode():
            return model.hf(input_ids=batch.input_ids, position_ids=batch.positions, use_cache=False, **more)

    paged = PagedKV(batch, driver.pool, lambda _: None)
    assert forward(paged=paged).logits.shape == (1, 20, 512)
    for extra, words in (
        ({"s_aux": 1}, "s_aux"),
        ({"softcap": 30.0}, "softcap"),
        ({"is_causal": False}, "both directions"),
        ({"attention_mask": torch.ones(1, 1, 20, 20)}, "mask of its own"),
    ):
        with pytest.raises(ValueError, match=words):
            forward(paged=paged, **extra)
    with pytest.raises(AssertionError, match=r"Model\.forward"):
        forward()
