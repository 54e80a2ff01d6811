"""What is loaded is what was asked for; what would compute something wrong is refused by name."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config

from engine.attention import PagedKV, paged_attention
from engine.batch import build_batch
from engine.demo_model import demo_model_dir
from engine.model import load_model, random_model
from engine.supported import check_config
from tests.engine.conftest import TINY_CONFIGS
from tests.engine.naive import Driver, tokens


def test_facts_of_the_demo_model(demo_model):
    layout = demo_model.layout("bfloat16", 16)
    assert layout.token_bytes == 23_040
    assert (demo_model.num_layers, demo_model.num_heads, demo_model.num_kv_heads) == (30, 9, 3)
    assert (demo_model.head_dim, demo_model.vocab_size, demo_model.max_len) == (64, 49152, 8192)
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
    one, same, other = (random_model(TINY_CONFIGS["llama"](), seed=seed) for seed in (1, 1, 2))
    weights = [model.hf.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_random_model_can_be_longer():
    config = TINY_CONFIGS["llama"]()
    assert [random_model(config, min_len=n).max_len for n in (None, 100, 20_000)] == [4096, 4096, 20_000]
    assert config.max_position_embeddings == 4096, "the config given is left as it is"


def test_a_refused_directory_is_refused_before_its_weights_are_read(tmp_path):
    Gemma2Config(architectures=["Gemma2ForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM is not supported"):
        load_model(tmp_path)


def test_loading_a_directory(tiny_llama_dir):
    model = load_model(tiny_llama_dir, max_model_len=100)
    assert (model.architecture, model.max_len, model.eos_ids) == ("LlamaForCausalLM", 100, {2})
    assert model.tokenizer is None
    assert model.source == tiny_llama_dir


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load the model .*config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma2Config(), "gemma2 is not supported; supported are LlamaForCausalLM"),
        (LlamaConfig(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        (MistralConfig(sliding_window=4096, max_position_embeddings=8192), "max_model_len to at most 4096"),
        (
            Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1),
            "sliding window of 64",
        ),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "'dynamic' depends on the batch",
        ),
        (LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised checkpoints"),
    ],
)
def test_what_would_be_wrong_is_refused(config, words):
    with pytest.raises(ValueError, match=words):
        check_config(config, None)


def test_a_window_as_long_as_the_model_is_no_window():
    config = MistralConfig(sliding_window=4096, max_position_embeddings=8192)
    assert check_config(config, 4096) == 4096
    with pytest.raises(ValueError, match="from 1 to the model's 8192"):
        check_config(config, 9000)


def test_attention_refuses_what_it_does_not_know(tiny_llama_dir):
    model = load_model(tiny_llama_dir)
    driver = Driver(model)
    batch = build_batch([driver.row(tokens(1, 20)).chunk(0, 20)], driver.pool)

    def forward(**more):
        with torch.inference_mode():
            return model.hf(input_ids=batch.input_ids, position_ids=batch.positions, use_cache=False, **more)

    paged = PagedKV(batch, driver.pool)
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
    query = torch.zeros(1, 4, 20, 16)
    with pytest.raises(ValueError, match="sliding window of 8 tokens"):
        paged_attention(
            model.hf.model.layers[0].self_attn,
            query,
            query[:, :2],
            query[:, :2],
            None,
            sliding_window=8,
            paged=paged,
        )
